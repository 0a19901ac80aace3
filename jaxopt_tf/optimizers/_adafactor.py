"""Adafactor with the numerics of Transformers.

The step of a factored leaf reads its gradient four times: for the row means, the column
means, the size of the step and the step itself. XLA would compute an expression that
two of these passes share only once and write it to an array of the gradient's size,
which costs more than computing it twice. The passes therefore use expressions with
different signs, and leaves are not transposed to torch's layout: the axes of torch's
rows and columns are passed instead.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import _checks, _pytrees
from .._argument_names import checked_names
from .._numerics import one_minus, scalar, wide_dtype
from .._pytrees import TorchLayout, reshard_like, resolve_layouts, varying_axes
from .._typing import PyTree, Scalar, ScalarOrSchedule, Step
from ._learning_rate import Rate
from ._per_leaf import Leaf, LeafRule, Moments, per_leaf_optimizer

_Axes = tuple[int, ...]


class AdafactorState(NamedTuple):
    """State of `adafactor_tf`.

    A leaf has `nu_row` and `nu_col` if it has two axes or more in torch, else `nu`.
    Each begins with the stacked axes, which are not axes of one parameter.
    float32 fields are float64 for float64 leaves; the rate is float64 if any leaf is.
    """

    count: PyTree  # (), int32: number of moment updates; or a tree, as in `AdamWState`
    step: jax.Array  # (), int32: number of updates, the argument of a schedule
    learning_rate: jax.Array  # (), float32: of the last update, without parameter scale
    rate_source: jax.Array  # (), int32: origin of that rate, see `_learning_rate`
    nu_row: PyTree  # torch's shape without axis -1, float32: means of g^2
    nu_col: PyTree  # torch's shape without axis -2, float32: means of g^2
    nu: PyTree  # torch's shape, float32: mean of g^2 per element
    mu: PyTree  # the leaf's shape, float32: mean of the updates; masked without beta1


class _Scalars(NamedTuple):
    """Scalars of one update, in the dtype of a leaf's arithmetic; () each."""

    old_share: jax.Array  # weight of the old second moment, beta2
    new_share: jax.Array  # weight of the new squares, 1 - beta2
    rate: jax.Array  # learning rate before the parameter scale


@checked_names
def adafactor_tf(
    learning_rate: ScalarOrSchedule | None = None,
    *,
    eps: tuple[Scalar, Scalar] = (1e-30, 1e-3),
    clip_threshold: Scalar = 1.0,
    decay_rate: Scalar = -0.8,
    beta1: Scalar | None = None,
    weight_decay: Scalar = 0.0,
    scale_parameter: bool = True,
    relative_step: bool = True,
    warmup_init: bool = False,
    decay_mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    layouts: Mapping[str, TorchLayout] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adafactor as Transformers computes it: Adam with factored second moments.

        rate  = learning_rate, or min(1e-2 or 1e-6 t, 1 / sqrt(t)), with t = 1, 2, ...
        rate  = rate * max(eps[1], RMS(p))              if scale_parameter
        beta2 = 1 - t^decay_rate
        row   = beta2 row + (1 - beta2) mean(g^2 + eps[0])     along the last axis
        col   = beta2 col + (1 - beta2) mean(g^2 + eps[0])     along the last but one
        u     = g / sqrt(row / mean(row)) / sqrt(col)
        u     = rate * u / max(1, RMS(u) / clip_threshold)
        u     = mu = beta1 mu + (1 - beta1) u           if beta1 is given
        p     = p - weight_decay rate p - u

    A vector or a scalar has a mean of g^2 + eps[0] per element instead of row and col.
    Axes are those of torch, see `layouts`. Arithmetic is in float32 (float64 for
    float64 leaves), and updates are differences of parameters, as in `adamw_tf`.

    Shards inside of `jax.shard_map` are refused, because the means are those of whole
    arrays. Under `check_vma=False` and in `jax.pmap` shards cannot be detected.

    Args:
        learning_rate: a float, a 0-d array or a schedule; None with `relative_step`.
        eps: added to g^2, and the smallest scale of a parameter; each at least 0.
        clip_threshold: the largest RMS of a leaf's update before the rate is applied;
            greater than 0. `math.inf` disables clipping.
        decay_rate: exponent of the second moments' decay; at most 0.
        beta1: decay rate of the first moment, from 0 to below 1. None for no moment.
        weight_decay: fraction subtracted per unit of the scaled rate; at least 0.
        scale_parameter: whether the rate is relative to the parameter's RMS.
        relative_step: whether the rate is a function of t alone.
        warmup_init: whether that function begins with 1e-6 t; needs `relative_step`.
        decay_mask: as for `adamw_tf`.
        layouts: mapping from patterns that match whole leaf names to torch's layouts.
            Without a pattern, a rank-4 leaf named `kernel` is the HWIO kernel of a
            convolution, and any other leaf has the same layout in torch as here.

    Returns:
        A transformation with state `AdafactorState`; its update needs `params`.

    Raises:
        ValueError, TypeError: if an option is out of range; if there is not exactly one
            source of the rate; if a layout, a mask or gradients do not fit the
            parameters; if leaves are shards.

    Examples:
        >>> state = adafactor_tf().init({"kernel": jnp.ones((4, 3))})
        >>> state.nu_row["kernel"].shape, state.nu_col["kernel"].shape
        ((4,), (3,))

    Source: Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear
        Memory Cost", 2018, arXiv 1804.04235; transformers 5.23.0 `optimization.py`,
        `Adafactor`.
    Differs: `optax.adafactor` factors the two largest axes, if both have 128 elements
        or more, takes the decay rate with the opposite sign, and does not multiply
        `weight_decay` by the rate. A parameter without a gradient is unchanged in
        torch; in JAX its gradient is zero, and it is decayed.
    """
    _check_rate(learning_rate, relative_step, warmup_init)
    arithmetic = _Adafactor(
        eps=eps,
        clip_threshold=clip_threshold,
        decay_rate=decay_rate,
        beta1=beta1,
        weight_decay=weight_decay,
        scale_parameter=scale_parameter,
        layouts=layouts,
    )
    rule = LeafRule(
        "adafactor_tf",
        AdafactorState,
        arithmetic.scalars,
        arithmetic.update,
        init=arithmetic.init,
        layouts=arithmetic.layouts_of,
        rate_of_count=functools.partial(_relative_rate, warmup_init),
    )
    return per_leaf_optimizer(rule, learning_rate, weight_decay, decay_mask)


@checked_names
def adafactor_trainer(
    learning_rate: ScalarOrSchedule,
    *,
    eps: tuple[Scalar, Scalar] = (1e-30, 1e-3),
    clip_threshold: Scalar = 1.0,
    decay_rate: Scalar = -0.8,
    beta1: Scalar | None = None,
    weight_decay: Scalar = 0.0,
    decay_mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    layouts: Mapping[str, TorchLayout] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adafactor as Trainer configures it for `--optim adafactor`.

    Equal to `adafactor_tf` with `scale_parameter=False, relative_step=False`, which
    Trainer always sets. Arguments and errors are those of `adafactor_tf`.

    Source: transformers 5.23.0 `trainer_optimizer.py`, `_get_adafactor`.
    """
    return adafactor_tf(
        learning_rate,
        eps=eps,
        clip_threshold=clip_threshold,
        decay_rate=decay_rate,
        beta1=beta1,
        weight_decay=weight_decay,
        scale_parameter=False,
        relative_step=False,
        decay_mask=decay_mask,
        layouts=layouts,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Adafactor:
    """Arithmetic of one leaf, with the arguments of `adafactor_tf`."""

    eps: tuple[Scalar, Scalar]
    clip_threshold: Scalar
    decay_rate: Scalar
    beta1: Scalar | None
    weight_decay: Scalar
    scale_parameter: bool
    layouts: Mapping[str, TorchLayout] | None

    def __post_init__(self) -> None:
        """Checks that each number is in its range."""
        _checks.pair("eps", self.eps)
        for i, value in enumerate(self.eps):
            _checks.non_negative(f"eps[{i}]", value)
        _checks.positive("clip_threshold", self.clip_threshold, allow_inf=True)
        _checks.finite("decay_rate", self.decay_rate)
        if _checks.is_concrete(self.decay_rate) and self.decay_rate > 0:
            raise ValueError(
                f"`decay_rate` must be at most 0, got {self.decay_rate!r}. It is the "
                "exponent of beta2 = 1 - t^decay_rate; optax has the other sign."
            )
        if self.beta1 is not None:
            _checks.fraction_below_one("beta1", self.beta1)

    def layouts_of(self, params: PyTree, grads: Sequence[Any]) -> list[TorchLayout]:
        """Returns the layout of each leaf; raises if leaves are shards."""
        _check_whole("params", jax.tree.leaves(params), params)
        _check_whole("grads", grads, params)
        return jax.tree.leaves(resolve_layouts(self.layouts, params))

    def init(self, p: jax.Array, layout: TorchLayout) -> Moments:
        """Returns row, col, nu and mu as zeros."""
        row = col = nu = mu = optax.MaskedNode()
        # Row and column are sums over `zeros`: sums inherit the parameter's sharding.
        zeros = jnp.zeros_like(p, wide_dtype(p.dtype))
        groups = layout.groups(p.ndim)
        if len(groups) >= 2:
            row_axes, col_axes = groups[-2:]  # a row runs along torch's last axis
            rows = jnp.sum(zeros, col_axes, keepdims=True)
            cols = jnp.sum(zeros, row_axes, keepdims=True)
            row = jnp.squeeze(layout.to_torch(rows), -1)
            col = jnp.squeeze(layout.to_torch(cols), -2)
        else:
            nu = layout.to_torch(zeros)
        if self.beta1 is not None:
            mu = jnp.zeros_like(p, zeros.dtype)
        return row, col, nu, mu

    def scalars(self, rate: Rate, count: jax.Array) -> _Scalars:
        """Returns the scalars of update `count`, from 1: beta2 = 1 - t^decay_rate."""
        new_share = _power(count, self.decay_rate, rate.value.dtype)
        return _Scalars(1.0 - new_share, new_share, rate.value)

    def update(self, leaf: Leaf, scalars: _Scalars, moments: Moments) -> Moments:
        """Returns the new parameter and the new row, col, nu and mu."""
        p, g, is_decayed, layout = leaf
        row, col, nu, mu = moments
        dtype, shape = p.dtype, p.shape
        rms = _rms_of(layout.param_axes(p.ndim), shape)
        rate = scalars.rate
        if self.scale_parameter:
            rate = rate * jnp.maximum(scalar(self.eps[1], dtype), rms(p * p))

        def averaged(old: jax.Array, new: jax.Array) -> jax.Array:
            return scalars.old_share * old + scalars.new_share * new

        groups = layout.groups(p.ndim)
        if len(groups) >= 2:
            row_axes, col_axes = groups[-2:]
            row_means = _row_means(g, col_axes, self.eps[0])
            col_means = _col_means(g, row_axes, self.eps[0])
            rows = reshard_like(layout.from_torch_reduced(row, -1, shape), row_means)
            cols = reshard_like(layout.from_torch_reduced(col, -2, shape), col_means)
            rows, cols = averaged(rows, row_means), averaged(cols, col_means)
            u, squares = _factored_update(g, rows, cols, row_axes, col_axes)
            row = reshard_like(jnp.squeeze(layout.to_torch(rows), -1), row)
            col = reshard_like(jnp.squeeze(layout.to_torch(cols), -2), col)
        else:
            full = reshard_like(layout.from_torch(nu, shape), g)
            full = averaged(full, g * g + scalar(self.eps[0], dtype))
            u = jax.lax.rsqrt(full) * g
            squares = u * u
            nu = reshard_like(layout.to_torch(full), nu)
        u = u / jnp.maximum(1.0, rms(squares) / scalar(self.clip_threshold, dtype))
        u = u * rate
        if self.beta1 is not None:
            # The mean includes the rate, so a change of the rate takes effect late.
            mu = scalar(self.beta1, dtype) * mu + one_minus(self.beta1, dtype) * u
            u = mu
        if is_decayed:
            p = p - scalar(self.weight_decay, dtype) * rate * p
        return p - u, row, col, nu, mu


def _relative_rate(warmup_init: bool, t: Step, dtype: Any) -> jax.Array:
    """Returns the relative step of update t = 1, 2, ...; (), `dtype`."""
    t = jnp.asarray(t).astype(dtype)
    limit = scalar(1e-6, dtype) * t if warmup_init else scalar(1e-2, dtype)
    return jnp.minimum(limit, 1.0 / jnp.sqrt(t))


def _power(t: jax.Array, exponent: Scalar, dtype: Any) -> jax.Array:
    """Returns t^exponent, 1 for t = 1; (), `dtype`."""
    t = t.astype(dtype)
    power = t ** scalar(exponent, dtype)
    if isinstance(exponent, jax.Array) or dtype == jnp.float64:
        return power
    # float32 rounds the exponent to a. The power is corrected for the rest b, which is
    # tiny: t^(a + b) = t^a * (1 + b log(t)).
    rest = exponent - float(np.float32(exponent))
    return power * (1.0 + scalar(rest, dtype) * jnp.log(t))


def _rms_of(axes: _Axes, shape: tuple[int, ...]) -> Callable[[jax.Array], jax.Array]:
    """Returns a function from squares to the root of their mean over `axes`."""
    num_elements = max(1, math.prod(shape[axis] for axis in axes))

    def rms(squares: jax.Array) -> jax.Array:
        norm = jnp.sqrt(jnp.sum(squares, axis=axes, keepdims=True))
        return norm / scalar(math.sqrt(num_elements), norm.dtype)

    return rms


def _row_means(g: jax.Array, col_axes: _Axes, eps: Scalar) -> jax.Array:
    """Returns the mean of g^2 + eps over the columns, of size 1 along their axes."""
    return _mean(g * g, col_axes) + scalar(eps, g.dtype)


def _col_means(g: jax.Array, row_axes: _Axes, eps: Scalar) -> jax.Array:
    """Returns the mean of g^2 + eps over the rows, of size 1 along their axes."""
    return scalar(eps, g.dtype) - _mean(g * -g, row_axes)  # signs: see the module


def _factored_update(
    g: jax.Array, row: jax.Array, col: jax.Array, row_axes: _Axes, col_axes: _Axes
) -> tuple[jax.Array, jax.Array]:
    """Returns u = g / sqrt(row / mean(row)) / sqrt(col), and the sum of u^2.

    `row` and `col` are running means of squared gradients, of size 1 along `col_axes`
    and `row_axes`; these axes number the columns and the rows.
    """
    by_row = jax.lax.rsqrt(row / _mean(row, row_axes))
    by_col = jax.lax.rsqrt(col)
    u = by_row * by_col * g
    axes: dict[str, Any] = {"row_axes": row_axes, "col_axes": col_axes}
    sum_sq = jax.lax.platform_dependent(
        g,
        by_row,
        by_col,
        cpu=functools.partial(sum_sq_fused, **axes),
        default=functools.partial(sum_sq_two_pass, **axes),
    )
    return u, sum_sq


def sum_sq_fused(
    g: jax.Array, by_row: jax.Array, by_col: jax.Array, row_axes: _Axes, col_axes: _Axes
) -> jax.Array:
    """Returns the sum of (by_row * g * by_col)^2 in one pass, fastest on a CPU."""
    u = -by_row * g * -by_col
    return jnp.sum(u * u, (*row_axes, *col_axes), keepdims=True)


def sum_sq_two_pass(
    g: jax.Array, by_row: jax.Array, by_col: jax.Array, row_axes: _Axes, col_axes: _Axes
) -> jax.Array:
    """Returns the sum of `sum_sq_fused`; GPUs fuse it with squares of `_row_means`."""
    u = by_col * g
    squares = jnp.sum(u * u, col_axes, keepdims=True)
    return jnp.sum(by_row * by_row * squares, row_axes, keepdims=True)


def _mean(x: jax.Array, axes: _Axes) -> jax.Array:
    # The mean of no elements is 0: NaN would spread from it to the step.
    num_elements = max(1, math.prod(x.shape[axis] for axis in axes))
    return jnp.sum(x, axes, keepdims=True) / scalar(num_elements, x.dtype)


def _check_rate(learning_rate: Any, relative_step: bool, warmup_init: bool) -> None:
    """Raises unless there is one source of the learning rate."""
    if relative_step and learning_rate is not None:
        raise ValueError(
            "`learning_rate` must be None with `relative_step=True`, got "
            f"{learning_rate!r}. Pass `relative_step=False` to set the rate yourself."
        )
    if not relative_step and learning_rate is None:
        raise ValueError(
            "`learning_rate` must be given with `relative_step=False`, got None. Pass "
            "a float, a 0-d array or a schedule."
        )
    if warmup_init and not relative_step:
        raise ValueError(
            "`warmup_init` requires `relative_step=True`, got `relative_step=False`. "
            "Put the warmup into the schedule that you pass as `learning_rate`."
        )


def _check_whole(argument: str, leaves: Sequence[Any], params: PyTree) -> None:
    """Raises if leaves are shards, whose means differ from those of whole arrays."""
    axes = [
        varying_axes(leaf) if leaf is not None and _pytrees.is_floating(leaf) else ()
        for leaf in leaves
    ]
    if shards := [i for i, varying in enumerate(axes) if varying]:
        name = _pytrees.leaf_names(params)[shards[0]]
        raise ValueError(
            f"`{argument}` must be whole arrays, because `adafactor_tf` averages over "
            f"them, but {len(shards)} leaves are shards inside of `jax.shard_map`, the "
            f"first being {name!r}, along {sorted(axes[shards[0]])}. Compute gradients "
            "inside, but call `init` and `update` outside, under `jax.jit`, which "
            "partitions the computation itself."
        )
