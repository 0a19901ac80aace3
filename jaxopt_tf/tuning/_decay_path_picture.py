"""A path over weight decay drawn."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .._picture import (
    draw_line,
    finish,
    mark_diverged,
    new_figure,
    picture_path,
    save,
    scale,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_TICKS = 12


def draw_decay_path(
    decays: np.ndarray,
    training: np.ndarray,
    held_out: np.ndarray,
    error: np.ndarray,
    *,
    best: int,
    suggested: int,
    path: Path | str | None = None,
) -> "Figure":
    """Draws mean losses over decay.

    Args:
        decays: [D], from the smallest on.
        training: [D], mean training losses; infinite where a run diverged.
        held_out: [D], mean held-out losses; infinite where a run diverged.
        error: [D], standard errors of the latter.
        best: number of the decay with the lowest.
        suggested: number of the decay that is suggested.
        path: also write it there.
    """
    path = None if path is None else picture_path(path)
    is_lost = ~np.isfinite(held_out)
    training, held_out = (np.where(is_lost, np.nan, y) for y in (training, held_out))
    figure = new_figure(4.0)
    panel = figure.subplots()
    panel.errorbar(
        decays,
        held_out,
        error,
        label="held-out, with standard error",
        color="black",
        marker="o",
        markersize=4,
        capsize=3,
        linewidth=1.5,
    )
    draw_line(panel, decays, training, index=1, label="training")
    panel.axhline(
        held_out[best] + error[best],
        label="lowest, plus its standard error",
        color="0.4",
        linestyle=":",
        linewidth=1.0,
    )
    for at, marker, label in ((best, "v", "lowest"), (suggested, "*", "suggested")):
        panel.plot(
            decays[at],
            held_out[at],
            marker,
            label=f"{label}: {decays[at]:g}",
            markersize=14 if marker == "*" else 9,
            markerfacecolor="white",
            markeredgecolor="black",
            zorder=4 if marker == "*" else 5,
        )
    mark_diverged(panel, decays[is_lost])
    panel.set_ylabel("mean loss")
    scale(panel, training, held_out)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    _scale_decays(panel, decays)
    finish([panel], "weight decay")
    if path is not None:
        save(figure, path)
    return figure


def _scale_decays(panel: "Axes", decays: np.ndarray) -> None:
    """A logarithmic axis, on which 0 stands a little left of the smallest above it."""
    positive = decays[decays > 0]
    if len(positive) == len(decays):
        panel.set_xscale("log")
    elif len(positive):
        panel.set_xscale("symlog", linthresh=positive[0], linscale=0.5)
    shown = decays[:: -(-len(decays) // _MOST_TICKS)]
    panel.set_xticks(shown, [f"{decay:.3g}" for decay in shown])
    panel.minorticks_off()
