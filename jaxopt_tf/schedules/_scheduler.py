"""`get_scheduler`: a schedule by the name that `lr_scheduler_type` takes."""

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
    """Returns the schedule of this name, with Transformers' defaults.

    Args:
        name: linear, cosine, cosine_with_restarts, polynomial, constant,
            constant_with_warmup, inverse_sqrt, reduce_lr_on_plateau,
            cosine_with_min_lr, cosine_warmup_with_min_lr, warmup_stable_decay or
            greedy; a `transformers.SchedulerType` too.
        learning_rate: the highest rate (the first, for the two that a metric drives).
        num_warmup_steps: needed by all but constant and the two that a metric drives.
        num_training_steps: needed by those that end; warmup_stable_decay may have
            `num_stable_steps` instead. A count that a schedule does not need is
            ignored, because the Trainer passes both to every schedule.
        scheduler_specific_kwargs: the further arguments of the schedule, by name.

    Returns:
        A schedule; for reduce_lr_on_plateau and greedy a `MetricDrivenSchedule`, a pair
        of `init` and `update` instead.

    Raises:
        ValueError: if the name is unknown, a count that it needs is missing, an option
            is not one of the schedule's, or a value is out of its range.

    Example:
        >>> schedule = get_scheduler("linear", 1e-3, 10, 110)
        >>> schedule
        linear(learning_rate=0.001, num_warmup_steps=10, num_training_steps=110)
        >>> print(schedule(5), schedule(10), schedule(60), schedule(110))
        0.0005 0.001 0.0005 0.0

    Source: transformers 5.23 `optimization.py`, `get_scheduler`.
    Differs: options for constant and constant_with_warmup are refused, not ignored, and
    `verbose` is not an option: nothing is printed.
    """
    name = getattr(name, "value", name)
    _checks.one_of("name", name, _SCHEDULES)
    function = _SCHEDULES[name]
    # Counts are parameters like any other; those of other schedules are left out.
    parameters = dict(inspect.signature(function).parameters)
    del parameters["learning_rate"]
    given = {
        "num_warmup_steps": num_warmup_steps,
        "num_training_steps": num_training_steps,
    }
    counts = {count: value for count, value in given.items() if count in parameters}
    required = [key for key, p in parameters.items() if p.default is p.empty]
    for count, value in counts.items():
        if value is None and count in required:
            raise ValueError(
                f"`{count}` must be given for {name!r}, got None. Pass the number of "
                "steps, 0 included."
            )
    options = dict(scheduler_specific_kwargs or {})
    known = [key for key in parameters if key not in given]
    unknown = [option for option in options if option not in known]
    if unknown:
        listed = ", ".join(map(repr, known)) or "no options"
        hint = _checks.nearest(unknown[0], known)
        raise ValueError(
            f"`scheduler_specific_kwargs` must hold only what {name!r} takes, got "
            f"{', '.join(map(repr, unknown))}. It takes {listed}.{hint}"
        )
    for option in required:
        if option not in counts and option not in options:
            raise ValueError(
                f"`{option}` must be given for {name!r}, got nothing. Pass it in "
                "`scheduler_specific_kwargs`."
            )
    arguments = {"learning_rate": learning_rate, **counts, **options}
    made: Schedule | MetricDrivenSchedule = function(**arguments)
    return described(made, name, arguments)
