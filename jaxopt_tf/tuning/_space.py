"""Search spaces over recipes: grid and random search."""

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
    """Uniform distribution of a random search, on a logarithmic or linear scale.

    Attributes:
        low: lowest value.
        high: highest value; greater than `low`.
        scale: "log" draws the logarithm uniformly, for example for learning rates, and
            requires `low` to be greater than 0. "linear" draws the value uniformly.

    Raises:
        ValueError: if a bound is not finite, or `high` is not greater than `low`.
        TypeError: if a bound is not a number.
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
                f"{self.high!r}. Swap them, or give a single value in a list."
            )
        if self.scale == "log" and not self.low > 0:
            raise ValueError(
                "`low` must be greater than 0 if `scale` is 'log', got "
                f"{self.low!r}. Increase it, or use `scale='linear'` (low:high:linear "
                "on the command line)."
            )

    def at(self, fraction: float) -> float:
        """Returns the value at a fraction of the range, from 0 to 1."""
        if self.scale == "log":
            low, high = math.log(self.low), math.log(self.high)
            return math.exp(low + fraction * (high - low))
        return self.low + fraction * (self.high - self.low)


_KINDS = {field.name: field.type for field in dataclasses.fields(Recipe)}

# Fields of a recipe and the values to try, or the distribution to draw from.
Over = Mapping[str, Sequence[Any] | Uniform]


def recipes_to_try(
    recipe: Recipe, over: Over, *, num_samples: int | None = None, seed: int = 0
) -> tuple[Recipe, ...]:
    """Returns the recipes of a sweep, from `grid` or `random_search`.

    Args:
        recipe: recipe with the values of all other fields.
        over: values or distributions by field.
        num_samples: number of recipes to draw at random; None for every combination.
        seed: seed of the random search.

    Raises:
        ValueError, TypeError: as for `grid` and `random_search`.
    """
    if num_samples is None:
        return grid(recipe, over)
    return random_search(recipe, over, num_samples, seed)


def grid(recipe: Recipe, over: Over) -> tuple[Recipe, ...]:
    """Returns every combination of the values; the last field changes fastest.

    Args:
        recipe: recipe with the values of all other fields.
        over: values by field.

    Raises:
        ValueError: if there are no fields or no values, a field is unknown, a
            distribution is given, or `Recipe` rejects a combination.
        TypeError: if a value has the wrong type.
    """
    _check_fields(over)
    lists = [list(v) for v in over.values() if not isinstance(v, Uniform)]
    ranges = [name for name, values in over.items() if isinstance(values, Uniform)]
    if ranges:
        raise ValueError(
            f"`over` must list the values of {ranges[0]!r} in a grid, got a range. "
            "Give `num_samples` to draw values from it, or give a list."
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
        recipe: recipe with the values of all other fields.
        over: by field a distribution, or a list of equally likely values.
        num_samples: number of recipes; at least 1.
        seed: seed of the random numbers.

    Raises:
        ValueError, TypeError: as for `grid`; distributions are allowed.
    """
    _check_fields(over)
    num_samples = _checks.whole_number("num_samples", num_samples, minimum=1)
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
    # `warmup_steps` below 1 is a fraction of the run; from 1 on, a number of steps.
    if _KINDS[name] is int or (name == "warmup_steps" and values.low >= 1):
        value = round(value)
    else:
        value = float(f"{value:.4g}")  # rounded, so that the printed value is exact
    # Rounding may have moved the value out of the range.
    return min(max(value, values.low), values.high)


def _check_fields(over: Over) -> None:
    if not over:
        raise ValueError(
            "`over` must name at least one field and its values, got none. An example "
            "is {'learning_rate': [1e-4, 1e-3]}."
        )
    for name, values in over.items():
        if name not in _KINDS:
            raise ValueError(
                f"`over` must name fields of a recipe, got {name!r}."
                + _checks.suggest(name, _KINDS)
            )
        if name == "label_smoothing_factor":
            raise ValueError(
                "`over` must name fields that affect the update, got "
                "'label_smoothing_factor': it changes the loss, and losses with "
                "different values cannot be compared. Compare tasks instead."
            )
        if isinstance(values, Uniform):
            continue
        # A string is a sequence of its characters, which is not meant.
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise TypeError(
                f"`over` must have a list of values, or a `Uniform`, for {name!r}, got "
                f"{values!r}."
            )
        if len(values) == 0:
            raise ValueError(
                f"`over` must have at least one value for {name!r}, got none. Give "
                "values, or leave the field out."
            )


def _changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    try:
        return dataclasses.replace(recipe, **changes)
    # The combination is named: `Recipe` reports only the field that it rejects.
    except (TypeError, ValueError) as error:
        raise type(error)(f"`over` with {dict(changes)!r}: {error}") from error
