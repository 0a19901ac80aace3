"""Schedule-free AdamW, RAdam and SGD with the numbers of schedulefree.

During training the parameters are y, at which gradients are taken. The state holds the
iterates z of the base optimizer. The result of training is x, a weighted mean of all z,
which `eval_params` computes from y and z:

    y = (1 - beta1) * z + beta1 * x        x = y + (1 - 1 / beta1) * (z - y)
"""

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
    exact_power,
    exact_scalar,
    exact_sqrt,
    hoist_scalars,
    is_zero,
    one_minus,
    prevent_fma,
    rounded,
    scalar,
    split_float,
    wide_dtype,
)
from .._numerics.split_float import SplitFloat
from .._pytrees import TorchLayout, is_floating
from .._typing import PyTree, Scalar, ScalarOrSchedule
from ._adamw import bias_correction, lerp
from ._learning_rate import Rate
from ._per_leaf import Carried, Leaf, LeafRule, Moments, own_copy, per_leaf_optimizer

# Largest power that is computed by products instead of `jnp.power`.
_MAX_PRODUCTS = 8


class ScheduleFreeState(NamedTuple):
    """State of the schedule-free optimizers. Integer leaves hold `MaskedNode`.

    float32 fields are float64 for float64 leaves, and scalars if any leaf is.
    """

    count: PyTree  # (), int32: number of updates
    step: jax.Array  # (), int32: number of updates, the argument of a schedule
    # (), float32: used by the last update, before the warmup of the optimizer itself
    learning_rate: jax.Array
    rate_source: jax.Array  # (), int32: origin of that rate, see `_learning_rate`
    weight_sum: SplitFloat  # sum of the weights in the mean x
    lr_max: SplitFloat  # highest rate of an update so far; -1 before the first
    z_weight: jax.Array  # (), float32: 1 - 1 / beta1, weight of z in x
    z: PyTree  # as params, float32: iterates of the base optimizer
    nu: PyTree  # as params, float32: mean of squared gradients; masked for SGD


class _Scalars(NamedTuple):
    """Scalars of one update: (), in the dtype of a leaf or of the state's rate."""

    rate: jax.Array  # rate times the warmup or the rectification
    mean_weight: jax.Array  # weight of the new z in x
    y_factor: jax.Array  # factor of the gradient in y
    correction: jax.Array  # 1 - beta2^t, set for each dtype
    is_adaptive: jax.Array  # (), bool: whether the gradient is divided
    opaque_zero: jax.Array  # (), int32: 0, unknown to the compiler


@checked_names
def schedule_free_adamw_tf(
    learning_rate: ScalarOrSchedule,
    *,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    decay_mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    warmup_steps: Scalar = 0,
    r: Scalar = 0.0,
    weight_lr_power: Scalar = 2.0,
) -> optax.GradientTransformationExtraArgs:
    """Schedule-free AdamW as `schedulefree.AdamWScheduleFree` computes it.

        rate = learning_rate * min(t / warmup_steps, 1)
        w    = t^r * (highest rate so far)^weight_lr_power
        c    = w / sum of all w, or 0 if that is 0
        nu   = beta2 * nu + (1 - beta2) * g * g
        g    = g / (sqrt(nu / (1 - beta2^t)) + eps)
        g    = g + weight_decay * y                          (decayed leaves)
        y    = y + c * (z - y) + rate * (beta1 * (1 - c) - 1) * g
        z    = z - rate * g

    with t counted from 1, z equal to the parameters before the first update, and in
    float32 (float64 for float64 leaves). The parameters are y. Evaluate, save and
    export `eval_params(params, opt_state)`; checkpoints contain y.

    Args:
        learning_rate: as for `adamw_tf`; best a constant. A schedule multiplies the
            warmup of this function.
        betas: weight of x in y, greater than 0 and less than 1; and the decay rate of
            the mean of squared gradients, from 0 to below 1.
        eps: added to the denominator; at least 0.
        weight_decay: factor of the parameter that is added to the normalized gradient;
            at least 0.
        decay_mask: as for `adamw_tf`.
        warmup_steps: number of updates over which the rate rises linearly; at least 0.
        r: exponent of the number of the update in the weight of z; at least 0.
        weight_lr_power: exponent of the rate in the weight of z; at least 0.

    Returns:
        A transformation with state `ScheduleFreeState`; its update needs `params`.

    Raises:
        ValueError, TypeError: if an argument is out of range.

    Examples:
        >>> params = {"kernel": jnp.ones(2)}
        >>> optimizer = schedule_free_adamw_tf(0.5)
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update(params, state, params)
        >>> y = optax.apply_updates(params, updates)
        >>> print(y["kernel"], eval_params(y, state)["kernel"])
        [0.5 0.5] [0.5 0.5]

    Source: Defazio et al., "The Road Less Scheduled", 2024, arXiv 2405.15682;
        schedulefree 1.4.1 `adamw_schedulefree.py`.
    Differs: `optax.contrib.schedule_free_adamw` has no `r`, and its base optimizer has
        the warmup of one update before. The mask of decay is that of Trainer.
    """
    _check_betas(betas)
    _checks.non_negative("eps", eps)
    free = _ScheduleFree(
        betas[0], r, weight_lr_power, _warmup(warmup_steps), weight_decay
    )
    rule = free.rule("schedule_free_adamw_tf", betas[1], eps)
    return per_leaf_optimizer(rule, learning_rate, weight_decay, decay_mask)


@checked_names
def schedule_free_radam_tf(
    learning_rate: ScalarOrSchedule,
    *,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    decay_mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    r: Scalar = 0.0,
    weight_lr_power: Scalar = 2.0,
    silent_sgd_phase: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Schedule-free RAdam as `schedulefree.RAdamScheduleFree` computes it.

        rho_inf = 2 / (1 - beta2) - 1
        rho     = rho_inf - 2 * t * beta2^t / (1 - beta2^t)
        rate    = learning_rate * sqrt((rho - 4) * (rho - 2) * rho_inf
                                       / ((rho_inf - 4) * (rho_inf - 2) * rho))

    and then as `schedule_free_adamw_tf`. While rho is at most 4, which are the first 4
    updates for a `beta2` of 0.999, the rate is 0.

    Args:
        learning_rate: as for `schedule_free_adamw_tf`.
        betas: as for `schedule_free_adamw_tf`.
        eps: as for `schedule_free_adamw_tf`.
        weight_decay: as for `schedule_free_adamw_tf`.
        decay_mask: as for `adamw_tf`.
        r: as for `schedule_free_adamw_tf`.
        weight_lr_power: as for `schedule_free_adamw_tf`.
        silent_sgd_phase: False to use the whole rate and the gradient itself, which is
            SGD, while rho is at most 4.

    Returns:
        A transformation with state `ScheduleFreeState`; its update needs `params`.

    Raises:
        ValueError, TypeError: if an argument is out of range.

    Source: schedulefree 1.4.1 `radam_schedulefree.py`; Liu et al., "On the Variance of
        the Adaptive Learning Rate and Beyond", 2020, arXiv 1908.03265.
    """
    _check_betas(betas)
    _checks.non_negative("eps", eps)
    if not isinstance(silent_sgd_phase, bool):
        raise TypeError(
            f"`silent_sgd_phase` must be True or False, got {silent_sgd_phase!r}."
        )
    rectified = _rectification(betas[1], is_silent=silent_sgd_phase)
    free = _ScheduleFree(betas[0], r, weight_lr_power, rectified, weight_decay)
    rule = free.rule("schedule_free_radam_tf", betas[1], eps)
    return per_leaf_optimizer(rule, learning_rate, weight_decay, decay_mask)


@checked_names
def schedule_free_sgd_tf(
    learning_rate: ScalarOrSchedule,
    *,
    momentum: Scalar = 0.9,
    weight_decay: Scalar = 0.0,
    decay_mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    warmup_steps: Scalar = 0,
    r: Scalar = 0.0,
    weight_lr_power: Scalar = 2.0,
) -> optax.GradientTransformationExtraArgs:
    """Schedule-free SGD as `schedulefree.SGDScheduleFree` computes it.

    The formula is that of `schedule_free_adamw_tf` with the gradient itself in place of
    the normalized one, and `momentum` in place of `beta1`.

    Args:
        learning_rate: as for `schedule_free_adamw_tf`.
        momentum: weight of x in y; greater than 0 and less than 1.
        weight_decay: factor of the parameter that is added to the gradient; at least 0.
        decay_mask: as for `schedule_free_adamw_tf`.
        warmup_steps: as for `schedule_free_adamw_tf`.
        r: as for `schedule_free_adamw_tf`.
        weight_lr_power: as for `schedule_free_adamw_tf`.

    Returns:
        A transformation with state `ScheduleFreeState`; its update needs `params`.

    Raises:
        ValueError, TypeError: if an argument is out of range.

    Source: schedulefree 1.4.1 `sgd_schedulefree.py`.
    """
    _check_x_weight("momentum", momentum)
    free = _ScheduleFree(
        momentum, r, weight_lr_power, _warmup(warmup_steps), weight_decay
    )
    rule = free.rule("schedule_free_sgd_tf", None, 0.0)
    return per_leaf_optimizer(rule, learning_rate, weight_decay, decay_mask)


# (count, dtype) -> factor of the rate, whether gradients are normalized
_RateFactor = Callable[[jax.Array, Any], tuple[ExactScalar, jax.Array]]


class _ScheduleFree(NamedTuple):
    """Arithmetic of the three optimizers, which differ in factor and normalization."""

    x_weight: Scalar  # beta1, or the momentum of SGD
    r: Scalar
    weight_lr_power: Scalar
    rate_factor: _RateFactor
    weight_decay: Scalar

    def rule(self, name: str, beta2: Scalar | None, eps: Scalar) -> LeafRule:
        """Returns the arithmetic of one leaf; `beta2` is None for SGD."""
        _checks.non_negative("r", self.r)
        _checks.non_negative("weight_lr_power", self.weight_lr_power)

        def init(p: jax.Array, _: TorchLayout | None) -> Moments:
            dtype, no_nu = wide_dtype(p.dtype), beta2 is None
            nu = optax.MaskedNode() if no_nu else jnp.zeros_like(p, dtype)
            return own_copy(p, dtype), nu

        def scalars(rate: Rate, count: jax.Array, shared: _Scalars) -> _Scalars:
            dtype = rate.value.dtype
            cast = [x.astype(dtype) if is_floating(x) else x for x in shared]
            scalars = _Scalars(*cast)
            if beta2 is not None:
                correction = rounded(bias_correction(beta2, count, dtype))
                scalars = scalars._replace(correction=correction)
            hoisted: _Scalars = hoist_scalars(scalars, count, dtype)
            return hoisted

        def update(leaf: Leaf, scalars: _Scalars, moments: Moments) -> Moments:
            y, g, (z, nu) = leaf.param, leaf.grad, moments
            if beta2 is not None:
                dtype = g.dtype
                # Rounded on its own, as in `adamw_tf`.
                old = prevent_fma(nu * scalar(beta2, dtype), scalars.opaque_zero)
                nu = one_minus(beta2, dtype) * g * g + old
                root = jnp.sqrt(nu / scalars.correction)
                normalized = g / (root + scalar(eps, dtype))
                g = jnp.where(scalars.is_adaptive, normalized, g)
            if leaf.is_decayed:
                g = g + scalar(self.weight_decay, y.dtype) * y
            y = lerp(y, z, scalars.mean_weight) + scalars.y_factor * g
            return y, z - scalars.rate * g, nu

        fields = ("weight_sum", "lr_max", "z_weight")
        carried = Carried(fields, self._first_carried, self._next_carried)
        return LeafRule(
            name, ScheduleFreeState, scalars, update, init=init, carried=carried
        )

    def _z_weight(self, dtype: Any) -> jax.Array:
        """Returns 1 - 1 / beta1, in double as `eval` of schedulefree."""
        if _checks.is_concrete(self.x_weight):
            return scalar(1.0 - 1.0 / float(self.x_weight), dtype)
        return 1.0 - 1.0 / scalar(self.x_weight, dtype)

    def _first_carried(self, dtype: Any) -> tuple[SplitFloat, SplitFloat, jax.Array]:
        weight_sum, lr_max = (split_float.from_float(x, dtype) for x in (0.0, -1.0))
        return weight_sum, lr_max, self._z_weight(dtype)

    def _next_carried(
        self, state: ScheduleFreeState, rate: Rate, count: jax.Array
    ) -> tuple[tuple[Any, ...], _Scalars]:
        """Returns the new sums, and the scalars of update `count`, from 1."""
        dtype = rate.value.dtype
        factor, is_adaptive = self.rate_factor(count, dtype)
        exact_rate = rate.exact() * factor
        highest = split_float.joined(state.lr_max)
        is_higher = rounded(exact_rate - highest) > 0
        lr_max = split_float.select(is_higher, exact_rate, highest)
        weight = _power(lr_max, self.weight_lr_power, dtype)
        if not is_zero(self.r):
            weight = weight * _power(exact_int(count, dtype), self.r, dtype)
        weight_sum = split_float.joined(state.weight_sum) + weight
        # schedulefree catches the division of 0 by 0, at updates with a rate of 0.
        one = exact_scalar(1.0, dtype)
        is_positive = rounded(weight_sum) > 0
        mean_weight = weight / split_float.select(is_positive, weight_sum, one)
        x_weight = exact_scalar(self.x_weight, dtype)
        y_factor = exact_rate * (x_weight * (one - mean_weight) - one)
        shared = _Scalars(
            rounded(exact_rate),
            rounded(mean_weight),
            rounded(y_factor),
            jnp.ones((), dtype),
            is_adaptive,
            jnp.minimum(count, 0),  # 0, but XLA does not know that count > 0
        )
        # An unchanged number keeps its last digits.
        has_weight = rounded(weight) > 0
        new = (
            split_float.replaced(has_weight, state.weight_sum, weight_sum),
            split_float.replaced(is_higher, state.lr_max, exact_rate),
            self._z_weight(dtype),
        )
        return new, shared


def _warmup(warmup_steps: Scalar) -> _RateFactor:
    """Returns min(count / warmup_steps, 1)."""
    if not isinstance(warmup_steps, jax.Array):
        warmup_steps = _checks.step_count("warmup_steps", warmup_steps)

    def factor(count: jax.Array, dtype: Any) -> tuple[ExactScalar, jax.Array]:
        one, is_adaptive = exact_scalar(1.0, dtype), jnp.ones((), bool)
        if is_zero(warmup_steps):
            return one, is_adaptive
        is_rising = count.astype(dtype) < scalar(warmup_steps, dtype)
        length = split_float.select(is_rising, exact_scalar(warmup_steps, dtype), one)
        rising = exact_int(count, dtype) / length
        return split_float.select(is_rising, rising, one), is_adaptive

    return factor


def _rectification(beta2: Scalar, *, is_silent: bool) -> _RateFactor:
    """Returns RAdam's factor; while it does not exist 0, or 1 unless `is_silent`."""

    def factor(count: jax.Array, dtype: Any) -> tuple[ExactScalar, jax.Array]:
        one, two, four = (exact_scalar(x, dtype) for x in (1.0, 2.0, 4.0))
        power = exact_power(beta2, count, dtype)
        rho_inf = two / (one - exact_scalar(beta2, dtype)) - one
        rho = rho_inf - two * exact_int(count, dtype) * power / (one - power)
        is_adaptive = rounded(rho - four) > 0
        # rho and rho_inf below 4 are replaced: the root would be NaN.
        rho = split_float.select(is_adaptive, rho, exact_scalar(5.0, dtype))
        rho_inf = split_float.select(is_adaptive, rho_inf, exact_scalar(5.0, dtype))
        ratio = ((rho - four) * (rho - two) * rho_inf) / (
            (rho_inf - four) * (rho_inf - two) * rho
        )
        before = exact_scalar(0.0 if is_silent else 1.0, dtype)
        return split_float.select(is_adaptive, exact_sqrt(ratio), before), is_adaptive

    return factor


def _power(base: ExactScalar, exponent: Scalar, dtype: Any) -> ExactScalar:
    """Returns base ** exponent for a base of at least 0."""
    number = float(exponent) if _checks.is_concrete(exponent) else None
    if number is not None and number.is_integer() and number <= _MAX_PRODUCTS:
        result = exact_scalar(1.0, dtype)
        for _ in range(int(number)):
            result = result * base
        return result
    return exact_scalar(jnp.power(rounded(base), scalar(exponent, dtype)), dtype)


def _check_betas(betas: tuple[Scalar, Scalar]) -> None:
    _checks.pair("betas", betas)
    _check_x_weight("betas[0]", betas[0])
    _checks.fraction_below_one("betas[1]", betas[1])


def _check_x_weight(name: str, value: Scalar) -> None:
    _checks.fraction_below_one(name, value)
    # With 0 the parameters would be z, from which x cannot be computed.
    _checks.positive(name, value)
