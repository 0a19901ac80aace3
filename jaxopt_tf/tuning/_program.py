"""Many runs as one compiled program: the training step, mapped over runs."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from .. import training
from .._typing import PyTree
from ..recipes import Recipe, Varied, build_optimizer
from ..training import Batch, TrainState
from ._task import Task


@flax.struct.dataclass
class Carried:
    """What the next step of K runs needs."""

    varied: Varied  # [K, ...]: the numbers that each run has of its own
    state: TrainState  # [K, ...]
    stream: jax.Array  # [K], int32: which of the streams of batches a run is fed from
    last_step: jax.Array  # [K], int32: of each run; past it nothing changes


class Told(NamedTuple):
    """What a step of K runs reports."""

    loss: jax.Array  # [K], float32: before the update; NaN where there is none
    is_stopped: jax.Array  # [K], bool: whether a run is no longer finite, or at its end


class Program(NamedTuple):
    """The compiled functions of many runs; any K is taken, and compiled for once."""

    # (params, varied, seeds, stream, last_step), each [K, ...] -> carried
    start: Callable[..., Carried]
    # (carried, batches [S, ...] of S streams) -> (carried, told); takes the old buffers
    step: Callable[[Carried, Batch], tuple[Carried, Told]]
    # (params [K, ...], batch) -> (summed losses [K], numbers of items [K])
    evaluate: Callable[[PyTree, Batch], tuple[jax.Array, jax.Array]]
    over_runs: Sharding  # where [K, ...] lies

    @property
    def num_devices(self) -> int:
        """K must be a multiple of it."""
        return len(self.over_runs.device_set)


def make_program(
    task: Task, recipe: Recipe, devices: Sequence[jax.Device] | None = None
) -> Program:
    """Compiles, when called, the training step of `make_train_step` for many runs.

    A run that is no longer finite, or at its end, is kept as it is while the others go
    on. Runs do not see each other: on several devices nothing is sent.

    Args:
        task: what is trained.
        recipe: of the program, see `same_program`; its other numbers are varied.
        devices: which the runs are divided among; None for the first one.
    """

    def optimizer_of(varied: Varied):
        return build_optimizer(
            recipe, layouts=task.layout, layer_norms=task.layer_norms, varied=varied
        )

    def start(params, varied, seed, stream, last_step):
        rng = jax.random.key(seed) if task.takes_key else None
        state = training.init_train_state(params, optimizer_of(varied), rng=rng)
        return Carried(varied, state, stream, last_step)

    def step(run: Carried, batches: Batch):
        (num_streams,) = {leaf.shape[0] for leaf in jax.tree.leaves(batches)}
        # One for all runs is not copied for each.
        stream = 0 if num_streams == 1 else run.stream
        batch = jax.tree.map(lambda x: x[stream], batches)
        train_step = training.make_train_step(
            task.loss_fn,
            optimizer_of(run.varied),
            gradient_accumulation_steps=recipe.gradient_accumulation_steps,
            compute_dtype=task.compute_dtype,
        )
        state, metrics = train_step(run.state, batch)
        is_over = run.state.step >= run.last_step
        state = jax.tree.map(
            lambda new, old: jnp.where(is_over, old, new), state, run.state
        )
        # A loss may be finite where the gradient is not: stopped it is all the same.
        is_stopped = metrics.is_stopped | is_over
        told = Told(jnp.where(is_stopped, jnp.nan, metrics.loss), is_stopped)
        return dataclasses.replace(run, state=state), told

    evaluate = training.make_eval_step(task.loss_fn, compute_dtype=task.compute_dtype)
    devices = jax.devices()[:1] if devices is None else devices
    mesh = jax.sharding.Mesh(np.array(devices), ("runs",))
    over_runs = NamedSharding(mesh, PartitionSpec("runs"))
    return Program(
        jax.jit(jax.vmap(start), out_shardings=over_runs),
        jax.jit(
            jax.vmap(step, in_axes=(0, None)),
            donate_argnums=0,
            out_shardings=(over_runs, None),
        ),
        jax.jit(jax.vmap(evaluate, in_axes=(0, None))),
        over_runs,
    )
