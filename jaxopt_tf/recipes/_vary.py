"""Numbers that a program is handed when it runs: one serves many recipes."""

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import ScalarOrSchedule, Schedule
from ..schedules import MetricDrivenSchedule, rate_dtype
from ._rate_groups import REST, RateGroup
from ._recipe import Recipe
from ._recipe_schedule import METRIC_DRIVEN, scheduler_of

# What decides the rate at each step, and nothing else of a program.
_OF_THE_RATE = (
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "max_steps",
)
_VALUES = (
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
)
# Fields in which recipes may differ and yet be runs of one program.
VARIED = (*_OF_THE_RATE, *_VALUES, "seed")


class Varied(NamedTuple):
    """What runs of one program have of their own; of one run without the first axis."""

    # [K, N], float32 each: the rate at every step, by rate group; {}: the recipe's
    rates: dict[str, jax.Array]
    values: dict[str, jax.Array]  # [K], float32 each: by field, those that differ


def same_program(recipe: Recipe) -> Hashable:
    """Equal for recipes of one program, which differ in fields of `VARIED` only."""
    fixed = (f.name for f in dataclasses.fields(recipe) if f.name not in VARIED)
    return tuple(getattr(recipe, name) for name in fixed)


def vary(recipes: Sequence[Recipe]) -> Varied:
    """The numbers in which recipes of one program differ, for `build_optimizer`.

    Rates are tables, since schedules may differ in kind and length: past its end a
    shorter one keeps its last rate. They are rounded to float32, for a 64-bit step too.
    A `max_grad_norm` of 0 becomes infinite, which never clips. Numbers that all have in
    common stay constants of the program. A beta is rounded to float32 and then taken
    for exact: other than a constant, by 6e-8 at most.

    Args:
        recipes: K of them, equal in `same_program`.

    Raises:
        ValueError: if they are not, or if a metric drives a rate, which a table cannot
            know before.
    """
    first = recipes[0]
    if any(same_program(recipe) != same_program(first) for recipe in recipes):
        raise ValueError(
            "`recipes` must be of one program: they may differ in "
            f"{', '.join(VARIED)} only. Vary other fields in programs of their own."
        )
    driven = [r.lr_scheduler_type for r in recipes if _is_driven(r)]
    if driven:
        raise ValueError(
            "`lr_scheduler_type` must be a schedule of the step in many runs at once, "
            f"got {driven[0]!r}, which a metric drives. Take 'constant' or 'linear', "
            "say, or train such a run by itself."
        )
    rates = {}
    if any(_differ(recipes, name) for name in _OF_THE_RATE):
        num_steps = max(recipe.max_steps for recipe in recipes)
        tables = [_tables(recipe, num_steps) for recipe in recipes]
        rates = {label: jnp.stack([t[label] for t in tables]) for label in tables[0]}
    values = {
        name: jnp.array([_value(recipe, name) for recipe in recipes], jnp.float32)
        for name in _VALUES
        if _differ(recipes, name)
    }
    return Varied(rates, values)


def rates_of(
    recipe: Recipe,
    varied: Varied,
    schedule: Schedule | MetricDrivenSchedule | None = None,
) -> dict[str, ScalarOrSchedule]:
    """What the optimizer of each rate group takes, and that of the rest."""
    if varied.rates:
        return {label: _looked_up(table) for label, table in varied.rates.items()}
    schedule = scheduler_of(recipe) if schedule is None else schedule
    is_driven = isinstance(schedule, MetricDrivenSchedule)
    rest: Any = recipe.learning_rate if is_driven else schedule
    groups = {group.pattern: _of_group(recipe, group) for group in recipe.rate_groups}
    return {REST: rest, **groups}


def _of_group(recipe: Recipe, group: RateGroup) -> Schedule:
    own = dataclasses.replace(recipe, rate_groups=(), **group.own)
    schedule: Any = scheduler_of(own)  # no metric drives it: the recipe sees to that

    def rate(step):
        of_recipe = schedule(step)
        return jnp.asarray(group.factor, of_recipe.dtype) * of_recipe

    return rate


def _looked_up(table: jax.Array) -> Schedule:
    def rate(step):
        # Past its end: of a run that goes on, which nothing of it is kept.
        rates = table[jnp.minimum(step, table.shape[0] - 1)]
        return rates.astype(rate_dtype(step))

    return rate


def _tables(recipe: Recipe, num_steps: int) -> dict[str, jax.Array]:
    steps = jnp.minimum(jnp.arange(num_steps, dtype=jnp.int32), recipe.max_steps - 1)
    rates: dict[str, Any] = rates_of(recipe, Varied({}, {}))
    return {label: jax.vmap(rate)(steps) for label, rate in rates.items()}


def _is_driven(recipe: Recipe) -> bool:
    return recipe.lr_scheduler_type in METRIC_DRIVEN


def _differ(recipes: Sequence[Recipe], name: str) -> bool:
    return any(getattr(r, name) != getattr(recipes[0], name) for r in recipes)


def _value(recipe: Recipe, name: str) -> float:
    value = float(getattr(recipe, name))
    if name in ("adam_beta1", "adam_beta2") and np.float32(value) == 1:
        raise ValueError(
            f"`{name}` must be below 1 as a float32, where runs differ in it, got "
            f"{value!r}. Take 0.9999999, or train such a run by itself."
        )
    return np.inf if name == "max_grad_norm" and value == 0 else value
