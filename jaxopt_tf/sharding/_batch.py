"""Shardings of batches and of activations."""

import math
from collections.abc import Mapping
from typing import Any

from jax.sharding import NamedSharding, PartitionSpec

# Axes of a mesh that shard the batch, in the order of the major axis first.
BATCH_AXES = ("data", "fsdp")


def num_batch_shards(sizes: Mapping[str, int]) -> int:
    """Returns the number of shards of a batch on a mesh with these axis sizes."""
    return math.prod(sizes.get(name, 1) for name in BATCH_AXES)


def batch_sharding(shape: tuple[int, ...], mesh: Any, *, axis: int) -> NamedSharding:
    """Returns a sharding that divides `axis` of `shape` by the batch axes of the mesh.

    The array is replicated if its size is not divisible.

    Args:
        shape: shape of the array.
        mesh: `jax.sharding.Mesh` or `AbstractMesh`.
        axis: axis of the sequences of a batch.
    """
    if shape[axis] % num_batch_shards(mesh.shape):
        return NamedSharding(mesh, PartitionSpec())
    names = tuple(name for name in BATCH_AXES if name in mesh.shape)
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, names))
