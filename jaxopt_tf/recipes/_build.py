"""Optimizer of a recipe, and of many recipes that one program runs."""

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import _pytrees
from .._argument_names import checked_names
from .._typing import PyTree, ScalarOrSchedule, Schedule
from ..optimizers import DECAY_RULES_BY_TYPE, LayerNorms, TorchLayout, clip, decay_mask
from ..schedules import MetricDrivenSchedule, rate_dtype
from ._optimizers import named_optimizer
from ._rate_groups import REST, group_labels
from ._recipe import METRIC_DRIVEN, Recipe, build_schedule

# Fields that decide the rate at each step, and nothing else of a program.
_OF_THE_RATE = (
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs"),
    *("warmup_steps", "max_steps"),
)
_VALUES = "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"
# Fields in which recipes may differ and yet be runs of one program.
_VARIED = (*_OF_THE_RATE, *_VALUES, "seed")


class RunHyperparams(NamedTuple):
    """Numbers in which the runs of one program differ; one run has no first axis."""

    # [K, N], float32 each: the rate at every step, by rate group; {}: the recipe's
    rates: dict[str, jax.Array]
    values: dict[str, jax.Array]  # [K], float32 each: by field, those that differ


@checked_names
def build_optimizer(
    recipe: Recipe,
    *,
    schedule: Schedule | MetricDrivenSchedule | None = None,
    layouts: Mapping[str, TorchLayout] | None = None,
    layer_norms: LayerNorms | None = None,
    varied: RunHyperparams | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Returns the recipe's whole chain: clipping, then the optimizer with its schedule.

        optax.chain(clip(max_grad_norm), adamw_tf(schedule, ...))

    Without clipping (`max_grad_norm=0`) the chain has the one link. With rate groups
    the second is an `optax.multi_transform` of one optimizer per group, and clipping
    stays outside, over all of them together. Where a metric drives the schedule, the
    rate is a number in the optimizer's state, at first `learning_rate`:
    `set_learning_rate` changes it without compiling again.

    Args:
        recipe: the numbers of the run.
        schedule: of `build_schedule(recipe)`, if it was built before.
        layouts: for patterns that match whole leaf names, the leaf's layout in torch:
            `layouts` of `adafactor_tf`, for which stacked layers must be declared. The
            others treat every element alike and have no use for it.
        layer_norms: paths of modules that are normalization layers, for `decay_mask`:
            Trainer goes by their types, which a tree of parameters does not show.
            `match_names(params, model).layer_norms` gives them with their classes.
            Must be given, if only as [], with the rules of Transformers 4 up to 4.52
            for `decay_rule`, which know norms by their classes.
        varied: numbers that a compiled program receives when it runs, in the place of
            the recipe's: one run's of those that `stack_recipes` gives.

    Returns:
        A transformation; its state holds `learning_rate`, and `grad_norm` if it clips.
        With rate groups `get_learning_rate` gives a dict: the rate by the pattern of
        the group, and that of all others as "rest".

    Raises:
        ValueError: if `layer_norms` is missing; when the state is made, if a path of
            it or the pattern of a group matches nothing.

    Source: transformers 5.23 `trainer.py`, `Trainer.create_optimizer`;
        `trainer_optimizer.py`.
    """
    varied = varied or RunHyperparams({}, {})
    settings: dict[str, Any] = {**vars(recipe), **varied.values}
    decays = recipe.weight_decay != 0 or "weight_decay" in varied.values
    mask = _decay_mask(recipe, layer_norms, decays)
    by_label = {
        label: named_optimizer(rate, settings, decay_mask=mask, layouts=layouts)
        for label, rate in rates_of(recipe, varied, schedule).items()
    }
    optimizer = by_label[REST]
    if recipe.rate_groups:
        labels_of = group_labels(recipe.rate_groups)

        def labels(params: PyTree) -> PyTree:
            mask(params)  # checks the whole mask, of which a group sees a part
            return labels_of(params)

        optimizer = optax.multi_transform(by_label, labels)
    max_norm = settings["max_grad_norm"]
    if "max_grad_norm" not in varied.values and max_norm == 0:
        return optax.chain(optimizer)
    return optax.chain(clip(max_norm), optimizer)


def _decay_mask(
    recipe: Recipe, layer_norms: LayerNorms | None, decays: bool
) -> Callable[[PyTree], PyTree]:
    rule = recipe.decay_rule
    if rule in DECAY_RULES_BY_TYPE and decays and layer_norms is None:
        raise ValueError(
            f"`layer_norms` must be given with the `decay_rule` {rule!r}, got None: it "
            "leaves out normalization layers by their type, which a tree of parameters "
            "does not show. Pass `match_names(params, model).layer_norms`, or their "
            "paths, [] if there are none."
        )
    mask = functools.partial(decay_mask, rule=rule, layer_norms=layer_norms or ())

    def unless_nameless(params: PyTree) -> PyTree:
        # Without decay, leaves need no names.
        if _pytrees.nameless_leaves(params):
            return jax.tree.map(lambda _: False, params)
        return mask(params)

    return mask if decays else unless_nameless


def compile_key(recipe: Recipe) -> Hashable:
    """Returns a key that is equal for recipes of one program.

    They differ in fields only that decide the rate, in `weight_decay`, the betas,
    `adam_epsilon`, `max_grad_norm` and `seed`.
    """
    return tuple(v for name, v in vars(recipe).items() if name not in _VARIED)


def stack_recipes(recipes: Sequence[Recipe]) -> RunHyperparams:
    """Returns the numbers in which recipes of one program differ.

    Rates are tables, since schedules may differ in kind and length: past its end a
    shorter one keeps its last rate. They are rounded to float32, for a 64-bit step too.
    A `max_grad_norm` of 0 becomes infinite, which never clips. Numbers that all have in
    common stay constants of the program. A beta is rounded to float32 and then taken
    as exact: it differs from a constant by 6e-8 at most.

    Args:
        recipes: K of them, equal in `compile_key`.

    Returns:
        Numbers of K runs; `build_optimizer` takes those of one.

    Raises:
        ValueError: if they are not, or if a metric drives a rate, which a table cannot
            know before.
    """
    if any(compile_key(recipe) != compile_key(recipes[0]) for recipe in recipes):
        raise ValueError(
            "`recipes` must be of one program: they may differ in "
            f"{', '.join(_VARIED)} only. Vary other fields in programs of their own."
        )
    for name in (recipe.lr_scheduler_type for recipe in recipes):
        if name in METRIC_DRIVEN:
            raise ValueError(
                "`lr_scheduler_type` must be a schedule of the step in many runs at "
                f"once, got {name!r}, which a metric drives. Take 'constant' or "
                "'linear', say, or train such a run by itself."
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
    return RunHyperparams(rates, values)


def rates_of(
    recipe: Recipe,
    varied: RunHyperparams,
    schedule: Schedule | MetricDrivenSchedule | None = None,
) -> dict[str, ScalarOrSchedule]:
    """Returns the rate of each rate group, and that of the rest, by their labels."""
    if varied.rates:
        return {label: _looked_up(table) for label, table in varied.rates.items()}
    schedule = build_schedule(recipe) if schedule is None else schedule
    is_driven = isinstance(schedule, MetricDrivenSchedule)
    rates: dict[str, Any] = {REST: recipe.learning_rate if is_driven else schedule}
    for group in recipe.rate_groups:
        own: Any = build_schedule(replace(recipe, rate_groups=(), **group.own))
        rates[group.pattern] = functools.partial(_scaled, own, group.factor)
    return rates


def _scaled(schedule: Schedule, factor: float, step: jax.Array) -> jax.Array:
    rate = schedule(step)
    return jnp.asarray(factor, rate.dtype) * rate


def _looked_up(table: jax.Array) -> Schedule:
    def rate(step: Any) -> jax.Array:
        # Past its end: of a run that trains beside longer ones, and is not kept.
        rates = table[jnp.minimum(step, table.shape[0] - 1)]
        return rates.astype(rate_dtype(step))

    return rate


def _tables(recipe: Recipe, num_steps: int) -> dict[str, jax.Array]:
    steps = jnp.minimum(jnp.arange(num_steps, dtype=jnp.int32), recipe.max_steps - 1)
    rates: dict[str, Any] = rates_of(recipe, RunHyperparams({}, {}))
    return {label: jax.vmap(rate)(steps) for label, rate in rates.items()}


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
