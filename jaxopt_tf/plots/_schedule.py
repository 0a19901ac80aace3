"""Sampling and plotting of learning rate schedules."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _checks
from .._typing import Schedule
from ..schedules import MetricDrivenSchedule
from . import _figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# For a run of at most 2,000 steps, all are sampled. For a longer run, 2,000 steps are
# sampled first, and then further ones around corners of the curve. Sampling ends at
# 6,000 steps, for schedules that are curved everywhere.
_NUM_STEPS, _MAX_STEPS = 2_000, 6_000
_NUM_CORNERS = 64  # maximum number of intervals that are refined in an iteration
_NUM_PARTS = 8  # number of parts into which an interval is divided
# Maximum distance of a rate from the line between its neighbours, as a fraction of the
# highest rate: about a tenth of a pixel.
_TOLERANCE = 3e-4


def plot_schedule(
    schedules: Schedule | Mapping[str, Schedule],
    num_steps: int,
    path: Path | str | None = None,
) -> "Figure":
    """Plots learning rates over the steps of a run.

        plot_schedule({"linear": linear, "cosine": cosine}, 10_000)

    The figure shows the rate at each step, or for more than 2,000 steps the rates at
    the steps that `sample_schedule` selects.

    Args:
        schedules: function from a step to a learning rate, such as the result of
            `get_scheduler`, `build_schedule`, `join` or a schedule of optax; or several
            functions by their names in the figure.
        num_steps: number of steps of the run; at least 1.
        path: file to which the figure is also written, `.png`, `.svg` or `.pdf`; its
            folder must exist.

    Returns:
        The figure, 800 pixels wide.

    Raises:
        TypeError: if a schedule is metric-driven or is not a function.
        ValueError: if there are no schedules, `num_steps` is out of range, or no figure
            can be written to `path`.
    """
    path = _figure.checked_figure_path(path)
    # A `MetricDrivenSchedule` is a tuple; `sample_schedule` raises an error for it.
    named = schedules if isinstance(schedules, Mapping) else {"": schedules}
    if not named:
        raise ValueError(
            "`schedules` must contain at least one schedule, got none. An example is "
            "{'cosine': get_scheduler('cosine', ...)}."
        )
    lines = {name: sample_schedule(one, num_steps) for name, one in named.items()}
    figure, (panel,) = _figure.stacked_panels(4.0, ["learning rate"])
    for index, (name, (steps, rates)) in enumerate(lines.items()):
        _figure.draw_line(panel, steps, rates, index=index, label=name)
    if all((rates >= 0).all() for _, rates in lines.values()):
        panel.set_ylim(bottom=0.0)
    if "" not in lines:
        _figure.legend_above(figure)
    _figure.add_grid_and_xlabel([panel])
    return _figure.save_figure(figure, path)


def sample_schedule(
    schedule: Schedule, num_steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rates of a schedule at a limited number of steps.

    Up to 2,000 steps, all are returned. For a longer run, 2,000 evenly spaced steps are
    returned, and further ones around corners, jumps and the highest rate, so that lines
    between the points show these at the right steps: at most 6,500 in all.

    Args:
        schedule: function from a step to a learning rate; it is compiled.
        num_steps: number of steps of the run, of which the last is `num_steps - 1`; at
            least 1.

    Returns:
        Steps, [n] int64, and rates, [n] float32, equal to those of the schedule.

    Raises:
        TypeError: if the schedule is metric-driven or is not a function.
        ValueError: if `num_steps` is below 1 or above 2^31 - 1.
    """
    num_steps = _checks.step_count("num_steps", num_steps, minimum=1)
    _check_is_schedule(schedule)
    rates_at = _compile(schedule)
    num_first = min(num_steps, _NUM_STEPS)
    steps = np.linspace(0, num_steps - 1, num_first).round().astype(np.int64)
    rates = rates_at(steps)
    while True:
        between = _refine_corners(steps, rates)
        if len(between) == 0 or len(steps) > _MAX_STEPS:
            return steps, rates
        steps = np.append(steps, between)
        rates = np.append(rates, rates_at(between))
        order = np.argsort(steps)
        steps, rates = steps[order], rates[order]


def _check_is_schedule(schedule: Any) -> None:
    if isinstance(schedule, MetricDrivenSchedule):
        raise TypeError(
            "`schedules` must be functions of the step, got a metric-driven schedule: "
            "its rates are unknown before the run. `plot_run` shows those of a run."
        )
    if not callable(schedule):
        raise TypeError(
            "`schedules` must be functions from a step to a learning rate, got "
            f"{schedule!r}. `get_scheduler` and `build_schedule` return one."
        )


def _compile(schedule: Schedule) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function that evaluates the schedule at many steps at once."""

    @jax.jit
    @jax.vmap
    def rates(step: jax.Array) -> jax.Array:
        return jnp.asarray(schedule(step)).astype(jnp.float32)

    def rates_at(steps: np.ndarray) -> np.ndarray:
        # Each length is compiled separately. Arrays are padded with their last step to
        # a multiple of `_NUM_STEPS`, which limits the number of compilations.
        size = -(-len(steps) // _NUM_STEPS) * _NUM_STEPS
        filled = np.pad(steps, (0, size - len(steps)), mode="edge").astype(np.int32)
        return np.asarray(rates(filled))[: len(steps)]

    return rates_at


def _refine_corners(steps: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Returns steps to add where linear interpolation of the rates is inaccurate."""
    if len(steps) < 3:
        return steps[:0]
    is_wide = np.diff(steps) > 1
    left, middle, right = steps[:-2], steps[1:-1], steps[2:]
    fraction = (middle - left) / (right - left)
    rates = rates.astype(np.float64)
    on_line = rates[:-2] + fraction * (rates[2:] - rates[:-2])
    off = np.abs(rates[1:-1] - on_line)
    off = np.where(np.isfinite(off), off, 0.0)
    # The deviation of an interval is the larger one of its two ends.
    deviations = np.maximum(np.append(0.0, off), np.append(off, 0.0))
    minimum = _TOLERANCE * np.nanmax(np.abs(rates))
    corners = np.flatnonzero(is_wide & (deviations > minimum))
    largest = corners[np.argsort(-deviations[corners], kind="stable")][:_NUM_CORNERS]
    # The intervals on both sides of the highest rate are always refined, since
    # `jaxopt-tf schedule` prints the highest rate and its step.
    peak = int(np.argmax(rates))
    neighbours = [k for k in (peak - 1, peak) if 0 <= k < len(is_wide) and is_wide[k]]
    interior = [
        np.linspace(steps[k], steps[k + 1], _NUM_PARTS + 1).round()[1:-1]
        for k in (*largest, *neighbours)
    ]
    if not interior:
        return steps[:0]
    return np.setdiff1d(np.concatenate(interior).astype(np.int64), steps)
