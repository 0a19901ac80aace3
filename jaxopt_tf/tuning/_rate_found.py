"""What a search for the learning rate finds, and what it tries."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import rich.table

from .. import _checks
from ..recipes import Recipe, recipe_settings

# Share of a run that is long enough to tell, found on runs of a few hundred steps.
_SHARE = 1 / 4
_LEAST_STEPS, _MOST_STEPS = 100, 1_000
# Further arguments of schedules that count steps.
_COUNTS = frozenset({"num_stable_steps", "num_decay_steps", "timescale"})


@dataclass(frozen=True)
class RateFound:
    """What a search for the learning rate found.

    Attributes:
        rates: [n], float64: tried, rising.
        losses: [n], float64: what each came to, infinite where it diverged; of a range
            test, the smoothed loss at that rate.
        suggestion: the rate to take; None where none can be told.
        reason: why it, or why none.
        recipe: that was searched for.
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
        """Each rate and its loss; the suggestion is marked."""
        table = rich.table.Table("learning rate", "loss", "")
        for rate, loss in zip(self.rates, self.losses, strict=True):
            is_it = rate == self.suggestion
            loss_or_not = "diverged" if math.isinf(loss) else f"{loss:.4g}"
            table.add_row(f"{rate:.3g}", loss_or_not, "suggested" if is_it else "")
        return table


def rates_between(min_rate: float, max_rate: float, num_rates: int) -> np.ndarray:
    """Rates evenly on a scale of logarithms; [num_rates], float64."""
    _checks.positive("min_rate", min_rate)
    _checks.positive("max_rate", max_rate)
    num_rates = _checks.whole_number("num_rates", num_rates, least=3)
    if not min_rate < max_rate:
        raise ValueError(
            f"`max_rate` must be greater than `min_rate`, got {min_rate!r} to "
            f"{max_rate!r}. Swap them."
        )
    # Three digits, as one would type them.
    rates = [
        float(f"{rate:.3g}") for rate in np.geomspace(min_rate, max_rate, num_rates)
    ]
    return np.array(rates)


def num_short_steps(recipe: Recipe, num_steps: int | None) -> int:
    """Steps that are enough to tell rates apart, if none are given."""
    if num_steps is None:
        return min(_MOST_STEPS, max(_LEAST_STEPS, round(_SHARE * recipe.max_steps)))
    return _checks.step_count("num_steps", num_steps, least=3)


def short_version(recipe: Recipe, num_steps: int) -> Recipe:
    """The recipe with its whole schedule, in proportion, in fewer steps.

    Raises:
        ValueError: if there is no such schedule, by the recipe's own words.
    """
    settings = recipe_settings(recipe)
    share = num_steps / recipe.max_steps
    groups = [_shortened(group, share) for group in settings["rate_groups"]]
    short = _shortened(settings, share)
    return Recipe(**{**short, "rate_groups": groups, "max_steps": num_steps})


def _shortened(settings: dict[str, Any], share: float) -> dict[str, Any]:
    """A schedule's settings, its counts of steps multiplied."""
    short = dict(settings)
    if isinstance(short.get("warmup_steps"), int):  # else it is a share already
        short["warmup_steps"] = math.ceil(share * short["warmup_steps"])
    options = dict(short.get("lr_scheduler_kwargs", {}))
    for name in _COUNTS & options.keys():
        if options[name] is not None:
            options[name] = math.floor(share * options[name])
    return short | ({"lr_scheduler_kwargs": options} if options else {})
