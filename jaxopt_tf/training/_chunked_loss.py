"""Cross-entropy loss of a language model without an array of all logits."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from .. import _checks
from .._numerics import matmul_precision, wide_dtype
from ._losses import check_labels


def chunked_cross_entropy(
    hidden: jax.Array,
    head: jax.Array,
    labels: jax.Array,
    *,
    chunk_size: int,
    label_smoothing_factor: float = 0.0,
    ignore_index: int = -100,
    mesh: Any = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns `cross_entropy` of the logits `hidden @ head` without storing all logits.

    The logits are computed for `chunk_size` tokens at a time. Their gradient is
    computed right after, from the same logits, and from it the gradients of `hidden`
    and `head`. Without a gradient, only the loss is computed.

    Memory, per device, in addition to arguments and gradients: `chunk_size` * C float32
    logits and their gradient, and the gradient of `head` in float32. Each chunk reads
    and writes the gradient of `head`, so that a chunk should have at least 1,024 tokens
    on TPUs and GPUs. Forward-mode differentiation is not supported.

    On a mesh, each device cuts its own rows of the batch into chunks. `data` and `fsdp`
    shard the batch, and the classes are sharded over `tensor`. The head is gathered
    over `fsdp` once, before the first chunk, and its gradient is reduced once, in
    float32, after the last. Batches and classes that the mesh does not divide are
    replicated.

    Args:
        hidden: [B, T, E], floating-point: outputs of the last normalization.
        head: [E, C], dtype of `hidden`. For tied embeddings [C, E] pass the transposed
            array. On a mesh it is best sharded over (`fsdp`, `tensor`).
        labels: [B, T], integers from 0 to C - 1, or `ignore_index`. Any other label
            makes the loss and its gradient NaN.
        chunk_size: number of tokens of a chunk; at least 1. On a mesh, number of tokens
            per device.
        label_smoothing_factor: as for `cross_entropy`.
        ignore_index: as for `cross_entropy`.
        mesh: mesh with any of the axes `data`, `fsdp` and `tensor`; None if the arrays
            are not sharded. Without it, XLA gathers a sharded batch.

    Returns:
        The summed loss, (), float32, or float64 for float64 arrays, and the number of
        labels that are not `ignore_index`, (), of the same dtype. Logits of bfloat16
        arrays are float32: unlike the output of a product, they are not rounded.

    Raises:
        ValueError: if the shapes or dtypes do not match, or an option is out of range.
        TypeError: if an argument has the wrong type.

    Examples:
        >>> hidden, head = jnp.ones((2, 3, 4)), jnp.zeros((4, 8))
        >>> labels = jnp.array([[1, 2, -100], [3, -100, 5]])
        >>> loss, count = chunked_cross_entropy(hidden, head, labels, chunk_size=2)
        >>> print(f"{loss / count:.4f}", count)  # log(8)
        2.0794 4.0

    Source: as for `cross_entropy`.
    """
    _checks.fraction_below_one("label_smoothing_factor", label_smoothing_factor)
    chunk_size = _checks.whole_number("chunk_size", chunk_size, minimum=1)
    hidden, head, labels = map(jnp.asarray, (hidden, head, labels))
    _check_head(hidden, head, labels)
    # Unsigned dtypes such as uint8 cannot represent an `ignore_index` of -100.
    labels = labels.astype(jnp.int64 if labels.dtype.itemsize == 8 else jnp.int32)
    options = _Options(
        chunk_size=chunk_size,
        smoothing=float(label_smoothing_factor),
        ignore_index=ignore_index,
        # The precision is read here, because the gradient is traced after the context
        # `jax.default_matmul_precision` has been left.
        precision=matmul_precision(),
        mesh=None if mesh is None or mesh.size == 1 else mesh,
    )
    return _chunked(options, hidden, head, labels)


class _Options(NamedTuple):
    """Static options of the chunked loss."""

    chunk_size: int  # number of tokens of a chunk
    smoothing: float  # label smoothing factor
    ignore_index: int  # label of tokens without a loss
    precision: Any  # precision of the matrix products
    mesh: Any  # None for a single device


class _Axes(NamedTuple):
    """Names of the mesh axes over which arrays are sharded."""

    batch: tuple[str, ...] = ()  # axes that shard the tokens
    rows: tuple[str, ...] = ()  # axes that shard the rows of `head`
    columns: tuple[str, ...] = ()  # axes that shard its columns, the classes


class _Gradients(NamedTuple):
    """Gradients of the summed loss, or their shardings."""

    hidden: Any  # [N, E], dtype of `hidden`
    head: Any  # [E, C], float32 or float64


# The forward pass of a differentiated loss computes the gradients as well, and the
# backward pass multiplies them by the cotangent, which is one number. If the backward
# pass computed the logits again instead, the loss would need 4 matrix products of
# 2 N E C operations and not 3. The gradients are needed soon after: the loss is the end
# of the model, so that storing them does not increase the peak of memory.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(
    options: _Options, hidden: jax.Array, head: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return _on_mesh(options, hidden, head, labels, with_gradients=False)[0]


def _chunked_forward(
    options: _Options, hidden: jax.Array, head: jax.Array, labels: jax.Array
) -> Any:
    sums, grads = _on_mesh(options, hidden, head, labels, with_gradients=True)
    # The empty array only stores the dtype.
    return sums, (grads, jnp.zeros((0,), head.dtype))


def _chunked_backward(options: _Options, residuals: Any, cotangents: Any) -> Any:
    grads, like_head = residuals
    dloss, _ = cotangents  # the number of labels is constant
    dhidden = grads.hidden.astype(dloss.dtype) * dloss
    dhead = grads.head * dloss
    return (
        dhidden.astype(grads.hidden.dtype),
        dhead.astype(like_head.dtype),
        None,
    )


_chunked.defvjp(_chunked_forward, _chunked_backward)


def _on_mesh(
    options: _Options,
    hidden: jax.Array,
    head: jax.Array,
    labels: jax.Array,
    *,
    with_gradients: bool,
) -> tuple[tuple[jax.Array, jax.Array], _Gradients | None]:
    """Returns the sums and the gradients; each device computes those of its part."""
    mesh = options.mesh
    if mesh is None:
        return _sums(options, _Axes(), with_gradients, hidden, head, labels)

    def divides(names: tuple[str, ...], size: int) -> tuple[str, ...]:
        names = tuple(name for name in names if name in mesh.shape)
        return () if size % math.prod(mesh.shape[n] for n in names) else names

    axes = _Axes(
        batch=divides(("data", "fsdp"), hidden.shape[0]),
        rows=divides(("fsdp",), head.shape[0]),
        columns=divides(("tensor",), head.shape[1]),
    )
    by_batch = PartitionSpec(axes.batch)
    by_classes = PartitionSpec(axes.rows, axes.columns)
    sum_specs = PartitionSpec(), PartitionSpec()
    grad_specs = _Gradients(by_batch, by_classes) if with_gradients else None
    # `Any`: JAX does not annotate the function.
    shard_map: Any = jax.shard_map
    sharded = shard_map(
        functools.partial(_sums, options, axes, with_gradients),
        mesh=mesh,
        in_specs=(by_batch, by_classes, by_batch),
        out_specs=(sum_specs, grad_specs),
        # JAX cannot infer that the gathered head is equal on all devices of `fsdp`.
        check_vma=False,
    )
    result: tuple[tuple[jax.Array, jax.Array], _Gradients | None]
    result = sharded(hidden, head, labels)
    return result


def _sums(
    options: _Options,
    axes: _Axes,
    with_gradients: bool,
    hidden: jax.Array,
    head: jax.Array,
    labels: jax.Array,
) -> tuple[tuple[jax.Array, jax.Array], _Gradients | None]:
    """Returns the sums and gradients of a device's part of the arrays, reduced."""
    wide = wide_dtype(hidden.dtype)
    if axes.rows:
        head = jax.lax.all_gather(head, axes.rows, axis=0, tiled=True)
    x, y = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    size = min(options.chunk_size, x.shape[0])
    num_chunks = -(-x.shape[0] // size)
    # Chunks may not divide the tokens. The first chunk is at the start and all others
    # are aligned with the end. Where the first two chunks overlap, the first chunk
    # ignores the shared tokens, and the second one overwrites their gradients.
    num_first = x.shape[0] - (num_chunks - 1) * size

    def add_chunk(carry: Any, index: jax.Array) -> tuple[Any, None]:
        total, grads = carry
        start = jnp.where(index == 0, 0, num_first + (index - 1) * size)
        x_chunk = jax.lax.dynamic_slice_in_dim(x, start, size)
        y_chunk = jax.lax.dynamic_slice_in_dim(y, start, size)
        is_repeated = (index == 0) & (jnp.arange(size, dtype=jnp.int32) >= num_first)
        y_chunk = jnp.where(is_repeated, options.ignore_index, y_chunk)
        loss, dlogits = _chunk(options, axes.columns, x_chunk, head, y_chunk)
        if grads is not None:
            dx = _product(options, dlogits, head.T).astype(x.dtype)
            dx = jax.lax.dynamic_update_slice_in_dim(grads.hidden, dx, start, axis=0)
            dhead = grads.head + _product(options, x_chunk.T, dlogits)
            grads = _Gradients(dx, dhead)
        return (total + loss, grads), None

    grads = None
    if with_gradients:
        grads = _Gradients(jnp.zeros_like(x), jnp.zeros(head.shape, wide))
    chunks = jnp.arange(num_chunks, dtype=jnp.int32)
    carry = jnp.zeros((), wide), grads
    (total, grads), _ = jax.lax.scan(add_chunk, carry, chunks)
    num_labels = jnp.sum(y != options.ignore_index, dtype=wide)
    if axes.batch:
        total, num_labels = jax.lax.psum((total, num_labels), axes.batch)
    if grads is not None:
        dhidden, dhead = _reduced(grads, axes)
        grads = _Gradients(dhidden.reshape(hidden.shape), dhead)
    return (total, num_labels), grads


def _product(options: _Options, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(
        a,
        b,
        precision=options.precision,
        preferred_element_type=wide_dtype(a.dtype),
    )


def _chunk(
    options: _Options,
    columns: tuple[str, ...],
    x: jax.Array,
    head: jax.Array,
    labels: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns the loss of the tokens `x`, [N, E], and the gradient of their logits.

    `head` and the gradient contain a device's part of the classes, which are sharded
    over the mesh axes `columns`.
    """
    wide = wide_dtype(x.dtype)
    logits = _product(options, x, head)
    num_local = logits.shape[-1]
    num_classes, index = num_local, labels
    if columns:
        num_classes = num_local * jax.lax.axis_size(columns)
        first = jax.lax.axis_index(columns) * num_local
        index = labels - first.astype(labels.dtype)

    def over_classes(reduce: Any, parts: jax.Array) -> jax.Array:
        return reduce(parts, columns) if columns else parts

    is_ignored = labels == options.ignore_index
    is_class = (labels >= 0) & (labels < num_classes)
    # As in `cross_entropy`: the largest logit is subtracted before `exp`.
    largest = over_classes(jax.lax.pmax, jnp.max(logits, axis=-1))
    logits = logits - largest[:, None]
    total = over_classes(jax.lax.psum, jnp.sum(jnp.exp(logits), axis=-1))
    is_local = (index >= 0) & (index < num_local)
    label_logits = jnp.take_along_axis(
        logits, jnp.where(is_local, index, 0)[:, None], axis=-1
    )[:, 0]
    label_logits = over_classes(jax.lax.psum, jnp.where(is_local, label_logits, 0.0))
    epsilon = options.smoothing
    losses = jnp.log(total) - (1.0 - epsilon) * label_logits
    if epsilon > 0:
        mean = over_classes(jax.lax.psum, jnp.sum(logits, axis=-1)) / num_classes
        losses = losses - epsilon * mean
    # A weight of NaN makes the loss and every gradient of a wrong label NaN.
    weights = jnp.where(is_class, 1.0, jnp.nan).astype(wide)
    classes = jnp.arange(num_local, dtype=index.dtype)
    is_label = classes[None, :] == index[:, None]
    dlogits = jnp.exp(logits) / total[:, None]
    dlogits = dlogits - jnp.where(is_label, 1.0 - epsilon, 0.0).astype(wide)
    dlogits = (dlogits - epsilon / num_classes) * weights[:, None]
    # `where` and not a product, so that ignored tokens with infinite logits have
    # gradient 0.
    dlogits = jnp.where(is_ignored[:, None], 0.0, dlogits)
    loss = jnp.sum(jnp.where(is_ignored, 0.0, losses * weights))
    return loss, dlogits.astype(x.dtype)


def _reduced(grads: _Gradients, axes: _Axes) -> _Gradients:
    """Sums gradients over the devices, and returns the part of the head of each."""
    dhidden, dhead = grads
    if axes.columns:  # each device has used its own classes only
        dhidden = jax.lax.psum(dhidden, axes.columns)
    unsharded = tuple(name for name in axes.batch if name not in axes.rows)
    if axes.rows and not axes.batch:  # all devices have computed the same sum
        size = dhead.shape[0] // jax.lax.axis_size(axes.rows)
        start = jax.lax.axis_index(axes.rows) * size
        dhead = jax.lax.dynamic_slice_in_dim(dhead, start, size)
    elif axes.rows:
        dhead = jax.lax.psum_scatter(dhead, axes.rows, scatter_dimension=0, tiled=True)
    # This sum follows the scatter, which leaves fewer elements to communicate.
    if unsharded:
        dhead = jax.lax.psum(dhead, unsharded)
    return _Gradients(dhidden, dhead)


def _check_head(hidden: jax.Array, head: jax.Array, labels: jax.Array) -> None:
    if not jnp.issubdtype(hidden.dtype, jnp.floating):
        raise TypeError(
            f"`hidden` must be floating-point, got {hidden.dtype}. Pass the input of "
            "the model's head."
        )
    if hidden.ndim != 3 or hidden.size == 0:
        raise ValueError(
            f"`hidden` must be [B, T, E] with at least one token, got shape "
            f"{list(hidden.shape)}."
        )
    if (
        head.ndim != 2
        or head.shape[0] != hidden.shape[-1]
        or head.dtype != hidden.dtype
    ):
        raise ValueError(
            f"`head` must be [E, C], with the last axis and the dtype of `hidden`, "
            f"{hidden.dtype} {list(hidden.shape)}, got {head.dtype} "
            f"{list(head.shape)}. Transpose an embedding table."
        )
    check_labels(labels, "hidden", hidden.shape)
