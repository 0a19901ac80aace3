"""Losses of every combination of two fields, as colours."""

from typing import TYPE_CHECKING, Any

import numpy as np

from .._picture import HEAT, new_figure
from ._trials import shown
from ._tried import Tried

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Cells of a row or a column up to which numbers are legible in them.
_MOST_ACROSS, _MOST_DOWN = 12, 20


def draw_heat_map(tried: Tried) -> "Figure":
    """A row for each value of the one field, a column for each of the other.

    Args:
        tried: every combination of two fields.
    """
    from matplotlib.colors import Normalize
    from matplotlib.patches import Patch, Rectangle

    (x_name, x_values), (y_name, y_values) = _with_more_across(tried)
    columns, rows = _in_order(x_values), _in_order(y_values)
    run = np.zeros((len(rows), len(columns)), int)
    for i, (x, y) in enumerate(zip(x_values, y_values, strict=True)):
        run[rows.index(y), columns.index(x)] = i
    losses = tried.losses[run]
    figure = new_figure(1.8 + min(max(0.5 * len(rows), 1.5), 8.0))
    panel = figure.subplots()
    low, high = _ends(losses)
    norm = Normalize(low, high)
    mesh = panel.pcolormesh(
        np.ma.masked_invalid(losses), cmap=HEAT, norm=norm, edgecolors="white"
    )
    above = "max" if (losses[np.isfinite(losses)] > high).any() else "neither"
    figure.colorbar(mesh, ax=panel, label=tried.label, extend=above)
    panel.set_xticks(np.arange(len(columns)) + 0.5, list(map(shown, columns)))
    panel.set_yticks(np.arange(len(rows)) + 0.5, list(map(shown, rows)))
    panel.set_xlabel(x_name)
    panel.set_ylabel(y_name)
    if len(columns) > _MOST_ACROSS:
        panel.tick_params("x", labelrotation=90)
    elif len(rows) <= _MOST_DOWN:
        _write_losses(panel, tried, run, norm)
    handles: list[Any] = []
    if np.isinf(losses).any():
        diverged: Any = {"facecolor": "white", "edgecolor": "0.4", "hatch": "xxx"}
        for row, column in zip(*np.nonzero(np.isinf(losses)), strict=True):
            panel.add_patch(Rectangle((column, row), 1, 1, **diverged))
        handles.append(Patch(label="diverged", **diverged))
    if tried.best is not None:
        ((row, column),) = np.argwhere(run == tried.best)
        # White in black, to be seen on any colour.
        for colour, width in (("black", 5), ("white", 2.5)):
            panel.add_patch(
                Rectangle(
                    (column, row),
                    1,
                    1,
                    fill=False,
                    edgecolor=colour,
                    linewidth=width,
                    zorder=3,
                    clip_on=False,
                )
            )
        best = f"best: {tried.losses[tried.best]:.4g}"
        handles.append(Patch(fill=False, edgecolor="black", linewidth=2, label=best))
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False)
    return figure


def _with_more_across(tried: Tried) -> list[tuple[str, list[float | str]]]:
    """The two fields, first the one with more values."""
    return sorted(tried.values.items(), key=lambda item: -len(set(item[1])))


def _in_order(values: list[float | str]) -> list[Any]:
    """Each value once, numbers rising and names as they came."""
    once: list[Any] = list(dict.fromkeys(values))
    return sorted(once) if all(isinstance(v, float) for v in once) else once


def _ends(losses: np.ndarray) -> tuple[float, float]:
    """What the darkest and the lightest colour stand for.

    A few losses far above the others would leave these one colour.
    """
    finite = losses[np.isfinite(losses)]
    if len(finite) == 0:
        return 0.0, 1.0
    low, middle, most = np.min(finite), np.median(finite), np.max(finite)
    high = min(most, low + 4 * (middle - low)) if middle > low else most
    return float(low), float(high if high > low else low + 1e-6)


def _write_losses(panel: "Axes", tried: Tried, run: np.ndarray, norm: Any) -> None:
    for (row, column), i in np.ndenumerate(run):
        loss = tried.losses[i]
        if not np.isfinite(loss):
            continue
        is_ended = tried.is_ended[i]
        panel.text(
            column + 0.5,
            row + 0.5,
            f"{loss:.3f}" if is_ended else f"{loss:.3f}\nstep {tried.steps[i]:,}",
            ha="center",
            va="center",
            fontsize=8,
            fontstyle="normal" if is_ended else "italic",
            color="white" if norm(loss) < 0.5 else "black",
        )
