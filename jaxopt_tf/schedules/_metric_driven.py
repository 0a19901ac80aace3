"""Metric-driven schedules: `reduce_lr_on_plateau` and `greedy`.

Each is a pair of pure functions on the host, `state = init()` and
`state = update(state, metric)`. States contain Python floats, which are doubles as in
torch, and `update` evaluates the expressions of torch and Transformers in their order.
Decisions and rates are therefore bitwise equal. This includes `rate / 0.95 * 0.95`,
which is either the old rate or one unit in the last place above it.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .. import _checks
from .._typing import Scalar
from ._repr import schedule_function, tuple_repr


class MetricDrivenSchedule(NamedTuple):
    """Metric-driven schedule; the rate is the field `learning_rate` of its state."""

    init: Callable[[], Any]  # () -> state
    update: Callable[[Any, Any], Any]  # (state, metric) -> state

    def __repr__(self) -> str:
        return tuple_repr(self)


class PlateauState(NamedTuple):
    """State of `reduce_lr_on_plateau`: Python numbers, which checkpoints can store."""

    learning_rate: float  # current rate, equal to torch's double
    best: float  # best metric so far; infinite before the first
    num_bad_updates: int  # consecutive updates without a better metric
    cooldown_left: int  # remaining updates that do not count as bad


class AverageState(NamedTuple):
    """Moving window of `greedy` with `smooth=True`, and its sum."""

    values: np.ndarray  # (window_size,), float64: newest last, zeros until it is full
    total: float  # sum of the metrics in `values`
    num_values: int  # number of metrics in `values`


class GreedyState(NamedTuple):
    """State of `greedy`: Python numbers, which checkpoints can store."""

    learning_rate: float  # current rate, equal to the double of Transformers
    best: float  # best metric so far; infinite before the first
    num_bad_updates: int  # consecutive updates without a better metric
    num_good_updates: int  # consecutive updates with a better metric
    cooldown_left: int  # remaining updates to ignore after a reduction
    warmup_left: int  # remaining updates to ignore after an increase
    reset_left: int  # remaining reductions at min_lr before the state is reset
    average: AverageState | None  # None without smoothing


@schedule_function
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
    """Reduces the rate after more than `patience` metrics without an improvement.

        mode "min", "rel":  better = metric < best * (1 - threshold)
        mode "min", "abs":  better = metric < best - threshold
        mode "max", "rel":  better = metric > best * (1 + threshold)
        mode "max", "abs":  better = metric > best + threshold

    After more than `patience` consecutive metrics that are not better, the rate becomes
    max(rate * factor, min_lr), unless this lowers it by at most `eps`. NaN is never
    better. `update` is called once per evaluation.

    Args:
        learning_rate: initial rate; at least 0.
        mode: "min" if a lower metric is better, "max" if a higher metric is better.
        factor: factor of a reduction; greater than 0 and less than 1.
        patience: number of consecutive metrics without an improvement that are
            tolerated; at least 0.
        threshold: minimum improvement; at least 0.
        threshold_mode: "rel" for a threshold relative to the best metric, "abs" for an
            absolute one.
        cooldown: number of metrics after a reduction that do not count as bad; at
            least 0.
        min_lr: lower bound of the rate; at least 0.
        eps: minimum change of the rate; smaller changes are ignored; at least 0.

    Returns:
        A pair of `init()` -> state and `update(state, metric)` -> state, where
        `state.learning_rate` is the rate. `metric` is a number or a 0-d array. Both
        functions must be called outside of `jax.jit`.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if an argument has the wrong type or is traced; from `update`, if the
            metric is not a real number or the state is not a `PlateauState`.

    Examples:
        >>> schedule = reduce_lr_on_plateau(1e-3, factor=0.5, patience=1)
        >>> state = schedule.init()
        >>> for loss in (2.0, 2.1, 2.2):
        ...     state = schedule.update(state, loss)
        >>> state.learning_rate
        0.0005

    Source: torch 2.13 `optim/lr_scheduler.py`, `ReduceLROnPlateau`.
    Differs: `optax.contrib.reduce_on_plateau` reduces after `patience` bad metrics,
    this function after `patience + 1`.
    """
    first_rate = _non_negative("learning_rate", learning_rate)
    rule = _Rule.checked(
        mode, factor, patience, threshold, threshold_mode, cooldown, min_lr, eps
    )

    def init() -> PlateauState:
        return PlateauState(first_rate, rule.worst, num_bad_updates=0, cooldown_left=0)

    def update(state: PlateauState, metric: Any) -> PlateauState:
        _check_state(state, PlateauState)
        current = _host_metric(metric)
        rate, best, cooldown_left = state.learning_rate, state.best, state.cooldown_left
        num_bad = state.num_bad_updates + 1
        if rule.is_better(current, best):
            best, num_bad = current, 0
        if cooldown_left > 0:  # tested before the decrement, as in torch
            cooldown_left, num_bad = cooldown_left - 1, 0
        if num_bad > rule.patience:
            rate, cooldown_left, num_bad = rule.reduced(rate), rule.cooldown, 0
        return PlateauState(rate, best, num_bad, cooldown_left)

    return MetricDrivenSchedule(init, update)


@schedule_function
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
    """Increases the rate after good metrics and reduces it after bad ones.

        good > patience:  rate = min(rate / factor, max_lr), if that is over eps higher
        bad > patience:   rate = max(rate * factor, min_lr), if that is over eps lower

    A metric is good if it improves on the best so far, as in `reduce_lr_on_plateau`;
    NaN never does. After `reset_start` reductions at `min_lr` without an increase, the
    rate and the best metric return to their initial values.

    The defaults are those of Transformers. With them, a rate below `min_lr` = 1e-3 can
    only increase: for a rate such as 5e-5 pass `min_lr` and `max_lr`.

    Args:
        learning_rate: initial rate; at least 0.
        mode: "min" if a lower metric is better, "max" if a higher metric is better.
        factor: factor of a reduction, divisor of an increase; greater than 0 and less
            than 1.
        patience: number of consecutive good, or bad, metrics after which the next one
            changes the rate; at least 0.
        threshold: minimum improvement; at least 0.
        threshold_mode: "rel" for a threshold relative to the best metric, "abs" for an
            absolute one.
        cooldown: number of metrics that are ignored after a reduction; at least 0.
        warmup: number of metrics that are ignored after an increase; at least 0.
        min_lr: lower bound of the rate; at least 0.
        max_lr: upper bound of the rate; at least 0.
        eps: minimum change of the rate; smaller changes are ignored; at least 0.
        smooth: whether to compare the mean of the last metrics.
        window_size: number of metrics of that mean; at least 1.
        reset_start: number of reductions at `min_lr` before the reset; at least 0.

    Returns:
        A pair of `init()` -> state and `update(state, metric)` -> state, where
        `state.learning_rate` is the rate. `metric` is a number or a 0-d array. Both
        functions must be called outside of `jax.jit`.

    Raises:
        ValueError: if an argument is out of range, or `min_lr` is above `max_lr`; from
            `update`, if the state has another `smooth` or `window_size`.
        TypeError: if an argument has the wrong type or is traced; from `update`, if the
            metric is not a real number or the state is not a `GreedyState`.

    Examples:
        >>> schedule = greedy(1e-3, patience=0, factor=0.5)
        >>> state = schedule.update(schedule.init(), 2.0)  # a better metric
        >>> state.learning_rate
        0.002

    Source: transformers 5.23 `optimization.py`, `GreedyLR`.
    Differs: `min_lr` above `max_lr` is an error; in Transformers the rate then
    alternates between the two.
    """
    first_rate = _non_negative("learning_rate", learning_rate)
    rule = _Rule.checked(
        mode, factor, patience, threshold, threshold_mode, cooldown, min_lr, eps
    )
    warmup = _checks.step_count("warmup", warmup)
    highest_rate = _non_negative("max_lr", max_lr)
    _check_bounds(min_lr, max_lr)
    if not isinstance(smooth, bool):
        raise TypeError(f"`smooth` must be a bool, got {smooth!r}. Pass True or False.")
    window_size = _checks.step_count("window_size", window_size, minimum=1)
    reset_start = _checks.step_count("reset_start", reset_start)

    def init() -> GreedyState:
        empty = AverageState(np.zeros(window_size), total=0.0, num_values=0)
        average = empty if smooth else None
        return GreedyState(first_rate, rule.worst, 0, 0, 0, 0, reset_start, average)

    def update(state: GreedyState, metric: Any) -> GreedyState:
        _check_state(state, GreedyState)
        _check_average(state.average, window_size if smooth else None)
        current, average = _host_metric(metric), state.average
        if average is not None:
            average = _with_metric(average, current)
            current = average.total / average.num_values
        rate, best, reset_left = state.learning_rate, state.best, state.reset_left
        cooldown_left, warmup_left = state.cooldown_left, state.warmup_left

        num_good = num_bad = 0
        if cooldown_left > 0:
            cooldown_left -= 1
        elif warmup_left > 0:
            warmup_left -= 1
        elif rule.is_better(current, best):
            best, num_good = current, state.num_good_updates + 1
        else:
            num_bad = state.num_bad_updates + 1

        if num_good > rule.patience:
            higher = min(rate / rule.factor, highest_rate)
            rate = higher if higher - rate > rule.eps else rate
            warmup_left, reset_left, num_good = warmup, reset_start, 0
        elif num_bad > rule.patience:
            rate, cooldown_left, num_bad = rule.reduced(rate), rule.cooldown, 0
            if rate <= rule.min_lr:
                reset_left -= 1
                if reset_left <= 0:
                    # Transformers sets the cooldown of this reduction after the reset.
                    return init()._replace(cooldown_left=cooldown_left)
        return GreedyState(
            rate,
            best,
            num_bad,
            num_good,
            cooldown_left,
            warmup_left,
            reset_left,
            average,
        )

    return MetricDrivenSchedule(init, update)


class _Rule(NamedTuple):
    """Settings that `reduce_lr_on_plateau` and `greedy` have, as Python numbers."""

    mode: str
    factor: float
    patience: int
    threshold: float
    threshold_mode: str
    cooldown: int
    min_lr: float
    eps: float

    @classmethod
    def checked(cls, *settings: Any) -> "_Rule":
        """Converts the settings to Python numbers; raises if one is out of range."""
        given = cls(*settings)
        _checks.one_of("mode", given.mode, ("min", "max"))
        _checks.one_of("threshold_mode", given.threshold_mode, ("rel", "abs"))
        _checks.positive("factor", given.factor)
        factor = _on_host("factor", given.factor)
        if not factor < 1:
            raise ValueError(
                f"`factor` must be less than 1, got {given.factor!r}. The rate is "
                "multiplied by it to reduce it."
            )
        return given._replace(
            factor=factor,
            patience=_checks.step_count("patience", given.patience),
            threshold=_non_negative("threshold", given.threshold),
            cooldown=_checks.step_count("cooldown", given.cooldown),
            min_lr=_non_negative("min_lr", given.min_lr),
            eps=_non_negative("eps", given.eps),
        )

    @property
    def worst(self) -> float:
        """Initial value of `best`, which any finite metric improves."""
        return math.inf if self.mode == "min" else -math.inf

    def is_better(self, metric: float, best: float) -> bool:
        """Returns whether `metric` improves on `best` by more than the threshold."""
        margin = -self.threshold if self.mode == "min" else self.threshold
        bound = best * (1.0 + margin) if self.threshold_mode == "rel" else best + margin
        return metric < bound if self.mode == "min" else metric > bound

    def reduced(self, rate: float) -> float:
        """Returns the reduced rate; `rate` itself if the change is at most eps."""
        lower = max(rate * self.factor, self.min_lr)
        return lower if rate - lower > self.eps else rate


def _non_negative(name: str, value: Scalar) -> float:
    _checks.non_negative(name, value)
    return _on_host(name, value)


def _host_metric(metric: Any) -> float:
    _checks.real_number("metric", metric)
    return _on_host("metric", metric)


def _on_host(name: str, value: Any) -> float:
    """Returns `value` as a Python float; raises if it is traced."""
    if not _checks.is_concrete(value):
        raise TypeError(
            f"`{name}` must be a number that is known on the host, got a traced array. "
            "Call metric-driven schedules outside of `jax.jit`: their decisions use "
            "doubles, which compiled programs do not have by default."
        )
    return float(value)


def _check_state(state: Any, kind: type[PlateauState] | type[GreedyState]) -> None:
    """Raises unless `state` is a `kind` with Python numbers."""
    if not isinstance(state, kind):
        raise TypeError(
            f"`state` must be a `{kind.__name__}`, got {type(state).__name__}. Pass "
            "the result of `init()` or of the previous `update`."
        )
    # A state that was passed through `jax.jit` contains a rate rounded to float32.
    if not isinstance(state.learning_rate, float):
        raise TypeError(
            "`state` must contain Python numbers, got a `learning_rate` of type "
            f"{type(state.learning_rate).__name__}. "
            "Do not pass the state to compiled functions; pass `state.learning_rate` "
            "to `set_learning_rate`."
        )


def _check_bounds(min_lr: Scalar, max_lr: Scalar) -> None:
    if min_lr > max_lr:
        raise ValueError(
            f"`min_lr` must be at most `max_lr`, got min_lr={min_lr!r} with "
            f"max_lr={max_lr!r}. Pass both (their defaults are 1e-3 and 1)."
        )


def _check_average(average: AverageState | None, window_size: int | None) -> None:
    """Raises unless the state has the `smooth` and `window_size` of the schedule."""
    found = None if average is None else len(average.values)
    if found != window_size:

        def options(size: int | None) -> str:
            return "`smooth`=False" if size is None else f"`window_size`={size}"

        raise ValueError(
            f"`state` must have been created with {options(window_size)}, got one with "
            f"{options(found)}. Use `init()` of this schedule, or the options with "
            "which the state was created."
        )


def _with_metric(average: AverageState, metric: float) -> AverageState:
    """Appends a metric; removes the oldest once the window is full."""
    total, num_values = average.total + metric, average.num_values + 1
    if num_values > len(average.values):
        # In the order of Transformers: addition, then subtraction. An infinite metric
        # makes the sum NaN when it leaves the window.
        total, num_values = total - float(average.values[0]), num_values - 1
    return AverageState(np.append(average.values[1:], metric), total, num_values)
