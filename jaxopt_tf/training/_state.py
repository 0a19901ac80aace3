"""What a training step carries, and what it reports."""

import flax.struct
import jax
import jax.numpy as jnp
import optax

from .._typing import PyTree


@flax.struct.dataclass
class TrainState:
    """What the next step needs."""

    step: jax.Array  # (), int32: updates applied so far
    params: PyTree  # the parameters
    opt_state: PyTree  # the optimizer's state


@flax.struct.dataclass
class Metrics:
    """What one step did: to look at and drop."""

    loss: jax.Array  # (), float32: mean over the batch's items, before the update
    learning_rate: jax.Array  # (), float32: used by this update; NaN unless one of ours
    grad_norm: jax.Array  # (), float32: global norm before clipping
    num_items: jax.Array  # (), float32: what the loss is the mean over: tokens, say


def init_train_state(
    params: PyTree, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before the first step.

    Args:
        params: the parameters; the first step takes their buffers over (donation), so
            they must not be used afterwards.
        optimizer: any optax transformation.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params)
    )
