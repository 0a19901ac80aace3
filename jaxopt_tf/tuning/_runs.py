"""Training of many runs, and comparison of their losses."""

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

    run: int  # index of the recipe
    step: int  # number of updates
    first_loss: float  # loss of the first batch, before the first update
    loss: float  # mean training loss of the last tenth of the steps; inf: diverged
    eval_loss: float | None  # evaluation loss; inf: diverged; None without evaluation

    @property
    def objective(self) -> float:
        """The loss by which runs are compared: `eval_loss`, or `loss` without it."""
        return self.loss if self.eval_loss is None else self.eval_loss


class Comparison:
    """Comparison of runs of several recipes by their losses."""

    recipes: tuple[Recipe, ...]
    trials: tuple[Trial, ...]  # results of the runs, one or more per recipe

    @property
    def final_trials(self) -> tuple[Trial, ...]:
        """The last trial of each run, in the order of the recipes."""
        by_run = {trial.run: trial for trial in self.trials}
        return tuple(by_run[i] for i in range(len(self.recipes)))

    @property
    def lowest(self) -> Trial | None:
        """The last trial with the lowest loss; None if all runs diverged.

        Runs that were trained to their end take precedence over others.
        """
        finite = [
            trial for trial in self.final_trials if math.isfinite(trial.objective)
        ]
        ended = [trial for trial in finite if self.is_ended(trial)]
        return min(ended or finite, key=lambda trial: trial.objective, default=None)

    @property
    def best(self) -> int:
        """The index of the run of `best_recipe`.

        Raises:
            ValueError: if all runs diverged.
        """
        if self.lowest is not None:
            return self.lowest.run
        num_runs = len(self.recipes)
        rate = min(recipe.learning_rate for recipe in self.recipes)
        raise ValueError(
            "`recipes` must have a run that stays finite, but "
            f"{f'all {num_runs}' if num_runs > 1 else 'the only one'} diverged; the "
            f"smallest `learning_rate` tried was {rate:g}. Try smaller ones."
        )

    @property
    def best_recipe(self) -> Recipe:
        """The recipe with the lowest loss among the runs that were trained to the end.

        If all of these diverged, it is the recipe with the lowest loss among all runs.

        Raises:
            ValueError: if all runs diverged.
        """
        return self.recipes[self.best]

    def is_ended(self, trial: Trial) -> bool:
        """Returns True if the run was trained to its end."""
        return trial.step == self.recipes[trial.run].max_steps

    def table(self, *, max_rows: int | None = None) -> rich.table.Table:
        """Returns a table of the runs, sorted by their losses.

        Its columns are the settings in which runs differ, and the losses.

        Args:
            max_rows: maximum number of rows; None for all.
        """
        names = differing(self.recipes)
        has_evaluation = any(trial.eval_loss is not None for trial in self.final_trials)
        losses = ["training loss", *(["evaluation loss"] if has_evaluation else [])]
        table = rich.table.Table(*names, "steps", *losses)
        has_one_length = len({recipe.max_steps for recipe in self.recipes}) == 1
        ordered = sorted(
            self.final_trials,
            # Runs with more steps come first: successive halving dropped the others.
            key=lambda trial: (-trial.step if has_one_length else 0, trial.objective),
        )
        for trial in ordered[:max_rows]:
            settings = recipe_settings(self.recipes[trial.run])
            columns = [_format_value(settings[name]) for name in names]
            columns += [f"{trial.step:,}", format_loss(trial.loss)]
            columns += [format_loss(trial.objective)] if has_evaluation else []
            table.add_row(*columns)
        return table


@dataclass(frozen=True)
class Runs(Comparison):
    """Losses of K runs, of which the longest has N steps.

    Attributes:
        recipes: [K], recipe of each run.
        losses: [K, N], float32: training loss of each step, before its update; NaN
            after the end of a run, and from the first loss on that is not finite.
        eval_loss: [K], float64: evaluation loss at the end; None if the task has no
            evaluation batches.
    """

    recipes: tuple[Recipe, ...]
    losses: np.ndarray
    eval_loss: np.ndarray | None

    @property
    def trials(self) -> tuple[Trial, ...]:  # type: ignore[override]  # was a field
        """Trials of the runs at their last steps."""
        evaluated = (
            [None] * len(self.recipes) if self.eval_loss is None else self.eval_loss
        )
        return tuple(
            make_trial(
                i, recipe.max_steps, losses[0], losses[: recipe.max_steps], eval_loss
            )
            for i, (recipe, losses, eval_loss) in enumerate(
                zip(self.recipes, self.losses, evaluated, strict=True)
            )
        )

    @property
    def final(self) -> np.ndarray:
        """[K], float64: loss by which runs are compared; infinite if a run diverged.

        It is the evaluation loss, or without evaluation batches the mean training loss
        of the last tenth of the steps.
        """
        return np.array([trial.objective for trial in self.trials])

    @property
    def diverged(self) -> np.ndarray:
        """[K], bool: True if a loss is not finite, or the final one too large.

        The final loss is too large if it is more than twice the first one.
        """
        return np.isinf(self.final)


def train_many(
    task: Task,
    recipes: Sequence[Recipe],
    *,
    memory_limit: float | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Runs:
    """Trains one run for each recipe, many in parallel in one compiled program.

    Recipes of one program may differ in the learning rate and its schedule, and in
    decay, betas, epsilon, clipping and seed: these are arguments of the program.
    Recipes that differ in other fields, such as the optimizer or the batch size, have
    separate programs, which run one after another. Each run is equal to that of
    `make_train_step`, up to the rounding of batched matrix products. Runs of one seed
    have the same batches. A run that is not finite keeps its state and does not affect
    the others.

    Args:
        task: loss, initial parameters and data of the runs.
        recipes: K recipes.
        memory_limit: bytes of memory for the runs on each device; None for 90 % of the
            device's memory, and no limit on CPUs. Runs that do not fit at once are
            trained in groups of equal size.
        devices: devices over which the runs are sharded; None for all local devices.

    Returns:
        Losses by run and step.

    Raises:
        ValueError: if there are no recipes, a schedule is metric-driven, there are too
            few batches, or one run does not fit into memory.
        TypeError: if `recipes` contains other objects.
    """
    recipes = tuple(recipes)
    if not recipes:
        raise ValueError(
            "`recipes` must contain at least one recipe, got none. Give one for each "
            "run."
        )
    for recipe in recipes:
        if not isinstance(recipe, Recipe):
            raise TypeError(f"`recipes` must contain `Recipe`s, got {recipe!r}.")
    longest = max(recipe.max_steps for recipe in recipes)
    losses = np.full((len(recipes), longest), np.nan, np.float32)
    eval_loss = np.full(len(recipes), np.nan)
    runs = ParallelRuns(
        task=task, recipes=recipes, memory_limit=memory_limit, devices=devices
    )
    for group in runs.train_to(range(len(recipes)), longest):
        losses[group.runs, : group.losses.shape[1]] = group.losses
        eval_loss[group.runs] = evaluation_losses(group)
    return Runs(recipes, losses, eval_loss if task.eval_batches else None)


def evaluation_losses(group: Group) -> Sequence[float | None]:
    """Returns the evaluation loss of each run, [n]; None without evaluation batches.

    Raises:
        ValueError: if the batches have no items.
    """
    if not group.num_items.all():
        raise ValueError(
            "`eval_batches` must have items to take a mean over, got none. Give more "
            "batches, or check whether all labels are ignored."
        )
    means: list[list[float]] = (group.totals / group.num_items).tolist()
    return means[0] if means else [None] * len(group.runs)


def make_trial(
    run: int, step: int, first_loss: float, losses: np.ndarray, eval_loss: float | None
) -> Trial:
    """Returns the losses of a run at a step.

    A run has diverged if a loss is not finite, or if the loss by which it is compared
    is more than twice the first one. Such a loss may be finite, but is not meaningful.

    Args:
        run: index of the recipe.
        step: number of updates.
        first_loss: loss of the first batch.
        losses: [n], float32: losses of the last steps, at least a tenth of all; NaN
            from the first loss on that is not finite.
        eval_loss: evaluation loss; None without one.
    """
    first_loss = float(first_loss)
    loss = float(np.mean(losses[-max(1, step // 10) :], dtype=np.float64))
    eval_loss = None if eval_loss is None else float(eval_loss)
    objective = loss if eval_loss is None else eval_loss
    # The limit is twice the first loss, or 0 if that loss is negative. The negated
    # comparison is also True for NaN.
    if math.isnan(loss) or not objective <= first_loss + abs(first_loss):
        loss, eval_loss = math.inf, None if eval_loss is None else math.inf
    return Trial(run, step, first_loss, loss, eval_loss)


def differing(recipes: Sequence[Recipe]) -> list[str]:
    """Returns the names of the fields in which recipes differ."""
    settings = [recipe_settings(recipe) for recipe in recipes]
    first = settings[0]
    return [
        name
        for name in first
        if any(fields[name] != first[name] for fields in settings)
    ]


def format_loss(loss: float) -> str:
    """Returns a loss as text, for tables."""
    return "diverged" if math.isinf(loss) else f"{loss:.4g}"


def _format_value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
