"""Curves of one or several runs, drawn during training or from their folders."""

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

# The smoothed loss is the mean over this fraction of the run.
_SMOOTHED_OVER = 1 / 50
_MAX_MARKERS = 50  # maximum number of evaluations that are drawn with markers

_RANGE: Any = {"color": "0.78", "linewidth": 0.7}
_TRAINING: Any = {"color": "#08306b", "linewidth": 1.8}
_EVALUATION: Any = {"color": "#e6550d", "ls": "--", "lw": 1.6, "mfc": "white"}
_SKIPPED: Any = {"color": "black", "marker": "^", "markersize": 5, "ls": "none"}


def curves(
    path: Path, *, unit: str = "nats per token", every: int | None = None
) -> Monitor:
    """Returns a monitor that plots the run at its end, 800 pixels wide.

    The figure shows the training loss (its range in grey, its moving average as a
    line), the evaluation loss, the learning rate, and the norms of gradients, updates
    and parameters. Skipped steps are marked.

    The monitor keeps at most 4,000 points of 9 numbers. In a longer run, neighbouring
    steps are merged, and their range contains the losses of all of them. All
    evaluations are kept, with 100 bytes each. Drawing takes a few seconds.

    Args:
        path: file of the figure, `.png`, `.svg` or `.pdf`; its folder must exist.
        unit: unit of the loss.
        every: number of steps after which the figure is also drawn, at the next
            evaluation; None draws it at the end of the run only.

    Raises:
        ValueError: if the folder does not exist, the format is not supported, or
            `every` is below 1.
        TypeError: if `every` is not a whole number.
    """
    checked_path = _figure.checked_figure_path(path)
    if every is not None:
        every = _checks.step_count("every", every, minimum=1)
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
        _figure.save_figure(_draw_run(run, norms, f"loss ({unit})"), checked_path)

    return Monitor(recorder.window, evaluation, draw)


def plot_run(folder: Path | str, path: Path | str | None = None) -> "Figure":
    """Plots the losses, learning rate, gradient norm and relative updates of a run.

    The training loss of each step is drawn in grey, with a line that is smoothed over a
    fiftieth of the run. The legend contains the last and the best evaluation loss. In a
    long run, neighbouring steps are merged into at most 4,000 points, with the lowest
    and the highest loss of each. Reading a million steps of `metrics.jsonl` takes about
    20 seconds.

    Args:
        folder: folder of `jaxopt-tf train`, or another one with a `metrics.jsonl` of
            `monitors.json_lines`; the `output_dir` of a Transformers Trainer, or one of
            its checkpoints; or the log file itself. A Trainer logs means over
            `logging_steps` and no update norms: that panel is left out.
        path: file to which the figure is also written, `.png`, `.svg` or `.pdf`; its
            folder must exist.

    Returns:
        The figure, 800 pixels wide.

    Raises:
        ValueError: if the folder contains no run, its log cannot be read or contains no
            steps, or no figure can be written to `path`.
    """
    path = _figure.checked_figure_path(path)
    run = _run_log.read_run_log(folder)
    figure = _draw_run(run, {_RATIO_LABEL: run.steps.update_ratio}, "loss")
    figure.axes[0].set_title(run.name, loc="left")
    return _figure.save_figure(figure, path)


def plot_runs(
    folders: Sequence[Path | str] | Mapping[str, Path | str],
    path: Path | str | None = None,
) -> "Figure":
    """Plots several runs in the same panels, including runs of a Trainer.

        plot_runs({"JAX": "runs/mine", "torch": "trainer_output"})

    Training loss and gradient norm are smoothed over a fiftieth of each run. A panel is
    left out if no run has data for it.

    Args:
        folders: folders as for `plot_run`, by the names of the runs. In a sequence,
            runs are named by the last part of the path, or by the whole path if the
            last parts of two paths are equal.
        path: file to which the figure is also written, `.png`, `.svg` or `.pdf`; its
            folder must exist.

    Returns:
        The figure, 800 pixels wide.

    Raises:
        ValueError: if `folders` is empty, or for the same reasons as in `plot_run`.
        TypeError: if `folders` is a single path.
    """
    path = _figure.checked_figure_path(path)
    if isinstance(folders, str | Path):
        raise TypeError(
            f"`folders` must be a sequence of folders, got {str(folders)!r}. Pass it "
            "in a list, or call `plot_run`."
        )
    runs = {name: _lines_by_panel(run) for name, run in _read_runs(folders).items()}
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
            _figure.use_log_scale_if_skewed(
                panel, *(lines[label][1] for lines in runs.values())
            )
    _figure.legend_above(figure, panels[0].get_lines())
    _figure.add_grid_and_xlabel(panels)
    return _figure.save_figure(figure, path)


def _draw_run(
    run: RunLog, more_columns: Mapping[str, np.ndarray], loss_label: str
) -> "Figure":
    """Draws losses, learning rate, gradient norm, and further columns by label."""
    steps = run.steps
    columns = {_RATE_LABEL: steps.rate, _GRADS_LABEL: steps.grads, **more_columns}
    columns = {name: x for name, x in columns.items() if np.isfinite(x).any()}
    figure, panels = _figure.stacked_panels(
        4.0 + 1.6 * len(columns), [loss_label, *columns], (3, *len(columns) * [1.2])
    )
    _draw_losses(panels[0], run)
    for panel, (label, column) in zip(panels[1:], columns.items(), strict=True):
        panel.plot(steps.step, column, color="black", linewidth=0.9)
        if label != _RATE_LABEL:
            _figure.use_log_scale_if_skewed(panel, column)
    _figure.add_grid_and_xlabel(panels)
    return figure


def _draw_losses(panel: "Axes", run: RunLog) -> None:
    """Draws the range of single steps, training and evaluation loss, skipped steps."""
    steps = run.steps
    # The range is a line that connects the lowest and the highest loss of each point.
    # If each point is a single step, it is the line through all losses.
    range_steps = np.repeat(steps.step, 2)
    ranges = np.stack((steps.lowest, steps.highest), 1)
    panel.plot(range_steps, ranges.ravel(), label="single steps", **_RANGE)
    panel.plot(steps.step, smoothed(steps.loss), label="training", **_TRAINING)
    if run.evaluations:
        eval_steps, losses = np.array(run.evaluations).T
        best = int(np.argmin(np.where(np.isfinite(losses), losses, np.inf)))
        label = (
            f"evaluation: {losses[-1]:.4g} at the end, {losses[best]:.4g} at best "
            f"(step {eval_steps[best]:,.0f})"
        )
        marker = "o" if len(losses) <= _MAX_MARKERS else None
        panel.plot(eval_steps, losses, label=label, marker=marker, **_EVALUATION)
    skipped = steps.step[steps.skipped > 0]
    if len(skipped):
        style = {**_SKIPPED, "transform": panel.get_xaxis_transform()}
        label = f"skipped steps: {steps.skipped.sum():,.0f}"
        panel.plot(skipped, np.full(len(skipped), 0.02), label=label, **style)
    _figure.use_log_scale_if_skewed(panel, steps.loss)
    panel.legend(loc="upper right")


def _lines_by_panel(run: RunLog) -> dict[str, np.ndarray]:
    """Returns the lines of a run by panel of `plot_runs`: steps and values, [2, n]."""
    steps = run.steps
    return {
        "training loss,\nsmoothed": np.stack([steps.step, smoothed(steps.loss)]),
        "evaluation loss": np.array(run.evaluations, np.float64).reshape(-1, 2).T,
        _RATE_LABEL: np.stack([steps.step, steps.rate]),
        _GRADS_LABEL: np.stack([steps.step, smoothed(steps.grads)]),
        _RATIO_LABEL: np.stack([steps.step, smoothed(steps.update_ratio)]),
    }


def _read_runs(
    folders: Sequence[Path | str] | Mapping[str, Path | str],
) -> dict[str, RunLog]:
    """Reads runs, and names those in a sequence by their folders."""
    if not folders:
        raise ValueError(
            "`folders` must contain at least one folder of a run, got none."
        )
    if isinstance(folders, Mapping):
        return {
            str(name): _run_log.read_run_log(folder) for name, folder in folders.items()
        }
    logs = [_run_log.read_run_log(folder) for folder in folders]
    names = [log.name for log in logs]
    return {
        log.name if names.count(log.name) == 1 else str(folder): log
        for log, folder in zip(logs, folders, strict=True)
    }


def smoothed(column: np.ndarray) -> np.ndarray:
    """Returns centred moving averages of finite values.

    The window is smaller at the start, where the loss changes fast: it reaches as far
    to the right as to the left.
    """
    n = len(column)
    index = np.arange(n)
    reach = np.minimum(index, int(n * _SMOOTHED_OVER / 2))
    is_finite = np.isfinite(column)
    total = np.cumsum(np.append(0.0, np.where(is_finite, column, 0.0)))
    count = np.cumsum(np.append(0, is_finite))
    starts, ends = index - reach, np.minimum(index + reach + 1, n)
    with np.errstate(invalid="ignore"):
        return (total[ends] - total[starts]) / (count[ends] - count[starts])
