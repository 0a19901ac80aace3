"""Raise the learning rate while a metric improves, lower it when it does not."""

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


class AverageState(NamedTuple):
    """The last metrics, in a ring, and their sum."""

    values: TwoFloats  # (window_size,), float32 each
    total: TwoFloats  # (), float32 each: the sum of the values held
    place: jax.Array  # (), int32: where the next value goes
    num_values: jax.Array  # (), int32: how many are held


class GreedyState(NamedTuple):
    """What `greedy` remembers."""

    rate: Double  # (): the learning rate, as torch has it
    best: TwoFloats  # (), float32 each: the best metric so far
    num_bad_updates: jax.Array  # (), int32: updates in a row without a better metric
    num_good_updates: jax.Array  # (), int32: updates in a row with one
    cooldown_left: jax.Array  # (), int32: updates to wait after a reduction
    warmup_left: jax.Array  # (), int32: updates to wait after an increase
    reset_left: jax.Array  # (), int32: reductions at min_lr until all is forgotten
    average: AverageState | None  # None without smoothing

    @property
    def learning_rate(self) -> jax.Array:
        """(), float32: the rate to use now."""
        return _doubles.to_float32(self.rate)

    @property
    def learning_rate_float64(self) -> jax.Array:
        """(), float64: the same rate, not rounded; needs `jax_enable_x64`."""
        return _doubles.to_float64(self.rate)


@checked_names
def greedy(
    learning_rate: Scalar,
    *,
    mode: str = "min",
    factor: Scalar = 0.95,
    patience: int = 10,
    threshold: Scalar = 1e-6,
    threshold_mode: str = "abs",
    cooldown: int = 0,
    warmup: int = 0,
    min_lr: Scalar = 1e-3,
    max_lr: Scalar = 1.0,
    eps: Scalar = 1e-8,
    smooth: bool = False,
    window_size: int = 50,
    reset_start: int = 500,
) -> MetricDrivenSchedule:
    """Divides the rate by `factor` after good metrics, multiplies by it after bad ones.

        good > patience:  rate = min(rate / factor, max_lr), if that is over eps higher
        bad > patience:   rate = max(rate * factor, min_lr), if that is over eps lower

    A metric is good if it beats the best so far, as in `reduce_lr_on_plateau`; NaN
    never does. After `reset_start` reductions at `min_lr` everything starts anew.

    The defaults are Transformers'. With them a rate below `min_lr` = 1e-3 can only
    rise: for a rate such as 5e-5 pass `min_lr` and `max_lr`.

    Args:
        learning_rate: the first rate; at least 0. It and the other numbers that are
            not counts may be traced, for a sweep: they are float32 then.
        mode: "min" where a lower metric is better, "max" where a higher one is.
        factor: what the rate is multiplied or divided by; above 0 and below 1.
        patience: a change comes after more metrics in a row than this; at least 0.
        threshold: by how much a better metric must be better; at least 0.
        threshold_mode: "rel", a share of the best, or "abs", in the metric's unit.
        cooldown: how many metrics after a reduction are not looked at; at least 0.
        warmup: how many metrics after an increase are not looked at; at least 0.
        min_lr: the rate does not fall below; at least 0.
        max_lr: the rate does not rise above; at least 0.
        eps: a smaller change of the rate is left out; at least 0.
        smooth: whether the mean of the last metrics is looked at instead.
        window_size: how many metrics that mean is of; at least 1.
        reset_start: how many reductions at `min_lr` until the reset; at least 0.

    Returns:
        `state = init()`, `state = update(state, metric)`, and `state.learning_rate`.

    Raises:
        ValueError: if an argument is out of its range, or `min_lr` is above `max_lr`;
            from `update`, if the state has another `smooth` or `window_size`.
        TypeError: if one is of another kind; from `update`, if the metric is not a real
            number, or the state not one of this schedule.

    Source: transformers 5.23 `optimization.py`, `GreedyLR`.
    Differs: bounds in the wrong order are an error; there, such a rate jumps between
    the two.
    """
    _checks.non_negative("learning_rate", learning_rate)
    improvement = Improvement(mode, threshold, threshold_mode)
    improvement.check()
    check_factor(factor)
    patience = _checks.step_count("patience", patience)
    cooldown = _checks.step_count("cooldown", cooldown)
    warmup = _checks.step_count("warmup", warmup)
    _checks.non_negative("min_lr", min_lr)
    _checks.non_negative("max_lr", max_lr)
    _check_bounds(min_lr, max_lr)
    _checks.non_negative("eps", eps)
    if not isinstance(smooth, bool):
        raise TypeError(f"`smooth` must be a bool, got {smooth!r}. Pass True or False.")
    window_size = _checks.step_count("window_size", window_size, least=1)
    reset_start = _checks.step_count("reset_start", reset_start)

    def init() -> GreedyState:
        # Arrays of their own, so that a step can take over the buffer of each.
        return GreedyState(
            rate=_doubles.double_from_scalar(learning_rate),
            best=improvement.worst(),
            num_bad_updates=jnp.zeros((), jnp.int32),
            num_good_updates=jnp.zeros((), jnp.int32),
            cooldown_left=jnp.zeros((), jnp.int32),
            warmup_left=jnp.zeros((), jnp.int32),
            reset_left=jnp.int32(reset_start),
            average=_empty_average(window_size) if smooth else None,
        )

    def update(state: GreedyState, metric: Any) -> GreedyState:
        check_state(state, GreedyState)
        current, average = read_metric(metric), state.average
        _check_average(average, window_size if smooth else None)
        if average is not None:
            average = _appended(average, current)
            count = double_float.from_int(average.num_values)
            current = double_float.divide(average.total, count)

        # The cooldown comes first; while either lasts, metrics are not looked at.
        cooling = state.cooldown_left > 0
        warming = ~cooling & (state.warmup_left > 0)
        looks = ~cooling & ~warming
        better = looks & improvement.is_better(current, state.best)
        worse = looks & ~better
        good = jnp.where(better, state.num_good_updates + 1, 0)
        bad = jnp.where(worse, state.num_bad_updates + 1, 0)
        increase, reduce = good > patience, bad > patience

        rate = _doubles.select(
            increase, _raised(state.rate, factor, max_lr, eps), state.rate
        )
        rate = _doubles.select(reduce, lowered(state.rate, factor, min_lr, eps), rate)
        at_min = ~_doubles.less(_doubles.double_from_scalar(min_lr), rate)
        reset_left = jnp.where(increase, reset_start, state.reset_left)
        reset_left -= (reduce & at_min).astype(jnp.int32)
        cooldown_left = state.cooldown_left - cooling.astype(jnp.int32)
        warmup_left = state.warmup_left - warming.astype(jnp.int32)
        new = GreedyState(
            rate=rate,
            best=double_float.select(better, current, state.best),
            num_bad_updates=jnp.where(reduce, 0, bad),
            num_good_updates=jnp.where(increase, 0, good),
            cooldown_left=jnp.where(reduce, cooldown, cooldown_left),
            warmup_left=jnp.where(increase, warmup, warmup_left),
            reset_left=reset_left,
            average=average,
        )
        # The cooldown of the reduction that leads to a reset is kept.
        fresh = init()._replace(cooldown_left=new.cooldown_left)
        reset = reduce & at_min & (reset_left <= 0)
        return jax.tree.map(lambda a, b: jnp.where(reset, a, b), fresh, new)

    return MetricDrivenSchedule(init, update)


def _raised(rate: Double, factor: Scalar, max_lr: Scalar, eps: Scalar) -> Double:
    """min(rate / factor, max_lr), unless that is no more than `eps` away."""
    most = _doubles.double_from_scalar(max_lr)
    higher = _doubles.divide(rate, _doubles.double_from_scalar(factor))
    higher = _doubles.select(_doubles.less(most, higher), most, higher)
    worth_it = _doubles.less(rate, higher) & _doubles.less(
        _doubles.double_from_scalar(eps), _doubles.subtract(higher, rate)
    )
    return _doubles.select(worth_it, higher, rate)


def _check_bounds(min_lr: Scalar, max_lr: Scalar) -> None:
    are_known = _checks.is_concrete(min_lr) and _checks.is_concrete(max_lr)
    if are_known and min_lr > max_lr:
        raise ValueError(
            f"`min_lr` must be at most `max_lr`, got min_lr={min_lr!r} with "
            f"max_lr={max_lr!r}. Give both (their defaults are 1e-3 and 1)."
        )


def _check_average(average: AverageState | None, window_size: int | None) -> None:
    """Raises unless the state has the smoothing of this schedule."""
    found = None if average is None else average.values.high.shape[0]
    if found != window_size:

        def options(size: int | None) -> str:
            return "`smooth`=False" if size is None else f"`window_size`={size}"

        raise ValueError(
            f"`state` must have been made with {options(window_size)}, got one with "
            f"{options(found)}. Take `init()` of this schedule, or the options of the "
            "run that the state is from."
        )


def _empty_average(window_size: int) -> AverageState:
    def zeros(*shape: int) -> TwoFloats:
        return TwoFloats(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))

    return AverageState(
        values=zeros(window_size),
        total=zeros(),
        place=jnp.zeros((), jnp.int32),
        num_values=jnp.zeros((), jnp.int32),
    )


def _appended(average: AverageState, value: TwoFloats) -> AverageState:
    """One more value, and the oldest out once the window is full."""
    values, total, place, num_values = average
    size = values.high.shape[0]
    oldest = TwoFloats(values.high[place], values.low[place])
    total = double_float.add(total, value)
    # Added first and taken out after, as there: an infinity leaves NaN behind.
    without = double_float.subtract(total, oldest)
    return AverageState(
        values=TwoFloats(
            values.high.at[place].set(value.high), values.low.at[place].set(value.low)
        ),
        total=double_float.select(num_values >= size, without, total),
        place=(place + 1) % size,
        num_values=jnp.minimum(num_values + 1, size),
    )
