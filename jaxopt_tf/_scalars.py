"""Hyper-parameters as float32 scalars, rounded once: from the host's double."""

import jax
import jax.numpy as jnp

from . import _check
from ._typing import Scalar


def f32(value: Scalar) -> jax.Array:
    """`value` as (), float32."""
    return jnp.asarray(value).astype(jnp.float32)


def one_minus(value: Scalar) -> jax.Array:
    """1 - value; of a float32 array exact where value >= 1/2."""
    if isinstance(value, jax.Array):
        return 1.0 - f32(value)
    return jnp.float32(1.0 - float(value))


def is_zero(value: Scalar) -> bool:
    """Whether `value` is known to be 0, so that what it multiplies can be left out."""
    return _check.is_concrete(value) and float(value) == 0.0
