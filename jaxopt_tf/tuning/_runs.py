"""Losses of many runs: as they are compared, as a table, and `train_many`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
import rich.table

from ..recipes import Recipe, recipe_settings
from ._parallel_runs import Group, ParallelRuns
from ._task import Task


class Trial(NamedTuple):
    """Losses of a run at a step."""

    run: int  # number of its recipe
    step: int  # updates that were made
    first_loss: float  # of the first batch, before any update
    loss: float  # mean training loss of the last tenth of the steps; inf: diverged
    held_out: float | None  # evaluation loss; inf: diverged; None without evaluation

    @property
    def compared(self) -> float:
        """The loss by which runs are compared: `held_out`, or else `loss`."""
        return self.loss if self.held_out is None else self.held_out


class Comparison:
    """Runs of several recipes, compared by their losses."""

    recipes: tuple[Recipe, ...]
    trials: tuple[Trial, ...]

    @property
    def last(self) -> tuple[Trial, ...]:
        """The last trial of each run, by its number."""
        by_run = {trial.run: trial for trial in self.trials}
        return tuple(by_run[i] for i in range(len(self.recipes)))

    @property
    def lowest(self) -> Trial | None:
        """The lowest loss, of runs at their end if one of them is finite.

        None if all diverged.
        """
        finite = [trial for trial in self.last if math.isfinite(trial.compared)]
        ended = [trial for trial in finite if self.is_ended(trial)]
        return min(ended or finite, key=lambda trial: trial.compared, default=None)

    @property
    def best(self) -> int:
        """The number of the run of `best_recipe`.

        Raises:
            ValueError: if all diverged.
        """
        if self.lowest is not None:
            return self.lowest.run
        num = len(self.recipes)
        rate = min(recipe.learning_rate for recipe in self.recipes)
        raise ValueError(
            "`recipes` must have a run that stays finite, but "
            f"{f'all {num}' if num > 1 else 'the only one'} diverged; the smallest "
            f"`learning_rate` tried was {rate:g}. Try smaller ones."
        )

    @property
    def best_recipe(self) -> Recipe:
        """The recipe of the lowest loss among the runs that were trained to their end.

        Of all runs, if each of these diverged.

        Raises:
            ValueError: if all diverged.
        """
        return self.recipes[self.best]

    def is_ended(self, trial: Trial) -> bool:
        """Returns True for a run that was trained to its end."""
        return trial.step == self.recipes[trial.run].max_steps

    def table(self, *, most: int | None = None) -> rich.table.Table:
        """Returns the settings in which runs differ and their losses, the best first.

        Args:
            most: rows; None for all.
        """
        names = differing(self.recipes)
        has_evaluation = any(trial.held_out is not None for trial in self.last)
        losses = ["training loss", *(["evaluation loss"] if has_evaluation else [])]
        table = rich.table.Table(*names, "steps", *losses)
        has_one_length = len({recipe.max_steps for recipe in self.recipes}) == 1
        ordered = sorted(
            self.last,
            # Runs that were trained further come first: the others were left behind.
            key=lambda trial: (-trial.step if has_one_length else 0, trial.compared),
        )
        for trial in ordered[:most]:
            settings = recipe_settings(self.recipes[trial.run])
            columns = [_shown(settings[name]) for name in names]
            columns += [f"{trial.step:,}", shown_loss(trial.loss)]
            columns += [shown_loss(trial.compared)] if has_evaluation else []
            table.add_row(*columns)
        return table


@dataclass(frozen=True)
class Runs(Comparison):
    """Losses of many runs; K runs, N steps of the longest.

    Attributes:
        recipes: of each run.
        losses: [K, N], float32: the training loss of each step, before its update; NaN
            after the end of a run, and from the first step that was not finite.
        held_out: [K], float64: the evaluation loss at the end; None if the task has no
            evaluation batches.
    """

    recipes: tuple[Recipe, ...]
    losses: np.ndarray
    held_out: np.ndarray | None

    @property
    def trials(self) -> tuple[Trial, ...]:  # type: ignore[override]
        """The runs at their ends."""
        evaluated = (
            [None] * len(self.recipes) if self.held_out is None else self.held_out
        )
        return tuple(
            trial(i, recipe.max_steps, losses[0], losses[: recipe.max_steps], held_out)
            for i, (recipe, losses, held_out) in enumerate(
                zip(self.recipes, self.losses, evaluated, strict=True)
            )
        )

    @property
    def final(self) -> np.ndarray:
        """[K], float64: the loss by which runs are compared; infinite if they diverged.

        The evaluation loss; without one, the mean training loss of a run's last tenth.
        """
        return np.array([trial.compared for trial in self.trials])

    @property
    def diverged(self) -> np.ndarray:
        """[K], bool: not finite at a step, or at the end above twice the first loss."""
        return np.isinf(self.final)


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
    held_out = np.full(len(recipes), np.nan)
    runs = ParallelRuns(
        task=task, recipes=recipes, memory_limit=memory_limit, devices=devices
    )
    for group in runs.train_to(range(len(recipes)), longest):
        losses[group.runs, : group.losses.shape[1]] = group.losses
        held_out[group.runs] = evaluation_losses(group)
    return Runs(recipes, losses, held_out if task.held_out else None)


def evaluation_losses(group: Group) -> Sequence[float | None]:
    """Returns the evaluation loss of each run, [n]; None without evaluation batches.

    Raises:
        ValueError: if the batches have no items.
    """
    if not group.num_items.all():
        raise ValueError(
            "`held_out` must have items to take a mean over, got none. Give more "
            "batches; or are all labels ignored?"
        )
    means: list[list[float]] = (group.totals / group.num_items).tolist()
    return means[0] if means else [None] * len(group.runs)


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
        held_out: evaluation loss; None without one.
    """
    first_loss = float(first_loss)
    loss = float(np.mean(losses[-max(1, step // 10) :], dtype=np.float64))
    held_out = None if held_out is None else float(held_out)
    compared = loss if held_out is None else held_out
    if math.isnan(loss) or not compared <= first_loss + abs(first_loss):
        loss, held_out = math.inf, None if held_out is None else math.inf
    return Trial(run, step, first_loss, loss, held_out)


def differing(recipes: Sequence[Recipe]) -> list[str]:
    """Returns the fields in which recipes differ."""
    settings = [recipe_settings(recipe) for recipe in recipes]
    first = settings[0]
    return [name for name in first if any(of[name] != first[name] for of in settings)]


def shown_loss(loss: float) -> str:
    """Returns a loss as tables show it."""
    return "diverged" if math.isinf(loss) else f"{loss:.4g}"


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
