"""Plots of losses over the settings of a search: sweeps, rates and weight decays."""

import itertools
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DOTS: Any = {"color": "black", "marker": "o", "markersize": 5, "lw": 1.0}
_DROPPED_STYLE: Any = {"color": "0.4", "marker": "o", "mfc": "white", "markersize": 5}
_BEST_STYLE: Any = {"color": "#d55e00", "marker": "*", "mec": "black", "markersize": 15}
_SUGGESTION: Any = {"color": "#d55e00", "ls": "--", "lw": 1.5}
_BARS: Any = {"color": "black", "marker": "o", "markersize": 4, "capsize": 3, "lw": 1.5}
_LIMIT: Any = {"color": "0.4", "ls": ":", "lw": 1.0}
_CLIPPED_STYLE: Any = {"mfc": "white", "mec": "black", "ls": "none"}
# The smaller marker has the higher `zorder`: both can be at the same point.
_LOWEST: Any = {"marker": "v", "markersize": 9, "zorder": 5, **_CLIPPED_STYLE}
_SUGGESTED: Any = {"marker": "*", "markersize": 14, "zorder": 4, **_CLIPPED_STYLE}
_DIVERGED: Any = {"facecolor": "white", "edgecolor": "0.4", "hatch": "xxx"}
_MARGIN = 0.03  # fraction of the axis at both ends, so that markers are not cut off
# Maximum numbers of columns and rows for which losses are written into the cells.
_MAX_COLUMNS, _MAX_ROWS = 12, 20
_MAX_TICKS = 12
_MAX_MARKERS = 50  # maximum number of rates that are drawn with markers


@dataclass(frozen=True, kw_only=True)
class SearchPoints:
    """Settings and losses of K runs, for `plot_search`.

    Attributes:
        settings: values of the K runs by field; numbers or JSON-serializable values.
        losses: [K], float64: loss of each run; infinite if the run diverged.
        steps: [K], int: step of the loss.
        is_ended: [K], bool: whether the step is the last one of the run.
        label: label of the losses.
        best: index of the run with the lowest loss; None if all diverged.
    """

    settings: Mapping[str, Sequence[Any]]
    losses: np.ndarray
    steps: np.ndarray
    is_ended: np.ndarray
    label: str
    best: int | None


def plot_search(points: SearchPoints, path: Path | str | None = None) -> "Figure":
    """Plots losses over the fields that were varied.

    A grid of two fields is shown as a heat map. Otherwise there is a panel for each
    field, with a marker for each run. Fields with a single value are left out.

    Args:
        points: settings and losses of the runs.
        path: file to which the figure is also written, `.png`, `.svg` or `.pdf`; its
            folder must exist.

    Returns:
        The figure, 800 pixels wide.

    Raises:
        ValueError: if no figure can be written to `path`.
    """
    path = _figure.checked_figure_path(path)
    named = {
        name: _numbers_or_names(values) for name, values in points.settings.items()
    }
    varied = {name: values for name, values in named.items() if len(set(values)) > 1}
    shown = varied or named
    if len(shown) == 2 and _is_grid(list(shown.values())):
        return _figure.save_figure(_heat_map(points, shown), path)
    labels = [points.label] * len(shown)
    figure, panels = _figure.stacked_panels(1.0 + 2.6 * len(shown), labels)
    for panel, (name, values) in zip(panels, shown.items(), strict=True):
        _draw_field(panel, points, values, is_alone=len(shown) == 1)
        panel.set_xlabel(name)
    handles, _ = panels[0].get_legend_handles_labels()
    _figure.legend_above(figure, handles, columns=4)
    _figure.add_grid_and_xlabel(panels, panels[-1].get_xlabel(), margin=_MARGIN)
    return _figure.save_figure(figure, path)


def plot_losses_by_rate(
    rates: np.ndarray,
    losses: np.ndarray,
    *,
    suggestion: float | None,
    title: str,
    path: Path | str | None = None,
) -> "Figure":
    """Plots losses over learning rates, and marks the suggested rate.

    Args:
        rates: [n], in increasing order.
        losses: [n]; infinite if a run diverged.
        suggestion: suggested rate; None for none.
        title: title of the figure; wrapped at 100 characters.
        path: file to which the figure is also written, `.png`, `.svg` or `.pdf`; its
            folder must exist.

    Returns:
        The figure, 800 pixels wide.

    Raises:
        ValueError: if no figure can be written to `path`.
    """
    path = _figure.checked_figure_path(path)
    figure, (panel,) = _figure.stacked_panels(4.4, ["loss"])
    finite = np.isfinite(losses)
    marker = "o" if len(rates) <= _MAX_MARKERS else ""
    style = {**_DOTS, "lw": 1.2, "marker": marker}
    panel.plot(rates[finite], losses[finite], label="loss", **style)
    _figure.mark_diverged(panel, rates[~finite])
    if suggestion is not None:
        panel.axvline(suggestion, label=f"suggestion: {suggestion:g}", **_SUGGESTION)
    panel.set_xscale("log")
    _figure.use_log_scale_if_skewed(panel, losses)
    panel.set_title(textwrap.fill(title, 100), loc="left", fontsize=9)
    _figure.legend_above(figure)
    _figure.add_grid_and_xlabel([panel], "learning rate", margin=_MARGIN)
    return _figure.save_figure(figure, path)


def plot_losses_by_decay(
    decays: np.ndarray,
    training: np.ndarray,
    eval_loss: np.ndarray,
    error: np.ndarray,
    *,
    best: int,
    suggested: int,
    path: Path | str | None = None,
) -> "Figure":
    """Plots mean losses of a cross-validation over weight decay.

    Args:
        decays: [D], in increasing order.
        training: [D], mean training losses; infinite if a run diverged.
        eval_loss: [D], mean evaluation losses; infinite if a run diverged.
        error: [D], standard errors of the evaluation losses.
        best: index of the decay with the lowest evaluation loss.
        suggested: index of the suggested decay.
        path: file to which the figure is also written, `.png`, `.svg` or `.pdf`; its
            folder must exist.

    Returns:
        The figure, 800 pixels wide.

    Raises:
        ValueError: if no figure can be written to `path`.
    """
    path = _figure.checked_figure_path(path)
    has_diverged = ~np.isfinite(eval_loss)
    training, eval_loss = (
        np.where(has_diverged, np.nan, y) for y in (training, eval_loss)
    )
    figure, (panel,) = _figure.stacked_panels(4.0, ["mean loss"])
    label = "evaluation, with standard error"
    panel.errorbar(decays, eval_loss, error, label=label, **_BARS)
    _figure.draw_line(panel, decays, training, index=1, label="training")
    limit, label = eval_loss[best] + error[best], "lowest, plus its standard error"
    panel.axhline(limit, label=label, **_LIMIT)
    for name, index, style in (
        ("lowest", best, _LOWEST),
        ("suggested", suggested, _SUGGESTED),
    ):
        label = f"{name}: {decays[index]:g}"
        panel.plot(decays[index], eval_loss[index], label=label, **style)
    _figure.mark_diverged(panel, decays[has_diverged])
    _figure.use_log_scale_if_skewed(panel, training, eval_loss)
    _figure.legend_above(figure)
    _scale_decays(panel, decays)
    _figure.add_grid_and_xlabel([panel], "weight decay")
    return _figure.save_figure(figure, path)


def _numbers_or_names(settings: Sequence[Any]) -> list[float | str]:
    """Returns settings as numbers if all are numbers, otherwise as strings."""
    if all(isinstance(s, Real) and not isinstance(s, bool) for s in settings):
        return [float(setting) for setting in settings]
    return [s if isinstance(s, str) else json.dumps(s) for s in settings]


def _distinct(values: Sequence[float | str]) -> list[Any]:
    """Returns the distinct values: numbers sorted, names in their first order."""
    unique_values: list[Any] = list(dict.fromkeys(values))
    return (
        sorted(unique_values) if isinstance(unique_values[0], float) else unique_values
    )


def _is_grid(columns: Sequence[Sequence[float | str]]) -> bool:
    """Returns True if every combination of the values occurs exactly once."""
    tried = list(zip(*columns, strict=True))
    return sorted(map(str, tried)) == sorted(
        map(str, itertools.product(*map(_distinct, columns)))
    )


def _draw_field(
    panel: "Axes",
    points: SearchPoints,
    values: Sequence[float | str],
    *,
    is_alone: bool,
) -> None:
    """Draws the losses of all runs over one field."""
    names = [] if isinstance(values[0], float) else _distinct(values)
    x = np.array([names.index(v) if names else v for v in values], np.float64)
    losses, finite = points.losses, np.isfinite(points.losses)
    order = np.argsort(x, kind="stable")
    ended = order[(finite & points.is_ended)[order]]
    style = _DOTS if is_alone and not names else {**_DOTS, "ls": "none"}
    panel.plot(x[ended], losses[ended], label="trained to the end", **style)
    dropped = finite & ~points.is_ended
    if dropped.any():
        label = "dropped after fewer steps"
        panel.plot(
            x[dropped], losses[dropped], label=label, ls="none", **_DROPPED_STYLE
        )
    _figure.mark_diverged(panel, x[~finite])
    if points.best is not None:
        best = [points.best]
        label = f"best: {losses[points.best]:.4g}"
        panel.plot(x[best], losses[best], label=label, ls="none", **_BEST_STYLE)
    # Numbers get a logarithmic axis if they are positive and most of them are much
    # smaller than the largest, as for learning rates.
    if names:
        panel.set_xticks(range(len(names)), names)
        panel.set_xlim(-0.5, len(names) - 0.5)
    elif min(x) > 0 and max(x) >= 20 * min(x) and np.median(x) < max(x) / 4:
        panel.set_xscale("log")
    _figure.use_log_scale_if_skewed(panel, losses[finite])


def _heat_map(
    points: SearchPoints, values: Mapping[str, Sequence[float | str]]
) -> "Figure":
    """Draws a grid of two fields; the columns are the field with more values."""
    from matplotlib.colors import Normalize
    from matplotlib.patches import Patch, Rectangle

    across, down = sorted(values, key=lambda name: -len(set(values[name])))
    columns, rows = _distinct(values[across]), _distinct(values[down])
    run = np.zeros((len(rows), len(columns)), int)
    for i, (x, y) in enumerate(zip(values[across], values[down], strict=True)):
        run[rows.index(y), columns.index(x)] = i
    losses = points.losses[run]
    figure = _figure.new_figure(1.8 + min(max(0.5 * len(rows), 1.5), 8.0))
    panel = figure.subplots()
    norm = Normalize(*_colour_range(losses))
    style: Any = {"cmap": _figure.HEAT_MAP_COLOURS, "norm": norm, "edgecolors": "white"}
    mesh = panel.pcolormesh(np.ma.masked_invalid(losses), **style)
    is_above = (losses[np.isfinite(losses)] > norm.vmax).any()
    extend = "max" if is_above else "neither"
    figure.colorbar(mesh, ax=panel, label=points.label, extend=extend)
    panel.set_xticks(np.arange(len(columns)) + 0.5, list(map(_format_value, columns)))
    panel.set_yticks(np.arange(len(rows)) + 0.5, list(map(_format_value, rows)))
    panel.set_xlabel(across)
    panel.set_ylabel(down)
    if len(columns) > _MAX_COLUMNS:
        panel.tick_params("x", labelrotation=90)
    elif len(rows) <= _MAX_ROWS:
        _write_losses(panel, points, run, norm)
    handles: list[Any] = []
    if np.isinf(losses).any():
        for row, column in np.argwhere(np.isinf(losses)):
            panel.add_patch(Rectangle((column, row), 1, 1, **_DIVERGED))
        handles.append(Patch(label="diverged", **_DIVERGED))
    if points.best is not None:
        ((row, column),) = np.argwhere(run == points.best)
        # A white frame on a wider black one is visible on any colour.
        for colour, width in (("black", 5), ("white", 2.5)):
            framed: Any = {"edgecolor": colour, "linewidth": width, "zorder": 3}
            cell = Rectangle((column, row), 1, 1, fill=False, clip_on=False, **framed)
            panel.add_patch(cell)
        best = f"best: {points.losses[points.best]:.4g}"
        handles.append(Patch(fill=False, edgecolor="black", linewidth=2, label=best))
    _figure.legend_above(figure, handles)
    return figure


def _colour_range(losses: np.ndarray) -> tuple[float, float]:
    """Returns the losses of the darkest and the lightest colour.

    The upper limit is lowered if a few losses are much larger than the others, which
    would otherwise have indistinguishable colours.
    """
    finite = losses[np.isfinite(losses)]
    if len(finite) == 0:
        return 0.0, 1.0
    low, middle, highest = np.min(finite), np.median(finite), np.max(finite)
    high = min(highest, low + 4 * (middle - low)) if middle > low else highest
    return float(low), float(high if high > low else low + 1e-6)


def _write_losses(
    panel: "Axes", points: SearchPoints, run: np.ndarray, norm: Any
) -> None:
    """Writes each loss into its cell, with its step if the run was dropped."""
    for (row, column), i in np.ndenumerate(run):
        loss = points.losses[i]
        if not np.isfinite(loss):
            continue
        # Runs that were dropped by successive halving have a loss after fewer steps.
        step = "" if points.is_ended[i] else f"\nstep {points.steps[i]:,}"
        style: Any = {"ha": "center", "va": "center", "fontsize": 8}
        style["fontstyle"] = "italic" if step else "normal"
        style["color"] = "white" if norm(loss) < 0.5 else "black"
        panel.text(column + 0.5, row + 0.5, f"{loss:.3f}{step}", **style)


def _format_value(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else value


def _scale_decays(panel: "Axes", decays: np.ndarray) -> None:
    """Makes the horizontal axis logarithmic."""
    # A decay of 0 is shown to the left of the smallest positive decay: the "symlog"
    # scale is linear between them.
    positive = decays[decays > 0]
    if len(positive) == len(decays):
        panel.set_xscale("log")
    elif len(positive):
        panel.set_xscale("symlog", linthresh=positive[0], linscale=0.5)
    shown = decays[:: -(-len(decays) // _MAX_TICKS)]
    panel.set_xticks(shown, [f"{decay:.3g}" for decay in shown])
    panel.minorticks_off()
