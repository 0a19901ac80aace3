"""Schedules drawn."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .._picture import draw_line, finish, new_figure, picture_path, save
from .._typing import Schedule
from ._sampled import sample_schedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_schedule(
    schedules: Schedule | Mapping[str, Schedule],
    num_steps: int,
    path: Path | str | None = None,
) -> "Figure":
    """Draws learning rates over the steps of a run.

        plot_schedule({"linear": linear, "cosine": cosine}, 10_000)

    Rates are what the schedule gives, step by step; of more than 2,000 steps every so
    many and those around corners, as `sample_schedule` takes them.

    Args:
        schedules: a function from a step to a learning rate, such as `get_scheduler`,
            `build_schedule`, `in_order` or optax make; or several, by the names that
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
    path = None if path is None else picture_path(path)
    # A `MetricDrivenSchedule` is a tuple, and goes on to be refused.
    named = schedules if isinstance(schedules, Mapping) else {"": schedules}
    if not named:
        raise ValueError(
            "`schedules` must hold at least one schedule, got none. Name some, such as "
            "{'cosine': get_scheduler('cosine', ...)}."
        )
    curves = {name: sample_schedule(one, num_steps) for name, one in named.items()}
    figure = new_figure(4.0)
    panel = figure.subplots()
    for index, (name, (steps, rates)) in enumerate(curves.items()):
        draw_line(panel, steps, rates, index=index, label=name)
    panel.set_ylabel("learning rate")
    if all((rates >= 0).all() for _, rates in curves.values()):
        panel.set_ylim(bottom=0.0)
    if "" not in curves:
        figure.legend(loc="outside upper center", ncols=3, frameon=False)
    finish([panel])
    if path is not None:
        save(figure, path)
    return figure
