"""Search space: a grid of recipes, or random search."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _checks
from ..recipes import Recipe


@dataclass(frozen=True)
class Uniform:
    """A range that a random search draws from.

    Attributes:
        low: the lowest value.
        high: the highest; above `low`.
        scale: "log" draws the logarithm evenly, for rates and decays, and needs a `low`
            above 0; "linear" draws the number itself.

    Raises:
        ValueError, TypeError: if the bounds are not finite or the wrong way round.
    """

    low: float
    high: float
    scale: str = "log"

    def __post_init__(self) -> None:
        """Checks the bounds."""
        _checks.finite("low", self.low)
        _checks.finite("high", self.high)
        _checks.one_of("scale", self.scale, ("log", "linear"))
        if not self.low < self.high:
            raise ValueError(
                f"`high` must be greater than `low`, got {self.low!r} to "
                f"{self.high!r}. Swap them, or give the one value in a list."
            )
        if self.scale == "log" and not self.low > 0:
            raise ValueError(
                f"`low` must be greater than 0 on a scale of 'log', got {self.low!r}. "
                "Raise it, or take `scale='linear'`, on the command line "
                "low:high:linear."
            )

    def at(self, share: float) -> float:
        """Returns the value at a share of the range, 0 to 1."""
        if self.scale == "log":
            low, high = math.log(self.low), math.log(self.high)
            return math.exp(low + share * (high - low))
        return self.low + share * (self.high - self.low)


_KINDS = {field.name: field.type for field in dataclasses.fields(Recipe)}

# Field of a recipe -> values to try, or a range to draw from.
Over = Mapping[str, Sequence[Any] | Uniform]


def recipes_to_try(
    recipe: Recipe, over: Over, *, num_samples: int | None = None, seed: int = 0
) -> tuple[Recipe, ...]:
    """Returns the recipes of a sweep: from `grid` or `random_search`.

    Args:
        recipe: all that is not in `over`.
        over: values or ranges by field.
        num_samples: recipes to draw at random; None for every combination.
        seed: of the draw.

    Raises:
        ValueError, TypeError: as for `grid` and `random_search`.
    """
    if num_samples is None:
        return grid(recipe, over)
    return random_search(recipe, over, num_samples, seed)


def grid(recipe: Recipe, over: Over) -> tuple[Recipe, ...]:
    """Returns every combination of the values, the last field changing fastest.

    Args:
        recipe: all that is not in `over`.
        over: values by field.

    Raises:
        ValueError, TypeError: if there is nothing to try, a recipe has no such field, a
            range has no values, or a combination is no recipe.
    """
    _check_fields(over)
    lists = [list(v) for v in over.values() if not isinstance(v, Uniform)]
    ranges = [name for name, values in over.items() if isinstance(values, Uniform)]
    if ranges:
        raise ValueError(
            f"`over` must list the values of {ranges[0]!r} in a grid, got a range. "
            "Give `num_samples` to draw from it, or a list."
        )
    return tuple(
        _changed(recipe, dict(zip(over, values, strict=True)))
        for values in itertools.product(*lists)
    )


def random_search(
    recipe: Recipe, over: Over, num_samples: int, seed: int
) -> tuple[Recipe, ...]:
    """Draws recipes at random, each field independently.

    Args:
        recipe: all that is not in `over`.
        over: by field a range, or values that are equally likely.
        num_samples: number of recipes; at least 1.
        seed: of the draw.

    Raises:
        ValueError, TypeError: as for `grid`, ranges excepted.
    """
    _check_fields(over)
    num_samples = _checks.whole_number("num_samples", num_samples, least=1)
    rng = np.random.default_rng(_checks.seed("seed", seed))
    changes = [
        {name: _draw(rng, name, values) for name, values in over.items()}
        for _ in range(num_samples)
    ]
    return tuple(_changed(recipe, change) for change in changes)


def _draw(rng: np.random.Generator, name: str, values: Sequence[Any] | Uniform) -> Any:
    if not isinstance(values, Uniform):
        return values[int(rng.integers(len(values)))]
    value = values.at(rng.random())
    # A warmup below 1 is a share of the run, and a number of steps from 1 on.
    if _KINDS[name] is int or (name == "warmup_steps" and values.low >= 1):
        value = round(value)
    else:
        value = float(f"{value:.4g}")  # as a person would type it
    return min(max(value, values.low), values.high)


def _check_fields(over: Over) -> None:
    if not over:
        raise ValueError(
            "`over` must name at least one field and its values, got none: "
            "{'learning_rate': [1e-4, 1e-3]}, say."
        )
    for name, values in over.items():
        if name not in _KINDS:
            raise ValueError(
                f"`over` must name fields of a recipe, got {name!r}."
                + _checks.nearest(name, _KINDS)
            )
        if name == "label_smoothing_factor":
            raise ValueError(
                "`over` must name fields that decide an update, got "
                "'label_smoothing_factor': it is the loss's, and losses with another "
                "one cannot be compared. Compare tasks instead."
            )
        if isinstance(values, Uniform):
            continue
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise TypeError(
                f"`over` must have a list of values, or a `Uniform`, for {name!r}, got "
                f"{values!r}."
            )
        if len(values) == 0:
            raise ValueError(
                f"`over` must have at least one value for {name!r}, got none: the grid "
                "is empty. Give values, or leave the field out."
            )


def _changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    try:
        return dataclasses.replace(recipe, **changes)
    except (TypeError, ValueError) as error:
        raise type(error)(f"`over` with {dict(changes)!r}: {error}") from error
