"""A sharding for every leaf of a state, from those of the parameters."""

import collections
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from .. import _pytrees
from .._typing import PyTree
from ._division import Spec, largest_divided, most_divided, spec_of
from ._params import as_partition_spec, axis_names

# Elements of a leaf that belongs to no parameter: counters, rates, short histories.
_MOST_REPEATED = 65_536


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
    names = _names_of_owners([name for name, _ in named], owners)

    def sharding_of(name: str, leaf: Any, owner_name: str | None) -> NamedSharding:
        if owner_name is None:
            _check_is_small(name, leaf)
            return NamedSharding(mesh, PartitionSpec())
        param, owner = owners[owner_name]
        spec = axis_names("shardings", owner.spec, mesh)
        spec += [()] * (len(param.shape) - len(spec))
        if leaf.shape != param.shape:
            spec = _divided(leaf.shape, param.shape, spec, mesh)
        if zero_axis is not None and leaf.shape:
            spec = _with(leaf.shape, spec, zero_axis, mesh)
        return NamedSharding(
            mesh, as_partition_spec(spec), memory_kind=owner.memory_kind
        )

    found = [
        sharding_of(name, leaf, owner)
        for (name, leaf), owner in zip(named, names, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(state), found)


def _owners(params: PyTree, shardings: PyTree) -> tuple[dict[str, tuple], Any]:
    """Each parameter and its sharding by its name, and the one mesh of all."""
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


def _names_of_owners(names: list[str], owners: dict[str, Any]) -> list[str | None]:
    """For each leaf of a state the name of its parameter; None for none.

    Of several names that it ends with, the one whose beginning is that of most other
    leaves, which are then those of the other parameters: `mu.w` is the `w` of a
    `mu`, even where a parameter is called `mu.w`.
    """
    choices = []
    for name in names:
        words = name.split(".") if name else [""]
        ends = [(words[:i], ".".join(words[i:])) for i in range(len(words))]
        ends.append((words, ""))  # a parameter that is the whole tree
        choices.append([(tuple(begin), end) for begin, end in ends if end in owners])
    num_with = collections.Counter(begin for choice in choices for begin, _ in choice)
    return [
        max(choice, key=lambda c: (num_with[c[0]], -len(c[0])))[1] if choice else None
        for choice in choices
    ]


def _check_is_small(name: str, leaf: Any) -> None:
    if leaf.size > _MOST_REPEATED:
        raise ValueError(
            f"`state` must belong to `params`, but {name!r} of {leaf.size:,} elements "
            "is named as none of them and would be repeated on every device. Pass the "
            "parameters that the optimizer was given, and none that are flattened."
        )


def _divided(
    shape: tuple[int, ...],
    of_param: tuple[int, ...],
    spec: Spec,
    mesh: jax.sharding.Mesh,
) -> Spec:
    """The parameter's mesh axes where they cut a leaf of another shape most often.

    Best on axes of the size on which the parameter has them, where mostly nothing has
    to be sent.
    """
    axes = [(name, axis) for axis, names in enumerate(spec) for name in names]
    names = [name for name, _ in axes]
    wanted = [
        [i for i, size in enumerate(shape) if size == of_param[axis]]
        for _, axis in axes
    ]
    got = most_divided(shape, names, wanted, mesh)
    # What is there already is cut first and then again, and nothing has to be sent.
    order = sorted(range(len(names)), key=lambda i: got[i] not in wanted[i])
    return spec_of(shape, [names[i] for i in order], [got[i] for i in order])


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
