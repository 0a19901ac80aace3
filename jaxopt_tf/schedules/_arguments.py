"""What every named schedule asks of its arguments."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import _check
from .._typing import Scalar


def step_counts(num_warmup_steps: Any, num_training_steps: Any) -> tuple[int, int]:
    """Both as ints, checked."""
    return (
        _check.step_count("num_warmup_steps", num_warmup_steps),
        _check.step_count("num_training_steps", num_training_steps),
    )


def share_of(rate: float, learning_rate: Scalar) -> Scalar:
    """rate / learning_rate."""
    # On the host in double where the number is known; else rounded once, in float32.
    if _check.is_concrete(learning_rate):
        return float(rate) / float(learning_rate)
    return np.float32(rate) / jnp.asarray(learning_rate).astype(jnp.float32)
