"""A recipe's schedule, and whether it fits into the training."""

from typing import TYPE_CHECKING

from .._typing import Schedule
from ..schedules import MetricDrivenSchedule, get_scheduler

if TYPE_CHECKING:
    from ._recipe import Recipe

_PHASED = "warmup_stable_decay"
# Schedules that follow a metric, not the step.
METRIC_DRIVEN = ("reduce_lr_on_plateau", "greedy")
SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    _PHASED,
    *METRIC_DRIVEN,
)


def scheduler_of(recipe: "Recipe") -> Schedule | MetricDrivenSchedule:
    """What `get_scheduler` makes of the recipe."""
    options = dict(recipe.lr_scheduler_kwargs)
    num_steps: int | None = recipe.max_steps
    is_phased = recipe.lr_scheduler_type == _PHASED
    if is_phased and options.get("num_stable_steps") is not None:
        num_steps = None  # the schedule ends where its phases do
    return get_scheduler(
        recipe.lr_scheduler_type,
        recipe.learning_rate,
        recipe.num_warmup_steps,
        num_steps,
        options,
    )


def check_steps(recipe: "Recipe") -> None:
    """Raises unless there are steps, and more of them than of warm-up."""
    if recipe.max_steps == 0:
        raise ValueError(
            "`max_steps` must be at least 1, got 0. Pass the number of updates."
        )
    if recipe.num_warmup_steps > recipe.max_steps:
        raise ValueError(
            f"`warmup_steps` must be at most `max_steps`, which is {recipe.max_steps}, "
            f"got {recipe.warmup_steps!r}: training would end before the rate has "
            "arrived. Take a shorter warm-up (0.05, a twentieth of the steps, say) or "
            "more steps."
        )
    if recipe.num_warmup_steps > 0 and recipe.lr_scheduler_type in METRIC_DRIVEN:
        raise ValueError(
            f"`warmup_steps` must be 0 with {recipe.lr_scheduler_type!r}: a metric "
            f"drives the rate from the first step on, got {recipe.warmup_steps!r}. "
            "Leave it out, or take a schedule that warms up, such as 'cosine'."
        )


def check_schedule(recipe: "Recipe") -> None:
    """Asks the schedule itself whether it takes these arguments."""
    try:
        scheduler_of(recipe)
    except (TypeError, ValueError) as error:
        # In the schedule's own words, where step counts have another name.
        told = str(error).replace("`num_training_steps`", "`max_steps`")
        told = told.replace("`num_warmup_steps`", "`warmup_steps`")
        told = told.replace("`scheduler_specific_kwargs`", "`lr_scheduler_kwargs`")
        raise type(error)(
            f"`lr_scheduler_type` {recipe.lr_scheduler_type!r} with "
            f"`lr_scheduler_kwargs` {dict(recipe.lr_scheduler_kwargs)!r}: {told}"
        ) from error


def check_phases(recipe: "Recipe") -> None:
    """Raises if the phases of warmup_stable_decay do not fit into the training."""
    if recipe.lr_scheduler_type != _PHASED:
        return
    options = dict(recipe.lr_scheduler_kwargs)
    stable = int(options.get("num_stable_steps") or 0)
    decay = int(options["num_decay_steps"])
    total = recipe.num_warmup_steps + stable + decay
    if total > recipe.max_steps:
        raise ValueError(
            f"`lr_scheduler_kwargs` must have phases that fit into `max_steps`, which "
            f"is {recipe.max_steps}, got {recipe.num_warmup_steps} steps of warm-up, "
            f"{stable} of `num_stable_steps` and {decay} of `num_decay_steps`: {total} "
            "in all. Shorten one of them, or take more steps."
        )
