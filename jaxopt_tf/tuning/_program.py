"""Compiled program that trains many runs in parallel with `jax.vmap`."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from .. import training
from .._typing import PyTree
from ..optimizers import eval_params
from ..recipes import Recipe, RunHyperparams, build_optimizer
from ..training import Batch, TrainState
from ._task import Task

# Number of steps that are dispatched before the host waits for their losses.
_STEPS_AT_ONCE = 64


@flax.struct.dataclass
class VmapState:
    """State of K runs."""

    varied: RunHyperparams  # [K, ...]: hyperparameters in which runs differ
    state: TrainState  # [K, ...]
    stream: jax.Array  # [K], int32: index of the batch stream of a run
    last_step: jax.Array  # [K], int32: step after which the state no longer changes


class StepOutput(NamedTuple):
    """Losses of a step of K runs."""

    loss: jax.Array  # [K], float32: loss before the update; NaN for a stopped run
    is_stopped: jax.Array  # [K], bool: True if a run is not finite or at its end


class Program(NamedTuple):
    """Jitted functions for K runs; each value of K is compiled once."""

    # (params, varied, seeds, stream, last_step), each [K, ...] -> state
    start: Callable[..., VmapState]
    # (state, batches [S, ...] of S streams) -> (state, output); donates the state.
    # Frozen parameters are bound to this function and the next.
    step: Callable[[VmapState, Batch], tuple[VmapState, StepOutput]]
    # (state [K, ...], batch) -> (summed losses [K], numbers of items [K])
    evaluate: Callable[[TrainState, Batch], tuple[jax.Array, jax.Array]]
    run_sharding: Sharding  # sharding of arrays [K, ...]

    @property
    def num_devices(self) -> int:
        """Number of devices; K must be a multiple of it."""
        return len(self.run_sharding.device_set)


def make_program(task: Task, recipe: Recipe, devices: Sequence[jax.Device]) -> Program:
    """Returns functions that map the step of `make_train_step` over many runs.

    They are compiled at the first call. A run that is not finite, or at its end, keeps
    its state while the others continue. Runs are independent: devices do not
    communicate.

    Args:
        task: loss, initial parameters and data of the runs.
        recipe: recipe that sets the fields of `compile_key`. Other fields are arguments
            of the compiled functions.
        devices: devices over which the runs are sharded.
    """

    def optimizer_of(varied: RunHyperparams):
        return build_optimizer(
            recipe, layouts=task.layouts, layer_norms=task.layer_norms, varied=varied
        )

    def start(params, varied, seed, stream, last_step):
        rng = jax.random.key(seed) if task.takes_key else None
        state = training.init_train_state(params, optimizer_of(varied), rng=rng)
        return VmapState(varied, state, stream, last_step)

    def step_one(run: VmapState, batches: Batch, frozen: PyTree | None):
        (num_streams,) = {leaf.shape[0] for leaf in jax.tree.leaves(batches)}
        # With a constant index, `vmap` leaves the batch unbatched. With an index that
        # depends on the run, it would be gathered, one copy for each run.
        stream = 0 if num_streams == 1 else run.stream
        batch = jax.tree.map(lambda x: x[stream], batches)
        train_step = training.make_train_step(
            task.loss_fn,
            optimizer_of(run.varied),
            gradient_accumulation_steps=recipe.gradient_accumulation_steps,
            compute_dtype=task.compute_dtype,
            frozen=frozen,
        )
        state, metrics = train_step(run.state, batch)
        # vmap computes the step of all runs; the result is discarded for finished ones.
        is_over = run.state.step >= run.last_step
        state = jax.tree.map(
            lambda new, old: jnp.where(is_over, old, new), state, run.state
        )
        # `metrics.is_stopped` is also True if the loss is finite but its gradient is
        # not.
        is_stopped = metrics.is_stopped | is_over
        output = StepOutput(jnp.where(is_stopped, jnp.nan, metrics.loss), is_stopped)
        return dataclasses.replace(run, state=state), output

    def evaluate_one(state: TrainState, batch: Batch, frozen: PyTree | None):
        eval_step = training.make_eval_step(
            task.loss_fn, compute_dtype=task.compute_dtype, frozen=frozen
        )
        return eval_step(eval_params(state.params, state.opt_state), batch)

    # Frozen parameters have no axis of runs: a product with them is one product for all
    # runs. `vmap` would map keyword arguments over their first axis.
    def step(runs: VmapState, batches: Batch, *, frozen: PyTree | None = None):
        return jax.vmap(step_one, in_axes=(0, None, None))(runs, batches, frozen)

    def evaluate(state: TrainState, batch: Batch, *, frozen: PyTree | None = None):
        return jax.vmap(evaluate_one, in_axes=(0, None, None))(state, batch, frozen)

    # The state is sharded along the runs. Its memory is donated to the next state; the
    # batches and the frozen parameters are replicated.
    mesh = jax.sharding.Mesh(np.array(devices), ("runs",))
    run_sharding = NamedSharding(mesh, PartitionSpec("runs"))
    frozen = jax.device_put(task.frozen, NamedSharding(mesh, PartitionSpec()))
    return Program(
        jax.jit(jax.vmap(start), out_shardings=run_sharding),
        training.bind_frozen(
            jax.jit(step, donate_argnums=0, out_shardings=(run_sharding, None)), frozen
        ),
        training.bind_frozen(jax.jit(evaluate), frozen),
        run_sharding,
    )


@dataclasses.dataclass
class RunBatch:
    """Runs that are trained in parallel.

    Attributes:
        program: compiled functions of the runs.
        recipes: [K], recipe of each run, including copies that fill up the group.
        state: [K, ...].
        streams: iterators of batches, at the step of the runs.
        step: number of steps taken.
    """

    program: Program
    recipes: Sequence[Recipe]
    state: VmapState
    streams: Sequence[Iterator[Batch]]
    step: int = 0

    @property
    def longest(self) -> int:
        """Number of steps of the longest run."""
        return max(recipe.max_steps for recipe in self.recipes)

    def next_batches(self) -> Batch:
        """Returns the batches of the next step, [S, ...] for S streams.

        Raises:
            ValueError: if a stream has too few batches.
        """
        batches = [next_batch(stream, self.step) for stream in self.streams]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)

    def advance(self, until: int) -> np.ndarray:
        """Trains up to step `until`, or until all runs are stopped.

        Returns:
            [K, n], float32: loss of each step; NaN from the first loss on that is not
            finite, and after the end of a run.

        Raises:
            ValueError: if a stream has too few batches.
        """
        pending: list[StepOutput] = []
        losses = [np.empty((len(self.recipes), 0), np.float32)]
        while self.step < until:
            self.state, output = self.program.step(self.state, self.next_batches())
            self.step += 1
            pending.append(output)
            # The losses stay on the devices, so that steps are dispatched without
            # waiting. They are fetched together, which limits the steps in flight.
            if len(pending) == _STEPS_AT_ONCE or self.step == until:
                on_host = jax.device_get(pending)
                losses.append(np.stack([output.loss for output in on_host], axis=1))
                pending = []
                if on_host[-1].is_stopped.all():
                    break
        # All losses after the first one that is not finite become NaN.
        joined = np.concatenate(losses, axis=1)
        is_lost = np.logical_or.accumulate(~np.isfinite(joined), axis=1)
        return np.where(is_lost, np.float32(np.nan), joined)

    def summed_losses(self, batches: Sequence[Batch]) -> tuple[np.ndarray, np.ndarray]:
        """Returns summed losses and numbers of items over batches; [K], float64."""
        # Batches are summed in float64 on the host; the sum within a batch is float32.
        total, num_items = np.zeros(len(self.recipes)), np.zeros(len(self.recipes))
        for batch in batches:
            evaluated = self.program.evaluate(self.state.state, batch)
            sums, counts = jax.device_get(evaluated)
            total, num_items = total + sums, num_items + counts
        return total, num_items


def next_batch(stream: Iterator[Batch], step: int) -> Batch:
    """Returns the next batch of a stream.

    Raises:
        ValueError: if the stream has ended.
    """
    batch = next(stream, None)
    if batch is None:
        raise ValueError(
            "`batches` must return at least `max_steps` batches, but ended after "
            f"{step}. Repeat the data, or use fewer steps."
        )
    return batch


def stacked(trees: Sequence[PyTree]) -> PyTree:
    """Stacks trees along a new first axis; numpy arrays give numpy arrays."""

    def stack(*leaves: Any) -> jax.Array | np.ndarray:
        is_on_device = any(isinstance(leaf, jax.Array) for leaf in leaves)
        return jnp.stack(leaves) if is_on_device else np.stack(leaves)

    return jax.tree.map(stack, *trees)


def unstacked(tree: PyTree, num: int) -> list[PyTree]:
    """Returns the first `num` trees of a stack, as numpy arrays on the host."""

    def on_host(x: jax.Array) -> jax.Array | np.ndarray:
        if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return np.asarray(x)
        # numpy has no dtype for keys. They are rebuilt from their data as arrays that
        # are not committed to a device, so that they can be moved to any sharding.
        data = jax.device_get(jax.random.key_data(x))
        return jax.random.wrap_key_data(jnp.asarray(data))

    tree = jax.tree.map(on_host, tree)
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(num)]
