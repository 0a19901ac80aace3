"""Recipe: every number that decides an update, once, checked once."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from .. import _check
from .._typing import Schedule
from ..schedules import MetricDrivenSchedule, get_scheduler

OPTIMIZERS = ("adamw_torch", "adafactor")
_PHASED = "warmup_stable_decay"
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


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The numbers of a run, under the names and with the defaults of TrainingArguments.

    Attributes:
        max_steps: number of updates; at least 1.
        per_device_train_batch_size: sequences of a micro-batch on one device; at least
            1.
        gradient_accumulation_steps: micro-batches of an update; at least 1.
        learning_rate: the schedule's highest rate (the first, where a metric drives
            it); at least 0.
        lr_scheduler_type: the schedule's name, as `get_scheduler` takes it.
        lr_scheduler_kwargs: the schedule's further arguments. A mapping is taken, and
            kept as sorted pairs, so that a recipe is hashable.
        warmup_steps: updates during which the rate climbs, at most `max_steps`; or,
            below 1, their share of `max_steps`, rounded up. 0 where a metric drives the
            rate.
        optim: "adamw_torch", or "adafactor" with the rate given, as the Trainer has it.
        weight_decay: share taken off per unit of rate; biases and normalisation layers
            are left out.
        adam_beta1: decay rate of AdamW's first moment; from 0 to below 1.
        adam_beta2: decay rate of AdamW's second moment; from 0 to below 1.
        adam_epsilon: added to AdamW's denominator; at least 0.
        max_grad_norm: limit of the gradients' joint norm; 0 for no clipping.
        label_smoothing_factor: share of the loss that is the mean over all classes;
            from 0 to below 1.
        seed: of parameters, dropout and the order of the text; from 0 to 2^31 - 1.

    Raises:
        ValueError, TypeError: if a number is out of range, a name is unknown, the
            warm-up is longer than the training, the schedule refuses its arguments, or
            its phases are longer than the training.

    Source: transformers 5.23 `training_args.py`, `TrainingArguments`.
    Differs: phases that training would never reach the end of are refused, and so is a
        warm-up that the schedule would ignore because a metric drives it.
    """

    max_steps: int
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    learning_rate: float = 5e-5
    lr_scheduler_type: str = "linear"
    lr_scheduler_kwargs: Mapping[str, Any] | tuple[tuple[str, Any], ...] = ()
    warmup_steps: int | float = 0
    optim: str = "adamw_torch"
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    label_smoothing_factor: float = 0.0
    seed: int = 42

    def __post_init__(self) -> None:
        """Checks every field, and makes counts ints and the mapping pairs."""
        for name in (
            "max_steps",
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "seed",
        ):
            least = 0 if name in ("max_steps", "seed") else 1
            _set(self, name, _check.step_count(name, getattr(self, name), least=least))
        _set(self, "warmup_steps", _count_or_share("warmup_steps", self.warmup_steps))
        for name in ("learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm"):
            _check.non_negative(name, getattr(self, name))
        for name in ("adam_beta1", "adam_beta2", "label_smoothing_factor"):
            _check.fraction_below_one(name, getattr(self, name))
        _check.one_of("optim", self.optim, OPTIMIZERS)
        _check.one_of("lr_scheduler_type", self.lr_scheduler_type, SCHEDULES)
        _check_steps(self)
        _set(self, "lr_scheduler_kwargs", _sorted_pairs(self.lr_scheduler_kwargs))
        _check_schedule(self)
        _check_phases(self)

    @property
    def num_warmup_steps(self) -> int:
        """Updates during which the rate climbs.

        Source: transformers 5.23 `training_args.py`, `get_warmup_steps`.
        """
        if isinstance(self.warmup_steps, int):
            return self.warmup_steps
        return math.ceil(self.max_steps * self.warmup_steps)


def scheduler_of(recipe: Recipe) -> Schedule | MetricDrivenSchedule:
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


def _set(recipe: Recipe, name: str, value: Any) -> None:
    object.__setattr__(recipe, name, value)  # frozen for everyone else


def _count_or_share(name: str, value: Any) -> int | float:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if is_number and 0 < float(value) < 1:
        return float(value)
    if not is_number or not float(value).is_integer():
        raise TypeError(
            f"`{name}` must be a whole number of steps, or a share of `max_steps` "
            f"below 1, got {value!r}."
        )
    return _check.step_count(name, value)


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


def _check_steps(recipe: Recipe) -> None:
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


def _check_schedule(recipe: Recipe) -> None:
    """Asks the schedule itself whether it takes these arguments."""
    try:
        scheduler_of(recipe)
    except (TypeError, ValueError) as error:
        # In the schedule's own words, where step counts have another name.
        told = str(error).replace("`num_training_steps`", "`max_steps`")
        told = told.replace("`num_warmup_steps`", "`warmup_steps`")
        raise type(error)(
            f"`lr_scheduler_type` {recipe.lr_scheduler_type!r} with "
            f"`lr_scheduler_kwargs` {dict(recipe.lr_scheduler_kwargs)!r}: {told}"
        ) from error


def _check_phases(recipe: Recipe) -> None:
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
