"""Hyper-parameters as scalars, rounded once: from the host's double to a dtype."""

from typing import Any

import jax
import jax.numpy as jnp

from .. import _checks
from .._typing import PyTree, Scalar


def scalar(value: Scalar, dtype: Any) -> jax.Array:
    """Returns `value` as (), `dtype`."""
    return jnp.asarray(value).astype(dtype)


def one_minus(value: Scalar, dtype: Any) -> jax.Array:
    """Returns 1 - value; for an array in `dtype`, exact where value >= 1/2."""
    if isinstance(value, jax.Array):
        return 1.0 - scalar(value, dtype)
    return scalar(1.0 - float(value), dtype)


def is_zero(value: Scalar) -> bool:
    """Whether `value` is known to be 0, so that what it multiplies can be left out."""
    return _checks.is_concrete(value) and float(value) == 0.0


def computed_once(scalars: PyTree, count: jax.Array, dtype: Any) -> PyTree:
    """Returns the same scalars, as one computation that all leaves read.

    XLA recomputes sums and selects in the loop of every leaf that reads them, but no
    division. So the scalars of `dtype` are divided by a one that no compiler can know,
    since it does not know that a count, (), int32, is never negative.
    """
    one = 1.0 - jnp.minimum(count, 0).astype(dtype)
    return jax.tree.map(lambda x: x / one if x.dtype == dtype else x, scalars)
