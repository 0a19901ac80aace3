"""What every named schedule asks of its arguments."""

from typing import Any

import jax.numpy as jnp

from .. import _checks
from .._typing import Scalar


def step_counts(num_warmup_steps: Any, num_training_steps: Any) -> tuple[int, int]:
    """Both as ints, checked."""
    return (
        _checks.step_count("num_warmup_steps", num_warmup_steps),
        _checks.step_count("num_training_steps", num_training_steps),
    )


def share_of(rate: float, learning_rate: Scalar) -> Scalar:
    """rate / learning_rate."""
    # On the host in double if the number is known; else in the dtype of the rate.
    if _checks.is_concrete(learning_rate):
        return float(rate) / float(learning_rate)
    learning_rate = jnp.asarray(learning_rate)
    is_float64 = learning_rate.dtype == jnp.float64
    dtype = jnp.float64 if is_float64 else jnp.float32
    return jnp.asarray(rate, dtype) / learning_rate.astype(dtype)
