"""Argument of a curve at a step: the part of a phase that is done or left.

The dtype of the step decides the arithmetic. A 32-bit step gives two float32, which
differ from the exact quotient by less than float32 can show. A 64-bit step gives
float64, computed from the expressions of Transformers in their order, so that each
intermediate is the double that Python computes.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from .. import _checks
from .._numerics import double_float
from .._numerics.double_float import TwoFloats
from .._typing import Scalar, Step
from . import _turns


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
        return jnp.uint32(_checks.step_count("step", step))
    if not jnp.issubdtype(jnp.asarray(step).dtype, jnp.integer):
        raise TypeError(f"`step` must be an integer, got {jnp.asarray(step).dtype}.")
    is_64_bit = rate_dtype(step) == np.float64
    return jnp.asarray(step).astype(jnp.uint64 if is_64_bit else jnp.uint32)


def level(value: Scalar, dtype: np.dtype) -> Scalar:
    """Returns an array in `dtype`, a host number as a float, which takes any dtype."""
    if isinstance(value, int | float):
        return float(value)
    return jnp.asarray(value).astype(dtype)


def done(step: jax.Array, num_steps: int) -> TwoFloats:
    """Returns step / num_steps, at most 1."""
    part = jnp.minimum(step, max(num_steps, 1))
    if step.dtype == np.uint64:
        return double_float.from_float32(_quotient(part, max(num_steps, 1)))
    return _share(part, num_steps)


def left(step: jax.Array, num_steps: int) -> TwoFloats:
    """Returns 1 - step / num_steps, at least 0; 0 in a phase without steps."""
    if step.dtype == np.uint64 and num_steps:
        return _one_minus(_quotient(jnp.minimum(step, num_steps), num_steps))
    # Steps left, not 1 - steps done: the subtraction is exact in integers.
    return _share(num_steps - jnp.minimum(step, num_steps), num_steps)


class Wave:
    """Progress that goes from 1 to 0 and back, `num_cycles` times in `num_steps`."""

    def __init__(self, num_cycles: float, num_steps: int):
        self._phase = math.pi * float(num_cycles) * 2.0
        self._step_turn = _turns.per_step(num_cycles, num_steps)
        self._num_steps = num_steps

    def at(self, step: jax.Array) -> TwoFloats:
        """Returns |1 - 2 turn| with turn = (num_cycles * step / num_steps) mod 1."""
        if step.dtype == np.uint64:
            # The functions of the math library reduce a large phase exactly, where a
            # remainder by a rounded 2 pi is wrong by 2e-16 per turn.
            phase = self._phase * _quotient(step, self._num_steps)
            away = jnp.abs(jnp.arctan2(jnp.sin(phase), jnp.cos(phase))) / math.pi
            return double_float.from_float32(1.0 - away)
        half = _turns.to_two_floats(
            _turns.from_half(_turns.turn_at(step, self._step_turn))
        )
        return TwoFloats(2.0 * half.high, 2.0 * half.low)


class Restarts:
    """Progress that goes from 1 to 0, `num_cycles` times in `num_steps`."""

    def __init__(self, num_cycles: float, num_steps: int):
        misplaced = _turns.restarts_that_doubles_misplace(num_cycles, num_steps)
        self._misplaced = misplaced
        self._step_turn = _turns.per_step(num_cycles, num_steps)
        self._num_cycles, self._num_steps = float(num_cycles), num_steps

    def at(self, step: jax.Array) -> TwoFloats:
        """Returns 1 - turn with turn = (num_cycles * (step / num_steps)) mod 1."""
        if step.dtype == np.uint64:
            turns = self._num_cycles * _quotient(step, self._num_steps)
            # Not turns - floor(turns): a compiler fuses the product and the difference,
            # and the restart is no longer where two roundings put it.
            return _one_minus(jax.lax.rem(turns, jnp.ones_like(turns)))
        misplaced = self._misplaced
        turn = _turns.turn_at(step, self._step_turn)
        rest = _turns.rest_of(turn)
        if misplaced.size:
            place = jnp.searchsorted(misplaced, step).clip(max=misplaced.size - 1)
            rest = _turns.select(jnp.asarray(misplaced)[place] == step, turn, rest)
        return _turns.to_two_floats(rest)


def _share(part: jax.Array, whole: int) -> TwoFloats:
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


def _one_minus(x: jax.Array) -> TwoFloats:
    """Returns 1 - x for x from 0 to 1 without any error, as two float64."""
    high = 1.0 - x
    return TwoFloats(high, (1.0 - high) - x)
