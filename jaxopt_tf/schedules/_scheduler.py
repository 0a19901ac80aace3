"""`get_scheduler`: schedules by their names in Transformers (`lr_scheduler_type`)."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from .. import _checks
from .._argument_names import checked_names
from .._typing import Scalar, Schedule
from . import _transformers, _transformers_floors
from ._metric_driven import MetricDrivenSchedule, greedy, reduce_lr_on_plateau
from ._repr import described

_SCHEDULES: dict[str, Callable[..., Any]] = {
    "linear": _transformers.get_linear_schedule_with_warmup,
    "cosine": _transformers.get_cosine_schedule_with_warmup,
    "cosine_with_restarts": (
        _transformers.get_cosine_with_hard_restarts_schedule_with_warmup
    ),
    "polynomial": _transformers.get_polynomial_decay_schedule_with_warmup,
    "constant": _transformers.get_constant_schedule,
    "constant_with_warmup": _transformers.get_constant_schedule_with_warmup,
    "inverse_sqrt": _transformers.get_inverse_sqrt_schedule,
    "reduce_lr_on_plateau": reduce_lr_on_plateau,
    "cosine_with_min_lr": (
        _transformers_floors.get_cosine_with_min_lr_schedule_with_warmup
    ),
    "cosine_warmup_with_min_lr": (
        _transformers_floors.get_cosine_with_min_lr_schedule_with_warmup_lr_rate
    ),
    "warmup_stable_decay": _transformers_floors.get_wsd_schedule,
    "greedy": greedy,
}


@checked_names
def get_scheduler(
    name: str,
    learning_rate: Scalar,
    num_warmup_steps: int | None = None,
    num_training_steps: int | None = None,
    scheduler_specific_kwargs: Mapping[str, Any] | None = None,
) -> Schedule | MetricDrivenSchedule:
    """Returns a schedule by name, with the defaults of Transformers.

    Args:
        name: linear, cosine, cosine_with_restarts, polynomial, constant,
            constant_with_warmup, inverse_sqrt, reduce_lr_on_plateau,
            cosine_with_min_lr, cosine_warmup_with_min_lr, warmup_stable_decay or
            greedy; or a `transformers.SchedulerType`.
        learning_rate: peak rate, or first rate of a metric-driven schedule.
        num_warmup_steps: required by all schedules except constant and the two
            metric-driven ones.
        num_training_steps: required by schedules with an end; warmup_stable_decay
            accepts `num_stable_steps` instead. A count that is not a parameter of the
            schedule is ignored, because Trainer passes both counts to every schedule.
        scheduler_specific_kwargs: further arguments of the schedule, by name.

    Returns:
        A schedule; for reduce_lr_on_plateau and greedy a `MetricDrivenSchedule`.

    Raises:
        ValueError: if the name is unknown, a required count is missing, an option is
            not one of the schedule's, or a value is out of range.

    Examples:
        >>> schedule = get_scheduler(
        ...     "linear", 1e-3, num_warmup_steps=10, num_training_steps=110
        ... )
        >>> schedule
        linear(learning_rate=0.001, num_warmup_steps=10, num_training_steps=110)
        >>> print(schedule(5), schedule(10), schedule(60), schedule(110))
        0.0005 0.001 0.0005 0.0

    Source: transformers 5.23 `optimization.py`, `get_scheduler`.
    Differs: options for constant and constant_with_warmup are rejected instead of
    ignored. There is no option `verbose`.
    """
    name = getattr(name, "value", name)
    _checks.one_of("name", name, _SCHEDULES)
    function = _SCHEDULES[name]
    # Only counts that are parameters of the function are passed to it. The functions
    # are decorated, but `inspect.signature` returns their original parameters.
    parameters = dict(inspect.signature(function).parameters)
    del parameters["learning_rate"]
    both_counts = {
        "num_warmup_steps": num_warmup_steps,
        "num_training_steps": num_training_steps,
    }
    counts = {
        count: value for count, value in both_counts.items() if count in parameters
    }
    required = [key for key, p in parameters.items() if p.default is p.empty]
    for count, value in counts.items():
        if value is None and count in required:
            raise ValueError(
                f"`{count}` must be given for {name!r}, got None. Pass the number of "
                "steps, which may be 0."
            )
    options = dict(scheduler_specific_kwargs or {})
    known = [key for key in parameters if key not in both_counts]
    unknown = [option for option in options if option not in known]
    if unknown:
        listed = ", ".join(map(repr, known)) or "none"
        hint = _checks.suggest(unknown[0], known)
        raise ValueError(
            f"`scheduler_specific_kwargs` must contain only options of {name!r}, got "
            f"{', '.join(map(repr, unknown))}. Its options: {listed}.{hint}"
        )
    for option in required:
        if option not in counts and option not in options:
            raise ValueError(
                f"`{option}` must be given for {name!r}, got no value. Pass it in "
                "`scheduler_specific_kwargs`."
            )
    arguments = {"learning_rate": learning_rate, **counts, **options}
    schedule: Schedule | MetricDrivenSchedule = function(**arguments)
    return described(schedule, name, arguments)
