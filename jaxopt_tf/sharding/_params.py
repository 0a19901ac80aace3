"""A sharding for every parameter, by rules for names."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec

from .. import _pytrees
from .._pytrees import match_rules
from .._typing import PyTree
from ._division import Spec, most_divided, spec_of

# Each mesh axis of a rule, the axis of the leaf it is meant for and the one it got.
Fit = list[tuple[str, int, int | None]]


class Moved(NamedTuple):
    """A mesh axis that does not go to the axis of a leaf that its rule names."""

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

    A leaf is cut into as many parts as its mesh axes can cut it evenly: one that does
    not divide the axis that it is meant for goes to another, that with the largest
    parts first, so that one rule may serve leaves of many shapes: 50,257 tokens by 768
    are cut along the 768. Along a mesh axis for which no place is left the leaf is
    repeated: 4 elements over `("data", "fsdp")` of 2 and 4 are cut by `fsdp`.
    `moved_axes` says where that happens.

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


def _placed(
    params: PyTree, mesh: jax.sharding.Mesh, rules: Mapping[str, PartitionSpec]
) -> Iterator[tuple[Spec, list[Moved]]]:
    _pytrees.check_arrays("params", params)
    named = _pytrees.named_leaves(params)
    wanted = match_rules("rules", rules, PartitionSpec, "PartitionSpec", params)
    missing = [
        name for (name, _), spec in zip(named, wanted, strict=True) if spec is None
    ]
    if missing:
        raise ValueError(
            f"`rules` must cover every parameter, but {len(missing)} of {len(named)} "
            f"match no pattern, the first being {missing[0]!r}. `PartitionSpec()` "
            "repeats a leaf on every device."
        )
    # Leaves of one shape are many.
    fitted = functools.cache(functools.partial(_fitted, mesh=mesh))
    for (name, leaf), spec in zip(named, wanted, strict=True):
        names = axis_names("rules", spec, mesh)
        found = fitted(tuple(leaf.shape), tuple(names))
        mesh_axes, choice = [m for m, *_ in found], [got for *_, got in found]
        moved = [Moved(name, *fit) for fit in found if fit[1] != fit[2]]
        yield spec_of(leaf.shape, mesh_axes, choice), moved


def _fitted(shape: tuple[int, ...], wanted: Spec, mesh: jax.sharding.Mesh) -> Fit:
    """Where each mesh axis of a rule was meant to go, and where it goes."""
    pairs = [(name, axis) for axis, names in enumerate(wanted) for name in names]
    names = [name for name, _ in pairs]
    got = most_divided(shape, names, [{axis} for _, axis in pairs], mesh)
    return [(*pair, axis) for pair, axis in zip(pairs, got, strict=True)]


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


def _names(entry: Any) -> tuple[str, ...]:
    if entry is None:
        return ()
    return tuple(entry) if isinstance(entry, tuple) else (entry,)
