"""Shardings of an optimizer's state, from those of the parameters."""

from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from .. import _pytrees
from .._typing import PyTree
from ._params import (
    Spec,
    as_partition_spec,
    axis_names,
    best_partition,
    num_parts,
    spec_of,
)

# Limit of the elements of a leaf that belongs to no parameter and is replicated:
# counters, rates, short histories.
_MOST_REPLICATED = 65_536


def state_shardings(
    state: PyTree, params: PyTree, shardings: PyTree, *, zero_axis: str | None = None
) -> PyTree:
    """Returns a sharding for every leaf of a state: that of its parameter.

        state = jax.eval_shape(optimizer.init, params)
        over = state_shardings(state, params, shardings)
        opt_state = jax.jit(optimizer.init, out_shardings=over)(params)

    A leaf belongs to the parameter whose name its own name ends with, whatever chain,
    mask, `multi_transform`, `MultiSteps` or NNX state it is in. With the parameter's
    shape it has the parameter's sharding. With another shape, as Adafactor's rows and
    columns, it is divided by as many of the parameter's mesh axes as divide it: also
    by those that divide the axis which was averaged away. Leaves of no parameter,
    counters and rates, are replicated.

    Args:
        state: an optimizer's state, a `TrainState`, an average of parameters: any tree
            of arrays or of their shapes.
        params: arrays, or their shapes.
        shardings: of the parameters, from `param_shardings`.
        zero_axis: a mesh axis along which parameters are replicated, and which divides
            the leaves of this state besides, where it can: ZeRO-1. For an optimizer's
            state only; a `TrainState` holds the parameters as well.

    Returns:
        A `NamedSharding` for each leaf of `state`.

    Raises:
        ValueError: if `zero_axis` is no axis of the mesh, if shardings are of several
            meshes, or if a large leaf belongs to no parameter.
        TypeError: if `shardings` is not a NamedSharding for each parameter.

    Source: Rajbhandari et al., "ZeRO", 2019, arXiv 1910.02054, section 5.1, for the
        optimizer's state alone.
    """
    owners, mesh = _owners(params, shardings)
    if zero_axis is not None and (mesh is None or zero_axis not in mesh.shape):
        raise ValueError(
            f"`zero_axis` must be an axis of the mesh, got {zero_axis!r} for a mesh "
            f"with the axes {list(mesh.shape) if mesh else []}."
        )
    _pytrees.check_arrays("state", state)
    named = _pytrees.named_leaves(state)
    names = _pytrees.owner_names([name for name, _ in named], owners)
    found = []
    for (name, leaf), owner_name in zip(named, names, strict=True):
        if owner_name is None:
            _check_is_small(name, leaf)
            found.append(NamedSharding(mesh, PartitionSpec()))
        else:
            found.append(_sharding_of(leaf, *owners[owner_name], zero_axis))
    return jax.tree.unflatten(jax.tree.structure(state), found)


def _sharding_of(
    leaf: Any, param: Any, owner: NamedSharding, zero_axis: str | None
) -> NamedSharding:
    """Returns the sharding of a leaf that belongs to a parameter."""
    mesh: Any = owner.mesh
    spec = axis_names("shardings", owner.spec, mesh)
    spec += [()] * (len(param.shape) - len(spec))
    if leaf.shape != param.shape:
        spec = _divided(leaf.shape, param.shape, spec, mesh)
    if zero_axis is not None and leaf.shape:
        spec = _with_axis(leaf.shape, spec, zero_axis, mesh)
    return NamedSharding(mesh, as_partition_spec(spec), memory_kind=owner.memory_kind)


def _owners(
    params: PyTree, shardings: PyTree
) -> tuple[dict[str, tuple[Any, NamedSharding]], Any]:
    """Returns each parameter and its sharding by its name, and the mesh of all."""
    named = _pytrees.named_leaves(params)
    leaves, structure = jax.tree.flatten(shardings, is_leaf=_is_sharding)
    of_params: Any = jax.tree.structure(params)
    wrong = [leaf for leaf in leaves if not _is_sharding(leaf)]
    if structure != of_params or wrong:
        raise TypeError(
            "`shardings` must hold a NamedSharding for each parameter, in the "
            f"structure of `params`, got {wrong[0] if wrong else structure!r}. "
            "`param_shardings` makes them."
        )
    meshes = {sharding.mesh for sharding in leaves}
    if len(meshes) > 1:
        raise ValueError(
            f"`shardings` must be of one mesh, got {len(meshes)} different ones."
        )
    owners = {
        name: (leaf, sharding)
        for (name, leaf), sharding in zip(named, leaves, strict=True)
    }
    return owners, next(iter(meshes), None)


def _check_is_small(name: str, leaf: Any) -> None:
    if leaf.size > _MOST_REPLICATED:
        raise ValueError(
            f"`state` must belong to `params`, but {name!r} of {leaf.size:,} elements "
            "has the name of none of them and would be replicated. Pass the parameters "
            "that the optimizer was given, and none that are flattened."
        )


def _divided(
    shape: tuple[int, ...],
    of_param: tuple[int, ...],
    spec: Spec,
    mesh: jax.sharding.Mesh,
) -> Spec:
    """Divides a leaf of another shape by the parameter's mesh axes, as often as it can.

    Preferably along axes of the size that they divide in the parameter, where mostly
    nothing has to be sent.
    """
    axes = [(name, axis) for axis, names in enumerate(spec) for name in names]
    names = [name for name, _ in axes]
    wanted = [
        [i for i, size in enumerate(shape) if size == of_param[axis]]
        for _, axis in axes
    ]
    got = best_partition(shape, names, wanted, mesh)
    # Axes that cut the parameter in the same place come first: nothing has to be sent.
    order = sorted(range(len(names)), key=lambda i: got[i] not in wanted[i])
    return spec_of(shape, [names[i] for i in order], [got[i] for i in order])


def _with_axis(
    shape: tuple[int, ...], spec: Spec, zero_axis: str, mesh: jax.sharding.Mesh
) -> Spec:
    """Divides a leaf by `zero_axis` too, along the axis with the largest parts."""
    if any(zero_axis in names for names in spec):
        return spec
    more, parts = mesh.shape[zero_axis], num_parts(spec, mesh)
    fits = [i for i, n in enumerate(shape) if n and n % (parts[i] * more) == 0]
    if fits:
        got = max(fits, key=lambda i: (shape[i] // parts[i], -i))
        spec[got] = (*spec[got], zero_axis)
    return spec


def _is_sharding(node: object) -> bool:
    return isinstance(node, NamedSharding)
