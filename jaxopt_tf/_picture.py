"""The one style of all pictures, and how they are saved.

A picture is a matplotlib `Figure` made without pyplot: no window system, no state of
matplotlib's touched. As the last expression of a notebook's cell it shows itself. All
of it can be read in black and white: lines differ in dashes and markers besides their
colours, and the colours of heat maps go from dark to light.
"""

import functools
import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._io import check_folder, whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FORMATS = (".png", ".svg", ".pdf")
_WIDTH = 8.0  # inches, of which each has 100 pixels
_DOTS_PER_INCH = 100

# From dark to light, at a steady pace: grey it says the same.
HEAT = "cividis"

# Okabe and Ito's, which the colour-blind tell apart, and five kinds of dashes.
_COLOURS = ("#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7")
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
_MARKERS = ("", "o", "s", "^", "D", "v", "P", "X")


def picture_path(path: Path | str) -> Path:
    """The path of a picture.

    Raises:
        ValueError: unless its folder is there and can be written to, and it ends as a
            picture does.
    """
    path = Path(path)
    check_folder(path)
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(
            f"`path` must end with one of {', '.join(_FORMATS)}, got {str(path)!r}."
        )
    return path


def new_figure(height: float) -> "Figure":
    """An empty picture, 8 inches wide.

    Args:
        height: in inches.
    """
    # Here, so that the package is there without matplotlib's second.
    from matplotlib.figure import Figure

    figure = Figure((_WIDTH, height), dpi=_DOTS_PER_INCH, layout="constrained")
    # IPython shows a bare figure only once pyplot has been imported; this, always.
    figure._repr_png_ = functools.partial(_png, figure)  # type: ignore[attr-defined]
    return figure


def draw_line(
    panel: "Axes", x: np.ndarray, y: np.ndarray, *, index: int, label: str
) -> None:
    """Plots the line of this index, from 0; the first 25 differ in colour or dashes."""
    panel.plot(
        x,
        y,
        label=label,
        color=_COLOURS[index % len(_COLOURS)],
        linestyle=_DASHES[(index + index // len(_COLOURS)) % len(_DASHES)],
        linewidth=1.5,
        # Matplotlib fails to place markers on a line that is nowhere finite.
        marker=_MARKERS[index % len(_MARKERS)] if np.isfinite(y).any() else "",
        # Some eight, and not on top of each other where lines run together.
        markevery=(0.125 * (index % 5) / 5, 0.125),
        markerfacecolor="white",
        markersize=5,
    )


def finish(panels: Iterable["Axes"], xlabel: str = "step") -> None:
    """The grid, and the axis that panels above each other share.

    Args:
        panels: from top to bottom.
        xlabel: of the last one; steps have separators between thousands.
    """
    panels = list(panels)
    for panel in panels:
        panel.grid(color="0.85", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.margins(x=0.01)
    panels[-1].set_xlabel(xlabel)
    if xlabel == "step":
        count_steps(panels[-1])
    figure: Any = panels[0].get_figure()  # of which each panel is one
    figure.align_ylabels()


def mark_diverged(panel: "Axes", x: np.ndarray) -> None:
    """Crosses at the upper edge, wherever that is, and room for them."""
    if len(x) == 0:
        return
    panel.margins(y=0.12)
    panel.plot(
        x,
        np.full(len(x), 0.97),
        transform=panel.get_xaxis_transform(),
        color="black",
        marker="x",
        markersize=7,
        linestyle="none",
        label="diverged",
    )


def count_steps(panel: "Axes", most: int = 8) -> None:
    """Whole numbers on the horizontal axis, with separators between thousands."""
    panel.locator_params("x", integer=True, nbins=most)
    panel.xaxis.set_major_formatter("{x:,.0f}")


def scale(panel: "Axes", *columns: np.ndarray) -> None:
    """A logarithmic axis where a few large values would hide all others."""
    column = np.concatenate(columns)
    positive = column[np.isfinite(column) & (column > 0)]
    is_never_negative = len(positive) > 0 and not (column < 0).any()
    if is_never_negative and positive.max() > 20 * np.median(positive):
        panel.set_yscale("log")


def save(figure: "Figure", path: Path) -> None:
    """Writes it whole or not at all, in the format that the name ends with."""
    with whole_file(path) as new_path:
        figure.savefig(new_path, dpi=_DOTS_PER_INCH, format=path.suffix[1:].lower())


def _png(figure: "Figure") -> bytes:
    file = io.BytesIO()
    figure.savefig(file, dpi=_DOTS_PER_INCH, format="png")
    return file.getvalue()
