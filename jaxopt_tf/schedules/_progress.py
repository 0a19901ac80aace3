"""Argument of a curve at a step: the part of a phase that is done or left.

The dtype of the step decides the arithmetic. A 32-bit step gives two float32, which
differ from the exact quotient by less than float32 can show. A 64-bit step gives
float64, computed from the expressions of Transformers in their order, so that each
intermediate is the double that Python computes.

Cycles: after num_cycles * step / num_steps turns only the fraction of the turn matters,
and that is what floating point loses as the turns grow. Fixed point does not: the turn
of one step is rounded once, to 2^-96, multiplied by the step in integers, and whole
turns overflow. At step 2^31 the fraction is still exact to 2^-65.
"""

import math
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import _checks
from .._numerics import double_float
from .._numerics.double_float import DoubleFloat, add, from_float32, from_int
from .._typing import Scalar, Step

_BITS = 96
_MOST_CYCLES = 1e6  # 1e6 restarts are a mistake, and their table would be long


def rate_dtype(step: Step) -> np.dtype:
    """Returns float64 for an array of 64-bit integers, else float32.

    A Python int gives float32, also when `jit` or `scan` has made a weakly typed array
    of it: compiling a schedule does not change the dtype of its rate.
    """
    is_64_bit = not isinstance(step, int | float) and jnp.asarray(step).itemsize == 8
    is_64_bit = is_64_bit and not getattr(step, "weak_type", False)
    return np.dtype(np.float64 if is_64_bit else np.float32)


def unsigned(step: Step) -> jax.Array:
    """Returns `step` as uint64 where its rate is float64, else as uint32."""
    if isinstance(step, int | float):
        return jnp.asarray(_checks.step_count("step", step), jnp.uint32)
    if not jnp.issubdtype(jnp.asarray(step).dtype, jnp.integer):
        raise TypeError(f"`step` must be an integer, got {jnp.asarray(step).dtype}.")
    is_64_bit = rate_dtype(step) == np.float64
    return jnp.asarray(step).astype(jnp.uint64 if is_64_bit else jnp.uint32)


def level(value: Scalar, dtype: np.dtype) -> Scalar:
    """Returns an array in `dtype`, a host number as a float, which takes any dtype."""
    if isinstance(value, int | float):
        return float(value)
    return jnp.asarray(value).astype(dtype)


def done(step: jax.Array, num_steps: int) -> DoubleFloat:
    """Returns step / num_steps, at most 1."""
    part = jnp.minimum(step, max(num_steps, 1))
    if step.dtype == np.uint64:
        return double_float.from_float32(_quotient(part, max(num_steps, 1)))
    return _share(part, num_steps)


def left(step: jax.Array, num_steps: int) -> DoubleFloat:
    """Returns 1 - step / num_steps, at least 0; 0 in a phase without steps."""
    if step.dtype == np.uint64 and num_steps:
        return _one_minus(_quotient(jnp.minimum(step, num_steps), num_steps))
    # Steps left, not 1 - steps done: the subtraction is exact in integers.
    return _share(num_steps - jnp.minimum(step, num_steps), num_steps)


class Wave:
    """Progress that goes from 1 to 0 and back, `num_cycles` times in `num_steps`."""

    def __init__(self, num_cycles: float, num_steps: int):
        self._phase = math.pi * float(num_cycles) * 2.0
        self._step_turn = per_step(num_cycles, num_steps)
        self._num_steps = num_steps

    def at(self, step: jax.Array) -> DoubleFloat:
        """Returns |1 - 2 turn| with turn = (num_cycles * step / num_steps) mod 1."""
        if step.dtype == np.uint64:
            # The functions of the math library reduce a large phase exactly, where a
            # remainder by a rounded 2 pi is wrong by 2e-16 per turn.
            phase = self._phase * _quotient(step, self._num_steps)
            away = jnp.abs(jnp.arctan2(jnp.sin(phase), jnp.cos(phase))) / math.pi
            return double_float.from_float32(1.0 - away)
        half = to_double_float(_distance_from_half(turn_at(step, self._step_turn)))
        return DoubleFloat(2.0 * half.high, 2.0 * half.low)


class Restarts:
    """Progress that goes from 1 to 0, `num_cycles` times in `num_steps`."""

    def __init__(self, num_cycles: float, num_steps: int):
        self._misplaced = _misplaced_restarts(num_cycles, num_steps)
        self._step_turn = per_step(num_cycles, num_steps)
        self._num_cycles, self._num_steps = float(num_cycles), num_steps

    def at(self, step: jax.Array) -> DoubleFloat:
        """Returns 1 - turn with turn = (num_cycles * (step / num_steps)) mod 1."""
        if step.dtype == np.uint64:
            turns = self._num_cycles * _quotient(step, self._num_steps)
            # Not turns - floor(turns): a compiler fuses the product and the difference,
            # and the restart is no longer where two roundings put it.
            return _one_minus(jax.lax.rem(turns, jnp.ones_like(turns)))
        misplaced = self._misplaced
        turn = turn_at(step, self._step_turn)
        rest = _complement(turn)
        if misplaced.size:
            place = jnp.searchsorted(misplaced, step).clip(max=misplaced.size - 1)
            rest = _select(jnp.asarray(misplaced)[place] == step, turn, rest)
        return to_double_float(rest)


class Turn(NamedTuple):
    """A fraction of a turn: (high 2^64 + middle 2^32 + low) / 2^96."""

    high: jax.Array  # any shape, uint32
    middle: jax.Array  # as high, uint32
    low: jax.Array  # as high, uint32


def per_step(num_cycles: float, num_steps: int) -> int:
    """Returns the turn of one step in units of 2^-96, whole turns included.

    It is rounded up, so that a cycle that begins exactly on a step contains it.
    """
    turn: int = math.ceil(Fraction(float(num_cycles)) * 2**_BITS / num_steps)
    return turn


def turn_at(step: jax.Array, step_turn: int) -> Turn:
    """Returns the fraction of a turn at `step`, uint32, with `step_turn` per step."""
    factor = [step_turn >> 16 * k & 0xFFFF for k in range(_BITS // 16)]
    digits = [jnp.zeros_like(step) for _ in factor]
    # Long multiplication in digits of 16 bits: digit * digit + digit + carry fits 32.
    for shift, half in enumerate((step & 0xFFFF, step >> 16)):
        carry = jnp.zeros_like(step)
        for k in range(shift, len(digits)):
            total = half * factor[k - shift] + digits[k] + carry
            digits[k], carry = total & 0xFFFF, total >> 16
    low, middle, high = (
        digits[k] | digits[k + 1] << 16 for k in range(0, len(digits), 2)
    )
    return Turn(high, middle, low)


def _complement(turn: Turn) -> Turn:
    """Returns 1 - turn, the rest of the cycle, less the last bit."""
    return Turn(~turn.high, ~turn.middle, ~turn.low)


def _distance_from_half(turn: Turn) -> Turn:
    """Returns |turn - 1/2|."""
    half = np.uint32(2**31)
    before = turn.high < half
    away = turn._replace(high=turn.high ^ half)
    return _select(before, _complement(away), away)


def _select(condition: jax.Array, a: Turn, b: Turn) -> Turn:
    return Turn(*(jnp.where(condition, x, y) for x, y in zip(a, b, strict=True)))


def to_double_float(turn: Turn) -> DoubleFloat:
    """Returns the fraction as two float32: to 2^-56, and relatively exact near 0."""
    high = from_int(turn.high)
    high = DoubleFloat(high.high * 2.0**-32, high.low * 2.0**-32)
    rest = turn.middle.astype(jnp.float32) * 2.0**-64
    rest += turn.low.astype(jnp.float32) * 2.0**-96
    return add(high, from_float32(rest))


def _misplaced_restarts(num_cycles: float, num_steps: int) -> np.ndarray:
    """Returns the steps that a double puts on the other side of a restart than here.

    (num_cycles * (step / num_steps)) % 1.0 is rounded twice before it wraps. If the
    product is nearly whole it may be just below (49 * (1 / 49) is), and the double then
    has the last step of a cycle in place of the first. Only the step nearest to each
    restart can be affected; all of them are checked on the host.

    Returns:
        The steps in increasing order, uint32; most often none.

    Raises:
        ValueError: if `num_cycles` is above 1e6.
    """
    _checks.non_negative("num_cycles", num_cycles)
    if num_cycles > _MOST_CYCLES:
        raise ValueError(
            f"`num_cycles` must be at most {_MOST_CYCLES:g} for hard restarts, got "
            f"{num_cycles!r}."
        )
    cycles = float(num_cycles)
    nearest = np.rint(np.arange(1, int(cycles) + 1) * num_steps / max(cycles, 1.0))
    nearest = np.unique(nearest[(nearest > 0) & (nearest < num_steps)])
    doubles = cycles * (nearest / float(num_steps))
    close = np.abs(doubles - np.rint(doubles)) < 1e-6
    step_turn = per_step(num_cycles, num_steps)
    misplaced = [
        int(step)
        for step, turns in zip(nearest[close], doubles[close], strict=True)
        if int(step) * step_turn >> _BITS != math.floor(turns)
    ]
    return np.asarray(misplaced, dtype=np.uint32)


def _share(part: jax.Array, whole: int) -> DoubleFloat:
    """Returns part / whole, from 0 to 1, as two float32."""
    if part.dtype == np.uint64:  # of a phase without steps: nothing is left
        return double_float.from_float32(part.astype(jnp.float64))
    # Times the reciprocal, which the host knows in double; but 1 is exactly 1.
    reciprocal = double_float.from_float(1.0 / max(whole, 1))
    share = double_float.multiply(double_float.from_int(part), reciprocal)
    one = double_float.from_float32(jnp.ones_like(share.high))
    return double_float.select(part >= max(whole, 1), one, share)


def _quotient(part: jax.Array, whole: int) -> jax.Array:
    """Returns part / whole in float64, rounded once."""
    # XLA replaces a division by a constant by a product with its reciprocal, which is
    # rounded twice. The added bit is 0, but XLA does not know that.
    divisor = whole + (part >> 63)
    return part.astype(jnp.float64) / divisor.astype(jnp.float64)


def _one_minus(x: jax.Array) -> DoubleFloat:
    """Returns 1 - x for x from 0 to 1 without any error, as two float64."""
    high = 1.0 - x
    return DoubleFloat(high, (1.0 - high) - x)
