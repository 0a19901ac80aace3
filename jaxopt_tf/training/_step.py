"""Compiled training step: (state, batch) -> (state, metrics)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .. import _checks, _pytrees
from .._typing import PyTree
from ..optimizers import get_learning_rate, is_clipped
from ._gradients import Batch, LossFn, MeanLoss, constrain, with_float32_outputs
from ._state import Metrics, Norms, TrainState

# (state, batch, **extra arguments of the optimizer) -> (state, metrics)
TrainStep = Callable[..., tuple[TrainState, Metrics]]

# A sum, or sums by name, and a count: so that batches of any size add up exactly.
EvalStep = Callable[[PyTree, Batch], tuple[Any, jax.Array]]

_POLICIES = ("stop", "skip", "propagate")


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    gradient_accumulation_steps: int = 1,
    compute_dtype: Any = None,
    on_non_finite: str = "stop",
    max_skipped_in_a_row: int = 10,
    per_layer: bool = False,
    state_shardings: PyTree | None = None,
) -> TrainStep:
    """Compiles one update of the mean loss.

    Args:
        loss_fn: (params, batch) -> (loss summed over the batch's items, their number):
            scalars; the number may be a Python one. It is called with a key as third
            argument if the state has an `rng`: another one at every step and for every
            micro-batch. The gradient is that of sum / number.
        optimizer: any optax transformation; clipping and decay are links of it. It
            receives `value` (the loss), `grad` and `value_fn` if it takes them.
        gradient_accumulation_steps: k; at least 1. Above 1 every leaf of a batch has
            an axis of at most k micro-batches in front: their gradients are added up
            one after the other, in one float32 copy (float64 of float64 parameters),
            and the optimizer runs once. Sums are divided by the number of items of the
            whole window, a short last one by its own.
        compute_dtype: dtype to which floating-point parameters are cast for the loss,
            such as `jnp.bfloat16`; None for their own. The update is applied to the
            uncast ones.
        on_non_finite: reaction to a loss or gradient norm that is not finite. "stop":
            the state is left unchanged, in this and all later steps, and
            `Metrics.is_stopped` is True. "skip": parameters and optimizer are left
            unchanged, so that its schedule does not advance, and training continues.
            "propagate": the update is applied, as in torch.
        max_skipped_in_a_row: with "skip", more skipped steps in a row stop the run.
        per_layer: report `Metrics.layers` too.
        state_shardings: shardings of the new state on many devices, one for each leaf
            of a `TrainState`; gradients are sharded as the parameters. None to leave
            that to the compiler.

    Returns:
        A function (state, batch, **extra) -> (state, metrics); `extra` is passed to the
        optimizer. It reuses the old state's buffers for the new one: the old state must
        not be used afterwards. It is traced once for each shape of batch.

    Raises:
        ValueError, TypeError: if an option is out of range; when traced, if a batch's
            micro-batches do not fit.

    Source: transformers 5.23 `trainer.py`, `_run_epoch` and `training_step`.
    Differs: an update that is not finite is applied only with "propagate".
    """
    num_micro = _checks.step_count(
        "gradient_accumulation_steps", gradient_accumulation_steps, least=1
    )
    _checks.one_of("on_non_finite", on_non_finite, _POLICIES)
    max_bad = _checks.step_count("max_skipped_in_a_row", max_skipped_in_a_row)
    mean_loss = MeanLoss(with_float32_outputs(loss_fn, compute_dtype), num_micro)
    grad_shardings = None if state_shardings is None else state_shardings.params
    # Optimizers that take no extra arguments then ignore them.
    optimizer = optax.with_extra_args_support(optimizer)

    def train_step(
        state: TrainState, batch: Batch, **extra: Any
    ) -> tuple[TrainState, Metrics]:
        rng = None if state.rng is None else jax.random.fold_in(state.rng, state.step)
        loss, num_items, grads = mean_loss.gradient(state.params, batch, rng)
        grads = constrain(grads, grad_shardings)
        value_fn = mean_loss.value_fn(batch, rng)
        extra = {"value": loss, "grad": grads, "value_fn": value_fn, **extra}
        updates, opt_state = optimizer.update(
            grads, state.opt_state, state.params, **extra
        )
        norms = _norms(grads, updates, state.params)
        layers = _layers(grads, updates, state.params) if per_layer else {}
        is_finite = jnp.isfinite(loss) & jnp.isfinite(norms.grads)
        num_bad = jnp.where(is_finite, 0, state.num_bad_in_a_row + 1)
        params = optax.apply_updates(state.params, updates)
        if on_non_finite == "propagate":
            is_made, is_stopped = jnp.asarray(True), jnp.asarray(False)
        else:
            limit = max_bad if on_non_finite == "skip" else 0
            was_stopped = state.num_bad_in_a_row > limit
            num_bad = jnp.where(was_stopped, state.num_bad_in_a_row, num_bad)
            is_made, is_stopped = is_finite & ~was_stopped, num_bad > limit
            params, opt_state = jax.tree.map(
                lambda new, old: jnp.where(is_made, new, old),
                (params, opt_state),
                (state.params, state.opt_state),
            )
        metrics = Metrics(
            loss=loss,
            learning_rate=_learning_rate(opt_state),
            norms=_zero_if_skipped(is_made, norms),
            num_items=num_items,
            is_clipped=is_clipped(opt_state) & is_made,
            is_skipped=~is_made,
            is_stopped=is_stopped,
            layers={k: _zero_if_skipped(is_made, v) for k, v in layers.items()},
        )
        step = state.step + jnp.where(is_stopped, 0, 1)
        return TrainState(step, params, opt_state, num_bad, state.rng), metrics

    if state_shardings is None:
        return jax.jit(train_step, donate_argnames="state")
    out = (state_shardings, None)
    return jax.jit(train_step, donate_argnames="state", out_shardings=out)


def make_eval_step(loss_fn: LossFn, *, compute_dtype: Any = None) -> EvalStep:
    """Compiles `loss_fn` alone: (params, batch) -> (summed loss, number of items)."""
    return jax.jit(with_float32_outputs(loss_fn, compute_dtype))


def _norms(grads: PyTree, updates: PyTree, params: PyTree) -> Norms:
    # `clip` computes that of the gradients, too: the compiler does it once.
    return Norms(*map(_pytrees.global_norm, (grads, updates, params)))


def _zero_if_skipped(is_made: jax.Array, norms: Norms) -> Norms:
    """Replaces the norm of an update that was not applied by 0."""
    updates = jnp.where(is_made, norms.updates, 0.0)
    return Norms(norms.grads, updates, norms.params)


def _layers(grads: PyTree, updates: PyTree, params: PyTree) -> dict[str, Norms]:
    """Returns norms by the path of the module that a leaf belongs to."""
    layers: dict[str, list[tuple[jax.Array, ...]]] = {}
    columns = [_pytrees.named_leaves(tree) for tree in (grads, updates, params)]
    for (name, g), (_, u), (_, p) in zip(*columns, strict=True):
        layers.setdefault(name.rpartition(".")[0] or name, []).append((g, u, p))
    return {
        layer: _norms(*zip(*leaves, strict=True)) for layer, leaves in layers.items()
    }


def _learning_rate(opt_state: PyTree) -> jax.Array:
    """Returns the rate of our optimizer; NaN unless the state has exactly one."""
    try:
        rate = get_learning_rate(opt_state)
    except ValueError:
        rate = {}
    return jnp.full((), jnp.nan, jnp.float32) if isinstance(rate, dict) else rate
