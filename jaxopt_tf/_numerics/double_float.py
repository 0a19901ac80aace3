"""Double-float arithmetic: numbers as sums of two float32, with 48 bits instead of 24.

Torch computes its scalars, such as bias corrections and learning rates, in double
precision. Many devices have no double precision, and JAX disables it by default. A pair
of float32 has enough digits for these scalars, at no measurable cost.

Compilers may fuse a product and a sum into one rounding. The error term of a float32
product is therefore computed from products of 12 by 12 bits, which are exact: fusing an
exact product changes nothing. The products of a `high` and a `low` part are not exact,
but fusing them changes a result by no more than the errors that the functions state.

Source: T. J. Dekker, "A floating-point technique for extending the available
precision", 1971; D. E. Knuth, The Art of Computer Programming 2, 4.2.2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class DoubleFloat(NamedTuple):
    """Unevaluated sum `high + low`. If `high` is not finite, `low` is 0."""

    high: jax.Array  # any shape, float32: the number rounded to float32
    low: jax.Array  # same shape as `high`, float32: its rounding error

    # The inherited `+` and `*` would concatenate and repeat tuples.
    def __add__(self, other: "DoubleFloat") -> "DoubleFloat":  # type: ignore[override]  # a tuple concatenates
        """Returns `add(self, other)`."""
        return add(self, other)

    def __sub__(self, other: "DoubleFloat") -> "DoubleFloat":
        """Returns `subtract(self, other)`."""
        return subtract(self, other)

    def __mul__(self, other: "DoubleFloat") -> "DoubleFloat":  # type: ignore[override]  # a tuple repeats
        """Returns `multiply(self, other)`."""
        return multiply(self, other)

    def __truediv__(self, other: "DoubleFloat") -> "DoubleFloat":
        """Returns `divide(self, other)`."""
        return divide(self, other)


def from_float(value: float | np.ndarray) -> DoubleFloat:
    """Converts host doubles to pairs, rounded to the nearest sum of two float32."""
    value = np.asarray(value, np.float64)
    high = value.astype(np.float32)
    # `np.where` evaluates both branches. The inner `np.where` replaces inf by 0,
    # because inf - inf would warn.
    low = np.where(np.isfinite(high), value - np.where(np.isfinite(high), high, 0), 0)
    # XLA folds constants as if sums were associative: it replaces (x + 1) - 1 by x, so
    # that the rounding errors in `low` become 0. The barrier hides the constants.
    pair = jnp.asarray(high), jnp.asarray(low.astype(np.float32))
    return DoubleFloat(*jax.lax.optimization_barrier(pair))


def from_scalar(value: float | jax.Array) -> DoubleFloat:
    """Converts a Python number, rounded to 48 bits, or an array, rounded to float32."""
    if isinstance(value, jax.Array):
        return from_float32(value.astype(jnp.float32))
    return from_float(float(value))


def from_float32(value: jax.Array) -> DoubleFloat:
    """Converts a float32 to a pair, exactly."""
    return DoubleFloat(value, jnp.zeros_like(value))


def from_int(value: jax.Array) -> DoubleFloat:
    """Converts an int32 or uint32 to a pair, exactly."""
    # The lower 12 bits and the upper 20 both fit into the 24 bits of a float32. The
    # whole number may not.
    low_bits = value & 0xFFF
    return _two_sum(
        (value - low_bits).astype(jnp.float32), low_bits.astype(jnp.float32)
    )


def negate(a: DoubleFloat) -> DoubleFloat:
    """Returns -a, exactly."""
    return DoubleFloat(-a.high, -a.low)


def add(a: DoubleFloat, b: DoubleFloat) -> DoubleFloat:
    """Returns a + b with an error of about 2^-46 times the larger operand.

    The sum is exact if a pair can represent it.
    """
    # `low` and `low_error` are the rounding errors of the two sums. First
    # `low + low_sum` is added to `high`, then `low_error`. The pair is normalized after
    # each addition, so that `low` stays below half a unit in the last place of `high`.
    high, low = _two_sum(a.high, b.high)
    low_sum, low_error = _two_sum(a.low, b.low)
    high, low = _quick_two_sum(high, low + low_sum)
    return _pair_where_finite(_quick_two_sum(high, low + low_error), a.high + b.high)


def subtract(a: DoubleFloat, b: DoubleFloat) -> DoubleFloat:
    """Returns a - b with the error of `add`."""
    return add(a, negate(b))


def multiply(a: DoubleFloat, b: DoubleFloat) -> DoubleFloat:
    """Returns a * b with an error of about 2^-46 of the product."""
    return _pair_where_finite(_product(a, b), a.high * b.high)


def divide(a: DoubleFloat, b: DoubleFloat) -> DoubleFloat:
    """Returns a / b with an error of about 2^-45 of the quotient.

    The quotient is exact if a pair can represent it.
    """
    # Long division: each float32 quotient of the remainder adds 24 bits.
    first = a.high / b.high
    rest = subtract(a, _product(from_float32(first), b))
    second = rest.high / b.high
    rest = subtract(rest, _product(from_float32(second), b))
    high, low = _quick_two_sum(first, second)
    return _pair_where_finite(_quick_two_sum(high, low + rest.high / b.high), first)


def sqrt(a: DoubleFloat) -> DoubleFloat:
    """Returns the square root of a number above 0, with a relative error of 2^-45."""
    # One Newton step from the float32 root, with the remainder computed as a pair.
    first = jnp.sqrt(a.high)
    rest = subtract(a, _product(from_float32(first), from_float32(first)))
    return _quick_two_sum(first, rest.high / (first + first))


def power(base: float | jax.Array, exponent: jax.Array) -> DoubleFloat:
    """Returns base ** exponent for a base from 0 to 1.

    On the device, the power is computed by products only. Exponentials and logarithms
    differ between devices by several units in the last place, but products do not. The
    result is the product of the powers base^(2^k) for the bits k that are set in the
    exponent.

    Args:
        base: a Python float; or a float32 array of shape (), for example a
            hyperparameter under `vmap`.
        exponent: (), int32, at least 0.

    Returns:
        A pair of shape (); its relative error is below (exponent + 64) * 2^-46.
    """
    # The factor of a bit that is not set is 1. The 32 factors are multiplied pairwise
    # five times, which leaves 16, 8, 4, 2 and 1 products.
    bits = (exponent >> jnp.arange(32, dtype=jnp.int32)) & 1
    one = from_float32(jnp.ones(32, jnp.float32))
    factors = select(bits == 1, _repeated_squares(base), one)
    while (half := factors.high.shape[0] // 2) > 0:
        first = DoubleFloat(factors.high[:half], factors.low[:half])
        second = DoubleFloat(factors.high[half:], factors.low[half:])
        factors = _product(first, second)
    return DoubleFloat(factors.high[0], factors.low[0])


def select(condition: jax.Array, a: DoubleFloat, b: DoubleFloat) -> DoubleFloat:
    """Returns `a` where `condition` is True, else `b`."""
    return DoubleFloat(*(jnp.where(condition, x, y) for x, y in zip(a, b, strict=True)))


def to_float32(a: DoubleFloat) -> jax.Array:
    """Returns the nearest float32."""
    return a.high + a.low


def _repeated_squares(base: float | jax.Array) -> DoubleFloat:
    """Returns base, base^2, base^4, ..., base^(2^31); (32,)."""
    # NumPy computes the powers of a Python number on the host, in double precision.
    # Powers of an array, which may be traced, are computed on the device by products.
    if not isinstance(base, jax.Array):
        return from_float(np.float64(base) ** (2.0 ** np.arange(32)))

    def square(last: DoubleFloat, _: None) -> tuple[DoubleFloat, DoubleFloat]:
        return _product(last, last), last

    return jax.lax.scan(square, from_float32(base), length=32)[1]


def _product(a: DoubleFloat, b: DoubleFloat) -> DoubleFloat:
    """Returns a * b for finite numbers."""
    # The product of the two `low` parts is left out, because it is below 2^-48 of the
    # result.
    high, low = _two_product(a.high, b.high)
    return _quick_two_sum(high, low + (a.high * b.low + a.low * b.high))


def _two_sum(a: jax.Array, b: jax.Array) -> DoubleFloat:
    """Returns a + b exactly, whichever of |a| and |b| is larger (Knuth)."""
    total = a + b
    b_part = total - a
    return DoubleFloat(total, (a - (total - b_part)) + (b - b_part))


def _quick_two_sum(a: jax.Array, b: jax.Array) -> DoubleFloat:
    """Returns a + b exactly, for |a| >= |b| (Dekker)."""
    total = a + b
    return DoubleFloat(total, b - (total - a))


def _two_product(a: jax.Array, b: jax.Array) -> DoubleFloat:
    """Returns a * b as the sum of four exact products."""
    # The usual error term `a * b - rounded` is not used, because its value depends on
    # whether the compiler fuses the product with the difference.
    a_high, b_high = _upper_half(a), _upper_half(b)
    a_low, b_low = a - a_high, b - b_high
    cross = _two_sum(a_high * b_low, a_low * b_high)
    total = _quick_two_sum(a_high * b_high, cross.high)
    return _quick_two_sum(total.high, total.low + (cross.low + a_low * b_low))


def _upper_half(a: jax.Array) -> jax.Array:
    """Returns `a` with the lower 12 bits of its significand set to 0."""
    # A float32 stores 23 bits of its significand; the leading bit is implicit. The mask
    # keeps the sign, the exponent and the upper 11 stored bits. The result therefore
    # has 12 significant bits, and `a - result` has the other 12.
    bits = jax.lax.bitcast_convert_type(a, jnp.uint32) & jnp.uint32(0xFFFFF000)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _pair_where_finite(pair: DoubleFloat, plain: jax.Array) -> DoubleFloat:
    """Returns `pair` where `plain` is finite, and `plain` elsewhere.

    `plain` is the result computed in float32. The error terms of an infinite result are
    inf - inf, which would turn `high` into NaN.
    """
    is_finite = jnp.isfinite(plain)
    return DoubleFloat(
        jnp.where(is_finite, pair.high, plain),
        jnp.where(is_finite, pair.low, jnp.zeros_like(pair.low)),
    )
