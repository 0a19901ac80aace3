"""Causal attention in plain XLA operations, in blocks of queries.

A block of queries is multiplied only by the keys that it can see, so that about half of
the scores of causal attention are not computed. The backward pass computes the scores
again from the log-sum-exp of each row, as FlashAttention does: no pass stores all
probabilities.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._numerics import matmul_precision, wide_dtype

# Blocks are unrolled, so that each has static bounds. With n blocks, (n + 1) / 2n of
# the scores are computed. More than 8 blocks save little, and the compile time is
# proportional to their number; products of less than 128 rows are slower.
_MIN_BLOCK = 128
_MAX_BLOCKS = 8


class _Options(NamedTuple):
    """Static options of the attention function."""

    window: int | None  # maximum number of keys that a query sees; None for all
    scale: float  # factor of the scores
    precision: Any  # precision of the matrix products


def blockwise_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array | None,
    *,
    window: int | None,
    scale: float,
) -> jax.Array:
    """Computes causal attention; arguments and result as for `AttentionFn`.

    The softmax and all sums are in float32, or in float64 for float64 inputs. Matrix
    products have operands of the inputs' dtype. Forward-mode differentiation is not
    supported.

    Source: Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work
        Partitioning", 2023, arXiv 2307.08691, section 3.1.
    """
    batch, length, num_heads, head_dim = q.shape
    num_key_heads = k.shape[2]
    # Query heads that share a key head become rows of one matrix product.
    q = q.reshape(batch, length, num_key_heads, num_heads // num_key_heads, head_dim)
    # The precision is read here, because the gradient is traced after the context
    # `jax.default_matmul_precision` has been left.
    precision = matmul_precision()
    y = _attention(
        _Options(window, scale, precision),
        jnp.transpose(q, (0, 2, 3, 1, 4)),
        jnp.transpose(k, (0, 2, 1, 3)),
        jnp.transpose(v, (0, 2, 1, 3)),
        segment_ids,
    )
    return jnp.transpose(y, (0, 3, 1, 2, 4)).reshape(batch, length, num_heads, head_dim)


# Below, q and y are [B, K, G, T, D] with G query heads per key head; k and v are
# [B, K, T, D].


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(options, q, k, v, segment_ids):
    return _forward(options, q, k, v, segment_ids)[0]


def _forward(options, q, k, v, segment_ids):
    product = functools.partial(_product, precision=options.precision)
    y_blocks, logsumexp = [], []
    for rows, keys in _blocks(q.shape[3], options.window):
        scores = _scores(options, q, k, segment_ids, rows, keys)
        max_scores = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - max_scores)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        y = product("bkgts,bksd->bkgtd", weights.astype(v.dtype), v[:, :, keys])
        # The division follows the product, because `y` has D columns and the weights
        # have up to T.
        y_blocks.append((y / total).astype(q.dtype))
        logsumexp.append(max_scores + jnp.log(total))
    y = jnp.concatenate(y_blocks, axis=3)
    return y, (q, k, v, segment_ids, y, jnp.concatenate(logsumexp, axis=3))


def _backward(options, residuals, dy):
    q, k, v, segment_ids, y, logsumexp = residuals
    product = functools.partial(_product, precision=options.precision)
    sum_dtype = logsumexp.dtype
    # Rows of the softmax sum to 1: its gradient is p * (dp - sum(p * dp)), and
    # sum(p * dp) over the keys equals sum(y * dy) over the D columns.
    delta = jnp.sum(y.astype(sum_dtype) * dy.astype(sum_dtype), axis=-1, keepdims=True)
    dq_blocks = []
    dk, dv = jnp.zeros(k.shape, sum_dtype), jnp.zeros(v.shape, sum_dtype)
    for rows, keys in _blocks(q.shape[3], options.window):
        q_rows, dy_rows = q[:, :, :, rows], dy[:, :, :, rows]
        scores = _scores(options, q, k, segment_ids, rows, keys)
        p = jnp.exp(scores - logsumexp[:, :, :, rows])
        dp = product("bkgtd,bksd->bkgts", dy_rows, v[:, :, keys])
        ds = (p * (dp - delta[:, :, :, rows]) * options.scale).astype(q.dtype)
        dq_blocks.append(
            product("bkgts,bksd->bkgtd", ds, k[:, :, keys]).astype(q.dtype)
        )
        dk_block = product("bkrs,bkrd->bksd", _merged(ds), _merged(q_rows))
        dv_block = product(
            "bkrs,bkrd->bksd", _merged(p.astype(v.dtype)), _merged(dy_rows)
        )
        dk, dv = dk.at[:, :, keys].add(dk_block), dv.at[:, :, keys].add(dv_block)
    dq = jnp.concatenate(dq_blocks, axis=3)
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), None


_attention.defvjp(_forward, _backward)


def _blocks(length: int, window: int | None) -> list[tuple[slice, slice]]:
    """Returns the query positions of each block, and the key positions it can see."""
    num_blocks = max(1, min(_MAX_BLOCKS, length // _MIN_BLOCK))
    size = -(-length // num_blocks)
    starts = range(0, length, size)
    ends = [min(start + size, length) for start in starts]
    firsts = [0 if window is None else max(0, s - window + 1) for s in starts]
    return [
        (slice(start, end), slice(first, end))
        for start, end, first in zip(starts, ends, firsts, strict=True)
    ]


def _scores(
    options: _Options,
    q: jax.Array,
    k: jax.Array,
    segment_ids: jax.Array | None,
    rows: slice,
    keys: slice,
) -> jax.Array:
    """Returns the scores of one block, -inf where a key is hidden from a query."""
    scores = _product(
        "bkgtd,bksd->bkgts",
        q[:, :, :, rows],
        k[:, :, keys],
        precision=options.precision,
    )
    positions = jnp.arange(q.shape[3], dtype=jnp.int32)
    distance = positions[rows][:, None] - positions[keys][None, :]
    is_visible = distance >= 0
    if options.window is not None:
        is_visible = is_visible & (distance < options.window)
    is_visible = is_visible[None]
    if segment_ids is not None:
        query_ids, key_ids = segment_ids[:, rows], segment_ids[:, keys]
        is_visible = is_visible & (query_ids[:, :, None] == key_ids[:, None, :])
    # No row is entirely -inf, because every query sees its own key.
    return jnp.where(is_visible[:, None, None], scores * options.scale, -jnp.inf)


def _merged(x: jax.Array) -> jax.Array:
    """Merges heads and rows, [B, K, G, T, N] -> [B, K, G * T, N].

    XLA on CPUs copies the transposed factor of a product that sums over two axes, here
    all scores. It reads the factor in place if the sum is over one axis.
    """
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _product(subscripts: str, a: jax.Array, b: jax.Array, *, precision: Any):
    return jnp.einsum(
        subscripts,
        a,
        b,
        precision=precision,
        preferred_element_type=wide_dtype(a.dtype),
    )
