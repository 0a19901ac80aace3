"""Parallel training of runs, in groups that fit into memory."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from .. import _checks
from .._typing import PyTree
from ..recipes import Recipe, RunHyperparams, compile_key, stack_recipes
from ..training import Batch
from ._program import Program, RunBatch, VmapState, make_program, stacked, unstacked
from ._task import Task

# Fraction of a device's memory that runs may use by default.
_USABLE_FRACTION = 0.9
_EMPTY: Mapping[int, Any] = MappingProxyType({})


class Group(NamedTuple):
    """Runs that were trained in parallel up to a step."""

    runs: list[int]  # [n]: indices of the runs
    losses: np.ndarray  # [n, steps], float32: losses of the steps in `train_to`
    totals: np.ndarray  # [E, n], float64: summed losses of each evaluation
    num_items: np.ndarray  # [E, n], float64: number of items of each evaluation
    states: list[VmapState]  # [n], on the host; [] unless `train_to` keeps them


@dataclasses.dataclass(kw_only=True)
class ParallelRuns:
    """K runs of a task that share compiled programs.

    Runs of one program are trained in parallel. Runs with the same stream key share the
    batches of one stream.

    Attributes:
        task: loss, initial parameters and data of the runs.
        recipes: [K], recipe of each run.
        memory_limit: as for `train_many`.
        devices: as for `train_many`.
    """

    task: Task
    recipes: Sequence[Recipe]
    memory_limit: float | None = None
    devices: Sequence[jax.Device] | None = None
    # (first run, number of runs, number of streams) -> program, runs per group
    _program_cache: dict[tuple[int, int, int], tuple[Program, int]] = dataclasses.field(
        default_factory=dict, init=False
    )

    def stream_key(self, run: int) -> int:
        """Returns the key of the batch stream of a run, which is its seed."""
        return self.recipes[run].seed

    def open_stream(self, key: int, longest: Recipe) -> Iterable[Batch]:
        """Returns the batches of a stream for the longest of its runs."""
        return self.task.batches(longest)

    @functools.cached_property
    def eval_batch_lists(self) -> Sequence[Sequence[Batch]]:
        """Lists of evaluation batches; each list gives one loss per run."""
        return [self.task.eval_batches] if self.task.eval_batches else []

    def train_to(
        self,
        runs: Sequence[int],
        until: int,
        states: Mapping[int, VmapState] = _EMPTY,
        *,
        params: Mapping[int, PyTree] = _EMPTY,
        keeps_states: bool = False,
        evaluates: bool = True,
    ) -> Iterator[Group]:
        """Trains runs up to a step, and yields each group of runs when it is done.

        Args:
            runs: indices of the runs to train.
            until: step up to which runs are trained; shorter runs are trained to their
                end.
            states: states of runs by index, all at the same step. Other runs start at
                their first step.
            params: initial parameters of runs by index, instead of those of the task.
            keeps_states: whether groups contain the states of their runs.
            evaluates: whether the runs are evaluated after the last step.
        """
        evaluations = self.eval_batch_lists if evaluates else []
        for hyperparams in self._hyperparams_by_program:
            chosen = [i for i in hyperparams if i in runs]
            if not chosen:
                continue
            start = functools.partial(
                self.start, hyperparams=hyperparams, states=states, params=params
            )
            program, width = self._program_and_width(chosen, start)
            for first in range(0, len(chosen), width):
                group = chosen[first : first + width]
                n = len(group)
                # All groups have the same size and share one compilation. The last
                # group is filled up with copies of its first run, which are discarded.
                run_batch = start(program, group + group[:1] * (width - n))
                losses = run_batch.advance(min(until, run_batch.longest))
                # [E, 2, width], without the copies that fill up the group.
                sums = np.array([run_batch.summed_losses(b) for b in evaluations])
                totals, num_items = sums.reshape(-1, 2, width)[:, :, :n].swapaxes(0, 1)
                ended = unstacked(run_batch.state, n) if keeps_states else []
                del run_batch  # frees device memory before the next group starts
                yield Group(group, losses[:n], totals, num_items, ended)

    def initial_states(self, runs: Sequence[int]) -> dict[int, VmapState]:
        """Returns the states of runs before their first step, on the host."""
        groups = self.train_to(runs, 0, keeps_states=True, evaluates=False)
        return {i: s for g in groups for i, s in zip(g.runs, g.states, strict=True)}

    @functools.cached_property
    def _hyperparams_by_program(self) -> list[dict[int, RunHyperparams]]:
        """For each program, a dict from the index of a run to its `RunHyperparams`.

        The dicts are computed from all runs, so that the programs do not depend on the
        subset of runs that is trained in a call.
        """
        runs_by_key: dict[Any, list[int]] = {}
        for i, recipe in enumerate(self.recipes):
            runs_by_key.setdefault(compile_key(recipe), []).append(i)
        return [
            dict(zip(runs, unstacked(stack, len(runs)), strict=True))
            for runs in runs_by_key.values()
            for stack in [stack_recipes([self.recipes[i] for i in runs])]
        ]

    def start(
        self,
        program: Program,
        chosen: Sequence[int],
        *,
        hyperparams: Mapping[int, RunHyperparams] | Sequence[RunHyperparams],
        states: Mapping[int, VmapState] = _EMPTY,
        params: Mapping[int, PyTree] = _EMPTY,
    ) -> RunBatch:
        """Returns runs in parallel that continue from `states` or start at step 1.

        Args:
            program: compiled functions of the runs.
            chosen: indices of the runs.
            hyperparams: by the index of a run, hyperparameters in which runs differ.
            states: as for `train_to`.
            params: as for `train_to`.
        """
        recipes = [self.recipes[i] for i in chosen]
        pairs = list(zip(chosen, recipes, strict=True))
        keys = [self.stream_key(i) for i in chosen]
        # A stream must have enough batches for the longest of its runs. In the sorted
        # order, the longest run is the last one that sets the entry of the dict.
        by_length = sorted(pairs, key=lambda pair: pair[1].max_steps)
        longest = {self.stream_key(i): recipe for i, recipe in by_length}
        index_by_key = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        stream_index = jnp.asarray([index_by_key[key] for key in keys], jnp.int32)
        step = 0
        if chosen[0] in states:
            state = stacked([states[i] for i in chosen])
            step = int(np.max(state.state.step))
            # Streams are indexed within a group: the index of a run's stream may have
            # changed.
            state = dataclasses.replace(state, stream=stream_index)
            # The state gets the sharding of the outputs of a step. `jax.jit` would
            # compile the first step separately for another sharding.
            state = jax.device_put(state, program.run_sharding)
        else:
            # Runs of one seed have the same initial parameters: `init` is called once.
            init = functools.cache(self.task.init)
            trees = [params[i] if i in params else init(r.seed) for i, r in pairs]
            state = program.start(
                stacked(trees),
                stacked([hyperparams[i] for i in chosen]),
                jnp.asarray([recipe.seed for recipe in recipes], jnp.uint32),
                stream_index,
                jnp.asarray([recipe.max_steps for recipe in recipes], jnp.int32),
            )
        streams = [
            _repeat_last(self.open_stream(key, longest[key]), longest[key])
            for key in index_by_key
        ]
        remaining = [itertools.islice(batches, step, None) for batches in streams]
        return RunBatch(program, recipes, state, remaining, step)

    def _program_and_width(
        self, runs: Sequence[int], start: Callable[[Program, Sequence[int]], RunBatch]
    ) -> tuple[Program, int]:
        """Returns the program of some runs, and the number of runs per group.

        The number is a multiple of the number of devices.

        Raises:
            ValueError: if there are no devices, or `memory_limit` is too small for one
                run on each device.
        """
        num_streams = len(set(map(self.stream_key, runs)))
        # The search for this number compiles the step several times, so the result is
        # cached.
        key = (runs[0], len(runs), num_streams)
        if key in self._program_cache:
            return self._program_cache[key]
        devices = jax.local_devices() if self.devices is None else self.devices
        if not devices:
            raise ValueError(
                "`devices` must contain at least one device, got none. Leave it out "
                "for all local devices."
            )
        # No more devices than runs are used: further devices would train copies.
        program = make_program(self.task, self.recipes[runs[0]], devices[: len(runs)])
        limit, max_runs = self.memory_limit, len(runs)
        if limit is None:  # `memory_stats` is None for CPUs: they have no limit
            device_limit = (jax.local_devices()[0].memory_stats() or {}).get(
                "bytes_limit"
            )
            limit = None if device_limit is None else _USABLE_FRACTION * device_limit
        if limit is not None:
            _checks.positive("memory_limit", limit)
            run_batch = start(program, [runs[0]] * program.num_devices)
            eval_batches = [batches[0] for batches in self.eval_batch_lists[:1]]
            max_runs = _max_runs_within(
                limit, run_batch, max_runs, num_streams, eval_batches
            )
        # The number of groups is minimal, and so is their size: of 10 runs, if 8 fit at
        # most, two groups of 5.
        size = -(-len(runs) // -(-len(runs) // max_runs))
        width = _round_up(size, program.num_devices)
        self._program_cache[key] = program, width
        return program, width


def _repeat_last(batches: Iterable[Batch], recipe: Recipe) -> Iterator[Batch]:
    """Yields the batches of a stream, and then repeats its last batch.

    Other runs of the group may be longer. A run that is at its end ignores the batches.

    If the stream has fewer than `recipe.max_steps` batches, nothing is repeated, and
    `RunBatch.next_batches` raises an error.
    """
    batch, num_batches = None, 0
    for batch in batches:
        num_batches += 1
        yield batch
    while num_batches >= recipe.max_steps:
        yield batch


def _max_runs_within(
    limit: float,
    run_batch: RunBatch,
    max_runs: int,
    num_streams: int,
    eval_batches: Sequence[Batch],
) -> int:
    """Returns the maximum number of runs, up to `max_runs`, that fit into memory.

    The step and the evaluation are compiled for a number of runs. While their
    `memory_analysis` exceeds the limit, the number is reduced in proportion.

    Args:
        limit: bytes of memory on each device.
        run_batch: one run on each device, before the first step.
        max_runs: number of all runs.
        num_streams: number of batch streams of all runs.
        eval_batches: list of one batch to evaluate on, or an empty list.
    """
    program: Any = run_batch.program
    batches = _resized(run_batch.next_batches(), num_streams, None)
    while True:
        num_runs = _round_up(max_runs, program.num_devices)
        state = _resized(run_batch.state, num_runs, program.run_sharding)
        lowered = [program.step.lower(state, batches)]
        lowered += [program.evaluate.lower(state.state, x) for x in eval_batches]
        needed = max(_bytes_of(each.compile().memory_analysis()) for each in lowered)
        if needed <= limit:
            return max_runs
        if max_runs <= program.num_devices:
            raise ValueError(
                f"`memory_limit` must be at least {needed:,} bytes, the memory of one "
                f"run on a device, got {limit:,.0f}. Increase it, or use a smaller "
                "model or batch."
            )
        # The maximum decreases by at least one, so that the loop ends, but not below
        # one run per device.
        max_runs = max(
            program.num_devices, min(max_runs - 1, int(max_runs * limit / needed))
        )


def _resized(tree: PyTree, size: int, sharding: Sharding | None) -> Any:
    """Returns `ShapeDtypeStruct`s of a tree with another size of the first axis."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            (size, *x.shape[1:]), x.dtype, sharding=sharding
        ),
        tree,
    )


def _round_up(number: int, divisor: int) -> int:
    return -(-number // divisor) * divisor


def _bytes_of(analysis: Any) -> int:
    # Outputs that reuse the memory of donated arguments are counted once.
    new = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return analysis.argument_size_in_bytes + analysis.temp_size_in_bytes + new
