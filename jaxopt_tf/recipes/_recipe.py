"""`Recipe`: the validated hyperparameters of a run, and its learning rate schedule."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

from .. import _checks
from .._argument_names import checked_fields
from .._typing import Schedule
from ..optimizers import DECAY_RULES
from ..schedules import MetricDrivenSchedule, get_scheduler
from ._optimizers import (
    ALGORITHMS,
    named_optimizer,
    optimizer_refusal,
    read_optim_args,
)
from ._rate_groups import ParamGroup, read_rate_groups, sorted_pairs

_PHASED = "warmup_stable_decay"
# Schedules that are driven by a metric and not by the step.
METRIC_DRIVEN = ("reduce_lr_on_plateau", "greedy")
# Optimizers that cannot be combined with others, by regular expressions, and why.
_ALONE = {
    "schedule_free_.*": "it evaluates the model with averages of all parameters",
    "(ada)?lomo": "it ignores `max_grad_norm`, which clips all gradients together",
}
# Arguments of `get_scheduler` -> fields of a recipe. Its error messages are reported
# with the name of the field, which is what the user has set.
_FIELDS_OF_ARGUMENTS = {
    "`name`": "`lr_scheduler_type`",
    "`num_training_steps`": "`max_steps`",
    "`num_warmup_steps`": "`warmup_steps`",
    "`scheduler_specific_kwargs`": "`lr_scheduler_kwargs`",
}


@checked_fields
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Hyperparameters of a run, with the names and defaults of `TrainingArguments`.

    Attributes:
        max_steps: number of updates; at least 1.
        per_device_train_batch_size: sequences per micro-batch and device; at least 1.
        gradient_accumulation_steps: micro-batches per update; at least 1.
        learning_rate: peak rate of the schedule, or first rate of a metric-driven
            schedule; at least 0.
        lr_scheduler_type: name of the schedule, as in `get_scheduler`.
        lr_scheduler_kwargs: further arguments of the schedule. A mapping is stored as
            sorted pairs, so that a recipe is hashable.
        warmup_steps: number of warmup steps, at most `max_steps`; a value below 1 is a
            fraction of `max_steps`, rounded up. 0 for a metric-driven schedule.
        optim: name of the optimizer: "adamw_torch" (or one of its other kernels),
            "adamw_hf" of Transformers 4, "adafactor" with a given rate, as in Trainer,
            "sgd", "adagrad", "rmsprop", "lion_32bit", or "schedule_free_adamw",
            "schedule_free_radam" and "schedule_free_sgd", which are evaluated and saved
            with averaged parameters; or "muon", which Trainer does not have: Muon of
            torch for matrices and AdamW for other parameters.
        optim_args: further arguments of sgd (momentum, dampening, nesterov), adagrad
            (lr_decay, eps), rmsprop (momentum, alpha, eps, centered), the schedule-free
            optimizers (r, weight_lr_power) and muon (momentum, nesterov, ns_steps,
            ns_dtype, adjust_lr_fn, adamw_rate_factor, matrices): a mapping, or a string
            "momentum=0.9,nesterov=true". Stored as sorted pairs.
        weight_decay: coefficient of decoupled weight decay, which is multiplied by the
            rate. For sgd, adagrad and rmsprop, `weight_decay` times the parameter is
            added to the gradient.
        decay_rule: rule of `decay_mask` that selects the parameters without weight
            decay: "default", "transformers_v5", "transformers_4_46" and others for the
            versions of Transformers, "examples", or "all" to decay every parameter; or
            regular expressions that are searched in names of parameters, where a match
            excludes the parameter.
        rate_groups: parameters with their own learning rate or optimizer: a list of
            `ParamGroup`, or of mappings of its fields. The first pattern that is found
            in a name counts. Gradients are clipped together.
        adam_beta1: decay rate of AdamW's first moment, the first beta of Lion; from 0
            to below 1.
        adam_beta2: decay rate of AdamW's second moment, the second beta of Lion; from
            0 to below 1.
        adam_epsilon: constant added to AdamW's denominator; at least 0.
        max_grad_norm: maximum of the global gradient norm; 0 for no clipping.
        ema_decay: weight of the old mean in an exponential mean of the parameters, with
            which the model is evaluated and saved; from 0 to below 1. None for no mean.
        label_smoothing_factor: weight of the mean over all classes in the loss; from 0
            to below 1.
        seed: seed of parameters, dropout and data order; from 0 to 2^32 - 1.

    Raises:
        ValueError, TypeError: if a value is out of range, a name is unknown, the warmup
            or the phases are longer than the training, the schedule or the optimizer
            rejects its arguments, rate groups are given with a metric-driven schedule,
            or groups have optimizers that cannot be combined.

    Examples:
        >>> recipe = Recipe(max_steps=1000, learning_rate=3e-4, warmup_steps=50)
        >>> recipe.optim, recipe.max_grad_norm
        ('adamw_torch', 1.0)

    Source: transformers 5.23 `training_args.py`, `TrainingArguments`.
    Differs: phases that end after `max_steps` are rejected. A warmup is rejected for a
        metric-driven schedule, which would ignore it. `warmup_steps` that are a
        fraction are the same number of steps for the schedule and for a schedule-free
        optimizer; Trainer passes the fraction to the optimizer.
    """

    max_steps: int
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    learning_rate: float = 5e-5
    lr_scheduler_type: str = "linear"
    lr_scheduler_kwargs: Mapping[str, Any] | tuple[tuple[str, Any], ...] = ()
    warmup_steps: int | float = 0
    optim: str = "adamw_torch"
    optim_args: str | Mapping[str, Any] | tuple[tuple[str, Any], ...] = ()
    weight_decay: float = 0.0
    decay_rule: str | tuple[str, ...] = "default"
    rate_groups: tuple[ParamGroup, ...] = ()
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    ema_decay: float | None = None
    label_smoothing_factor: float = 0.0
    seed: int = 42

    def __post_init__(self) -> None:
        """Checks all fields; converts counts to int and mappings to sorted pairs."""
        batch = ("per_device_train_batch_size", "gradient_accumulation_steps")
        for name in ("max_steps", *batch):
            _set(self, name, _checks.step_count(name, getattr(self, name), minimum=1))
        _set(self, "seed", _checks.seed("seed", self.seed))
        _set(
            self, "warmup_steps", _count_or_fraction("warmup_steps", self.warmup_steps)
        )
        for name in ("learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm"):
            _checks.non_negative(name, getattr(self, name))
        for name in ("adam_beta1", "adam_beta2", "label_smoothing_factor"):
            _checks.fraction_below_one(name, getattr(self, name))
        if self.ema_decay is not None:
            _checks.fraction_below_one("ema_decay", self.ema_decay)
        _set(self, "decay_rule", _decay_rule(self.decay_rule))
        # From here on, checks build schedules and optimizers from fields that were
        # checked above.
        _check_warmup(self)
        _set(self, "lr_scheduler_kwargs", sorted_pairs(self.lr_scheduler_kwargs))
        _check_schedule(self)
        _check_optimizer(self)
        _set(self, "rate_groups", read_rate_groups(self.rate_groups))
        _check_groups(self)

    @property
    def num_warmup_steps(self) -> int:
        """Number of warmup steps.

        Source: transformers 5.23 `training_args.py`, `get_warmup_steps`.
        """
        if isinstance(self.warmup_steps, int):
            return self.warmup_steps
        return math.ceil(self.max_steps * self.warmup_steps)


def build_schedule(recipe: Recipe) -> Schedule | MetricDrivenSchedule:
    """Returns the schedule of the parameters that are in no rate group.

    Args:
        recipe: the hyperparameters of the run.

    Returns:
        A function of the step, () int -> () float32. For "reduce_lr_on_plateau" and
        "greedy" a `MetricDrivenSchedule`, whose `update` the training loop calls after
        every evaluation.

    Examples:
        >>> recipe = Recipe(max_steps=100, learning_rate=1e-3)
        >>> print(build_schedule(recipe)(50))  # linear, without warmup
        0.0005
    """
    options = dict(recipe.lr_scheduler_kwargs)
    # `get_wsd_schedule` warns if both the total and the number of stable steps are
    # given; the total is then determined by the phases.
    has_all_phases = options.get("num_stable_steps") is not None
    is_length_from_phases = recipe.lr_scheduler_type == _PHASED and has_all_phases
    return get_scheduler(
        recipe.lr_scheduler_type,
        recipe.learning_rate,
        recipe.num_warmup_steps,
        None if is_length_from_phases else recipe.max_steps,
        options,
    )


def recipe_settings(recipe: Recipe) -> dict[str, Any]:
    """Converts a recipe to a dict that can be serialized as JSON.

    `Recipe(**settings)` is an equal recipe, also after a round trip through JSON.
    """
    settings = dict(vars(recipe))
    groups = [
        {"pattern": group.pattern, "factor": group.factor, **group.overrides}
        for group in recipe.rate_groups
    ]
    for fields in (settings, *groups):
        for name in {"lr_scheduler_kwargs", "optim_args"} & fields.keys():
            fields[name] = dict(fields[name])
    return settings | {"rate_groups": groups}


def _set(recipe: Recipe, name: str, value: Any) -> None:
    object.__setattr__(recipe, name, value)  # a frozen dataclass has no other way


def _count_or_fraction(name: str, value: Any) -> int | float:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if is_number and 0 < float(value) < 1:
        return float(value)
    if not is_number or not float(value).is_integer():
        raise TypeError(
            f"`{name}` must be a whole number of steps, or a fraction of `max_steps` "
            f"below 1, got {value!r}."
        )
    return _checks.step_count(name, value)


def _decay_rule(value: Any) -> str | tuple[str, ...]:
    if not isinstance(value, list | tuple):
        _checks.one_of("decay_rule", value, DECAY_RULES)
        return str(value)
    if not value:
        return "all"
    # The command line passes a list, also for the name of a single rule.
    if len(value) == 1 and value[0] in DECAY_RULES:
        return str(value[0])
    for pattern in value:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(
                "`decay_rule` must be the name of a rule or regular expressions, got "
                f"{pattern!r}: {error}."
            ) from error
    return tuple(value)


def _check_warmup(recipe: Recipe) -> None:
    """Raises if the warmup is too long, or if the schedule has no warmup."""
    if recipe.num_warmup_steps > recipe.max_steps:
        raise ValueError(
            f"`warmup_steps` must be at most `max_steps`, which is {recipe.max_steps}, "
            f"got {recipe.warmup_steps!r}: training would end during the warmup. Use "
            "a shorter warmup (for example 0.05, a twentieth of all steps) or more "
            "steps."
        )
    if recipe.num_warmup_steps > 0 and recipe.lr_scheduler_type in METRIC_DRIVEN:
        raise ValueError(
            f"`warmup_steps` must be 0 with {recipe.lr_scheduler_type!r}, which has no "
            f"warmup, got {recipe.warmup_steps!r}. Remove it, or use a schedule with "
            "warmup, such as 'cosine'."
        )


def _check_schedule(recipe: Recipe) -> None:
    """Raises if the schedule rejects its arguments or is longer than the training."""
    options = dict(recipe.lr_scheduler_kwargs)
    try:
        build_schedule(recipe)
    except (TypeError, ValueError) as error:
        message = str(error)
        for argument, field in _FIELDS_OF_ARGUMENTS.items():
            message = message.replace(argument, field)
        # The message for an unknown name starts with the field already.
        if not message.startswith("`lr_scheduler_type`"):
            message = (
                f"`lr_scheduler_type` {recipe.lr_scheduler_type!r} with "
                f"`lr_scheduler_kwargs` {options!r}: {message}"
            )
        raise type(error)(message) from error
    if recipe.lr_scheduler_type != _PHASED:
        return
    stable = int(options.get("num_stable_steps") or 0)
    decay = int(options["num_decay_steps"])
    total = recipe.num_warmup_steps + stable + decay
    if total > recipe.max_steps:
        raise ValueError(
            f"`lr_scheduler_kwargs` must have phases of at most `max_steps` = "
            f"{recipe.max_steps} steps in total, got {recipe.num_warmup_steps} warmup "
            f"steps, `num_stable_steps` {stable} and `num_decay_steps` {decay}, "
            f"{total} in total. Shorten a phase, or use more steps."
        )


def _check_optimizer(recipe: Recipe) -> None:
    """Raises if the optimizer is not supported or rejects the recipe's values."""
    refusal = optimizer_refusal(recipe.optim)
    if refusal is not None:
        raise ValueError(refusal)
    _set(recipe, "optim_args", read_optim_args(recipe.optim, recipe.optim_args))
    if ALGORITHMS[recipe.optim].is_averaging and recipe.ema_decay is not None:
        raise ValueError(
            f"`ema_decay` must be left out with the `optim` {recipe.optim!r}, which "
            f"averages the parameters itself, got {recipe.ema_decay!r}."
        )
    settings = {**vars(recipe), "warmup_steps": recipe.num_warmup_steps}
    try:
        named_optimizer(recipe.learning_rate, settings)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"`optim` {recipe.optim!r} with `optim_args` {recipe.optim_args!r}: {error}"
        ) from error


def _check_optimizers_fit(optim: str, group_optim: str, pattern: str) -> None:
    """Raises if a group's optimizer cannot be combined with that of the recipe."""
    for name in (optim, group_optim):
        reasons = [r for p, r in _ALONE.items() if re.fullmatch(p, name)]
        if reasons and optim != group_optim:
            raise ValueError(
                f"`rate_groups` {pattern!r}: `optim` {name!r} must be that of all "
                f"parameters, got {group_optim!r} in the group and {optim!r} for the "
                f"others: {reasons[0]}. Use one of them for all, or another optimizer."
            )


def _check_groups(recipe: Recipe) -> None:
    """Raises unless the recipe is valid with the overrides of each group."""
    for group in recipe.rate_groups:
        try:
            group_recipe = replace(recipe, rate_groups=(), **group.overrides)
        except (TypeError, ValueError) as error:
            raise type(error)(f"`rate_groups` {group.pattern!r}: {error}") from error
        _check_optimizers_fit(recipe.optim, group_recipe.optim, group.pattern)
        driven = {recipe.lr_scheduler_type, group_recipe.lr_scheduler_type} & {
            *METRIC_DRIVEN
        }
        if driven:
            raise ValueError(
                f"`rate_groups` must be empty with {min(driven)!r}, got "
                f"{group.pattern!r}: a metric-driven schedule has one rate for all "
                "parameters. Use a schedule of the step, or remove the groups."
            )
