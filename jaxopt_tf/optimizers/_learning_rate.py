"""The learning rate of one update, and the fields of a state that hold it.

A learning rate is a float, a 0-d array or a schedule. All optimizers keep it in the
same three fields, so that every state has the same tree:

- `step`: number of updates, the argument of a schedule. It is counted for constant
  rates too.
- `learning_rate`: rate of the last update; float64 if a parameter is, else float32.
- `rate_source`: `CONSTANT`, `SCHEDULE` or `SET`, the origin of that rate.

A schedule is evaluated at `step` at every update. A float initializes `learning_rate`,
which is used from then on: it can be changed between steps without recompiling. An
array replaces `learning_rate` at every update, as `optax.inject_hyperparams` and `vmap`
require, until `set_learning_rate` has set another rate.

A state can be restored into an optimizer with another kind of rate. Rate of the first
update after that:

    saved with         restored into      rate
    float or array     float              the saved one, as in torch
    float or array     schedule           schedule(step): the schedule is continued
    float or array     array              the array
    set by hand        float or array     the one that was set
    schedule           float or array     the float or array of the optimizer, because
                                          the saved rate belongs to the schedule
    schedule           schedule           schedule(step)

The relative step of Adafactor counts as a schedule; it is a function of the number of
moment updates.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .. import _checks, _pytrees
from .._numerics import double_float, wide_dtype, widest_dtype
from .._typing import PyTree, ScalarOrSchedule
from ._exact import Exact

# The rate of one update, (), by the dtype in which leaves are computed.
Rates = Mapping[Any, jax.Array]

# Values of `rate_source`.
CONSTANT, SCHEDULE, SET = 0, 1, 2


def check(learning_rate: ScalarOrSchedule) -> None:
    """Raises unless `learning_rate` is a schedule or a number that is at least 0."""
    if not callable(learning_rate):
        _checks.non_negative("learning_rate", learning_rate)


def init(
    learning_rate: ScalarOrSchedule, params: PyTree
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the fields `step`, `learning_rate` and `rate_source` of a new state."""
    step = jnp.zeros((), jnp.int32)
    source = SCHEDULE if callable(learning_rate) else CONSTANT
    rate = _given(learning_rate, step, widest_dtype(params))
    return step, rate, jnp.asarray(source, jnp.int32)


def current(learning_rate: ScalarOrSchedule, state: Any, params: PyTree) -> Rates:
    """Returns the rate of this update in the dtypes of the leaves and of the state."""
    leaves = [leaf for leaf in jax.tree.leaves(params) if _pytrees.is_floating(leaf)]
    wide = (wide_dtype(leaf.dtype) for leaf in leaves)
    dtypes = dict.fromkeys([state.learning_rate.dtype, *wide])
    return {dtype: _rate(learning_rate, state, dtype) for dtype in dtypes}


def exact(learning_rate: ScalarOrSchedule, rates: Rates) -> Mapping[Any, Exact]:
    """Returns the rates with the digits of a host's double, unless it was changed."""

    def of(rate: jax.Array) -> Exact:
        if rate.dtype == jnp.float64:
            return rate
        pair = double_float.from_float32(rate)
        if callable(learning_rate) or isinstance(learning_rate, jax.Array):
            return pair
        double = double_float.from_float(learning_rate)
        return double_float.select(rate == double.high, double, pair)

    return {dtype: of(rate) for dtype, rate in rates.items()}


def advanced(
    learning_rate: ScalarOrSchedule, state: Any, rates: Rates
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the three fields after an update with `rates`."""
    step, rate = optax.safe_increment(state.step), rates[state.learning_rate.dtype]
    if callable(learning_rate):
        return step, rate, jnp.full_like(state.rate_source, SCHEDULE)
    source = jnp.where(state.rate_source == SET, SET, CONSTANT)
    return step, rate, source.astype(state.rate_source.dtype)


def _rate(learning_rate: ScalarOrSchedule, state: Any, dtype: Any) -> jax.Array:
    given = _given(learning_rate, state.step, dtype)
    if callable(learning_rate):
        return given
    stored = jnp.asarray(state.learning_rate, dtype)
    if isinstance(learning_rate, jax.Array):
        return jnp.where(state.rate_source == SET, stored, given)
    return jnp.where(state.rate_source == SCHEDULE, given, stored)


def _given(learning_rate: ScalarOrSchedule, step: jax.Array, dtype: Any) -> jax.Array:
    rate: Any = learning_rate
    if callable(learning_rate):
        # Schedules return float64 for an int64 step, and float32 for an int32.
        rate = learning_rate(step.astype(jnp.int64) if dtype == jnp.float64 else step)
    # A copy: a step may donate the state, and an array belongs to the caller.
    return jnp.array(rate, dtype, copy=True)
