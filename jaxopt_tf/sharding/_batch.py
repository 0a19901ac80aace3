"""Shardings of batches and of activations."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

# Axes of a mesh that shard the batch, in the order of the major axis first.
BATCH_AXES = ("data", "fsdp")


def num_batch_shards(sizes: Mapping[str, int]) -> int:
    """Returns the number of shards of a batch on a mesh with these axis sizes."""
    return math.prod(sizes.get(name, 1) for name in BATCH_AXES)


def batch_sharding(shape: tuple[int, ...], mesh: Any, *, axis: int) -> NamedSharding:
    """Returns a sharding that divides `axis` of `shape` by the batch axes of the mesh.

    The array is replicated if the size of `axis` is not a multiple of the number of
    batch shards.

    Args:
        shape: shape of the array.
        mesh: `jax.sharding.Mesh` or `AbstractMesh`.
        axis: batch axis, which indexes the examples.
    """
    if shape[axis] % num_batch_shards(mesh.shape):
        return NamedSharding(mesh, PartitionSpec())
    names = tuple(name for name in BATCH_AXES if name in mesh.shape)
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, names))


def constrain_batch(mesh: Any) -> Callable[[jax.Array], jax.Array]:
    """Returns a function that shards activations, [B, ...], along the batch only.

    Without the constraint, XLA propagates the shardings of the weights to the
    activations, and inserts collectives to reshard them.
    """

    def constrain(x: jax.Array) -> jax.Array:
        along_batch = batch_sharding(x.shape, mesh, axis=0)
        return jax.lax.with_sharding_constraint(x, along_batch)

    return constrain


def gather_columns(mesh: Any, num_rows: int) -> Callable[[jax.Array], jax.Array]:
    """Returns a function that gathers the columns of a table, [num_rows, width].

    A lookup in a table that is sharded along its columns gives activations that are
    sharded along their width. The columns are therefore gathered first; the product
    that computes the logits needs them, too.
    """
    num_parts = mesh.shape.get("tensor", 0)
    axis = "tensor" if num_parts and num_rows % num_parts == 0 else None
    along_rows = NamedSharding(mesh, PartitionSpec(axis))
    return lambda table: jax.lax.with_sharding_constraint(table, along_rows)


def constrain_batch_and_width(mesh: Any) -> Callable[[jax.Array], jax.Array]:
    """Returns a function that shards activations, [B, T, E], along B and E.

    `data` shards B, and `fsdp` shards E, like the columns of an embedding table. Axes
    that the mesh does not divide evenly are replicated.
    """

    def axis_or_none(name: str, size: int) -> str | None:
        is_even = name in mesh.shape and size % mesh.shape[name] == 0
        return name if is_even else None

    def constrain(x: jax.Array) -> jax.Array:
        batch, _, width = x.shape
        spec = PartitionSpec(
            axis_or_none("data", batch), None, axis_or_none("fsdp", width)
        )
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    return constrain
