"""Hyper-parameters as float32 scalars, rounded once: from the host's double.

A program that does not know the double yet is handed it as a pair of float32.
"""

import jax
import jax.numpy as jnp

from . import _check, _two_floats
from ._two_floats import TwoFloats
from ._typing import PyTree, Scalar


def f32(value: Scalar | TwoFloats) -> jax.Array:
    """`value` as (), float32."""
    if isinstance(value, TwoFloats):
        return value.high
    return jnp.asarray(value).astype(jnp.float32)


def one_minus(value: Scalar | TwoFloats) -> jax.Array:
    """1 - value; of a float32 array exact where value >= 1/2."""
    if isinstance(value, TwoFloats):
        one = _two_floats.from_float(1.0)
        return _two_floats.to_float32(_two_floats.subtract(one, value))
    if isinstance(value, jax.Array):
        return 1.0 - f32(value)
    return jnp.float32(1.0 - float(value))


def is_zero(value: Scalar | TwoFloats) -> bool:
    """Whether `value` is known to be 0, so that what it multiplies can be left out."""
    if isinstance(value, TwoFloats):
        return False  # a number of the program's, not known yet
    return _check.is_concrete(value) and float(value) == 0.0


def computed_once(scalars: PyTree, count: jax.Array) -> PyTree:
    """The same scalars, as one computation that all leaves read.

    XLA computes sums and selects anew in the loop of every leaf that reads them, but
    no division. So the floats are divided by a one that no compiler can know, since
    it does not know that a count, (), int32, is never negative.
    """
    one = 1.0 - jnp.minimum(count, 0).astype(jnp.float32)
    return jax.tree.map(lambda x: x / one if x.dtype == jnp.float32 else x, scalars)
