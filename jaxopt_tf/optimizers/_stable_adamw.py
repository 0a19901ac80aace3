"""StableAdamW: AdamW whose rate is reduced where gradients exceed their mean size."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .. import _checks, _pytrees
from .._argument_names import checked_names
from .._numerics import (
    exact_scalar,
    hoist_scalars,
    prevent_fma,
    rounded,
    scalar,
)
from .._pytrees import TorchLayout, resolve_layouts
from .._typing import PyTree, Scalar, ScalarOrSchedule
from ._adamw import bias_correction, lerp
from ._learning_rate import Rate
from ._low_precision import compensated, is_low_precision, with_moment_dtypes
from ._per_leaf import Leaf, LeafRule, Moments, check_whole, per_leaf_optimizer

_NAME = "stable_adamw_tf"


class StableAdamWState(NamedTuple):
    """State of `stable_adamw_tf`; moments hold `MaskedNode` at integer leaves."""

    count: PyTree  # (), int32: number of moment updates; or a tree, as in `AdamWState`
    step: jax.Array  # (), int32: number of updates, the argument of a schedule
    # (), float32, or float64 if a parameter is: used by the last update
    learning_rate: jax.Array
    rate_source: jax.Array  # (), int32: origin of that rate, see `_learning_rate`
    mu: PyTree  # as params, `moment_dtype`: mean of gradients
    nu: PyTree  # as params, `moment_dtype`: mean of squared gradients
    # As params, in their dtype: what the rounding of bfloat16 and float16 parameters
    # left out; masked nodes at other leaves
    compensation: PyTree


class _Scalars(NamedTuple):
    """Scalars shared by all leaves of one dtype; (), float32 or float64 each."""

    rate: jax.Array
    new_share1: jax.Array  # (1 - beta1) / (1 - beta1^t)
    old_share2: jax.Array  # 1 - new_share2
    new_share2: jax.Array  # (1 - beta2) / (1 - beta2^t)
    opaque_zero: jax.Array  # (), int32: 0, unknown to the compiler


@checked_names
def stable_adamw_tf(
    learning_rate: ScalarOrSchedule,
    *,
    betas: tuple[Scalar, Scalar] = (0.9, 0.99),
    eps: Scalar = 1e-6,
    weight_decay: Scalar = 0.0,
    decouple_lr: bool = False,
    max_lr: Scalar | None = None,
    kahan_sum: bool | None = None,
    decay_mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    moment_dtype: Any = "float32",
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    layouts: Mapping[str, TorchLayout] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """StableAdamW as `optimi.StableAdamW` of torch-optimi computes it.

        a1, a2 = (1 - beta1) / (1 - beta1^t), (1 - beta2) / (1 - beta2^t)
        mu   = mu + a1 * (g - mu)
        nu   = (1 - a2) * nu + a2 * g * g
        rate = rate / max(1, sqrt(mean(g * g / max(nu, eps^2))))
        p    = p * (1 - rate * weight_decay)                 (decayed leaves)
        p    = p - rate * mu / (sqrt(nu) + eps)

    with t counted from 1 and the mean over one tensor of torch, in float32 (float64 for
    float64 leaves). A gradient that is larger than its second moment expects, as in a
    loss spike, reduces the step of its tensor; gradients need no clipping. Updates are
    differences of parameters, as in `adamw_tf`.

    Args:
        learning_rate: as for `adamw_tf`.
        betas: decay rates of the two moments; from 0 to below 1.
        eps: added to the root of the second moment; at least 0.
        weight_decay: fraction of a weight that is subtracted per unit of rate; with
            `decouple_lr` per update at the highest rate; at least 0.
        decouple_lr: whether decay is multiplied by rate / `max_lr` instead of the rate.
        max_lr: highest rate of the schedule, for `decouple_lr`; greater than 0. None
            for a constant `learning_rate`.
        kahan_sum: whether bfloat16 and float16 leaves are updated by compensated
            summation, as by `kahan_summation`. None for True, as in torch-optimi.
        decay_mask: as for `adamw_tf`.
        moment_dtype: as for `adamw_tf`.
        mu_dtype: as for `adamw_tf`.
        nu_dtype: as for `adamw_tf`.
        layouts: as for `adafactor_tf`: stacked layers are separate tensors in torch,
            each with its own mean.

    Returns:
        A transformation with state `StableAdamWState`; its update needs `params`.

    Raises:
        ValueError, TypeError: if an argument is out of range; if `max_lr` is missing
            with `decouple_lr` and a schedule; if leaves are shards.

    Examples:
        >>> params = {"kernel": jnp.ones(2)}
        >>> optimizer = stable_adamw_tf(0.25)
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(f"{updates['kernel'][0]:.4f}")
        -0.2500

    Source: Wortsman et al., "Stable and low-precision training for large-scale
        vision-language models", 2023, arXiv 2304.13013, algorithm 2; torch-optimi 0.3.3
        `stableadamw.py`, which Transformers calls for `optim="stable_adamw"`.
    Differs: torch-optimi computes in the dtype of the parameter, and stores moments in
        it; with bfloat16 parameters it rounds the decayed parameter before the sum,
        which loses a decay below 1/512. Here arithmetic and moments are float32, and
        decay is part of the compensated sum. Trainer passes bool("False"), which is
        True, for "decouple_lr=False" and "kahan_sum=False"; a `Recipe` reads False.
    """
    _checks.pair("betas", betas)
    for i, beta in enumerate(betas):
        _checks.fraction_below_one(f"betas[{i}]", beta)
    _checks.non_negative("eps", eps)
    for name, value in (("decouple_lr", decouple_lr), ("kahan_sum", kahan_sum)):
        if not isinstance(value, bool) and (value is not None or name == "decouple_lr"):
            raise TypeError(f"`{name}` must be True or False, got {value!r}.")
    if max_lr is not None:
        _checks.positive("max_lr", max_lr)
    elif decouple_lr and callable(learning_rate):
        raise ValueError(
            "`max_lr` must be given with `decouple_lr` and a schedule, got None. Pass "
            "the highest rate of the schedule."
        )
    highest = None
    if decouple_lr:
        highest = learning_rate if max_lr is None else max_lr
    arithmetic = _StableAdamW(
        betas, eps, weight_decay, highest, kahan_sum is not False, layouts
    )
    rule = with_moment_dtypes(
        arithmetic.rule(), moment_dtype, {"mu": mu_dtype, "nu": nu_dtype}
    )
    rule = dataclasses.replace(rule, init=arithmetic.with_compensation(rule))
    return per_leaf_optimizer(rule, learning_rate, weight_decay, decay_mask)


class _StableAdamW(NamedTuple):
    """Arithmetic of one leaf, with the arguments of `stable_adamw_tf`."""

    betas: tuple[Scalar, Scalar]
    eps: Scalar
    weight_decay: Scalar
    max_lr: Any  # None without `decouple_lr`
    kahan_sum: bool
    layouts: Mapping[str, TorchLayout] | None

    def rule(self) -> LeafRule:
        """Returns the arithmetic, without compensation in its state."""
        return LeafRule(
            _NAME,
            StableAdamWState,
            self.scalars,
            self.update,
            has_moment=(True, True, False),
            layouts=self.layouts_of,
        )

    def with_compensation(self, rule: LeafRule) -> Callable[..., Moments]:
        """Returns an `init` with `compensation` at the leaves that need it."""

        def init(p: jax.Array, layout: Any) -> Moments:
            *moments, rest = rule.init_leaf(p, layout)
            if self.kahan_sum and is_low_precision(p):
                rest = jnp.zeros_like(p)
            return *moments, rest

        return init

    def layouts_of(self, params: PyTree, grads: Sequence[Any]) -> list[Any]:
        """Returns the layout and the dtype of each leaf."""
        reason = "the rate of a leaf depends on a mean over it"
        check_whole(_NAME, params, grads, reason)
        found = jax.tree.leaves(resolve_layouts(self.layouts, params))
        leaves = jax.tree.leaves(params)
        return [(at, leaf.dtype) for at, leaf in zip(found, leaves, strict=True)]

    def scalars(self, rate: Rate, count: jax.Array) -> _Scalars:
        """Returns the scalars of update `count`, from 1."""
        dtype = rate.value.dtype
        one = exact_scalar(1.0, dtype)
        share1, share2 = (
            (one - exact_scalar(beta, dtype)) / bias_correction(beta, count, dtype)
            for beta in self.betas
        )
        computed = _Scalars(
            rate.value,
            rounded(share1),
            rounded(one - share2),
            rounded(share2),
            jnp.minimum(count, 0),  # 0, but XLA does not know that count > 0
        )
        hoisted: _Scalars = hoist_scalars(computed, count, dtype)
        return hoisted

    def update(self, leaf: Leaf, now: _Scalars, moments: Moments) -> Moments:
        """Returns the new parameter, the new moments and the new compensation."""
        p, g, is_decayed, (layout, leaf_dtype) = leaf
        mu, nu, rest = moments
        dtype, eps = p.dtype, scalar(self.eps, p.dtype)
        mu = lerp(mu, g, now.new_share1)
        nu = prevent_fma(nu * now.old_share2, now.opaque_zero) + now.new_share2 * g * g
        axes = layout.param_axes(p.ndim)
        num_elements = max(1, math.prod(p.shape[axis] for axis in axes))
        squares = g * g / jnp.maximum(nu, eps * eps)
        mean = jnp.sum(squares, axes, keepdims=True) / scalar(num_elements, dtype)
        rate = now.rate / jnp.maximum(jnp.sqrt(mean), scalar(1.0, dtype))
        change = (-rate * mu) / (jnp.sqrt(nu) + eps)
        if is_decayed:
            share = rate
            if self.max_lr is not None:
                share = rate / scalar(self.max_lr, dtype)
            factor = 1.0 - share * scalar(self.weight_decay, dtype)
            # As in torch, the decayed parameter is rounded before the step is added.
            p = prevent_fma(p * factor, now.opaque_zero)
        if _pytrees.is_masked(rest):
            return p + change, mu, nu, rest
        new, rest = compensated(p + (rest + change), leaf_dtype)
        return new, mu, nu, rest
