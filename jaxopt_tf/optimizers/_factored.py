"""Second moments of a matrix by its rows and columns, and the step that they give.

A gradient is read for its rows, for its columns, for the size of the step and for the
step itself; nothing of its size is written in between. A compiler that meets one
expression in two of these passes would compute it once and keep it, in memory of its
own, which costs more than to compute it again. So the signs differ: each pass has
expressions that no other has, and the same numbers.
"""

import jax
import jax.numpy as jnp

from .._scalars import f32
from .._typing import Scalar


def row_means(g32: jax.Array, eps: Scalar) -> jax.Array:
    """The mean of g^2 + eps along the last axis."""
    return _mean(g32 * g32, -1) + f32(eps)


def column_means(g32: jax.Array, eps: Scalar) -> jax.Array:
    """The mean of g^2 + eps along the last axis but one."""
    return f32(eps) - _mean(g32 * -g32, -2)


def step_and_squares(
    g32: jax.Array, row: jax.Array, col: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """u = g / sqrt(row / mean(row)) / sqrt(col), and u^2, which is to be summed.

    Args:
        g32: (..., m, n): gradients.
        row: (..., m): running means of their squares, each of a row.
        col: (..., n): the same of each column.
    """
    by_row = jax.lax.rsqrt(row / _mean(row, -1)[..., None])
    by_col = jax.lax.rsqrt(col)
    u = by_row[..., None] * by_col[..., None, :] * g32
    again = -by_row[..., None] * g32 * -by_col[..., None, :]
    return u, again * again


def _mean(x: jax.Array, axis: int) -> jax.Array:
    # Over no elements it is 0 and not NaN, which nothing could use.
    return jnp.sum(x, axis) / f32(max(1, x.shape[axis]))
