"""Gradient of a mean loss, over one batch or accumulated over micro-batches."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .. import _pytrees
from .._numerics import wide_dtype, widest_dtype
from .._typing import PyTree

# Arrays, or a tree of them: the argument of the loss function.
Batch = Any

# (params, batch) or (params, batch, rng) -> (loss summed over items, number of items)
LossFn = Callable[..., tuple[jax.Array, jax.Array]]

# (params, batch, rng) -> (mean loss, number of items, gradient of the mean loss)
MeanGradient = Callable[..., tuple[jax.Array, jax.Array, PyTree]]


def with_float32_outputs(loss_fn: LossFn, compute_dtype: Any = None) -> LossFn:
    """Returns `loss_fn` with its results in float32, its parameters cast beforehand.

    The results are float64 if a parameter is: the gradient is computed from 1 / number.

    Args:
        loss_fn: see `make_train_step`.
        compute_dtype: dtype that floating-point parameters are cast to; None for no
            cast.
    """

    def cast(leaf: jax.Array) -> jax.Array:
        return leaf.astype(compute_dtype) if _pytrees.is_floating(leaf) else leaf

    def wide_loss(
        params: PyTree, batch: Batch, *rng: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        dtype = widest_dtype(params)
        if compute_dtype is not None:
            params = jax.tree.map(cast, params)
        total, num_items = loss_fn(params, batch, *rng)
        return jnp.asarray(total).astype(dtype), jnp.asarray(num_items).astype(dtype)

    return wide_loss


def batch_gradient(loss_fn: LossFn) -> MeanGradient:
    """Returns a function that computes the gradient of sum / number in one pass."""

    def mean_gradient(
        params: PyTree, batch: Batch, rng: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, PyTree]:
        total, backward, num_items = jax.vjp(
            lambda params: loss_fn(params, batch, *_key(rng)), params, has_aux=True
        )
        # Divided here, not after: the pass starts from 1 / number instead of 1.
        (grads,) = backward(1.0 / num_items)
        return total / num_items, num_items, grads

    return mean_gradient


def accumulated_gradient(loss_fn: LossFn, max_length: int) -> MeanGradient:
    """Returns the same for a batch that has an axis of micro-batches in front.

        sum over micro-batches of grad(sum) / sum over micro-batches of number

    Every item has the same weight in whichever micro-batch it is; in a mean of means it
    would not if micro-batches differ in their numbers of items. The sums are float32;
    those of a float64 parameter's gradients are float64.

    Source: transformers 5.23 `trainer.py`, `get_batch_samples` and `training_step`.
    """

    def mean_gradient(
        params: PyTree, batches: Batch, rng: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, PyTree]:
        def sums(batch: Batch, *key: jax.Array) -> tuple[jax.Array, jax.Array, PyTree]:
            total, backward, num_items = jax.vjp(
                lambda params: loss_fn(params, batch, *key), params, has_aux=True
            )
            (grads,) = backward(jnp.ones_like(total))
            return total, num_items, grads

        zero = jnp.zeros((), widest_dtype(params))
        start = (zero, zero, jax.tree.map(_buffer, params))
        total, num_items, grads = _added_up(sums, start, batches, rng, max_length)
        share = 1.0 / num_items

        def mean(g: jax.Array) -> jax.Array:
            return g * share.astype(g.dtype) if _pytrees.is_floating(g) else g

        grads = jax.tree.map(mean, grads)
        return total / num_items, num_items, grads

    return mean_gradient


def constrain(grads: PyTree, shardings: PyTree | None) -> PyTree:
    """Constrains gradients to `shardings`; None leaves them to the compiler.

    With an optimizer's state that is sharded further than parameters are, the compiler
    alone would communicate each gradient separately and not all of them together.
    """
    if shardings is None:
        return grads

    def constrained(g: jax.Array, sharding: jax.sharding.Sharding) -> jax.Array:
        is_number = _pytrees.is_floating(g)
        # JAX declares no types for it.
        constraint: Any = jax.lax.with_sharding_constraint
        return constraint(g, sharding) if is_number else g

    return jax.tree.map(constrained, grads, shardings)


def mean_loss(
    loss_fn: LossFn, batch: Batch, rng: jax.Array | None, max_length: int
) -> Callable[[PyTree], jax.Array]:
    """Returns the function params -> mean loss, which line searches evaluate again.

    Other optimizers do not call it, and the compiler then removes it.
    """

    def value(params: PyTree) -> jax.Array:
        loss_of_batch = functools.partial(loss_fn, params)
        if max_length == 1:
            total, num_items = loss_of_batch(batch, *_key(rng))
        else:
            zero = jnp.zeros((), widest_dtype(params))
            start = (zero, zero)
            total, num_items = _added_up(loss_of_batch, start, batch, rng, max_length)
        return total / num_items

    return value


def _added_up(
    function: Callable[..., PyTree],
    start: PyTree,
    batches: Batch,
    rng: jax.Array | None,
    max_length: int,
) -> PyTree:
    """Returns `start` plus `function(batch, *key)` of each micro-batch, in one scan."""

    def add(sums: PyTree, micro: tuple[jax.Array, Batch]) -> tuple[PyTree, None]:
        index, batch = micro
        key = _key(rng if rng is None else jax.random.fold_in(rng, index))
        return jax.tree.map(_plus, sums, function(batch, *key)), None

    indices = jnp.arange(_window_length(batches, max_length), dtype=jnp.int32)
    return jax.lax.scan(add, start, (indices, batches))[0]


def _key(rng: jax.Array | None) -> tuple[jax.Array, ...]:
    return () if rng is None else (rng,)


def _buffer(p: jax.Array) -> jax.Array:
    # JAX gives no gradient (float0) for leaves that are not floating-point.
    if not _pytrees.is_floating(p):
        return jnp.zeros(p.shape, jax.dtypes.float0)
    return jnp.zeros_like(p, wide_dtype(p.dtype))  # placed as the parameter is


def _plus(total: jax.Array, g: jax.Array) -> jax.Array:
    return total + g.astype(total.dtype) if _pytrees.is_floating(g) else total


def _window_length(batches: Batch, max_length: int) -> int:
    """Returns the number of micro-batches, in which all leaves must be equal."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batches)]
    lengths = {shape[0] if shape else None for shape in shapes}
    length = lengths.pop() if len(lengths) == 1 else None
    if length is None or not 1 <= length <= max_length:
        raise ValueError(
            "`batch` must have a first axis of 1 to `gradient_accumulation_steps` = "
            f"{max_length} micro-batches in every leaf, got shapes {shapes[:3]}. Stack "
            "the micro-batches of one update: [k, B, ...]."
        )
    return length
