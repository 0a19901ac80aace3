"""Phases of a run, laid end to end: warmup, hold, decay, cycles, hard restarts.

A phase gives a factor of the peak rate for its own steps, counted from its start, and
is evaluated past its end if it is the last. Steps are unsigned integers throughout:
they are subtracted first, exactly, and divided once. The dtype of the step decides that
of the rate; `join` has the rule.
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
from ._repr import shows_call, tuple_repr


class Phase(NamedTuple):
    """A stretch of a run."""

    # own step, uint32 -> float32, or uint64 -> float64
    factor: Callable[[jax.Array], jax.Array]
    num_steps: int

    def __repr__(self) -> str:
        return tuple_repr(self)


@shows_call
def warmup(curve: Curve, num_steps: int, start: Scalar = 0.0) -> Phase:
    """Climbs `curve` from `start` to the peak.

        factor(step) = start + (1 - start) * curve(step / num_steps)

    Args:
        curve: the shape, from this package or your own.
        num_steps: after how many steps the peak is reached; at least 0.
        start: the factor at step 0; from 0 to 1.

    Example:
        >>> schedule = join(1e-3, warmup(linear, 10), constant(0))
        >>> print(schedule(0), schedule(5), schedule(100))
        0.0 0.0005 0.001
    """
    num_steps = _checks.step_count("num_steps", num_steps)
    _checks.fraction("start", start)

    def factor(step: jax.Array) -> jax.Array:
        return _between(start, curve(_progress.done(step, num_steps)))

    return Phase(factor, num_steps)


@shows_call
def constant(num_steps: int, level: Scalar = 1.0) -> Phase:
    """Stays at `level` times the peak; as the last phase, for good.

    Args:
        num_steps: for how many steps; at least 0.
        level: the factor; from 0 to 1.
    """
    num_steps = _checks.step_count("num_steps", num_steps)
    _checks.fraction("level", level)

    def factor(step: jax.Array) -> jax.Array:
        factor = jnp.asarray(level, _progress.rate_dtype(step))
        return jnp.broadcast_to(factor, step.shape)

    return Phase(factor, num_steps)


@shows_call
def decay(curve: Curve, num_steps: int, floor: Scalar = 0.0) -> Phase:
    """Comes down `curve` from the peak to `floor`, and stays there.

        factor(step) = floor + (1 - floor) * curve((num_steps - step) / num_steps)

    Args:
        curve: the shape, read from its end.
        num_steps: after how many steps the floor is reached; at least 0.
        floor: the last factor; from 0 to 1.

    Example:
        >>> schedule = join(1e-3, constant(90), decay(linear, 10, floor=0.1))
        >>> print(f"{schedule(90):.4f} {schedule(100):.4f}")
        0.0010 0.0001
    """
    num_steps = _checks.step_count("num_steps", num_steps)
    _checks.fraction("floor", floor)

    def factor(step: jax.Array) -> jax.Array:
        return _between(floor, curve(_progress.left(step, num_steps)))

    return Phase(factor, num_steps)


@shows_call
def cycles(
    curve: Curve, num_steps: int, num_cycles: float = 0.5, floor: Scalar = 0.0
) -> Phase:
    """Comes down `curve` and climbs it again, over and over, past the end too.

        turn = (num_cycles * step / num_steps) mod 1
        factor(step) = floor + (1 - floor) * curve(|1 - 2 * turn|)

    Args:
        curve: the shape, read from its end and then from its start.
        num_steps: the length that `num_cycles` are counted in; at least 1.
        num_cycles: how often it comes down and climbs; 0.5 only comes down.
        floor: the lowest factor; from 0 to 1.
    """
    num_steps = _checks.step_count("num_steps", num_steps)
    _at_least_one_step(num_steps)
    _checks.non_negative("num_cycles", num_cycles)
    _checks.fraction("floor", floor)
    wave = _progress.Wave(num_cycles, num_steps)

    def factor(step: jax.Array) -> jax.Array:
        return _between(floor, curve(wave.at(step)))

    return Phase(factor, num_steps)


@shows_call
def hard_restarts(
    curve: Curve, num_steps: int, num_cycles: float = 1, floor: Scalar = 0.0
) -> Phase:
    """Comes down `curve` and jumps back to the peak, `num_cycles` times; then `floor`.

        turn = (num_cycles * (step / num_steps)) mod 1
        factor(step) = floor + (1 - floor) * curve(1 - turn)

    A cycle begins on the step on which it begins in double precision, as this very
    expression in Python has it, roundings included.

    Args:
        curve: the shape, read from its end.
        num_steps: when the last cycle is over; at least 1.
        num_cycles: how often it comes down; from 0 to 1e6, and need not be whole.
        floor: the lowest factor; from 0 to 1.
    """
    num_steps = _checks.step_count("num_steps", num_steps)
    _at_least_one_step(num_steps)
    _checks.fraction("floor", floor)
    restarts = _progress.Restarts(num_cycles, num_steps)

    def factor(step: jax.Array) -> jax.Array:
        here = _between(floor, curve(restarts.at(step)))
        return jnp.where(step < num_steps, here, jnp.asarray(floor, here.dtype))

    return Phase(factor, num_steps)


@shows_call
def shift(phase: Phase, num_steps: int) -> Phase:
    """The same phase without its first `num_steps` steps."""
    num_steps = _checks.step_count("num_steps", num_steps)
    return Phase(
        lambda step: phase.factor(step + num_steps),
        max(phase.num_steps - num_steps, 0),
    )


@shows_call
def join(peak: Scalar, *phases: Phase) -> Schedule:
    """Lays phases end to end.

        schedule(step) = peak * factor of the phase that `step` falls into

    The last phase is evaluated for every step after it too.

    The step decides the dtype of the rate, in every schedule of this package. A Python
    int (traced as well) or an array of at most 32 bits gives float32, within 1e-6 of
    the peak. An int64 array, which needs `jax_enable_x64`, gives float64, within 1e-15
    of the peak from Transformers' Python doubles.

    Args:
        peak: the rate that the factors are of; at least 0; a 0-d array may be traced.
        phases: one or more, in the order of the run.

    Returns:
        A schedule, a function from an integer step to a rate. It is exact up to step
        2^31 - 1.

    Raises:
        ValueError: if there is no phase, or `peak` is negative or not finite.

    Example:
        >>> schedule = join(1e-3, warmup(linear, 10), constant(80), decay(cosine, 10))
        >>> [f"{schedule(step):.4f}" for step in (0, 50, 95, 100)]
        ['0.0000', '0.0010', '0.0005', '0.0000']
    """
    _checks.non_negative("peak", peak)
    if not phases:
        raise ValueError("`phases` must hold at least one phase, got none.")
    ends = list(itertools.accumulate(phase.num_steps for phase in phases))
    starts = [0, *ends[:-1]]

    def schedule(step: Step) -> jax.Array:
        now = _progress.unsigned(step)
        factor = _factor_from(phases[-1], now, starts[-1])
        for k in reversed(range(len(phases) - 1)):
            is_earlier = now < now.dtype.type(min(max(ends[k], 0), 2**32 - 1))
            factor = jnp.where(
                is_earlier, _factor_from(phases[k], now, starts[k]), factor
            )
        return jnp.asarray(peak).astype(factor.dtype) * factor

    return schedule


def _factor_from(phase: Phase, now: jax.Array, start: int) -> jax.Array:
    # Modulo 2^32 or 2^64, as the subtraction is: a start may be before the run.
    modulus = 2 ** (8 * now.dtype.itemsize)
    return phase.factor(now - now.dtype.type(start % modulus))


def _between(low: Scalar, climbed: jax.Array) -> jax.Array:
    low = _progress.level(low, climbed.dtype)
    return low + (1.0 - low) * climbed


def _at_least_one_step(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"`num_steps` must be at least 1, got {num_steps!r}.")
