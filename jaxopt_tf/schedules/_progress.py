"""Progress within a phase: the argument of a curve at a step.

The dtype of the step determines the arithmetic. For a 32-bit step the progress is a
pair of float32, whose error is smaller than the resolution of float32. For a 64-bit
step it is float64, computed by the expressions of Transformers in their order, so that
each intermediate result is equal to the double that Python computes.

Cycles use only the fractional part of num_cycles * step / num_steps, which loses digits
in floating point as the number of turns grows. It is therefore computed in fixed point:
the turn of one step is rounded once, to a multiple of 2^-96, and multiplied by the step
in integers; whole turns overflow. At step 2^31 the fraction has an error of 2^-65.
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

_BITS = 96  # bits of a fixed-point fraction, in three uint32
_MAX_CYCLES = 1e6  # limits the size of the table of `_misplaced_restarts`


def rate_dtype(step: Step) -> np.dtype:
    """Returns float64 for an array of 64-bit integers, else float32.

    A Python int gives float32, also if `jit` or `scan` has converted it to a weakly
    typed array: compilation does not change the dtype of the rate.
    """
    is_64_bit = not isinstance(step, int | float) and jnp.asarray(step).itemsize == 8
    is_64_bit = is_64_bit and not getattr(step, "weak_type", False)
    return np.dtype(np.float64 if is_64_bit else np.float32)


def unsigned(step: Step) -> jax.Array:
    """Converts a step to uint64 if its rate is float64, else to uint32."""
    if isinstance(step, int | float):
        return jnp.asarray(_checks.step_count("step", step), jnp.uint32)
    if not jnp.issubdtype(jnp.asarray(step).dtype, jnp.integer):
        raise TypeError(f"`step` must be an integer, got {jnp.asarray(step).dtype}.")
    is_64_bit = rate_dtype(step) == np.float64
    return jnp.asarray(step).astype(jnp.uint64 if is_64_bit else jnp.uint32)


def match_dtype(value: Scalar, dtype: np.dtype) -> Scalar:
    """Converts an array to `dtype`, and a host number to a weakly typed float."""
    if isinstance(value, int | float):
        return float(value)
    return jnp.asarray(value).astype(dtype)


def fraction_done(step: jax.Array, num_steps: int) -> DoubleFloat:
    """Returns step / num_steps, at most 1."""
    part = jnp.minimum(step, max(num_steps, 1))
    if step.dtype == np.uint64:
        return double_float.from_float32(_quotient(part, max(num_steps, 1)))
    return _ratio(part, num_steps)


def fraction_left(step: jax.Array, num_steps: int) -> DoubleFloat:
    """Returns 1 - step / num_steps, at least 0; 0 for a phase without steps."""
    if step.dtype == np.uint64 and num_steps:
        return _one_minus(_quotient(jnp.minimum(step, num_steps), num_steps))
    # The number of remaining steps is subtracted in integers, which is exact; 1 -
    # step / num_steps would have a large relative error near the end of the phase.
    return _ratio(num_steps - jnp.minimum(step, num_steps), num_steps)


class Wave:
    """Triangle wave from 1 to 0 and back, with `num_cycles` periods in `num_steps`."""

    def __init__(self, num_cycles: float, num_steps: int):
        self._phase = math.pi * float(num_cycles) * 2.0
        self._step_turn = turn_per_step(num_cycles, num_steps)
        self._num_steps = num_steps

    def at(self, step: jax.Array) -> DoubleFloat:
        """Returns |1 - 2 turn| with turn = (num_cycles * step / num_steps) mod 1."""
        if step.dtype == np.uint64:
            # `sin` and `cos` reduce a large phase by an exact 2 pi. The remainder by a
            # 2 pi that is rounded to float64 would have an error of 2e-16 per turn.
            phase = self._phase * _quotient(step, self._num_steps)
            half_turns = jnp.abs(jnp.arctan2(jnp.sin(phase), jnp.cos(phase))) / math.pi
            return double_float.from_float32(1.0 - half_turns)
        # |1 - 2 turn| = 2 |turn - 1/2|, where the difference is exact in fixed point.
        half = to_double_float(_distance_from_half(turn_at(step, self._step_turn)))
        return DoubleFloat(2.0 * half.high, 2.0 * half.low)


class Restarts:
    """Sawtooth wave from 1 to 0, with `num_cycles` periods in `num_steps`."""

    def __init__(self, num_cycles: float, num_steps: int):
        self._misplaced = _misplaced_restarts(num_cycles, num_steps)
        self._step_turn = turn_per_step(num_cycles, num_steps)
        self._num_cycles, self._num_steps = float(num_cycles), num_steps

    def at(self, step: jax.Array) -> DoubleFloat:
        """Returns 1 - turn with turn = (num_cycles * (step / num_steps)) mod 1."""
        if step.dtype == np.uint64:
            turns = self._num_cycles * _quotient(step, self._num_steps)
            # Not `turns - floor(turns)`: XLA's compilers contract the product and the
            # subtraction to a fused multiply-add, which does not round the product. The
            # restart would be at another step than with the two roundings of Python.
            return _one_minus(jax.lax.rem(turns, jnp.ones_like(turns)))
        # At the steps of the table, double precision is on the other side of the wrap:
        # where the fraction here is nearly 0 it is nearly 1, and conversely. 1 - turn
        # and turn are then exchanged.
        misplaced = self._misplaced
        turn = turn_at(step, self._step_turn)
        complement = _complement(turn)
        if misplaced.size:
            index = jnp.searchsorted(misplaced, step).clip(max=misplaced.size - 1)
            is_misplaced = jnp.asarray(misplaced)[index] == step
            complement = _select(is_misplaced, turn, complement)
        return to_double_float(complement)


class Turn(NamedTuple):
    """Fixed-point fraction of a turn: (high 2^64 + middle 2^32 + low) / 2^96."""

    high: jax.Array  # any shape, uint32: the most significant bits
    middle: jax.Array  # shape of high, uint32
    low: jax.Array  # shape of high, uint32


def turn_per_step(num_cycles: float, num_steps: int) -> int:
    """Returns the turn per step in units of 2^-96, including whole turns.

    It is rounded up, so that a cycle that starts exactly at a step contains this step.
    """
    turn: int = math.ceil(Fraction(float(num_cycles)) * 2**_BITS / num_steps)
    return turn


def turn_at(step: jax.Array, step_turn: int) -> Turn:
    """Returns the fraction of a turn at a uint32 step, for `step_turn` per step."""
    factor = [step_turn >> 16 * k & 0xFFFF for k in range(_BITS // 16)]
    digits = [jnp.zeros_like(step) for _ in factor]
    # Long multiplication modulo 2^96 in digits of 16 bits, since JAX has no 64-bit
    # integers by default: digit * digit + digit + carry is at most 2^32 - 1.
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
    """Returns 1 - turn - 2^-96."""
    # The one's complement; the missing unit, 2^-96, is far below the precision used.
    return Turn(~turn.high, ~turn.middle, ~turn.low)


def _distance_from_half(turn: Turn) -> Turn:
    """Returns |turn - 1/2|."""
    # Flipping the highest bit subtracts 1/2 from a turn of at least 1/2. Below, it adds
    # 1/2, and the complement gives 1 - (turn + 1/2) = 1/2 - turn.
    half = np.uint32(2**31)
    is_first_half = turn.high < half
    flipped = turn._replace(high=turn.high ^ half)
    return _select(is_first_half, _complement(flipped), flipped)


def _select(condition: jax.Array, a: Turn, b: Turn) -> Turn:
    return Turn(*(jnp.where(condition, x, y) for x, y in zip(a, b, strict=True)))


def to_double_float(turn: Turn) -> DoubleFloat:
    """Converts a fraction to a pair of float32 with an error of at most 2^-56.

    The relative error is small near 0, too.
    """
    high = from_int(turn.high)
    high = DoubleFloat(high.high * 2.0**-32, high.low * 2.0**-32)
    rest = turn.middle.astype(jnp.float32) * 2.0**-64
    rest += turn.low.astype(jnp.float32) * 2.0**-96
    return add(high, from_float32(rest))


def _misplaced_restarts(num_cycles: float, num_steps: int) -> np.ndarray:
    """Returns the steps at which double precision and fixed point differ by a wrap.

    Python rounds (num_cycles * (step / num_steps)) % 1.0 twice before the remainder. A
    product that is an integer in exact arithmetic can be rounded to a value just below
    it, as 49 * (1 / 49) is; the step is then the last of a cycle instead of the first.
    Only the step nearest to each restart can be affected; the host checks all of these
    steps.

    Returns:
        The steps in increasing order, uint32; usually empty.

    Raises:
        ValueError: if `num_cycles` is above 1e6.
    """
    _checks.non_negative("num_cycles", num_cycles)
    if num_cycles > _MAX_CYCLES:
        raise ValueError(
            f"`num_cycles` must be at most {_MAX_CYCLES:g} for hard restarts, got "
            f"{num_cycles!r}."
        )
    cycles = float(num_cycles)
    nearest = np.rint(np.arange(1, int(cycles) + 1) * num_steps / max(cycles, 1.0))
    nearest = np.unique(nearest[(nearest > 0) & (nearest < num_steps)])
    doubles = cycles * (nearest / float(num_steps))
    close = np.abs(doubles - np.rint(doubles)) < 1e-6
    step_turn = turn_per_step(num_cycles, num_steps)
    misplaced = [
        int(step)
        for step, turns in zip(nearest[close], doubles[close], strict=True)
        if int(step) * step_turn >> _BITS != math.floor(turns)
    ]
    return np.asarray(misplaced, dtype=np.uint32)


def _ratio(part: jax.Array, whole: int) -> DoubleFloat:
    """Returns part / whole, from 0 to 1, as a pair of float32."""
    # 64-bit steps are passed by `fraction_left` only, for a phase without steps: `part`
    # is 0.
    if part.dtype == np.uint64:
        return double_float.from_float32(part.astype(jnp.float64))
    # Multiplied by the reciprocal, which the host computes in double precision. The
    # product can round 1 to slightly less, hence `select`.
    reciprocal = double_float.from_float(1.0 / max(whole, 1))
    fraction = double_float.multiply(double_float.from_int(part), reciprocal)
    one = double_float.from_float32(jnp.ones_like(fraction.high))
    return double_float.select(part >= max(whole, 1), one, fraction)


def _quotient(part: jax.Array, whole: int) -> jax.Array:
    """Returns part / whole in float64, rounded once."""
    # XLA replaces the division by a constant with a multiplication by its reciprocal,
    # which rounds twice. `part >> 63` is 0 for any step below 2^63, but XLA cannot
    # know this, so that the divisor is not a constant and the division is kept.
    divisor = whole + (part >> 63)
    return part.astype(jnp.float64) / divisor.astype(jnp.float64)


def _one_minus(x: jax.Array) -> DoubleFloat:
    """Returns 1 - x for x from 0 to 1 as a pair of float64, without rounding error."""
    high = 1.0 - x
    return DoubleFloat(high, (1.0 - high) - x)
