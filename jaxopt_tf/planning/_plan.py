"""What a step needs on devices that nobody has to own yet."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from .. import _checks, _pytrees
from .._typing import PyTree
from ..sharding import Moved
from ._cost import Cost, program_cost
from ._estimate import Estimate, estimate
from ._slices import Slice


class LeafBytes(NamedTuple):
    """What a leaf takes."""

    name: str
    shape: tuple[int, ...]
    on_device: int  # bytes on each device
    whole: int  # bytes of the whole array


@dataclass(frozen=True, kw_only=True)
class Part:
    """A tree that a step needs: parameters, say.

    Attributes:
        name: what it is called in tables.
        leaves: what each takes, in the order of the tree.
    """

    name: str
    leaves: tuple[LeafBytes, ...]

    @property
    def on_device(self) -> int:
        """Bytes on each device."""
        return sum(leaf.on_device for leaf in self.leaves)

    @property
    def whole(self) -> int:
        """Bytes of the whole tree, each number counted once."""
        return sum(leaf.whole for leaf in self.leaves)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a step needs on a slice.

    Attributes:
        slice_: the devices.
        parts: what lies in their memory, from shapes alone.
        cost: of the compiled step; None where there is no compiled one.
        note: why there is none; "" where there is.
        is_refused: whether the compiler said that the step does not fit.
        num_items: tokens, say, that one step works on; 0 where it is not known.
        moved: mesh axes that do not divide what their rule names, see `moved_axes`.
    """

    slice_: Slice
    parts: tuple[Part, ...]
    cost: Cost | None = None
    note: str = ""
    is_refused: bool = False
    num_items: int = 0
    moved: tuple[Moved, ...] = ()

    @property
    def on_device(self) -> int:
        """Bytes that a device needs: the compiler's figure, or the parts together."""
        if self.cost is not None:
            return self.cost.total
        return sum(part.on_device for part in self.parts)

    @property
    def fits(self) -> bool | None:
        """Whether that is in a device's memory; None where its size is not known.

        Without a compiled step it says False truly, and True as far as shapes tell:
        activations come on top.
        """
        memory = self.slice_.chip.memory
        if self.is_refused:
            return False
        return None if math.isnan(memory) else self.on_device <= memory

    @property
    def estimate(self) -> Estimate | None:
        """How long the step takes at least; None without compiled step or peaks."""
        if self.cost is None or math.isnan(self.slice_.chip.flops):
            return None
        return estimate(self.cost, self.slice_.chip)

    def repeated(self) -> list[tuple[str, LeafBytes, float]]:
        """Leaves that are not divided by all devices: part, leaf, bytes too many.

        The dearest come first: these are the bytes on each device beyond its share.
        """
        num_devices = self.slice_.num_devices
        found = [
            (part.name, leaf, leaf.on_device - leaf.whole / num_devices)
            for part in self.parts
            for leaf in part.leaves
        ]
        found = [each for each in found if each[2] >= 1]
        return sorted(found, key=lambda each: -each[2])


def bytes_by_leaf(tree: PyTree) -> tuple[LeafBytes, ...]:
    """What the leaves of a tree take on each device; nothing is allocated.

    Args:
        tree: arrays, or shapes that have a `sharding`; what has none is taken to lie
            whole on each device.

    Raises:
        TypeError: if a leaf is no array.
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
    moved: Sequence[Moved] = (),
) -> Plan:
    """A plan from shapes alone: no compiler is asked.

        plan_shapes({"parameters": params, "gradients": params}, named_slice("v5e:4x4"))

    Args:
        parts: trees as `bytes_by_leaf` takes them, by the names that they shall have.
        slice_: from `named_slice`.
        note: why there is no compiled step.
        moved: from `moved_axes`, to be told.

    Raises:
        TypeError: if a part holds something that is no array.
        ValueError: if arrays lie on another number of devices.
    """
    for name, tree in parts.items():
        _check_devices(f"parts {name}", tree, slice_)
    found = tuple(Part(name=n, leaves=bytes_by_leaf(t)) for n, t in parts.items())
    return Plan(slice_=slice_, parts=found, note=note, moved=tuple(moved))


def plan_step(
    step: Any,
    *args: PyTree,
    slice_: Slice,
    parts: Mapping[str, PyTree] | None = None,
    num_items: int = 0,
    moved: Sequence[Moved] = (),
) -> Plan:
    """A plan from a step that is compiled for a slice, and not run.

        devices = slice_devices(slice_)
        ...  # shapes with shardings on `make_mesh("data=4,fsdp=4", devices)`
        plan_step(train_step, state, batch, slice_=slice_, num_items=16 * 1024)

    Args:
        step: any function under `jax.jit`.
        *args: its arguments as `jax.ShapeDtypeStruct`s that have shardings, or arrays.
        slice_: the slice that these shardings are of.
        parts: as for `plan_shapes`; the arguments by their numbers if not given.
        num_items: tokens, say, that one step works on.
        moved: from `moved_axes`, to be told.

    Returns:
        A plan with a `cost`; with a `note` in its place if the compiler finds that the
        step does not fit.

    Raises:
        TypeError: if `step` is not jitted.
        ValueError: if the arguments do not lie on as many devices as `slice_` has.
    """
    if not hasattr(step, "trace"):
        raise TypeError(
            f"`step` must be a jitted function, got {step!r}. Wrap it in `jax.jit`."
        )
    _checks.whole_number("num_items", num_items, least=0, most=2**53)
    _check_devices("args", args, slice_)
    if parts is None:
        parts = {f"argument {i}": arg for i, arg in enumerate(args)}
    shapes_only = plan_shapes(parts, slice_, moved=moved)
    traced = step.trace(*args)
    cost, note = None, ""
    try:
        with warnings.catch_warnings():
            # What was not donated is in the plan.
            warnings.filterwarnings("ignore", "Some donated buffers were not usable")
            compiled = traced.lower().compile()
        cost = program_cost(compiled, slice_.num_devices, traced)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        note = f"does not fit, says its compiler: {str(error).splitlines()[0]}"
    return Plan(
        slice_=slice_,
        parts=shapes_only.parts,
        cost=cost,
        note=note,
        is_refused=cost is None,
        num_items=num_items,
        moved=tuple(moved),
    )


def _bytes(leaf: Any) -> tuple[int, int]:
    shape, sharding = tuple(leaf.shape), getattr(leaf, "sharding", None)
    local = shape if sharding is None else sharding.shard_shape(shape)
    itemsize = leaf.dtype.itemsize
    return itemsize * math.prod(local), itemsize * math.prod(shape)


def _check_devices(argument: str, tree: PyTree, slice_: Slice) -> None:
    """Raises unless what has a sharding lies on as many devices as there are."""
    for name, leaf in _pytrees.named_leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        if sharding is not None and sharding.num_devices != slice_.num_devices:
            raise ValueError(
                f"`{argument}` must lie on the {slice_.num_devices} devices of "
                f"{slice_.name!r}, but {name!r} lies on {sharding.num_devices}. Make "
                "the mesh of `slice_devices(slice_)`."
            )
