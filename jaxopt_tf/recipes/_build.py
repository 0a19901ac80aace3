"""Construction of a recipe's optimizer, and of one optimizer for several recipes."""

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
from ..optimizers import (
    DECAY_RULES_BY_TYPE,
    LayerNorms,
    TorchLayout,
    clip,
    decay_mask,
    ema_params,
    muon_reasons,
)
from ..schedules import MetricDrivenSchedule, rate_dtype
from ._optimizers import ALGORITHMS, named_optimizer
from ._rate_groups import DEFAULT_GROUP, group_labels
from ._recipe import METRIC_DRIVEN, Recipe, build_schedule

# Fields that determine the learning rate of each step and nothing else in the program.
_RATE_FIELDS = (
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs"),
    *("warmup_steps", "max_steps"),
)
_VALUE_FIELDS = (
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
)
# Fields in which recipes may differ and still share one compiled program.
_DYNAMIC_FIELDS = (*_RATE_FIELDS, *_VALUE_FIELDS, "seed")


class RunHyperparams(NamedTuple):
    """Hyperparameters in which the K runs of one compiled program differ.

    The values of a single run have no leading axis.
    """

    # [K, N], float32 each: rate at every step, by rate group; {} if equal in all runs
    rates: dict[str, jax.Array]
    values: dict[str, jax.Array]  # [K], float32 each: fields that differ, by name


@checked_names
def build_optimizer(
    recipe: Recipe,
    *,
    schedule: Schedule | MetricDrivenSchedule | None = None,
    layouts: Mapping[str, TorchLayout] | None = None,
    layer_norms: LayerNorms | None = None,
    varied: RunHyperparams | None = None,
    shardings: PyTree | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer of a recipe: clipping, then the update rule with schedule.

        optax.chain(clip(max_grad_norm), adamw_tf(schedule, ...))

    If `max_grad_norm` is 0, the chain contains no clipping, and with `ema_decay` its
    last link is `ema_params`. With rate groups,
    the optimizer is an `optax.multi_transform` with one optimizer per group; clipping
    is applied before it, to the joint norm of all groups. With a metric-driven
    schedule, the rate is stored in the optimizer's state and starts at
    `learning_rate`; `set_learning_rate` changes it without recompilation.

    Args:
        recipe: the hyperparameters of the run.
        schedule: result of `build_schedule(recipe)`; None to build it here.
        layouts: layouts of leaves in torch, by regular expressions that match the whole
            name of a leaf; the argument `layouts` of `adafactor_tf`, which requires it
            for stacked layers, and of `adamw_8bit_tf`, whose blocks it orders. Other
            optimizers ignore it.
        layer_norms: paths of the normalization layers, passed to `decay_mask`. Trainer
            recognizes these layers by module type, which a parameter tree does not
            contain. `match_names(params, model).layer_norms` returns the paths with
            their classes. Required, possibly as [], for a `decay_rule` of Transformers
            4 up to 4.52, since these rules are based on module types.
        varied: values of one of the runs in the result of `stack_recipes`. These values
            replace those of the recipe, and are arguments of the compiled program. A
            group that sets a value keeps it.
        shardings: shardings of the parameters; the argument of `muon_tf`. Other
            optimizers ignore it.

    Returns:
        A transformation. Its state contains `learning_rate`, and `grad_norm` if
        gradients are clipped. With rate groups, `get_learning_rate` returns a dict of
        rates by the pattern of the group; the key of all other parameters is "rest".

    Raises:
        ValueError: if `layer_norms` is missing; in `init`, if one of its paths or the
            pattern of a group matches no parameter, or if a group whose `optim` is
            "muon" has no matrix.

    Examples:
        >>> optimizer = build_optimizer(Recipe(max_steps=100, learning_rate=1e-3))
        >>> state = optimizer.init({"kernel": jnp.ones((2, 2))})
        >>> print(get_learning_rate(state))
        0.001

    Source: transformers 5.23 `trainer.py`, `Trainer.create_optimizer`;
        `trainer_optimizer.py`.
    """
    varied = varied or RunHyperparams({}, {})
    settings: dict[str, Any] = {**vars(recipe), **varied.values}
    decays = recipe.weight_decay != 0 or "weight_decay" in varied.values
    decays = decays or any(group.weight_decay for group in recipe.rate_groups)
    mask = _decay_mask(recipe, layer_norms, decays)
    fields = {group.pattern: group.overrides for group in recipe.rate_groups}
    recipes = recipes_by_label(recipe)
    by_label = {
        label: named_optimizer(
            rate,
            # Fields of the group's recipe, in which `optim_args` have been parsed.
            settings
            | {n: getattr(recipes[label], n) for n in fields.get(label, ())}
            | {"warmup_steps": recipes[label].num_warmup_steps},
            decay_mask=mask,
            layouts=layouts,
            shardings=shardings,
        )
        for label, rate in rates_of(recipe, varied, schedule).items()
    }
    optimizer = by_label[DEFAULT_GROUP]
    if recipe.rate_groups:
        label_params = group_labels(recipe.rate_groups)

        def labels(params: PyTree) -> PyTree:
            # `multi_transform` passes each group a tree in which the leaves of other
            # groups are masked. Only here can the mask be checked on the whole tree.
            mask(params)
            leaf_optimizers(recipe, params, layouts)
            return label_params(params)

        optimizer = optax.multi_transform(by_label, labels)
    # Clipping is placed before `multi_transform`: inside `multi_transform`, each group
    # would be clipped by its own norm. torch clips by the joint norm of all groups.
    max_norm, links = settings["max_grad_norm"], [optimizer]
    if "max_grad_norm" in varied.values or max_norm != 0:
        links.insert(0, clip(max_norm))
    if recipe.ema_decay is not None:
        links.append(ema_params(recipe.ema_decay))
    return optax.chain(*links)


def recipes_by_label(recipe: Recipe) -> dict[str, Recipe]:
    """Returns the recipe of each rate group and of the other parameters, by label."""
    return {DEFAULT_GROUP: recipe} | {
        group.pattern: replace(recipe, rate_groups=(), **group.overrides)
        for group in recipe.rate_groups
    }


def leaf_optimizers(
    recipe: Recipe, params: PyTree, layouts: Mapping[str, TorchLayout] | None
) -> dict[str, str]:
    """Returns the optimizer of each leaf by the name of the leaf.

    For a leaf that "muon" updates with AdamW, this is "adamw_torch" and the reason.

    Raises:
        ValueError: if a group whose `optim` is "muon" has no matrix.
    """
    labels = dict(_pytrees.named_leaves(group_labels(recipe.rate_groups)(params)))
    recipes = recipes_by_label(recipe)
    found = {name: recipes[label].optim for name, label in labels.items()}
    chosen = [group.pattern for group in recipe.rate_groups if group.optim]
    for label in {label for label in labels.values() if recipes[label].optim == "muon"}:
        args: Any = recipes[label].optim_args
        matrices = dict(args).get("matrices")
        reasons = muon_reasons(params, matrices=matrices, layouts=layouts)
        by_adamw = {
            name: reason
            for name, reason in _pytrees.named_leaves(reasons)
            if labels[name] == label
        }
        # A group that inherits its optimizer may consist of embeddings or biases.
        if label in chosen and all(by_adamw.values()):
            first, reason = next(iter(by_adamw.items()))
            raise ValueError(
                f"`rate_groups` {label!r} must have a matrix for the `optim` 'muon', "
                f"got {len(by_adamw)} leaves without one, the first being {first!r} "
                f"({reason}). Correct the pattern, or use 'adamw_torch'."
            )
        found |= {
            n: f"adamw_torch: {reason}" for n, reason in by_adamw.items() if reason
        }
    return found


def _decay_mask(
    recipe: Recipe, layer_norms: LayerNorms | None, decays: bool
) -> Callable[[PyTree], PyTree]:
    rule = recipe.decay_rule
    if rule in DECAY_RULES_BY_TYPE and decays and layer_norms is None:
        raise ValueError(
            f"`layer_norms` must be given with the `decay_rule` {rule!r}, got None: "
            "this rule excludes normalization layers by module type, which a parameter "
            "tree does not contain. Pass `match_names(params, model).layer_norms`, or "
            "the paths of these layers, [] if there are none."
        )
    mask = functools.partial(decay_mask, rule=rule, layer_norms=layer_norms or ())

    def unless_unnamed(params: PyTree) -> PyTree:
        # Rules match names of leaves. Without decay no rule is applied, so that trees
        # without names, such as plain tuples of arrays, are accepted.
        if _pytrees.unnamed_leaves(params):
            return jax.tree.map(lambda _: False, params)
        return mask(params)

    return mask if decays else unless_unnamed


def compile_key(recipe: Recipe) -> Hashable:
    """Returns a key that is equal for recipes that can share one compiled program.

    Such recipes may differ in the fields that determine the learning rate, in
    `weight_decay`, the betas, `adam_epsilon`, `max_grad_norm` and `seed`. The number of
    warmup steps must be equal for optimizers with a warmup of their own.
    """
    fixed = [v for name, v in vars(recipe).items() if name not in _DYNAMIC_FIELDS]
    if "warmup_steps" in ALGORITHMS[recipe.optim].takes:
        fixed.append(recipe.num_warmup_steps)
    return tuple(fixed)


def stack_recipes(recipes: Sequence[Recipe]) -> RunHyperparams:
    """Stacks the hyperparameters in which recipes of one program differ.

    Rates are stored as tables, since schedules may differ in type and length; after the
    end of a shorter schedule its last rate is repeated. Rates are rounded to float32,
    also for a 64-bit step. A `max_grad_norm` of 0 becomes infinity, which never clips.
    Values that are equal in all recipes remain constants of the program. A beta is
    rounded to float32 and then treated as exact: it differs from a constant by at most
    6e-8.

    Args:
        recipes: K recipes with equal `compile_key`.

    Returns:
        Values of K runs; `build_optimizer` takes those of a single run.

    Raises:
        ValueError: if the keys differ, or if a schedule is metric-driven: its rates are
            not known in advance.
    """
    if any(compile_key(recipe) != compile_key(recipes[0]) for recipe in recipes):
        raise ValueError(
            "`recipes` must share one compiled program: they may differ only in "
            f"{', '.join(_DYNAMIC_FIELDS)}. Train the others separately."
        )
    for name in (recipe.lr_scheduler_type for recipe in recipes):
        if name in METRIC_DRIVEN:
            raise ValueError(
                "`lr_scheduler_type` must be a function of the step if several runs "
                f"share one program, got {name!r}, which is driven by a metric. Use "
                "for example 'constant' or 'linear', or train this run separately."
            )
    rates = {}
    if any(_differ(recipes, name) for name in _RATE_FIELDS):
        num_steps = max(recipe.max_steps for recipe in recipes)
        tables = [_tables(recipe, num_steps) for recipe in recipes]
        rates = {label: jnp.stack([t[label] for t in tables]) for label in tables[0]}
    values = {
        name: jnp.array([_value(recipe, name) for recipe in recipes], jnp.float32)
        for name in _VALUE_FIELDS
        if _differ(recipes, name)
    }
    return RunHyperparams(rates, values)


def rates_of(
    recipe: Recipe,
    varied: RunHyperparams,
    schedule: Schedule | MetricDrivenSchedule | None = None,
) -> dict[str, ScalarOrSchedule]:
    """Returns the rate of each rate group and of the other parameters, by label."""
    if varied.rates:
        return {label: _look_up(table) for label, table in varied.rates.items()}
    schedule = build_schedule(recipe) if schedule is None else schedule
    is_driven = isinstance(schedule, MetricDrivenSchedule)
    rates: dict[str, Any] = {
        DEFAULT_GROUP: recipe.learning_rate if is_driven else schedule
    }
    recipes = recipes_by_label(recipe)
    for group in recipe.rate_groups:
        group_schedule: Any = build_schedule(recipes[group.pattern])
        rates[group.pattern] = functools.partial(_scaled, group_schedule, group.factor)
    return rates


def _scaled(schedule: Schedule, factor: float, step: jax.Array) -> jax.Array:
    rate = schedule(step)
    return jnp.asarray(factor, rate.dtype) * rate


def _look_up(table: jax.Array) -> Schedule:
    def rate(step: Any) -> jax.Array:
        # A vmapped run that is shorter than the others is still updated after its end.
        # The results of these steps are discarded; the index must only be valid.
        rates = table[jnp.minimum(step, table.shape[0] - 1)]
        return rates.astype(rate_dtype(step))

    return rate


def _tables(recipe: Recipe, num_steps: int) -> dict[str, jax.Array]:
    # All tables of a program have the length of the longest run, so that they stack.
    steps = jnp.minimum(jnp.arange(num_steps, dtype=jnp.int32), recipe.max_steps - 1)
    rates: dict[str, Any] = rates_of(recipe, RunHyperparams({}, {}))
    return {label: jax.vmap(rate)(steps) for label, rate in rates.items()}


def _differ(recipes: Sequence[Recipe], name: str) -> bool:
    return any(getattr(r, name) != getattr(recipes[0], name) for r in recipes)


def _value(recipe: Recipe, name: str) -> float:
    value = float(getattr(recipe, name))
    # Betas from 1 - 2^-25 on round to 1 in float32, and 1 - beta would be 0.
    if name in ("adam_beta1", "adam_beta2") and np.float32(value) == 1:
        raise ValueError(
            f"`{name}` must be less than 1 after rounding to float32 if runs differ in "
            f"it, got {value!r}. Use 0.9999999, or train this run separately."
        )
    return np.inf if name == "max_grad_norm" and value == 0 else value
