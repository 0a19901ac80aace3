"""A sharding for every leaf of a state, from those of the parameters."""

import itertools
import math
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from .. import _tree
from .._typing import PyTree
from ._params import Spec, as_partition_spec, axis_names, largest_divided, places


def state_shardings(
    state: PyTree, params: PyTree, shardings: PyTree, *, zero_axis: str | None = None
) -> PyTree:
    """Where the leaves of a state lie: as the parameters that they belong to.

        state = jax.eval_shape(optimizer.init, params)
        over = state_shardings(state, params, shardings)
        opt_state = jax.jit(optimizer.init, out_shardings=over)(params)

    A leaf belongs to the parameter whose name its own name ends with, whatever chain,
    mask, `multi_transform`, `MultiSteps` or NNX state it stands in. Of the parameter's
    shape it lies as the parameter does. Of another shape, as Adafactor's rows and
    columns, it is divided by as many of the parameter's mesh axes as divide it: also
    by those that divide the axis which was averaged away. What belongs to no parameter,
    counters and rates, is repeated on every device.

    Args:
        state: an optimizer's state, a `TrainState`, an average of parameters: any tree
            of arrays or of their shapes.
        params: arrays, or their shapes.
        shardings: theirs, as `param_shardings` gives them.
        zero_axis: a mesh axis along which parameters are repeated and by which the
            leaves of this state are divided besides, where it divides them: ZeRO-1. Of
            an optimizer's state only; a `TrainState` holds the parameters as well.

    Returns:
        A `NamedSharding` for each leaf of `state`.

    Raises:
        ValueError: if `zero_axis` is no axis of the mesh.

    Source: Rajbhandari et al., "ZeRO", 2019, arXiv 1910.02054, section 5.1, for the
        optimizer's state alone.
    """
    mesh = _mesh_of(shardings)
    owners: dict[str, tuple[tuple[int, ...], NamedSharding]] = {
        name: (leaf.shape, sharding)
        for (name, leaf), sharding in zip(
            _tree.named_leaves(params),
            jax.tree.leaves(shardings, is_leaf=_is_sharding),
            strict=True,
        )
    }
    if zero_axis is not None and zero_axis not in mesh.shape:
        raise ValueError(
            f"`zero_axis` must be an axis of the mesh, got {zero_axis!r} for a mesh "
            f"with the axes {list(mesh.shape)}."
        )

    def sharding_of(name: str, leaf: Any) -> NamedSharding:
        shape, owner = owners.get(_owner(name, owners), ((), None))
        if owner is None:
            return NamedSharding(mesh, PartitionSpec())
        spec = axis_names(owner.spec, mesh)
        spec += [()] * (len(shape) - len(spec))
        if leaf.shape != shape:
            spec = _divided(leaf.shape, shape, spec, mesh)
        if zero_axis is not None and leaf.shape:
            spec = _with(leaf.shape, spec, zero_axis, mesh)
        return NamedSharding(mesh, as_partition_spec(spec))

    found = [sharding_of(name, leaf) for name, leaf in _tree.named_leaves(state)]
    return jax.tree.unflatten(jax.tree.structure(state), found)


def _mesh_of(shardings: PyTree) -> jax.sharding.Mesh:
    found = jax.tree.leaves(shardings, is_leaf=_is_sharding)
    if not found or not all(map(_is_sharding, found)):
        raise TypeError(
            "`shardings` must hold a NamedSharding for each parameter, got "
            f"{found[0] if found else shardings!r}. `param_shardings` makes them."
        )
    return found[0].mesh


def _owner(name: str, owners: dict[str, Any]) -> str:
    """The longest parameter's name that `name` ends with; "" for none."""
    words = name.split(".")
    ends = (".".join(words[i:]) for i in range(len(words)))
    return next((end for end in ends if end in owners), "")


def _divided(
    shape: tuple[int, ...],
    of_param: tuple[int, ...],
    spec: Spec,
    mesh: jax.sharding.Mesh,
) -> Spec:
    """The parameter's mesh axes where they cut a leaf of another shape most often.

    Of equal choices the one that leaves most of them on axes of the size on which the
    parameter has them: there nothing has to be sent.
    """
    axes = [(name, axis) for axis, names in enumerate(spec) for name in names]
    best: Spec = [() for _ in shape]
    best_rank = (1, 0)
    for choice in itertools.product([None, *range(len(shape))], repeat=len(axes)):
        tried: Spec = [() for _ in shape]
        num_kept = 0
        for (name, axis), target in zip(axes, choice, strict=True):
            if target is not None:
                tried[target] += (name,)
                num_kept += shape[target] == of_param[axis]
        parts = places(tried, mesh)
        is_even = all(n > 0 and n % k == 0 for n, k in zip(shape, parts, strict=True))
        if is_even and (math.prod(parts), num_kept) > best_rank:
            best, best_rank = tried, (math.prod(parts), num_kept)
    return best


def _with(
    shape: tuple[int, ...], spec: Spec, zero_axis: str, mesh: jax.sharding.Mesh
) -> Spec:
    """Divided by `zero_axis` too, along the largest part that it divides."""
    if any(zero_axis in names for names in spec):
        return spec
    got = largest_divided(shape, spec, zero_axis, mesh)
    return [
        (*names, zero_axis) if axis == got else names for axis, names in enumerate(spec)
    ]


def _is_sharding(node: object) -> bool:
    return isinstance(node, NamedSharding)
