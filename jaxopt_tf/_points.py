"""Rows of numbers, one for each step, in a bounded number of points."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# Points that are kept at most are twice as many; a picture is 800 pixels wide.
_NUM_POINTS = 2_000

# [n, size, c] -> [n, c]: puts neighbours together.
Merge = Callable[[np.ndarray], np.ndarray]


class Points(NamedTuple):
    """A run of any length in a bounded number of points."""

    rows: np.ndarray  # [n, c], float64: each of `stride` steps
    rest: np.ndarray  # [m, c], m < stride: steps of the point that is not full yet
    stride: int


def no_points(num_columns: int) -> Points:
    """A run that has not begun."""
    nothing = np.empty((0, num_columns))
    return Points(nothing, nothing, 1)


def with_steps(
    points: Points, steps: np.ndarray, merge: Merge, num_points: int = _NUM_POINTS
) -> Points:
    """The run gone on.

    Args:
        points: what it has come to.
        steps: [n, c], a row for each further step.
        merge: puts neighbours together.
        num_points: kept at least, of a run that has as many, and up to twice as many.
    """
    rest = np.concatenate([points.rest, steps])
    rows, stride = points.rows, points.stride
    num_whole = len(rest) // stride * stride
    if num_whole == 0:  # as of most windows of a long run: nothing is copied
        return Points(rows, rest, stride)
    rows = np.concatenate([rows, _merged(rest[:num_whole], stride, merge)])
    rest = rest[num_whole:]
    # Of an odd number the last would be left alone: it waits for one more.
    if len(rows) >= 2 * num_points and len(rows) % 2 == 0:
        rows, stride = _merged(rows, 2, merge), 2 * stride
    return Points(rows, rest, stride)


def all_rows(points: Points, merge: Merge) -> np.ndarray:
    """[n, c]: all that there is, the last point of fewer steps."""
    last = _merged(points.rest, len(points.rest), merge)
    return np.concatenate([points.rows, last])


def _merged(rows: np.ndarray, size: int, merge: Merge) -> np.ndarray:
    """Puts each `size` neighbours together: [n, c] -> [n / size, c]."""
    if len(rows) == 0:
        return rows
    return merge(rows.reshape(-1, size, rows.shape[1]))


def finite_mean(groups: np.ndarray) -> np.ndarray:
    """Mean over axis 1 of what is finite; NaN where nothing is."""
    is_finite = np.isfinite(groups)
    total = np.where(is_finite, groups, 0.0).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return total / is_finite.sum(axis=1)
