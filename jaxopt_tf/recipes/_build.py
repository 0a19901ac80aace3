"""From a recipe to its schedule and its optimizer."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from .. import _pytrees
from .._typing import PyTree, Schedule
from ..optimizers import DECAY_RULES_BY_TYPE, LayerNorms, TorchLayout, clip, decay_mask
from ..schedules import MetricDrivenSchedule
from ._named_optimizers import named_optimizer
from ._rate_groups import REST, group_labels
from ._recipe import Recipe
from ._recipe_schedule import scheduler_of
from ._vary import Varied, rates_of


def build_schedule(recipe: Recipe) -> Schedule | MetricDrivenSchedule:
    """The recipe's learning rate, of the parameters that are in no rate group.

    Args:
        recipe: the numbers of the run.

    Returns:
        A function of the step, () int -> () float32; for "reduce_lr_on_plateau" and
        "greedy" a `MetricDrivenSchedule`, the pair of `init` and `update` that the
        training loop asks after every evaluation.
    """
    return scheduler_of(recipe)


def build_optimizer(
    recipe: Recipe,
    *,
    schedule: Schedule | MetricDrivenSchedule | None = None,
    layout: Mapping[str, TorchLayout] | None = None,
    layer_norms: LayerNorms | None = None,
    varied: Varied | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The recipe's whole chain: clipping, then the optimizer with its schedule.

        optax.chain(clip(max_grad_norm), adamw_tf(schedule, ...))

    Without clipping (`max_grad_norm=0`) the chain has the one link. With rate groups
    the second is an `optax.multi_transform` of one optimizer per group, and clipping
    stays outside, over all of them together. Where a metric drives the schedule, the
    rate is a number in the optimizer's state, at first `learning_rate`:
    `set_learning_rate` changes it without compiling again.

    Args:
        recipe: the numbers of the run.
        schedule: of `build_schedule(recipe)`, if it was built before.
        layout: for patterns that match whole leaf names, how torch would see the leaf:
            `layouts` of `adafactor_tf`, for which stacked layers must be declared. The
            others treat every element alike and have no use for it.
        layer_norms: paths of modules that are normalization layers, for `decay_mask`:
            Trainer goes by their types, which a tree of parameters does not show.
            `match_names(params, model).layer_norms` gives them with their classes.
            Must be given, if only as [], with the rules of Transformers 4 up to 4.52
            for `decay_rule`, which know norms by their classes.
        varied: numbers that a compiled program is handed when it runs, in the place of
            the recipe's: one run's of those that `vary` gives.

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
    own = varied or Varied({}, {})
    decays = recipe.weight_decay != 0 or "weight_decay" in own.values
    mask = _decay_mask(recipe, layer_norms, decays)
    make = functools.partial(
        named_optimizer, recipe, decay_mask=mask, layout=layout, values=own.values
    )
    rates = rates_of(recipe, own, schedule)
    optimizer = make(rates[REST])
    if recipe.rate_groups:
        by_label = {label: make(rate) for label, rate in rates.items()}
        labels = group_labels(recipe.rate_groups)
        optimizer = optax.multi_transform(by_label, _checked(labels, mask))
    max_norm: Any = own.values.get("max_grad_norm", recipe.max_grad_norm)
    if "max_grad_norm" not in own.values and max_norm == 0:
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
        # Without decay a tree without names is as good as any other.
        if _pytrees.nameless_leaves(params):
            return jax.tree.map(lambda _: False, params)
        return mask(params)

    return mask if decays else unless_nameless


def _checked(
    labels: Callable[[PyTree], PyTree], mask: Callable[[PyTree], PyTree]
) -> Callable[[PyTree], PyTree]:
    """Labels, after a look at the whole mask: a group shows it a part only."""

    def checked(params):
        mask(params)
        return labels(params)

    return checked
