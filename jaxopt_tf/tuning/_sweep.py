"""sweep: a grid or a random search, side by side, halved if asked, and resumable."""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import rich.table

from .. import _checks
from ..recipes import Recipe
from ._groups import Group, train_to
from ._space import Over, recipes_to_try
from ._sweep_folder import forgotten, kept_in
from ._task import Task
from ._trials import Trial, best_of, table_of, trial


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Attributes:
        recipes: of each run.
        over: the fields that were varied.
        trials: every run at every step at which runs were compared.
    """

    recipes: tuple[Recipe, ...]
    over: tuple[str, ...]
    trials: tuple[Trial, ...]

    @property
    def last(self) -> tuple[Trial, ...]:
        """Each run where it was seen last, by its number."""
        return tuple({trial.run: trial for trial in self.trials}[i] for i in self._runs)

    @property
    def best_recipe(self) -> Recipe:
        """The recipe of the lowest loss among the runs that were trained to their end.

        Of all runs, where each of these diverged.

        Raises:
            ValueError: if all diverged.
        """
        return self.recipes[best_of(self.last, self.recipes).run]

    def table(self, *, most: int | None = None) -> rich.table.Table:
        """What differs between the runs, and what they came to; the best first.

        Args:
            most: rows; None for all.
        """
        return table_of(self.recipes, self.last, most)

    @property
    def _runs(self) -> range:
        return range(len(self.recipes))


def sweep(
    task: Task,
    recipe: Recipe,
    over: Over,
    *,
    num_samples: int | None = None,
    halving: int | None = None,
    folder: Path | str | None = None,
    seed: int = 0,
    memory_limit: float | None = None,
    devices: Sequence[jax.Device] | None = None,
    report: Callable[[str], None] | None = None,
) -> Sweep:
    """Tries many recipes, and says which one trains best.

    Runs are trained side by side, as by `train_many`. What is finished is kept as it
    comes, so that a sweep that was killed goes on with the rest.

    Args:
        task: what is trained, and on which data.
        recipe: all that is not in `over`.
        over: by field of a recipe the values to try; in a random search a `Between`,
            too.
        num_samples: recipes to draw at random; None for every combination.
        halving: successive halving: runs are compared at steps that are so many times
            apart, the last being `max_steps`, and only the better one in so many goes
            on; at least 2. None to train all to their end. It compares runs in the
            middle of their schedules.
        folder: where results are kept: `sweep.jsonl`, a line for each trial, and a
            checkpoint of the runs that are to go on. One that holds this very sweep is
            gone on with. None to keep nothing.
        seed: of the random search.
        memory_limit: as for `train_many`.
        devices: as for `train_many`.
        report: is told of each group of runs that has come to a step, in one line.

    Returns:
        Every run, how far it was trained, and its losses.

    Raises:
        ValueError, TypeError: if a field is none of a recipe's or has no values, bounds
            are the wrong way round, runs to be halved differ in length, or `folder`
            holds another sweep.

    Source: Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and
        Hyperparameter Optimization", 2016, for successive halving.
    """
    recipes = recipes_to_try(recipe, over, num_samples=num_samples, seed=seed)
    steps = _steps(recipes, halving)
    with contextlib.ExitStack() as stack:
        kept = forgotten()
        if folder is not None:
            kept = stack.enter_context(kept_in(folder, task, recipes, steps))
        trials, states = list(kept.trials), dict(kept.states)
        alive: Sequence[int] = range(len(recipes))
        for step in steps:
            done = {t.run for t in trials if t.step == _end(recipes[t.run], step)}
            left = [i for i in alive if i not in done]
            for group in train_to(
                task, recipes, left, step, states, memory_limit, devices
            ):
                new = _trials(task, recipes, group, step, trials)
                trials += new
                if step < steps[-1]:
                    states |= dict(zip(group.runs, group.ended, strict=True))
                kept.keep(trials, states)
                if report is not None:
                    report(_told(new, len(alive), step))
            alive = _better(alive, trials, halving) if step < steps[-1] else alive
            states = {i: states[i] for i in alive if i in states}
    return Sweep(recipes, tuple(over), tuple(trials))


def _steps(recipes: Sequence[Recipe], halving: int | None) -> tuple[int, ...]:
    """Where runs are compared; the last is where all that are left end."""
    longest = max(recipe.max_steps for recipe in recipes)
    if halving is None:
        return (longest,)
    halving = _checks.whole_number("halving", halving, least=2)
    if any(recipe.max_steps != longest for recipe in recipes):
        raise ValueError(
            "`halving` must be of runs of one length, but `over` varies `max_steps`. "
            "Leave one of them out."
        )
    steps, num_runs = [longest], len(recipes)
    while num_runs > 1 and steps[0] > 1:
        steps.insert(0, -(-steps[0] // halving))
        num_runs = -(-num_runs // halving)
    return tuple(steps)


def _end(recipe: Recipe, step: int) -> int:
    return min(step, recipe.max_steps)


def _trials(
    task: Task,
    recipes: Sequence[Recipe],
    group: Group,
    step: int,
    before: Sequence[Trial],
) -> list[Trial]:
    first_losses = {trial.run: trial.first_loss for trial in before}
    found = []
    for row, i in enumerate(group.runs):
        end = _end(recipes[i], step)
        # A run that ends before others has nothing but NaN after its end.
        losses = group.losses[row][: end if i not in first_losses else None]
        first_loss = first_losses.get(i, float(losses[0]))
        held_out = float(group.held_out[row]) if task.held_out else None
        found.append(trial(i, end, first_loss, losses, held_out))
    return found


def _better(
    alive: Sequence[int], trials: Sequence[Trial], halving: int | None
) -> list[int]:
    """The better one in so many, and none that diverged."""
    assert halving is not None  # or there would be one step only
    last = {trial.run: trial.compared for trial in trials}
    ordered = sorted(alive, key=lambda i: (last[i], i))
    num_kept = -(-len(alive) // halving)
    return sorted(i for i in ordered[:num_kept] if math.isfinite(last[i]))


def _told(new: Sequence[Trial], num_alive: int, step: int) -> str:
    best = min(new, key=lambda trial: trial.compared)
    told = f"{len(new)} of {num_alive} runs have come to step {step:,}; "
    if math.isinf(best.compared):
        return f"{told}all of them diverged"
    return f"{told}the best, number {best.run}, to a loss of {best.compared:.4g}"
