"""Groups of runs: as many side by side as fit into memory, one group after another."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from .. import _checks
from ..recipes import Recipe, Varied, same_program, vary
from ..training import Batch
from . import _program
from ._program import Cohort, Program, VmapState
from ._task import Task

# Share of a device's memory that runs may take if no limit is given.
_OF_A_DEVICE = 0.9


class Limits(NamedTuple):
    """Hardware that runs may use, as `train_many` takes it."""

    memory_limit: float | None
    devices: Sequence[jax.Device] | None

    def devices_for(self, num_runs: int) -> Sequence[jax.Device]:
        """Returns the devices, or all of this process; no more than there are runs."""
        devices = jax.local_devices() if self.devices is None else self.devices
        if not devices:
            raise ValueError(
                "`devices` must name at least one device, got none. Leave it out for "
                "all of this process."
            )
        return devices[:num_runs]


class Group(NamedTuple):
    """Runs that were trained side by side up to a step."""

    runs: list[int]  # n: their numbers
    losses: np.ndarray  # [n, steps that were taken now], float32
    held_out: np.ndarray  # [n], float64; NaN where there are no held-out batches
    states: list[VmapState]  # of each, on the host; [] for runs at their end


def train_to(
    task: Task,
    recipes: Sequence[Recipe],
    numbers: Sequence[int],
    until: int,
    states: Mapping[int, VmapState],
    limits: Limits,
) -> Iterator[Group]:
    """Trains runs up to a step, and returns each group when it is there.

    Args:
        task: what is trained.
        recipes: of all runs, those included that are not trained now.
        numbers: of the runs to train.
        until: a step; shorter runs are trained to their ends.
        states: of runs, all at one step; runs that are not in it start.
        limits: of the hardware.
    """
    for runs, program, make in _programs(task, recipes, numbers, states, limits):
        num_streams = len({recipes[i].seed for i in runs})
        width = max_parallel_runs(
            program, make, runs, num_streams, limits, task.held_out[:1]
        )
        for first in range(0, len(runs), width):
            chosen = runs[first : first + width]
            # All groups have one size, so that all are one program.
            cohort = make(chosen + chosen[:1] * (width - len(chosen)))
            losses = cohort.advance(min(until, cohort.longest))
            held_out = np.full(width, np.nan)
            if task.held_out:
                total, num_items = cohort.summed_losses(task.held_out)
                if not num_items.all():
                    raise ValueError(
                        "`held_out` must have items to take a mean over, got none. "
                        "Give more batches; or are all labels ignored?"
                    )
                held_out = total / num_items
            n, is_ended = len(chosen), until >= cohort.longest
            ended = [] if is_ended else _program.unstacked(cohort.state, n)
            del cohort  # or it would take memory while the next group starts
            yield Group(chosen, losses[:n], held_out[:n], ended)


def initial_states(
    task: Task, recipes: Sequence[Recipe], runs: Sequence[int]
) -> dict[int, VmapState]:
    """Returns runs before their first step, on the host."""
    states: dict[int, VmapState] = {}
    limits = Limits(None, jax.local_devices()[:1])
    for chosen, _, make in _programs(task, recipes, runs, {}, limits):
        start = _program.unstacked(make(chosen).state, len(chosen))
        states |= dict(zip(chosen, start, strict=True))
    return states


def max_parallel_runs(
    program: Program,
    make: Callable[[Sequence[int]], Cohort],
    runs: Sequence[int],
    num_streams: int,
    limits: Limits,
    held_out: Sequence[Batch] = (),
) -> int:
    """Returns how many runs are trained side by side, a multiple of the devices.

    Args:
        program: of the runs.
        make: starts the runs of some numbers, to measure them.
        runs: numbers of all.
        num_streams: of batches, with all runs.
        limits: of the hardware.
        held_out: a batch that the runs are evaluated on, if they are.

    Raises:
        ValueError: if the limit is below what one run on each device needs.
    """
    limit = limits.memory_limit
    if limit is None:  # CPUs have no limit of their own
        of_device = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
        limit = None if of_device is None else _OF_A_DEVICE * of_device
    most = len(runs)
    if limit is not None:
        _checks.positive("memory_limit", limit)
        one = make([runs[0]] * program.num_devices)
        most = _most_within(limit, one, num_streams, most, held_out)
    # Groups of one size, each filled up to a multiple of the devices.
    size = -(-len(runs) // -(-len(runs) // most))
    return -(-size // program.num_devices) * program.num_devices


def _programs(
    task: Task,
    recipes: Sequence[Recipe],
    numbers: Sequence[int],
    states: Mapping[int, VmapState],
    limits: Limits,
) -> Iterator[tuple[list[int], Program, Callable[[Sequence[int]], Cohort]]]:
    """Returns each program, its runs of these numbers, and a function to make them."""
    members_of: dict[Any, list[int]] = {}
    for i, recipe in enumerate(recipes):
        members_of.setdefault(same_program(recipe), []).append(i)
    for members in members_of.values():
        runs = [i for i in members if i in numbers]
        if not runs:
            continue
        # Of all members, so that a program is the same whichever are trained now.
        of_each = _program.unstacked(vary([recipes[i] for i in members]), len(members))
        varied = dict(zip(members, of_each, strict=True))
        program = _program.make_program(
            task, recipes[runs[0]], limits.devices_for(len(runs))
        )
        make = functools.partial(_cohort, task, program, recipes, varied, states)
        yield runs, program, make


def _cohort(
    task: Task,
    program: Program,
    recipes: Sequence[Recipe],
    varied: Mapping[int, Varied],
    states: Mapping[int, VmapState],
    chosen: Sequence[int],
) -> Cohort:
    """Returns the chosen runs in their states, or before their first step."""
    own = [recipes[i] for i in chosen]
    if chosen[0] not in states:
        numbers = _program.stacked([varied[i] for i in chosen])
        params, streams = (
            _program.first_params(task, own),
            _program.seed_streams(task, own),
        )
        return _program.begin(program, own, numbers, params, streams)
    state = _program.stacked([states[i] for i in chosen])
    step = int(np.max(state.state.step))
    streams = _program.seed_streams(task, own, skip=step)
    # In a new group the stream of a run may have another number.
    state = dataclasses.replace(state, stream=jnp.asarray(streams.of_run, jnp.int32))
    # Sharded as a step returns it, or the first step would be compiled separately.
    state = jax.device_put(state, program.over_runs)
    return Cohort(program, own, state, streams.streams, step)


def _most_within(
    limit: float,
    one: Cohort,
    num_streams: int,
    num_runs: int,
    held_out: Sequence[Batch],
) -> int:
    """Returns the most runs, up to `num_runs`, whose compiled steps fit into memory.

    The step and the evaluation are compiled for a guess, and their `memory_analysis`
    gives the next one.

    Args:
        limit: bytes on each device.
        one: a run on each device, before the first step.
        num_streams: of batches, with all runs.
        num_runs: how many there are.
        held_out: a batch to evaluate on, or none.
    """
    program, most = one.program, num_runs
    batches = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((num_streams, *x.shape[1:]), x.dtype),
        one.next_batches(),
    )
    step, evaluate = (cast(Any, f) for f in (program.step, program.evaluate))

    def bytes_on_each(num_runs: int) -> int:
        state = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                (num_runs, *leaf.shape[1:]), leaf.dtype, sharding=program.over_runs
            ),
            one.state,
        )
        lowered = [step.lower(state, batches)]
        lowered += [evaluate.lower(state.state.params, batch) for batch in held_out]
        return max(_bytes_of(of.compile().memory_analysis()) for of in lowered)

    while True:
        needed = bytes_on_each(-(-most // program.num_devices) * program.num_devices)
        if needed <= limit:
            return most
        if most <= program.num_devices:
            raise ValueError(
                f"`memory_limit` must be at least {needed:,} bytes, which one run "
                f"needs on a device, got {limit:,.0f}. Give more, or take a smaller "
                "model or batch."
            )
        most = max(program.num_devices, min(most - 1, int(most * limit / needed)))


def _bytes_of(analysis: Any) -> int:
    new = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return analysis.argument_size_in_bytes + analysis.temp_size_in_bytes + new
