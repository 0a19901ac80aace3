"""State and metrics of a training step."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from .. import _checks
from .._typing import PyTree
from ..optimizers import averaging_states, eval_params, set_learning_rate


@flax.struct.dataclass
class TrainState:
    """State of training between two steps."""

    step: jax.Array  # (), int32: number of steps so far, including skipped updates
    params: PyTree  # parameters
    opt_state: PyTree  # state of the optimizer
    num_bad_in_a_row: jax.Array  # (), int32: consecutive steps that were not finite
    rng: jax.Array | None  # (), key: for dropout; None if the loss takes no key


@flax.struct.dataclass
class Norms:
    """Euclidean norms of a tree or a subtree.

    (), float32; float64 if a leaf is float64.
    """

    grads: jax.Array  # gradient, before clipping
    updates: jax.Array  # update, which is added to the parameters
    params: jax.Array  # parameters, before the update

    @property
    def update_ratio(self) -> Any:
        """Update norm over parameter norm; about 1e-3 in a healthy run."""
        return self.updates / self.params


@flax.struct.dataclass
class Metrics:
    """Metrics of one step; float64 instead of float32 if a parameter is float64."""

    loss: jax.Array  # (), float32: mean over the batch's items, before the update
    # (), float32: rate of this update, the largest of several; NaN if there is none
    learning_rate: jax.Array
    norms: Norms  # norms of the whole tree
    num_items: jax.Array  # (), float32: number of items of the loss, such as tokens
    is_clipped: jax.Array  # (), bool: whether `clip` scaled the gradients down
    is_skipped: jax.Array  # (), bool: whether the update was not applied
    is_stopped: jax.Array  # (), bool: whether the run is stopped, see `on_non_finite`
    layers: dict[str, Norms]  # by the path of the layer; empty without `per_layer`


def init_train_state(
    params: PyTree,
    optimizer: optax.GradientTransformation,
    *,
    rng: jax.Array | int | None = None,
) -> TrainState:
    """Returns the initial state of training.

    Args:
        params: the parameters. Their buffers are donated to the first step, after which
            the arrays must not be used.
        optimizer: any optax transformation.
        rng: a key or a seed, for a loss function with a key as third argument; None for
            a loss function with two arguments.

    Examples:
        >>> state = init_train_state({"kernel": jnp.ones(2)}, adamw_tf(1e-3))
        >>> print(state.step)
        0
    """
    if rng is not None and not isinstance(rng, jax.Array):
        rng = jax.random.key(_checks.seed("rng", rng))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=_with_own_buffers(optimizer.init(params), params),
        num_bad_in_a_row=jnp.zeros((), jnp.int32),
        rng=rng,
    )


def with_learning_rate(
    state: TrainState, learning_rate: float | jax.Array
) -> TrainState:
    """Returns the state with another learning rate of the optimizer."""
    opt_state = set_learning_rate(state.opt_state, learning_rate)
    # The new leaf must have the sharding of the old one; see `device_put_like`.
    return dataclasses.replace(
        state, opt_state=jax.tree.map(device_put_like, opt_state, state.opt_state)
    )


def evaluation_params(params: PyTree, opt_state: PyTree) -> PyTree:
    """Returns the parameters with which to evaluate, save and export.

    The result is that of `optimizers.eval_params`, compiled, and has the shardings of
    `params`. It is `params` itself if the optimizer does not average parameters.
    """
    if not averaging_states(opt_state):
        return params
    averaged = _compiled_eval_params(params, opt_state)
    # With ZeRO-1 averages are sharded further than parameters. The result is awaited,
    # because two programs with collectives may wait for each other on CPUs.
    return jax.block_until_ready(jax.tree.map(device_put_like, averaged, params))


_compiled_eval_params = jax.jit(eval_params)


def device_put_like(new: jax.Array, old: jax.Array) -> jax.Array:
    """Places `new` on the devices of `old`, committed if `old` is committed."""
    # Sharding and commitment of arguments are part of the cache key of `jax.jit`: a
    # step would be recompiled for an array that differs in either of them.
    is_committed = isinstance(old, jax.Array) and old.committed
    return jax.device_put(new, old.sharding) if is_committed else new


def _with_own_buffers(opt_state: PyTree, params: PyTree) -> PyTree:
    """Copies arrays that occur more than once in state and parameters.

    A buffer can be donated only once: XLA reports an error if it is donated twice. The
    state of an optimizer may contain the arrays of the parameters themselves.
    """
    seen = {id(leaf) for leaf in jax.tree.leaves(params)}

    def copy_if_shared(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or id(leaf) not in seen:
            seen.add(id(leaf))
            return leaf
        return jnp.copy(leaf)

    return jax.tree.map(copy_if_shared, opt_state)
