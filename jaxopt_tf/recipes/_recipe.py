"""Recipe: every number that decides an update, once, checked once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .. import _check
from ..schedules import get_scheduler

OPTIMIZERS = ("adamw_torch", "adafactor")
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
    "warmup_stable_decay",
)
_METRIC_DRIVEN = ("reduce_lr_on_plateau", "greedy")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The numbers of a run, under the names and with the defaults of TrainingArguments.

    Attributes:
        max_steps: number of updates; at least 1.
        learning_rate: the schedule's highest rate; at least 0.
        lr_scheduler_type: the schedule's name, as `get_scheduler` takes it.
        lr_scheduler_kwargs: the schedule's further arguments. A mapping is taken, and
            kept as sorted pairs, so that a recipe is hashable.
        warmup_steps: updates during which the rate climbs; at most `max_steps`.
        optim: "adamw_torch", or "adafactor" with the rate given, as the Trainer has it.
        weight_decay: share taken off per unit of rate; biases and normalisation layers
            are left out.
        adam_beta1: decay rate of AdamW's first moment; from 0 to below 1.
        adam_beta2: decay rate of AdamW's second moment; from 0 to below 1.
        adam_epsilon: added to AdamW's denominator; at least 0.
        max_grad_norm: limit of the gradients' joint norm; 0 for no clipping.
        seed: of parameters and of the order of the text; from 0 to 2^31 - 1.

    Raises:
        ValueError, TypeError: if a number is out of range, a name is unknown, the
            warm-up is longer than the training, or the schedule refuses its arguments.

    Source: transformers 5.23 `training_args.py`, `TrainingArguments`.
    Differs: `warmup_steps` is a count, not a share, and a warm-up that training would
        never leave is refused. The two schedules that a metric drives are not taken.
    """

    max_steps: int
    learning_rate: float = 5e-5
    lr_scheduler_type: str = "linear"
    lr_scheduler_kwargs: Mapping[str, Any] | tuple[tuple[str, Any], ...] = ()
    warmup_steps: int = 0
    optim: str = "adamw_torch"
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    seed: int = 42

    def __post_init__(self) -> None:
        """Checks every field, and makes counts ints and the mapping pairs."""
        for name in ("max_steps", "warmup_steps", "seed"):
            _set(self, name, _check.step_count(name, getattr(self, name)))
        for name in ("learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm"):
            _check.non_negative(name, getattr(self, name))
        for name in ("adam_beta1", "adam_beta2"):
            _check.fraction_below_one(name, getattr(self, name))
        _check.one_of("optim", self.optim, OPTIMIZERS)
        _check_steps(self.max_steps, self.warmup_steps)
        _check_schedule_name(self.lr_scheduler_type)
        _set(self, "lr_scheduler_kwargs", _sorted_pairs(self.lr_scheduler_kwargs))
        _check_schedule(self)


def _set(recipe: Recipe, name: str, value: Any) -> None:
    object.__setattr__(recipe, name, value)  # frozen for everyone else


def _sorted_pairs(kwargs: Any) -> tuple[tuple[str, Any], ...]:
    try:
        pairs = tuple(sorted(dict(kwargs or ()).items()))
        hash(pairs)
    except (TypeError, ValueError) as error:
        raise TypeError(
            "`lr_scheduler_kwargs` must be a mapping from names to numbers or strings, "
            f"got {kwargs!r}."
        ) from error
    return pairs


def _check_steps(max_steps: int, warmup_steps: int) -> None:
    if max_steps == 0:
        raise ValueError(
            "`max_steps` must be at least 1, got 0. Pass the number of updates."
        )
    if warmup_steps > max_steps:
        raise ValueError(
            f"`warmup_steps` must be at most `max_steps`, which is {max_steps}, got "
            f"{warmup_steps!r}: training would end before the rate has arrived. Take a "
            "shorter warm-up (a twentieth of the steps, say) or more steps."
        )


def _check_schedule_name(name: str) -> None:
    if name in _METRIC_DRIVEN:
        raise ValueError(
            "`lr_scheduler_type` must be a function of the step, got "
            f"{name!r}, which follows a metric. Drive it in your own loop with "
            "`get_scheduler` and `set_learning_rate`, or take 'cosine'."
        )
    _check.one_of("lr_scheduler_type", name, SCHEDULES)


def _check_schedule(recipe: Recipe) -> None:
    """Asks the schedule itself whether it takes these arguments."""
    try:
        get_scheduler(
            recipe.lr_scheduler_type,
            recipe.learning_rate,
            recipe.warmup_steps,
            recipe.max_steps,
            dict(recipe.lr_scheduler_kwargs),
        )
    except (TypeError, ValueError) as error:
        # In the schedule's own words, where step counts have another name.
        told = str(error).replace("`num_training_steps`", "`max_steps`")
        told = told.replace("`num_warmup_steps`", "`warmup_steps`")
        raise type(error)(
            f"`lr_scheduler_type` {recipe.lr_scheduler_type!r} with "
            f"`lr_scheduler_kwargs` {dict(recipe.lr_scheduler_kwargs)!r}: {told}"
        ) from error
