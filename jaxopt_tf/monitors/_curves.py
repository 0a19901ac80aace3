"""A picture of the run."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import _check
from .._whole_file import check_folder, whole_file
from ..training import Evaluation, Monitor, Window

_FORMATS = (".png", ".svg", ".pdf")
# Points that are kept at most are twice as many; the picture is 800 pixels wide.
_NUM_POINTS = 2_000
# Share of the run that the smoothed loss is the mean over.
_SMOOTHED_OVER = 1 / 50

# Columns of a point: of one step, or of several that were put together.
_STEP, _LOSS, _LEAST, _MOST, _RATE, _GRADS, _UPDATES, _PARAMS, _SKIPPED = range(9)


def curves(
    path: Path, *, unit: str = "nats per token", every: int | None = None
) -> Monitor:
    """A picture of the run, drawn at its end, 800 pixels wide.

    Training loss (its range in grey, smoothed as a line) and held-out loss, learning
    rate, norms of gradient, update and parameters; steps that were skipped are marked.
    Also in black and white each line can be told from the others.

    Keeps at most 4,000 points of 9 numbers, however long the run is: neighbours are put
    together, so that nothing is left out of the range. Evaluations are all kept, 100
    bytes each. Drawing takes a few seconds.

    Args:
        path: the picture, `.png`, `.svg` or `.pdf`; its folder must exist.
        unit: of the loss.
        every: draw it anew at the first evaluation after so many steps as well, so that
            it can be looked at while the run goes on; None for only at the end.

    Raises:
        ValueError, TypeError: if the folder does not exist, the format is another, or
            `every` is below 1.
    """
    path = Path(path)
    check_folder(path)
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(
            f"`path` must end with one of {', '.join(_FORMATS)}, got {str(path)!r}."
        )
    if every is not None:
        every = _check.step_count("every", every, least=1)
    points = _Points(np.empty((0, 9)), np.empty((0, 9)), 1)
    evaluations: list[tuple[int, float]] = []
    drawn_at = 0

    def window(window: Window) -> None:
        nonlocal points
        points = _with_window(points, window)

    def evaluation(evaluation: Evaluation) -> None:
        nonlocal drawn_at
        loss = evaluation.metrics.get("loss", evaluation.metrics.get("eval_loss"))
        if loss is not None:
            evaluations.append((evaluation.step, float(loss)))
        if every is not None and evaluation.step >= drawn_at + every:
            drawn_at = evaluation.step
            draw()

    def draw() -> None:
        rows = np.concatenate([points.rows, _merged(points.rest, len(points.rest))])
        if len(rows):
            with whole_file(path) as new_path:
                _draw(new_path, path.suffix[1:].lower(), unit, rows, evaluations)

    return Monitor(window, evaluation, draw)


class _Points(NamedTuple):
    """A run of any length in a bounded number of points."""

    rows: np.ndarray  # [n, 9], float64: each of `stride` steps
    rest: np.ndarray  # [m, 9], m < stride: steps of the point that is not full yet
    stride: int


def _with_window(points: _Points, window: Window) -> _Points:
    metrics: Any = window.metrics  # numpy here
    loss = np.where(metrics.is_skipped, np.nan, metrics.loss)
    updates = np.where(metrics.is_skipped, np.nan, metrics.norms.updates)
    norms = (metrics.norms.grads, updates, metrics.norms.params)
    steps = window.first_step + np.arange(len(loss))
    columns = (steps, *3 * [loss], metrics.learning_rate, *norms, metrics.is_skipped)
    rest = np.concatenate([points.rest, np.stack(columns, axis=1)])
    rows, stride = points.rows, points.stride
    num_whole = len(rest) // stride * stride
    rows = np.concatenate([rows, _merged(rest[:num_whole], stride)])
    rest = rest[num_whole:]
    # Of an odd number the last would be left alone: it waits for one more.
    if len(rows) >= 2 * _NUM_POINTS and len(rows) % 2 == 0:
        rows, stride = _merged(rows, 2), 2 * stride
    return _Points(rows, rest, stride)


def _merged(rows: np.ndarray, size: int) -> np.ndarray:
    """Puts each `size` neighbours together: [n, 9] -> [n / size, 9]."""
    if len(rows) == 0:
        return rows
    groups = rows.reshape(-1, size, rows.shape[1])
    merged = _finite_mean(groups)
    merged[:, _LEAST] = np.fmin.reduce(groups[:, :, _LEAST], axis=1)
    merged[:, _MOST] = np.fmax.reduce(groups[:, :, _MOST], axis=1)
    merged[:, _RATE] = groups[:, -1, _RATE]
    merged[:, _SKIPPED] = groups[:, :, _SKIPPED].sum(axis=1)
    return merged


def _finite_mean(groups: np.ndarray) -> np.ndarray:
    """Mean over axis 1 of what is finite; NaN where nothing is."""
    is_finite = np.isfinite(groups)
    total = np.where(is_finite, groups, 0.0).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return total / is_finite.sum(axis=1)


def _smoothed(column: np.ndarray) -> np.ndarray:
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


def _draw(
    path: Path,
    format: str,
    unit: str,
    rows: np.ndarray,
    evaluations: list[tuple[int, float]],
) -> None:
    # The figure without pyplot: no window system, no state of matplotlib's touched.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 10), layout="constrained")
    heights = (3, 1, 1, 1, 1)
    panels = figure.subplots(5, sharex=True, height_ratios=heights)
    _draw_loss(panels[0], unit, rows, evaluations)
    ratio = _median_ratio(rows[:, _UPDATES], rows[:, _PARAMS])
    columns = {
        "learning rate": _RATE,
        "gradient norm\n(before clipping)": _GRADS,
        f"update norm\n(median {ratio:.0e} of\nthe parameters')": _UPDATES,
        "parameter norm": _PARAMS,
    }
    for panel, (name, column) in zip(panels[1:], columns.items(), strict=True):
        panel.plot(rows[:, _STEP], rows[:, column], color="black", linewidth=0.9)
        panel.set_ylabel(name)
        if column in (_GRADS, _UPDATES):
            _scale(panel, rows[:, column])
    panels[-1].set_xlabel("step")
    panels[-1].xaxis.set_major_formatter("{x:,.0f}")
    figure.align_ylabels()
    for panel in panels:
        panel.grid(color="0.85", linewidth=0.6)
        panel.margins(x=0.01)
    figure.savefig(path, dpi=100, format=format)


def _draw_loss(
    panel: Any, unit: str, rows: np.ndarray, evaluations: list[tuple[int, float]]
) -> None:
    steps, loss = rows[:, _STEP], rows[:, _LOSS]
    # A line from least to most at each point: one step is the line between steps.
    ranges = np.stack([rows[:, _LEAST], rows[:, _MOST]], axis=1).ravel()
    panel.plot(
        np.repeat(steps, 2), ranges, color="0.78", linewidth=0.7, label="single steps"
    )
    panel.plot(steps, _smoothed(loss), color="#08306b", linewidth=1.8, label="training")
    if evaluations:
        at, held_out = np.array(evaluations).T
        best = int(np.argmin(np.where(np.isfinite(held_out), held_out, np.inf)))
        panel.plot(
            at,
            held_out,
            color="#e6550d",
            linewidth=1.6,
            linestyle="--",
            marker="o" if len(at) <= 50 else None,
            markerfacecolor="white",
            label=f"held out: {held_out[-1]:.4g} at the end, "
            f"{held_out[best]:.4g} at best (step {at[best]:,.0f})",
        )
    is_skipped = rows[:, _SKIPPED] > 0
    if is_skipped.any():
        panel.plot(
            steps[is_skipped],
            np.full(is_skipped.sum(), 0.02),
            "^",
            color="black",
            markersize=5,
            transform=panel.get_xaxis_transform(),
            label=f"skipped steps: {rows[:, _SKIPPED].sum():,.0f}",
        )
    panel.set_ylabel(f"loss ({unit})")
    _scale(panel, loss)
    panel.legend(loc="upper right")


def _median_ratio(updates: np.ndarray, params: np.ndarray) -> float:
    has_both = np.isfinite(updates) & (params > 0)
    ratios = updates[has_both] / params[has_both]
    return float(np.median(ratios)) if len(ratios) else np.nan


def _scale(panel: Any, column: np.ndarray) -> None:
    """Logarithmic where a few large values would hide all others."""
    positive = column[np.isfinite(column) & (column > 0)]
    is_never_negative = len(positive) > 0 and not (column < 0).any()
    if is_never_negative and positive.max() > 20 * np.median(positive):
        panel.set_yscale("log")
