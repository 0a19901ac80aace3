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


def step_and_size(
    g32: jax.Array, row: jax.Array, col: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """u = g / sqrt(row / mean(row)) / sqrt(col), and the sum of u^2.

    Args:
        g32: (..., m, n): gradients.
        row: (..., m): running means of their squares, each of a row.
        col: (..., n): the same of each column.

    Returns:
        u, of the shape of `g32`, and the sums of each matrix, (..., 1, 1).
    """
    by_row = jax.lax.rsqrt(row / _mean(row, -1)[..., None])[..., None]
    by_col = jax.lax.rsqrt(col)[..., None, :]
    u = by_row * by_col * g32
    size = jax.lax.platform_dependent(
        g32, by_row, by_col, cpu=_size_at_once, default=_size_by_rows
    )
    return u, size


def _size_at_once(g32: jax.Array, by_row: jax.Array, by_col: jax.Array) -> jax.Array:
    u = -by_row * g32 * -by_col
    return jnp.sum(u * u, (-2, -1), keepdims=True)


def _size_by_rows(g32: jax.Array, by_row: jax.Array, by_col: jax.Array) -> jax.Array:
    # A GPU sums this beside `row_means`' squares, in one pass; a CPU is slow at it.
    u = -by_col * g32
    squares = by_row * by_row * jnp.sum(u * u, -1, keepdims=True)
    return jnp.sum(squares, -2, keepdims=True)


def _mean(x: jax.Array, axis: int) -> jax.Array:
    # Over no elements it is 0 and not NaN, which nothing could use.
    return jnp.sum(x, axis) / f32(max(1, x.shape[axis]))
