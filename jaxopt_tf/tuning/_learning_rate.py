"""find_learning_rate: many rates side by side, for a while."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from ..recipes import Recipe
from ._many import train_many
from ._rate_found import RateFound, num_short_steps, rates_between, short_version
from ._task import Task

# Losses this close to the lowest are taken for as good: a longer run favours the lower
# rate of two that are alike after a short one.
_AS_GOOD = 0.05


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
) -> RateFound:
    """Trains with many rates side by side for a while, and suggests one.

    Each run is the recipe's with its whole schedule in `num_steps`, from the same start
    on the same batches; in a range test each rate starts where those before it have
    led. The suggestion is the lowest rate whose loss is within 5 % of the lowest one,
    since a longer run favours lower rates.

    Args:
        task: what is trained, and on which data.
        recipe: whose rate is asked for.
        min_rate: the lowest rate to try; above 0.
        max_rate: the highest; above `min_rate`.
        num_rates: how many, evenly on a scale of logarithms; at least 3.
        num_steps: of each run; None for a quarter of `max_steps`, at least 100 and at
            most 1,000.
        memory_limit: as for `train_many`.
        devices: as for `train_many`.

    Returns:
        The rates, their losses, and the suggestion; or why none can be told: the lowest
        rates are among the best, or the highest is the best, so that the best may lie
        outside.

    Raises:
        ValueError, TypeError: if bounds are the wrong way round or a number is out of
            range; if all runs diverge, naming the smallest rate.
    """
    rates = rates_between(min_rate, max_rate, num_rates)
    num_steps = num_short_steps(recipe, num_steps)
    short = short_version(recipe, num_steps)
    runs = train_many(
        task,
        [dataclasses.replace(short, learning_rate=float(rate)) for rate in rates],
        memory_limit=memory_limit,
        devices=devices,
    )
    losses = runs.final
    best = runs.best
    limit = losses[best] + _AS_GOOD * abs(losses[best])
    lowest = int(np.argmax(losses <= limit))
    told = (
        f"after {num_steps:,} steps {rates[best]:.3g} has the lowest loss, "
        f"{losses[best]:.4g}"
    )
    suggestion: float | None = float(rates[lowest])
    if lowest == 0:
        suggestion = None
        reason = (
            f"{told}, and the lowest rate tried, {rates[0]:.3g}, is within 5 % of it: "
            "try lower ones, or more steps."
        )
    elif best == len(rates) - 1:
        suggestion = None
        reason = f"{told}, and is the highest tried: try higher ones."
    elif lowest == best:
        reason = f"{told}."
    else:
        reason = (
            f"{told}; {suggestion:.3g} is the lowest rate within 5 % of it, and a "
            "longer run favours lower ones."
        )
    return RateFound(rates, losses, suggestion, reason, recipe)
