"""Plans, which contain memory, traffic and time of a step on named devices."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax

from .. import _checks, _pytrees
from .._typing import PyTree
from ..sharding import RuleFallback
from ._cost import Cost, Estimate, estimate, program_cost
from ._slices import Slice


class LeafBytes(NamedTuple):
    """Memory of a leaf."""

    name: str  # dotted name
    shape: tuple[int, ...]  # shape of the whole array
    on_device: int  # bytes on each device
    global_bytes: int  # bytes of the whole array


@dataclass(frozen=True, kw_only=True)
class Part:
    """Tree in the memory of a step, such as the parameters.

    Attributes:
        name: name of the tree in tables.
        leaves: memory of each leaf, in the order of the tree.
    """

    name: str
    leaves: tuple[LeafBytes, ...]

    @property
    def on_device(self) -> int:
        """Bytes on each device."""
        return sum(leaf.on_device for leaf in self.leaves)

    @property
    def global_bytes(self) -> int:
        """Bytes of the whole tree, without copies on several devices."""
        return sum(leaf.global_bytes for leaf in self.leaves)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Memory, traffic and time of a step on a slice.

    Attributes:
        slice_: the devices.
        parts: trees in the devices' memory, with sizes computed from shapes.
        cost: cost of the compiled step; None without a compiled step.
        note: reason why there is no compiled step; "" if there is one.
        is_refused: whether the compiler refused the step because of its memory.
        num_items: number of items, such as tokens, in a step; 0 if unknown.
        unmet: mesh axes that could not be used as in the rules, see `unmet_rules`.
        remarks: further sentences about the plan, to be printed.
    """

    slice_: Slice
    parts: tuple[Part, ...]
    cost: Cost | None = None
    note: str = ""
    is_refused: bool = False
    num_items: int = 0
    unmet: tuple[RuleFallback, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def on_device(self) -> int:
        """Bytes that each device needs: the compiler's figure, or the sum of parts."""
        if self.cost is not None:
            return self.cost.total
        return sum(part.on_device for part in self.parts)

    @property
    def fits(self) -> bool | None:
        """True if `on_device` fits into a device's memory; None if unknown.

        The answer is unknown for CPUs, and for a plan without a compiled step whose
        parts fit, because activations are not counted.
        """
        # For CPUs `memory_fraction` is NaN, and both comparisons are False.
        if self.is_refused or self.memory_fraction > 1:
            return False
        return True if self.cost is not None and self.memory_fraction <= 1 else None

    @property
    def memory_fraction(self) -> float:
        """`on_device` as a fraction of a device's memory; NaN if it is unknown."""
        return self.on_device / self.slice_.chip.memory

    @property
    def estimate(self) -> Estimate | None:
        """Lower bound of the time; None without a compiled step or published peaks."""
        if self.cost is None or math.isnan(self.slice_.chip.flops):
            return None
        return estimate(self.cost, self.slice_.chip)

    def replicated(self) -> list[tuple[str, LeafBytes, float]]:
        """Returns the leaves that are not sharded over all devices: part, leaf, bytes.

        The bytes are the excess on each device over an even division. The leaves are in
        descending order of this excess.
        """
        num_devices = self.slice_.num_devices
        found = (
            (part.name, leaf, leaf.on_device - leaf.global_bytes / num_devices)
            for part in self.parts
            for leaf in part.leaves
        )
        return sorted(
            (each for each in found if each[2] >= 1), key=lambda each: -each[2]
        )


def bytes_by_leaf(tree: PyTree) -> tuple[LeafBytes, ...]:
    """Returns the memory of a tree's leaves on each device, without allocating it.

    Args:
        tree: arrays, or shapes with a `sharding`. Leaves without a sharding count as
            replicated.

    Raises:
        TypeError: if a leaf is not an array.
    """
    _pytrees.check_arrays("tree", tree)
    return tuple(
        LeafBytes(name, tuple(leaf.shape), *_bytes(leaf))
        for name, leaf in _pytrees.named_leaves(tree)
    )


def plan_shapes(
    parts: Mapping[str, PyTree],
    slice_: Slice,
    *,
    note: str = "",
    unmet: Sequence[RuleFallback] = (),
) -> Plan:
    """Returns a plan from shapes alone, without a compiler.

        plan_shapes({"parameters": params, "gradients": params}, named_slice("v5e:4x4"))

    Args:
        parts: trees as for `bytes_by_leaf`, by their names in tables.
        slice_: the devices, from `named_slice`.
        note: reason why there is no compiled step.
        unmet: result of `unmet_rules`, to be printed.

    Raises:
        TypeError: if a leaf of a part is not an array.
        ValueError: if arrays are placed on another number of devices.
    """
    for name, tree in parts.items():
        _check_devices(f"parts {name}", tree, slice_)
    found = tuple(Part(name=n, leaves=bytes_by_leaf(t)) for n, t in parts.items())
    return Plan(slice_=slice_, parts=found, note=note, unmet=tuple(unmet))


def plan_step(
    step: Any,
    *args: PyTree,
    slice_: Slice,
    parts: Mapping[str, PyTree] | None = None,
    num_items: int = 0,
    unmet: Sequence[RuleFallback] = (),
) -> Plan:
    """Returns a plan from a step that is compiled for a slice, but not run.

        devices = slice_devices(slice_)
        ...  # shapes with shardings on `make_mesh("data=4,fsdp=4", devices)`
        plan_step(train_step, state, batch, slice_=slice_, num_items=16 * 1024)

    Args:
        step: any function under `jax.jit`.
        *args: arguments of the step, as `jax.ShapeDtypeStruct`s with shardings, or
            arrays.
        slice_: the slice on whose devices the arguments are placed.
        parts: as for `plan_shapes`; None for the arguments, named by their positions.
        num_items: number of items in a step, such as tokens.
        unmet: result of `unmet_rules`, to be printed.

    Returns:
        A plan with a `cost`, or with a `note` instead if the compiler refuses the step
        because it does not fit into memory.

    Raises:
        TypeError: if `step` is not jitted.
        ValueError: if the arguments are placed on another number of devices.
    """
    if not hasattr(step, "trace"):
        raise TypeError(
            f"`step` must be a jitted function, got {step!r}. Wrap it in `jax.jit`."
        )
    _checks.whole_number("num_items", num_items, minimum=0, maximum=2**53)
    _check_devices("args", args, slice_)
    if parts is None:
        parts = {f"argument {i}": arg for i, arg in enumerate(args)}
    plan = plan_shapes(parts, slice_, unmet=unmet)
    traced = step.trace(*args)
    try:
        with warnings.catch_warnings():
            # JAX warns about donated buffers that are not reused. The plan lists them
            # in `unused_donations`.
            warnings.filterwarnings("ignore", "Some donated buffers were not usable")
            compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        # XLA's compiler for TPUs refuses programs that exceed the memory.
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        note = f"The compiler refused the step: {str(error).splitlines()[0]}"
        return replace(plan, note=note, is_refused=True, num_items=num_items)
    cost = program_cost(compiled, slice_.num_devices, traced)
    return replace(plan, cost=cost, num_items=num_items)


def _bytes(leaf: Any) -> tuple[int, int]:
    shape, sharding = tuple(leaf.shape), getattr(leaf, "sharding", None)
    local = shape if sharding is None else sharding.shard_shape(shape)
    itemsize = leaf.dtype.itemsize
    return itemsize * math.prod(local), itemsize * math.prod(shape)


def _check_devices(argument: str, tree: PyTree, slice_: Slice) -> None:
    """Raises unless all shardings have as many devices as the slice."""
    for name, leaf in _pytrees.named_leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        if sharding is not None and sharding.num_devices != slice_.num_devices:
            raise ValueError(
                f"`{argument}` must be placed on the {slice_.num_devices} devices of "
                f"{slice_.name!r}, but {name!r} is placed on {sharding.num_devices}. "
                "Create the mesh from `slice_devices(slice_)`."
            )
