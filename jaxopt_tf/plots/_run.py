"""Curves of one run, or of several to compare: while it trains, or from its folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _checks
from ..training import Evaluation, Monitor
from . import _figure, _run_log
from ._run_log import RunLog

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RATE_LABEL = "learning rate"
_GRADS_LABEL = "gradient norm\n(before clipping)"
_RATIO_LABEL = "update norm /\nparameter norm"

# The smoothed loss is the mean over this share of the run.
_SMOOTHED_OVER = 1 / 50
_MOST_MARKERS = 50  # evaluations that are drawn with a marker each

_RANGE: Any = {"color": "0.78", "linewidth": 0.7}
_TRAINING: Any = {"color": "#08306b", "linewidth": 1.8}
_EVALUATION: Any = {"color": "#e6550d", "ls": "--", "lw": 1.6, "mfc": "white"}
_SKIPPED: Any = {"color": "black", "marker": "^", "markersize": 5, "ls": "none"}


def curves(
    path: Path, *, unit: str = "nats per token", every: int | None = None
) -> Monitor:
    """Draws the run at its end, 800 pixels wide.

    Training loss (its range in grey, smoothed as a line) and evaluation loss, learning
    rate, norms of gradient, update and parameters; skipped steps are marked. The lines
    differ in black and white, too.

    Keeps at most 4,000 points of 9 numbers, however long the run is: neighbouring steps
    are merged, and the range contains all of them. All evaluations are kept, 100 bytes
    each. Drawing takes a few seconds.

    Args:
        path: the picture, `.png`, `.svg` or `.pdf`; its folder must exist.
        unit: of the loss.
        every: also draw at the first evaluation after this many steps, and again after
            as many, to see the run while it trains; None to draw only at the end.

    Raises:
        ValueError, TypeError: if the folder does not exist, the format is another, or
            `every` is below 1.
    """
    checked_path = _figure.picture_path(path)
    if every is not None:
        every = _checks.step_count("every", every, least=1)
    recorder = _run_log.RunRecorder()
    drawn_at = 0

    def evaluation(evaluation: Evaluation) -> None:
        nonlocal drawn_at
        recorder.evaluation(evaluation)
        if every is not None and evaluation.step >= drawn_at + every:
            drawn_at = evaluation.step
            draw()

    def draw() -> None:
        run = recorder.log()
        if len(run.steps.step) == 0:
            return
        ratio = run.steps.update_ratio
        ratio = ratio[np.isfinite(ratio)]
        median = np.median(ratio) if len(ratio) else np.nan
        label = f"update norm\n(median {median:.0e} of\nthe parameters')"
        norms = {label: run.steps.updates, "parameter norm": run.steps.params}
        _figure.saved(_draw_run(run, norms, f"loss ({unit})"), checked_path)

    return Monitor(recorder.window, evaluation, draw)


def plot_run(folder: Path | str, path: Path | str | None = None) -> "Figure":
    """Draws a run: losses, learning rate, gradient norm, updates over parameters.

    The training loss of each step is drawn in grey, and as a line smoothed over a
    fiftieth of the run. The evaluation loss has its last and its best value. In a long
    run neighbouring steps are merged into at most 4,000 points, with the lowest and the
    highest loss of each. A million steps of `metrics.jsonl` take about 20 seconds to
    read.

    Args:
        folder: of `jaxopt-tf train`, or any with a `metrics.jsonl` of
            `monitors.json_lines`; the `output_dir` of a Transformers Trainer, one of
            its checkpoints, or the log itself. A Trainer logs means over
            `logging_steps` and no updates: that panel is left out.
        path: also write it there, as `.png`, `.svg` or `.pdf`; its folder must exist.

    Returns:
        The picture, 800 pixels wide; a notebook shows it.

    Raises:
        ValueError: if there is no run, its log cannot be read or has no step in it, or
            no picture can be written to `path`.
    """
    path = _figure.picture_path(path)
    run = _run_log.read_run_log(folder)
    figure = _draw_run(run, {_RATIO_LABEL: run.steps.update_ratio}, "loss")
    figure.axes[0].set_title(run.name, loc="left")
    return _figure.saved(figure, path)


def plot_runs(
    folders: Sequence[Path | str] | Mapping[str, Path | str],
    path: Path | str | None = None,
) -> "Figure":
    """Draws several runs into the same panels, ours and a Trainer's side by side.

        plot_runs({"JAX": "runs/mine", "torch": "trainer_output"})

    Training loss and gradient norm are smoothed over a fiftieth of each run. A panel is
    left out if no run has its numbers, as a Trainer logs no updates.

    Args:
        folders: as `plot_run` takes them; in a sequence they are named by their last
            part, or by all of it where two would have the same name.
        path: also write it there, as `.png`, `.svg` or `.pdf`; its folder must exist.

    Returns:
        The picture, 800 pixels wide; a notebook shows it.

    Raises:
        ValueError: if there is none, or as `plot_run`, naming the folder.
        TypeError: if `folders` is a single one.
    """
    path = _figure.picture_path(path)
    if isinstance(folders, str | Path):
        raise TypeError(
            f"`folders` must be a sequence of folders, got {str(folders)!r}. Put it "
            "into a list, or call `plot_run`."
        )
    runs = {name: _lines_of(run) for name, run in _named(folders).items()}
    labels = [
        label
        for label in next(iter(runs.values()))
        if any(np.isfinite(lines[label]).any(axis=1)[1] for lines in runs.values())
    ]
    heights = [2 if "loss" in label else 1 for label in labels]
    figure, panels = _figure.stacked_panels(1.4 + 1.2 * sum(heights), labels, heights)
    for panel, label in zip(panels, labels, strict=True):
        for index, (name, lines) in enumerate(runs.items()):
            _figure.draw_line(panel, *lines[label], index=index, label=name)
        if label != _RATE_LABEL:
            _figure.scale(panel, *(lines[label][1] for lines in runs.values()))
    _figure.legend_above(figure, panels[0].get_lines())
    _figure.finish(panels)
    return _figure.saved(figure, path)


def _draw_run(
    run: RunLog, further: Mapping[str, np.ndarray], loss_label: str
) -> "Figure":
    """Draws losses, learning rate and gradient norm, and further columns by label."""
    steps = run.steps
    columns = {_RATE_LABEL: steps.rate, _GRADS_LABEL: steps.grads, **further}
    columns = {name: x for name, x in columns.items() if np.isfinite(x).any()}
    figure, panels = _figure.stacked_panels(
        4.0 + 1.6 * len(columns), [loss_label, *columns], (3, *len(columns) * [1.2])
    )
    _draw_losses(panels[0], run)
    for panel, (label, column) in zip(panels[1:], columns.items(), strict=True):
        panel.plot(steps.step, column, color="black", linewidth=0.9)
        if label != _RATE_LABEL:
            _figure.scale(panel, column)
    _figure.finish(panels)
    return figure


def _draw_losses(panel: "Axes", run: RunLog) -> None:
    """Draws the range of single steps, both losses, and skipped steps."""
    steps = run.steps
    # A line from the lowest to the highest loss of each point; where a point is one
    # step, this is the line from step to step.
    at, ranges = np.repeat(steps.step, 2), np.stack((steps.lowest, steps.highest), 1)
    panel.plot(at, ranges.ravel(), label="single steps", **_RANGE)
    panel.plot(steps.step, smoothed(steps.loss), label="training", **_TRAINING)
    if run.evaluations:
        at, losses = np.array(run.evaluations).T
        best = int(np.argmin(np.where(np.isfinite(losses), losses, np.inf)))
        label = (
            f"evaluation: {losses[-1]:.4g} at the end, "
            f"{losses[best]:.4g} at best (step {at[best]:,.0f})"
        )
        marker = "o" if len(losses) <= _MOST_MARKERS else None
        panel.plot(at, losses, label=label, marker=marker, **_EVALUATION)
    at = steps.step[steps.skipped > 0]
    if len(at):
        style = {**_SKIPPED, "transform": panel.get_xaxis_transform()}
        label = f"skipped steps: {steps.skipped.sum():,.0f}"
        panel.plot(at, np.full(len(at), 0.02), label=label, **style)
    _figure.scale(panel, steps.loss)
    panel.legend(loc="upper right")


def _lines_of(run: RunLog) -> dict[str, np.ndarray]:
    """Returns the lines of a run in `plot_runs` by panel: steps and values, [2, n]."""
    steps = run.steps
    return {
        "training loss,\nsmoothed": np.stack([steps.step, smoothed(steps.loss)]),
        "evaluation loss": np.array(run.evaluations, np.float64).reshape(-1, 2).T,
        _RATE_LABEL: np.stack([steps.step, steps.rate]),
        _GRADS_LABEL: np.stack([steps.step, smoothed(steps.grads)]),
        _RATIO_LABEL: np.stack([steps.step, smoothed(steps.update_ratio)]),
    }


def _named(
    folders: Sequence[Path | str] | Mapping[str, Path | str],
) -> dict[str, RunLog]:
    """Reads runs, and names those that have no name yet."""
    if not folders:
        raise ValueError(
            "`folders` must hold at least one folder of a run, got none. Name some."
        )
    if isinstance(folders, Mapping):
        return {str(name): _run_log.read_run_log(of) for name, of in folders.items()}
    logs = [_run_log.read_run_log(folder) for folder in folders]
    names = [log.name for log in logs]
    return {
        log.name if names.count(log.name) == 1 else str(folder): log
        for log, folder in zip(logs, folders, strict=True)
    }


def smoothed(column: np.ndarray) -> np.ndarray:
    """Returns means over neighbours on both sides; fewer at the steep start."""
    n = len(column)
    at = np.arange(n)
    reach = np.minimum(at, int(n * _SMOOTHED_OVER / 2))
    is_finite = np.isfinite(column)
    total = np.cumsum(np.append(0.0, np.where(is_finite, column, 0.0)))
    count = np.cumsum(np.append(0, is_finite))
    first, past = at - reach, np.minimum(at + reach + 1, n)
    with np.errstate(invalid="ignore"):
        return (total[past] - total[first]) / (count[past] - count[first])
