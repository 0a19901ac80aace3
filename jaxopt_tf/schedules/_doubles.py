"""Doubles that are at least 0, bit for bit, where a device has none.

`greedy` divides a rate and multiplies it back, and then asks whether it is at its lower
bound: rate / 0.95 * 0.95 is the old rate, or one unit in the last place above it, as
the rounding of doubles has it, and all that follows depends on which. Nothing that is
merely close to a double can tell. So each operation rounds as IEEE 754 does, in 32-bit
integers; a schedule that a metric drives does a few of them per evaluation.

Smaller than 2^-1022, where doubles lose digits, these do not.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._numerics import has_float64
from .._typing import Scalar

_TOP = np.uint32(2**31)
_BELOW_ALL = -4000  # the exponent of 0


class Double(NamedTuple):
    """(high 2^32 + low) 2^(exponent - 63); the top bit of `high` is set, or it is 0."""

    high: jax.Array  # any shape, uint32: the first 32 bits
    low: jax.Array  # as high, uint32: 21 more bits, then 11 that are 0
    exponent: jax.Array  # as high, int32


def double_from_scalar(value: Scalar) -> Double:
    """A host number as the double it is; an array as the float32 it is."""
    if isinstance(value, jax.Array):
        return _from_float32(value.astype(jnp.float32))
    mantissa, exponent = math.frexp(float(value))
    bits = int(mantissa * 2**53) << 11
    return Double(
        jnp.uint32(bits >> 32),
        jnp.uint32(bits & 0xFFFFFFFF),
        jnp.int32(exponent - 1 if bits else _BELOW_ALL),
    )


def to_float32(a: Double) -> jax.Array:
    """The nearest float32."""
    # The low half only breaks ties: one bit of it is as good as all.
    first = (a.high | (a.low != 0).astype(jnp.uint32)).astype(jnp.float32)
    return jnp.ldexp(first, jnp.maximum(a.exponent, -300) - 31)


def to_float64(a: Double) -> jax.Array:
    """The same number as a float64, which needs `jax_enable_x64`."""
    if not has_float64():
        raise ValueError(
            "`jax_enable_x64` must be on for a rate in float64, got False. Set it by "
            '`jax.config.update("jax_enable_x64", True)`, or take `learning_rate`.'
        )
    high, low = a.high.astype(jnp.float64), a.low.astype(jnp.float64)
    return jnp.ldexp(high + low * 2.0**-32, jnp.maximum(a.exponent, -1100) - 31)


def less(a: Double, b: Double) -> jax.Array:
    """a < b."""
    low = (a.high == b.high) & (a.low < b.low)
    same = (a.exponent == b.exponent) & ((a.high < b.high) | low)
    return (a.exponent < b.exponent) | same


def select(condition: jax.Array, a: Double, b: Double) -> Double:
    """a where `condition`, else b."""
    return Double(*(jnp.where(condition, x, y) for x, y in zip(a, b, strict=True)))


def multiply(a: Double, b: Double) -> Double:
    """a * b, rounded once."""
    # The 128 bits of the product, in words from w3 to w0, as by hand.
    h3, l2 = _product(a.high, b.high)
    h2, l1 = _product(a.high, b.low)
    k2, k1 = _product(a.low, b.high)
    h1, w0 = _product(a.low, b.low)
    w1, carry = _sum(h1, l1, k1)
    w2, carry = _sum(l2, h2, k2, carry)
    w3 = h3 + carry
    # The first bit may be 0: then everything moves up by one.
    short = w3 < _TOP
    high = jnp.where(short, w3 << 1 | w2 >> 31, w3)
    low = jnp.where(short, w2 << 1 | w1 >> 31, w2)
    rest = (jnp.where(short, w1 << 1, w1) | w0) != 0
    exponent = a.exponent + b.exponent + 1 - short.astype(jnp.int32)
    return _rounded(high, low, rest, exponent)


@jax.jit  # or outside of a program its loop would be compiled at every call
def divide(a: Double, b: Double) -> Double:
    """a / b for b above 0, rounded once."""
    # One bit at a time. Both move down by one, so that doubling cannot overflow.
    b_high, b_low = b.high >> 1, b.high << 31 | b.low >> 1

    def next_bit(_: Any, carried: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        high, low, q_high, q_low = carried
        fits = (high > b_high) | ((high == b_high) & (low >= b_low))
        borrow = (low < b_low).astype(jnp.uint32)
        high = jnp.where(fits, high - b_high - borrow, high)
        low = jnp.where(fits, low - b_low, low)
        q_high, q_low = q_high << 1 | q_low >> 31, q_low << 1 | fits.astype(jnp.uint32)
        return high << 1 | low >> 31, low << 1, q_high, q_low

    zero = jnp.zeros_like(a.high | b.high)
    start = (zero | a.high >> 1, zero | a.high << 31 | a.low >> 1, zero, zero)
    high, low, q_high, q_low = jax.lax.fori_loop(0, 64, next_bit, start)
    short = q_high < _TOP
    exponent = a.exponent - b.exponent - short.astype(jnp.int32)
    q_high, q_low = _shifted_left(q_high, q_low, short.astype(jnp.uint32))
    return _rounded(q_high, q_low, (high | low) != 0, exponent)


def subtract(a: Double, b: Double) -> Double:
    """a - b for a at least b, rounded once."""
    places = jnp.clip(a.exponent - b.exponent, 0, 63).astype(jnp.uint32)
    high, low = _shifted_right(b.high, b.low, places)
    back = _shifted_left(high, low, places)
    lost = (back[0] != b.high) | (back[1] != b.low)
    # What fell off the end is kept as a last bit: enough to round by.
    low |= lost.astype(jnp.uint32)
    borrow = (a.low < low).astype(jnp.uint32)
    high, low = a.high - high - borrow, a.low - low
    empty = jnp.where(high == 0, 32 + jax.lax.clz(low), jax.lax.clz(high))
    high, low = _shifted_left(high, low, jnp.minimum(empty, 63))
    exponent = a.exponent - empty.astype(jnp.int32)
    return _rounded(high, low, jnp.zeros_like(lost), exponent)


def _rounded(
    high: jax.Array, low: jax.Array, rest: jax.Array, exponent: jax.Array
) -> Double:
    """The nearest with 53 bits, of two the even one; `rest`: whether more follows."""
    tail, kept = low & 0x7FF, low & ~np.uint32(0x7FF)
    is_odd = (low & 0x800) != 0
    up = (tail > 0x400) | ((tail == 0x400) & (rest | is_odd))
    kept, carry = _sum(kept, jnp.where(up, np.uint32(0x800), np.uint32(0)))
    high, carry = _sum(high, carry)
    over = carry != 0
    is_zero = (high == 0) & ~over
    high = jnp.where(over, _TOP, high)
    exponent = exponent + over.astype(jnp.int32)
    return Double(high, kept, jnp.where(is_zero, _BELOW_ALL, exponent))


def _from_float32(value: jax.Array) -> Double:
    bits = jax.lax.bitcast_convert_type(value, jnp.uint32)
    biased = bits >> 23 & 0xFF
    mantissa = bits & 0x7FFFFF | jnp.where(biased > 0, np.uint32(2**23), np.uint32(0))
    empty = jax.lax.clz(mantissa)
    exponent = jnp.maximum(biased, 1).astype(jnp.int32) - empty.astype(jnp.int32) - 119
    is_zero = mantissa == 0
    high = jnp.where(is_zero, mantissa, mantissa << jnp.minimum(empty, 31))
    return Double(high, jnp.zeros_like(high), jnp.where(is_zero, _BELOW_ALL, exponent))


def _product(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The upper and the lower word of a * b."""
    a1, a0, b1, b0 = a >> 16, a & 0xFFFF, b >> 16, b & 0xFFFF
    lowest, first, second = a0 * b0, a0 * b1, a1 * b0
    middle = (lowest >> 16) + (first & 0xFFFF) + (second & 0xFFFF)
    high = a1 * b1 + (first >> 16) + (second >> 16) + (middle >> 16)
    return high, middle << 16 | lowest & 0xFFFF


def _sum(first: jax.Array, *others: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sum modulo 2^32, and what is carried."""
    total, carry = first, jnp.zeros_like(first)
    for other in others:
        total = total + other
        carry += (total < other).astype(jnp.uint32)
    return total, carry


def _shifted_left(
    high: jax.Array, low: jax.Array, places: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """By 0 to 63 places; no single shift is by 32, which not every device defines."""
    far, near = places >= 32, places & 31
    high, low = jnp.where(far, low, high), jnp.where(far, jnp.zeros_like(low), low)
    return high << near | low >> 1 >> 31 - near, low << near


def _shifted_right(
    high: jax.Array, low: jax.Array, places: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """By 0 to 63 places."""
    far, near = places >= 32, places & 31
    high, low = jnp.where(far, jnp.zeros_like(high), high), jnp.where(far, high, low)
    return high >> near, low >> near | high << 1 << 31 - near
