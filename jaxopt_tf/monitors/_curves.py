"""A picture of the run."""

from pathlib import Path

import numpy as np

from .. import _checks
from .._picture import finish, new_figure, picture_path, save, scale
from .._points import all_rows, no_points, with_steps
from .._run_rows import (
    GRADS,
    NUM_COLUMNS,
    PARAMS,
    RATE,
    STEP,
    UPDATES,
    draw_losses,
    merge_steps,
    steps_as_rows,
)
from ..training import Evaluation, Monitor, Window, metric_values


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
    path = picture_path(path)
    if every is not None:
        every = _checks.step_count("every", every, least=1)
    points = no_points(NUM_COLUMNS)
    evaluations: list[tuple[int, float]] = []
    drawn_at = 0

    def window(window: Window) -> None:
        nonlocal points
        steps = steps_as_rows(window.first_step, window.metrics)
        points = with_steps(points, steps, merge_steps)

    def evaluation(evaluation: Evaluation) -> None:
        nonlocal drawn_at
        metrics = metric_values(evaluation.metrics)
        loss = metrics.get("loss", metrics.get("eval_loss"))
        if loss is not None:
            evaluations.append((evaluation.step, loss))
        if every is not None and evaluation.step >= drawn_at + every:
            drawn_at = evaluation.step
            draw()

    def draw() -> None:
        rows = all_rows(points, merge_steps)
        if len(rows):
            _draw(path, unit, rows, evaluations)

    return Monitor(window, evaluation, draw)


def _draw(
    path: Path, unit: str, rows: np.ndarray, evaluations: list[tuple[int, float]]
) -> None:
    figure = new_figure(10.0)
    panels = figure.subplots(5, sharex=True, height_ratios=(3, 1, 1, 1, 1))
    draw_losses(panels[0], rows, evaluations)
    panels[0].set_ylabel(f"loss ({unit})")
    ratio = _median_ratio(rows[:, UPDATES], rows[:, PARAMS])
    columns = {
        "learning rate": RATE,
        "gradient norm\n(before clipping)": GRADS,
        f"update norm\n(median {ratio:.0e} of\nthe parameters')": UPDATES,
        "parameter norm": PARAMS,
    }
    for panel, (name, column) in zip(panels[1:], columns.items(), strict=True):
        panel.plot(rows[:, STEP], rows[:, column], color="black", linewidth=0.9)
        panel.set_ylabel(name)
        if column in (GRADS, UPDATES):
            scale(panel, rows[:, column])
    finish(panels)
    save(figure, path)


def _median_ratio(updates: np.ndarray, params: np.ndarray) -> float:
    has_both = np.isfinite(updates) & (params > 0)
    ratios = updates[has_both] / params[has_both]
    return float(np.median(ratios)) if len(ratios) else np.nan
