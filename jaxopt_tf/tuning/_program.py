"""Many runs as one compiled program, and training them side by side."""

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
from ..recipes import Recipe, RunHyperparams, build_optimizer
from ..training import Batch, TrainState
from ._task import Task

# Steps that are dispatched before the host waits for all of their losses at once.
_STEPS_AT_ONCE = 64


@flax.struct.dataclass
class VmapState:
    """State of K runs."""

    varied: RunHyperparams  # [K, ...]: the numbers in which runs differ
    state: TrainState  # [K, ...]
    stream: jax.Array  # [K], int32: number of the stream that a run takes batches from
    last_step: jax.Array  # [K], int32: after it nothing of a run changes


class StepOutput(NamedTuple):
    """Losses of a step of K runs."""

    loss: jax.Array  # [K], float32: before the update; NaN for a run that is stopped
    is_stopped: jax.Array  # [K], bool: whether a run is not finite, or at its end


class Program(NamedTuple):
    """The compiled functions of K runs; each K is compiled for once."""

    # (params, varied, seeds, stream, last_step), each [K, ...] -> state
    start: Callable[..., VmapState]
    # (state, batches [S, ...] of S streams) -> (state, output); donates the state
    step: Callable[[VmapState, Batch], tuple[VmapState, StepOutput]]
    # (params [K, ...], batch) -> (summed losses [K], numbers of items [K])
    evaluate: Callable[[PyTree, Batch], tuple[jax.Array, jax.Array]]
    over_runs: Sharding  # of [K, ...]

    @property
    def num_devices(self) -> int:
        """Number of devices, which K must be a multiple of."""
        return len(self.over_runs.device_set)


def make_program(task: Task, recipe: Recipe, devices: Sequence[jax.Device]) -> Program:
    """Maps the training step of `make_train_step` over many runs; compiled when called.

    A run that is not finite, or at its end, keeps its state while the others continue.
    Runs are independent: devices do not communicate.

    Args:
        task: what is trained.
        recipe: of the program, see `compile_key`; its other numbers are varied.
        devices: that the runs are divided among.
    """

    def optimizer_of(varied: RunHyperparams):
        return build_optimizer(
            recipe, layouts=task.layouts, layer_norms=task.layer_norms, varied=varied
        )

    def start(params, varied, seed, stream, last_step):
        rng = jax.random.key(seed) if task.takes_key else None
        state = training.init_train_state(params, optimizer_of(varied), rng=rng)
        return VmapState(varied, state, stream, last_step)

    def step(run: VmapState, batches: Batch):
        (num_streams,) = {leaf.shape[0] for leaf in jax.tree.leaves(batches)}
        # A constant index, so that one batch for all runs is not copied for each.
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
        # A loss may be finite although its gradient is not, which stops the run too.
        is_stopped = metrics.is_stopped | is_over
        output = StepOutput(jnp.where(is_stopped, jnp.nan, metrics.loss), is_stopped)
        return dataclasses.replace(run, state=state), output

    evaluate = training.make_eval_step(task.loss_fn, compute_dtype=task.compute_dtype)
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


@dataclasses.dataclass
class Cohort:
    """Runs that are trained side by side.

    Attributes:
        program: of all of them.
        recipes: K, those included that only fill up the devices.
        state: [K, ...].
        streams: of batches, at the step of the runs.
        step: number of batches taken.
    """

    program: Program
    recipes: Sequence[Recipe]
    state: VmapState
    streams: Sequence[Iterator[Batch]]
    step: int = 0

    @property
    def longest(self) -> int:
        """Steps of the longest run."""
        return max(recipe.max_steps for recipe in self.recipes)

    def next_batches(self) -> Batch:
        """Returns the batches of the next step, [S, ...] of S streams.

        Raises:
            ValueError: if there are not enough batches.
        """
        batches = [next_batch(stream, self.step) for stream in self.streams]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)

    def advance(self, until: int) -> np.ndarray:
        """Trains up to step `until`, or until nothing changes any more.

        Returns:
            [K, n], float32: the loss of each step; NaN from the first that was not
            finite, and after the end of a run.

        Raises:
            ValueError: if there are not enough batches.
        """
        pending: list[StepOutput] = []
        losses = [np.empty((len(self.recipes), 0), np.float32)]
        while self.step < until:
            self.state, output = self.program.step(self.state, self.next_batches())
            self.step += 1
            pending.append(output)
            if len(pending) == _STEPS_AT_ONCE or self.step == until:
                on_host = jax.device_get(pending)
                losses.append(np.stack([of_step.loss for of_step in on_host], axis=1))
                pending = []
                if on_host[-1].is_stopped.all():
                    break
        joined = np.concatenate(losses, axis=1)
        is_lost = np.logical_or.accumulate(~np.isfinite(joined), axis=1)
        return np.where(is_lost, np.float32(np.nan), joined)

    def summed_losses(self, batches: Sequence[Batch]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the summed losses over `batches`, and the items; [K], float64."""
        total, num_items = np.zeros(len(self.recipes)), np.zeros(len(self.recipes))
        for batch in batches:
            evaluated = self.program.evaluate(self.state.state.params, batch)
            sums, counts = jax.device_get(evaluated)
            total, num_items = total + sums, num_items + counts
        return total, num_items


def next_batch(stream: Iterator[Batch], step: int) -> Batch:
    """Returns the batch of a step.

    Raises:
        ValueError: if there is none.
    """
    batch = next(stream, None)
    if batch is None:
        raise ValueError(
            "`batches` must give at least as many as `max_steps`, but ended after "
            f"{step}. Repeat the data, or take fewer steps."
        )
    return batch


def stacked(trees: Sequence[PyTree]) -> PyTree:
    """Stacks trees of arrays along a new first axis; numpy arrays stay on the host."""

    def stack(*leaves: Any) -> jax.Array | np.ndarray:
        is_on_device = any(isinstance(leaf, jax.Array) for leaf in leaves)
        return jnp.stack(leaves) if is_on_device else np.stack(leaves)

    return jax.tree.map(stack, *trees)


def unstacked(tree: PyTree, num: int) -> list[PyTree]:
    """Returns the first `num` trees of a stack, on the host: no device keeps them."""

    def on_host(x: jax.Array) -> jax.Array | np.ndarray:
        if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return np.asarray(x)
        # Keys have no form on the host: new ones are made, not committed to a device.
        data = jax.device_get(jax.random.key_data(x))
        return jax.random.wrap_key_data(jnp.asarray(data))

    tree = jax.tree.map(on_host, tree)
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(num)]
