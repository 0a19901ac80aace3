"""train_many: runs of one task, side by side, as many as fit at once."""

import functools
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from ..recipes import Recipe, Varied, same_program, vary
from . import _cohort
from ._memory import at_most, side_by_side
from ._program import Program, make_program
from ._runs import Runs
from ._task import Task


def train_many(
    task: Task,
    recipes: Sequence[Recipe],
    *,
    memory_limit: float | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Runs:
    """Trains one run for each recipe, many at once in one compiled program.

    Recipes may differ in everything that decides the rate, in decay, betas, epsilon,
    clipping and seed without another program: these numbers are handed to it. What
    differs in another field, the optimizer or the batch size, is a program of its own,
    and these follow one after the other. Each run is what `make_train_step` would have
    made of it alone, but for the roundings of a batched product; runs of one seed see
    the same batches. One that is no longer finite stays as it was and stops nobody.

    Args:
        task: what is trained, and on which data.
        recipes: K of them.
        memory_limit: bytes that the runs may take on each device, see below; None for
            90 % of what a device says that it has. CPUs do not say: there is no limit
            then. Runs that do not fit side by side follow in groups of one size.
        devices: that the runs are divided among; None for all that this process has.

    Returns:
        Losses by run and step, and what they come to.

    Raises:
        ValueError, TypeError: if there are no recipes, a metric drives a schedule,
            batches end too early, or not even one run fits into the memory.
    """
    recipes = checked(recipes)
    num_steps = max(recipe.max_steps for recipe in recipes)
    losses = np.full((len(recipes), num_steps), np.nan, np.float32)
    held_out = np.full(len(recipes), np.nan) if task.held_out else None
    for finished in trained(task, recipes, memory_limit, devices):
        for i, of_run, at_end in finished:
            losses[i, : len(of_run)] = of_run
            if held_out is not None:
                held_out[i] = at_end
    return Runs(recipes, losses, held_out)


def trained(
    task: Task,
    recipes: Sequence[Recipe],
    memory_limit: float | None,
    devices: Sequence[jax.Device] | None,
) -> Iterator[list[tuple[int, np.ndarray, float]]]:
    """Trains, and gives of each group at its end: (number, losses, held-out loss)."""
    for numbers in by_program(recipes):
        of_program = [recipes[i] for i in numbers]
        varied = vary(of_program)
        program = make_program(task, of_program[0], at_most(devices, len(numbers)))
        make = functools.partial(started, task, program, of_program, varied)
        num_streams = len({recipe.seed for recipe in of_program})
        width = side_by_side(
            program, make, range(len(numbers)), num_streams, memory_limit
        )
        for first in range(0, len(numbers), width):
            chosen = list(range(first, min(first + width, len(numbers))))
            # All groups have one size, so that all are one program.
            filled = chosen + [chosen[0]] * (width - len(chosen))
            cohort = started(task, program, of_program, varied, filled)
            losses = _cohort.advance(cohort, max(r.max_steps for r in cohort.recipes))
            at_end = np.full(width, np.nan)
            if task.held_out:
                at_end = _cohort.held_out_losses(cohort, task.held_out)
            yield [
                (numbers[i], losses[row, : of_program[i].max_steps], float(at_end[row]))
                for row, i in enumerate(chosen)
            ]


def started(
    task: Task,
    program: Program,
    recipes: Sequence[Recipe],
    varied: Varied,
    chosen: Sequence[int],
) -> _cohort.Cohort:
    """The chosen runs of a program, before their first step."""
    own = [recipes[i] for i in chosen]
    return _cohort.begin(
        program,
        own,
        rows(varied, chosen),
        _cohort.first_params(task, own),
        *_cohort.seed_streams(task, own),
    )


def rows(varied: Varied, chosen: Sequence[int]) -> Varied:
    """The numbers of these runs."""
    return jax.tree.map(lambda leaf: leaf[np.asarray(chosen)], varied)


def by_program(recipes: Sequence[Recipe]) -> list[list[int]]:
    """The numbers of the recipes, those of one program together."""
    groups: dict = {}
    for i, recipe in enumerate(recipes):
        groups.setdefault(same_program(recipe), []).append(i)
    return list(groups.values())


def checked(recipes: Sequence[Recipe]) -> tuple[Recipe, ...]:
    """The recipes as a tuple; raises unless there are some, and nothing else."""
    recipes = tuple(recipes)
    if not recipes:
        raise ValueError(
            "`recipes` must hold at least one recipe, got none. Give one for each run."
        )
    for recipe in recipes:
        if not isinstance(recipe, Recipe):
            raise TypeError(f"`recipes` must hold `Recipe`s, got {recipe!r}.")
    return recipes
