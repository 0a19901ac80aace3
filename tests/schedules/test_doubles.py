"""Doubles in 32-bit integers, against the machine's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_tf.schedules import _doubles
from jaxopt_tf.schedules._doubles import Double


def from_numpy(values):
    mantissa, exponent = np.frexp(values)
    bits = (mantissa * 2**53).astype(np.uint64) << np.uint64(11)
    exponent = np.where(values > 0, exponent - 1, _doubles._BELOW_ALL)
    return Double(
        jnp.asarray((bits >> np.uint64(32)).astype(np.uint32)),
        jnp.asarray((bits & np.uint64(2**32 - 1)).astype(np.uint32)),
        jnp.asarray(exponent.astype(np.int32)),
    )


def to_numpy(a):
    high, low = (np.asarray(word).astype(np.uint64) for word in (a.high, a.low))
    bits = (high << np.uint64(32) | low) >> np.uint64(11)
    return np.ldexp(bits.astype(np.float64), np.where(bits > 0, a.exponent - 52, 0))


@pytest.fixture
def pairs(rng):
    """Of all sizes; many close to each other, some equal, round, 1 or 0."""
    a, b = 10.0 ** rng.uniform(-12, 3, (2, 20_000))
    near = rng.random(a.size) < 0.5
    apart = rng.integers(-3, 4, a.size) * 2.0 ** -rng.integers(40, 53, a.size)
    b = np.where(near, a * (1 + apart), b)
    a[::7], b[::11], a[::13], b[::17] = np.round(a[::7], 6), b[0], 1.0, 1.0
    a[::19], b[::23] = 0.0, 0.0
    return a, b


def test_multiplies_divides_and_subtracts_as_doubles_do(pairs):
    a, b = pairs
    high, low, divisor = np.maximum(a, b), np.minimum(a, b), np.where(b > 0, b, 3.0)
    for ours, theirs, first, second in (
        (_doubles.multiply, np.multiply, a, b),
        (_doubles.divide, np.divide, a, divisor),
        (_doubles.subtract, np.subtract, high, low),
    ):
        result = jax.jit(ours)(from_numpy(first), from_numpy(second))
        np.testing.assert_array_equal(to_numpy(result), theirs(first, second))


def test_compares_and_converts_as_doubles_do(pairs):
    a, b = pairs
    np.testing.assert_array_equal(_doubles.less(from_numpy(a), from_numpy(b)), a < b)
    single = _doubles.to_float32(from_numpy(a))
    np.testing.assert_array_equal(single, a.astype(np.float32))
    back = to_numpy(_doubles.double_from_scalar(single))
    np.testing.assert_array_equal(back, a.astype(np.float32))


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3, 5e-5, 1e300, 1e-300])
def test_a_host_number_is_kept_bit_for_bit(value):
    assert to_numpy(_doubles.double_from_scalar(value)) == value
