"""One run drawn."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .._picture import finish, new_figure, picture_path, save, scale
from .._run_rows import GRADS, PARAMS, RATE, STEP, UPDATES, draw_losses
from ._run_log import read_run_log

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RATE_LABEL = "learning rate"
GRADS_LABEL = "gradient norm\n(before clipping)"
RATIO_LABEL = "update norm /\nparameter norm"


def plot_run(folder: Path | str, path: Path | str | None = None) -> "Figure":
    """Draws a run: losses, learning rate, gradient norm, updates over parameters.

    The training loss is there step by step in grey and smoothed over a fiftieth of the
    run, the held-out loss with its last and its best value. Of a long run neighbouring
    steps are put together into at most 4,000 points; the least and the largest loss of
    each are drawn. A million steps of `metrics.jsonl` take some 20 seconds to read.

    Args:
        folder: of `jaxopt-tf train`, or any with a `metrics.jsonl` of
            `monitors.json_lines`; the `output_dir` of a Transformers Trainer, one of
            its checkpoints, or either's log itself. A Trainer logs means over
            `logging_steps` and no updates: there that panel is left out.
        path: also write it there, as `.png`, `.svg` or `.pdf`; its folder must exist.

    Returns:
        The picture, 800 pixels wide; a notebook shows it.

    Raises:
        ValueError: if there is no run, its log cannot be read or has no step in it, or
            no picture can be written to `path`.
    """
    path = None if path is None else picture_path(path)
    run = read_run_log(folder)
    rows = run.rows
    columns = {
        RATE_LABEL: rows[:, RATE],
        GRADS_LABEL: rows[:, GRADS],
        RATIO_LABEL: update_ratio(rows),
    }
    columns = {name: x for name, x in columns.items() if np.isfinite(x).any()}
    figure = new_figure(4.0 + 1.7 * len(columns))
    panels = figure.subplots(
        1 + len(columns),
        sharex=True,
        squeeze=False,
        height_ratios=(3, *len(columns) * [1.25]),
    )[:, 0]
    draw_losses(panels[0], rows, run.evaluations)
    panels[0].set_ylabel("loss")
    panels[0].set_title(run.name, loc="left")
    for panel, (name, column) in zip(panels[1:], columns.items(), strict=True):
        panel.plot(rows[:, STEP], column, color="black", linewidth=0.9)
        panel.set_ylabel(name)
        if name != RATE_LABEL:
            scale(panel, column)
    finish(panels)
    if path is not None:
        save(figure, path)
    return figure


def update_ratio(rows: np.ndarray) -> np.ndarray:
    """[n]: norm of the updates over that of the parameters; NaN where not known."""
    params = np.where(rows[:, PARAMS] > 0, rows[:, PARAMS], np.nan)
    return rows[:, UPDATES] / params
