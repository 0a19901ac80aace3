"""Groups of runs: as many side by side as fit, one group after the other."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..recipes import Recipe, Varied, same_program, vary
from . import _cohort
from ._memory import at_most, side_by_side
from ._program import Carried, Program, make_program
from ._task import Task


class Group(NamedTuple):
    """Runs that were trained side by side, and have come to where they were to."""

    runs: list[int]  # their numbers, n of them
    losses: np.ndarray  # [n, steps that were taken now], float32
    held_out: np.ndarray  # [n], float64; NaN where there are no held-out batches
    ended: list[Carried]  # where each stands, on the host; [] of runs at their end


def train_to(
    task: Task,
    recipes: Sequence[Recipe],
    numbers: Sequence[int],
    until: int,
    states: Mapping[int, Carried],
    memory_limit: float | None,
    devices: Sequence[jax.Device] | None,
) -> Iterator[Group]:
    """Trains runs up to a step, and gives each group when it is there.

    Args:
        task: what is trained.
        recipes: of all runs, those included that are not trained now.
        numbers: of the runs to train.
        until: a step; runs that end before end there.
        states: where runs stand, all at one step; those that are not in it start.
        memory_limit: as for `train_many`.
        devices: as for `train_many`.
    """
    for runs, program, make in _programs(task, recipes, numbers, states, devices):
        num_streams = len({recipes[i].seed for i in runs})
        width = side_by_side(
            program, make, runs, num_streams, memory_limit, task.held_out[:1]
        )
        for first in range(0, len(runs), width):
            chosen = runs[first : first + width]
            # All groups have one size, so that all are one program.
            cohort = make(chosen + chosen[:1] * (width - len(chosen)))
            losses = _cohort.advance(cohort, min(until, _longest(cohort)))
            held_out = np.full(width, np.nan)
            if task.held_out:
                held_out = _cohort.held_out_losses(cohort, task.held_out)
            n, ended = len(chosen), []
            if until < _longest(cohort):
                ended = _cohort.unstacked(cohort.carried, n)
            del cohort  # or it would take memory while the next group begins
            yield Group(chosen, losses[:n], held_out[:n], ended)


def _cohort_of(
    task: Task,
    program: Program,
    recipes: Sequence[Recipe],
    varied: Mapping[int, Varied],
    states: Mapping[int, Carried],
    chosen: Sequence[int],
) -> _cohort.Cohort:
    """The chosen runs where they stand, or before their first step."""
    own = [recipes[i] for i in chosen]
    if chosen[0] not in states:
        return _cohort.begin(
            program,
            own,
            _cohort.stacked([varied[i] for i in chosen]),
            _cohort.first_params(task, own),
            *_cohort.seed_streams(task, own),
        )
    carried = _cohort.stacked([states[i] for i in chosen])
    step = int(np.max(carried.state.step))
    streams, stream = _cohort.seed_streams(task, own, skip=step)
    # Among others than before, a run's stream may have another number.
    carried = dataclasses.replace(carried, stream=jnp.asarray(stream, jnp.int32))
    # As a step leaves it, or the first one would be a program of its own.
    carried = jax.device_put(carried, program.over_runs)
    return _cohort.Cohort(program, tuple(own), carried, streams, step)


def at_start(
    task: Task, recipes: Sequence[Recipe], runs: Sequence[int]
) -> dict[int, Carried]:
    """Where these runs stand before their first step, on the host."""
    states: dict[int, Carried] = {}
    one = jax.local_devices()[:1]
    for chosen, _, make in _programs(task, recipes, runs, {}, one):
        start = _cohort.unstacked(make(chosen).carried, len(chosen))
        states |= dict(zip(chosen, start, strict=True))
    return states


def _programs(
    task: Task,
    recipes: Sequence[Recipe],
    numbers: Sequence[int],
    states: Mapping[int, Carried],
    devices: Sequence[jax.Device] | None,
) -> Iterator[tuple[list[int], Program, Callable[[Sequence[int]], _cohort.Cohort]]]:
    """Each program with those of the runs that are its own, and what starts them."""
    for members in by_program(recipes):
        runs = [i for i in members if i in numbers]
        if runs:
            # Of all, so that a program is the same whoever of them is trained now.
            own = _cohort.unstacked(vary([recipes[i] for i in members]), len(members))
            varied = dict(zip(members, own, strict=True))
            program = make_program(task, recipes[runs[0]], at_most(devices, len(runs)))
            yield (
                runs,
                program,
                functools.partial(_cohort_of, task, program, recipes, varied, states),
            )


def _longest(cohort: _cohort.Cohort) -> int:
    return max(recipe.max_steps for recipe in cohort.recipes)


def by_program(recipes: Sequence[Recipe]) -> list[list[int]]:
    """The numbers of the recipes, those of one program together."""
    groups: dict = {}
    for i, recipe in enumerate(recipes):
        groups.setdefault(same_program(recipe), []).append(i)
    return list(groups.values())
