"""Transformation around the arithmetic of one leaf, shared by all optimizers.

The transformation checks trees, maintains the counters and the learning rate, resolves
the decay mask, converts each leaf to the dtype of its arithmetic and back, and returns
updates as differences of rounded parameters. Each optimizer provides a `LeafRule`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import _checks, _pytrees
from .._numerics import (
    is_zero,
    join_loops,
    scalar,
    update_from_new_param,
    wide_dtype,
)
from .._pytrees import TorchLayout, reshard_like, varying_axes
from .._typing import PyTree, Scalar, ScalarOrSchedule, Schedule, Step
from . import _learning_rate
from ._decay_mask import resolve_mask
from ._learning_rate import Rate

# Number of elements up to which the update of a leaf may share a kernel with those of
# other leaves on a GPU. The launch of a kernel takes a few microseconds, in which an
# H100 updates about 500,000 elements.
_MAX_JOINED_SIZE = 65_536


class Leaf(NamedTuple):
    """Inputs of the update of one leaf.

    A `LeafRule` receives `param` and `grad` in the dtype of the arithmetic, which is
    float32 or float64.
    """

    param: jax.Array  # parameter before the update
    grad: jax.Array  # gradient, shape of `param`
    is_decayed: bool  # whether weight decay applies to the leaf
    layout: Any  # value of `LeafRule.layouts` for the leaf, else None


# One moment for each tree of the state: an array, or a masked node.
Moments = tuple[Any, ...]


class Carried(NamedTuple):
    """Scalars of a state, besides counters and rate, that every update replaces.

    Attributes:
        fields: names of their fields, which follow `rate_source`.
        init: callable from the dtype of the state's rate to their first values.
        update: callable (state, rate, count) -> (new values, shared), where `shared` is
            the last argument of `LeafRule.scalars`.
    """

    fields: tuple[str, ...]
    init: Callable[[Any], tuple[Any, ...]]
    update: Callable[[Any, Rate, jax.Array], tuple[tuple[Any, ...], Any]]


@dataclasses.dataclass(frozen=True)
class LeafRule:
    """Arithmetic of one optimizer.

    Attributes:
        name: the optimizer's name, for errors.
        state_type: a NamedTuple of `count`, `step`, `learning_rate`, `rate_source`, the
            fields of `carried` and a tree for each moment.
        scalars: callable that returns the scalars shared by all leaves with equal dtype
            and number of updates, from the rate, that number and, with `carried`, its
            `shared`.
        update: callable that returns the new parameter and the new moments. It receives
            the leaf, the scalars and the moments in the dtype of the arithmetic.
        has_moment: for each moment, False if the state holds masked nodes instead.
        init: callable that returns the moments of a floating-point parameter with the
            given layout; None for zeros in the dtype of the arithmetic.
        layouts: callable that returns a layout for each leaf of `params`. It checks
            `params` and, in an update, the gradients. None for optimizers without
            layouts.
        rate_of_count: default learning rate, used for Adafactor's relative step: a
            function of the number of moment updates and a dtype.
        carried: further scalars of the state; None without any.
        decays_gradient: whether weight decay is added to the gradient (`with_l2`), so
            that new moments of decayed leaves depend on the parameter.
    """

    name: str
    state_type: Any
    scalars: Callable[..., Any]
    update: Callable[[Leaf, Any, Moments], Moments]
    _: dataclasses.KW_ONLY
    has_moment: tuple[bool, ...] = (True,)
    init: Callable[[jax.Array, Any], Moments] | None = None
    layouts: Callable[[PyTree, Sequence[Any]], Sequence[TorchLayout]] | None = None
    rate_of_count: Callable[[Step, Any], jax.Array] | None = None
    carried: Carried | None = None
    decays_gradient: bool = False

    @property
    def moments(self) -> tuple[str, ...]:
        """Names of the state's fields that have the structure of the parameters."""
        fields: tuple[str, ...] = self.state_type._fields
        num_carried = 0 if self.carried is None else len(self.carried.fields)
        # After count, step, learning_rate, rate_source and the carried scalars.
        return fields[4 + num_carried :]

    def layouts_of(self, params: PyTree, grads: Sequence[Any] = ()) -> Sequence[Any]:
        """Returns the layout of each leaf, or None for each without layouts."""
        if self.layouts is not None:
            return self.layouts(params, grads)
        return [None] * len(jax.tree.leaves(params))

    def init_leaf(self, p: jax.Array, layout: Any) -> Moments:
        """Returns the moments of one leaf: masked nodes for an integer leaf."""
        if not _pytrees.is_floating(p):
            return (optax.MaskedNode(),) * len(self.moments)
        if self.init is not None:
            return self.init(p, layout)
        # Each moment is a separate buffer. XLA refuses to donate a state in which two
        # leaves share one buffer.
        return tuple(
            jnp.zeros_like(p, wide_dtype(p.dtype)) if exists else optax.MaskedNode()
            for exists in self.has_moment
        )


def per_leaf_optimizer(
    rule: LeafRule,
    learning_rate: ScalarOrSchedule | None,
    weight_decay: Scalar,
    decay_mask: PyTree | Callable[[PyTree], PyTree] | None,
) -> optax.GradientTransformationExtraArgs:
    """Returns the transformation of `rule`; other arguments are those of `adamw_tf`."""
    rate_of_count = rule.rate_of_count if learning_rate is None else None
    if learning_rate is None:
        learning_rate = _schedule_of_counts(rate_of_count)
    _learning_rate.check(learning_rate)
    _checks.non_negative("weight_decay", weight_decay)
    never_decays = is_zero(weight_decay)

    def init(params: PyTree) -> Any:
        _pytrees.check_params(params, function=rule.name)
        layouts = rule.layouts_of(params)
        resolve_mask(decay_mask, params, weight_decay)
        leaves, treedef = jax.tree.flatten(params)
        rows = [rule.init_leaf(*pair) for pair in zip(leaves, layouts, strict=True)]
        trees = _trees(treedef, rows, len(rule.moments))
        rate = _learning_rate.init(learning_rate, params)
        carried = () if rule.carried is None else rule.carried.init(rate[1].dtype)
        return rule.state_type(jnp.zeros((), jnp.int32), *rate, *carried, *trees)

    def update(
        grads: PyTree, state: Any, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, Any]:
        del extra_args
        _pytrees.check_params(params, function=rule.name)
        grads = _pytrees.check_grads(grads, params)
        layouts = rule.layouts_of(params, grads)
        mask = resolve_mask(decay_mask, params, weight_decay)
        count = jax.tree.map(optax.safe_increment, state.count)
        counts = jax.tree.leaves(count)  # one, or one per leaf as `step` of torch

        @functools.cache  # leaves of one dtype share the traced scalars
        def rate(dtype: Any) -> Rate:
            if rate_of_count is None:
                return _learning_rate.current(learning_rate, state, dtype)
            # If the counts differ, the state contains the rate of the first leaf.
            first = counts[0] if counts else jnp.ones((), jnp.int32)
            return Rate(rate_of_count(first, dtype))

        used = rate(state.learning_rate.dtype)
        carried: tuple[Any, ...] = ()
        shared_by_all: tuple[Any, ...] = ()
        if rule.carried is not None:
            carried, *rest = rule.carried.update(state, used, counts[0])
            shared_by_all = tuple(rest)

        @functools.cache
        def scalars(i: int, dtype: Any) -> Any:
            leaf_rate = rate(dtype)
            if rate_of_count is not None:
                leaf_rate = Rate(rate_of_count(counts[i], dtype))
            return rule.scalars(leaf_rate, counts[i], *shared_by_all)

        @functools.cache
        def scalars_of_small(dtype: Any) -> Any:
            return join_loops(scalars(0, dtype), dtype)

        treedef: Any = jax.tree.structure(params)
        moments = [treedef.flatten_up_to(getattr(state, n)) for n in rule.moments]
        leaves = jax.tree.leaves(params)
        rows = []
        for i, (p, *old) in enumerate(zip(leaves, *moments, strict=True)):
            if _pytrees.is_floating(p):
                leaf = Leaf(p, grads[i], mask[i] and not never_decays, layouts[i])
                wide = wide_dtype(p.dtype)
                if len(counts) > 1:
                    shared = scalars(i, wide)
                elif p.size <= _MAX_JOINED_SIZE:
                    shared = scalars_of_small(wide)
                else:
                    shared = scalars(0, wide)
                rows.append(_update_leaf(rule, leaf, shared, tuple(old)))
            else:  # integer leaves are left unchanged
                rows.append((jnp.zeros_like(p), *old))
        updates, *trees = _trees(treedef, rows, 1 + len(rule.moments))
        new_rate = _learning_rate.advanced(learning_rate, state, used)
        return updates, rule.state_type(count, *new_rate, *carried, *trees)

    return optax.GradientTransformationExtraArgs(init, update)


def _update_leaf(rule: LeafRule, leaf: Leaf, scalars: Any, moments: Moments) -> Moments:
    """Returns the update and the new moments of one leaf, in the dtypes of the old."""
    p, wide = leaf.param, wide_dtype(leaf.param.dtype)
    # On explicit mesh axes the arithmetic has the sharding of the moments. With ZeRO-1,
    # moments are sharded and parameters replicated, and each device updates its shard.
    same_shape = [m for m in jax.tree.leaves(moments) if m.shape == p.shape]
    like = same_shape[-1] if same_shape else p
    p_resharded = reshard_like(p, like)
    wide_leaf = leaf._replace(
        param=p_resharded.astype(wide), grad=reshard_like(leaf.grad, like).astype(wide)
    )
    # The codes of a quantized moment are integers, which `quantized` decodes.
    wide_moments = jax.tree.map(
        lambda m: m.astype(wide) if _pytrees.is_floating(m) else m, moments
    )
    new_param, *new = rule.update(wide_leaf, scalars, wide_moments)
    update = reshard_like(update_from_new_param(new_param, p_resharded), p)
    return update, *jax.tree.map(
        lambda m, old: m.astype(old.dtype), tuple(new), moments
    )


def _schedule_of_counts(rate_of_count: Any) -> Schedule:
    """Returns the relative step as a schedule, if every update updates the moments."""

    def schedule(step: Step) -> jax.Array:
        # `step` is counted from 0, and moment updates from 1.
        is_wide = isinstance(step, jax.Array) and step.dtype == jnp.int64
        rate: jax.Array = rate_of_count(step + 1, np.float64 if is_wide else np.float32)
        return rate

    return schedule


def check_whole(name: str, params: PyTree, grads: Sequence[Any], reason: str) -> None:
    """Raises if leaves are shards inside of `jax.shard_map`.

    Args:
        name: the optimizer's name.
        params: parameters.
        grads: gradients of its leaves; empty in `init`.
        reason: clause that says why the optimizer needs whole arrays.
    """
    leaves = [*jax.tree.leaves(params), *grads]
    axes = [varying_axes(leaf) for leaf in leaves if isinstance(leaf, jax.Array)]
    if any(axes):
        raise ValueError(
            f"`params` and `grads` of `{name}` must be whole arrays, because {reason}, "
            f"but they are shards along {sorted(frozenset().union(*axes))} inside of "
            "`jax.shard_map`. Call `init` and `update` outside, under `jax.jit`, which "
            "partitions the computation itself."
        )


def own_copy(p: jax.Array, dtype: Any) -> jax.Array:
    """Returns a parameter in another buffer; zeros for a shape without elements.

    A step that donates parameters and state cannot donate one buffer twice.
    """
    if isinstance(p, jax.ShapeDtypeStruct):
        return jnp.zeros_like(p, dtype)
    return jnp.array(p, dtype, copy=True)


def with_l2(leaf: Leaf, weight_decay: Scalar) -> jax.Array:
    """Returns the gradient plus that of `weight_decay / 2 * |p|^2`, as in torch."""
    p, g = leaf.param, leaf.grad
    return g + scalar(weight_decay, p.dtype) * p if leaf.is_decayed else g


def _trees(treedef: Any, rows: list[tuple[Any, ...]], num: int) -> list[PyTree]:
    """Returns one tree for each of the `num` results of the leaves."""
    return [treedef.unflatten([row[i] for row in rows]) for i in range(num)]
