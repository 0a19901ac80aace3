"""Adagrad with torch's numbers."""

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

    For float64 leaves float32 stands for float64; the rate is float64 if a leaf is.
    """

    count: PyTree  # (), int32: updates that the sums have seen; or one per leaf
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

    with t counted from 1, in float32 (float64 for float64 leaves); updates are
    differences of parameters, as in `adamw_tf`.

    Args:
        learning_rate: as for `adamw_tf`.
        lr_decay: by how much a step raises what the rate is divided by; at least 0.
        eps: added to the root; at least 0.
        weight_decay: times the parameter, added to its gradient; at least 0.
        decay_mask: as for `adamw_tf`.

    Returns:
        A transformation with state `AdagradState`; its update needs `params`.

    Raises:
        ValueError, TypeError: if an argument is out of range.

    Example:
        >>> params = {"kernel": jnp.ones(2)}
        >>> optimizer = adagrad_tf(0.5)
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates["kernel"])
        [-0.5 -0.5]

    Source: torch 2.13 `optim/adagrad.py`, `_single_tensor_adagrad`.
    Differs: `optax.adagrad` begins with sums of 0.1 and has eps inside of the root.
    """
    _checks.non_negative("lr_decay", lr_decay)
    _checks.non_negative("eps", eps)

    def scalars(rate: Rate, count: jax.Array) -> jax.Array:
        dtype = rate.value.dtype
        slowdown = exact_int(count - 1, dtype) * exact_scalar(lr_decay, dtype)
        return rounded(rate.exact() / (exact_scalar(1.0, dtype) + slowdown))

    def update(leaf: Leaf, rate: jax.Array, moments: Moments) -> Moments:
        p, g, (nu,) = leaf.param, with_l2(leaf, weight_decay), moments
        nu = nu + g * g
        return p - (rate * g) / (jnp.sqrt(nu) + scalar(eps, p.dtype)), nu

    rule = LeafRule("adagrad_tf", AdagradState, scalars, update)
    return per_leaf_optimizer(rule, learning_rate, weight_decay, decay_mask)
