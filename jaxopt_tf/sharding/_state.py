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

# Largest number of elements of a leaf that belongs to no parameter and is replicated,
# such as counters, learning rates and short histories.
_MAX_REPLICATED = 65_536


def state_shardings(
    state: PyTree, params: PyTree, shardings: PyTree, *, zero_axis: str | None = None
) -> PyTree:
    """Returns a sharding for each leaf of a state, derived from its parameter's.

        state = jax.eval_shape(optimizer.init, params)
        opt_shardings = state_shardings(state, params, shardings)
        opt_state = jax.jit(optimizer.init, out_shardings=opt_shardings)(params)

    A leaf belongs to the parameter whose name is the end of the leaf's name, inside of
    any chain, mask, `multi_transform`, `MultiSteps` or NNX state. A leaf with the
    parameter's shape has the parameter's sharding. A leaf with another shape, such as
    Adafactor's rows and columns, is divided by as many of the parameter's mesh axes as
    possible, including those that divide the axis that was averaged. Leaves that belong
    to no parameter, such as counters and learning rates, are replicated.

    Args:
        state: any tree of arrays or of their shapes: an optimizer's state, a
            `TrainState`, an average of parameters.
        params: arrays, or their shapes.
        shardings: shardings of the parameters, from `param_shardings`.
        zero_axis: a mesh axis along which parameters are replicated, and which
            additionally divides the leaves of this state where possible (ZeRO-1). Use
            it for an optimizer's state only: a `TrainState` also contains the
            parameters.

    Returns:
        A `NamedSharding` for each leaf of `state`.

    Raises:
        ValueError: if `zero_axis` is not an axis of the mesh, if shardings have
            different meshes, or if a large leaf belongs to no parameter.
        TypeError: if `shardings` does not contain a NamedSharding for each parameter.

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
    # A `PartitionSpec` may have fewer entries than the array has axes.
    spec += [()] * (len(param.shape) - len(spec))
    if leaf.shape != param.shape:
        spec = _divided(leaf.shape, param.shape, spec, mesh)
    if zero_axis is not None and leaf.shape:
        spec = _with_axis(leaf.shape, spec, zero_axis, mesh)
    # The memory kind is inherited: the state of a parameter in host memory is placed
    # there too.
    return NamedSharding(mesh, as_partition_spec(spec), memory_kind=owner.memory_kind)


def _owners(
    params: PyTree, shardings: PyTree
) -> tuple[dict[str, tuple[Any, NamedSharding]], Any]:
    """Returns each parameter and its sharding by name, and their common mesh."""
    named = _pytrees.named_leaves(params)
    leaves, structure = jax.tree.flatten(shardings, is_leaf=_is_sharding)
    params_structure: Any = jax.tree.structure(params)
    wrong = [leaf for leaf in leaves if not _is_sharding(leaf)]
    if structure != params_structure or wrong:
        raise TypeError(
            "`shardings` must contain a NamedSharding for each parameter, in the "
            f"structure of `params`, got {wrong[0] if wrong else structure!r}. Create "
            "them with `param_shardings`."
        )
    meshes = {sharding.mesh for sharding in leaves}
    if len(meshes) > 1:
        raise ValueError(
            f"`shardings` must have one mesh, got {len(meshes)} different meshes."
        )
    owners = {
        name: (leaf, sharding)
        for (name, leaf), sharding in zip(named, leaves, strict=True)
    }
    return owners, next(iter(meshes), None)


def _check_is_small(name: str, leaf: Any) -> None:
    if leaf.size > _MAX_REPLICATED:
        raise ValueError(
            f"`state` must belong to `params`, but {name!r} of {leaf.size:,} elements "
            "does not end with the name of a parameter and would be replicated. Pass "
            "the parameters that the optimizer received. Flattened parameters are not "
            "supported."
        )


def _divided(
    shape: tuple[int, ...],
    param_shape: tuple[int, ...],
    spec: Spec,
    mesh: jax.sharding.Mesh,
) -> Spec:
    """Divides a leaf of another shape by as many of the parameter's mesh axes as fit.

    A mesh axis preferably divides an axis of the size that it divides in the parameter,
    because this mostly needs no communication.
    """
    axes = [(name, axis) for axis, names in enumerate(spec) for name in names]
    names = [name for name, _ in axes]
    preferred = [
        [i for i, size in enumerate(shape) if size == param_shape[axis]]
        for _, axis in axes
    ]
    chosen = best_partition(shape, names, preferred, mesh)
    # Mesh axes that divide the leaf as they divide the parameter come first. In another
    # order, parts of the leaf would be on other devices than the same parts of the
    # parameter.
    order = sorted(range(len(names)), key=lambda i: chosen[i] not in preferred[i])
    return spec_of(shape, [names[i] for i in order], [chosen[i] for i in order])


def _with_axis(
    shape: tuple[int, ...], spec: Spec, zero_axis: str, mesh: jax.sharding.Mesh
) -> Spec:
    """Divides a leaf additionally by `zero_axis`, along the axis with largest parts."""
    if any(zero_axis in names for names in spec):
        return spec  # JAX refuses a spec that contains a mesh axis twice
    size, parts = mesh.shape[zero_axis], num_parts(spec, mesh)
    fits = [i for i, n in enumerate(shape) if n and n % (parts[i] * size) == 0]
    if fits:
        largest = max(fits, key=lambda i: (shape[i] // parts[i], -i))
        spec[largest] = (*spec[largest], zero_axis)
    return spec


def _is_sharding(node: object) -> bool:
    return isinstance(node, NamedSharding)
