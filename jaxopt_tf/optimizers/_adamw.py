"""AdamW with torch's numbers."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .. import _checks, _pytrees
from .._argument_names import checked_names
from .._numerics import (
    as_stored,
    computed_once,
    difference,
    is_zero,
    one_minus,
    scalar,
    wide_dtype,
)
from .._pytrees import placed_as
from .._typing import PyTree, Scalar, ScalarOrSchedule
from . import _exact, _learning_rate
from ._exact import Arithmetic, Exact, arithmetic
from ._weight_decay import resolve_mask


class AdamWState(NamedTuple):
    """State of `adamw_tf`; `mu` and `nu` hold `MaskedNode` at integer leaves."""

    count: PyTree  # (), int32: number of moment updates; or one per leaf
    step: jax.Array  # (), int32: number of updates, the argument of a schedule
    # (), float32, or float64 if a parameter is: used by the last update
    learning_rate: jax.Array
    rate_source: jax.Array  # (), int32: origin of that rate, see `_learning_rate`
    mu: PyTree  # as params, `moment_dtype`: mean of gradients
    nu: PyTree  # as params, `moment_dtype`: mean of squared gradients


class Scalars(NamedTuple):
    """Scalars shared by all leaves of one dtype and one number of updates.

    (), float32; float64 for float64 leaves.
    """

    step_size: jax.Array
    sqrt_correction: jax.Array  # of the second moment
    decay: jax.Array  # rate times weight decay
    kept: jax.Array  # 1 - rate times weight decay
    zero: jax.Array  # (), int32: 0, which no compiler can know


# (p, mu, nu, is_decayed, scalars) -> the new parameter, all in the wide dtype.
NewParam = Callable[[jax.Array, jax.Array, jax.Array, bool, Scalars], jax.Array]


@checked_names
def adamw_tf(
    learning_rate: ScalarOrSchedule,
    *,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    decay_mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    decay: str = "torch",
    moment_dtype: Any = "float32",
) -> optax.GradientTransformationExtraArgs:
    """AdamW as `torch.optim.AdamW` computes it.

        p   = p * (1 - rate * weight_decay)                  (decayed leaves)
        mu  = mu + (1 - beta1) * (g - mu)
        nu  = beta2 * nu + (1 - beta2) * g * g
        p   = p - rate / (1 - beta1^t) * mu / (sqrt(nu) / sqrt(1 - beta2^t) + eps)

    with t counted from 1, in float32 (float64 for float64 leaves), in this order. The
    new parameter is rounded to the leaf's dtype and the update is its difference to the
    old one, so that `params + updates` is that parameter; a later link of a chain must
    not rescale it.

    Decoupled decay is not the L2 term `weight_decay / 2 * |p|^2` of a loss, as it is
    often explained. The gradient of such a term would go through the moments and be
    divided by sqrt(nu): weights with large gradients would hardly be decayed. Here
    every weight shrinks by the same share, whatever its gradients, and the share
    follows the schedule.

    Args:
        learning_rate: at least 0: a float, which then lives in the state (change it
            there, with `set_learning_rate`), a 0-d array, or a schedule from step to
            rate, asked with 0 first.
        betas: decay rates of the two moments; from 0 to below 1. Floats are taken as
            doubles; of float32 arrays (a sweep) the exact value is taken.
        eps: added to the denominator after its bias correction; at least 0.
        weight_decay: share that is taken off per unit of rate; at least 0.
        decay_mask: bool for each leaf, or a callable from params to that; None for
            `decay_mask(params)`: no biases, no normalisation layers; leaves without
            names are refused then, if `weight_decay` is known not to be 0. Under
            `optax.inject_hyperparams` a callable needs `static_args="decay_mask"`.
        decay: "torch" multiplies by float32(1 - rate * weight_decay), as torch does; at
            rates below 1e-5 that is another decay than was asked for, down to none
            (not for float64 leaves, whose factor is float64).
            "exact" subtracts rate * weight_decay * p together with the step.
        moment_dtype: of `mu` and `nu`. "float32" stands for float64 at float64 leaves;
            "bfloat16" and "float16" hold for every leaf. None for the leaf's own, as
            torch has it, where a bfloat16 second moment can no longer decay.

    Returns:
        A transformation with state `AdamWState`. Updates have the leaves' dtype.
        Integer leaves are left unchanged. Leaves may be float64 under
        `jax_enable_x64`; complex and float8 leaves are refused.

    Raises:
        ValueError, TypeError: if an argument is out of range; in an update, if `params`
            is missing or gradients do not fit.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019; torch
        2.13 `optim/adam.py`, `_single_tensor_adam`; for low-precision leaves the order
        of `fused=True`, which rounds once.
    Differs: `optax.adamw` corrects the bias in float32 powers, off by up to 2e-4, has
        another default decay, and decays all leaves. Torch decays all leaves too; the
        mask is Trainer's.
    """
    _checks.non_negative("eps", eps)
    _checks.one_of("decay", decay, ("torch", "exact"))

    def new_param(p, mu, nu, is_decayed, scalars):
        denominator = jnp.sqrt(nu) / scalars.sqrt_correction + scalar(eps, p.dtype)
        change = (-scalars.step_size * mu) / denominator
        if is_decayed and decay == "exact":
            change = change - scalars.decay * p
        elif is_decayed:
            p = as_stored(p * scalars.kept, scalars.zero)
        return p + change

    return adam(
        "adamw_tf",
        learning_rate,
        betas,
        weight_decay,
        decay_mask,
        moment_dtype,
        new_param,
    )


def adam(
    function: str,
    learning_rate: ScalarOrSchedule,
    betas: tuple[Scalar, Scalar],
    weight_decay: Scalar,
    decay_mask: PyTree | Callable[[PyTree], PyTree] | None,
    moment_dtype: Any,
    new_param: NewParam,
    *,
    correct_bias: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """The moments, which every AdamW shares, around the step, which is its own."""
    _learning_rate.check(learning_rate)
    _checks.pair("betas", betas)
    for i, beta in enumerate(betas):
        _checks.fraction_below_one(f"betas[{i}]", beta)
    _checks.non_negative("weight_decay", weight_decay)
    _check_moment_dtype(moment_dtype)
    beta1, beta2 = betas
    never_decays = is_zero(weight_decay)

    def init(params):
        _pytrees.check_params(params, function=function)
        resolve_mask(decay_mask, params, weight_decay)
        rate = _learning_rate.init(learning_rate, params)

        def moments(_, p):
            if not _pytrees.is_floating(p):
                return optax.MaskedNode(), optax.MaskedNode()
            dtype = p.dtype if moment_dtype is None else jnp.dtype(moment_dtype)
            dtype = wide_dtype(p.dtype) if dtype == jnp.float32 else dtype
            zeros = functools.partial(jnp.zeros_like, p, dtype=dtype)
            return zeros(), zeros()  # two buffers: a step donates each

        mu, nu = _pytrees.map_leaves(moments, params, num_results=2)
        return AdamWState(jnp.zeros((), jnp.int32), *rate, mu, nu)

    def update(grads, state, params=None, **extra_args):
        del extra_args
        _pytrees.check_params(params, function=function)
        grads = _pytrees.check_grads(grads, params)
        mask = resolve_mask(decay_mask, params, weight_decay)
        rates = _learning_rate.current(learning_rate, state, params)
        exact_rates = _learning_rate.exact(learning_rate, rates)
        count = jax.tree.map(optax.safe_increment, state.count)

        def shared(count: jax.Array, dtype: Any) -> Scalars:
            rate, of = exact_rates[dtype], arithmetic(dtype)
            return _scalars(of, rate, betas, weight_decay, correct_bias, count)

        scalars = _pytrees.per_leaf(shared, count, params)

        def leaf(_, p, g, mu, nu, is_decayed, scalars):
            if not _pytrees.is_floating(p):
                return jnp.zeros_like(p), mu, nu
            wide = wide_dtype(p.dtype)
            wide_g, there = placed_as(g, mu).astype(wide), placed_as(p, mu)
            wide_mu = _lerp(mu.astype(wide), wide_g, one_minus(beta1, wide))
            # Rounded as torch's compiled kernel rounds it. Left alone, a compiler fuses
            # one product or the other, and on many devices not always the same.
            kept = as_stored(nu.astype(wide) * scalar(beta2, wide), scalars.zero)
            wide_nu = one_minus(beta2, wide) * wide_g * wide_g + kept
            is_decayed = is_decayed and not never_decays
            wide_p = there.astype(wide)
            new = new_param(wide_p, wide_mu, wide_nu, is_decayed, scalars)
            change = placed_as(difference(new, there), p)
            return change, wide_mu.astype(mu.dtype), wide_nu.astype(nu.dtype)

        updates, mu, nu = _pytrees.map_leaves(
            leaf, params, grads, state.mu, state.nu, mask, scalars, num_results=3
        )
        new_rate = _learning_rate.advanced(learning_rate, state, rates)
        return updates, AdamWState(count, *new_rate, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def _scalars(
    of: Arithmetic,
    rate: Exact,
    betas: tuple[Scalar, Scalar],
    weight_decay: Scalar,
    correct_bias: bool,
    count: jax.Array,
) -> Scalars:
    step_size, sqrt_correction = of.leading(rate), jnp.ones((), of.dtype)
    if correct_bias:
        correction1, correction2 = (_bias_correction(of, b, count) for b in betas)
        step_size = of.rounded(of.divide(rate, correction1))
        sqrt_correction = of.rounded(of.sqrt(correction2))
    decay = of.multiply(rate, of.from_scalar(weight_decay))
    kept = _exact.one_minus(of, decay)
    scalars = Scalars(
        step_size,
        sqrt_correction,
        of.rounded(decay),
        of.rounded(kept),
        jnp.minimum(count, 0),
    )
    return computed_once(scalars, count, of.dtype)


def _bias_correction(of: Arithmetic, beta: Scalar, count: jax.Array) -> Any:
    """Returns 1 - beta^count, as exact as torch's doubles make it."""
    return _exact.one_minus(of, of.power(beta, count))


def _lerp(start: jax.Array, end: jax.Array, weight: jax.Array) -> jax.Array:
    """From `start` to `end`, from the nearer of the two, as torch does."""
    near_start = start + weight * (end - start)
    near_end = end + (weight - 1.0) * (end - start)
    return jnp.where(weight < 0.5, near_start, near_end)


def _check_moment_dtype(moment_dtype: Any) -> None:
    choices = [None, jnp.float32, jnp.bfloat16, jnp.float16]
    try:
        is_known = moment_dtype in [c if c is None else jnp.dtype(c) for c in choices]
    except TypeError:  # a string that is no dtype
        is_known = False
    if not is_known:
        raise TypeError(
            "`moment_dtype` must be float32, bfloat16, float16, or None for each "
            f"leaf's own, got {moment_dtype!r}."
        )
