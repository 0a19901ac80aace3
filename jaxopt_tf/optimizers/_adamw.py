"""AdamW with the numerics of torch, and the AdamW of Transformers before version 5."""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .. import _checks
from .._argument_names import checked_names
from .._numerics import (
    ExactScalar,
    exact_power,
    exact_scalar,
    exact_sqrt,
    hoist_scalars,
    one_minus,
    prevent_fma,
    rounded,
    scalar,
)
from .._typing import PyTree, Scalar, ScalarOrSchedule
from ._learning_rate import Rate
from ._low_precision import with_moment_dtypes
from ._per_leaf import Leaf, LeafRule, Moments, per_leaf_optimizer


class AdamWState(NamedTuple):
    """State of `adamw_tf`; `mu` and `nu` hold `MaskedNode` at integer leaves."""

    # (), int32: number of moment updates. A tree, one per leaf, for a state that was
    # read from torch and whose parameters have different numbers of updates.
    count: PyTree
    step: jax.Array  # (), int32: number of updates, the argument of a schedule
    # (), float32, or float64 if a parameter is: used by the last update
    learning_rate: jax.Array
    rate_source: jax.Array  # (), int32: origin of that rate, see `_learning_rate`
    mu: PyTree  # as params, `moment_dtype`: mean of gradients
    nu: PyTree  # as params, `moment_dtype`: mean of squared gradients


class _Scalars(NamedTuple):
    """Scalars shared by all leaves of one dtype and one number of updates.

    Their shape is () and their dtype float32, or float64 for float64 leaves.
    """

    step_size: jax.Array  # rate / (1 - beta1^t)
    sqrt_correction: jax.Array  # sqrt(1 - beta2^t)
    decay: jax.Array  # rate * weight_decay
    decay_factor: jax.Array  # 1 - rate * weight_decay
    opaque_zero: jax.Array  # (), int32: 0, unknown to the compiler


# (mean, factors of the new term, decay rate, opaque zero) -> next mean.
Mean = Callable[[jax.Array, tuple[jax.Array, ...], Scalar, jax.Array], jax.Array]
# (leaf, mu, nu, scalars) -> new parameter, all in the dtype of the arithmetic.
_NewParam = Callable[[Leaf, jax.Array, jax.Array, _Scalars], jax.Array]


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
    mu_dtype: Any = None,
    nu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW as `torch.optim.AdamW` computes it.

        p   = p * (1 - rate * weight_decay)                  (decayed leaves)
        mu  = mu + (1 - beta1) * (g - mu)
        nu  = beta2 * nu + (1 - beta2) * g * g
        p   = p - rate / (1 - beta1^t) * mu / (sqrt(nu) / sqrt(1 - beta2^t) + eps)

    with t counted from 1, in float32 (float64 for float64 leaves), in this order. The
    new parameter is rounded to the dtype of the leaf, and the update is its difference
    to the old one, so that `params + updates` is that parameter. A later transformation
    of a chain must not rescale the update.

    Decoupled decay differs from the L2 term `weight_decay / 2 * |p|^2` of a loss. The
    gradient of that term enters the moments and is divided by sqrt(nu), so that weights
    with large gradients are hardly decayed. Decoupled decay multiplies every weight by
    the same factor, which follows the schedule.

    Args:
        learning_rate: at least 0: a float, which is stored in the state (change it with
            `set_learning_rate`), a 0-d array, or a schedule from step to rate,
            evaluated at 0 first.
        betas: decay rates of the two moments; from 0 to below 1. Floats are used as
            doubles, float32 arrays (of a sweep) with their exact value.
        eps: added to the denominator after its bias correction; at least 0.
        weight_decay: fraction of a weight that is subtracted per unit of rate; at
            least 0.
        decay_mask: bool for each leaf, or a callable from params to that. None for
            `decay_mask(params)`, which excludes biases and normalization layers; leaves
            without names are refused then, if `weight_decay` is known to be nonzero.
            Under `optax.inject_hyperparams` a callable needs
            `static_args="decay_mask"`.
        decay: "torch" multiplies by float32(1 - rate * weight_decay), as torch does. At
            rates below 1e-5 this rounding is a noticeable part of the decay, or makes
            the factor 1, which is no decay (except at float64 leaves, whose factor is
            float64). "exact" subtracts rate *
            weight_decay * p together with the step.
        moment_dtype: dtype of `mu` and `nu`. "float32" is float64 at float64 leaves;
            "bfloat16" and "float16" apply to every leaf. None for the leaf's dtype, as
            in torch; a bfloat16 second moment cannot decrease then, because 0.999 nu
            is rounded to nu.
        mu_dtype: dtype of `mu`; None for `moment_dtype`.
        nu_dtype: dtype of `nu`; None for `moment_dtype`.

    Returns:
        A transformation with state `AdamWState`. Updates have the leaves' dtype.
        Integer leaves are left unchanged. Leaves may be float64 under
        `jax_enable_x64`; complex and float8 leaves are refused.

    Raises:
        ValueError, TypeError: if an argument is out of range; in an update, if `params`
            is missing or gradients do not match it.

    Examples:
        >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}
        >>> optimizer = adamw_tf(1e-3, weight_decay=0.1)
        >>> grads = jax.tree.map(jnp.ones_like, params)
        >>> updates, _ = optimizer.update(grads, optimizer.init(params), params)
        >>> print(f"{updates['kernel'][0, 0]:.4f} {updates['bias'][0]:.4f}")
        -0.0011 -0.0010

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019; torch
        2.13 `optim/adam.py`, `_single_tensor_adam`; for low-precision leaves the order
        of `fused=True`, which rounds once.
    Differs: `optax.adamw` computes the bias correction from float32 powers (relative
        error up to 2e-4), decays by 1e-4 by default, and decays all leaves. Torch
        decays all leaves too; the mask is that of Trainer.
    """
    rule = adamw_rule("adamw_tf", betas, eps, weight_decay, decay)
    dtypes = {"mu": mu_dtype, "nu": nu_dtype}
    rule = with_moment_dtypes(rule, moment_dtype, dtypes)
    return per_leaf_optimizer(rule, learning_rate, weight_decay, decay_mask)


def adamw_rule(
    name: str,
    betas: tuple[Scalar, Scalar],
    eps: Scalar,
    weight_decay: Scalar,
    decay: str = "torch",
    means: tuple[Mean, Mean] | None = None,
) -> LeafRule:
    """Returns the arithmetic of `adamw_tf`, for a function called `name`.

    Args:
        name: of the function, for messages.
        betas: as for `adamw_tf`.
        eps: as for `adamw_tf`.
        weight_decay: as for `adamw_tf`.
        decay: as for `adamw_tf`.
        means: how the two moments are rounded; None as in torch.
    """
    _checks.non_negative("eps", eps)
    _checks.one_of("decay", decay, ("torch", "exact"))

    def new_param(
        leaf: Leaf, mu: jax.Array, nu: jax.Array, scalars: _Scalars
    ) -> jax.Array:
        p = leaf.param
        # In the order of `_single_tensor_adam`; another order rounds differently. The
        # product comes before the quotient, as in `addcdiv` on a CPU.
        denominator = jnp.sqrt(nu) / scalars.sqrt_correction + scalar(eps, p.dtype)
        change = (-scalars.step_size * mu) / denominator
        if leaf.is_decayed and decay == "exact":
            change = change - scalars.decay * p
        elif leaf.is_decayed:
            # Torch stores the decayed parameter before it adds the step, and so rounds
            # it. Without `prevent_fma` XLA fuses the product with the sum.
            p = prevent_fma(p * scalars.decay_factor, scalars.opaque_zero)
        return p + change

    adam = _Adam(name, betas, weight_decay, new_param)
    return (adam if means is None else dataclasses.replace(adam, means=means)).rule()


@checked_names
def adamw_hf_v4(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-6,
    weight_decay: Scalar = 0.0,
    correct_bias: bool = True,
    decay_mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    moment_dtype: Any = "float32",
    mu_dtype: Any = None,
    nu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW as `transformers.AdamW` computed it until version 5 removed it.

        p = p - size * mu / (sqrt(nu) + eps)
        p = p - rate * weight_decay * p                      (decayed leaves)

    with moments as in `adamw_tf` and size = rate * sqrt(1 - beta2^t) / (1 - beta1^t),
    or the rate itself without `correct_bias`. eps is added to the uncorrected root, so
    that early steps are smaller, and decay acts on the updated parameter.

    Args:
        learning_rate: as for `adamw_tf`.
        betas: as for `adamw_tf`.
        eps: added to the root of the second moment; at least 0.
        weight_decay: as for `adamw_tf`.
        correct_bias: False for BERT's original TensorFlow optimizer.
        decay_mask: as for `adamw_tf`.
        moment_dtype: as for `adamw_tf`.
        mu_dtype: as for `adamw_tf`.
        nu_dtype: as for `adamw_tf`.

    Returns:
        A transformation with state `AdamWState`.

    Raises:
        ValueError, TypeError: as `adamw_tf`.

    Examples:
        >>> params = {"kernel": jnp.ones(2)}
        >>> optimizer = adamw_hf_v4(1e-3, correct_bias=False)
        >>> grads = {"kernel": jnp.full(2, 0.5)}
        >>> updates, _ = optimizer.update(grads, optimizer.init(params), params)
        >>> print(f"{updates['kernel'][0]:.4f}")
        -0.0032

    Source: transformers 4.44 `optimization.py`, `AdamW.step`.
    """
    _checks.non_negative("eps", eps)

    def new_param(
        leaf: Leaf, mu: jax.Array, nu: jax.Array, scalars: _Scalars
    ) -> jax.Array:
        # The correction scales the step instead of the root.
        size = scalars.step_size * scalars.sqrt_correction
        p = leaf.param
        p = p + (-size * mu) / (jnp.sqrt(nu) + scalar(eps, p.dtype))
        return p - scalars.decay * p if leaf.is_decayed else p

    adam = _Adam("adamw_hf_v4", betas, weight_decay, new_param, correct_bias)
    dtypes = {"mu": mu_dtype, "nu": nu_dtype}
    rule = with_moment_dtypes(adam.rule(), moment_dtype, dtypes)
    return per_leaf_optimizer(rule, learning_rate, weight_decay, decay_mask)


def lerp(start: jax.Array, end: jax.Array, weight: jax.Array) -> jax.Array:
    """Interpolates from the nearer of `start` and `end`, as `torch.lerp` does."""
    near_start = start + weight * (end - start)
    near_end = end + (weight - 1.0) * (end - start)
    return jnp.where(jnp.abs(weight) < 0.5, near_start, near_end)


def interpolated_mean(
    mean: jax.Array, factors: tuple[jax.Array, ...], beta: Scalar, zero: jax.Array
) -> jax.Array:
    """Returns mean + (1 - beta) * (product - mean), rounded as by `torch.lerp`."""
    del zero
    product = functools.reduce(operator.mul, factors)
    return lerp(mean, product, one_minus(beta, mean.dtype))


def decayed_mean(
    mean: jax.Array, factors: tuple[jax.Array, ...], beta: Scalar, zero: jax.Array
) -> jax.Array:
    """Returns beta * mean + (1 - beta) * product, rounded as by `mul_` and `add_`."""
    # The first product is rounded on its own, as in torch's compiled kernel. Without
    # `prevent_fma` XLA fuses one product or the other with the sum, and the choice may
    # differ between programs for different numbers of devices.
    old = prevent_fma(mean * scalar(beta, mean.dtype), zero)
    return functools.reduce(operator.mul, factors, one_minus(beta, mean.dtype)) + old


@dataclasses.dataclass(frozen=True)
class _Adam:
    """Moments and scalars of both variants of AdamW, which differ in `new_param`."""

    name: str
    betas: tuple[Scalar, Scalar]
    weight_decay: Scalar
    new_param: _NewParam
    correct_bias: bool = True
    means: tuple[Mean, Mean] = (interpolated_mean, decayed_mean)

    def rule(self) -> LeafRule:
        """Returns the arithmetic; raises if `betas` are out of range."""
        _checks.pair("betas", self.betas)
        for i, beta in enumerate(self.betas):
            _checks.fraction_below_one(f"betas[{i}]", beta)
        moments = self.scalars, self.update
        return LeafRule(self.name, AdamWState, *moments, has_moment=(True, True))

    def scalars(self, rate: Rate, count: jax.Array) -> _Scalars:
        """Returns the scalars of update `count`, from 1."""
        # Torch computes all of these with Python floats. Each is evaluated with the
        # digits of a double and rounded once, when it is applied to a leaf.
        dtype, exact_rate = rate.value.dtype, rate.exact()
        step_size, sqrt_correction = rate.value, jnp.ones((), dtype)
        if self.correct_bias:
            beta1, beta2 = self.betas
            step_size = rounded(exact_rate / bias_correction(beta1, count, dtype))
            correction2 = bias_correction(beta2, count, dtype)
            sqrt_correction = rounded(exact_sqrt(correction2))
        decay = exact_rate * exact_scalar(self.weight_decay, dtype)
        decay_factor = exact_scalar(1.0, dtype) - decay
        scalars = _Scalars(
            step_size,
            sqrt_correction,
            rounded(decay),
            rounded(decay_factor),
            jnp.minimum(count, 0),  # 0, but XLA does not know that count > 0
        )
        hoisted: _Scalars = hoist_scalars(scalars, count, dtype)
        return hoisted

    def update(self, leaf: Leaf, scalars: _Scalars, moments: Moments) -> Moments:
        """Returns the new parameter and the new moments."""
        (mu, nu), g, zero = moments, leaf.grad, scalars.opaque_zero
        next_mu, next_nu = self.means
        mu = next_mu(mu, (g,), self.betas[0], zero)
        nu = next_nu(nu, (g, g), self.betas[1], zero)
        return self.new_param(leaf, mu, nu, scalars), mu, nu


def bias_correction(beta: Scalar, count: jax.Array, dtype: Any) -> ExactScalar:
    """Returns 1 - beta^count, with the accuracy of torch's doubles."""
    return exact_scalar(1.0, dtype) - exact_power(beta, count, dtype)
