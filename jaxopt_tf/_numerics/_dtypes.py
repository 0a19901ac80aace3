"""Dtypes of leaves, and the dtype in which a leaf is computed.

float64 arrays exist under `jax_enable_x64` only. Without it JAX makes float32 of a
float64 numpy array, and so do the functions here.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import PyTree

_SUPPORTED = (jnp.float32, jnp.bfloat16, jnp.float16)


def wide_dtype(dtype: Any) -> np.dtype:
    """Returns the dtype of the arithmetic on a leaf: float64 for float64, else float32.

    Moments, learning rates and norms of the leaf have it too.
    """
    wide = jnp.float64 if dtype == jnp.float64 and has_float64() else jnp.float32
    return jnp.dtype(wide)


def widest_dtype(tree: PyTree) -> np.dtype:
    """Returns float64 if any leaf of `tree` is computed in float64, else float32."""
    wide = {wide_dtype(getattr(leaf, "dtype", None)) for leaf in jax.tree.leaves(tree)}
    return max(wide, key=lambda dtype: dtype.itemsize, default=jnp.dtype(jnp.float32))


def has_float64() -> bool:
    """Returns whether `jax_enable_x64` is set, here and now."""
    return jax.dtypes.canonicalize_dtype(jnp.float64) == jnp.float64


def is_narrow(dtype: Any) -> bool:
    """Returns whether `dtype` is a floating-point format of fewer than 16 bits."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 16


def unsupported(dtype: Any) -> str:
    """Returns what to do about a leaf whose dtype cannot be trained; "" where it can.

    Integers, booleans and keys can: optimizers leave them unchanged.
    """
    if not jnp.issubdtype(dtype, jnp.inexact) or dtype in _SUPPORTED:
        return ""
    if dtype == jnp.float64:
        advice = (
            'Cast it to float32, or set `jax.config.update("jax_enable_x64", True)`.'
        )
        return "" if has_float64() else advice
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return "Carry a complex number as two leaves."
    return (
        "Keep the parameter in float32 and cast it inside the loss function: a step is "
        "smaller than the rounding of such a format. Weights that are not trained are "
        "left out with `optax.masked`."
    )
