"""The style of all pictures, and how they are saved.

A picture is a matplotlib `Figure` made without pyplot: no window system is used and no
global state of matplotlib is changed. A notebook shows it as the last expression of a
cell. All pictures can be read in black and white: lines differ in dashes and markers
besides their colours, and the colours of heat maps go from dark to light.
"""

import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._io import atomic_write, check_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FORMATS = (".png", ".svg", ".pdf")
_WIDTH = 8.0  # inches, of 100 pixels each
_DOTS_PER_INCH = 100

# From dark to light at a steady pace, so that it can be read in grey.
HEAT = "cividis"

# The palette of Okabe and Ito, which colour-blind readers can tell apart, and five
# kinds of dashes.
_COLOURS = ("#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7")
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
_MARKERS = ("", "o", "s", "^", "D", "v", "P", "X")


def picture_path(path: Path | str | None) -> Path | None:
    """Returns the path of a picture; None for one that is not saved.

    Raises:
        ValueError: unless its folder exists and can be written to, and its name ends
            with a format of pictures.
    """
    if path is None:
        return None
    path = Path(path)
    check_folder(path)
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(
            f"`path` must end with one of {', '.join(_FORMATS)}, got {str(path)!r}."
        )
    return path


def new_figure(height: float) -> "Figure":
    """Returns an empty picture, 8 inches wide.

    Args:
        height: in inches.
    """
    # Imported here, so that importing the package does not take matplotlib's second.
    from matplotlib.figure import Figure

    figure = Figure((_WIDTH, height), dpi=_DOTS_PER_INCH, layout="constrained")
    # IPython shows a bare figure only once pyplot has been imported, but always
    # calls this method.
    figure._repr_png_ = functools.partial(_png, figure)  # type: ignore[attr-defined]
    return figure


def stacked_panels(
    height: float, labels: Sequence[str], heights: Sequence[float] | None = None
) -> tuple["Figure", list["Axes"]]:
    """Returns a picture of panels above each other, and the panels.

    Args:
        height: of the picture, in inches.
        labels: of the vertical axes, from top to bottom.
        heights: of the panels in proportion, above one axis of steps; None for panels
            of one height, each with a horizontal axis of its own.
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
    """Plots the line of this index, from 0; the first 25 differ in colour or dashes."""
    style: Any = {
        "color": _COLOURS[index % len(_COLOURS)],
        "linestyle": _DASHES[(index + index // len(_COLOURS)) % len(_DASHES)],
        # Matplotlib fails to place markers on a line that is nowhere finite.
        "marker": _MARKERS[index % len(_MARKERS)] if np.isfinite(y).any() else "",
        # About eight, at other places for each line: lines may run together.
        "markevery": (0.125 * (index % 5) / 5, 0.125),
    }
    panel.plot(x, y, label=label, lw=1.5, mfc="white", markersize=5, **style)


def finish(
    panels: Sequence["Axes"], xlabel: str = "step", *, margin: float = 0.01
) -> None:
    """Adds the grid, and the label of the horizontal axis.

    Args:
        panels: from top to bottom.
        xlabel: of the last panel; steps have separators between thousands.
        margin: at both ends of the horizontal axis, as a share of its length.
    """
    for panel in panels:
        panel.grid(color="0.85", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.margins(x=margin)
    panels[-1].set_xlabel(xlabel)
    if xlabel == "step":
        count_steps(panels[-1])
    figure: Any = panels[0].get_figure()
    figure.align_ylabels()


def legend_above(
    figure: "Figure", handles: Sequence[Any] | None = None, *, columns: int = 3
) -> None:
    """Adds one legend for the whole picture, above its panels.

    Args:
        figure: the picture.
        handles: what is listed; None for all that has a label.
        columns: of the legend.
    """
    given = {} if handles is None else {"handles": handles}
    figure.legend(loc="outside upper center", ncols=columns, frameon=False, **given)


def mark_diverged(panel: "Axes", x: np.ndarray) -> None:
    """Draws crosses at the upper edge of a panel, and widens the margin for them."""
    if len(x) == 0:
        return
    panel.margins(y=0.12)
    style: Any = {"color": "black", "marker": "x", "markersize": 7, "ls": "none"}
    style |= {"transform": panel.get_xaxis_transform(), "label": "diverged"}
    panel.plot(x, np.full(len(x), 0.97), **style)


def count_steps(panel: "Axes", most: int = 8) -> None:
    """Labels the horizontal axis with integers that have separators of thousands."""
    panel.locator_params("x", integer=True, nbins=most)
    panel.xaxis.set_major_formatter("{x:,.0f}")


def scale(panel: "Axes", *columns: np.ndarray) -> None:
    """Makes the axis logarithmic if a few large values would hide all others."""
    column = np.concatenate(columns)
    positive = column[np.isfinite(column) & (column > 0)]
    is_never_negative = len(positive) > 0 and not (column < 0).any()
    if is_never_negative and positive.max() > 20 * np.median(positive):
        panel.set_yscale("log")


def saved(figure: "Figure", path: Path | None) -> "Figure":
    """Returns the picture, after writing it in the format that the name ends with.

    Args:
        figure: the picture.
        path: from `picture_path`; None to write nothing.
    """
    if path is not None:
        with atomic_write(path) as temporary:
            kind = path.suffix[1:].lower()
            figure.savefig(temporary, dpi=_DOTS_PER_INCH, format=kind)
    return figure


def _png(figure: "Figure") -> bytes:
    file = io.BytesIO()
    figure.savefig(file, dpi=_DOTS_PER_INCH, format="png")
    return file.getvalue()
