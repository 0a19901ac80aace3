"""A number as the sum of two float32: 48 bits where a device has 24.

Torch does its scalars in double precision: bias corrections, learning rates, the best
metric so far. Devices often have no doubles, and JAX turns them off. A pair of float32
keeps enough of them, for scalars, at no cost that one could measure.

Compilers fuse a product and a sum into one rounding where they like. Every product
below is therefore exact (12 bits by 12 bits), so that fusing it changes nothing.

Source: T. J. Dekker, "A floating-point technique for extending the available
precision", 1971; D. E. Knuth, The Art of Computer Programming 2, 4.2.2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class TwoFloats(NamedTuple):
    """The unevaluated sum `high + low`; where it is not finite, `low` is 0."""

    high: jax.Array  # any shape, float32: the number rounded to float32
    low: jax.Array  # as high, float32: what the rounding left over


def from_float(value: float) -> TwoFloats:
    """A host double, as exactly as two float32 can hold it."""
    high = np.float32(value)
    low = np.float32(value - np.float64(high)) if np.isfinite(high) else 0.0
    return TwoFloats(jnp.float32(high), jnp.float32(low))


def from_float32(value: jax.Array) -> TwoFloats:
    """A float32, exactly."""
    return TwoFloats(value, jnp.zeros_like(value))


def from_int(value: jax.Array) -> TwoFloats:
    """An int32 or uint32 of any size, exactly."""
    # Both halves have few enough bits for float32; their sum may not.
    low_bits = value & 0xFFF
    return _two_sum(
        (value - low_bits).astype(jnp.float32), low_bits.astype(jnp.float32)
    )


def negate(a: TwoFloats) -> TwoFloats:
    """-a, exactly."""
    return TwoFloats(-a.high, -a.low)


def add(a: TwoFloats, b: TwoFloats) -> TwoFloats:
    """a + b, to about 2^-46 of the larger; exact where the sum fits."""
    high, low = _two_sum(a.high, b.high)
    carry, rest = _two_sum(a.low, b.low)
    high, low = _quick_two_sum(high, low + carry)
    return _quick_two_sum(high, low + rest)


def subtract(a: TwoFloats, b: TwoFloats) -> TwoFloats:
    """a - b, as `add`."""
    return add(a, negate(b))


def multiply(a: TwoFloats, b: TwoFloats) -> TwoFloats:
    """a * b, to about 2^-46 of the product."""
    high, low = _two_product(a.high, b.high)
    product = _quick_two_sum(high, low + (a.high * b.low + a.low * b.high))
    return _finite_or(a.high * b.high, product)


def divide(a: TwoFloats, b: TwoFloats) -> TwoFloats:
    """a / b, to about 2^-45 of the quotient; exact where the quotient fits."""
    first = a.high / b.high
    rest = subtract(a, multiply(from_float32(first), b))
    second = rest.high / b.high
    rest = subtract(rest, multiply(from_float32(second), b))
    quotient = _quick_two_sum(first, second)
    quotient = _quick_two_sum(quotient.high, quotient.low + rest.high / b.high)
    return _finite_or(first, quotient)


def less(a: TwoFloats, b: TwoFloats) -> jax.Array:
    """a < b, as Python compares doubles: False where either is NaN."""
    return (a.high < b.high) | ((a.high == b.high) & (a.low < b.low))


def select(condition: jax.Array, a: TwoFloats, b: TwoFloats) -> TwoFloats:
    """a where `condition`, else b."""
    return TwoFloats(*(jnp.where(condition, x, y) for x, y in zip(a, b, strict=True)))


def to_float32(a: TwoFloats) -> jax.Array:
    """The nearest float32."""
    return a.high + a.low


def _two_sum(a: jax.Array, b: jax.Array) -> TwoFloats:
    """a + b without any error, whichever is larger (Knuth)."""
    total = a + b
    b_part = total - a
    return _clean(total, (a - (total - b_part)) + (b - b_part))


def _quick_two_sum(a: jax.Array, b: jax.Array) -> TwoFloats:
    """a + b without any error, where |a| >= |b| (Dekker)."""
    total = a + b
    return _clean(total, b - (total - a))


def _two_product(a: jax.Array, b: jax.Array) -> TwoFloats:
    """a * b from four exact products; never `a * b - rounded`, which may be fused."""
    a_high, b_high = _upper_half(a), _upper_half(b)
    a_low, b_low = a - a_high, b - b_high
    cross = _two_sum(a_high * b_low, a_low * b_high)
    total = _two_sum(a_high * b_high, cross.high)
    return _quick_two_sum(total.high, total.low + (cross.low + a_low * b_low))


def _upper_half(a: jax.Array) -> jax.Array:
    """The upper 12 bits of the mantissa, cut off in the integer representation."""
    bits = jax.lax.bitcast_convert_type(a, jnp.uint32) & jnp.uint32(0xFFFFF000)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _finite_or(plain: jax.Array, pair: TwoFloats) -> TwoFloats:
    """`pair`, but where the plain result is inf or NaN that is the answer."""
    return TwoFloats(
        jnp.where(jnp.isfinite(plain), pair.high, plain),
        jnp.where(jnp.isfinite(plain), pair.low, jnp.zeros_like(pair.low)),
    )


def _clean(high: jax.Array, low: jax.Array) -> TwoFloats:
    """With inf or NaN in `high` the leftover means nothing."""
    return TwoFloats(high, jnp.where(jnp.isfinite(high), low, jnp.zeros_like(low)))
