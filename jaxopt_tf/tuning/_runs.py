"""Losses of many runs: as they are compared, as a table, and `train_many`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
import rich.table

from ..recipes import Recipe, recipe_settings
from ._groups import Limits, train_to
from ._task import Task


class Trial(NamedTuple):
    """Losses of a run at a step."""

    run: int  # number of its recipe
    step: int  # updates that were made
    first_loss: float  # of the first batch, before any update
    loss: float  # mean training loss of the last tenth of the steps; inf: diverged
    held_out: float | None  # inf: diverged; None where there are no held-out batches

    @property
    def compared(self) -> float:
        """The loss by which runs are compared: held out, or else in training."""
        return self.loss if self.held_out is None else self.held_out


@dataclass(frozen=True)
class Runs:
    """Losses of many runs; K runs, N steps of the longest.

    Attributes:
        recipes: of each run.
        losses: [K, N], float32: the training loss of each step, before its update; NaN
            after the end of a run, and from the first step that was not finite.
        held_out: [K], float64: the held-out loss at the end; None if the task has no
            held-out batches.
    """

    recipes: tuple[Recipe, ...]
    losses: np.ndarray
    held_out: np.ndarray | None

    @property
    def trials(self) -> tuple[Trial, ...]:
        """The runs at their ends."""
        return tuple(
            trial(
                i,
                recipe.max_steps,
                float(self.losses[i, 0]),
                self.losses[i, : recipe.max_steps],
                None if self.held_out is None else float(self.held_out[i]),
            )
            for i, recipe in enumerate(self.recipes)
        )

    @property
    def final(self) -> np.ndarray:
        """[K], float64: the loss by which runs are compared; infinite if they diverged.

        The held-out loss; without one, the mean training loss of a run's last tenth.
        """
        return np.array([trial.compared for trial in self.trials])

    @property
    def diverged(self) -> np.ndarray:
        """[K], bool: not finite at a step, or at the end above twice the first loss."""
        return np.isinf(self.final)

    @property
    def best(self) -> int:
        """The number of the run with the lowest final loss.

        Raises:
            ValueError: if all diverged.
        """
        return best_of(self.trials, self.recipes).run

    @property
    def best_recipe(self) -> Recipe:
        """The recipe of the run with the lowest final loss."""
        return self.recipes[self.best]

    def table(self, *, most: int | None = None) -> rich.table.Table:
        """Returns the settings in which runs differ and final losses, the best first.

        Args:
            most: rows; None for all.
        """
        return table_of(self.recipes, self.trials, most)


def train_many(
    task: Task,
    recipes: Sequence[Recipe],
    *,
    memory_limit: float | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Runs:
    """Trains one run for each recipe, many at once in one compiled program.

    Recipes may differ in everything that decides the rate, in decay, betas, epsilon,
    clipping and seed within one program: these numbers are its arguments. Recipes that
    differ in another field, such as the optimizer or the batch size, are programs of
    their own, which run one after another. Each run is the one that `make_train_step`
    trains alone, but for the roundings of a batched product; runs of one seed take the
    same batches. A run that is no longer finite keeps its state, and stops no other.

    Args:
        task: what is trained, and on which data.
        recipes: K of them.
        memory_limit: bytes that the runs may take on each device; None for 90 % of the
            device's memory, and for no limit on CPUs. Runs that do not fit side by side
            follow in groups of one size.
        devices: that the runs are divided among; None for all of this process.

    Returns:
        Losses by run and step.

    Raises:
        ValueError, TypeError: if there are no recipes, a metric drives a schedule,
            batches end too early, or not even one run fits into the memory.
    """
    recipes = tuple(recipes)
    if not recipes:
        raise ValueError(
            "`recipes` must hold at least one recipe, got none. Give one for each run."
        )
    for recipe in recipes:
        if not isinstance(recipe, Recipe):
            raise TypeError(f"`recipes` must hold `Recipe`s, got {recipe!r}.")
    longest = max(recipe.max_steps for recipe in recipes)
    losses = np.full((len(recipes), longest), np.nan, np.float32)
    held_out = np.full(len(recipes), np.nan) if task.held_out else None
    limits, everyone = Limits(memory_limit, devices), range(len(recipes))
    for group in train_to(task, recipes, everyone, longest, {}, limits):
        for row, i in enumerate(group.runs):
            of_run = group.losses[row, : recipes[i].max_steps]
            losses[i, : len(of_run)] = of_run
            if held_out is not None:
                held_out[i] = group.held_out[row]
    return Runs(recipes, losses, held_out)


def trial(
    run: int, step: int, first_loss: float, losses: np.ndarray, held_out: float | None
) -> Trial:
    """Returns the losses of a run at a step.

    A run has diverged if a loss is not finite, or if the loss by which it is compared
    is above twice the first one: such a loss may be finite, but means nothing.

    Args:
        run: number of its recipe.
        step: updates that were made.
        first_loss: of the first batch.
        losses: [n], float32: of its last steps, at least a tenth of all; NaN from the
            first that was not finite.
        held_out: None where there are no held-out batches.
    """
    loss = float(np.mean(losses[-max(1, step // 10) :], dtype=np.float64))
    compared = loss if held_out is None else held_out
    if math.isnan(loss) or not compared <= first_loss + abs(first_loss):
        loss, held_out = math.inf, None if held_out is None else math.inf
    return Trial(run, step, first_loss, loss, held_out)


def lowest(trials: Sequence[Trial], recipes: Sequence[Recipe]) -> Trial | None:
    """Returns the lowest loss, of runs at their end if one of them is finite."""
    finite = [trial for trial in trials if math.isfinite(trial.compared)]
    ended = [trial for trial in finite if is_ended(trial, recipes)]
    return min(ended or finite, key=lambda trial: trial.compared, default=None)


def is_ended(trial: Trial, recipes: Sequence[Recipe]) -> bool:
    """Returns whether the run was trained to its end."""
    return trial.step == recipes[trial.run].max_steps


def best_of(trials: Sequence[Trial], recipes: Sequence[Recipe]) -> Trial:
    """Returns `lowest`.

    Raises:
        ValueError: if all diverged.
    """
    best = lowest(trials, recipes)
    if best is None:
        rate = min(recipes[trial.run].learning_rate for trial in trials)
        all_of_them = f"all {len(trials)}" if len(trials) > 1 else "the only one"
        raise ValueError(
            f"`recipes` must have a run that stays finite, but {all_of_them} diverged; "
            f"the smallest `learning_rate` tried was {rate:g}. Try smaller ones."
        )
    return best


def differing(recipes: Sequence[Recipe]) -> list[str]:
    """Returns the fields in which recipes differ."""
    settings = [recipe_settings(recipe) for recipe in recipes]
    first = settings[0]
    return [name for name in first if any(of[name] != first[name] for of in settings)]


def table_of(
    recipes: Sequence[Recipe], trials: Sequence[Trial], most: int | None = None
) -> rich.table.Table:
    """Returns the settings in which runs differ and their losses; the best first.

    Args:
        recipes: of all runs.
        trials: the last one of each.
        most: rows; None for all.
    """
    names = differing(recipes)
    has_held_out = any(trial.held_out is not None for trial in trials)
    losses = ["training loss", *(["held-out loss"] if has_held_out else [])]
    table = rich.table.Table(*names, "steps", *losses)
    has_one_length = len({recipe.max_steps for recipe in recipes}) == 1
    ordered = sorted(
        trials,
        # Runs that were trained further come first: the others were left behind.
        key=lambda trial: (-trial.step if has_one_length else 0, trial.compared),
    )
    for trial in ordered[:most]:
        settings = recipe_settings(recipes[trial.run])
        shown = [shown_loss(trial.loss)]
        if has_held_out:
            shown.append(shown_loss(trial.compared))
        own = [_shown(settings[name]) for name in names]
        table.add_row(*own, f"{trial.step:,}", *shown)
    return table


def shown_loss(loss: float) -> str:
    """Returns a loss as tables show it."""
    return "diverged" if math.isinf(loss) else f"{loss:.4g}"


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
