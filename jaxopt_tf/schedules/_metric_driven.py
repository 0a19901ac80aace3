"""Schedules that a metric drives: a metric comes in, a learning rate goes out.

They are pure pairs of `init` and `update` with everything they remember in the state,
so that they run inside jit and scan and are saved with the rest of a run. The rate is
torch's double, bit for bit; metrics are carried as two float32 each, which is a double
to 2^-46. Only where two metrics are closer than that (in a mean from which something
1e10 times larger was taken away) can a comparison come out the other way.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import _checks
from .._numerics import double_float
from .._numerics.double_float import TwoFloats
from .._typing import Scalar
from . import _doubles
from ._doubles import Double


class MetricDrivenSchedule(NamedTuple):
    """A learning rate that follows a metric; the state has it as `learning_rate`."""

    init: Callable[[], Any]  # () -> state
    update: Callable[[Any, Any], Any]  # (state, metric) -> state


class Improvement(NamedTuple):
    """When a metric counts as better than the best so far."""

    mode: str  # "min" or "max"
    threshold: Scalar  # at least 0
    threshold_mode: str  # "rel", a share of the best, or "abs", in the metric's unit

    def check(self) -> None:
        """Raises unless every field is in its range."""
        _checks.one_of("mode", self.mode, ("min", "max"))
        _checks.non_negative("threshold", self.threshold)
        _checks.one_of("threshold_mode", self.threshold_mode, ("rel", "abs"))

    def worst(self) -> TwoFloats:
        """What everything finite is better than."""
        return double_float.from_float(np.inf if self.mode == "min" else -np.inf)

    def is_better(self, metric: TwoFloats, best: TwoFloats) -> jax.Array:
        """Whether `metric` beats `best` by more than the threshold; NaN never does."""
        margin = double_float.from_scalar(self.threshold)
        if self.mode == "min":
            margin = double_float.negate(margin)
        if self.threshold_mode == "rel":
            share = double_float.add(double_float.from_float(1.0), margin)
            bound = double_float.multiply(best, share)
        else:
            bound = double_float.add(best, margin)
        if self.mode == "min":
            return double_float.less(metric, bound)
        return double_float.less(bound, metric)


def check_factor(factor: Scalar) -> None:
    """Raises unless 0 < factor < 1."""
    _checks.positive("factor", factor)
    if _checks.is_concrete(factor) and not factor < 1:
        raise ValueError(
            f"`factor` must be less than 1, got {factor!r}. A rate is multiplied by it "
            "to come down."
        )


def read_metric(metric: Any) -> TwoFloats:
    """Returns a metric, finite or not, as two float32; raises unless it is a number."""
    _checks.real_number("metric", metric)
    if not isinstance(metric, jax.Array):
        return double_float.from_float(float(metric))
    if metric.dtype.itemsize == 8:  # under x64: a double to 2^-48, as of the host
        double = metric.astype(jnp.float64)
        high = double.astype(jnp.float32)
        low = (double - high.astype(jnp.float64)).astype(jnp.float32)
        return TwoFloats(high, jnp.where(jnp.isfinite(high), low, jnp.zeros_like(low)))
    if jnp.issubdtype(metric.dtype, jnp.integer):
        is_signed = jnp.issubdtype(metric.dtype, jnp.signedinteger)
        return double_float.from_int(
            metric.astype(jnp.int32 if is_signed else jnp.uint32)
        )
    return double_float.from_float32(metric.astype(jnp.float32))


def check_state(state: Any, kind: type) -> None:
    """Raises unless `state` is a `kind`, as `init` of this schedule returns it."""
    if not isinstance(state, kind):
        raise TypeError(
            f"`state` must be a `{kind.__name__}`, got {type(state).__name__}. Call "
            "`update(state, metric)` with what `init()` or the last `update` returned."
        )


def lowered(rate: Double, factor: Scalar, min_lr: Scalar, eps: Scalar) -> Double:
    """max(rate * factor, min_lr), unless that is no more than `eps` away."""
    least = _doubles.double_from_scalar(min_lr)
    lower = _doubles.multiply(rate, _doubles.double_from_scalar(factor))
    lower = _doubles.select(_doubles.less(lower, least), least, lower)
    worth_it = _doubles.less(lower, rate) & _doubles.less(
        _doubles.double_from_scalar(eps), _doubles.subtract(rate, lower)
    )
    return _doubles.select(worth_it, lower, rate)
