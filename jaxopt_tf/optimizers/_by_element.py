"""The frame of the optimizers that treat every element alike: torch's small ones."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .. import _check, _tree
from .._placement import placed_as
from .._rounding import difference
from .._scalars import f32, is_zero
from .._two_floats import TwoFloats
from .._typing import PyTree, Scalar, ScalarOrSchedule
from . import _learning_rate
from ._weight_decay import resolve_mask

# (exact rate, count from 1) -> what all leaves share.
Clock = Callable[[TwoFloats, jax.Array], Any]

# (p32, g32, is_decayed, now, *moments) -> (new p32, *moments), all float32.
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
) -> optax.GradientTransformation:
    """A transformation whose state is counts, the rate, and float32 moments.

    Args:
        function: the optimizer's name, for errors.
        state_type: takes `count`, `step`, `learning_rate` and the moments.
        learning_rate: as for `adamw_tf`.
        weight_decay: only whether it is 0 is looked at here.
        decay_mask: as for `adamw_tf`.
        has_moments: for each moment of the state whether it is kept at all.
        clock: what the leaves share.
        new_leaf: the arithmetic of one leaf.
    """
    _learning_rate.check(learning_rate)
    _check.non_negative("weight_decay", weight_decay)
    never_decays = is_zero(weight_decay)

    def init(params):
        _tree.check_params(params, function=function)
        resolve_mask(decay_mask, params, weight_decay)
        step, rate = _learning_rate.init(learning_rate)

        def moments(_, p):
            is_kept = [kept and _tree.is_floating(p) for kept in has_moments]
            return tuple(
                jnp.zeros_like(p, jnp.float32) if kept else optax.MaskedNode()
                for kept in is_kept
            )

        trees = _tree.map_leaves(moments, params, num_results=len(has_moments))
        return state_type(jnp.zeros((), jnp.int32), step, rate, *trees)

    def update(grads, state, params=None):
        _tree.check_params(params, function=function)
        grads = _tree.check_grads(grads, params)
        mask = resolve_mask(decay_mask, params, weight_decay)
        rate = _learning_rate.current(learning_rate, state.step, state.learning_rate)
        exact_rate = _learning_rate.exact(learning_rate, rate)
        count = jax.tree.map(optax.safe_increment, state.count)
        clocks = _tree.per_leaf(functools.partial(clock, exact_rate), count, params)

        def leaf(_, p, g, is_decayed, now, *moments):
            if not _tree.is_floating(p):
                return jnp.zeros_like(p), *moments
            first = next(iter(jax.tree.leaves(moments)), p)
            there = placed_as(p, first)
            p32 = there.astype(jnp.float32)
            g32 = placed_as(g, first).astype(jnp.float32)
            is_decayed = is_decayed and not never_decays
            new32, *rest = new_leaf(p32, g32, is_decayed, now, *moments)
            return placed_as(difference(new32, there), p), *rest

        updates, *trees = _tree.map_leaves(
            leaf, params, grads, mask, clocks, *state[3:], num_results=len(state) - 2
        )
        step = _learning_rate.advance(state.step)
        return updates, state_type(count, step, rate, *trees)

    return optax.GradientTransformation(init, update)


def only_rate(rate: TwoFloats, count: jax.Array) -> jax.Array:
    """The clock of those that count nothing; (), float32."""
    del count
    return rate.high


def with_l2(
    p32: jax.Array, g32: jax.Array, is_decayed: bool, weight_decay: Scalar
) -> jax.Array:
    """The gradient with that of `weight_decay / 2 * |p|^2`, as torch adds it."""
    return g32 + f32(weight_decay) * p32 if is_decayed else g32
