"""Learning rate curves: monotonic functions from [0, 1] to [0, 1].

A warmup evaluates a curve forwards and a decay evaluates it backwards, so that each
shape is implemented once. Near 0, which is the end of a decay, the relative error of
the implementations in float32 is small. The argument of a curve is a pair of float32,
because one float32 is not precise enough for sqrt(1 - x) near 1 and for high powers
near 0.

A custom curve can use `x.high`, the argument rounded to float32. For a 64-bit step, `x`
is a pair of float64, and the curve returns float64.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from .. import _checks
from .._numerics.double_float import (
    DoubleFloat,
    from_float,
    from_float32,
    from_int,
    multiply,
    subtract,
    to_float32,
)
from ._repr import with_call_repr

# From a fraction in [0, 1] to a float32 (float64 for a pair of float64) in [0, 1].
Curve = Callable[[DoubleFloat], jax.Array]


def linear(x: DoubleFloat) -> jax.Array:
    """Increases linearly: x."""
    return to_float32(x)


def cosine(x: DoubleFloat) -> jax.Array:
    """Increases along a half cosine: (1 - cos(pi x)) / 2."""
    # Equal to sin^2(pi x / 2), which has no cancellation near 0. In float32,
    # 1 - cos(pi x) is exactly 0 for x below about 8e-5.
    return jnp.sin(0.5 * jnp.pi * x.high) ** 2


def sqrt(x: DoubleFloat) -> jax.Array:
    """Increases as the square root: sqrt(x)."""
    return jnp.sqrt(x.high)


def one_minus_sqrt(x: DoubleFloat) -> jax.Array:
    """Increases as 1 - sqrt(1 - x); a decay evaluates it as 1 - sqrt(progress)."""
    # 1 - x is computed as a pair: near x = 1, where the slope of the root is infinite,
    # x rounded to float32 has lost the digits that decide the result.
    complement = to_float32(subtract(from_float32(jnp.ones_like(x.high)), x))
    # 1 - sqrt(1 - x) = x / (1 + sqrt(1 - x)): the quotient has no cancellation near 0.
    return x.high / (1.0 + jnp.sqrt(jnp.maximum(complement, 0.0)))


@with_call_repr
def polynomial(power: float) -> Curve:
    """Increases as x^power; a power of 1 is `linear`.

    The relative error is small for any power and for results down to 1e-38, the
    smallest normal float32. The error of `jnp.power` in float32 grows with the power
    and with the logarithm of x.

    Args:
        power: the exponent; greater than 0 and at most 1e6.

    Raises:
        ValueError: if `power` is not greater than 0, or is above 1e6.
    """
    _checks.positive("power", power)
    if power > 1e6:
        raise ValueError(f"`power` must be at most 1e6, got {power!r}.")
    int_power, frac_power = int(power), float(power) - int(power)

    def curve(x: DoubleFloat) -> jax.Array:
        if x.high.dtype == jnp.float64:
            return jnp.power(to_float32(x), power)
        # x = mantissa * 2^exponent, with a mantissa in (1/2, 1]. The exponent is raised
        # to the power in integers, without rounding and without underflow; only the
        # mantissa, whose logarithm is small, is raised in floating point.
        mantissa, exponent = _split(x)
        result, result_exponent = _integer_power(mantissa, exponent, int_power)
        power32 = to_float32(result)
        if frac_power:
            # 2^(exponent * frac_power) is split into an integer power, which is exact,
            # and a fraction in [-1/2, 1/2]. The product needs a pair: a rounding error
            # of the product would be a relative error of the result.
            shift = multiply(from_int(exponent), from_float(frac_power))
            nearest = jnp.round(shift.high)
            fraction = (shift.high - nearest) + shift.low
            power32 *= jnp.exp2(fraction + frac_power * jnp.log2(mantissa.high))
            result_exponent += nearest.astype(jnp.int32)
        # Results below 2^-149 underflow to 0; -200 bounds the argument of `ldexp`.
        power32 = jnp.ldexp(power32, jnp.maximum(result_exponent, -200))
        return jnp.where(x.high > 0.0, power32, jnp.zeros_like(power32))

    return curve


def _integer_power(
    mantissa: DoubleFloat, exponent: jax.Array, power: int
) -> tuple[DoubleFloat, jax.Array]:
    """Computes (mantissa * 2^exponent)^power by repeated squaring.

    Each product is normalized by `_split`, so that mantissas do not underflow.
    """
    result, result_exponent = (
        from_float32(jnp.ones_like(mantissa.high)),
        jnp.zeros_like(exponent),
    )
    while power:
        if power % 2:
            result, carry = _split(multiply(result, mantissa))
            result_exponent += exponent + carry
        power //= 2
        if power:
            mantissa, carry = _split(multiply(mantissa, mantissa))
            exponent = 2 * exponent + carry
    return result, result_exponent


def _split(x: DoubleFloat) -> tuple[DoubleFloat, jax.Array]:
    """Splits x = m * 2^e into m in (1/2, 1] and an int32 e; the m of 0 is 0."""
    # The bits of a positive float32 are 8 bits of exponent (bias 127) and 23 bits of
    # fraction. Unlike in `jnp.frexp`, a power of two has m = 1, not 1/2.
    bits = jax.lax.bitcast_convert_type(x.high, jnp.int32)
    is_power_of_two = (bits & 0x7FFFFF) == 0
    exponent = (bits >> 23) - 126 - is_power_of_two.astype(jnp.int32)
    # 2^-exponent, made from its bits: the multiplication by it is exact.
    scale = jax.lax.bitcast_convert_type((127 - exponent) << 23, jnp.float32)
    return DoubleFloat(x.high * scale, x.low * scale), exponent
