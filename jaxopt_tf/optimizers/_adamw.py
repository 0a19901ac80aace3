"""AdamW with torch's numbers."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .. import _check, _tree, _two_floats
from .._placement import placed_as
from .._rounding import as_stored, difference
from .._scalars import computed_once, f32, is_zero, one_minus
from .._typing import PyTree, Scalar, ScalarOrSchedule
from . import _learning_rate
from ._weight_decay import resolve_mask


class AdamWState(NamedTuple):
    """What the next update needs; `mu` and `nu` are masked at integer leaves."""

    # (), int32: updates that the moments have seen; or a tree of such, one per leaf
    count: PyTree
    step: (
        jax.Array | None
    )  # (), int32: what the schedule is asked next; None: no schedule
    learning_rate: jax.Array  # (), float32: used by the last update
    mu: PyTree  # as params, `moment_dtype`: mean of gradients
    nu: PyTree  # as params, `moment_dtype`: mean of squared gradients


class Scalars(NamedTuple):
    """What all leaves that have seen the same number of updates share; (), float32."""

    step_size: jax.Array
    sqrt_correction: jax.Array  # of the second moment
    decay: jax.Array  # rate times weight decay
    kept: jax.Array  # 1 - rate times weight decay
    zero: jax.Array  # (), int32: 0, which no compiler can know


# (p32, mu32, nu32, is_decayed, scalars) -> the new parameter, float32.
NewParam = Callable[[jax.Array, jax.Array, jax.Array, bool, Scalars], jax.Array]


def adamw_tf(
    learning_rate: ScalarOrSchedule,
    *,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    decay_mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    decay: str = "torch",
    moment_dtype: Any = "float32",
) -> optax.GradientTransformation:
    """AdamW as `torch.optim.AdamW` computes it.

        p   = p * (1 - rate * weight_decay)                  (decayed leaves)
        mu  = mu + (1 - beta1) * (g - mu)
        nu  = beta2 * nu + (1 - beta2) * g * g
        p   = p - rate / (1 - beta1^t) * mu / (sqrt(nu) / sqrt(1 - beta2^t) + eps)

    with t counted from 1, in float32, in this order. The new parameter is rounded to
    the leaf's dtype and the update is its difference to the old one, so that
    `params + updates` is that parameter; a later link of a chain must not rescale it.

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
            rates below 1e-5 that is another decay than was asked for, down to none.
            "exact" subtracts rate * weight_decay * p together with the step.
        moment_dtype: of `mu` and `nu`; None for the leaf's own, as torch has it, where
            a bfloat16 second moment can no longer decay. Arithmetic is in float32.

    Returns:
        A transformation with state `AdamWState`. Updates have the leaves' dtype.
        Integer leaves are passed by.

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
    _check.non_negative("eps", eps)
    _check.one_of("decay", decay, ("torch", "exact"))

    def new_param(p32, mu32, nu32, is_decayed, scalars):
        denominator = jnp.sqrt(nu32) / scalars.sqrt_correction + f32(eps)
        change = (-scalars.step_size * mu32) / denominator
        if is_decayed and decay == "exact":
            change = change - scalars.decay * p32
        elif is_decayed:
            p32 = as_stored(p32 * scalars.kept, scalars.zero)
        return p32 + change

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
) -> optax.GradientTransformation:
    """The moments, which every AdamW shares, around the step, which is its own."""
    _learning_rate.check(learning_rate)
    _check.pair("betas", betas)
    for i, beta in enumerate(betas):
        _check.fraction_below_one(f"betas[{i}]", beta)
    _check.non_negative("weight_decay", weight_decay)
    _check_moment_dtype(moment_dtype)
    beta1, beta2 = betas
    never_decays = is_zero(weight_decay)

    def init(params):
        _tree.check_params(params, function=function)
        resolve_mask(decay_mask, params, weight_decay)
        step, rate = _learning_rate.init(learning_rate)

        def moments(_, p):
            if not _tree.is_floating(p):
                return optax.MaskedNode(), optax.MaskedNode()
            zeros = functools.partial(jnp.zeros_like, p, dtype=moment_dtype or p.dtype)
            return zeros(), zeros()  # two buffers: a step donates each

        mu, nu = _tree.map_leaves(moments, params, num_results=2)
        return AdamWState(jnp.zeros((), jnp.int32), step, rate, mu, nu)

    def update(grads, state, params=None):
        _tree.check_params(params, function=function)
        grads = _tree.check_grads(grads, params)
        mask = resolve_mask(decay_mask, params, weight_decay)
        rate = _learning_rate.current(learning_rate, state.step, state.learning_rate)
        exact_rate = _learning_rate.exact(learning_rate, rate)
        count = jax.tree.map(optax.safe_increment, state.count)
        scalars = _tree.per_leaf(
            functools.partial(_scalars, exact_rate, betas, weight_decay, correct_bias),
            count,
            params,
        )

        def leaf(_, p, g, mu, nu, is_decayed, scalars):
            if not _tree.is_floating(p):
                return jnp.zeros_like(p), mu, nu
            g32, there = placed_as(g, mu).astype(jnp.float32), placed_as(p, mu)
            mu32 = _lerp(mu.astype(jnp.float32), g32, one_minus(beta1))
            # Rounded as torch's compiled kernel rounds it. Left alone, a compiler fuses
            # one product or the other, and on many devices not always the same.
            kept = as_stored(nu.astype(jnp.float32) * f32(beta2), scalars.zero)
            nu32 = one_minus(beta2) * g32 * g32 + kept
            is_decayed = is_decayed and not never_decays
            p32 = there.astype(jnp.float32)
            new32 = new_param(p32, mu32, nu32, is_decayed, scalars)
            change = placed_as(difference(new32, there), p)
            return change, mu32.astype(mu.dtype), nu32.astype(nu.dtype)

        updates, mu, nu = _tree.map_leaves(
            leaf, params, grads, state.mu, state.nu, mask, scalars, num_results=3
        )
        step = _learning_rate.advance(state.step)
        return updates, AdamWState(count, step, rate, mu, nu)

    return optax.GradientTransformation(init, update)


def _scalars(
    rate: _two_floats.TwoFloats,
    betas: tuple[Scalar, Scalar],
    weight_decay: Scalar,
    correct_bias: bool,
    count: jax.Array,
) -> Scalars:
    step_size, sqrt_correction = rate.high, jnp.ones((), jnp.float32)
    if correct_bias:
        correction1, correction2 = (_bias_correction(beta, count) for beta in betas)
        step_size = _two_floats.to_float32(_two_floats.divide(rate, correction1))
        sqrt_correction = _two_floats.to_float32(_two_floats.sqrt(correction2))
    decay = _two_floats.multiply(rate, _two_floats.from_scalar(weight_decay))
    kept = _two_floats.subtract(_two_floats.from_float(1.0), decay)
    scalars = Scalars(
        step_size,
        sqrt_correction,
        _two_floats.to_float32(decay),
        _two_floats.to_float32(kept),
        jnp.minimum(count, 0),
    )
    return computed_once(scalars, count)


def _bias_correction(beta: Scalar, count: jax.Array) -> _two_floats.TwoFloats:
    """1 - beta^count, as exact as torch's doubles make it."""
    is_array = isinstance(beta, jax.Array)
    power = _two_floats.power(f32(beta) if is_array else float(beta), count)
    return _two_floats.subtract(_two_floats.from_float(1.0), power)


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
