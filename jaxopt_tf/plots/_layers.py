"""The layers of a run drawn."""

import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._picture import HEAT, count_steps, new_figure, picture_path, save
from .._points import Points, all_rows, finite_mean, no_points, with_steps
from ..monitors import read_history
from ..training import Window
from ._run_log import is_ours, log_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Each is a pixel or less: the maps are some 250 wide.
_NUM_POINTS = 300
_MOST_NAMES = 150
_EMBEDDINGS = re.compile(r"(^|\.)(wte|wpe)(\.|$)|embed", re.IGNORECASE)


def plot_layers(folder: Path | str, path: Path | str | None = None) -> "Figure":
    """Draws what each layer did over time: gradient norm, and updates over parameters.

    Two maps with a row for each layer, in the order of the model as far as names tell
    it: embeddings, numbered layers, the others. Colours are logarithmic; where nothing
    was updated, as at a rate of 0, there is none. Of a long run neighbouring steps are
    put together into at most 600 columns.

    Args:
        folder: of a run with `log_layers`, or its `metrics.jsonl`.
        path: also write it there, as `.png`, `.svg` or `.pdf`; its folder must exist.

    Returns:
        The picture, 800 pixels wide; a notebook shows it.

    Raises:
        ValueError: if there is no run, its log cannot be read or has no layers in it,
            or no picture can be written to `path`.
    """
    path = None if path is None else picture_path(path)
    file = log_file(folder)
    names, rows = _read(file) if is_ours(file) else ([], np.empty((0, 1)))
    if not names:
        raise ValueError(
            f"`folder` must be of a run that logged its layers, got {str(folder)!r}, "
            "which did not. Train with `--log_layers`, or in code with "
            "`make_train_step(..., per_layer=True)`."
        )
    order = sorted(range(len(names)), key=lambda k: _place(names[k]))
    steps, maps = rows[:, 0], rows[:, 1:].reshape(len(rows), len(names), 2)[:, order]
    shown = _without_prefix([names[k] for k in order])
    figure = new_figure(1.8 + min(0.17 * len(names), 20.0))
    panels = figure.subplots(1, 2, sharey=True)
    for k, (panel, label) in enumerate(
        zip(
            panels,
            ("gradient norm\n(before clipping)", "update norm / parameter norm"),
            strict=True,
        )
    ):
        _draw(panel, steps, maps[:, :, k].T, label)
    stride = -(-len(shown) // _MOST_NAMES)
    panels[0].set_yticks(np.arange(len(shown))[::stride], shown[::stride], fontsize=8)
    panels[0].invert_yaxis()
    panels[0].set_ylabel("layer")
    if path is not None:
        save(figure, path)
    return figure


def _read(file: Path) -> tuple[list[str], np.ndarray]:
    """Names of layers, and [n, 1 + 2 layers]: step, and each one's two numbers."""
    names: list[str] = []
    points = no_points(1)
    for event in read_history(file):
        if isinstance(event, Window) and (names or event.metrics.layers):
            new = [name for name in event.metrics.layers if name not in names]
            if new:
                names = [*names, *new]
                points = _wider(points, 2 * len(new))
            points = with_steps(points, _row(event, names), finite_mean, _NUM_POINTS)
    return names, all_rows(points, finite_mean)


def _wider(points: Points, more: int) -> Points:
    """With further columns, of which nothing is known up to now."""
    rows, rest = (
        np.pad(part, ((0, 0), (0, more)), constant_values=np.nan)
        for part in (points.rows, points.rest)
    )
    return Points(rows, rest, points.stride)


def _row(window: Window, names: list[str]) -> np.ndarray:
    layers: dict[str, Any] = window.metrics.layers  # of numpy arrays
    n = len(window.metrics.loss)
    columns = [window.first_step + np.arange(n)]
    for name in names:
        norms = layers.get(name)
        if norms is None:
            columns += 2 * [np.full(n, np.nan)]
        else:
            params = np.where(norms.params > 0, norms.params, np.nan)
            columns += [norms.grads, norms.updates / params]
    return np.stack(columns, axis=1).astype(np.float64)


def _draw(panel: "Axes", steps: np.ndarray, values: np.ndarray, label: str) -> None:
    from matplotlib.colors import LogNorm

    positive = values[np.isfinite(values) & (values > 0)]
    # Without the outermost: a single step would take all colours.
    low, high = np.percentile(positive, (0.5, 99.5)) if len(positive) else (0.1, 1.0)
    mesh = panel.pcolormesh(
        _edges(steps),
        np.arange(len(values) + 1) - 0.5,
        np.ma.masked_where(~(values > 0), values),
        cmap=HEAT,
        norm=LogNorm(low, max(high, low * 1.01)),
        rasterized=True,
    )
    panel.set_facecolor("white")
    panel.set_xlabel("step")
    count_steps(panel, most=4)
    figure: Any = panel.get_figure()
    # A fifth of an inch away, however many layers there are.
    apart = 0.2 / figure.get_figheight()
    figure.colorbar(
        mesh,
        ax=panel,
        location="top",
        pad=apart,
        label=label,
        extend="both",
        aspect=12,
    )


def _edges(steps: np.ndarray) -> np.ndarray:
    """[n + 1]: between neighbours, and as far out at both ends."""
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    between = (steps[:-1] + steps[1:]) / 2
    first, last = 2 * steps[0] - between[0], 2 * steps[-1] - between[-1]
    return np.concatenate([[first], between, [last]])


def _place(name: str) -> tuple:
    """Embeddings first, what is numbered by its numbers, the rest last."""
    parts = re.split(r"(\d+)", name)
    natural = [(int(p), "") if p.isdigit() else (-1, p) for p in parts]
    is_numbered = len(parts) > 1
    return (0 if _EMBEDDINGS.search(name) else 1 if is_numbered else 2), natural


def _without_prefix(names: list[str]) -> list[str]:
    """Without the modules that all of them are in."""
    modules = [name.split(".")[:-1] for name in names]
    shared = itertools.takewhile(
        lambda same: len(set(same)) == 1, zip(*modules, strict=False)
    )
    num_shared = len(list(shared))
    return [name.split(".", num_shared)[-1] for name in names]
