"""Several runs drawn, to be compared."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .._picture import draw_line, finish, new_figure, picture_path, save, scale
from .._run_rows import GRADS, LOSS, RATE, STEP, smoothed, thinned
from ._run import GRADS_LABEL, RATE_LABEL, RATIO_LABEL, update_ratio
from ._run_log import RunLog, read_run_log

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of a panel: steps and values of a run.
_Lines = list[tuple[np.ndarray, np.ndarray]]


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
    path = None if path is None else picture_path(path)
    if isinstance(folders, str | Path):
        raise TypeError(
            f"`folders` must be a sequence of folders, got {str(folders)!r}. Put it "
            "into a list, or call `plot_run`."
        )
    runs = _named(folders)
    panels_of = {
        "training loss,\nsmoothed": [
            (run.rows[:, STEP], smoothed(run.rows[:, LOSS])) for run in runs.values()
        ],
        "held-out loss": [tuple(thinned(run.evaluations)) for run in runs.values()],
        RATE_LABEL: [(run.rows[:, STEP], run.rows[:, RATE]) for run in runs.values()],
        GRADS_LABEL: [
            (run.rows[:, STEP], smoothed(run.rows[:, GRADS])) for run in runs.values()
        ],
        RATIO_LABEL: [
            (run.rows[:, STEP], smoothed(update_ratio(run.rows)))
            for run in runs.values()
        ],
    }
    shown: dict[str, _Lines] = {
        name: lines
        for name, lines in panels_of.items()
        if any(np.isfinite(y).any() for _, y in lines)
    }
    heights = [2 if "loss" in name else 1 for name in shown]
    figure = new_figure(1.4 + 1.2 * sum(heights))
    panels = figure.subplots(
        len(shown), sharex=True, squeeze=False, height_ratios=heights
    )[:, 0]
    for panel, (name, lines) in zip(panels, shown.items(), strict=True):
        for index, (run, (x, y)) in enumerate(zip(runs, lines, strict=True)):
            draw_line(panel, x, y, index=index, label=run)
        panel.set_ylabel(name)
        if name != RATE_LABEL:
            scale(panel, *(y for _, y in lines))
    figure.legend(
        handles=panels[0].get_lines(),
        loc="outside upper center",
        ncols=3,
        frameon=False,
    )
    finish(panels)
    if path is not None:
        save(figure, path)
    return figure


def _named(
    folders: Sequence[Path | str] | Mapping[str, Path | str],
) -> dict[str, RunLog]:
    if not folders:
        raise ValueError(
            "`folders` must hold at least one folder of a run, got none. Name some."
        )
    if isinstance(folders, Mapping):
        return {str(name): read_run_log(of) for name, of in folders.items()}
    logs = [read_run_log(folder) for folder in folders]
    names = [log.name for log in logs]
    return {
        log.name if names.count(log.name) == 1 else str(folder): log
        for log, folder in zip(logs, folders, strict=True)
    }
