"""A run's steps as rows of numbers, and how its losses are drawn from them."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ._picture import scale
from ._points import finite_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Columns of a row: of one step, or of several that were put together.
STEP, LOSS, LEAST, MOST, RATE, GRADS, UPDATES, PARAMS, SKIPPED = range(9)
NUM_COLUMNS = 9

# Share of the run that the smoothed loss is the mean over.
_SMOOTHED_OVER = 1 / 50
# Evaluations that are drawn at most are twice as many.
_NUM_EVALUATIONS = 1_000


def steps_as_rows(first_step: int, metrics: Any) -> np.ndarray:
    """[n, 9], float64: of the steps of a window.

    Args:
        first_step: of the window.
        metrics: `Metrics` of numpy arrays, [n] each.
    """
    loss = np.where(metrics.is_skipped, np.nan, metrics.loss)
    updates = np.where(metrics.is_skipped, np.nan, metrics.norms.updates)
    norms = (metrics.norms.grads, updates, metrics.norms.params)
    steps = first_step + np.arange(len(loss))
    columns = (steps, *3 * [loss], metrics.learning_rate, *norms, metrics.is_skipped)
    return np.stack(columns, axis=1).astype(np.float64)


def merge_steps(groups: np.ndarray) -> np.ndarray:
    """[n, size, 9] -> [n, 9]: means, and what a mean would hide."""
    merged = finite_mean(groups)
    merged[:, LEAST] = np.fmin.reduce(groups[:, :, LEAST], axis=1)
    merged[:, MOST] = np.fmax.reduce(groups[:, :, MOST], axis=1)
    merged[:, RATE] = groups[:, -1, RATE]
    merged[:, SKIPPED] = groups[:, :, SKIPPED].sum(axis=1)
    return merged


def smoothed(column: np.ndarray) -> np.ndarray:
    """Mean over neighbours on both sides; fewer at the start, where it is steep."""
    n = len(column)
    at = np.arange(n)
    reach = np.minimum(at, int(n * _SMOOTHED_OVER / 2))
    is_finite = np.isfinite(column)
    total = np.cumsum(np.append(0.0, np.where(is_finite, column, 0.0)))
    count = np.cumsum(np.append(0, is_finite))
    first, past = at - reach, np.minimum(at + reach + 1, n)
    with np.errstate(invalid="ignore"):
        return (total[past] - total[first]) / (count[past] - count[first])


def draw_losses(
    panel: "Axes", rows: np.ndarray, evaluations: list[tuple[int, float]]
) -> None:
    """The range of single steps, the smoothed loss, the held-out loss, skipped steps.

    Args:
        panel: to draw on; its label is not set.
        rows: [n, 9].
        evaluations: step and held-out loss.
    """
    steps, loss = rows[:, STEP], rows[:, LOSS]
    # A line from least to most at each point: one step is the line between steps.
    ranges = np.stack([rows[:, LEAST], rows[:, MOST]], axis=1).ravel()
    panel.plot(
        np.repeat(steps, 2), ranges, color="0.78", linewidth=0.7, label="single steps"
    )
    panel.plot(steps, smoothed(loss), color="#08306b", linewidth=1.8, label="training")
    if evaluations:
        at, held_out = np.array(evaluations).T
        best = int(np.argmin(np.where(np.isfinite(held_out), held_out, np.inf)))
        label = (
            f"held out: {held_out[-1]:.4g} at the end, "
            f"{held_out[best]:.4g} at best (step {at[best]:,.0f})"
        )
        at, held_out = thinned(evaluations)
        panel.plot(
            at,
            held_out,
            color="#e6550d",
            linewidth=1.6,
            linestyle="--",
            marker="o" if len(at) <= 50 else None,
            markerfacecolor="white",
            label=label,
        )
    is_skipped = rows[:, SKIPPED] > 0
    if is_skipped.any():
        panel.plot(
            steps[is_skipped],
            np.full(is_skipped.sum(), 0.02),
            "^",
            color="black",
            markersize=5,
            transform=panel.get_xaxis_transform(),
            label=f"skipped steps: {rows[:, SKIPPED].sum():,.0f}",
        )
    scale(panel, loss)
    panel.legend(loc="upper right")


def thinned(evaluations: list[tuple[int, float]]) -> np.ndarray:
    """[2, n]: steps and losses, of very many every so many, and the last."""
    stride = max(len(evaluations) // _NUM_EVALUATIONS, 1)
    kept = evaluations[::stride]
    if (len(evaluations) - 1) % stride:
        kept = [*kept, evaluations[-1]]
    return np.array(kept, np.float64).reshape(-1, 2).T
