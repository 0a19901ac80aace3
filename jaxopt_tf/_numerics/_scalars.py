"""Hyperparameters as scalars in the dtype of the arithmetic on a leaf.

A hyperparameter is rounded once, from the host's double. Expressions such as bias
corrections and 1 - rate * weight_decay need more digits than float32 has. They are
evaluated as exact scalars: pairs of float32 for leaves up to float32, and float64 for
float64 leaves. `+`, `-`, `*` and `/` apply to both kinds, so that a formula is written
once.

float64 arrays require `jax_enable_x64`. Without it, JAX converts a float64 NumPy array
to float32, and so do the functions in this module.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _checks
from .._typing import PyTree, Scalar
from . import double_float
from .double_float import DoubleFloat

# A scalar: a `DoubleFloat`, or a float64 array of shape (). The operands of an operator
# must be of the same type.
ExactScalar = Any


def wide_dtype(dtype: Any) -> np.dtype:
    """Returns the dtype of the arithmetic on a leaf: float64 for float64, else float32.

    It is also the dtype of the leaf's moments, learning rate and norm.
    """
    is_wide = dtype == jnp.float64 and has_float64()
    return np.dtype(np.float64 if is_wide else np.float32)


def widest_dtype(tree: PyTree) -> np.dtype:
    """Returns float64 if any leaf of `tree` is computed in float64, else float32."""
    wide = {wide_dtype(getattr(leaf, "dtype", None)) for leaf in jax.tree.leaves(tree)}
    return max(wide, key=lambda dtype: dtype.itemsize, default=np.dtype(np.float32))


def has_float64() -> bool:
    """Returns whether `jax_enable_x64` is set at the time of the call."""
    return bool(jax.dtypes.canonicalize_dtype(jnp.float64) == jnp.float64)


def scalar(value: Scalar, dtype: Any) -> jax.Array:
    """Returns `value` as a scalar array; (), `dtype`."""
    return jnp.asarray(value).astype(dtype)


def one_minus(value: Scalar, dtype: Any) -> jax.Array:
    """Returns 1 - value in `dtype`.

    For a Python number, the difference is computed in double precision and then
    rounded. For an array, it is computed in `dtype`, and is exact if the value is from
    1/2 to 1.
    """
    if isinstance(value, jax.Array):
        return 1.0 - scalar(value, dtype)
    # Subtracted in double: 1 - float32(0.999) has a relative error of 1.3e-5.
    return scalar(1.0 - float(value), dtype)


def is_zero(value: Scalar) -> bool:
    """Returns whether `value` is known to be 0, so that its term can be left out."""
    return _checks.is_concrete(value) and float(value) == 0.0


def exact_scalar(value: Scalar, dtype: Any) -> ExactScalar:
    """Converts a Python number or an array to an exact scalar.

    Args:
        value: a Python number, rounded to 48 bits for float32; or an array, which is
            converted to `dtype`.
        dtype: dtype of the arithmetic that uses the result: float32 or float64.
    """
    is_wide = dtype == jnp.float64
    return scalar(value, dtype) if is_wide else double_float.from_scalar(value)


def exact_int(value: jax.Array, dtype: Any) -> ExactScalar:
    """Converts an int32 array to an exact scalar for arithmetic in `dtype`."""
    is_wide = dtype == jnp.float64
    return value.astype(dtype) if is_wide else double_float.from_int(value)


def exact_power(base: Scalar, exponent: jax.Array, dtype: Any) -> ExactScalar:
    """Returns base ** exponent for a base from 0 to 1 and an int32 exponent."""
    if dtype == jnp.float64:
        return scalar(base, dtype) ** exponent.astype(dtype)
    is_array = isinstance(base, jax.Array)
    base = scalar(base, jnp.float32) if is_array else float(base)
    return double_float.power(base, exponent)


def exact_sqrt(value: ExactScalar) -> ExactScalar:
    """Returns the square root of an exact scalar that is greater than 0."""
    is_pair = isinstance(value, DoubleFloat)
    return double_float.sqrt(value) if is_pair else jnp.sqrt(value)


def rounded(value: ExactScalar) -> jax.Array:
    """Returns an exact scalar rounded to the dtype of the arithmetic."""
    return double_float.to_float32(value) if isinstance(value, DoubleFloat) else value
