"""Cross-entropy of logits and labels, as a sum and a number of labels."""

import jax
import jax.numpy as jnp

from .. import _checks
from .._numerics import wide_dtype


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    label_smoothing_factor: float = 0.0,
    ignore_index: int = -100,
) -> tuple[jax.Array, jax.Array]:
    """Returns the summed negative log-likelihood of the labels, and their number.

        loss = (1 - e) * -log p[label] + e * mean over all classes of -log p

    `make_train_step` takes a loss function that returns both: it adds each of them up
    over micro-batches, and then divides one by the other. For a language model, pass
    labels that are one token ahead of the logits.

    Args:
        logits: [..., C], floating-point of any width; the arithmetic is in float32, in
            float64 for float64 logits.
        labels: [...], integers from 0 to C - 1, or `ignore_index`. Any other label
            makes the loss and its gradient NaN: inside a compiled step nothing can be
            raised, and a loss that looks healthy would be worse.
        label_smoothing_factor: e, at least 0 and less than 1.
        ignore_index: a label that counts neither in the sum nor in the number.

    Returns:
        The summed loss, (), float32 or float64, and the number of labels that are not
        `ignore_index`, () and of the same dtype.

    Raises:
        ValueError: if the shapes do not fit, or `label_smoothing_factor` is out of
            range.
        TypeError: if the logits are not floating-point or the labels not integers.

    Source: transformers 5.23 `trainer_pt_utils.py`, `LabelSmoother`;
        `loss/loss_utils.py`, `fixed_cross_entropy`; torch 2.13 `cross_entropy`.
    Differs: a label below 0 that is not `ignore_index` is taken for class 0 by
        `LabelSmoother`. Here it makes the loss NaN.
    """
    _checks.fraction_below_one("label_smoothing_factor", label_smoothing_factor)
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    _check_arrays(logits, labels)
    epsilon = float(label_smoothing_factor)
    # Bytes, too, are compared with -100.
    labels = labels.astype(jnp.int64 if labels.dtype.itemsize == 8 else jnp.int32)
    is_ignored = labels == ignore_index
    is_class = (labels >= 0) & (labels < logits.shape[-1])
    index = jnp.where(is_class, labels, 0)[..., None]

    # Everything after the cast, the pick too: a gradient is p - 1 for the label, which
    # must be subtracted before it is rounded.
    wide = logits.astype(wide_dtype(logits.dtype))
    of_label = jnp.take_along_axis(wide, index, axis=-1)[..., 0]
    # As torch: all are measured from the largest, where a difference is exact.
    largest = jax.lax.stop_gradient(jnp.max(wide, axis=-1))
    wide = wide - largest[..., None]
    losses = jnp.log(jnp.sum(jnp.exp(wide), axis=-1))
    losses = losses - (1.0 - epsilon) * (of_label - largest)
    if epsilon > 0:  # else -inf, a class ruled out, would become NaN
        losses = losses - epsilon * jnp.mean(wide, axis=-1)
    # Multiplied, not selected, so that the gradient is NaN too.
    losses = losses * jnp.where(is_class | is_ignored, 1.0, jnp.nan).astype(wide.dtype)
    total = jnp.sum(jnp.where(is_ignored, 0.0, losses))
    return total, jnp.sum(jnp.logical_not(is_ignored), dtype=wide.dtype)


def _check_arrays(logits: jax.Array, labels: jax.Array) -> None:
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise TypeError(
            f"`logits` must be floating-point, got {logits.dtype}. Pass the model's "
            "results before any softmax or argmax."
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(
            f"`labels` must be integers, got {labels.dtype}. Pass the number of the "
            "class, not its probability or a one-hot vector."
        )
    if logits.ndim == 0 or labels.shape != logits.shape[:-1]:
        raise ValueError(
            "`labels` must have the shape of `logits` without its last axis, got "
            f"{list(labels.shape)} for logits {list(logits.shape)}. A language model's "
            "logits and labels are each cut by one: logits[:, :-1], labels[:, 1:]."
        )
