"""A sharding for every parameter, by rules for names."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec

from .. import _tree
from .._patterns import matched_values
from .._typing import PyTree

Spec = list[tuple[str, ...]]  # for each axis of a leaf the mesh axes that divide it


class Moved(NamedTuple):
    """A mesh axis that does not divide the axis of a leaf that its rule names."""

    name: str  # of the leaf
    mesh_axis: str
    wanted: int  # axis of the leaf
    got: int | None  # the axis that it divides instead; None: it divides none


def param_shardings(
    params: PyTree, mesh: jax.sharding.Mesh, rules: Mapping[str, PartitionSpec]
) -> PyTree:
    """A sharding for every parameter.

        param_shardings(params, mesh, {".*": PartitionSpec("fsdp")})
        param_shardings(params, mesh, {
            r".*(query|up)\\.kernel": PartitionSpec("fsdp", "tensor"),
            r".*(out|down)\\.kernel": PartitionSpec("tensor", "fsdp"),
            r".*(bias|scale)": PartitionSpec(),
        })

    A mesh axis that does not divide the axis that it is meant for goes to the one whose
    parts are then the largest of those that it divides, so that one rule may serve
    leaves of many shapes: 50,257 tokens by 768 are cut along the 768. Where it divides
    none, the leaf is repeated along it. `moved_axes` says where that happens.

    Args:
        params: arrays, or their shapes.
        mesh: where they are to lie; see `make_mesh`.
        rules: for patterns that match whole names of leaves, which mesh axes divide
            the leaf's axes, the first of the leaf first. Axes that a leaf has not are
            as axes that cannot be divided.

    Returns:
        A `NamedSharding` for each leaf: for `jax.device_put`, or for `out_shardings`.

    Raises:
        TypeError: if `rules` is not a mapping from strings to `PartitionSpec`, or
            `params` holds something that is no array.
        ValueError: if a leaf is matched by no pattern, or by two that disagree; if a
            pattern matches none; if a rule names an axis that the mesh has not.
    """
    shardings = [
        NamedSharding(mesh, as_partition_spec(spec))
        for spec, _ in _placed(params, mesh, rules)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), shardings)


def moved_axes(
    params: PyTree, mesh: jax.sharding.Mesh, rules: Mapping[str, PartitionSpec]
) -> list[Moved]:
    """Where `param_shardings` could not do what the rules say."""
    return [moved for _, each in _placed(params, mesh, rules) for moved in each]


def places(spec: Sequence[tuple[str, ...]], mesh: jax.sharding.Mesh) -> list[int]:
    """Into how many parts each axis is cut."""
    return [math.prod(mesh.shape[name] for name in names) for names in spec]


def _placed(
    params: PyTree, mesh: jax.sharding.Mesh, rules: Mapping[str, PartitionSpec]
) -> Iterator[tuple[Spec, list[Moved]]]:
    _tree.check_arrays("params", params)
    named = _tree.named_leaves(params)
    wanted = matched_values("rules", rules, PartitionSpec, "PartitionSpec", params)
    missing = [
        name for (name, _), spec in zip(named, wanted, strict=True) if spec is None
    ]
    if missing:
        raise ValueError(
            f"`rules` must cover every parameter, but {len(missing)} of {len(named)} "
            f"match no pattern, the first being {missing[0]!r}. `PartitionSpec()` "
            "repeats a leaf on every device."
        )
    for (name, leaf), spec in zip(named, wanted, strict=True):
        yield _fitted(name, leaf.shape, axis_names("rules", spec, mesh), mesh)


def _fitted(
    name: str, shape: tuple[int, ...], wanted: Spec, mesh: jax.sharding.Mesh
) -> tuple[Spec, list[Moved]]:
    """Each mesh axis where it divides: where it is wanted, or else elsewhere."""
    spec: Spec = [() for _ in shape]
    waiting = []
    for axis, mesh_axes in enumerate(wanted):
        for mesh_axis in mesh_axes:
            if axis < len(shape) and _divides(shape, spec, axis, mesh_axis, mesh):
                spec[axis] += (mesh_axis,)
            else:
                waiting.append((axis, mesh_axis))
    moved = []
    for axis, mesh_axis in waiting:
        got = largest_divided(shape, spec, mesh_axis, mesh)
        if got is not None:
            spec[got] += (mesh_axis,)
        moved.append(Moved(name, mesh_axis, axis, got))
    return spec, moved


def largest_divided(
    shape: tuple[int, ...], spec: Spec, mesh_axis: str, mesh: jax.sharding.Mesh
) -> int | None:
    """The axis with the largest parts that `mesh_axis` divides once more; or none."""
    parts = places(spec, mesh)
    fits = [i for i in range(len(shape)) if _divides(shape, spec, i, mesh_axis, mesh)]
    return max(fits, key=lambda i: (shape[i] // parts[i], -i), default=None)


def axis_names(argument: str, spec: PartitionSpec, mesh: jax.sharding.Mesh) -> Spec:
    """For each axis of a leaf the mesh axes that divide it."""
    if spec.unreduced or spec.reduced:
        raise ValueError(
            f"`{argument}` must say how arrays are divided, got {spec}, which says "
            "that they are sums not made yet."
        )
    names = [_names(entry) for entry in spec]
    flat = [name for group in names for name in group]
    unknown = [name for name in flat if name not in mesh.shape]  # or no name at all
    if unknown or len(set(flat)) < len(flat):
        raise ValueError(
            f"`{argument}` must name axes of the mesh, each once, got {spec} for a "
            f"mesh with the axes {list(mesh.shape)}."
        )
    return names


def as_partition_spec(spec: Spec) -> PartitionSpec:
    """As JAX writes it."""
    entries = [names[0] if len(names) == 1 else names or None for names in spec]
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)


def _divides(
    shape: tuple[int, ...],
    spec: Spec,
    axis: int,
    mesh_axis: str,
    mesh: jax.sharding.Mesh,
) -> bool:
    parts = places(spec, mesh)[axis] * mesh.shape[mesh_axis]
    return shape[axis] > 0 and shape[axis] % parts == 0


def _names(entry: Any) -> tuple[str, ...]:
    if entry is None:
        return ()
    return tuple(entry) if isinstance(entry, tuple) else (entry,)
