"""Adafactor's decay and relative step, functions of the number of updates."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._numerics import scalar
from .._typing import Scalar, Step


class Clock(NamedTuple):
    """Scalars of one update, in the dtype of a leaf's arithmetic; () each."""

    kept: jax.Array  # share of the old second moment, beta2
    new: jax.Array  # share of the new one, 1 - beta2
    rate: jax.Array  # learning rate before the parameter scale


def tick(t: jax.Array, decay_rate: Scalar, rate: jax.Array) -> Clock:
    """Returns the clock at update t = 1, 2, ...: beta2 = 1 - t^decay_rate."""
    new = _power(t, decay_rate, rate.dtype)
    return Clock(1.0 - new, new, rate)


def relative_rate(t: Step, warmup_init: bool, dtype: Any) -> jax.Array:
    """Returns the rate of update t = 1, 2, ... where none is given; (), `dtype`."""
    t = jnp.asarray(t).astype(dtype)
    limit = scalar(1e-6, dtype) * t if warmup_init else scalar(1e-2, dtype)
    return jnp.minimum(limit, 1.0 / jnp.sqrt(t))


def _power(t: jax.Array, exponent: Scalar, dtype: Any) -> jax.Array:
    """Returns t^exponent, 1 for t = 1; (), `dtype`."""
    t = t.astype(dtype)
    power = t ** scalar(exponent, dtype)
    if isinstance(exponent, jax.Array) or dtype == jnp.float64:
        return power
    # The digits of the exponent that float32 cuts off, times the logarithm.
    cut_off = exponent - float(np.float32(exponent))
    return power * (1.0 + scalar(cut_off, dtype) * jnp.log(t))
