"""Hyper-parameters as float32 scalars, rounded once: from the host's double."""

import jax
import jax.numpy as jnp

from . import _check
from ._typing import PyTree, Scalar


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


def computed_once(scalars: PyTree, count: jax.Array) -> PyTree:
    """The same scalars, as one computation that all leaves read.

    XLA computes sums and selects anew in the loop of every leaf that reads them, but
    no division. So the floats are divided by a one that no compiler can know, since
    it does not know that a count, (), int32, is never negative.
    """
    one = 1.0 - jnp.minimum(count, 0).astype(jnp.float32)
    return jax.tree.map(lambda x: x / one if x.dtype == jnp.float32 else x, scalars)
