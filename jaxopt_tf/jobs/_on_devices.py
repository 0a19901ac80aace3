"""What a run starts from and is fed with, each part on the device that needs it."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .. import training
from ..data import Batches
from ..models import GPT2Config
from ..recipes import Recipe
from ._placed import Placed, batch_sharding, first


def position_at_start(
    recipe: Recipe, model: GPT2Config, placed: Placed, checkpoint: Path | None
) -> training.Position:
    """Where the run goes on, or begins; no device ever holds more than its part.

    Args:
        recipe: the numbers of the updates.
        model: its size.
        placed: where everything is to lie.
        checkpoint: of any mesh; None to draw parameters.

    Raises:
        ValueError: if the checkpoint is damaged, or of another model or optimizer.
    """
    if checkpoint is not None:
        return training.restore_position(checkpoint, placed.position)
    shardings = jax.tree.map(lambda x: x.sharding, placed.position.state)
    draw = first(recipe, model)
    if placed.batch.sharding.num_devices == 1:  # a second spared: nothing is compiled
        state = jax.device_put(draw(), shardings)
    else:
        state = jax.jit(draw, out_shardings=shardings)()
    return placed.position._replace(state=state)


def batches_on_devices(
    batches: Batches, start: int, like: jax.ShapeDtypeStruct
) -> Iterator[jax.Array]:
    """Batch `start` and all after it; each process reads the rows of its devices.

    Args:
        batches: of the run.
        start: number of steps that were taken.
        like: shape, dtype and sharding of a batch.
    """

    def batch(n: int) -> jax.Array:
        return jax.make_array_from_callback(
            like.shape,
            like.sharding,
            lambda index: batches.part(n, index or ()),
            dtype=like.dtype,
        )

    return map(batch, itertools.count(start))


def on_devices(batch: np.ndarray, mesh: jax.sharding.Mesh) -> jax.Array:
    """A batch that every process has, divided by sequences where that can be done."""
    sharding = batch_sharding(batch.shape, mesh, axis=0)
    return jax.make_array_from_callback(
        batch.shape, sharding, lambda index: batch[index]
    )


def one_at_a_time(function: Callable, mesh: jax.sharding.Mesh) -> Callable:
    """On several CPU devices, `function` that waits for its results.

    XLA's collectives on CPUs wait for each other in threads, of which there are as many
    as devices: with two steps under way it can come to none being left, and to an end.
    """
    if mesh.size == 1 or mesh.devices.flat[0].platform != "cpu":
        return function

    def wait(*args: Any) -> Any:
        return jax.block_until_ready(function(*args))

    return wait
