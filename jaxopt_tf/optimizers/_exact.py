"""Arithmetic on the scalars of an update, as exact as torch's doubles.

Bias corrections, 1 - rate * weight_decay and the like are the same formulas for all
leaves. For leaves up to float32 they are evaluated in pairs of float32, which need no
double precision of a device; for float64 leaves in float64.
"""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._numerics import double_float, scalar, wide_dtype
from .._typing import Scalar

# A pair of float32, or a float64 array.
Exact = double_float.TwoFloats | jax.Array


class Arithmetic(NamedTuple):
    """Functions of exact scalars, and back to the dtype of a leaf's arithmetic."""

    dtype: Any  # float32 or float64
    from_scalar: Callable[[Scalar], Any]  # a host double, or an array
    from_int: Callable[[jax.Array], Any]  # an int32
    add: Callable[[Any, Any], Any]
    subtract: Callable[[Any, Any], Any]
    multiply: Callable[[Any, Any], Any]
    divide: Callable[[Any, Any], Any]
    sqrt: Callable[[Any], Any]
    power: Callable[[Scalar, jax.Array], Any]  # from 0 to 1, to the power of an int32
    rounded: Callable[[Any], jax.Array]  # of a result
    leading: Callable[[Any], jax.Array]  # of an argument, which is rounded already


def arithmetic(dtype: Any) -> Arithmetic:
    """Returns the arithmetic for leaves of `dtype`."""
    return _FLOAT64 if wide_dtype(dtype) == jnp.float64 else _FLOAT32


def one_minus(of: Arithmetic, value: Any) -> Any:
    """Returns 1 - value of an exact scalar."""
    return of.subtract(of.from_scalar(1.0), value)


def _power32(base: Scalar, exponent: jax.Array) -> double_float.TwoFloats:
    is_array = isinstance(base, jax.Array)
    base = scalar(base, jnp.float32) if is_array else float(base)
    return double_float.power(base, exponent)


def _power64(base: Scalar, exponent: jax.Array) -> jax.Array:
    return scalar(base, jnp.float64) ** exponent.astype(jnp.float64)


_FLOAT32 = Arithmetic(
    jnp.dtype(jnp.float32),
    double_float.from_scalar,
    double_float.from_int,
    double_float.add,
    double_float.subtract,
    double_float.multiply,
    double_float.divide,
    double_float.sqrt,
    _power32,
    double_float.to_float32,
    operator.attrgetter("high"),
)
_FLOAT64 = Arithmetic(
    jnp.dtype(jnp.float64),
    lambda value: scalar(value, jnp.float64),
    lambda value: value.astype(jnp.float64),
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    jnp.sqrt,
    _power64,
    lambda value: value,
    lambda value: value,
)
