"""State that a training step carries, and the metrics that it reports."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from .. import _checks
from .._typing import PyTree
from ..optimizers import set_learning_rate


@flax.struct.dataclass
class TrainState:
    """State from which the next step is taken."""

    step: jax.Array  # (), int32: batches taken so far, those of skipped updates too
    params: PyTree  # the parameters
    opt_state: PyTree  # the optimizer's state
    num_bad_in_a_row: jax.Array  # (), int32: steps up to now that were not finite
    rng: jax.Array | None  # (), key: of dropout; None where the loss takes no key


@flax.struct.dataclass
class Norms:
    """Euclidean norms of a part of the tree, or of all of it.

    (), float32; float64 if a leaf of that part is.
    """

    grads: jax.Array  # of the gradient, before clipping
    updates: jax.Array  # of the update, which was added to the parameters
    params: jax.Array  # of the parameters, before the update

    @property
    def update_ratio(self) -> Any:
        """Updates over parameters: about 1e-3 in a run that goes well."""
        return self.updates / self.params


@flax.struct.dataclass
class Metrics:
    """Measurements of one step; float64 in the place of float32 if a parameter is."""

    loss: jax.Array  # (), float32: mean over the batch's items, before the update
    learning_rate: jax.Array  # (), float32: used by this update; NaN unless one of ours
    norms: Norms  # of the whole tree
    num_items: jax.Array  # (), float32: number of items of the loss: tokens, say
    is_clipped: jax.Array  # (), bool: whether `clip` made the gradients smaller
    is_skipped: jax.Array  # (), bool: whether the update was left out
    is_stopped: jax.Array  # (), bool: whether no update is taken any more
    layers: dict[str, Norms]  # by the path of the layer; empty unless asked for


def init_train_state(
    params: PyTree,
    optimizer: optax.GradientTransformation,
    *,
    rng: jax.Array | int | None = None,
) -> TrainState:
    """Returns the state before the first step.

    Args:
        params: the parameters; their buffers are donated to the first step, so they
            must not be used afterwards.
        optimizer: any optax transformation.
        rng: a key or a seed for a loss with a third argument, a key that differs at
            every step; None for a loss with two.
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
    """Returns the state with another learning rate in its optimizer."""
    opt_state = set_learning_rate(state.opt_state, learning_rate)
    return dataclasses.replace(
        state, opt_state=jax.tree.map(device_put_like, opt_state, state.opt_state)
    )


def device_put_like(new: jax.Array, old: jax.Array) -> jax.Array:
    """Places `new` as `old`, committed or not, so that no step is compiled again."""
    is_committed = isinstance(old, jax.Array) and old.committed
    return jax.device_put(new, old.sharding) if is_committed else new


def _with_own_buffers(opt_state: PyTree, params: PyTree) -> PyTree:
    """Copies arrays that occur twice: a step can donate each buffer only once."""
    seen = {id(leaf) for leaf in jax.tree.leaves(params)}

    def own(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or id(leaf) not in seen:
            seen.add(id(leaf))
            return leaf
        return jnp.copy(leaf)

    return jax.tree.map(own, opt_state)
