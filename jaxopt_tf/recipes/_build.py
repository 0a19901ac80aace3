"""From a recipe to its schedule and its optimizer."""

from collections.abc import Mapping

import optax

from .._typing import ScalarOrSchedule, Schedule
from ..optimizers import TorchLayout, adafactor_trainer, adamw_tf, clip
from ..schedules import MetricDrivenSchedule
from ._recipe import Recipe, scheduler_of


def build_schedule(recipe: Recipe) -> Schedule | MetricDrivenSchedule:
    """The recipe's learning rate.

    Args:
        recipe: the numbers of the run.

    Returns:
        A function of the step, () int -> () float32; for "reduce_lr_on_plateau" and
        "greedy" a `MetricDrivenSchedule`, the pair of `init` and `update` that the
        training loop asks after every evaluation.
    """
    return scheduler_of(recipe)


def build_optimizer(
    recipe: Recipe, *, layout: Mapping[str, TorchLayout] | None = None
) -> optax.GradientTransformation:
    """The recipe's whole chain: clipping, then the optimizer with its schedule.

        optax.chain(clip(max_grad_norm), adamw_tf(schedule, ...))

    Without clipping (`max_grad_norm=0`) the chain has the one link. Biases and
    normalisation layers are not decayed. Where a metric drives the schedule, the rate
    is a number in the optimizer's state, at first `learning_rate`: `set_learning_rate`
    changes it without compiling again.

    Args:
        recipe: the numbers of the run.
        layout: for patterns that match whole leaf names, how torch would see the leaf:
            `layouts` of `adafactor_tf`, for which stacked layers must be declared.
            AdamW treats every element alike and has no use for it.

    Returns:
        A transformation; its state holds `learning_rate`, and `grad_norm` if it clips.

    Source: transformers 5.23 `trainer_optimizer.py`: "adamw_torch" and "adafactor".
    """
    schedule = build_schedule(recipe)
    learning_rate: ScalarOrSchedule = recipe.learning_rate
    if not isinstance(schedule, MetricDrivenSchedule):
        learning_rate = schedule
    if recipe.optim == "adafactor":
        optimizer = adafactor_trainer(
            learning_rate, weight_decay=recipe.weight_decay, layouts=layout
        )
    else:
        optimizer = adamw_tf(
            learning_rate,
            betas=(recipe.adam_beta1, recipe.adam_beta2),
            eps=recipe.adam_epsilon,
            weight_decay=recipe.weight_decay,
        )
    if recipe.max_grad_norm == 0:
        return optax.chain(optimizer)
    return optax.chain(clip(recipe.max_grad_norm), optimizer)
