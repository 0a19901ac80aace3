"""Shardings of parameters, from rules for their names."""

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

# For each axis of a leaf, the mesh axes that divide it.
Spec = list[tuple[str, ...]]
# Mesh axes, each with the axis of the leaf that it divides.
AxisPairs = tuple[tuple[str, int], ...]


class RuleFallback(NamedTuple):
    """Mesh axis that cannot divide a leaf's axis as its rule requires."""

    name: str  # name of the leaf
    mesh_axis: str  # name of the mesh axis
    requested_axis: int  # axis of the leaf in the rule
    used_axis: int | None  # axis that is divided instead; None if there is none


def param_shardings(
    params: PyTree, mesh: jax.sharding.Mesh, rules: Mapping[str, PartitionSpec]
) -> PyTree:
    """Returns a sharding for each parameter.

        param_shardings(params, mesh, {".*": PartitionSpec("fsdp")})
        param_shardings(params, mesh, {
            r".*(query|up)\\.kernel": PartitionSpec("fsdp", "tensor"),
            r".*(out|down)\\.kernel": PartitionSpec("tensor", "fsdp"),
            r".*(bias|scale)": PartitionSpec(),
        })

    A leaf is divided into as many equal parts as its mesh axes permit. A mesh axis that
    does not divide the axis in the rule divides another axis of the leaf, preferably
    the one with the largest parts. One rule can therefore apply to leaves of many
    shapes: a leaf of 50,257 tokens by 768 is divided along the 768. If a mesh axis
    divides no axis, the leaf is replicated along it: 4 elements over `("data", "fsdp")`
    of sizes 2 and 4 are divided by `fsdp` only. `unmet_rules` lists these cases.

    Args:
        params: arrays, or their shapes.
        mesh: mesh of the devices; see `make_mesh`.
        rules: mapping from patterns that match whole leaf names to `PartitionSpec`s,
            which contain the mesh axes for each axis of the leaf. An entry for an axis
            that a leaf does not have is treated as an axis that cannot be divided.

    Returns:
        A `NamedSharding` for each leaf, for `jax.device_put` or `out_shardings`.

    Raises:
        TypeError: if `rules` is not a mapping from strings to `PartitionSpec`, or if
            `params` contains a leaf that is not an array.
        ValueError: if no pattern matches a leaf, or if two patterns with different
            values match it; if a pattern matches no leaf; if a rule contains an axis
            that the mesh does not have.
    """
    shardings = [
        NamedSharding(mesh, as_partition_spec(spec))
        for spec, _ in _fit(params, mesh, rules)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), shardings)


def unmet_rules(
    params: PyTree, mesh: jax.sharding.Mesh, rules: Mapping[str, PartitionSpec]
) -> list[RuleFallback]:
    """Returns the mesh axes that `param_shardings` could not use as in the rules."""
    return [unmet for _, fallbacks in _fit(params, mesh, rules) for unmet in fallbacks]


def _fit(
    params: PyTree, mesh: jax.sharding.Mesh, rules: Mapping[str, PartitionSpec]
) -> Iterator[tuple[Spec, list[RuleFallback]]]:
    """Yields the partition of each leaf, and the mesh axes that deviate from rules."""
    _pytrees.check_arrays("params", params)
    named = _pytrees.named_leaves(params)
    specs = match_rules("rules", rules, PartitionSpec, "PartitionSpec", params)
    missing = [n for (n, _), spec in zip(named, specs, strict=True) if spec is None]
    if missing:
        raise ValueError(
            f"`rules` must cover every parameter, but {len(missing)} of {len(named)} "
            f"match no pattern, the first being {missing[0]!r}. `PartitionSpec()` "
            "replicates a leaf on every device."
        )

    @functools.cache  # many leaves have the same shape
    def divided(shape: tuple[int, ...], pairs: AxisPairs) -> list[int | None]:
        names, axes = [name for name, _ in pairs], [{axis} for _, axis in pairs]
        return best_partition(shape, names, axes, mesh)

    for (name, leaf), spec in zip(named, specs, strict=True):
        pairs = tuple(
            (mesh_axis, axis)
            for axis, mesh_axes in enumerate(axis_names("rules", spec, mesh))
            for mesh_axis in mesh_axes
        )
        used = divided(tuple(leaf.shape), pairs)
        unmet = [
            RuleFallback(name, *pair, axis)
            for pair, axis in zip(pairs, used, strict=True)
            if pair[1] != axis
        ]
        yield spec_of(leaf.shape, [mesh_axis for mesh_axis, _ in pairs], used), unmet


def best_partition(
    shape: tuple[int, ...],
    mesh_axes: Sequence[str],
    preferred: Sequence[Collection[int]],
    mesh: jax.sharding.Mesh,
) -> list[int | None]:
    """Returns the axis of the leaf that each mesh axis divides, or None.

    The chosen partition has the largest number of parts. Ties are resolved by the
    number of mesh axes on a `preferred` axis, then by the number of mesh axes in use.
    Of the remaining partitions, the one whose parts have the smallest largest axis is
    chosen.
    """
    # Every assignment is tried: at most (axes of the leaf + 1)^(mesh axes), which is
    # small for real meshes.
    best: list[int | None] = [None] * len(mesh_axes)
    best_rank: tuple[Any, ...] = (1, 0, 0)
    for choice in itertools.product([None, *range(len(shape))], repeat=len(mesh_axes)):
        parts = num_parts(spec_of(shape, mesh_axes, choice), mesh)
        sizes = list(zip(shape, parts, strict=True))
        if any(k > 1 and (n == 0 or n % k) for n, k in sizes):
            continue  # uneven
        num_preferred = sum(
            axis in axes for axis, axes in zip(choice, preferred, strict=True)
        )
        num_used = sum(axis is not None for axis in choice)
        # The sizes are negative, so that the greatest rank has the smallest parts.
        part_sizes = sorted(-(n // k) for n, k in sizes)
        rank = (math.prod(parts), num_preferred, num_used, part_sizes)
        if rank > best_rank:
            best, best_rank = list(choice), rank
    return best


def num_parts(spec: Spec, mesh: jax.sharding.Mesh) -> list[int]:
    """Returns the number of parts along each axis."""
    return [math.prod(mesh.shape[name] for name in names) for names in spec]


def spec_of(
    shape: tuple[int, ...], mesh_axes: Sequence[str], choice: Sequence[int | None]
) -> Spec:
    """Returns the result of `best_partition`, arranged by the axes of the leaf."""
    return [
        tuple(
            name
            for name, chosen in zip(mesh_axes, choice, strict=True)
            if chosen == axis
        )
        for axis in range(len(shape))
    ]


def axis_names(argument: str, spec: PartitionSpec, mesh: jax.sharding.Mesh) -> Spec:
    """Returns the mesh axes that divide each axis of a leaf."""
    # JAX marks sums that are not yet reduced over a mesh axis as `unreduced` in the
    # spec of the result. Parameters and optimizer states are never unreduced.
    if spec.unreduced or spec.reduced:
        raise ValueError(
            f"`{argument}` must divide arrays by mesh axes, got {spec}, which "
            "describes unreduced or reduced arrays."
        )
    names = [
        entry if isinstance(entry, tuple) else () if entry is None else (entry,)
        for entry in spec
    ]
    flat = [name for group in names for name in group]
    # An entry may be an object other than a string, such as
    # `PartitionSpec.UNCONSTRAINED`.
    unknown = [name for name in flat if name not in mesh.shape]
    if unknown or len(set(flat)) < len(flat):
        raise ValueError(
            f"`{argument}` must contain axes of the mesh, each once, got {spec} for a "
            f"mesh with the axes {list(mesh.shape)}."
        )
    return names


def as_partition_spec(spec: Spec) -> PartitionSpec:
    """Returns a spec as a `PartitionSpec`."""
    # Without trailing None, so that the specs of equal shardings compare equal.
    entries = [names[0] if len(names) == 1 else names or None for names in spec]
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)
