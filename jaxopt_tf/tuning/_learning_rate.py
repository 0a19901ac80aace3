"""Search for a learning rate: many rates in parallel, or a range test."""

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
from ..recipes import DEFAULT_GROUP, Recipe, recipe_settings, stack_recipes
from ._parallel_runs import ParallelRuns
from ._program import make_program
from ._runs import format_loss, train_many
from ._task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Relative difference below which losses count as equal. If two rates have equal losses
# after a short run, the lower one is usually better in a longer run.
_MAX_EXCESS_LOSS = 0.05
# Default length of a run as a fraction of `max_steps`, and its limits. They were enough
# to distinguish rates in `benchmarks/sweeps_as_one_program.py`.
_FRACTION = 1 / 4
_MIN_STEPS, _MAX_STEPS = 100, 1_000
# Arguments of schedules that are numbers of steps.
_STEP_COUNT_OPTIONS = frozenset({"num_stable_steps", "num_decay_steps", "timescale"})


@dataclass(frozen=True)
class LRFinderResult:
    """Results of a search for the learning rate.

    Attributes:
        rates: [n], float64: rates in increasing order.
        losses: [n], float64: loss of each rate, infinite if the run diverged; for a
            range test, the smoothed loss at the step of the rate.
        suggestion: suggested rate; None if the search is inconclusive.
        reason: explanation of the suggestion, or of its absence.
        recipe: recipe for which the rate was searched.
    """

    rates: np.ndarray
    losses: np.ndarray
    suggestion: float | None
    reason: str
    recipe: Recipe

    @property
    def suggested_recipe(self) -> Recipe:
        """The recipe with the suggested rate.

        Raises:
            ValueError: if there is no suggestion. The message contains the reason.
        """
        if self.suggestion is None:
            raise ValueError(f"`suggestion` must be a rate, got None: {self.reason}")
        return dataclasses.replace(self.recipe, learning_rate=self.suggestion)

    def table(self) -> rich.table.Table:
        """Returns a table of rates and losses, in which the suggestion is marked."""
        table = rich.table.Table("learning rate", "loss", "")
        for rate, loss in zip(self.rates, self.losses, strict=True):
            label = "suggested" if rate == self.suggestion else ""
            table.add_row(f"{rate:.3g}", format_loss(loss), label)
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
    """Trains short runs with many rates in parallel, and suggests a rate.

    Each run has the recipe's whole schedule, shortened to `num_steps`. All runs have
    the same initial parameters and the same batches. In a range test, by contrast, each
    rate starts from the parameters that the lower rates have produced. The suggestion
    is the lowest rate whose loss is within 5 % of the lowest loss, because longer runs
    favour lower rates.

    Args:
        task: loss, initial parameters and data of the runs.
        recipe: recipe for which a rate is searched.
        min_rate: lowest rate; greater than 0.
        max_rate: highest rate; greater than `min_rate`.
        num_rates: number of rates, evenly spaced on a logarithmic scale; at least 3.
        num_steps: number of steps of each run; None for a quarter of `max_steps`, at
            least 100 and at most 1,000.
        memory_limit: as for `train_many`.
        devices: as for `train_many`.

    Returns:
        The rates, their losses and the suggestion. There is no suggestion if the lowest
        rate is within 5 % of the lowest loss, or the highest rate has the lowest loss:
        the best rate may then be outside of the range.

    Raises:
        ValueError: if `max_rate` is not above `min_rate`, a number is out of range, or
            all runs diverge.
        TypeError: if an argument has the wrong type.
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
    # `abs` is needed because the losses of a task may be negative. `argmax` returns the
    # first True, which is the lowest rate.
    limit = losses[best] + _MAX_EXCESS_LOSS * abs(losses[best])
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
    """Trains one run whose rate rises at every step, and suggests a rate.

        rate(step) = min_rate (max_rate / min_rate)^(step / (num_steps - 1))

    Losses are smoothed over a tenth of the steps. The suggestion is a fifth of the rate
    at which the smoothed loss is lowest. A range test needs only one short run, and is
    less reliable than `find_learning_rate`.

    Args:
        task: loss, initial parameters and data of the run. Its evaluation batches are
            not used.
        recipe: recipe for which a rate is searched.
        min_rate: first rate; greater than 0.
        max_rate: last rate; greater than `min_rate`.
        num_steps: as for `find_learning_rate`.

    Returns:
        The rates, the smoothed losses and the suggestion. There is no suggestion if the
        loss is lowest at the first or the last rate.

    Raises:
        ValueError: if `max_rate` is not above `min_rate`, a number is out of range, or
            the first loss is not finite.
        TypeError: if an argument has the wrong type.

    Source: Smith, "Cyclical Learning Rates for Training Neural Networks", 2017, for the
        test.
    """
    short = short_version(recipe, num_steps)
    num_steps = short.max_steps
    rates = _rates_between(min_rate, max_rate, num_steps)
    # The schedule is replaced by a table of rates, scaled by the factor of each group.
    factors = {DEFAULT_GROUP: 1.0} | {g.pattern: g.factor for g in recipe.rate_groups}
    tables = {name: jnp.float32(f * rates) for name, f in factors.items()}
    rising = stack_recipes([short])._replace(rates=tables)
    program = make_program(task, short, jax.devices()[:1])
    runs = ParallelRuns(task=task, recipes=[short])
    run = runs.start(program, [0], hyperparams=[rising])
    (losses,) = run.advance(num_steps)
    if not math.isfinite(losses[0]):
        raise ValueError(
            f"`task` must have a finite initial loss, got {losses[0]!r} before the "
            f"first step, at {min_rate:g}, the smallest rate. Check its data."
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
    """Plots losses over learning rates, and marks the suggestion.

    Args:
        found: result of `find_learning_rate` or `range_test`.
        path: file to which the figure is also written, `.png`, `.svg` or `.pdf`; its
            folder must exist.

    Returns:
        The figure, 800 pixels wide.

    Raises:
        ValueError: if no figure can be written to `path`.
    """
    return plots.plot_losses_by_rate(
        found.rates,
        found.losses,
        suggestion=found.suggestion,
        title=found.reason,
        path=path,
    )


def short_version(recipe: Recipe, num_steps: int | None) -> Recipe:
    """Returns the recipe with its whole schedule shortened to fewer steps.

    Args:
        recipe: recipe of a whole run.
        num_steps: number of steps of the short run; None for a quarter of `max_steps`,
            at least 100 and at most 1,000.

    Raises:
        ValueError: if `Recipe` rejects the shortened schedule.
    """
    if num_steps is None:
        quarter = round(_FRACTION * recipe.max_steps)
        num_steps = min(_MAX_STEPS, max(_MIN_STEPS, quarter))
    num_steps = _checks.step_count("num_steps", num_steps, minimum=3)
    settings = recipe_settings(recipe)
    fraction = num_steps / recipe.max_steps
    groups = [_shorten(group, fraction) for group in settings["rate_groups"]]
    short = _shorten(settings, fraction)
    return Recipe(**{**short, "rate_groups": groups, "max_steps": num_steps})


def _shorten(settings: dict[str, Any], fraction: float) -> dict[str, Any]:
    """Returns the settings of a schedule, with all numbers of steps scaled.

    The warmup is rounded up and other phases down, so that their sum is not above the
    number of steps.
    """
    short = dict(settings)
    if isinstance(short.get("warmup_steps"), int):  # a float is a fraction of the run
        short["warmup_steps"] = math.ceil(fraction * short["warmup_steps"])
    options = dict(short.get("lr_scheduler_kwargs", {}))
    for name in _STEP_COUNT_OPTIONS & options.keys():
        if options[name] is not None:
            options[name] = math.floor(fraction * options[name])
    return short | ({"lr_scheduler_kwargs": options} if options else {})


def _rates_between(min_rate: float, max_rate: float, num_rates: int) -> np.ndarray:
    """Returns rates evenly spaced on a logarithmic scale; [num_rates], float64."""
    _checks.positive("min_rate", min_rate)
    _checks.positive("max_rate", max_rate)
    num_rates = _checks.whole_number("num_rates", num_rates, minimum=3)
    if not min_rate < max_rate:
        raise ValueError(
            f"`max_rate` must be greater than `min_rate`, got {min_rate!r} to "
            f"{max_rate!r}. Swap them."
        )
    # Rates are rounded to three significant digits, so that printed rates are exact.
    rates = np.geomspace(min_rate, max_rate, num_rates)
    return np.array([float(f"{rate:.3g}") for rate in rates])


def _smoothed(losses: np.ndarray, num_steps: int) -> np.ndarray:
    """Returns moving averages over `num_steps`; infinite after the loss has diverged.

    The loss has diverged at the first step at which the average is NaN, or exceeds the
    lowest average so far by more than three times the magnitude of that average.
    """
    # The means are differences of cumulative sums in float64; in float32 they would
    # lose digits.
    totals = np.cumsum(np.append(0.0, losses.astype(np.float64)))
    ends = np.arange(1, len(losses) + 1)
    starts = np.maximum(ends - num_steps, 0)
    smoothed = (totals[ends] - totals[starts]) / (ends - starts)
    minimum = np.fmin.accumulate(smoothed)
    # The negated comparison is also True for NaN.
    has_diverged = np.logical_or.accumulate(
        ~(smoothed <= minimum + 3 * np.abs(minimum))
    )
    return np.where(has_diverged, np.inf, smoothed)
