"""Copies of arrays that are saved, in memory that is allocated once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_tf.checkpoints._host_copies import HostCopies
from jaxopt_tf.sharding import make_mesh


def sharded(array, *axes):
    mesh = make_mesh("data=2", jax.devices()[:2])
    spec = jax.sharding.PartitionSpec(*axes)
    return jax.device_put(array, jax.sharding.NamedSharding(mesh, spec))


def addresses(array):
    return [shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards]


def address_by_name(arrays):
    return {name: addresses(array) for name, array in arrays.items()}


def large_arrays(size):
    large = np.arange(size, dtype=np.float32)
    return {
        "one": jnp.array(large),
        "equal": jnp.array(-large),
        "narrow": jnp.array(large, jnp.bfloat16),
        "bound": jax.device_put(large, jax.devices()[1]),
        "divided": sharded(large, "data"),
        "repeated": sharded(large),
    }


def assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array, err_msg=name)
        assert actual[name].sharding == array.sharding, name


def test_copies_large_arrays_into_the_same_memory_each_time():
    copies = HostCopies()
    others = {"small": jnp.ones(3), "host": np.ones(2**20)}
    for size in (600_000, 900_000):  # memory of another size cannot be reused
        arrays = large_arrays(size)
        first = copies.copy(arrays | others)
        assert all(first.pop(name) is other for name, other in others.items())
        assert_equal(first, arrays)
        memory = address_by_name(first)
        assert not any(memory[name] == addresses(arrays[name]) for name in memory)
        twice = {name: 2 * array for name, array in arrays.items()}
        second = copies.copy(twice)
        assert_equal(second, twice)
        assert address_by_name(second) == memory


# Strict promotion is a setting of this thread, for which programs are compiled again.
@pytest.mark.promotion_of_others
def test_first_copy_uses_the_reserved_memory_and_programs():
    arrays = large_arrays(700_000)
    copies = HostCopies()
    copies.reserve(arrays.values())
    for array in arrays.values():
        array.delete()  # as if it were donated to a step
    arrays = large_arrays(700_000)
    copies.close()
    reserved = [
        address
        for same in copies._memory.values()
        for array in same
        for address in addresses(array)
    ]
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name)
    )
    try:
        copied = copies.copy(arrays)
    finally:
        jax.monitoring.clear_event_listeners()
    assert_equal(copied, arrays)
    used = [a for array in copied.values() for a in addresses(array)]
    assert sorted(used) == sorted(reserved)
    assert not [name for name in compiled if "compile" in name]


def test_reserves_again_for_other_arrays_and_nothing_for_small_ones():
    copies = HostCopies()
    copies.reserve(large_arrays(700_000).values())
    copies.reserve([jnp.ones(3), np.ones(2**20)])
    copies.close()
    assert not any(copies._memory.values())
