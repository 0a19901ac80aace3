"""Reduce the learning rate when a metric has stopped improving, as torch does."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import _checks
from .._argument_names import checked_names
from .._numerics import double_float
from .._numerics.double_float import TwoFloats
from .._typing import Scalar
from . import _doubles
from ._doubles import Double
from ._metric_driven import (
    Improvement,
    MetricDrivenSchedule,
    check_factor,
    check_state,
    lowered,
    read_metric,
)


class PlateauState(NamedTuple):
    """What `reduce_lr_on_plateau` remembers."""

    rate: Double  # (): the learning rate, as torch has it
    best: TwoFloats  # (), float32 each: the best metric so far
    num_bad_updates: jax.Array  # (), int32: updates in a row without a better metric
    cooldown_left: jax.Array  # (), int32: updates that do not count as bad

    @property
    def learning_rate(self) -> jax.Array:
        """(), float32: the rate to use now."""
        return _doubles.to_float32(self.rate)

    @property
    def learning_rate_float64(self) -> jax.Array:
        """(), float64: the same rate, not rounded; needs `jax_enable_x64`."""
        return _doubles.to_float64(self.rate)


@checked_names
def reduce_lr_on_plateau(
    learning_rate: Scalar,
    *,
    mode: str = "min",
    factor: Scalar = 0.1,
    patience: int = 10,
    threshold: Scalar = 1e-4,
    threshold_mode: str = "rel",
    cooldown: int = 0,
    min_lr: Scalar = 0.0,
    eps: Scalar = 1e-8,
) -> MetricDrivenSchedule:
    """Multiplies the rate by `factor` when more than `patience` metrics were no better.

        better, min:  metric < best * (1 - threshold), "abs": metric < best - threshold
        better, max:  metric > best * (1 + threshold), "abs": metric > best + threshold
        bad > patience:  rate = max(rate * factor, min_lr), if that is over eps lower

    NaN is never better. One metric is one update, as often as an evaluation comes.

    Args:
        learning_rate: the first rate; at least 0. It and the other numbers that are
            not counts may be traced, for a sweep: they are float32 then.
        mode: "min" where a lower metric is better, "max" where a higher one is.
        factor: what the rate is multiplied by; above 0 and below 1.
        patience: how many metrics in a row may be no better; at least 0.
        threshold: by how much a better metric must be better; at least 0.
        threshold_mode: "rel", a share of the best, or "abs", in the metric's unit.
        cooldown: how many metrics after a reduction do not count as bad; at least 0.
        min_lr: the rate does not fall below; at least 0.
        eps: a smaller change of the rate is left out; at least 0.

    Returns:
        `state = init()`, `state = update(state, metric)`, and `state.learning_rate`.

    Raises:
        ValueError: if an argument is out of its range.
        TypeError: if one is of another kind; from `update`, if the metric is not a real
            number, or the state not one of this schedule.

    Source: torch 2.13 `optim/lr_scheduler.py`, `ReduceLROnPlateau`.
    Differs: `optax.contrib.reduce_on_plateau` fires at `patience`, this above it.
    """
    _checks.non_negative("learning_rate", learning_rate)
    improvement = Improvement(mode, threshold, threshold_mode)
    improvement.check()
    check_factor(factor)
    patience = _checks.step_count("patience", patience)
    cooldown = _checks.step_count("cooldown", cooldown)
    _checks.non_negative("min_lr", min_lr)
    _checks.non_negative("eps", eps)

    def init() -> PlateauState:
        # Arrays of their own, so that a step can take over the buffer of each.
        return PlateauState(
            rate=_doubles.double_from_scalar(learning_rate),
            best=improvement.worst(),
            num_bad_updates=jnp.zeros((), jnp.int32),
            cooldown_left=jnp.zeros((), jnp.int32),
        )

    def update(state: PlateauState, metric: Any) -> PlateauState:
        check_state(state, PlateauState)
        current = read_metric(metric)
        better = improvement.is_better(current, state.best)
        bad = jnp.where(better, 0, state.num_bad_updates + 1)
        # In its last update the cooldown still forgives.
        cooling = state.cooldown_left > 0
        bad = jnp.where(cooling, 0, bad)
        left = state.cooldown_left - cooling.astype(jnp.int32)

        reduce = bad > patience
        lower = lowered(state.rate, factor, min_lr, eps)
        return PlateauState(
            rate=_doubles.select(reduce, lower, state.rate),
            best=double_float.select(better, current, state.best),
            num_bad_updates=jnp.where(reduce, 0, bad),
            cooldown_left=jnp.where(reduce, cooldown, left),
        )

    return MetricDrivenSchedule(init, update)
