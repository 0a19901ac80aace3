"""Mesh axes dealt out to the axes of a leaf, so that it is cut into most parts."""

import itertools
import math
from collections.abc import Collection, Sequence

import jax

Spec = list[tuple[str, ...]]  # for each axis of a leaf the mesh axes that divide it


def places(spec: Sequence[tuple[str, ...]], mesh: jax.sharding.Mesh) -> list[int]:
    """Into how many parts each axis is cut."""
    return [math.prod(mesh.shape[name] for name in names) for names in spec]


def most_divided(
    shape: tuple[int, ...],
    mesh_axes: Sequence[str],
    wanted: Sequence[Collection[int]],
    mesh: jax.sharding.Mesh,
) -> list[int | None]:
    """The axis of a leaf that each mesh axis divides; None: none.

    The choice that cuts the leaf into most parts. Of equal ones that which has most of
    the mesh axes where they are `wanted`, then most of them anywhere, and then the one
    that cuts the largest parts.
    """
    best: list[int | None] = [None] * len(mesh_axes)
    best_rank: tuple = (1, 0, 0)
    for choice in itertools.product([None, *range(len(shape))], repeat=len(mesh_axes)):
        parts = places(spec_of(shape, mesh_axes, choice), mesh)
        sizes = list(zip(shape, parts, strict=True))
        if not all(_is_even(n, k) for n, k in sizes):
            continue
        num_wanted = sum(got in axes for got, axes in zip(choice, wanted, strict=True))
        num_used = sum(got is not None for got in choice)
        smallest = sorted(-(n // k) for n, k in sizes)
        rank = (math.prod(parts), num_wanted, num_used, smallest)
        if rank > best_rank:
            best, best_rank = list(choice), rank
    return best


def spec_of(
    shape: tuple[int, ...], mesh_axes: Sequence[str], choice: Sequence[int | None]
) -> Spec:
    """What `most_divided` chose, by axes of the leaf."""
    return [
        tuple(name for name, got in zip(mesh_axes, choice, strict=True) if got == axis)
        for axis in range(len(shape))
    ]


def largest_divided(
    shape: tuple[int, ...], spec: Spec, mesh_axis: str, mesh: jax.sharding.Mesh
) -> int | None:
    """The axis with the largest parts that `mesh_axis` divides once more; or none."""
    more, parts = mesh.shape[mesh_axis], places(spec, mesh)
    fits = [i for i, n in enumerate(shape) if n and n % (parts[i] * more) == 0]
    return max(fits, key=lambda i: (shape[i] // parts[i], -i), default=None)


def _is_even(size: int, parts: int) -> bool:
    return parts == 1 or (size > 0 and size % parts == 0)
