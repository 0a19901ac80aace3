"""RMSprop with the numerics of torch."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from .. import _checks
from .._argument_names import checked_names
from .._numerics import is_zero, one_minus, scalar
from .._typing import PyTree, Scalar, ScalarOrSchedule
from ._learning_rate import Rate
from ._per_leaf import Leaf, LeafRule, Moments, per_leaf_optimizer, with_l2


class RMSpropState(NamedTuple):
    """State of `rmsprop_tf`.

    Moments that the chosen options do not use are masked nodes.
    float32 fields are float64 for float64 leaves; the rate is float64 if any leaf is.
    """

    count: PyTree  # (), int32: number of moment updates; or a tree, as in `AdamWState`
    step: jax.Array  # (), int32: number of updates, the argument of a schedule
    learning_rate: jax.Array  # (), float32: used by the last update
    rate_source: jax.Array  # (), int32: origin of that rate, see `_learning_rate`
    nu: PyTree  # as params, float32: mean of squared gradients
    mu: PyTree  # as params, float32: mean of gradients, if `centered`
    momentum: PyTree  # as params, float32: decaying sum of updates


@checked_names
def rmsprop_tf(
    learning_rate: ScalarOrSchedule,
    *,
    alpha: Scalar = 0.99,
    eps: Scalar = 1e-8,
    momentum: Scalar | None = None,
    centered: bool = False,
    weight_decay: Scalar = 0.0,
    decay_mask: PyTree | Callable[[PyTree], PyTree] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """RMSprop as `torch.optim.RMSprop` computes it.

        g   = g + weight_decay * p                           (decayed leaves)
        nu  = alpha * nu + (1 - alpha) * g * g
        mu  = alpha * mu + (1 - alpha) * g                   (`centered`)
        u   = g / (sqrt(nu - mu * mu) + eps)                 (mu = 0 unless `centered`)
        buf = momentum * buf + u
        p   = p - rate * buf

    Arithmetic is in float32 (float64 for float64 leaves). Updates are differences of
    parameters, as in `adamw_tf`.

    Args:
        learning_rate: as for `adamw_tf`.
        alpha: decay rate of the means; from 0 to below 1.
        eps: added to the root; at least 0.
        momentum: decay rate of the buffer; at least 0. None or 0 for no buffer.
        centered: whether to divide by the root of the estimated variance.
        weight_decay: factor of the parameter that is added to its gradient; at least 0.
        decay_mask: as for `adamw_tf`.

    Returns:
        A transformation with state `RMSpropState`; its update needs `params`.

    Raises:
        ValueError, TypeError: if an argument is out of range.

    Examples:
        >>> params = {"kernel": jnp.ones(2)}
        >>> optimizer = rmsprop_tf(0.25, alpha=0.75)
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates["kernel"])
        [-0.5 -0.5]

    Source: torch 2.13 `optim/rmsprop.py`, `_single_tensor_rmsprop`.
    Differs: `optax.rmsprop` has a decay rate of 0.9 and eps inside the root by default,
        and no weight decay. An `alpha` of 1 or more is refused; torch accepts it.
    """
    rule = rmsprop_rule("rmsprop_tf", alpha, eps, momentum, centered, weight_decay)
    return per_leaf_optimizer(rule, learning_rate, weight_decay, decay_mask)


def rmsprop_rule(
    name: str,
    alpha: Scalar,
    eps: Scalar,
    momentum: Scalar | None,
    centered: bool,
    weight_decay: Scalar,
) -> LeafRule:
    """Returns the arithmetic of `rmsprop_tf`, for a function called `name`."""
    _checks.fraction_below_one("alpha", alpha)
    _checks.non_negative("eps", eps)
    # The default is None and not 0.0: `optax.inject_hyperparams` would turn 0.0 into an
    # array, which may change between steps and therefore needs a buffer.
    momentum = 0.0 if momentum is None else momentum
    _checks.non_negative("momentum", momentum)
    if not isinstance(centered, bool):
        raise TypeError(f"`centered` must be True or False, got {centered!r}.")
    has_buffer = isinstance(momentum, jax.Array) or not is_zero(momentum)

    def scalars(rate: Rate, count: jax.Array) -> jax.Array:
        """Computes the scalars shared by all leaves, which `update` receives."""
        del count
        return rate.value

    def update(leaf: Leaf, rate_value: jax.Array, moments: Moments) -> Moments:
        p, g, (nu, mu, buffer) = leaf.param, with_l2(leaf, weight_decay), moments
        dtype = p.dtype
        nu = nu * scalar(alpha, dtype) + one_minus(alpha, dtype) * g * g
        variance = nu
        if centered:
            mu = mu + one_minus(alpha, dtype) * (g - mu)
            # Rounding can make the difference negative. Torch takes its root, NaN.
            variance = jnp.maximum(nu - mu * mu, 0.0)
        root = jnp.sqrt(variance) + scalar(eps, dtype)
        # Without a buffer torch divides `rate * g` by the root (`addcdiv`); with one
        # it divides g first. This code rounds in the same order.
        if not has_buffer:
            return p - (rate_value * g) / root, nu, mu, buffer
        buffer = scalar(momentum, dtype) * buffer + g / root
        return p - rate_value * buffer, nu, mu, buffer

    has_moment = (True, centered, has_buffer)
    return LeafRule(
        name,
        RMSpropState,
        scalars,
        update,
        has_moment=has_moment,
        decays_gradient=True,
    )
