"""Compiled training step: (state, batch) -> (state, metrics)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .. import _checks, _pytrees
from .._typing import PyTree
from ..optimizers import get_learning_rate, is_clipped
from ._frozen import bind_frozen
from ._gradients import Batch, LossFn, MeanLoss, constrain, with_float32_outputs
from ._state import Metrics, TrainState
from ._update import update_unless_skipped

# (state, batch, **extra_args of the optimizer) -> (state, metrics)
TrainStep = Callable[..., tuple[TrainState, Metrics]]

# (params, batch) -> (sum or sums by name, number of items). Sums and not means, so that
# batches of different size can be combined.
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
    frozen: PyTree | None = None,
) -> TrainStep:
    """Returns a compiled training step for the mean loss.

    Args:
        loss_fn: function (params, batch) -> (loss summed over the items of the batch,
            number of items). Both results are scalars; the number may be a Python
            number. If the state has an `rng`, the function receives a key as third
            argument, which differs for each step and micro-batch. The gradient is that
            of sum / number.
        optimizer: any optax transformation, including clipping and weight decay. It
            receives the extra arguments `value` (the loss), `grad` and `value_fn`.
        gradient_accumulation_steps: k; at least 1. If k is greater than 1, every leaf
            of a batch has a leading axis of at most k micro-batches. Their gradients
            are accumulated sequentially in one float32 copy (float64 for float64
            parameters), and the optimizer is updated once. Sums are divided by the
            number of items of all micro-batches of the update. Micro-batches of
            different shapes are passed as `MicroBatches`.
        compute_dtype: dtype to which floating-point parameters are cast for the loss,
            such as `jnp.bfloat16`; None for no cast. The update is applied to the
            parameters themselves, which are not cast.
        on_non_finite: behaviour if the loss or the gradient norm is not finite. "stop":
            the state is left unchanged, in this and all later steps, and
            `Metrics.is_stopped` is True. "skip": parameters and optimizer, including
            the step of its schedule, are left unchanged, and training continues.
            "propagate": the update is applied, as in torch.
        max_skipped_in_a_row: with "skip", maximum number of consecutive skipped steps;
            the next one stops the run.
        per_layer: whether to compute `Metrics.layers`.
        state_shardings: shardings of the new state, a `TrainState` with a sharding for
            each leaf; gradients have the shardings of the parameters. None to leave the
            shardings to the compiler.
        frozen: nested dicts of parameters that are not trained, without leaves in
            common with `state.params`, see `split_params`; None for none. The loss
            function receives both in one tree. They are an argument of the compiled
            program that is not donated; they have no gradient and no optimizer state.
            `compute_dtype` applies to them, too.

    Returns:
        A function (state, batch, **extra) -> (state, metrics); `extra` is passed to the
        optimizer. The buffers of the old state are donated, so that it must not be used
        afterwards. The function is traced once for each shape of a batch. With `frozen`
        it is a `FrozenStep`.

    Raises:
        ValueError, TypeError: if an option is out of range; when traced, if the leading
            axis of a batch is not valid, or if `frozen` has a leaf of `state.params`.

    Examples:
        >>> def loss_fn(params, batch):
        ...     return jnp.sum((params["kernel"] - batch) ** 2), len(batch)
        >>> train_step = make_train_step(loss_fn, adamw_tf(1e-2))
        >>> state = init_train_state({"kernel": jnp.ones(2)}, adamw_tf(1e-2))
        >>> state, metrics = train_step(state, jnp.zeros(2))
        >>> print(metrics.loss, state.params["kernel"])
        1.0 [0.99 0.99]

    Source: transformers 5.23 `trainer.py`, `_run_epoch` and `training_step`.
    Differs: an update that is not finite is applied only with "propagate".
    """
    num_micro = _checks.step_count(
        "gradient_accumulation_steps", gradient_accumulation_steps, minimum=1
    )
    _checks.one_of("on_non_finite", on_non_finite, _POLICIES)
    max_bad = _checks.step_count("max_skipped_in_a_row", max_skipped_in_a_row)
    grad_shardings = None if state_shardings is None else state_shardings.params
    # Optimizers without extra arguments ignore them after this conversion.
    optimizer = optax.with_extra_args_support(optimizer)

    def train_step(
        state: TrainState, batch: Batch, *, frozen: PyTree | None = None, **extra: Any
    ) -> tuple[TrainState, Metrics]:
        float32_loss = with_float32_outputs(loss_fn, compute_dtype, frozen)
        mean_loss = MeanLoss(float32_loss, num_micro)
        rng = None if state.rng is None else jax.random.fold_in(state.rng, state.step)
        loss, num_items, grads = mean_loss.gradient(state.params, batch, rng)
        grads = constrain(grads, grad_shardings)
        value_fn = mean_loss.value_fn(batch, rng)
        extra = {"value": loss, "grad": grads, "value_fn": value_fn, **extra}
        # A NaN or infinity in any gradient makes the norm of all gradients non-finite.
        is_finite = jnp.isfinite(loss) & jnp.isfinite(_pytrees.global_norm(grads))
        num_bad = jnp.where(is_finite, 0, state.num_bad_in_a_row + 1)
        if on_non_finite == "propagate":
            is_made, is_stopped = jnp.asarray(True), jnp.asarray(False)
        else:
            limit = max_bad if on_non_finite == "skip" else 0
            # The counter is kept above the limit once the run is stopped: steps that
            # were dispatched before the host has noticed must not change the state.
            was_stopped = state.num_bad_in_a_row > limit
            num_bad = jnp.where(was_stopped, state.num_bad_in_a_row, num_bad)
            is_made, is_stopped = is_finite & ~was_stopped, num_bad > limit
        params, opt_state, norms, layers = update_unless_skipped(
            optimizer, state, grads, is_made, extra, per_layer=per_layer
        )
        metrics = Metrics(
            loss=loss,
            learning_rate=_learning_rate(opt_state),
            norms=norms,
            num_items=num_items,
            is_clipped=is_clipped(opt_state) & is_made,
            is_skipped=~is_made,
            is_stopped=is_stopped,
            layers=layers,
        )
        step = state.step + jnp.where(is_stopped, 0, 1)
        return TrainState(step, params, opt_state, num_bad, state.rng), metrics

    # Without `out_shardings`, the compiler may choose other shardings, and a step is
    # recompiled.
    out: Any = {}
    if state_shardings is not None:
        out["out_shardings"] = (state_shardings, None)
    compiled = jax.jit(train_step, donate_argnames="state", **out)
    return bind_frozen(compiled, frozen)


def make_eval_step(
    loss_fn: LossFn, *, compute_dtype: Any = None, frozen: PyTree | None = None
) -> EvalStep:
    """Compiles `loss_fn` alone: (params, batch) -> (summed loss, number of items).

    Args:
        loss_fn: as for `make_train_step`, called without a key.
        compute_dtype: as for `make_train_step`.
        frozen: as for `make_train_step`.
    """

    def eval_step(
        params: PyTree, batch: Batch, *, frozen: PyTree | None = None
    ) -> tuple[Any, jax.Array]:
        return with_float32_outputs(loss_fn, compute_dtype, frozen)(params, batch)

    return bind_frozen(jax.jit(eval_step), frozen)


def _learning_rate(opt_state: PyTree) -> jax.Array:
    """Returns the largest rate in the optimizer's state; NaN if there is none."""
    try:
        rate = get_learning_rate(opt_state)
    except ValueError:
        return jnp.full((), jnp.nan, jnp.float32)
    if isinstance(rate, dict):
        return functools.reduce(jnp.maximum, rate.values())
    return rate
