"""Adagrad with the numerics of torch."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from .. import _checks
from .._argument_names import checked_names
from .._numerics import exact_int, exact_scalar, rounded, scalar
from .._typing import PyTree, Scalar, ScalarOrSchedule
from ._learning_rate import Rate
from ._per_leaf import Leaf, LeafRule, Moments, per_leaf_optimizer, with_l2


class AdagradState(NamedTuple):
    """State of `adagrad_tf`.

    float32 fields are float64 for float64 leaves; the rate is float64 if any leaf is.
    """

    count: PyTree  # (), int32: number of moment updates; or a tree, as in `AdamWState`
    step: jax.Array  # (), int32: number of updates, the argument of a schedule
    learning_rate: jax.Array  # (), float32: of the last update, before `lr_decay`
    rate_source: jax.Array  # (), int32: origin of that rate, see `_learning_rate`
    nu: PyTree  # as params, float32: sum of squared gradients


@checked_names
def adagrad_tf(
    learning_rate: ScalarOrSchedule,
    *,
    lr_decay: Scalar = 0.0,
    eps: Scalar = 1e-10,
    weight_decay: Scalar = 0.0,
    decay_mask: PyTree | Callable[[PyTree], PyTree] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adagrad as `torch.optim.Adagrad` computes it.

        g  = g + weight_decay * p                            (decayed leaves)
        nu = nu + g * g
        p  = p - rate / (1 + (t - 1) * lr_decay) * g / (sqrt(nu) + eps)

    Here t is counted from 1. Arithmetic is in float32 (float64 for float64 leaves).
    Updates are differences of parameters, as in `adamw_tf`.

    Args:
        learning_rate: as for `adamw_tf`.
        lr_decay: increase of the rate's divisor per step; at least 0.
        eps: added to the root; at least 0.
        weight_decay: factor of the parameter that is added to its gradient; at least 0.
        decay_mask: as for `adamw_tf`.

    Returns:
        A transformation with state `AdagradState`; its update needs `params`.

    Raises:
        ValueError, TypeError: if an argument is out of range.

    Examples:
        >>> params = {"kernel": jnp.ones(2)}
        >>> optimizer = adagrad_tf(0.5)
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates["kernel"])
        [-0.5 -0.5]

    Source: torch 2.13 `optim/adagrad.py`, `_single_tensor_adagrad`.
    Differs: `optax.adagrad` initializes the sums to 0.1 and adds eps inside the root.
    """
    _checks.non_negative("lr_decay", lr_decay)
    _checks.non_negative("eps", eps)

    def scalars(rate: Rate, count: jax.Array) -> jax.Array:
        """Computes the scalars shared by all leaves, which `update` receives."""
        # Torch computes this quotient with Python floats, which are doubles.
        dtype = rate.value.dtype
        slowdown = exact_int(count - 1, dtype) * exact_scalar(lr_decay, dtype)
        return rounded(rate.exact() / (exact_scalar(1.0, dtype) + slowdown))

    def update(leaf: Leaf, step_size: jax.Array, moments: Moments) -> Moments:
        p, g, (nu,) = leaf.param, with_l2(leaf, weight_decay), moments
        nu = nu + g * g
        # Multiplied before the division, as `addcdiv` does on a CPU. CUDA divides
        # first, which changes the last bit of some updates.
        return p - (step_size * g) / (jnp.sqrt(nu) + scalar(eps, p.dtype)), nu

    rule = LeafRule("adagrad_tf", AdagradState, scalars, update, decays_gradient=True)
    return per_leaf_optimizer(rule, learning_rate, weight_decay, decay_mask)
