"""Adafactor with Transformers' numbers."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .. import _pytrees
from .._argument_names import checked_names
from .._numerics import difference, is_zero, one_minus, scalar, wide_dtype
from .._pytrees import TorchLayout, placed_as, resolve_layouts
from .._typing import PyTree, Scalar, ScalarOrSchedule, Step
from . import _learning_rate
from ._adafactor_arguments import check_others, check_rate, check_whole
from ._adafactor_clock import Clock, relative_rate, tick
from ._factored import column_means, row_means, step_and_size
from ._weight_decay import resolve_mask


class AdafactorState(NamedTuple):
    """State of `adafactor_tf`.

    A leaf has `nu_row` and `nu_col` where torch sees two axes or more, else `nu`.
    Stacked axes stand in front of each of them, and count as no axis of the parameter.
    For float64 leaves float32 stands for float64; the rate is float64 if a leaf is.
    """

    count: PyTree  # (), int32: updates that the moments have seen; or one per leaf
    step: jax.Array  # (), int32: number of updates, the argument of a schedule
    learning_rate: jax.Array  # (), float32: of the last update, without parameter scale
    rate_source: jax.Array  # (), int32: origin of that rate, see `_learning_rate`
    nu_row: PyTree  # torch's shape without its last axis, float32: means of g^2
    nu_col: PyTree  # torch's shape without its last axis but one, float32: as nu_row
    nu: PyTree  # torch's shape, float32: mean of g^2 per element
    mu: PyTree  # the leaf's shape, float32: mean of the updates; nothing without beta1


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
    """Adam's step from the row and column means of the squared gradients.

        rate  = learning_rate, or min(1e-2 or 1e-6 t, 1 / sqrt(t)), with t = 1, 2, ...
        rate  = rate * max(eps[1], RMS(p))              where scale_parameter
        beta2 = 1 - t^decay_rate
        row   = beta2 row + (1 - beta2) mean(g^2 + eps[0])     along the last axis
        col   = beta2 col + (1 - beta2) mean(g^2 + eps[0])     along the last but one
        u     = g / sqrt(row / mean(row)) / sqrt(col)
        u     = rate * u / max(1, RMS(u) / clip_threshold)
        u     = mu = beta1 mu + (1 - beta1) u           where beta1 is given
        p     = p - weight_decay rate p - u

    A vector or a scalar keeps the whole mean of g^2 + eps[0] instead of row and col.
    Axes are those that torch would see, see `layouts`. Arithmetic is in float32
    (float64 for float64 leaves), and updates are differences of parameters, as in
    `adamw_tf`.

    Means are of whole arrays: shards inside of `jax.shard_map` are refused. Under
    `check_vma=False` and in `jax.pmap` they cannot be told apart from whole leaves.

    Args:
        learning_rate: a float, a 0-d array or a schedule; None with `relative_step`.
        eps: added to g^2, and the least scale of a parameter; each at least 0.
        clip_threshold: the largest RMS of a leaf's update before the rate; greater
            than 0. `math.inf` clips nothing.
        decay_rate: exponent of the second moments' decay; at most 0.
        beta1: share of the old first moment, from 0 to below 1; None: no moment.
        weight_decay: per unit of the rate, the parameter scale included; at least 0.
        scale_parameter: whether the rate is relative to the parameter's RMS.
        relative_step: whether the rate is a function of t alone.
        warmup_init: whether that function begins with 1e-6 t; needs `relative_step`.
        decay_mask: which leaves are decayed, as for `adamw_tf`; None: nothing named
            bias and no normalisation layer.
        layouts: for patterns that match whole leaf names, how torch would see the leaf.
            Undeclared, a rank-4 leaf named `kernel` is a convolution's HWIO and every
            other leaf is as it stands.

    Returns:
        A transformation with state `AdafactorState`; its update needs `params`.

    Raises:
        ValueError, TypeError: if an option is out of range, a rate comes with
            `relative_step` or none without, `warmup_init` without it, or a layout, a
            mask or gradients do not fit the parameters, or leaves are shards.

    Source: Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear
        Memory Cost", 2018, arXiv 1804.04235; transformers 5.23.0 `optimization.py`,
        `Adafactor`.
    Differs: `optax.adafactor` factors the two largest axes and only those of 128 or
        more, wants the decay rate's sign turned, and decays by `weight_decay` alone
        where this multiplies it by the rate. Where torch has no gradient it leaves the
        parameter alone; JAX has a gradient of zeros, with which it is decayed.
    """
    check_rate(learning_rate, relative_step, warmup_init)
    check_others(eps, clip_threshold, decay_rate, beta1, weight_decay)
    never_decays = is_zero(weight_decay)

    def relative(step: Step) -> jax.Array:
        is_wide = isinstance(step, jax.Array) and step.dtype == jnp.int64
        dtype = jnp.float64 if is_wide else jnp.float32
        return relative_rate(step + 1, warmup_init, dtype)

    schedule: ScalarOrSchedule = relative if learning_rate is None else learning_rate

    def init(params: PyTree) -> AdafactorState:
        _pytrees.check_params(params, function="adafactor_tf")
        check_whole("params", params)

        def moments(name: str, p: Any, layout: TorchLayout) -> tuple:
            row = col = whole = mu = optax.MaskedNode()
            if _pytrees.is_floating(p):
                # Sums of zeros, so that they lie on devices as the parameter does.
                zeros = jnp.zeros_like(p, wide_dtype(p.dtype))
                if _is_factored(layout, p.ndim):
                    *_, down, across = layout.groups(p.ndim)
                    rows = jnp.sum(zeros, across, keepdims=True)
                    cols = jnp.sum(zeros, down, keepdims=True)
                    row = jnp.squeeze(layout.to_torch(rows), -1)
                    col = jnp.squeeze(layout.to_torch(cols), -2)
                else:
                    whole = layout.to_torch(zeros)
                if beta1 is not None:
                    mu = jnp.zeros_like(p, zeros.dtype)
            return row, col, whole, mu

        resolve_mask(decay_mask, params, weight_decay)
        layout_tree = resolve_layouts(layouts, params)
        trees = _pytrees.map_leaves(moments, params, layout_tree, num_results=4)
        rate = _learning_rate.init(schedule, params)
        return AdafactorState(jnp.zeros((), jnp.int32), *rate, *trees)

    def update(
        grads: PyTree,
        state: AdafactorState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, AdafactorState]:
        del extra_args
        _pytrees.check_params(params, function="adafactor_tf")
        grads = _pytrees.check_grads(grads, params)
        check_whole("params", params)
        check_whole("grads", grads)
        count = jax.tree.map(optax.safe_increment, state.count)
        if learning_rate is None:
            # Where the counts of leaves differ, the state holds the rate of the first.
            first = next(iter(jax.tree.leaves(count)), jnp.ones((), jnp.int32))
            dtype = state.learning_rate.dtype
            rates: _learning_rate.Rates = {
                dtype: relative_rate(first, warmup_init, dtype)
            }
        else:
            rates = _learning_rate.current(learning_rate, state, params)

        def clock(count: jax.Array, dtype: Any) -> Clock:
            is_own = learning_rate is None
            rate = relative_rate(count, warmup_init, dtype) if is_own else rates[dtype]
            return tick(count, decay_rate, rate)

        clocks = _pytrees.per_leaf(clock, count, params)

        def leaf(name, p, g, layout, is_decayed, now, row, col, whole, mu) -> tuple:
            if not _pytrees.is_floating(p):
                return jnp.zeros_like(p), row, col, whole, mu
            home = p if beta1 is None else mu
            there = placed_as(p, home)
            dtype = wide_dtype(p.dtype)
            wide_p = there.astype(dtype)
            wide_g = placed_as(g, home).astype(dtype)
            rms = _rms_of(layout.param_axes(p.ndim), p.shape)
            lr = now.rate
            if scale_parameter:
                lr = lr * jnp.maximum(scalar(eps[1], dtype), rms(wide_p * wide_p))

            if _is_factored(layout, p.ndim):
                *_, down, across = layout.groups(p.ndim)
                by_row = row_means(wide_g, across, eps[0])
                by_col = column_means(wide_g, down, eps[0])
                rows = placed_as(layout.without(row, -1, p.shape), by_row)
                cols = placed_as(layout.without(col, -2, p.shape), by_col)
                rows = now.kept * rows + now.new * by_row
                cols = now.kept * cols + now.new * by_col
                u, size = step_and_size(wide_g, rows, cols, across, down)
                row = placed_as(jnp.squeeze(layout.to_torch(rows), -1), row)
                col = placed_as(jnp.squeeze(layout.to_torch(cols), -2), col)
            else:
                nu = placed_as(layout.from_torch(whole, p.shape), wide_g)
                eps0 = scalar(eps[0], dtype)
                nu = now.kept * nu + now.new * (wide_g * wide_g + eps0)
                u = jax.lax.rsqrt(nu) * wide_g
                size = u * u
                whole = placed_as(layout.to_torch(nu), whole)
            u = u / jnp.maximum(1.0, rms(size) / scalar(clip_threshold, dtype))
            u = u * lr
            if beta1 is not None:
                # It holds updates, the rate included: a new rate arrives late.
                u = mu = scalar(beta1, dtype) * mu + one_minus(beta1, dtype) * u
            if is_decayed and not never_decays:
                wide_p = wide_p - scalar(weight_decay, dtype) * lr * wide_p
            change = placed_as(difference(wide_p - u, there), p)
            return change, row, col, whole, mu

        layout_tree = resolve_layouts(layouts, params)
        mask = resolve_mask(decay_mask, params, weight_decay)
        old = state.nu_row, state.nu_col, state.nu, state.mu
        updates, *moments = _pytrees.map_leaves(
            leaf, params, grads, layout_tree, mask, clocks, *old, num_results=5
        )
        new_rate = _learning_rate.advanced(schedule, state, rates)
        return updates, AdafactorState(count, *new_rate, *moments)

    return optax.GradientTransformationExtraArgs(init, update)


def _is_factored(layout: TorchLayout, num_axes: int) -> bool:
    return len(layout.groups(num_axes)) >= 2


def _rms_of(own: tuple[int, ...], shape: tuple[int, ...]) -> Callable:
    """From squares the root of their mean, of each parameter of a stack."""
    num_elements = max(1, math.prod(shape[axis] for axis in own))

    def rms(squares: jax.Array) -> jax.Array:
        norm = jnp.sqrt(jnp.sum(squares, axis=own, keepdims=True))
        return norm / scalar(math.sqrt(num_elements), norm.dtype)

    return rms
