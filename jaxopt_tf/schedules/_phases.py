"""Phases of a schedule: warmup, constant, decay, cycles, hard restarts; and `join`.

A phase maps steps, counted from its start, to factors of the peak rate. The last phase
of a schedule is also evaluated after its end. Steps are unsigned integers: they are
subtracted first, which is exact, and divided once. The dtype of the step determines the
dtype of the rate; see `join`.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .. import _checks
from .._typing import Scalar, Schedule, Step
from . import _progress
from ._curves import Curve
from ._repr import tuple_repr, with_call_repr


class Phase(NamedTuple):
    """Part of a schedule, with a number of steps."""

    # Function from the step since the start of the phase to the factor of the rate:
    # uint32 -> float32, or uint64 -> float64.
    factor: Callable[[jax.Array], jax.Array]
    num_steps: int  # length of the phase

    def __repr__(self) -> str:
        return tuple_repr(self)


@with_call_repr
def warmup(curve: Curve, num_steps: int, start: Scalar = 0.0) -> Phase:
    """Increases the rate along `curve` from `start` to the peak.

        factor(step) = start + (1 - start) * curve(step / num_steps)

    Args:
        curve: shape of the warmup; a curve of this package or a custom one.
        num_steps: number of steps until the peak is reached; at least 0.
        start: factor at step 0; from 0 to 1.

    Examples:
        >>> schedule = join(1e-3, warmup(linear, 10), constant(num_steps=0))
        >>> print(schedule(0), schedule(5), schedule(100))
        0.0 0.0005 0.001
    """
    num_steps = _checks.step_count("num_steps", num_steps)
    _checks.fraction("start", start)

    def factor(step: jax.Array) -> jax.Array:
        return _interpolate(start, curve(_progress.fraction_done(step, num_steps)))

    return Phase(factor, num_steps)


@with_call_repr
def constant(num_steps: int, level: Scalar = 1.0) -> Phase:
    """Keeps the rate at `level` times the peak.

    Args:
        num_steps: number of steps; at least 0. The last phase of a schedule has no end.
        level: the factor; from 0 to 1.
    """
    num_steps = _checks.step_count("num_steps", num_steps)
    _checks.fraction("level", level)

    def factor(step: jax.Array) -> jax.Array:
        factor = jnp.asarray(level, _progress.rate_dtype(step))
        return jnp.broadcast_to(factor, step.shape)

    return Phase(factor, num_steps)


@with_call_repr
def decay(curve: Curve, num_steps: int, floor: Scalar = 0.0) -> Phase:
    """Decreases the rate along `curve` from the peak to `floor`, and keeps it there.

        factor(step) = floor + (1 - floor) * curve((num_steps - step) / num_steps)

    Args:
        curve: shape of the decay, evaluated backwards.
        num_steps: number of steps until the floor is reached; at least 0.
        floor: final factor; from 0 to 1.

    Examples:
        >>> schedule = join(1e-3, constant(90), decay(linear, 10, floor=0.1))
        >>> print(f"{schedule(90):.4f} {schedule(100):.4f}")
        0.0010 0.0001
    """
    num_steps = _checks.step_count("num_steps", num_steps)
    _checks.fraction("floor", floor)

    def factor(step: jax.Array) -> jax.Array:
        return _interpolate(floor, curve(_progress.fraction_left(step, num_steps)))

    return Phase(factor, num_steps)


@with_call_repr
def cycles(
    curve: Curve, num_steps: int, num_cycles: float = 0.5, floor: Scalar = 0.0
) -> Phase:
    """Decreases the rate along `curve` and increases it again, periodically.

        turn = (num_cycles * step / num_steps) mod 1
        factor(step) = floor + (1 - floor) * curve(|1 - 2 * turn|)

    The cycles continue after `num_steps` if the phase is the last one.

    Args:
        curve: shape of the decrease, evaluated backwards, and of the increase.
        num_steps: length of `num_cycles` cycles; at least 1.
        num_cycles: number of cycles; 0.5 is a single decrease.
        floor: lowest factor; from 0 to 1.
    """
    num_steps = _checks.step_count("num_steps", num_steps)
    _at_least_one_step(num_steps)
    _checks.non_negative("num_cycles", num_cycles)
    _checks.fraction("floor", floor)
    wave = _progress.Wave(num_cycles, num_steps)

    def factor(step: jax.Array) -> jax.Array:
        return _interpolate(floor, curve(wave.at(step)))

    return Phase(factor, num_steps)


@with_call_repr
def hard_restarts(
    curve: Curve, num_steps: int, num_cycles: float = 1, floor: Scalar = 0.0
) -> Phase:
    """Decreases the rate along `curve` `num_cycles` times, each time from the peak.

        turn = (num_cycles * (step / num_steps)) mod 1
        factor(step) = floor + (1 - floor) * curve(1 - turn)

    After `num_steps` the factor is `floor`. A cycle starts at the step at which the
    expression of `turn`, evaluated in Python floats with their rounding errors, wraps.

    Args:
        curve: shape of the decrease, evaluated backwards.
        num_steps: number of steps until the end of the last cycle; at least 1.
        num_cycles: number of cycles, not necessarily an integer; from 0 to 1e6.
        floor: lowest factor; from 0 to 1.
    """
    num_steps = _checks.step_count("num_steps", num_steps)
    _at_least_one_step(num_steps)
    _checks.fraction("floor", floor)
    restarts = _progress.Restarts(num_cycles, num_steps)

    def factor(step: jax.Array) -> jax.Array:
        factor_in_cycle = _interpolate(floor, curve(restarts.at(step)))
        return jnp.where(
            step < num_steps, factor_in_cycle, jnp.asarray(floor, factor_in_cycle.dtype)
        )

    return Phase(factor, num_steps)


@with_call_repr
def shift(phase: Phase, num_steps: int) -> Phase:
    """Returns a phase without its first `num_steps` steps."""
    num_steps = _checks.step_count("num_steps", num_steps)
    return Phase(
        lambda step: phase.factor(step + num_steps),
        max(phase.num_steps - num_steps, 0),
    )


@with_call_repr
def join(peak: Scalar, *phases: Phase) -> Schedule:
    """Joins phases to a schedule.

        schedule(step) = peak * factor of the phase that contains `step`

    The last phase is also evaluated for every step after its end.

    In every schedule of this package, the dtype of the step determines the dtype of the
    rate. A Python int (traced or not) or an array of at most 32 bits gives float32 with
    an error of at most 1e-6 times the peak. An int64 array, which requires
    `jax_enable_x64`, gives float64, which differs from Transformers' Python floats by
    at most 1e-15 times the peak.

    Args:
        peak: rate for a factor of 1; at least 0; a 0-d array may be traced.
        phases: at least one phase, in order.

    Returns:
        A schedule: a function from an integer step to a rate. It is valid up to step
        2^31 - 1.

    Raises:
        ValueError: if there is no phase, or `peak` is negative or not finite.

    Examples:
        >>> schedule = join(1e-3, warmup(linear, 10), constant(80), decay(cosine, 10))
        >>> [f"{schedule(step):.4f}" for step in (0, 50, 95, 100)]
        ['0.0000', '0.0010', '0.0005', '0.0000']
    """
    _checks.non_negative("peak", peak)
    if not phases:
        raise ValueError("`phases` must contain at least one phase, got none.")
    ends = list(itertools.accumulate(phase.num_steps for phase in phases))
    starts = [0, *ends[:-1]]

    def schedule(step: Step) -> jax.Array:
        # From the last phase to the first: each `where` replaces the factor at the
        # steps before the end of an earlier phase.
        unsigned_step = _progress.unsigned(step)
        factor = _factor_from(phases[-1], unsigned_step, starts[-1])
        for k in reversed(range(len(phases) - 1)):
            # Ends can be negative (see `get_wsd_schedule`); steps are unsigned.
            is_earlier = unsigned_step < unsigned_step.dtype.type(
                min(max(ends[k], 0), 2**32 - 1)
            )
            factor = jnp.where(
                is_earlier, _factor_from(phases[k], unsigned_step, starts[k]), factor
            )
        return jnp.asarray(peak).astype(factor.dtype) * factor

    return schedule


def _factor_from(phase: Phase, step: jax.Array, start: int) -> jax.Array:
    # A start can be negative (see `get_wsd_schedule`). Unsigned subtraction is modulo
    # 2^32 or 2^64, so that the start is converted by the same modulus.
    modulus = 2 ** (8 * step.dtype.itemsize)
    return phase.factor(step - step.dtype.type(start % modulus))


def _interpolate(low: Scalar, fraction: jax.Array) -> jax.Array:
    low = _progress.match_dtype(low, fraction.dtype)
    return low + (1.0 - low) * fraction


def _at_least_one_step(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"`num_steps` must be at least 1, got {num_steps!r}.")
