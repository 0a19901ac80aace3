"""Learning rates of schedules over a run: as numbers, and drawn."""

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

# Of a run of at most this many steps all are computed; of a longer one as many, and
# further ones around corners, until there are too many: then the schedule has no
# corners, but bends everywhere.
_NUM_STEPS, _MOST_STEPS = 2_000, 6_000
_NUM_CORNERS = 64
_NUM_PARTS = 8
# A step may be this share of the highest rate off the line between its neighbours:
# a tenth of a pixel.
_TOLERANCE = 3e-4


def plot_schedule(
    schedules: Schedule | Mapping[str, Schedule],
    num_steps: int,
    path: Path | str | None = None,
) -> "Figure":
    """Draws learning rates over the steps of a run.

        plot_schedule({"linear": linear, "cosine": cosine}, 10_000)

    Rates are what the schedule returns for each step; of more than 2,000 steps those
    that `sample_schedule` returns.

    Args:
        schedules: a function from a step to a learning rate, such as `get_scheduler`,
            `build_schedule`, `join` or optax make; or several, by the names that
            they have in the picture.
        num_steps: of the run; at least 1.
        path: also write it there, as `.png`, `.svg` or `.pdf`; its folder must exist.

    Returns:
        The picture, 800 pixels wide; a notebook shows it.

    Raises:
        TypeError: if a metric drives a schedule, or it is no function.
        ValueError: if there is none, `num_steps` is out of its range, or no picture can
            be written to `path`.
    """
    path = _figure.picture_path(path)
    # A `MetricDrivenSchedule` is a tuple, and is refused by `sample_schedule`.
    named = schedules if isinstance(schedules, Mapping) else {"": schedules}
    if not named:
        raise ValueError(
            "`schedules` must hold at least one schedule, got none. Name some, such as "
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
    _figure.finish([panel])
    return _figure.saved(figure, path)


def sample_schedule(
    schedule: Schedule, num_steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rates of a run at few steps, so that lines between them show it.

    All steps of a run are returned, up to 2,000. A longer run has 2,000 that are evenly
    spaced, and further ones around corners, jumps and the highest rate, so that these
    are drawn at their steps: at most 6,500 in all.

    Args:
        schedule: a function from a step to a learning rate; it is compiled.
        num_steps: of the run, whose last step is `num_steps - 1`; at least 1.

    Returns:
        Steps, [n] int64, and rates, [n] float32, as the schedule itself returns them.

    Raises:
        TypeError: if a metric drives the schedule, or it is no function.
        ValueError: if `num_steps` is below 1 or above 2^31 - 1.
    """
    num_steps = _checks.step_count("num_steps", num_steps, least=1)
    _check_is_schedule(schedule)
    rates_at = _compiled(schedule)
    num_first = min(num_steps, _NUM_STEPS)
    steps = np.linspace(0, num_steps - 1, num_first).round().astype(np.int64)
    rates = rates_at(steps)
    while True:
        between = _around_corners(steps, rates)
        if len(between) == 0 or len(steps) > _MOST_STEPS:
            return steps, rates
        steps = np.append(steps, between)
        rates = np.append(rates, rates_at(between))
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
    """Returns the schedule for many steps at once."""

    @jax.jit
    @jax.vmap
    def rates(step: jax.Array) -> jax.Array:
        return jnp.asarray(schedule(step)).astype(jnp.float32)

    def rates_at(steps: np.ndarray) -> np.ndarray:
        # Each length is compiled for: longer ones are filled up with the last step to
        # a multiple of one length.
        size = -(-len(steps) // _NUM_STEPS) * _NUM_STEPS
        filled = np.pad(steps, (0, size - len(steps)), mode="edge").astype(np.int32)
        return np.asarray(rates(filled))[: len(steps)]

    return rates_at


def _around_corners(steps: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Returns further steps on both sides of those where the rate leaves the line."""
    if len(steps) < 3:
        return steps[:0]
    is_wide = np.diff(steps) > 1
    left, middle, right = steps[:-2], steps[1:-1], steps[2:]
    share = (middle - left) / (right - left)
    rates = rates.astype(np.float64)
    on_line = rates[:-2] + share * (rates[2:] - rates[:-2])
    off = np.abs(rates[1:-1] - on_line)
    off = np.where(np.isfinite(off), off, 0.0)
    # An interval is as far off as the worse of its two ends.
    of_interval = np.maximum(np.append(0.0, off), np.append(off, 0.0))
    least = _TOLERANCE * np.nanmax(np.abs(rates))
    corners = np.flatnonzero(is_wide & (of_interval > least))
    worst = corners[np.argsort(-of_interval[corners], kind="stable")][:_NUM_CORNERS]
    # The highest rate is printed as a number: it has to be the highest.
    peak = int(np.argmax(rates))
    beside = [k for k in (peak - 1, peak) if 0 <= k < len(is_wide) and is_wide[k]]
    inside = [
        np.linspace(steps[k], steps[k + 1], _NUM_PARTS + 1).round()[1:-1]
        for k in (*worst, *beside)
    ]
    if not inside:
        return steps[:0]
    return np.setdiff1d(np.concatenate(inside).astype(np.int64), steps)
