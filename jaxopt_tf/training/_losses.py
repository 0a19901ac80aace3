"""Cross-entropy loss, as a sum and a number of labels."""

import jax
import jax.numpy as jnp

from .. import _checks
from .._numerics import on_gpu, wide_dtype


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    label_smoothing_factor: float = 0.0,
    ignore_index: int = -100,
) -> tuple[jax.Array, jax.Array]:
    """Returns the summed negative log-likelihood of the labels, and their number.

        loss = (1 - e) * -log p[label] + e * mean over all classes of -log p

    `make_train_step` expects a loss function that returns a summed loss and a number:
    it sums loss and number over micro-batches, and divides the sums. For a language
    model, pass labels that are shifted by one token with respect to the logits.

    Args:
        logits: [..., C], any floating-point dtype; the arithmetic is in float32, or in
            float64 for float64 logits.
        labels: [...], integers from 0 to C - 1, or `ignore_index`. Any other label
            makes the loss and its gradient NaN, since a compiled step cannot raise an
            error.
        label_smoothing_factor: e; at least 0 and less than 1.
        ignore_index: label that is excluded from the sum and the number.

    Returns:
        The summed loss, (), float32 or float64, and the number of labels that are not
        `ignore_index`, (), of the same dtype.

    Raises:
        ValueError: if the shapes do not match, or `label_smoothing_factor` is out of
            range.
        TypeError: if the logits are not floating-point or the labels not integers.

    Examples:
        >>> labels = jnp.array([[1, 2, -100], [3, -100, 5]])
        >>> loss, num_labels = cross_entropy(jnp.zeros((2, 3, 8)), labels)
        >>> print(f"{loss / num_labels:.4f}", num_labels)  # log(8)
        2.0794 4.0

    Source: transformers 5.23 `trainer_pt_utils.py`, `LabelSmoother`;
        `loss/loss_utils.py`, `fixed_cross_entropy`; torch 2.13 `cross_entropy`.
    Differs: `LabelSmoother` treats a negative label that is not `ignore_index` as
        class 0. Here it makes the loss NaN.
    """
    _checks.fraction_below_one("label_smoothing_factor", label_smoothing_factor)
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    _check_arrays(logits, labels)
    epsilon = float(label_smoothing_factor)
    # Unsigned dtypes such as uint8 cannot represent an `ignore_index` of -100.
    labels = labels.astype(jnp.int64 if labels.dtype.itemsize == 8 else jnp.int32)
    is_ignored = labels == ignore_index
    is_class = (labels >= 0) & (labels < logits.shape[-1])
    index = jnp.where(is_class, labels, 0)[..., None]

    # All operations come after the cast, the choice of logits too: the gradient of the
    # label's logit is p - 1, whose terms must be added before they are rounded to the
    # dtype of the logits.
    wide = logits.astype(wide_dtype(logits.dtype))
    label_logits = on_gpu(_selected, _gathered, wide, index)
    # As in torch, the largest logit is subtracted before `exp`, so that it cannot
    # overflow. Differences of close floating-point numbers are exact.
    largest = jax.lax.stop_gradient(jnp.max(wide, axis=-1))
    wide = wide - largest[..., None]
    losses = jnp.log(jnp.sum(jnp.exp(wide), axis=-1))
    losses = losses - (1.0 - epsilon) * (label_logits - largest)
    # The mean is not added for epsilon = 0: with a logit of -inf, a masked class, the
    # mean is -inf, and 0 * -inf is NaN.
    if epsilon > 0:
        losses = losses - epsilon * jnp.mean(wide, axis=-1)
    # The losses are multiplied by NaN and not replaced by `where`, so that the gradient
    # is NaN, too.
    losses = losses * jnp.where(is_class | is_ignored, 1.0, jnp.nan).astype(wide.dtype)
    total = jnp.sum(jnp.where(is_ignored, 0.0, losses))
    return total, jnp.sum(jnp.logical_not(is_ignored), dtype=wide.dtype)


def _gathered(wide: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.take_along_axis(wide, index, axis=-1)[..., 0]


def _selected(wide: jax.Array, index: jax.Array) -> jax.Array:
    """Returns the logits of `_gathered`, whose gradient a GPU computes in one pass.

    The gradient of a gather is a scatter. XLA for GPUs does not fuse it with the
    gradient of the softmax, and writes both in float32, [..., C], before it casts their
    sum to the dtype of the logits.
    """
    classes = jax.lax.broadcasted_iota(index.dtype, wide.shape, wide.ndim - 1)
    # The sum is exact: all terms but one are 0.
    return jnp.sum(jnp.where(classes == index, wide, 0.0), axis=-1)


def check_labels(labels: jax.Array, name: str, shape: tuple[int, ...]) -> None:
    """Raises unless `labels` are integers, one per row of the array `name`."""
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(
            f"`labels` must be integers, got {labels.dtype}. Pass class indices, not "
            "probabilities or one-hot vectors."
        )
    if not shape or labels.shape != shape[:-1]:
        raise ValueError(
            f"`labels` must have the shape of `{name}` without its last axis, got "
            f"{list(labels.shape)} for {name} {list(shape)}. For a language "
            f"model, use {name}[:, :-1] and labels[:, 1:]."
        )


def _check_arrays(logits: jax.Array, labels: jax.Array) -> None:
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise TypeError(
            f"`logits` must be floating-point, got {logits.dtype}. Pass the output of "
            "the model before softmax or argmax."
        )
    check_labels(labels, "logits", logits.shape)
