"""The frame of the optimizers that treat every element alike: torch's small ones."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .. import _checks, _pytrees
from .._numerics import difference, is_zero, scalar, wide_dtype
from .._pytrees import placed_as
from .._typing import PyTree, Scalar, ScalarOrSchedule
from . import _learning_rate
from ._exact import Arithmetic, Exact, arithmetic
from ._weight_decay import resolve_mask

# (arithmetic, exact rate, count from 1) -> the scalars that leaves share.
Clock = Callable[[Arithmetic, Any, jax.Array], Any]

# (p, g, is_decayed, now, *moments) -> (new p, *moments), all float32 or all float64.
Leaf = Callable[..., tuple]


def by_element(
    function: str,
    state_type: Callable[..., Any],
    learning_rate: ScalarOrSchedule,
    weight_decay: Scalar,
    decay_mask: PyTree | Callable[[PyTree], PyTree] | None,
    *,
    has_moments: tuple[bool, ...],
    clock: Clock,
    new_leaf: Leaf,
) -> optax.GradientTransformationExtraArgs:
    """Returns a transformation whose state is counts, the rate and wide moments.

    Args:
        function: the optimizer's name, for errors.
        state_type: takes `count`, the fields of the learning rate, and the moments.
        learning_rate: as for `adamw_tf`.
        weight_decay: only whether it is 0 is looked at here.
        decay_mask: as for `adamw_tf`.
        has_moments: for each moment of the state whether it is kept at all.
        clock: computes the scalars that leaves of one dtype share.
        new_leaf: the arithmetic of one leaf.
    """
    _learning_rate.check(learning_rate)
    _checks.non_negative("weight_decay", weight_decay)
    never_decays = is_zero(weight_decay)

    def init(params):
        _pytrees.check_params(params, function=function)
        resolve_mask(decay_mask, params, weight_decay)
        rate = _learning_rate.init(learning_rate, params)

        def moments(_, p):
            is_kept = [kept and _pytrees.is_floating(p) for kept in has_moments]
            return tuple(
                jnp.zeros_like(p, wide_dtype(p.dtype)) if kept else optax.MaskedNode()
                for kept in is_kept
            )

        trees = _pytrees.map_leaves(moments, params, num_results=len(has_moments))
        return state_type(jnp.zeros((), jnp.int32), *rate, *trees)

    def update(grads, state, params=None, **extra_args):
        del extra_args
        _pytrees.check_params(params, function=function)
        grads = _pytrees.check_grads(grads, params)
        mask = resolve_mask(decay_mask, params, weight_decay)
        rates = _learning_rate.current(learning_rate, state, params)
        exact_rates = _learning_rate.exact(learning_rate, rates)
        count = jax.tree.map(optax.safe_increment, state.count)

        def shared(count: jax.Array, dtype: Any) -> Any:
            return clock(arithmetic(dtype), exact_rates[dtype], count)

        clocks = _pytrees.per_leaf(shared, count, params)

        def leaf(_, p, g, is_decayed, now, *moments):
            if not _pytrees.is_floating(p):
                return jnp.zeros_like(p), *moments
            first = next(iter(jax.tree.leaves(moments)), p)
            there = placed_as(p, first)
            wide_p = there.astype(wide_dtype(p.dtype))
            wide_g = placed_as(g, first).astype(wide_p.dtype)
            is_decayed = is_decayed and not never_decays
            new, *rest = new_leaf(wide_p, wide_g, is_decayed, now, *moments)
            return placed_as(difference(new, there), p), *rest

        moments = state[-len(has_moments) :]
        updates, *trees = _pytrees.map_leaves(
            leaf, params, grads, mask, clocks, *moments, num_results=len(moments) + 1
        )
        new_rate = _learning_rate.advanced(learning_rate, state, rates)
        return updates, state_type(count, *new_rate, *trees)

    return optax.GradientTransformationExtraArgs(init, update)


def only_rate(of: Arithmetic, rate: Exact, count: jax.Array) -> jax.Array:
    """Returns the rate, for optimizers that count nothing; (), float32 or float64."""
    del count
    return of.leading(rate)


def with_l2(
    p: jax.Array, g: jax.Array, is_decayed: bool, weight_decay: Scalar
) -> jax.Array:
    """Returns the gradient plus that of `weight_decay / 2 * |p|^2`, as in torch."""
    return g + scalar(weight_decay, p.dtype) * p if is_decayed else g
