"""AdEMAMix: AdamW with a second, slow mean of the gradients."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .. import _checks
from .._argument_names import checked_names
from .._numerics import (
    ExactScalar,
    exact_int,
    exact_maximum,
    exact_one_minus_exp,
    exact_scalar,
    exact_sqrt,
    hoist_scalars,
    one_minus,
    prevent_fma,
    rounded,
    scalar,
)
from .._typing import PyTree, Scalar, ScalarOrSchedule
from ._adamw import bias_correction
from ._learning_rate import Rate
from ._low_precision import with_moment_dtypes
from ._per_leaf import Leaf, LeafRule, Moments, per_leaf_optimizer


class AdEMAMixState(NamedTuple):
    """State of `ademamix_tf`; moments hold `MaskedNode` at integer leaves."""

    count: PyTree  # (), int32: number of moment updates; or a tree, as in `AdamWState`
    step: jax.Array  # (), int32: number of updates, the argument of a schedule
    # (), float32, or float64 if a parameter is: used by the last update
    learning_rate: jax.Array
    rate_source: jax.Array  # (), int32: origin of that rate, see `_learning_rate`
    mu: PyTree  # as params, `moment_dtype`: fast mean of gradients
    mu_slow: PyTree  # as params, `moment_dtype`: slow mean of gradients
    nu: PyTree  # as params, `moment_dtype`: mean of squared gradients


class _Scalars(NamedTuple):
    """Scalars shared by all leaves of one dtype; (), float32 or float64 each."""

    rate: jax.Array
    decay_factor: jax.Array  # 1 - rate * weight_decay
    correction: jax.Array  # 1 - beta1^t
    sqrt_correction: jax.Array  # sqrt(1 - beta2^t)
    alpha: jax.Array  # weight of the slow mean at this update
    beta3: jax.Array  # decay rate of the slow mean at this update
    one_minus_beta3: jax.Array
    opaque_zero: jax.Array  # (), int32: 0, unknown to the compiler


@checked_names
def ademamix_tf(
    learning_rate: ScalarOrSchedule,
    *,
    betas: tuple[Scalar, Scalar, Scalar] = (0.9, 0.999, 0.9999),
    alpha: Scalar = 5.0,
    t_alpha: int | None = None,
    t_beta3: int | None = None,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    decay_mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    moment_dtype: Any = "float32",
    mu_dtype: Any = None,
    nu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """AdEMAMix as `bitsandbytes.optim.AdEMAMix` computes it in 32 bits.

        mu   = beta1 * mu + (1 - beta1) * g
        slow = beta3 * slow + (1 - beta3) * g
        nu   = beta2 * nu + (1 - beta2) * g * g
        p    = p * (1 - rate * weight_decay)                 (decayed leaves)
        root = sqrt(nu) / sqrt(1 - beta2^t)
        p    = p - rate * (mu / (1 - beta1^t) + alpha * slow) / (root + eps)

    with t counted from 1, in float32 (float64 for float64 leaves). The slow mean has no
    bias correction. Its weight and its decay rate can increase from small values:

        alpha = alpha * min(1, t / t_alpha)
        beta3 = exp(log(beta1) log(beta3) / ((1 - s) log(beta3) + s log(beta1)))

    with s = min(1, t / t_beta3), so that the half-life of the slow mean rises linearly.
    The paper sets both to the number of steps; without them a run starts with the full
    weight of old gradients and may diverge. Updates are differences of parameters, as
    in `adamw_tf`.

    Args:
        learning_rate: as for `adamw_tf`.
        betas: decay rates of the fast mean, of the squares and of the slow mean; from 0
            to below 1.
        alpha: weight of the slow mean; at least 0.
        t_alpha: number of updates until `alpha` is reached; None for a constant.
        t_beta3: number of updates until `betas[2]` is reached; None for a constant.
            Needs first and third betas greater than 0.
        eps: added to the denominator after its bias correction; at least 0.
        weight_decay: fraction of a weight that is subtracted per unit of rate; at
            least 0.
        decay_mask: as for `adamw_tf`.
        moment_dtype: as for `adamw_tf`.
        mu_dtype: dtype of both means; None for `moment_dtype`.
        nu_dtype: dtype of the mean of squares; None for `moment_dtype`.

    Returns:
        A transformation with state `AdEMAMixState`; its update needs `params`.

    Raises:
        ValueError, TypeError: if an argument is out of range.

    Examples:
        >>> params = {"kernel": jnp.ones(2)}
        >>> optimizer = ademamix_tf(1e-3, t_alpha=1000, t_beta3=1000)
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(f"{updates['kernel'][0]:.5f}")
        -0.00100

    Source: Pagliardini et al., "The AdEMAMix Optimizer: Better, Faster, Older", 2024,
        arXiv 2409.03137; bitsandbytes 0.50.2 `optim/ademamix.py` and
        `backends/cpu/ops.py`, which Transformers calls for `optim="ademamix"` and
        "paged_ademamix_32bit".
    Differs: the CUDA kernel of bitsandbytes decays after the step, here decay is first,
        as on CPUs. `optax.contrib.ademamix` takes functions for the two schedules.
    """
    rule = ademamix_rule(
        "ademamix_tf",
        betas,
        alpha=alpha,
        t_alpha=t_alpha,
        t_beta3=t_beta3,
        eps=eps,
        weight_decay=weight_decay,
    )
    dtypes = {"mu": mu_dtype, "mu_slow": mu_dtype, "nu": nu_dtype}
    rule = with_moment_dtypes(rule, moment_dtype, dtypes)
    return per_leaf_optimizer(rule, learning_rate, weight_decay, decay_mask)


def ademamix_rule(
    name: str,
    betas: tuple[Scalar, Scalar, Scalar],
    *,
    alpha: Scalar,
    t_alpha: int | None,
    t_beta3: int | None,
    eps: Scalar,
    weight_decay: Scalar,
) -> LeafRule:
    """Returns the arithmetic of `ademamix_tf`, for a function called `name`."""
    _check(betas, alpha, t_alpha, t_beta3, eps)
    beta1, beta2, beta3 = betas

    def scalars(rate: Rate, count: jax.Array) -> _Scalars:
        """Computes the scalars shared by all leaves, which `update` receives."""
        dtype, exact_rate = rate.value.dtype, rate.exact()
        one = exact_scalar(1.0, dtype)
        new_share = _one_minus_beta3(beta1, beta3, t_beta3, count, dtype)
        computed = _Scalars(
            rate.value,
            rounded(one - exact_rate * exact_scalar(weight_decay, dtype)),
            rounded(bias_correction(beta1, count, dtype)),
            rounded(exact_sqrt(bias_correction(beta2, count, dtype))),
            rounded(_alpha(alpha, t_alpha, count, dtype)),
            rounded(one - new_share),
            rounded(new_share),
            jnp.minimum(count, 0),  # 0, but XLA does not know that count > 0
        )
        hoisted: _Scalars = hoist_scalars(computed, count, dtype)
        return hoisted

    def update(leaf: Leaf, now: _Scalars, moments: Moments) -> Moments:
        p, g, (mu, slow, nu) = leaf.param, leaf.grad, moments
        dtype = p.dtype

        def scaled(moment: jax.Array, beta: jax.Array) -> jax.Array:
            # Rounded on its own, as in torch, before the fused sum. Codes of 8 bits
            # depend on the last bit.
            return prevent_fma(beta * moment, now.opaque_zero)

        mu = one_minus(beta1, dtype) * g + scaled(mu, scalar(beta1, dtype))
        slow = now.one_minus_beta3 * g + scaled(slow, now.beta3)
        nu = one_minus(beta2, dtype) * g * g + scaled(nu, scalar(beta2, dtype))
        mixed = mu / now.correction + now.alpha * slow
        change = mixed / (jnp.sqrt(nu) / now.sqrt_correction + scalar(eps, dtype))
        if leaf.is_decayed:
            # As in torch, the decayed parameter is rounded before the step is added.
            p = prevent_fma(p * now.decay_factor, now.opaque_zero)
        return p - now.rate * change, mu, slow, nu

    return LeafRule(name, AdEMAMixState, scalars, update, has_moment=(True, True, True))


def _alpha(
    alpha: Scalar, t_alpha: int | None, count: jax.Array, dtype: Any
) -> ExactScalar:
    """Returns the weight of the slow mean at update `count`, from 1."""
    exact = exact_scalar(alpha, dtype)
    if not t_alpha:
        return exact
    share = exact_int(jnp.minimum(count, t_alpha), dtype)
    return share * exact / exact_scalar(float(t_alpha), dtype)


def _one_minus_beta3(
    beta1: Scalar, beta3: Scalar, t_beta3: int | None, count: jax.Array, dtype: Any
) -> ExactScalar:
    """Returns 1 minus the decay rate of the slow mean at update `count`, from 1."""
    one = exact_scalar(1.0, dtype)
    last = one - exact_scalar(beta3, dtype)
    if not t_beta3:
        return last
    # beta3 in float32 would give 1 - beta3 a relative error of 6e-4.
    log1, log3 = _log(beta1, dtype), _log(beta3, dtype)
    steps = exact_int(jnp.minimum(count, t_beta3), dtype)
    share = steps / exact_scalar(float(t_beta3), dtype)
    log = log1 * log3 / ((one - share) * log3 + share * log1)
    return exact_maximum(exact_one_minus_exp(log), last)


def _log(beta: Scalar, dtype: Any) -> ExactScalar:
    if isinstance(beta, jax.Array):
        return exact_scalar(jnp.log(beta), dtype)
    return exact_scalar(math.log(beta), dtype)


def _check(
    betas: tuple[Scalar, Scalar, Scalar],
    alpha: Scalar,
    t_alpha: int | None,
    t_beta3: int | None,
    eps: Scalar,
) -> None:
    """Raises if an argument is out of range."""
    if not isinstance(betas, tuple | list) or len(betas) != 3:
        raise ValueError(
            "`betas` must be three numbers, of the fast mean, of the squares and of "
            f"the slow mean, got {betas!r}. The third one is 0.9999 in the paper."
        )
    for i, beta in enumerate(betas):
        _checks.fraction_below_one(f"betas[{i}]", beta)
        if t_beta3 and i != 1:
            _checks.positive(f"betas[{i}]", beta)
    _checks.non_negative("alpha", alpha)
    _checks.non_negative("eps", eps)
    for name, steps in (("t_alpha", t_alpha), ("t_beta3", t_beta3)):
        if steps is not None:
            _checks.step_count(name, steps, minimum=1)
