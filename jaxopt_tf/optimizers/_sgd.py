"""Stochastic gradient descent with the momentum of torch."""

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


class SGDState(NamedTuple):
    """State of `sgd_tf`.

    `momentum` holds masked nodes if the optimizer has no momentum.
    float32 fields are float64 for float64 leaves; the rate is float64 if any leaf is.
    """

    count: PyTree  # (), int32: number of moment updates; or a tree, as in `AdamWState`
    step: jax.Array  # (), int32: number of updates, the argument of a schedule
    learning_rate: jax.Array  # (), float32: used by the last update
    rate_source: jax.Array  # (), int32: origin of that rate, see `_learning_rate`
    momentum: PyTree  # as params, float32: decaying sum of gradients


class _Scalars(NamedTuple):
    rate: jax.Array  # (), float32
    grad_factor: jax.Array  # (), float32: factor of the gradient in the buffer


@checked_names
def sgd_tf(
    learning_rate: ScalarOrSchedule,
    *,
    momentum: Scalar | None = None,
    dampening: Scalar = 0.0,
    nesterov: bool = False,
    weight_decay: Scalar = 0.0,
    decay_mask: PyTree | Callable[[PyTree], PyTree] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Stochastic gradient descent as `torch.optim.SGD` computes it.

        g   = g + weight_decay * p                           (decayed leaves)
        buf = g at the first step, then momentum * buf + (1 - dampening) * g
        p   = p - rate * (g + momentum * buf with `nesterov`, else buf)

    Arithmetic is in float32 (float64 for float64 leaves). Updates are differences of
    parameters, as in `adamw_tf`. Weight decay is the gradient of an L2 term
    `weight_decay / 2 * |p|^2` of the loss, and therefore enters the buffer.

    Args:
        learning_rate: as for `adamw_tf`.
        momentum: decay rate of the buffer; at least 0. None or 0 for no buffer.
        dampening: fraction of every gradient but the first that is left out of the
            buffer.
        nesterov: whether to use Nesterov momentum; requires `momentum` and a
            `dampening` of 0.
        weight_decay: factor of the parameter that is added to its gradient; at least 0.
        decay_mask: as for `adamw_tf`.

    Returns:
        A transformation with state `SGDState`; its update needs `params`.

    Raises:
        ValueError, TypeError: if an argument is out of range, or if `nesterov` is set
            without momentum or with dampening.

    Examples:
        >>> params = {"kernel": jnp.ones(2)}
        >>> optimizer = sgd_tf(0.5, momentum=0.9)
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates["kernel"])
        [-0.5 -0.5]

    Source: torch 2.13 `optim/sgd.py`, `_single_tensor_sgd`.
    Differs: `optax.sgd` starts from a buffer of zeros, and has neither dampening nor
        weight decay.
    """
    # The default is None and not 0.0: `optax.inject_hyperparams` would turn 0.0 into an
    # array, which may change between steps and therefore needs a buffer.
    momentum = 0.0 if momentum is None else momentum
    _checks.non_negative("momentum", momentum)
    _checks.finite("dampening", dampening)
    _check_nesterov(nesterov, momentum, dampening)
    has_buffer = isinstance(momentum, jax.Array) or not is_zero(momentum)

    def scalars(rate: Rate, count: jax.Array) -> _Scalars:
        """Computes the scalars shared by all leaves, which `update` receives."""
        dtype = rate.value.dtype
        # Torch copies the first gradient into the buffer, without dampening. A buffer
        # of zeros and a factor of 1 give the same.
        first, later = scalar(1.0, dtype), one_minus(dampening, dtype)
        return _Scalars(rate.value, jnp.where(count == 1, first, later))

    def update(leaf: Leaf, scalars: _Scalars, moments: Moments) -> Moments:
        p, g, (buffer,) = leaf.param, with_l2(leaf, weight_decay), moments
        if has_buffer:
            factor = scalar(momentum, p.dtype)
            buffer = factor * buffer + scalars.grad_factor * g
            g = g + factor * buffer if nesterov else buffer
        return p - scalars.rate * g, buffer

    rule = LeafRule(
        "sgd_tf",
        SGDState,
        scalars,
        update,
        has_moment=(has_buffer,),
        decays_gradient=True,
    )
    return per_leaf_optimizer(rule, learning_rate, weight_decay, decay_mask)


def _check_nesterov(nesterov: bool, momentum: Scalar, dampening: Scalar) -> None:
    if not isinstance(nesterov, bool):
        raise TypeError(f"`nesterov` must be True or False, got {nesterov!r}.")
    if nesterov and (is_zero(momentum) or not is_zero(dampening)):
        raise ValueError(
            "`nesterov` requires a `momentum` greater than 0 and a `dampening` of 0, "
            f"got {momentum!r} and {dampening!r}. Change them, or omit `nesterov`."
        )
