"""One update, compiled: a state and a batch come in, a state and metrics go out."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .. import _tree
from .._typing import PyTree
from ..optimizers import get_learning_rate
from ._state import Metrics, TrainState

# Arrays, or a tree of them, that the loss function understands.
Batch = Any

# (params, batch) -> (the loss summed over items, the number of items)
LossFn = Callable[[PyTree, Batch], tuple[jax.Array, jax.Array]]

# A sum and a count, so that batches of any size add up exactly.
EvalStep = Callable[[PyTree, Batch], tuple[jax.Array, jax.Array]]


def make_train_step(
    loss_fn: LossFn, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Compiles one update of the mean loss.

    Args:
        loss_fn: from parameters and a batch to the loss summed over the batch's items,
            and their number; both scalars, the number a Python one too. The gradient
            is that of sum / number.
        optimizer: any optax transformation; clipping and decay are links of it.

    Returns:
        A function (state, batch) -> (state, metrics). It takes the old state's buffers
        for the new one: the old state must not be used afterwards. It is traced once
        for each shape of batch.
    """

    def mean_loss(params, batch):
        total, num_items = loss_fn(params, batch)
        num_items = jnp.asarray(num_items, jnp.float32)
        return total / num_items.astype(total.dtype), num_items

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        value_and_grad = jax.value_and_grad(mean_loss, has_aux=True)
        (loss, num_items), grads = value_and_grad(state.params, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        metrics = Metrics(
            loss=loss.astype(jnp.float32),
            learning_rate=_learning_rate(opt_state),
            # The norm that `clip` takes too: the compiler computes it once.
            grad_norm=_tree.global_norm(grads),
            num_items=num_items,
        )
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), metrics

    return jax.jit(train_step, donate_argnames="state")


def make_eval_step(loss_fn: LossFn) -> EvalStep:
    """Compiles `loss_fn` alone: (params, batch) -> (summed loss, number of items)."""
    return jax.jit(loss_fn)


def _learning_rate(opt_state: PyTree) -> jax.Array:
    """The rate of the one optimizer of ours in it; NaN unless there is just one."""
    try:
        rate = get_learning_rate(opt_state)
    except ValueError:
        rate = {}
    return jnp.full((), jnp.nan, jnp.float32) if isinstance(rate, dict) else rate
