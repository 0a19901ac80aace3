"""Common style of all figures, and functions that save them.

Figures are created without pyplot: no window system is used and no global state of
matplotlib is changed. A notebook displays a figure that is the last expression of a
cell. All figures are legible in black and white: lines differ in dashes and markers as
well as in colour, and the colours of heat maps range from dark to light.
"""

import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._io import atomic_write, check_parent_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FORMATS = (".png", ".svg", ".pdf")
_WIDTH = 8.0  # inches, of 100 pixels each
_DOTS_PER_INCH = 100

# A perceptually uniform colour map of matplotlib, legible in greyscale.
HEAT_MAP_COLOURS = "cividis"

# The palette of Okabe and Ito, which is safe for colour-blind readers, and five dash
# patterns.
_COLOURS = ("#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7")
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
_MARKERS = ("", "o", "s", "^", "D", "v", "P", "X")


def checked_figure_path(path: Path | str | None) -> Path | None:
    """Checks the path of a figure; None is returned unchanged.

    Raises:
        ValueError: if its folder does not exist or is not writable, or its suffix is
            not a supported format.
    """
    if path is None:
        return None
    path = Path(path)
    check_parent_folder(path)
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(
            f"`path` must end with one of {', '.join(_FORMATS)}, got {str(path)!r}."
        )
    return path


def new_figure(height: float) -> "Figure":
    """Returns an empty figure, 8 inches wide.

    Args:
        height: height in inches.
    """
    # Imported here, because importing matplotlib takes about a second.
    from matplotlib.figure import Figure

    figure = Figure((_WIDTH, height), dpi=_DOTS_PER_INCH, layout="constrained")
    # IPython displays a `Figure` only after pyplot has been imported. It calls
    # `_repr_png_` of any object.
    figure._repr_png_ = functools.partial(_png, figure)  # type: ignore[attr-defined]  # for IPython
    return figure


def stacked_panels(
    height: float, labels: Sequence[str], heights: Sequence[float] | None = None
) -> tuple["Figure", list["Axes"]]:
    """Returns a figure with panels from top to bottom, and the list of its panels.

    Args:
        height: height of the figure in inches.
        labels: labels of the vertical axes, from top to bottom.
        heights: relative heights of panels that share a horizontal axis of steps; None
            for panels of equal height with separate horizontal axes.
    """
    figure = new_figure(height)
    panels = figure.subplots(
        len(labels), sharex=heights is not None, squeeze=False, height_ratios=heights
    )[:, 0]
    for panel, label in zip(panels, labels, strict=True):
        panel.set_ylabel(label)
    return figure, list(panels)


def draw_line(
    panel: "Axes", x: np.ndarray, y: np.ndarray, *, index: int, label: str
) -> None:
    """Plots a line in the style of `index`; styles 0 to 24 are distinct."""
    style: Any = {
        "color": _COLOURS[index % len(_COLOURS)],
        "linestyle": _DASHES[(index + index // len(_COLOURS)) % len(_DASHES)],
        # With a fractional `markevery`, matplotlib raises an error for a line without
        # finite points.
        "marker": _MARKERS[index % len(_MARKERS)] if np.isfinite(y).any() else "",
        # About eight markers, at different positions for each line, so that they are
        # visible on lines that coincide.
        "markevery": (0.125 * (index % 5) / 5, 0.125),
    }
    panel.plot(x, y, label=label, lw=1.5, mfc="white", markersize=5, **style)


def add_grid_and_xlabel(
    panels: Sequence["Axes"], xlabel: str = "step", *, margin: float = 0.01
) -> None:
    """Adds the grid and the label of the horizontal axis.

    Args:
        panels: panels from top to bottom.
        xlabel: label of the last panel. For "step", ticks are integers with thousands
            separators.
        margin: margin at both ends of the horizontal axis, as a fraction of its length.
    """
    for panel in panels:
        panel.grid(color="0.85", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.margins(x=margin)
    panels[-1].set_xlabel(xlabel)
    if xlabel == "step":
        format_step_axis(panels[-1])
    figure: Any = panels[0].get_figure()
    figure.align_ylabels()


def legend_above(
    figure: "Figure", handles: Sequence[Any] | None = None, *, columns: int = 3
) -> None:
    """Adds one legend for the whole figure, above its panels.

    Args:
        figure: the figure.
        handles: artists in the legend; None for all artists with a label.
        columns: number of columns of the legend.
    """
    given = {} if handles is None else {"handles": handles}
    figure.legend(loc="outside upper center", ncols=columns, frameon=False, **given)


def mark_diverged(panel: "Axes", x: np.ndarray) -> None:
    """Draws crosses at the upper edge of a panel, and widens the margin for them."""
    if len(x) == 0:
        return
    panel.margins(y=0.12)
    style: Any = {"color": "black", "marker": "x", "markersize": 7, "ls": "none"}
    # `get_xaxis_transform`: x in data units, y as a fraction of the panel's height.
    style |= {"transform": panel.get_xaxis_transform(), "label": "diverged"}
    panel.plot(x, np.full(len(x), 0.97), **style)


def format_step_axis(panel: "Axes", max_ticks: int = 8) -> None:
    """Labels the horizontal axis with integers with thousands separators."""
    panel.locator_params("x", integer=True, nbins=max_ticks)
    panel.xaxis.set_major_formatter("{x:,.0f}")


def use_log_scale_if_skewed(panel: "Axes", *columns: np.ndarray) -> None:
    """Makes the vertical axis logarithmic if few values are much larger than others.

    The criterion is a maximum above 20 times the median. Axes with negative values stay
    linear.
    """
    column = np.concatenate(columns)
    positive = column[np.isfinite(column) & (column > 0)]
    is_never_negative = len(positive) > 0 and not (column < 0).any()
    if is_never_negative and positive.max() > 20 * np.median(positive):
        panel.set_yscale("log")


def save_figure(figure: "Figure", path: Path | None) -> "Figure":
    """Writes a figure in the format of the path's suffix, and returns it.

    Args:
        figure: the figure.
        path: result of `checked_figure_path`; None to write nothing.
    """
    if path is not None:
        with atomic_write(path) as temporary:
            file_format = path.suffix[1:].lower()
            figure.savefig(temporary, dpi=_DOTS_PER_INCH, format=file_format)
    return figure


def _png(figure: "Figure") -> bytes:
    file = io.BytesIO()
    figure.savefig(file, dpi=_DOTS_PER_INCH, format="png")
    return file.getvalue()
