"""A schedule at few steps, its corners among them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _checks
from .._typing import Schedule
from ..schedules import MetricDrivenSchedule

# Up to so many steps all are computed; of more, so many and those around corners, until
# they are too many: then it is not corners, but curves all over.
_NUM_STEPS, _MOST_STEPS = 2_000, 6_000
_NUM_CORNERS = 64
_NUM_PARTS = 8
# Of the highest rate: how far a step may be off the line between its neighbours.
# A tenth of a pixel.
_TOLERANCE = 3e-4


def sample_schedule(
    schedule: Schedule, num_steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """The rates of a run at few steps, so that lines between them show it.

    Up to 2,000 steps all are there. Of a longer run 2,000 are, evenly spaced, and
    around corners, jumps and the highest rate so many more that they are where they
    were: at most 6,500 in all.

    Args:
        schedule: a step comes in, a learning rate goes out; it is compiled.
        num_steps: of the run, whose last step is `num_steps - 1`; at least 1.

    Returns:
        Steps, [n] int64, and rates, [n] float32, as the schedule itself gives them.

    Raises:
        TypeError: if a metric drives the schedule, or it is no function.
        ValueError: if `num_steps` is below 1 or above 2^31 - 1.
    """
    num_steps = _checks.step_count("num_steps", num_steps, least=1)
    _check_is_schedule(schedule)
    at = _compiled(schedule)
    num_first = min(num_steps, _NUM_STEPS)
    steps = np.linspace(0, num_steps - 1, num_first).round().astype(np.int64)
    rates = at(steps)
    while True:
        between = _around_corners(steps, rates)
        if len(between) == 0 or len(steps) > _MOST_STEPS:
            return steps, rates
        steps = np.append(steps, between)
        rates = np.append(rates, at(between))
        order = np.argsort(steps)
        steps, rates = steps[order], rates[order]


def _check_is_schedule(schedule: Any) -> None:
    if isinstance(schedule, MetricDrivenSchedule):
        raise TypeError(
            "`schedules` must be functions of the step, got one that a metric drives: "
            "its rates are not known before the run. Draw what it did by `plot_run`."
        )
    if not callable(schedule):
        raise TypeError(
            "`schedules` must be functions from a step to a learning rate, got "
            f"{schedule!r}. `get_scheduler` and `build_schedule` make one."
        )


def _compiled(schedule: Schedule) -> Callable[[np.ndarray], np.ndarray]:
    """The schedule at many steps at once."""

    @jax.jit
    @jax.vmap
    def rates(step: jax.Array) -> jax.Array:
        return jnp.asarray(schedule(step)).astype(jnp.float32)

    def at(steps: np.ndarray) -> np.ndarray:
        # Of few lengths, each of which is compiled: the last step fills up the rest.
        size = len(steps)
        if len(steps) != _NUM_STEPS:
            size = -(-len(steps) // _NUM_STEPS) * _NUM_STEPS
        filled = np.pad(steps, (0, size - len(steps)), mode="edge").astype(np.int32)
        return np.asarray(rates(filled))[: len(steps)]

    return at


def _around_corners(steps: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Further steps on both sides of where the rate leaves the line."""
    if len(steps) < 3:
        return steps[:0]
    wide = np.diff(steps) > 1
    left, middle, right = steps[:-2], steps[1:-1], steps[2:]
    share = (middle - left) / (right - left)
    rates = rates.astype(np.float64)
    on_line = rates[:-2] + share * (rates[2:] - rates[:-2])
    off = np.abs(rates[1:-1] - on_line)
    # Of an interval: what is at its ends.
    off = np.where(np.isfinite(off), off, 0.0)
    of_interval = np.maximum(np.append(0.0, off), np.append(off, 0.0))
    least = _TOLERANCE * np.nanmax(np.abs(rates))
    corners = np.flatnonzero(wide & (of_interval > least))
    worst = corners[np.argsort(-of_interval[corners], kind="stable")][:_NUM_CORNERS]
    # The highest rate is told of in numbers: it has to be the highest.
    peak = int(np.argmax(rates))
    beside = [k for k in (peak - 1, peak) if 0 <= k < len(wide) and wide[k]]
    inside = [
        np.linspace(steps[k], steps[k + 1], _NUM_PARTS + 1).round()[1:-1]
        for k in (*worst, *beside)
    ]
    if not inside:
        return steps[:0]
    return np.setdiff1d(np.concatenate(inside).astype(np.int64), steps)
