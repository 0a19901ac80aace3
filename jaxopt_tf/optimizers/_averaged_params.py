"""Parameters with which to evaluate, save and export, if an optimizer averages them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .. import _checks, _pytrees
from .._argument_names import checked_names
from .._numerics import one_minus, wide_dtype
from .._typing import PyTree, Scalar
from ._adamw import lerp
from ._per_leaf import own_copy
from ._schedule_free import ScheduleFreeState


class EmaParamsState(NamedTuple):
    """State of `ema_params`; `ema` holds `MaskedNode` at integer leaves."""

    count: PyTree  # (), int32: number of updates
    ema: PyTree  # as params, float32 (float64 for float64 leaves): mean of parameters


@checked_names
def ema_params(decay: Scalar) -> optax.GradientTransformationExtraArgs:
    """Link of a chain that averages the parameters exponentially.

        ema = parameters after the first update, then
        ema = ema + (1 - decay) * (parameters after the update - ema)

    Updates are returned unchanged. The parameters after an update are
    `params + updates`, so that the link is the last one of a chain. The mean is
    computed in float32 for parameters of lower precision.

        optimizer = optax.chain(clip(1.0), adamw_tf(1e-3), ema_params(0.999))

    Args:
        decay: weight of the old mean; from 0 to below 1. The mean covers about
            1 / (1 - decay) updates.

    Returns:
        A transformation with state `EmaParamsState`; its update needs `params`.
        `eval_params` returns the mean.

    Raises:
        ValueError, TypeError: if `decay` is out of range; in an update, if `params` is
            missing or updates do not match it.

    Examples:
        >>> params = {"kernel": jnp.zeros(2)}
        >>> optimizer = optax.chain(optax.sgd(1.0), ema_params(0.5))
        >>> state = optimizer.init(params)
        >>> for _ in range(2):
        ...     grads = {"kernel": -jnp.ones(2)}
        ...     updates, state = optimizer.update(grads, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> print(params["kernel"], eval_params(params, state)["kernel"])
        [2. 2.] [1.5 1.5]

    Source: torch 2.13 `optim/swa_utils.py`, `AveragedModel` with
        `get_ema_multi_avg_fn`.
    Differs: torch accepts a decay of 1, with which the mean never changes.
    """
    _checks.fraction_below_one("decay", decay)

    def init(params: PyTree) -> EmaParamsState:
        _pytrees.check_params(params, function="ema_params")

        def first(p: Any) -> Any:
            if not _pytrees.is_floating(p):
                return optax.MaskedNode()
            return own_copy(p, wide_dtype(p.dtype))

        return EmaParamsState(jnp.zeros((), jnp.int32), jax.tree.map(first, params))

    def update(
        updates: PyTree,
        state: EmaParamsState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, EmaParamsState]:
        del extra_args
        _pytrees.check_params(params, function="ema_params")
        checked = _pytrees.check_grads(updates, params)
        treedef: Any = jax.tree.structure(params)
        leaves = jax.tree.leaves(params)

        def mean(p: jax.Array, change: jax.Array, old: Any) -> Any:
            if _pytrees.is_masked(old):
                return old
            new = _pytrees.reshard_like(_new_param(p, change, old.dtype), old)
            next_mean = lerp(old, new, one_minus(decay, old.dtype))
            return jnp.where(state.count == 0, new, next_mean)

        olds = treedef.flatten_up_to(state.ema)
        means = list(map(mean, leaves, checked, olds))
        count = optax.safe_increment(state.count)
        return updates, EmaParamsState(count, treedef.unflatten(means))

    return optax.GradientTransformationExtraArgs(init, update)


def eval_params(params: PyTree, opt_state: PyTree) -> PyTree:
    """Returns the parameters with which to evaluate, save and export.

    For the schedule-free optimizers these are x, and with `ema_params` the mean of the
    parameters. Other parameters are returned unchanged, also those that a mask leaves
    out. Training continues from `params`, never from the result.

    Args:
        params: parameters of training.
        opt_state: state of their optimizer: of `optax.chain`, `masked`,
            `multi_transform`, `inject_hyperparams` or another wrapper of optax. Under
            `jax.vmap` over runs, the state of one run.

    Returns:
        Parameters of the structure, shapes and dtypes of `params`. Without an average,
        `params` itself.

    Raises:
        ValueError: if two averages of one parameter are found.

    Examples:
        >>> params = grads = {"kernel": jnp.ones(2)}
        >>> optimizer = optax.chain(schedule_free_sgd_tf(1.0), optax.identity())
        >>> state = optimizer.init(params)
        >>> for _ in range(2):
        ...     updates, state = optimizer.update(grads, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> print(params["kernel"], eval_params(params, state)["kernel"])
        [-0.55 -0.55] [-0.5 -0.5]

    Source: schedulefree 1.4.1, `AdamWScheduleFree.eval`.
    """
    states = averaging_states(opt_state)
    if not states:
        return params
    treedef: Any = jax.tree.structure(params)
    leaves = jax.tree.leaves(params)
    averages: list[Any] = [None] * len(leaves)
    for state in states:
        field = state.ema if isinstance(state, EmaParamsState) else state.z
        for i, average in enumerate(treedef.flatten_up_to(field)):
            if _pytrees.is_masked(average):
                continue
            if averages[i] is not None:
                raise ValueError(
                    "`opt_state` must contain one average of each parameter, got two "
                    f"of {_pytrees.leaf_names(params)[i]!r}. Use `ema_params` without "
                    "a schedule-free optimizer, and once."
                )
            averages[i] = _average(leaves[i], state, average)
    pairs = zip(leaves, averages, strict=True)
    return treedef.unflatten([p if mean is None else mean for p, mean in pairs])


def averaging_states(opt_state: PyTree) -> list[EmaParamsState | ScheduleFreeState]:
    """Returns the states in `opt_state` from which `eval_params` computes averages."""
    nodes = jax.tree.leaves(opt_state, is_leaf=is_averaging_state)
    return [node for node in nodes if is_averaging_state(node)]


def is_averaging_state(node: Any) -> bool:
    """Returns whether `node` is a state that contains averages of parameters."""
    return isinstance(node, EmaParamsState | ScheduleFreeState)


def without_moments(opt_state: PyTree) -> PyTree:
    """Returns `opt_state` with None for leaves that `eval_params` does not read."""

    def pruned(node: Any) -> Any:
        if isinstance(node, ScheduleFreeState):
            return node._replace(nu=None)
        return node if is_averaging_state(node) else None

    return jax.tree.map(pruned, opt_state, is_leaf=is_averaging_state)


def _new_param(p: jax.Array, change: jax.Array, wide: Any) -> jax.Array:
    """Returns the parameter after an update, rounded to its dtype, in dtype `wide`."""
    new = p + change.astype(p.dtype)
    if p.dtype == jnp.bfloat16:
        # XLA may remove a rounding to bfloat16 that is followed by a cast to float32.
        info = jnp.finfo(p.dtype)
        total = p.astype(wide) + change.astype(wide)
        new = jax.lax.reduce_precision(total, info.nexp, info.nmant)
    return new.astype(wide)


def _average(
    p: jax.Array, state: EmaParamsState | ScheduleFreeState, stored: jax.Array
) -> jax.Array:
    """Returns the average of one leaf in its dtype."""
    wide = stored.dtype
    y = _pytrees.reshard_like(p, stored).astype(wide)
    if isinstance(state, EmaParamsState):
        # Before the first update the mean may belong to other initial parameters.
        mean = jnp.where(state.count == 0, y, stored)
    else:
        mean = lerp(y, stored, state.z_weight.astype(wide))
    return _pytrees.reshard_like(mean.astype(p.dtype), p)
