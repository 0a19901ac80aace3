"""Lion: updates of equal size, with the sign of a momentum."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from .. import _checks
from .._argument_names import checked_names
from .._numerics import exact_scalar, one_minus, rounded, scalar
from .._typing import PyTree, Scalar, ScalarOrSchedule
from ._learning_rate import Rate
from ._per_leaf import Leaf, LeafRule, Moments, per_leaf_optimizer


class LionState(NamedTuple):
    """State of `lion_tf`.

    float32 fields are float64 for float64 leaves; the rate is float64 if any leaf is.
    """

    count: PyTree  # (), int32: number of moment updates; or a tree, as in `AdamWState`
    step: jax.Array  # (), int32: number of updates, the argument of a schedule
    learning_rate: jax.Array  # (), float32: used by the last update
    rate_source: jax.Array  # (), int32: origin of that rate, see `_learning_rate`
    mu: PyTree  # as params, float32: mean of gradients


class _Scalars(NamedTuple):
    rate: jax.Array  # (), float32
    decay_factor: jax.Array  # (), float32: 1 - rate * weight_decay


@checked_names
def lion_tf(
    learning_rate: ScalarOrSchedule,
    *,
    betas: tuple[Scalar, Scalar] = (0.9, 0.99),
    weight_decay: Scalar = 0.0,
    decay_mask: PyTree | Callable[[PyTree], PyTree] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Lion as `bitsandbytes.optim.Lion` computes it in 32 bits.

        p  = p * (1 - rate * weight_decay)                   (decayed leaves)
        p  = p - rate * sign(beta1 * mu + (1 - beta1) * g)
        mu = beta2 * mu + (1 - beta2) * g

    Arithmetic is in float32 (float64 for float64 leaves). Updates are differences of
    parameters, as in `adamw_tf`.

    Args:
        learning_rate: as for `adamw_tf`; typically a third to a tenth of AdamW's.
        betas: weights of the old mean in the update and in the new mean; from 0 to
            below 1.
        weight_decay: fraction of a weight that is subtracted per unit of rate; at
            least 0.
        decay_mask: as for `adamw_tf`.

    Returns:
        A transformation with state `LionState`; its update needs `params`.

    Raises:
        ValueError, TypeError: if an argument is out of range.

    Examples:
        >>> params = {"kernel": jnp.ones(2)}
        >>> optimizer = lion_tf(0.25)
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates["kernel"])
        [-0.25 -0.25]

    Source: Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023, arXiv
        2302.06675, Program 1; Transformers' "lion_32bit" calls that of bitsandbytes.
    Differs: `optax.lion` decays all leaves, by 1e-3 by default.
    """
    rule = lion_rule("lion_tf", betas, weight_decay)
    return per_leaf_optimizer(rule, learning_rate, weight_decay, decay_mask)


def lion_rule(
    name: str, betas: tuple[Scalar, Scalar], weight_decay: Scalar
) -> LeafRule:
    """Returns the arithmetic of `lion_tf`, for a function called `name`."""
    _checks.pair("betas", betas)
    for i, beta in enumerate(betas):
        _checks.fraction_below_one(f"betas[{i}]", beta)
    beta1, beta2 = betas

    def scalars(rate: Rate, count: jax.Array) -> _Scalars:
        """Computes the scalars shared by all leaves, which `update` receives."""
        del count
        dtype = rate.value.dtype
        # The factor is rounded once. In float32, 1 - rate * weight_decay would lose
        # digits of the product, which is small beside 1.
        decay = rate.exact() * exact_scalar(weight_decay, dtype)
        return _Scalars(rate.value, rounded(exact_scalar(1.0, dtype) - decay))

    def update(leaf: Leaf, scalars: _Scalars, moments: Moments) -> Moments:
        p, g, (mu,) = leaf.param, leaf.grad, moments
        dtype = p.dtype
        # `sign` returns 0 for 0, as in bitsandbytes: without gradients no step is made.
        direction = jnp.sign(scalar(beta1, dtype) * mu + one_minus(beta1, dtype) * g)
        p = p * scalars.decay_factor if leaf.is_decayed else p
        mu = scalar(beta2, dtype) * mu + one_minus(beta2, dtype) * g
        return p - scalars.rate * direction, mu

    return LeafRule(name, LionState, scalars, update)
