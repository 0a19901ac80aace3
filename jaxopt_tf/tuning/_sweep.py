"""Sweeps: grid or random search over recipes, with parallel runs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from .. import _checks, plots
from ..recipes import Recipe, recipe_settings
from ._parallel_runs import Group, ParallelRuns
from ._runs import Comparison, Trial, evaluation_losses, make_trial
from ._space import Over, recipes_to_try
from ._sweep_folder import open_store
from ._task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Sweep(Comparison):
    """Results of a sweep.

    Attributes:
        recipes: recipe of each run.
        over: names of the fields that were varied.
        trials: losses of every run at each step at which runs were compared.
    """

    recipes: tuple[Recipe, ...]
    over: tuple[str, ...]
    trials: tuple[Trial, ...]


def sweep(
    task: Task,
    recipe: Recipe,
    over: Over,
    *,
    num_samples: int | None = None,
    reduction_factor: int | None = None,
    folder: Path | str | None = None,
    seed: int = 0,
    memory_limit: float | None = None,
    devices: Sequence[jax.Device] | None = None,
    report: Callable[[str], None] | None = None,
) -> Sweep:
    """Trains runs with many recipes, and compares their losses.

    Runs are trained in parallel, as by `train_many`. Results are saved after each group
    of runs, so that a sweep that was killed resumes with the remaining runs.

    Args:
        task: loss, initial parameters and data of the runs.
        recipe: recipe with the values of all other fields.
        over: values to try by field of the recipe; in a random search also a `Uniform`.
        num_samples: number of recipes to draw at random; None for every combination.
        reduction_factor: N of successive halving, at least 2. After each round, only
            the best 1/N of the runs continue, and the number of steps is multiplied by
            N; in the last round it is `max_steps`. Runs are then
            compared before the end of their schedules. None trains all runs to their
            end.
        folder: folder for results: `sweep.jsonl`, with a line for each trial, and a
            checkpoint of the runs that continue. If it contains the same sweep, that
            sweep is resumed. None saves nothing.
        seed: seed of the random search.
        memory_limit: as for `train_many`.
        devices: as for `train_many`.
        report: function that is called with a line of text for each group of runs that
            has completed a round.

    Returns:
        The recipes and losses of all runs.

    Raises:
        ValueError: if a field is unknown or has no values, runs of successive halving
            differ in length, or `folder` contains another sweep.
        TypeError: if a value has the wrong type.

    Source: Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and
        Hyperparameter Optimization", 2016, for successive halving.
    """
    recipes = recipes_to_try(recipe, over, num_samples=num_samples, seed=seed)
    steps = _steps(recipes, reduction_factor)
    runs = ParallelRuns(
        task=task, recipes=recipes, memory_limit=memory_limit, devices=devices
    )
    with open_store(folder, runs, steps) as store:
        alive: Sequence[int] = range(len(recipes))
        for step in steps:
            ends = [min(step, recipe.max_steps) for recipe in recipes]
            # Runs that already have a trial at this step, in a resumed sweep, are not
            # trained again.
            done = {
                trial.run for trial in store.trials if trial.step >= ends[trial.run]
            }
            remaining, is_last = [i for i in alive if i not in done], step == steps[-1]
            groups = runs.train_to(
                remaining, step, store.states, keeps_states=not is_last
            )
            for group in groups:
                new = _trials(group, ends, store.trials)
                store.trials += new
                if not is_last:
                    store.states |= dict(zip(group.runs, group.states, strict=True))
                store.save()
                if report is not None:
                    report(_summary(new, len(alive), step))
            if not is_last:
                alive = _best_runs(alive, store.trials, reduction_factor)
            store.states = {i: store.states[i] for i in alive if i in store.states}
        return Sweep(recipes, tuple(over), tuple(store.trials))


def plot_sweep(sweep: Sweep, path: Path | str | None = None) -> "Figure":
    """Plots the loss by which runs were compared, over the fields that were varied.

    A grid of two fields is shown as a heat map. Otherwise there is a panel for each
    field, with a marker for each run. Runs that were dropped by successive halving are
    shown with their last loss, which is a loss after fewer steps.

    Args:
        sweep: results of `sweep`.
        path: file to which the figure is also written, `.png`, `.svg` or `.pdf`; its
            folder must exist.

    Returns:
        The figure, 800 pixels wide.

    Raises:
        ValueError: if no figure can be written to `path`.
    """
    last, best = sweep.final_trials, sweep.lowest
    settings = [recipe_settings(recipe) for recipe in sweep.recipes]
    has_evaluation = last[0].eval_loss is not None
    loss = "evaluation loss" if has_evaluation else "training loss of the last tenth"
    points = plots.SearchPoints(
        settings={name: [fields[name] for fields in settings] for name in sweep.over},
        losses=np.array([trial.objective for trial in last]),
        steps=np.array([trial.step for trial in last]),
        is_ended=np.array([sweep.is_ended(trial) for trial in last]),
        label=f"{loss}, per item",
        best=None if best is None else best.run,
    )
    return plots.plot_search(points, path)


def _steps(recipes: Sequence[Recipe], reduction_factor: int | None) -> tuple[int, ...]:
    """Returns the steps at which runs are compared; the last one ends all runs."""
    longest = max(recipe.max_steps for recipe in recipes)
    if reduction_factor is None:
        return (longest,)
    reduction_factor = _checks.whole_number(
        "reduction_factor", reduction_factor, minimum=2
    )
    if any(recipe.max_steps != longest for recipe in recipes):
        raise ValueError(
            "`reduction_factor` must be used with runs of equal length, but `over` "
            "varies `max_steps`. Leave one of them out."
        )
    # Rounds are computed from the last one to the first; each division rounds up.
    steps, num_runs = [longest], len(recipes)
    while num_runs > 1 and steps[0] > 1:
        steps.insert(0, -(-steps[0] // reduction_factor))
        num_runs = -(-num_runs // reduction_factor)
    return tuple(steps)


def _trials(
    group: Group, ends: Sequence[int], previous: Sequence[Trial]
) -> list[Trial]:
    """Returns the trials of a group of runs at the steps `ends`."""
    first_losses = {trial.run: trial.first_loss for trial in previous}
    evaluated, found = evaluation_losses(group), []
    for i, losses, eval_loss in zip(group.runs, group.losses, evaluated, strict=True):
        # In the first round, the losses of a run that ends before others are NaN after
        # its end. Later rounds exist only for runs of equal length.
        own_losses = losses[: None if i in first_losses else ends[i]]
        first_loss = first_losses.get(i, losses[0])
        found.append(make_trial(i, ends[i], first_loss, own_losses, eval_loss))
    return found


def _best_runs(
    alive: Sequence[int], trials: Sequence[Trial], reduction_factor: int | None
) -> list[int]:
    """Returns the best 1 / `reduction_factor` of the runs, without diverged ones."""
    assert reduction_factor is not None  # without halving there is a single step
    last = {trial.run: trial.objective for trial in trials}
    # Equal losses are ordered by index, so that a resumed sweep selects the same runs.
    # The number of runs that continue is rounded up, so that at least one run
    # continues.
    ordered = sorted(alive, key=lambda i: (last[i], i))
    num_kept = -(-len(alive) // reduction_factor)
    return sorted(i for i in ordered[:num_kept] if math.isfinite(last[i]))


def _summary(new: Sequence[Trial], num_alive: int, step: int) -> str:
    """Returns a line of text about the runs that have reached a step."""
    best = min(new, key=lambda trial: trial.objective)
    runs = "run" if num_alive == 1 else "runs"
    have = "has" if len(new) == 1 else "have"
    line = f"{len(new)} of {num_alive} {runs} {have} reached step {step:,}; "
    if math.isinf(best.objective):
        return line + ("it diverged" if len(new) == 1 else "all of them diverged")
    return f"{line}the best is number {best.run}, with a loss of {best.objective:.4g}"
