"""Adafactor's row and column means, from torch's axes to those of our state and back.

Ours are kept as the layout that `adafactor_tf` was given sees the leaf. Torch's are
those of its own tensor. Where the two only order the axes differently, a mean over the
last axis there is one over the last axis here, or over the last but one.
"""

from typing import NamedTuple

import numpy as np

from ..optimizers import TorchLayout
from ._pieces import Piece, own_axes


class Source(NamedTuple):
    """Which of torch's two means one of ours is, and how its axes are ordered."""

    key: str  # "exp_avg_sq_row" or "exp_avg_sq_col"
    order: tuple[int, ...]  # of the mean's axes, those of torch in our order


class Factors(NamedTuple):
    """Where the two means of a leaf come from; None: it keeps the whole square."""

    row: Source
    col: Source


def factors(piece: Piece, ours: TorchLayout, num_axes: int) -> Factors | None:
    """How the means of one parameter of the leaf are carried.

    Raises:
        ValueError: if the two layouts do not share their means.
    """
    theirs_axes = own_axes(piece.layout, num_axes)
    our_axes = own_axes(ours, num_axes)
    if ours.stacked_axes != piece.layout.stacked_axes:
        raise ValueError(_message(piece, ours, "the stacked axes differ"))
    if len(theirs_axes) < 2 and len(our_axes) < 2:
        return None
    if len(theirs_axes) < 2 or len(our_axes) < 2:
        raise ValueError(_message(piece, ours, "only one of them has two axes"))
    if not piece.is_whole:
        raise ValueError(
            _message(piece, ours, "row and column means cannot be cut or joined")
        )
    row = _source(theirs_axes, our_axes, our_axes[-1])
    col = _source(theirs_axes, our_axes, our_axes[-2])
    if row is None or col is None:
        raise ValueError(_message(piece, ours, "they are means over other axes"))
    return Factors(row, col)


def to_ours(source: Source, mean: np.ndarray) -> np.ndarray:
    """Our mean from torch's."""
    return mean.transpose(source.order)


def from_ours(
    factors: Factors, key: str, row: np.ndarray, col: np.ndarray
) -> np.ndarray:
    """Torch's mean of this name from our two."""
    is_row = factors.row.key == key
    source, mean = (factors.row, row) if is_row else (factors.col, col)
    return mean.transpose(np.argsort(source.order, kind="stable"))


def _source(
    theirs: tuple[tuple[int, ...], ...],
    ours: tuple[tuple[int, ...], ...],
    mean_over: tuple[int, ...],
) -> Source | None:
    for key, place in (("exp_avg_sq_row", -1), ("exp_avg_sq_col", -2)):
        if theirs[place] == mean_over:
            left = [group for group in theirs if group != mean_over]
            wanted = [group for group in ours if group != mean_over]
            if sorted(left) == sorted(wanted):
                return Source(key, tuple(left.index(group) for group in wanted))
    return None


def _message(piece: Piece, ours: TorchLayout, why: str) -> str:
    return (
        f"`layouts` must see {piece.leaf!r} as torch does for Adafactor's row and "
        f"column means, got {ours!r} where torch's {piece.torch_name!r} is "
        f"{piece.layout!r}: {why}. Give `adafactor_tf` that layout."
    )
