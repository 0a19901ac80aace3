"""The learning rate of one update, and the fields of a state that hold it.

A learning rate is a float, a 0-d array or a schedule. All optimizers keep it in the
same three fields, so that every state has the same tree:

- `step`: number of updates, the argument of a schedule. It is counted for constant
  rates too.
- `learning_rate`: rate of the last update.
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

from typing import Any

import jax
import jax.numpy as jnp
import optax

from .. import _check, _two_floats
from .._two_floats import TwoFloats
from .._typing import ScalarOrSchedule

# Values of `rate_source`.
CONSTANT, SCHEDULE, SET = 0, 1, 2


def check(learning_rate: ScalarOrSchedule) -> None:
    """Raises unless `learning_rate` is a schedule or a number that is at least 0."""
    if not callable(learning_rate):
        _check.non_negative("learning_rate", learning_rate)


def init(learning_rate: ScalarOrSchedule) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the fields `step`, `learning_rate` and `rate_source` of a new state."""
    step = jnp.zeros((), jnp.int32)
    is_schedule = callable(learning_rate)
    rate = learning_rate(step) if callable(learning_rate) else learning_rate
    source = jnp.asarray(SCHEDULE if is_schedule else CONSTANT, jnp.int32)
    return step, _copied(rate), source


def current(learning_rate: ScalarOrSchedule, state: Any) -> jax.Array:
    """Returns the rate of this update; (), float32."""
    if callable(learning_rate):
        return _copied(learning_rate(state.step))
    given = _copied(learning_rate)
    stored = jnp.asarray(state.learning_rate, jnp.float32)
    if isinstance(learning_rate, jax.Array):
        return jnp.where(state.rate_source == SET, stored, given)
    return jnp.where(state.rate_source == SCHEDULE, given, stored)


def exact(learning_rate: ScalarOrSchedule, rate: jax.Array) -> TwoFloats:
    """The rate with what float32 leaves of a host's double, unless it was changed."""
    pair = _two_floats.from_float32(rate)
    if callable(learning_rate) or isinstance(learning_rate, jax.Array):
        return pair
    double = _two_floats.from_float(learning_rate)
    return _two_floats.select(rate == double.high, double, pair)


def advanced(
    learning_rate: ScalarOrSchedule, state: Any, rate: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the three fields after an update with `rate`."""
    step = optax.safe_increment(state.step)
    if callable(learning_rate):
        return step, rate, jnp.full_like(state.rate_source, SCHEDULE)
    source = jnp.where(state.rate_source == SET, SET, CONSTANT)
    return step, rate, source.astype(state.rate_source.dtype)


def _copied(rate: Any) -> jax.Array:
    # A step may donate the state, and an array belongs to the caller.
    return jnp.array(rate, jnp.float32, copy=True)
