"""The AdamW that Transformers had before version 5."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from .. import _checks
from .._argument_names import checked_names
from .._numerics import scalar
from .._typing import PyTree, Scalar, ScalarOrSchedule
from ._adamw import adam


@checked_names
def adamw_hf_v4(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-6,
    weight_decay: Scalar = 0.0,
    correct_bias: bool = True,
    decay_mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    moment_dtype: Any = "float32",
) -> optax.GradientTransformationExtraArgs:
    """AdamW as `transformers.AdamW` computed it until version 5 took it away.

        p = p - size * mu / (sqrt(nu) + eps)
        p = p - rate * weight_decay * p                      (decayed leaves)

    with moments as in `adamw_tf` and size = rate * sqrt(1 - beta2^t) / (1 - beta1^t),
    or the rate itself without `correct_bias`. Here eps stands beside the uncorrected
    root, so that early steps are smaller, and decay acts on the updated parameter.

    Args:
        learning_rate: as for `adamw_tf`.
        betas: as for `adamw_tf`.
        eps: added to the root of the second moment; at least 0.
        weight_decay: as for `adamw_tf`.
        correct_bias: False for BERT's original TensorFlow optimizer.
        decay_mask: as for `adamw_tf`.
        moment_dtype: as for `adamw_tf`.

    Returns:
        A transformation with state `AdamWState`.

    Raises:
        ValueError, TypeError: as `adamw_tf`.

    Source: transformers 4.44 `optimization.py`, `AdamW.step`.
    """
    _checks.non_negative("eps", eps)

    def new_param(p, mu, nu, is_decayed, scalars):
        # The correction scales the step instead of the root.
        size = scalars.step_size * scalars.sqrt_correction
        p = p + (-size * mu) / (jnp.sqrt(nu) + scalar(eps, p.dtype))
        return p - scalars.decay * p if is_decayed else p

    return adam(
        "adamw_hf_v4",
        learning_rate,
        betas,
        weight_decay,
        decay_mask,
        moment_dtype,
        new_param,
        correct_bias=correct_bias,
    )
