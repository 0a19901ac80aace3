"""Where an array lies on many devices, as far as its type says so.

A type says it in two cases. On mesh axes of the type `Explicit` it holds the sharding,
and arrays that meet must have one. Inside of `jax.shard_map` an array is a shard, and
its type holds the mesh axes along which shards differ. Everywhere else the compiler
decides, and nothing here does anything.
"""

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def placed_as(array: jax.Array, like: jax.Array) -> jax.Array:
    """`array` brought to where `like`, of the same shape, explicitly lies."""
    there = jax.typeof(like).sharding
    if not _is_explicit(there) or jax.typeof(array).sharding == there:
        return array
    return jax.sharding.reshard(array, there)


def reshaped(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`array.reshape(shape)`, gathered before where it explicitly lies divided.

    To merge two axes that are cut is to move elements between devices, and JAX asks
    to be told where. It is for rows, columns and biases.
    """
    here = jax.typeof(array).sharding
    is_merged = [n for n in array.shape if n > 1] != [n for n in shape if n > 1]
    if is_merged and _is_explicit(here):
        everywhere = NamedSharding(here.mesh, PartitionSpec())
        array = jax.sharding.reshard(array, everywhere)
    return array.reshape(shape)


def shard_axes(array: jax.Array) -> frozenset[str]:
    """The mesh axes along which this is one shard of several, inside of `shard_map`.

    None under `check_vma=False` and in `jax.pmap`, where JAX does not track them.
    """
    return jax.typeof(array).manual_axis_type.varying


def _is_explicit(sharding: NamedSharding) -> bool:
    return AxisType.Explicit in sharding.mesh.axis_types
