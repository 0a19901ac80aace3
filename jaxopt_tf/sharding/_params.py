"""Shardings of parameters, by rules for their names."""

import functools
import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec

from .. import _pytrees
from .._pytrees import match_rules
from .._typing import PyTree

Spec = list[tuple[str, ...]]  # for each axis of a leaf the mesh axes that divide it
Pairs = tuple[tuple[str, int], ...]  # mesh axes with the axis of the leaf they divide


class RuleFallback(NamedTuple):
    """A mesh axis that cannot divide the axis of a leaf that its rule names."""

    name: str  # of the leaf
    mesh_axis: str
    wanted: int  # axis of the leaf
    got: int | None  # the axis that it divides instead; None: it divides none


def param_shardings(
    params: PyTree, mesh: jax.sharding.Mesh, rules: Mapping[str, PartitionSpec]
) -> PyTree:
    """Returns a sharding for every parameter.

        param_shardings(params, mesh, {".*": PartitionSpec("fsdp")})
        param_shardings(params, mesh, {
            r".*(query|up)\\.kernel": PartitionSpec("fsdp", "tensor"),
            r".*(out|down)\\.kernel": PartitionSpec("tensor", "fsdp"),
            r".*(bias|scale)": PartitionSpec(),
        })

    A leaf is cut into as many parts as its mesh axes can cut it evenly: one that does
    not divide the axis that it is meant for divides another, that with the largest
    parts first, so that one rule may serve leaves of many shapes: 50,257 tokens by 768
    are cut along the 768. Along a mesh axis that divides none the leaf is replicated: 4
    elements over `("data", "fsdp")` of 2 and 4 are cut by `fsdp`. `unmet_rules` lists
    where that happens.

    Args:
        params: arrays, or their shapes.
        mesh: the devices to place them on; see `make_mesh`.
        rules: for patterns that match whole names of leaves, the mesh axes that divide
            the leaf's axes, in the order of the leaf's. Axes that a leaf does not have
            count as axes that cannot be divided.

    Returns:
        A `NamedSharding` for each leaf: for `jax.device_put`, or for `out_shardings`.

    Raises:
        TypeError: if `rules` is not a mapping from strings to `PartitionSpec`, or
            `params` holds something that is no array.
        ValueError: if a leaf is matched by no pattern, or by two that disagree; if a
            pattern matches none; if a rule names an axis that the mesh does not have.
    """
    shardings = [
        NamedSharding(mesh, as_partition_spec(spec))
        for spec, _ in _fit(params, mesh, rules)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), shardings)


def unmet_rules(
    params: PyTree, mesh: jax.sharding.Mesh, rules: Mapping[str, PartitionSpec]
) -> list[RuleFallback]:
    """Returns the mesh axes that `param_shardings` could not use as the rules say."""
    return [unmet for _, each in _fit(params, mesh, rules) for unmet in each]


def _fit(
    params: PyTree, mesh: jax.sharding.Mesh, rules: Mapping[str, PartitionSpec]
) -> Iterator[tuple[Spec, list[RuleFallback]]]:
    """Yields for each leaf how it is divided, and the mesh axes that went elsewhere."""
    _pytrees.check_arrays("params", params)
    named = _pytrees.named_leaves(params)
    wanted = match_rules("rules", rules, PartitionSpec, "PartitionSpec", params)
    missing = [n for (n, _), spec in zip(named, wanted, strict=True) if spec is None]
    if missing:
        raise ValueError(
            f"`rules` must cover every parameter, but {len(missing)} of {len(named)} "
            f"match no pattern, the first being {missing[0]!r}. `PartitionSpec()` "
            "replicates a leaf on every device."
        )

    @functools.cache  # many leaves have the same shape
    def divided(shape: tuple[int, ...], pairs: Pairs) -> list[int | None]:
        names, axes = [name for name, _ in pairs], [{axis} for _, axis in pairs]
        return best_partition(shape, names, axes, mesh)

    for (name, leaf), spec in zip(named, wanted, strict=True):
        pairs = tuple(
            (mesh_axis, axis)
            for axis, mesh_axes in enumerate(axis_names("rules", spec, mesh))
            for mesh_axis in mesh_axes
        )
        got = divided(tuple(leaf.shape), pairs)
        unmet = [
            RuleFallback(name, *pair, axis)
            for pair, axis in zip(pairs, got, strict=True)
            if pair[1] != axis
        ]
        yield spec_of(leaf.shape, [mesh_axis for mesh_axis, _ in pairs], got), unmet


def best_partition(
    shape: tuple[int, ...],
    mesh_axes: Sequence[str],
    wanted: Sequence[Collection[int]],
    mesh: jax.sharding.Mesh,
) -> list[int | None]:
    """Returns the axis of a leaf that each mesh axis divides; None if it divides none.

    The choice cuts the leaf into most parts. Among equal ones it has most of the mesh
    axes where they are `wanted`, then most of them anywhere, and then cuts the largest
    parts.
    """
    best: list[int | None] = [None] * len(mesh_axes)
    best_rank: tuple[Any, ...] = (1, 0, 0)
    for choice in itertools.product([None, *range(len(shape))], repeat=len(mesh_axes)):
        parts = num_parts(spec_of(shape, mesh_axes, choice), mesh)
        sizes = list(zip(shape, parts, strict=True))
        if any(k > 1 and (n == 0 or n % k) for n, k in sizes):
            continue  # uneven
        num_wanted = sum(got in axes for got, axes in zip(choice, wanted, strict=True))
        num_used = sum(got is not None for got in choice)
        smallest = sorted(-(n // k) for n, k in sizes)
        rank = (math.prod(parts), num_wanted, num_used, smallest)
        if rank > best_rank:
            best, best_rank = list(choice), rank
    return best


def num_parts(spec: Spec, mesh: jax.sharding.Mesh) -> list[int]:
    """Returns the number of parts of each axis."""
    return [math.prod(mesh.shape[name] for name in names) for names in spec]


def spec_of(
    shape: tuple[int, ...], mesh_axes: Sequence[str], choice: Sequence[int | None]
) -> Spec:
    """Returns the result of `best_partition` by axes of the leaf."""
    return [
        tuple(name for name, got in zip(mesh_axes, choice, strict=True) if got == axis)
        for axis in range(len(shape))
    ]


def axis_names(argument: str, spec: PartitionSpec, mesh: jax.sharding.Mesh) -> Spec:
    """Returns for each axis of a leaf the mesh axes that divide it."""
    if spec.unreduced or spec.reduced:
        raise ValueError(
            f"`{argument}` must divide arrays by mesh axes, got {spec}, which is of "
            "unreduced or reduced arrays."
        )
    names = [
        entry if isinstance(entry, tuple) else () if entry is None else (entry,)
        for entry in spec
    ]
    flat = [name for group in names for name in group]
    unknown = [name for name in flat if name not in mesh.shape]  # or no name at all
    if unknown or len(set(flat)) < len(flat):
        raise ValueError(
            f"`{argument}` must name axes of the mesh, each once, got {spec} for a "
            f"mesh with the axes {list(mesh.shape)}."
        )
    return names


def as_partition_spec(spec: Spec) -> PartitionSpec:
    """Returns JAX's form of a spec."""
    entries = [names[0] if len(names) == 1 else names or None for names in spec]
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)
