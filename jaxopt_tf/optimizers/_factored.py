"""Second moments of a matrix by its rows and columns, and the step that they give.

A gradient is read for its rows, for its columns, for the size of the step and for the
step itself; nothing of its size is written in between. A compiler that meets one
expression in two of these passes would compute it once and keep it, in memory of its
own, which costs more than to compute it again. So the signs differ: each pass has
expressions that no other has, and the same numbers. For the same reason a leaf stays as
it is stored: which of its axes are torch's rows is said by their numbers.
"""

import functools
import math

import jax
import jax.numpy as jnp

from .._numerics import scalar
from .._typing import Scalar

Axes = tuple[int, ...]


def row_means(g: jax.Array, across: Axes, eps: Scalar) -> jax.Array:
    """Returns the mean of g^2 + eps across the axes of the columns, kept as 1."""
    return _mean(g * g, across) + scalar(eps, g.dtype)


def column_means(g: jax.Array, down: Axes, eps: Scalar) -> jax.Array:
    """Returns the mean of g^2 + eps down the axes of the rows, kept as 1."""
    return scalar(eps, g.dtype) - _mean(g * -g, down)


def step_and_size(
    g: jax.Array, row: jax.Array, col: jax.Array, across: Axes, down: Axes
) -> tuple[jax.Array, jax.Array]:
    """u = g / sqrt(row / mean(row)) / sqrt(col), and the sum of u^2.

    Args:
        g: gradients, float32 or float64, as all others here.
        row: running means of their squares, of size 1 along the axes `across`.
        col: the same of size 1 along the axes `down`.
        across: the axes that run along a row.
        down: the axes that run along a column.

    Returns:
        u, of the shape of `g`, and the sums, of size 1 along all these axes.
    """
    by_row = jax.lax.rsqrt(row / _mean(row, down))
    by_col = jax.lax.rsqrt(col)
    u = by_row * by_col * g
    size = jax.lax.platform_dependent(
        g,
        by_row,
        by_col,
        cpu=functools.partial(size_at_once, across=across, down=down),
        default=functools.partial(size_by_rows, across=across, down=down),
    )
    return u, size


def size_at_once(
    g: jax.Array, by_row: jax.Array, by_col: jax.Array, across: Axes, down: Axes
) -> jax.Array:
    """The sum of (by_row * g * by_col)^2, as a CPU is fast at it."""
    again = -by_row * g * -by_col
    return jnp.sum(again * again, (*down, *across), keepdims=True)


def size_by_rows(
    g: jax.Array, by_row: jax.Array, by_col: jax.Array, across: Axes, down: Axes
) -> jax.Array:
    """The same; a GPU sums it beside the squares of `row_means`, in one pass."""
    again = by_col * g
    squares = jnp.sum(again * again, across, keepdims=True)
    return jnp.sum(by_row * by_row * squares, down, keepdims=True)


def _mean(x: jax.Array, axes: Axes) -> jax.Array:
    # Over no elements it is 0 and not NaN, which nothing could use.
    num_elements = max(1, math.prod(x.shape[axis] for axis in axes))
    return jnp.sum(x, axes, keepdims=True) / scalar(num_elements, x.dtype)
