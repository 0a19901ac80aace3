"""range_test: one run whose rate rises from step to step."""

import math

import jax.numpy as jnp
import numpy as np

from ..recipes import REST, Recipe, vary
from . import _cohort
from ._program import make_program
from ._rate_found import RateFound, num_short_steps, rates_between, short_version
from ._task import Task


def range_test(
    task: Task,
    recipe: Recipe,
    *,
    min_rate: float = 1e-6,
    max_rate: float = 1.0,
    num_steps: int | None = None,
) -> RateFound:
    """One run whose rate rises from step to step, and a suggestion from its losses.

        rate(step) = min_rate (max_rate / min_rate)^(step / (num_steps - 1))

    Losses are smoothed over a tenth of the steps. The suggestion is a fifth of the
    rate at which the smoothed loss is lowest. It costs one short run, and can tell less
    than `find_learning_rate`.

    Args:
        task: what is trained, and on which data; its held-out batches are not used.
        recipe: whose rate is asked for.
        min_rate: the first rate; above 0.
        max_rate: the last; above `min_rate`.
        num_steps: as for `find_learning_rate`.

    Returns:
        The rates, the smoothed losses, and the suggestion; none where the loss is
        lowest at one of the ends.

    Raises:
        ValueError, TypeError: if bounds are the wrong way round or a number is out of
            range; if the first loss is not finite.

    Source: Smith, "Cyclical Learning Rates for Training Neural Networks", 2017, for the
        test.
    """
    num_steps = num_short_steps(recipe, num_steps)
    rates = rates_between(min_rate, max_rate, num_steps)
    short = short_version(recipe, num_steps)
    factors = {REST: 1.0} | {g.pattern: g.factor for g in recipe.rate_groups}
    varied = vary([short])._replace(
        rates={name: jnp.float32(f * rates)[None] for name, f in factors.items()}
    )
    cohort = _cohort.begin(
        make_program(task, short),
        [short],
        varied,
        _cohort.first_params(task, [short]),
        *_cohort.seed_streams(task, [short]),
    )
    (losses,) = _cohort.advance(cohort, num_steps)
    if not math.isfinite(losses[0]):
        raise ValueError(
            f"`task` must have a loss that is finite at first, got {losses[0]!r} "
            f"before any step at {min_rate:g}, the smallest rate. Look at its data."
        )
    smoothed = np.full(num_steps, np.inf)
    smoothed[: len(losses)] = _smoothed(losses, max(1, num_steps // 10))
    best = int(np.argmin(smoothed))
    lowest = f"the smoothed loss is lowest, {smoothed[best]:.4g}, at "
    suggestion = None
    if best in (0, num_steps - 1):
        end = "first" if best == 0 else "last"
        reason = f"{lowest}the {end} rate, {rates[best]:.3g}: try a wider range."
    else:
        suggestion = float(f"{rates[best] / 5:.3g}")
        reason = f"{lowest}{rates[best]:.3g}, of which this is a fifth."
    return RateFound(rates, smoothed, suggestion, reason, recipe)


def _smoothed(losses: np.ndarray, num_steps: int) -> np.ndarray:
    """Mean over the steps up to each; infinite from where it is far above its least."""
    totals = np.cumsum(np.append(0.0, losses.astype(np.float64)))
    past = np.arange(1, len(losses) + 1)
    first = np.maximum(past - num_steps, 0)
    smoothed = (totals[past] - totals[first]) / (past - first)
    least = np.fmin.accumulate(smoothed)
    is_lost = np.logical_or.accumulate(~(smoothed <= least + 3 * np.abs(least)))
    return np.where(is_lost, np.inf, smoothed)
