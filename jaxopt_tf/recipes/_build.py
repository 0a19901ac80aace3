"""From a recipe to its schedule and its optimizer."""

import optax

from .._typing import Schedule
from ..optimizers import adafactor_trainer, adamw_tf, clip
from ..schedules import get_scheduler
from ._recipe import Recipe


def build_schedule(recipe: Recipe) -> Schedule:
    """The recipe's learning rate: a step comes in, a rate goes out; (), float32."""
    schedule = get_scheduler(
        recipe.lr_scheduler_type,
        recipe.learning_rate,
        recipe.warmup_steps,
        recipe.max_steps,
        dict(recipe.lr_scheduler_kwargs),
    )
    # For the type checker: a recipe does not take what a metric drives.
    assert callable(schedule)
    return schedule


def build_optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """The recipe's whole chain: clipping, then the optimizer with its schedule.

        optax.chain(clip(max_grad_norm), adamw_tf(schedule, ...))

    Without clipping (`max_grad_norm=0`) the chain has the one link. Biases and
    normalisation layers are not decayed.

    Args:
        recipe: the numbers of the run.

    Returns:
        A transformation; its state holds `learning_rate`, and `grad_norm` if it clips.

    Source: transformers 5.23 `trainer_optimizer.py`: "adamw_torch" and "adafactor".
    """
    schedule = build_schedule(recipe)
    if recipe.optim == "adafactor":
        optimizer = adafactor_trainer(schedule, weight_decay=recipe.weight_decay)
    else:
        optimizer = adamw_tf(
            schedule,
            betas=(recipe.adam_beta1, recipe.adam_beta2),
            eps=recipe.adam_epsilon,
            weight_decay=recipe.weight_decay,
        )
    if recipe.max_grad_norm == 0:
        return optax.chain(optimizer)
    return optax.chain(clip(recipe.max_grad_norm), optimizer)
