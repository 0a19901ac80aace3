"""What Adafactor takes from the number of updates: its decay, its own learning rate."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._scalars import f32
from .._typing import Scalar, Step


class Clock(NamedTuple):
    """What an update takes from the number of updates before it."""

    kept: jax.Array  # (), float32: share of the old second moment, beta2
    new: jax.Array  # (), float32: share of the new one, 1 - beta2
    rate: jax.Array  # (), float32: learning rate before the parameter scale


def tick(t: jax.Array, decay_rate: Scalar, rate: jax.Array) -> Clock:
    """The clock at update t = 1, 2, ...: beta2 = 1 - t^decay_rate."""
    new = _power(t, decay_rate)
    return Clock(1.0 - new, new, rate)


def relative_rate(t: Step, warmup_init: bool) -> jax.Array:
    """The rate of update t = 1, 2, ... where none is given; (), float32."""
    t32 = jnp.asarray(t).astype(jnp.float32)
    limit = f32(1e-6) * t32 if warmup_init else f32(1e-2)
    return jnp.minimum(limit, 1.0 / jnp.sqrt(t32))


def _power(t: jax.Array, exponent: Scalar) -> jax.Array:
    """t^exponent, 1 for t = 1; (), float32."""
    t32 = t.astype(jnp.float32)
    power = t32 ** f32(exponent)
    if isinstance(exponent, jax.Array):
        return power
    # What rounding cuts off the exponent, the logarithm multiplies.
    cut_off = exponent - float(np.float32(exponent))
    return power * (1.0 + f32(cut_off) * jnp.log(t32))
