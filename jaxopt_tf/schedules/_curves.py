"""Learning-rate curves: a climb from 0 to 1.

A warmup reads a curve from its start and a decay reads it from its end, so each shape
is written once; and written so that float32 stays relatively exact near 0, where a run
ends. A curve is handed its argument as two float32, because what one of them loses can
be everything: near 1 the root of 1 - x, far down a high power.

A curve of your own takes `x.high`, the argument rounded to float32, where that will do.
For a 64-bit step `x` is a pair of float64, and the curve returns float64.
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
from ._repr import shows_call

# From a share, from 0 to 1, to a float32 (float64 for a pair of float64) from 0 to 1.
Curve = Callable[[DoubleFloat], jax.Array]


def linear(x: DoubleFloat) -> jax.Array:
    """Climbs evenly: x."""
    return to_float32(x)


def cosine(x: DoubleFloat) -> jax.Array:
    """Climbs slowly, fast, slowly: (1 - cos(pi x)) / 2."""
    # The square of a sine has no cancellation, where 1 - cos(pi x) is all of it.
    return jnp.sin(0.5 * jnp.pi * x.high) ** 2


def sqrt(x: DoubleFloat) -> jax.Array:
    """Climbs fast, then slowly: sqrt(x)."""
    return jnp.sqrt(x.high)


def one_minus_sqrt(x: DoubleFloat) -> jax.Array:
    """Climbs slowly, then fast: 1 - sqrt(1 - x). Read from its end, 1 - sqrt(done)."""
    rest = to_float32(subtract(from_float32(jnp.ones_like(x.high)), x))
    # The same number as 1 - sqrt(rest), multiplied through: nothing cancels near 0.
    return x.high / (1.0 + jnp.sqrt(jnp.maximum(rest, 0.0)))


@shows_call
def polynomial(power: float) -> Curve:
    """Climbs as x^power; a power of 1 is `linear`.

    Relatively exact for any power, down to 1e-38, where float32 ends. A float32 power
    function is not: its error grows with the power and with the logarithm.

    Args:
        power: the exponent, from above 0 to 1e6.

    Raises:
        ValueError: if `power` is not greater than 0, or is above 1e6.
    """
    _checks.positive("power", power)
    if power > 1e6:
        raise ValueError(f"`power` must be at most 1e6, got {power!r}.")
    whole, part = int(power), float(power) - int(power)

    def curve(x: DoubleFloat) -> jax.Array:
        if x.high.dtype == jnp.float64:
            return jnp.power(to_float32(x), power)
        # x = mantissa * 2^exponent, with the mantissa above 1/2 and at most 1: its
        # logarithm is small, and the powers of 2 go by themselves, in integers.
        mantissa, exponent = _split(x)
        result, twos = _whole_power(mantissa, exponent, whole)
        power32 = to_float32(result)
        if part:
            # 2^(exponent * part): up to 31 * part, of which the fraction must be exact.
            shift = multiply(from_int(exponent), from_float(part))
            nearest = jnp.round(shift.high)
            fraction = (shift.high - nearest) + shift.low
            power32 *= jnp.exp2(fraction + part * jnp.log2(mantissa.high))
            twos += nearest.astype(jnp.int32)
        power32 = jnp.ldexp(power32, jnp.maximum(twos, -200))
        return jnp.where(x.high > 0.0, power32, jnp.zeros_like(power32))

    return curve


def _whole_power(
    mantissa: DoubleFloat, exponent: jax.Array, power: int
) -> tuple[DoubleFloat, jax.Array]:
    """(mantissa * 2^exponent)^power by squaring, split again after each product."""
    result, twos = from_float32(jnp.ones_like(mantissa.high)), jnp.zeros_like(exponent)
    while power:
        if power % 2:
            result, more = _split(multiply(result, mantissa))
            twos += exponent + more
        power //= 2
        if power:
            mantissa, more = _split(multiply(mantissa, mantissa))
            exponent = 2 * exponent + more
    return result, twos


def _split(x: DoubleFloat) -> tuple[DoubleFloat, jax.Array]:
    """(m, e) with x = m * 2^e, m above 1/2 and at most 1, e int32; 0 stays 0."""
    bits = jax.lax.bitcast_convert_type(x.high, jnp.int32)
    is_power_of_two = (bits & 0x7FFFFF) == 0
    exponent = (bits >> 23) - 126 - is_power_of_two.astype(jnp.int32)
    scale = jax.lax.bitcast_convert_type((127 - exponent) << 23, jnp.float32)
    return DoubleFloat(x.high * scale, x.low * scale), exponent
