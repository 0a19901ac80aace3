"""Searches for a learning rate: many rates side by side, or one that rises."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.table

from .. import _checks, plots
from ..recipes import REST, Recipe, recipe_settings, stack_recipes
from ._parallel_runs import ParallelRuns
from ._program import make_program
from ._runs import shown_loss, train_many
from ._task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Losses this close to the lowest count as equal: of two rates that are equal after a
# short run, a longer run favours the lower one.
_AS_GOOD = 0.05
# The share of a run, and the limits, that were enough to tell rates apart in runs of a
# few hundred steps (`benchmarks/sweeps_as_one_program.py`).
_SHARE = 1 / 4
_LEAST_STEPS, _MOST_STEPS = 100, 1_000
# Arguments of schedules that are counts of steps.
_COUNTS = frozenset({"num_stable_steps", "num_decay_steps", "timescale"})


@dataclass(frozen=True)
class LRFinderResult:
    """Results of a search for the learning rate.

    Attributes:
        rates: [n], float64: tried, rising.
        losses: [n], float64: of each rate, infinite where the run diverged; of a range
            test, the smoothed loss at that rate.
        suggestion: the suggested rate; None if the search is inconclusive.
        reason: why this rate is suggested, or why none.
        recipe: whose rate was searched for.
    """

    rates: np.ndarray
    losses: np.ndarray
    suggestion: float | None
    reason: str
    recipe: Recipe

    @property
    def suggested_recipe(self) -> Recipe:
        """The recipe with the suggestion.

        Raises:
            ValueError: if there is none, with the reason.
        """
        if self.suggestion is None:
            raise ValueError(f"`suggestion` must be a rate, got None: {self.reason}")
        return dataclasses.replace(self.recipe, learning_rate=self.suggestion)

    def table(self) -> rich.table.Table:
        """Returns each rate and its loss, with the suggestion marked."""
        table = rich.table.Table("learning rate", "loss", "")
        for rate, loss in zip(self.rates, self.losses, strict=True):
            mark = "suggested" if rate == self.suggestion else ""
            table.add_row(f"{rate:.3g}", shown_loss(loss), mark)
        return table


def find_learning_rate(
    task: Task,
    recipe: Recipe,
    *,
    min_rate: float = 1e-6,
    max_rate: float = 1.0,
    num_rates: int = 24,
    num_steps: int | None = None,
    memory_limit: float | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> LRFinderResult:
    """Trains with many rates side by side for a while, and suggests one.

    Each run is that of the recipe with its whole schedule in `num_steps`, from the same
    start on the same batches; in a range test each rate starts where lower ones have
    led. The suggestion is the lowest rate whose loss is within 5 % of the lowest loss,
    since a longer run favours lower rates.

    Args:
        task: what is trained, and on which data.
        recipe: whose rate is searched for.
        min_rate: the lowest rate to try; above 0.
        max_rate: the highest; above `min_rate`.
        num_rates: how many, evenly on a logarithmic scale; at least 3.
        num_steps: of each run; None for a quarter of `max_steps`, at least 100 and at
            most 1,000.
        memory_limit: as for `train_many`.
        devices: as for `train_many`.

    Returns:
        The rates, their losses, and the suggestion; or the reason for none: the lowest
        rate is among the best, or the highest is the best, so that the best rate may be
        out of the range.

    Raises:
        ValueError, TypeError: if bounds are the wrong way round or a number is out of
            range; if all runs diverge, naming the smallest rate.
    """
    rates = _rates_between(min_rate, max_rate, num_rates)
    short = short_version(recipe, num_steps)
    runs = train_many(
        task,
        [dataclasses.replace(short, learning_rate=float(rate)) for rate in rates],
        memory_limit=memory_limit,
        devices=devices,
    )
    losses, best = runs.final, runs.best
    limit = losses[best] + _AS_GOOD * abs(losses[best])
    lowest = int(np.argmax(losses <= limit))
    suggestion: float | None = float(rates[lowest])
    reason = (
        f"after {short.max_steps:,} steps {rates[best]:.3g} has the lowest loss, "
        f"{losses[best]:.4g}"
    )
    if lowest == 0:
        suggestion = None
        reason += (
            f", and the lowest rate tried, {rates[0]:.3g}, is within 5 % of it: "
            "try lower ones, or more steps."
        )
    elif best == len(rates) - 1:
        suggestion = None
        reason += ", and is the highest tried: try higher ones."
    elif lowest == best:
        reason += "."
    else:
        reason += (
            f"; {suggestion:.3g} is the lowest rate within 5 % of it, and a longer run "
            "favours lower ones."
        )
    return LRFinderResult(rates, losses, suggestion, reason, recipe)


def range_test(
    task: Task,
    recipe: Recipe,
    *,
    min_rate: float = 1e-6,
    max_rate: float = 1.0,
    num_steps: int | None = None,
) -> LRFinderResult:
    """Trains one run whose rate rises from step to step, and suggests a rate.

        rate(step) = min_rate (max_rate / min_rate)^(step / (num_steps - 1))

    Losses are smoothed over a tenth of the steps. The suggestion is a fifth of the
    rate at which the smoothed loss is lowest. It costs one short run, and is less
    reliable than `find_learning_rate`.

    Args:
        task: what is trained, and on which data; its evaluation batches are not used.
        recipe: whose rate is searched for.
        min_rate: the first rate; above 0.
        max_rate: the last; above `min_rate`.
        num_steps: as for `find_learning_rate`.

    Returns:
        The rates, the smoothed losses, and the suggestion; none if the loss is lowest
        at one of the ends.

    Raises:
        ValueError, TypeError: if bounds are the wrong way round or a number is out of
            range; if the first loss is not finite.

    Source: Smith, "Cyclical Learning Rates for Training Neural Networks", 2017, for the
        test.
    """
    short = short_version(recipe, num_steps)
    num_steps = short.max_steps
    rates = _rates_between(min_rate, max_rate, num_steps)
    factors = {REST: 1.0} | {g.pattern: g.factor for g in recipe.rate_groups}
    tables = {name: jnp.float32(f * rates) for name, f in factors.items()}
    rising = stack_recipes([short])._replace(rates=tables)
    program = make_program(task, short, jax.devices()[:1])
    run = ParallelRuns(task=task, recipes=[short]).start(program, [0], varied=[rising])
    (losses,) = run.advance(num_steps)
    if not math.isfinite(losses[0]):
        raise ValueError(
            f"`task` must have a loss that is finite at first, got {losses[0]!r} "
            f"before any step at {min_rate:g}, the smallest rate. Look at its data."
        )
    smoothed = np.full(num_steps, np.inf)
    smoothed[: len(losses)] = _smoothed(losses, max(1, num_steps // 10))
    best = int(np.argmin(smoothed))
    suggestion, reason = None, f"the smoothed loss is lowest, {smoothed[best]:.4g}, at "
    if best in (0, num_steps - 1):
        end = "first" if best == 0 else "last"
        reason += f"the {end} rate, {rates[best]:.3g}: try a wider range."
    else:
        suggestion = float(f"{rates[best] / 5:.3g}")
        reason += f"{rates[best]:.3g}, of which this is a fifth."
    return LRFinderResult(rates, smoothed, suggestion, reason, recipe)


def plot_rates(found: LRFinderResult, path: Path | str | None = None) -> "Figure":
    """Draws losses over the learning rates that were tried, and the suggestion.

    Args:
        found: by `find_learning_rate` or `range_test`.
        path: also write it there, as `.png`, `.svg` or `.pdf`; its folder must exist.

    Returns:
        The picture, 800 pixels wide; a notebook shows it.

    Raises:
        ValueError: if no picture can be written to `path`.
    """
    return plots.plot_losses_by_rate(
        found.rates,
        found.losses,
        suggestion=found.suggestion,
        title=found.reason,
        path=path,
    )


def short_version(recipe: Recipe, num_steps: int | None) -> Recipe:
    """Returns the recipe with its whole schedule, in proportion, in fewer steps.

    Args:
        recipe: of a whole run.
        num_steps: of the short run; None for as many as are enough to tell rates apart.

    Raises:
        ValueError: if there is no such schedule, in the words of `Recipe`.
    """
    if num_steps is None:
        quarter = round(_SHARE * recipe.max_steps)
        num_steps = min(_MOST_STEPS, max(_LEAST_STEPS, quarter))
    num_steps = _checks.step_count("num_steps", num_steps, least=3)
    settings = recipe_settings(recipe)
    share = num_steps / recipe.max_steps
    groups = [_shortened(group, share) for group in settings["rate_groups"]]
    short = _shortened(settings, share)
    return Recipe(**{**short, "rate_groups": groups, "max_steps": num_steps})


def _shortened(settings: dict[str, Any], share: float) -> dict[str, Any]:
    """Returns the settings of a schedule, with its counts of steps multiplied."""
    short = dict(settings)
    if isinstance(short.get("warmup_steps"), int):  # else it is a share already
        short["warmup_steps"] = math.ceil(share * short["warmup_steps"])
    options = dict(short.get("lr_scheduler_kwargs", {}))
    for name in _COUNTS & options.keys():
        if options[name] is not None:
            options[name] = math.floor(share * options[name])
    return short | ({"lr_scheduler_kwargs": options} if options else {})


def _rates_between(min_rate: float, max_rate: float, num_rates: int) -> np.ndarray:
    """Returns rates evenly on a logarithmic scale; [num_rates], float64."""
    _checks.positive("min_rate", min_rate)
    _checks.positive("max_rate", max_rate)
    num_rates = _checks.whole_number("num_rates", num_rates, least=3)
    if not min_rate < max_rate:
        raise ValueError(
            f"`max_rate` must be greater than `min_rate`, got {min_rate!r} to "
            f"{max_rate!r}. Swap them."
        )
    # Three digits, as a person would type them.
    rates = np.geomspace(min_rate, max_rate, num_rates)
    return np.array([float(f"{rate:.3g}") for rate in rates])


def _smoothed(losses: np.ndarray, num_steps: int) -> np.ndarray:
    """Returns means over the steps up to each; infinite once far above the lowest."""
    totals = np.cumsum(np.append(0.0, losses.astype(np.float64)))
    past = np.arange(1, len(losses) + 1)
    first = np.maximum(past - num_steps, 0)
    smoothed = (totals[past] - totals[first]) / (past - first)
    least = np.fmin.accumulate(smoothed)
    is_lost = np.logical_or.accumulate(~(smoothed <= least + 3 * np.abs(least)))
    return np.where(is_lost, np.inf, smoothed)
