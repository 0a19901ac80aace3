"""A number as the sum of two float32: 48 bits where a device has 24.

Torch computes its scalars in double precision: bias corrections and learning rates.
Devices often have no doubles, and JAX turns them off by default. A pair of float32
keeps enough of their digits, for scalars, at no cost that one could measure.

Compilers fuse a product and a sum into one rounding where they like. Every product
below is therefore exact (12 bits by 12 bits), so that fusing it changes nothing.

Source: T. J. Dekker, "A floating-point technique for extending the available
precision", 1971; D. E. Knuth, The Art of Computer Programming 2, 4.2.2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class DoubleFloat(NamedTuple):
    """The unevaluated sum `high + low`; where it is not finite, `low` is 0."""

    high: jax.Array  # any shape, float32: the number rounded to float32
    low: jax.Array  # as high, float32: what the rounding left over

    # The operators of a tuple would concatenate and repeat.
    def __add__(self, other: "DoubleFloat") -> "DoubleFloat":  # type: ignore[override]
        """Returns `add(self, other)`."""
        return add(self, other)

    def __sub__(self, other: "DoubleFloat") -> "DoubleFloat":
        """Returns `subtract(self, other)`."""
        return subtract(self, other)

    def __mul__(self, other: "DoubleFloat") -> "DoubleFloat":  # type: ignore[override]
        """Returns `multiply(self, other)`."""
        return multiply(self, other)

    def __truediv__(self, other: "DoubleFloat") -> "DoubleFloat":
        """Returns `divide(self, other)`."""
        return divide(self, other)


def from_float(value: float | np.ndarray) -> DoubleFloat:
    """Returns host doubles, as exactly as two float32 can hold them."""
    value = np.asarray(value, np.float64)
    high = value.astype(np.float32)
    low = np.where(np.isfinite(high), value - np.where(np.isfinite(high), high, 0), 0)
    # Behind a barrier, because XLA folds constants as if sums were associative:
    # (x + 1) - 1 becomes x, and the rounding error that a pair lives on is gone.
    pair = jnp.asarray(high), jnp.asarray(low.astype(np.float32))
    return DoubleFloat(*jax.lax.optimization_barrier(pair))


def from_scalar(value: float | jax.Array) -> DoubleFloat:
    """Returns a host double, or the float32 of an array, as a pair."""
    if isinstance(value, jax.Array):
        return from_float32(value.astype(jnp.float32))
    return from_float(float(value))


def from_float32(value: jax.Array) -> DoubleFloat:
    """Returns a float32, exactly."""
    return DoubleFloat(value, jnp.zeros_like(value))


def from_int(value: jax.Array) -> DoubleFloat:
    """Returns an int32 or uint32 of any size, exactly."""
    # Both halves have few enough bits for float32; their sum may not.
    low_bits = value & 0xFFF
    return _two_sum(
        (value - low_bits).astype(jnp.float32), low_bits.astype(jnp.float32)
    )


def negate(a: DoubleFloat) -> DoubleFloat:
    """Returns -a, exactly."""
    return DoubleFloat(-a.high, -a.low)


def add(a: DoubleFloat, b: DoubleFloat) -> DoubleFloat:
    """Returns a + b, to about 2^-46 of the larger; exact where the sum fits."""
    high, low = _two_sum(a.high, b.high)
    carry, rest = _two_sum(a.low, b.low)
    high, low = _quick_two_sum(high, low + carry)
    return _finite_or(a.high + b.high, _quick_two_sum(high, low + rest))


def subtract(a: DoubleFloat, b: DoubleFloat) -> DoubleFloat:
    """Returns a - b, as `add`."""
    return add(a, negate(b))


def multiply(a: DoubleFloat, b: DoubleFloat) -> DoubleFloat:
    """Returns a * b, to about 2^-46 of the product."""
    return _finite_or(a.high * b.high, _product(a, b))


def divide(a: DoubleFloat, b: DoubleFloat) -> DoubleFloat:
    """Returns a / b, to about 2^-45 of the quotient; exact where it fits."""
    first = a.high / b.high
    rest = subtract(a, _product(from_float32(first), b))
    second = rest.high / b.high
    rest = subtract(rest, _product(from_float32(second), b))
    high, low = _quick_two_sum(first, second)
    return _finite_or(first, _quick_two_sum(high, low + rest.high / b.high))


def sqrt(a: DoubleFloat) -> DoubleFloat:
    """Returns the square root of a number greater than 0, to about 2^-45."""
    first = jnp.sqrt(a.high)
    rest = subtract(a, _product(from_float32(first), from_float32(first)))
    return _quick_two_sum(first, rest.high / (first + first))


def power(base: float | jax.Array, exponent: jax.Array) -> DoubleFloat:
    """Returns base ** exponent for a base from 0 to 1, by products alone.

    Exponentials and logarithms differ between devices by several units in the last
    place; products do not. The powers base^(2^k) whose bit is set in the exponent are
    multiplied pairwise: five products of vectors.

    Args:
        base: a host double; or (), float32, for a sweep.
        exponent: (), int32, at least 0.

    Returns:
        (), float32 pair; its error is below 2^-46 (exponent + 64) of the power.
    """
    bit = (exponent >> jnp.arange(32, dtype=jnp.int32)) & 1
    one = from_float32(jnp.ones(32, jnp.float32))
    factors = select(bit == 1, _squares(base), one)
    while (half := factors.high.shape[0] // 2) > 0:
        first = DoubleFloat(factors.high[:half], factors.low[:half])
        second = DoubleFloat(factors.high[half:], factors.low[half:])
        factors = _product(first, second)
    return DoubleFloat(factors.high[0], factors.low[0])


def select(condition: jax.Array, a: DoubleFloat, b: DoubleFloat) -> DoubleFloat:
    """Returns a where `condition`, else b."""
    return DoubleFloat(*(jnp.where(condition, x, y) for x, y in zip(a, b, strict=True)))


def to_float32(a: DoubleFloat) -> jax.Array:
    """Returns the nearest float32."""
    return a.high + a.low


def _squares(base: float | jax.Array) -> DoubleFloat:
    """Returns base, base^2, base^4, ... base^(2^31); (32,)."""
    if not isinstance(base, jax.Array):
        return from_float(np.float64(base) ** (2.0 ** np.arange(32)))

    def square(last: DoubleFloat, _: None) -> tuple[DoubleFloat, DoubleFloat]:
        return _product(last, last), last

    return jax.lax.scan(square, from_float32(base), length=32)[1]


def _product(a: DoubleFloat, b: DoubleFloat) -> DoubleFloat:
    """Returns a * b of finite numbers."""
    high, low = _two_product(a.high, b.high)
    return _quick_two_sum(high, low + (a.high * b.low + a.low * b.high))


def _two_sum(a: jax.Array, b: jax.Array) -> DoubleFloat:
    """Returns a + b without any error, whichever is larger (Knuth)."""
    total = a + b
    b_part = total - a
    return DoubleFloat(total, (a - (total - b_part)) + (b - b_part))


def _quick_two_sum(a: jax.Array, b: jax.Array) -> DoubleFloat:
    """Returns a + b without any error, where |a| >= |b| (Dekker)."""
    total = a + b
    return DoubleFloat(total, b - (total - a))


def _two_product(a: jax.Array, b: jax.Array) -> DoubleFloat:
    """Returns a * b of four exact products.

    Never as `a * b - rounded`, which may be fused.
    """
    a_high, b_high = _upper_half(a), _upper_half(b)
    a_low, b_low = a - a_high, b - b_high
    cross = _two_sum(a_high * b_low, a_low * b_high)
    total = _quick_two_sum(a_high * b_high, cross.high)
    return _quick_two_sum(total.high, total.low + (cross.low + a_low * b_low))


def _upper_half(a: jax.Array) -> jax.Array:
    """Returns the upper 12 bits of the mantissa, cut off by a mask of the bits."""
    bits = jax.lax.bitcast_convert_type(a, jnp.uint32) & jnp.uint32(0xFFFFF000)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _finite_or(plain: jax.Array, pair: DoubleFloat) -> DoubleFloat:
    """Returns `pair`, or the plain result where that is inf or NaN."""
    is_finite = jnp.isfinite(plain)
    return DoubleFloat(
        jnp.where(is_finite, pair.high, plain),
        jnp.where(is_finite, pair.low, jnp.zeros_like(pair.low)),
    )
