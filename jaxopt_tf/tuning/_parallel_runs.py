"""Runs of a task: as many side by side as fit into memory, one group after another."""

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
from ._program import Cohort, Program, VmapState, make_program, stacked, unstacked
from ._task import Task

# Share of a device's memory that runs may take if no limit is given.
_OF_A_DEVICE = 0.9
_NONE: Mapping[int, Any] = MappingProxyType({})


class Group(NamedTuple):
    """Runs that were trained side by side up to a step."""

    runs: list[int]  # n: their numbers
    losses: np.ndarray  # [n, steps that were taken now], float32
    totals: np.ndarray  # [E, n], float64: summed losses of each evaluation
    num_items: np.ndarray  # [E, n], float64
    states: list[VmapState]  # of each, on the host; [] unless they are kept


@dataclasses.dataclass(kw_only=True)
class ParallelRuns:
    """Runs of a task, K of them, that share compiled programs.

    Recipes of one program are trained side by side. Runs that take batches from one
    stream share them.

    Attributes:
        task: what is trained.
        recipes: [K].
        memory_limit: as `train_many` takes it.
        devices: as `train_many` takes them.
    """

    task: Task
    recipes: Sequence[Recipe]
    memory_limit: float | None = None
    devices: Sequence[jax.Device] | None = None
    # (first run, number of runs and of streams) -> program, runs side by side
    _sized: dict[tuple[int, int, int], tuple[Program, int]] = dataclasses.field(
        default_factory=dict, init=False
    )

    def stream_of(self, run: int) -> int:
        """Returns the name of the stream that a run takes batches from: its seed."""
        return self.recipes[run].seed

    def open_stream(self, name: int, longest: Recipe) -> Iterable[Batch]:
        """Returns the batches of a stream, which the longest of its runs needs."""
        return self.task.batches(longest)

    @functools.cached_property
    def evaluations(self) -> Sequence[Sequence[Batch]]:
        """Lists of batches; the loss over each list is computed for all runs."""
        return [self.task.held_out] if self.task.held_out else []

    def train_to(
        self,
        runs: Sequence[int],
        until: int,
        states: Mapping[int, VmapState] = _NONE,
        *,
        params: Mapping[int, PyTree] = _NONE,
        keeps_states: bool = False,
    ) -> Iterator[Group]:
        """Trains runs up to a step, and yields each group when it has arrived there.

        Args:
            runs: numbers of the runs to train.
            until: a step; shorter runs are trained to their ends.
            states: of runs, all at one step; runs that are not in it start.
            params: initial parameters of runs, if they are not those of the task.
            keeps_states: whether groups contain the states of their runs.
        """
        for varied in self._programs:
            chosen = [i for i in varied if i in runs]
            if not chosen:
                continue
            start = functools.partial(
                self.start, varied=varied, states=states, params=params
            )
            program, width = self._program_and_width(chosen, start)
            for first in range(0, len(chosen), width):
                group = chosen[first : first + width]
                n = len(group)
                # All groups have one size, so that all are one program.
                cohort = start(program, group + group[:1] * (width - n))
                losses = cohort.advance(min(until, cohort.longest))
                sums = np.array([cohort.summed_losses(b) for b in self.evaluations])
                totals, num_items = sums.reshape(-1, 2, width)[:, :, :n].swapaxes(0, 1)
                ended = unstacked(cohort.state, n) if keeps_states else []
                del cohort  # or it would take memory while the next group starts
                yield Group(group, losses[:n], totals, num_items, ended)

    def initial_states(self, runs: Sequence[int]) -> dict[int, VmapState]:
        """Returns runs before their first step, on the host."""
        task = dataclasses.replace(self.task, held_out=())
        starting = dataclasses.replace(self, task=task)
        groups = starting.train_to(runs, 0, keeps_states=True)
        return {i: s for g in groups for i, s in zip(g.runs, g.states, strict=True)}

    @functools.cached_property
    def _programs(self) -> list[dict[int, RunHyperparams]]:
        """For each program its runs, and the numbers in which they differ.

        Of all runs, so that a program is the same whichever are trained now.
        """
        runs_of: dict[Any, list[int]] = {}
        for i, recipe in enumerate(self.recipes):
            runs_of.setdefault(compile_key(recipe), []).append(i)
        return [
            dict(zip(runs, unstacked(varied, len(runs)), strict=True))
            for runs in runs_of.values()
            for varied in [stack_recipes([self.recipes[i] for i in runs])]
        ]

    def start(
        self,
        program: Program,
        chosen: Sequence[int],
        *,
        varied: Mapping[int, RunHyperparams] | Sequence[RunHyperparams],
        states: Mapping[int, VmapState] = _NONE,
        params: Mapping[int, PyTree] = _NONE,
    ) -> Cohort:
        """Returns the chosen runs in their states, or before their first step."""
        recipes = [self.recipes[i] for i in chosen]
        pairs = list(zip(chosen, recipes, strict=True))
        names = [self.stream_of(i) for i in chosen]
        # The longest run of a stream decides how many batches there must be.
        by_length = sorted(pairs, key=lambda pair: pair[1].max_steps)
        longest = {self.stream_of(i): recipe for i, recipe in by_length}
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        stream = jnp.asarray([numbers[name] for name in names], jnp.int32)
        step = 0
        if chosen[0] in states:
            state = stacked([states[i] for i in chosen])
            step = int(np.max(state.state.step))
            # In a new group the stream of a run may have another number.
            state = dataclasses.replace(state, stream=stream)
            # Sharded as a step returns it, or the first step would be compiled
            # separately.
            state = jax.device_put(state, program.over_runs)
        else:
            init = functools.cache(self.task.init)
            trees = [params[i] if i in params else init(r.seed) for i, r in pairs]
            state = program.start(
                stacked(trees),
                stacked([varied[i] for i in chosen]),
                jnp.asarray([recipe.seed for recipe in recipes], jnp.uint32),
                stream,
                jnp.asarray([recipe.max_steps for recipe in recipes], jnp.int32),
            )
        streams = [
            _repeat_last(self.open_stream(name, longest[name]), longest[name])
            for name in numbers
        ]
        rest = [itertools.islice(batches, step, None) for batches in streams]
        return Cohort(program, recipes, state, rest, step)

    def _program_and_width(
        self, runs: Sequence[int], start: Callable[[Program, Sequence[int]], Cohort]
    ) -> tuple[Program, int]:
        """Returns the program of some runs, and how many of them are side by side.

        Groups have one size, a multiple of the devices.

        Raises:
            ValueError: if there are no devices, or the limit is below what one run on
                each device needs.
        """
        num_streams = len(set(map(self.stream_of, runs)))
        key = (runs[0], len(runs), num_streams)
        if key in self._sized:
            return self._sized[key]
        devices = jax.local_devices() if self.devices is None else self.devices
        if not devices:
            raise ValueError(
                "`devices` must name at least one device, got none. Leave it out for "
                "all of this process."
            )
        program = make_program(self.task, self.recipes[runs[0]], devices[: len(runs)])
        limit, most = self.memory_limit, len(runs)
        if limit is None:  # CPUs have no limit of their own
            of_device = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
            limit = None if of_device is None else _OF_A_DEVICE * of_device
        if limit is not None:
            _checks.positive("memory_limit", limit)
            one = start(program, [runs[0]] * program.num_devices)
            measured = [batches[0] for batches in self.evaluations[:1]]
            most = _most_within(limit, one, most, num_streams, measured)
        size = -(-len(runs) // -(-len(runs) // most))
        width = _rounded_up(size, program.num_devices)
        self._sized[key] = program, width
        return program, width


def _repeat_last(batches: Iterable[Batch], recipe: Recipe) -> Iterator[Batch]:
    """Repeats the last batch of a stream that ends with its run: others may go on."""
    batch, num_batches = None, 0
    for batch in batches:
        num_batches += 1
        yield batch
    while num_batches >= recipe.max_steps:
        yield batch


def _most_within(
    limit: float,
    one: Cohort,
    most: int,
    num_streams: int,
    evaluated: Sequence[Batch],
) -> int:
    """Returns the most runs, up to `most`, whose compiled steps fit into memory.

    The step and the evaluation are compiled for a guess, and their `memory_analysis`
    gives the next one.

    Args:
        limit: bytes on each device.
        one: a run on each device, before the first step.
        most: how many there are.
        num_streams: of batches, with all runs.
        evaluated: a batch to evaluate on, or none.
    """
    program: Any = one.program
    batches = _resized(one.next_batches(), num_streams, None)
    while True:
        num_runs = _rounded_up(most, program.num_devices)
        state = _resized(one.state, num_runs, program.over_runs)
        lowered = [program.step.lower(state, batches)]
        lowered += [program.evaluate.lower(state.state.params, x) for x in evaluated]
        needed = max(_bytes_of(each.compile().memory_analysis()) for each in lowered)
        if needed <= limit:
            return most
        if most <= program.num_devices:
            raise ValueError(
                f"`memory_limit` must be at least {needed:,} bytes, which one run "
                f"needs on a device, got {limit:,.0f}. Give more, or take a smaller "
                "model or batch."
            )
        most = max(program.num_devices, min(most - 1, int(most * limit / needed)))


def _resized(tree: PyTree, size: int, sharding: Sharding | None) -> Any:
    """Returns the shapes of arrays whose first axis has another size."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            (size, *x.shape[1:]), x.dtype, sharding=sharding
        ),
        tree,
    )


def _rounded_up(number: int, divisor: int) -> int:
    return -(-number // divisor) * divisor


def _bytes_of(analysis: Any) -> int:
    new = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return analysis.argument_size_in_bytes + analysis.temp_size_in_bytes + new
