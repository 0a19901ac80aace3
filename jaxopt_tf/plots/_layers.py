"""Heat maps of the norms of each layer over the steps of a run."""

import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..monitors import read_history
from ..training import Window
from ._figure import (
    HEAT_MAP_COLOURS,
    checked_figure_path,
    format_step_axis,
    new_figure,
    save_figure,
)
from ._run_log import Downsampler, finite_mean, is_metrics_log, log_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Minimum number of columns of a long run; the maximum is twice this number. The maps
# are about 250 pixels wide, so that more columns would not be visible.
_NUM_POINTS = 300
_MAX_NAMES = 150  # maximum number of layers whose names are shown
_EMBEDDINGS = re.compile(r"(^|\.)(wte|wpe)(\.|$)|embed", re.IGNORECASE)


def plot_layers(folder: Path | str, path: Path | str | None = None) -> "Figure":
    """Plots gradient norms and relative updates of each layer over the steps of a run.

    The figure has two heat maps with a row for each layer. Embeddings come first, then
    numbered layers, then all others. The colour scale is logarithmic; zeros, such as
    updates at a learning rate of 0, are left blank. Neighbouring steps of a long run
    are merged into at most 600 columns.

    Args:
        folder: folder of a run with `log_layers`, or its `metrics.jsonl`.
        path: file to which the figure is also written, `.png`, `.svg` or `.pdf`; its
            folder must exist.

    Returns:
        The figure, 800 pixels wide.

    Raises:
        ValueError: if the folder contains no run, its log cannot be read or contains no
            layers, or no figure can be written to `path`.
    """
    path = checked_figure_path(path)
    file = log_file(folder)
    names, rows = _read(file) if is_metrics_log(file) else ([], np.empty((0, 1)))
    if not names:
        raise ValueError(
            f"`folder` must be of a run that logged its layers, got {str(folder)!r}, "
            "whose log contains none. Train with `--log_layers`, or in Python with "
            "`make_train_step(..., per_layer=True)`."
        )
    order = sorted(range(len(names)), key=lambda k: _sort_key(names[k]))
    steps, maps = rows[:, 0], rows[:, 1:].reshape(len(rows), len(names), 2)[:, order]
    shown = _without_prefix([names[k] for k in order])
    figure = new_figure(1.8 + min(0.17 * len(names), 20.0))
    panels = figure.subplots(1, 2, sharey=True)
    _draw(panels[0], steps, maps[:, :, 0].T, "gradient norm\n(before clipping)")
    _draw(panels[1], steps, maps[:, :, 1].T, "update norm / parameter norm")
    stride = -(-len(shown) // _MAX_NAMES)
    panels[0].set_yticks(np.arange(len(shown))[::stride], shown[::stride], fontsize=8)
    panels[0].invert_yaxis()
    panels[0].set_ylabel("layer")
    return save_figure(figure, path)


def _read(file: Path) -> tuple[list[str], np.ndarray]:
    """Returns the names of the layers, and rows, [n, 1 + 2 * number of layers].

    A row contains the step, then gradient norm and relative update of each layer.
    """
    names: list[str] = []
    points = Downsampler(1, finite_mean, _NUM_POINTS)
    for event in read_history(file):
        if isinstance(event, Window) and (names or event.metrics.layers):
            # After a resume, a run may log layers for the first time, or more layers.
            new = [name for name in event.metrics.layers if name not in names]
            names += new
            points.add_columns(2 * len(new))
            points.add(_rows_of(event, names))
    return names, points.rows()


def _rows_of(window: Window, names: list[str]) -> np.ndarray:
    # Norms of each layer, as NumPy arrays.
    layers: dict[str, Any] = window.metrics.layers
    rows = np.full((len(window.metrics.loss), 1 + 2 * len(names)), np.nan)
    rows[:, 0] = window.first_step + np.arange(len(rows))
    for column, name in enumerate(names):
        if name in layers:
            norms = layers[name]
            params = np.where(norms.params > 0, norms.params, np.nan)
            rows[:, 1 + 2 * column] = norms.grads
            rows[:, 2 + 2 * column] = norms.updates / params
    return rows


def _draw(panel: "Axes", steps: np.ndarray, values: np.ndarray, label: str) -> None:
    from matplotlib.colors import LogNorm

    positive = values[np.isfinite(values) & (values > 0)]
    # The extremes are excluded from the colour range, because a single outlier would
    # leave all other steps in one colour. `LogNorm` requires `low` < `high`.
    low, high = np.percentile(positive, (0.5, 99.5)) if len(positive) else (0.1, 1.0)
    shown, rows = np.ma.masked_where(~(values > 0), values), np.arange(len(values) + 1)
    style: Any = {"cmap": HEAT_MAP_COLOURS, "norm": LogNorm(low, max(high, low * 1.01))}
    mesh = panel.pcolormesh(_edges(steps), rows - 0.5, shown, rasterized=True, **style)
    panel.set_facecolor("white")
    panel.set_xlabel("step")
    format_step_axis(panel, max_ticks=4)
    figure: Any = panel.get_figure()
    # The colour bar is 0.2 inches above the map; `pad` is a fraction of the height of
    # the figure.
    colorbar = {"location": "top", "pad": 0.2 / figure.get_figheight(), "aspect": 12}
    figure.colorbar(mesh, ax=panel, label=label, extend="both", **colorbar)


def _edges(steps: np.ndarray) -> np.ndarray:
    """Returns the edges of the columns, halfway between neighbours; [n + 1]."""
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    between = (steps[:-1] + steps[1:]) / 2
    first, last = 2 * steps[0] - between[0], 2 * steps[-1] - between[-1]
    return np.concatenate([[first], between, [last]])


def _sort_key(name: str) -> tuple:
    """Sorts embeddings first, then layers by their numbers, then all others."""
    # Digits are compared as numbers, so that layer 10 follows layer 9.
    parts = re.split(r"(\d+)", name)
    natural = [(int(p), "") if p.isdigit() else (-1, p) for p in parts]
    is_numbered = len(parts) > 1
    return (0 if _EMBEDDINGS.search(name) else 1 if is_numbered else 2), natural


def _without_prefix(names: list[str]) -> list[str]:
    """Removes the leading modules that all names have in common."""
    modules = [name.split(".")[:-1] for name in names]
    shared = itertools.takewhile(
        lambda same: len(set(same)) == 1, zip(*modules, strict=False)
    )
    num_shared = len(list(shared))
    return [name.split(".", num_shared)[-1] for name in names]
