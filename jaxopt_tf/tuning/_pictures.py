"""What a search found, drawn: a sweep, or losses over learning rates."""

import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .._picture import (
    finish,
    mark_diverged,
    new_figure,
    picture_path,
    save,
    scale,
)
from ..recipes import recipe_settings
from ._heat_map import draw_heat_map
from ._rate_found import RateFound
from ._sweep import Sweep
from ._trials import is_ended, lowest
from ._tried import Tried, is_grid, values_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_sweep(sweep: Sweep, path: Path | str | None = None) -> "Figure":
    """Draws the loss by which runs were compared, over the fields that were varied.

    A grid of two fields is a heat map; anything else has a panel for each field, with a
    mark for each run. Runs that halving left behind are where they were left: their
    loss is of fewer steps.

    Args:
        sweep: what was found.
        path: also write it there, as `.png`, `.svg` or `.pdf`; its folder must exist.

    Returns:
        The picture, 800 pixels wide; a notebook shows it.

    Raises:
        ValueError: if no picture can be written to `path`.
    """
    path = None if path is None else picture_path(path)
    tried = _tried(sweep)
    names = list(tried.values)
    if len(names) == 2 and is_grid(tried):
        figure = draw_heat_map(tried)
    else:
        figure = new_figure(1.0 + 2.6 * len(names))
        panels = figure.subplots(len(names), squeeze=False)[:, 0]
        for panel, name in zip(panels, names, strict=True):
            _draw_field(panel, tried, name)
        figure.legend(
            handles=panels[0].get_legend_handles_labels()[0],
            loc="outside upper center",
            ncols=4,
            frameon=False,
        )
        _finish(panels, names[-1])
    if path is not None:
        save(figure, path)
    return figure


def plot_rates(found: RateFound, path: Path | str | None = None) -> "Figure":
    """Draws losses over the learning rates that were tried, and the suggestion.

    Args:
        found: what `find_learning_rate` or `range_test` found.
        path: also write it there, as `.png`, `.svg` or `.pdf`; its folder must exist.

    Returns:
        The picture, 800 pixels wide; a notebook shows it.

    Raises:
        ValueError: if no picture can be written to `path`.
    """
    path = None if path is None else picture_path(path)
    figure = new_figure(4.4)
    panel = figure.subplots()
    finite = np.isfinite(found.losses)
    is_dense = len(found.rates) > 50
    panel.plot(
        found.rates[finite],
        found.losses[finite],
        color="black",
        linewidth=1.2,
        marker="" if is_dense else "o",
        markersize=5,
        label="loss",
    )
    mark_diverged(panel, found.rates[~finite])
    if found.suggestion is not None:
        panel.axvline(
            found.suggestion,
            color="#d55e00",
            linestyle="--",
            linewidth=1.5,
            label=f"suggestion: {found.suggestion:g}",
        )
    panel.set_xscale("log")
    panel.set_ylabel("loss")
    scale(panel, found.losses)
    panel.set_title(textwrap.fill(found.reason, 100), loc="left", fontsize=9)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    _finish([panel], "learning rate")
    if path is not None:
        save(figure, path)
    return figure


def _tried(sweep: Sweep) -> Tried:
    settings = [recipe_settings(recipe) for recipe in sweep.recipes]
    over = {name: values_of([of[name] for of in settings]) for name in sweep.over}
    several = {name: values for name, values in over.items() if len(set(values)) > 1}
    last, best = sweep.last, lowest(sweep.last, sweep.recipes)
    return Tried(
        values=several or over,
        losses=np.array([trial.compared for trial in last]),
        steps=np.array([trial.step for trial in last]),
        is_ended=np.array([is_ended(trial, sweep.recipes) for trial in last]),
        label=(
            "training loss of the last tenth"
            if last[0].held_out is None
            else "held-out loss"
        )
        + ", per item",
        best=None if best is None else best.run,
    )


def _draw_field(panel: "Axes", tried: Tried, name: str) -> None:
    values = tried.values[name]
    x, ticks = _positions(values)
    finite = np.isfinite(tried.losses)
    is_kept, is_left = finite & tried.is_ended, finite & ~tried.is_ended
    is_alone = len(tried.values) == 1
    order = np.argsort(x, kind="stable")
    kept = order[is_kept[order]]
    panel.plot(
        x[kept],
        tried.losses[kept],
        color="black",
        marker="o",
        markersize=5,
        linestyle="-" if is_alone and ticks is None else "none",
        linewidth=1.0,
        label="trained to the end",
    )
    if is_left.any():
        panel.plot(
            x[is_left],
            tried.losses[is_left],
            color="0.4",
            marker="o",
            markerfacecolor="white",
            markersize=5,
            linestyle="none",
            label="left behind, after fewer steps",
        )
    mark_diverged(panel, x[~finite])
    best = tried.best
    if best is not None:
        panel.plot(
            x[[best]],
            tried.losses[[best]],
            color="#d55e00",
            marker="*",
            markeredgecolor="black",
            markersize=15,
            linestyle="none",
            label=f"best: {tried.losses[best]:.4g}",
        )
    if ticks is not None:
        panel.set_xticks(range(len(ticks)), ticks)
        panel.set_xlim(-0.5, len(ticks) - 0.5)
    elif _is_logarithmic(x):
        panel.set_xscale("log")
    panel.set_xlabel(name)
    panel.set_ylabel(tried.label)
    scale(panel, tried.losses[finite])


def _positions(values: list[float | str]) -> tuple[np.ndarray, list[str] | None]:
    """Numbers as they are; names side by side, and what they are called."""
    if all(isinstance(value, float) for value in values):
        return np.array(values, float), None
    names = list(dict.fromkeys(map(str, values)))
    return np.array([float(names.index(str(value))) for value in values]), names


def _is_logarithmic(x: np.ndarray) -> bool:
    """Whether numbers lie as rates do: most of them are small beside the largest."""
    return min(x) > 0 and max(x) >= 20 * min(x) and np.median(x) < max(x) / 4


def _finish(panels: Iterable["Axes"], xlabel: str) -> None:
    panels = list(panels)
    finish(panels, xlabel)
    for panel in panels:
        panel.margins(x=0.03)  # no mark is cut, be it at the end
