"""Conversion of `scheduler.pt`, which contains the state of the schedule.

The file contains the step for a schedule of the step, and the state for a metric-driven
schedule.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import _checks, schedules
from .._typing import Schedule
from ..recipes import METRIC_DRIVEN, Recipe, build_schedule
from ..schedules import (
    AverageState,
    GreedyState,
    MetricDrivenSchedule,
    PlateauState,
    greedy,
)
from ._arrays import as_tensor
from ._extras import import_extra
from ._group_settings import TORCHAO_ADAMW
from ._trainer_folder import SCHEDULER, STATE

# Relative tolerance between the rate in a file and the rate of the recipe's schedule.
_RELATIVE = 1e-6
# Absolute tolerance, relative to the base rate. Near the end of a cosine, 1 + cos(x)
# cancels, and doubles have no better accuracy.
_ABSOLUTE = 1e-15

_FUNCTIONS = {
    "reduce_lr_on_plateau": schedules.reduce_lr_on_plateau,
    "greedy": greedy,
}
# torch's keys for the counters of a state. `PlateauState` has only the first two
# counters.
_COUNTERS = {
    "num_bad_updates": "num_bad_epochs",
    "cooldown_left": "cooldown_counter",
    "num_good_updates": "num_good_epochs",
    "warmup_left": "warmup_counter",
    "reset_left": "reset_start",
}
# torch's keys for settings that have another name in torch. Those of `_LISTS` have one
# value for each parameter group.
_LISTS = {"min_lr": "min_lrs", "max_lr": "max_lrs"}
_SETTINGS = {**_LISTS, "reset_start": "reset_start_original"}


def schedule_from_torch(
    scheduler_state: Any, recipe: Recipe, global_step: int | None
) -> tuple[int, PlateauState | GreedyState | None]:
    """Returns the step passed to the schedule next, and a metric-driven state.

    For a metric-driven schedule the step is the number of metrics that it received.

    Args:
        scheduler_state: torch's `scheduler.state_dict()`; None without a file.
        recipe: the recipe of the run.
        global_step: `global_step` of Trainer; None if unknown.

    Returns:
        The step, and the state of a metric-driven schedule or None.

    Raises:
        ValueError: if the state contradicts the recipe or `global_step`.
    """
    schedule = build_schedule(recipe)
    if scheduler_state is None:
        if isinstance(schedule, MetricDrivenSchedule):
            return 0, schedule.init()
        assert global_step is not None  # `check_files` requires one of the two files
        return global_step, None
    if not isinstance(scheduler_state, Mapping):
        raise ValueError(
            f"{SCHEDULER} must contain the state of a scheduler, got "
            f"{type(scheduler_state).__name__}."
        )
    if isinstance(schedule, MetricDrivenSchedule):
        name, settings = recipe.lr_scheduler_type, dict(recipe.lr_scheduler_kwargs)
        if global_step is None:
            raise ValueError(
                f"`folder` must contain {STATE} for {name!r}, got a folder without "
                f"it: {SCHEDULER} contains the number of metrics, not the step."
            )
        state = metric_state_from_torch(scheduler_state, name, settings)
        num_metrics = scheduler_state["last_epoch"]
        return _checks.step_count("last_epoch", num_metrics), state
    # Trainer increments `global_step` also for an update that torch's loss scaling
    # skips, but not the schedule.
    step = schedule_step_from_torch(scheduler_state, schedule)
    if global_step is not None and step > global_step:
        raise ValueError(
            f"{SCHEDULER} must belong to the same step as {STATE}, got {step} steps "
            f"of the schedule and a `global_step` of {global_step}. Copy the folder "
            "again."
        )
    return step, None


def torch_from_schedule(
    recipe: Recipe, position: int, state: PlateauState | GreedyState | None
) -> dict[str, Any]:
    """Returns torch's scheduler state; `_last_lr` is the rate of the next update.

    Args:
        recipe: the recipe of the run.
        position: step passed to the schedule next; for a metric-driven schedule, the
            number of metrics that it received.
        state: state of a metric-driven schedule; else None.
    """
    if recipe.lr_scheduler_type not in METRIC_DRIVEN:
        return torch_from_schedule_step(position, recipe)
    if state is None:
        raise ValueError(
            f"`schedule_state` must be given for {recipe.lr_scheduler_type!r}, got "
            "None. Pass the state of the schedule."
        )
    # Trainer has two groups, with and without weight decay, of one base rate.
    bases = [float(recipe.learning_rate)] * 2
    settings = dict(recipe.lr_scheduler_kwargs)
    return torch_from_metric_state(state, settings, bases, position)


def schedule_step_from_torch(
    scheduler_state: Mapping[str, Any], schedule: Schedule
) -> int:
    """Returns the step passed to the schedule next, from the state of a `LambdaLR`.

    The file contains the number of steps and the rate at that step, but not the shape
    of the schedule. The rate is compared with that of `schedule`, to detect a run that
    resumes with another schedule.

    Args:
        scheduler_state: torch's `scheduler.state_dict()`.
        schedule: schedule of the run.

    Raises:
        ValueError: if the state is not that of a `LambdaLR`, or if the rate of a group
            differs from that of the schedule by more than 1e-6 of it.

    Source: torch 2.13 `optim/lr_scheduler.py`, `LambdaLR.state_dict`; `last_epoch` is
        the argument of the next update's rate, which is already in the optimizer.
    """
    needed = ("last_epoch", "_last_lr", "base_lrs", "lr_lambdas")
    missing = [key for key in needed if key not in scheduler_state]
    if missing:
        raise _checks.ArgumentError(
            "recipe",
            "`scheduler_state` must be the state of torch's LambdaLR, got one without "
            f"{missing}.",
            "Use the recipe that the run was started with.",
        )
    step = _checks.step_count("last_epoch", scheduler_state["last_epoch"])
    rates = [float(rate) for rate in scheduler_state["_last_lr"]]
    expected, bases = float(schedule(step)), scheduler_state["base_lrs"]
    for group, (rate, base) in enumerate(zip(rates, bases, strict=True)):
        # The condition is negated, so that NaN fails it.
        if not abs(rate - expected) <= _RELATIVE * abs(expected) + _ABSOLUTE * abs(
            base
        ):
            raise _checks.ArgumentError(
                "recipe",
                f"`scheduler_state` contradicts the recipe: after {step} steps its "
                f"rate is {rate!r} in group {group}, and the recipe's is {expected!r}.",
                "Use the recipe that the run was started with.",
            )
    return step


def torch_from_schedule_step(step: int, recipe: Recipe) -> dict[str, Any]:
    """Returns the state from which the schedule of Transformers resumes.

    Transformers computes the rate in the state in double precision. A run that is
    exported and imported again therefore has the same bits as an uninterrupted run.

    Args:
        step: step passed to the schedule next.
        recipe: the recipe of the run, with a schedule of the step.

    Source: torch 2.13 `optim/lr_scheduler.py`, `LambdaLR.state_dict`; transformers 5.23
        `optimization.py`, `get_scheduler`.
    """
    torch = import_extra("torch")
    transformers = import_extra("transformers")

    step = _checks.step_count("step", step)
    base: Any = float(recipe.learning_rate)
    if recipe.optim in TORCHAO_ADAMW:
        # The rates in the groups of torchao are tensors, which torch multiplies in
        # float32.
        base = as_tensor(np.array(base, np.float32))
    # Two groups as Trainer's; the parameters in them are placeholders.
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(2)]
    scheduler = transformers.get_scheduler(
        recipe.lr_scheduler_type,
        torch.optim.SGD(groups, lr=base),
        recipe.num_warmup_steps,
        recipe.max_steps,
        dict(recipe.lr_scheduler_kwargs) or None,
    )
    # The schedule has written its first rate into a `base` that is a tensor. It keeps
    # the original in `base_lrs`.
    pairs = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    # torch calls `step` once on construction, so `_step_count` is ahead by one.
    return {
        **scheduler.state_dict(),
        "last_epoch": step,
        "_step_count": step + 1,
        "_last_lr": [rate * factor(step) for rate, factor in pairs],
    }


def metric_state_from_torch(
    scheduler_state: Mapping[str, Any], name: str, settings: Mapping[str, Any]
) -> PlateauState | GreedyState:
    """Reads the state of `reduce_lr_on_plateau` or `greedy` from `scheduler.pt`.

    The rate and the metrics are the doubles of torch, without rounding.

    Args:
        scheduler_state: torch's `scheduler.state_dict()`.
        name: "reduce_lr_on_plateau" or "greedy".
        settings: the recipe's `lr_scheduler_kwargs`; other settings have their default.

    Raises:
        ValueError: if the state is not that of this schedule, if groups have different
            rates, or if settings contradict the recipe (all are listed).

    Source: torch 2.13 `optim/lr_scheduler.py`, `ReduceLROnPlateau.state_dict`;
        transformers 5.23 `optimization.py`, `GreedyLR.state_dict`.
    """
    _checks.one_of("name", name, _FUNCTIONS)
    state_type = GreedyState if name == "greedy" else PlateauState
    counters = {f: key for f, key in _COUNTERS.items() if f in state_type._fields}
    expected_settings = _settings(name, settings)
    # Keys by which the two schedules are distinguished. `GreedyLR` has no `mode_worse`.
    known_keys = {"best", "_last_lr", *counters.values(), *expected_settings}
    known_keys |= {"mode_worse"} if state_type is PlateauState else set()
    missing = sorted(known_keys - set(scheduler_state))
    if missing:
        raise _checks.ArgumentError(
            "recipe",
            f"`scheduler_state` must be that of {name!r}, got one without {missing}.",
            "Use the schedule of the file.",
        )
    unexpected = [
        f"`{key}` is {found!r} and the recipe's {value!r}"
        for key, value in expected_settings.items()
        for found in [scheduler_state[key]]
        if any(one != value for one in (found if _is_list(found) else [found]))
    ]
    if unexpected:
        raise _checks.ArgumentError(
            "recipe",
            f"`scheduler_state` contradicts the recipe: {'; '.join(unexpected)}.",
            "Use the recipe that the run was started with.",
        )
    # The rates of torchao are tensors, which a set compares by their identity.
    rates = [float(rate) for rate in scheduler_state["_last_lr"]]
    for rate in rates:
        _checks.non_negative("_last_lr", rate)
    if len(set(rates)) != 1:
        raise ValueError(
            "`scheduler_state` must have one rate for all groups, got "
            f"{list(rates)}: a metric-driven schedule has a single rate."
        )
    best = float(scheduler_state["best"])
    if math.isnan(best):  # infinite before the first metric
        raise ValueError("`best` must be a number, got nan: the file is damaged.")
    fields: dict[str, Any] = {
        field: _checks.step_count(key, scheduler_state[key])
        for field, key in counters.items()
    }
    if state_type is GreedyState:
        fields["average"] = _average(scheduler_state)
    return state_type(learning_rate=float(rates[0]), best=best, **fields)


def torch_from_metric_state(
    state: PlateauState | GreedyState,
    settings: Mapping[str, Any],
    base_lrs: Sequence[float],
    num_metrics: int,
) -> dict[str, Any]:
    """Returns the state from which `ReduceLROnPlateau` or `GreedyLR` continues.

    Args:
        state: state of the schedule.
        settings: the recipe's `lr_scheduler_kwargs`.
        base_lrs: initial rate of each parameter group.
        num_metrics: number of metrics that the schedule received, which torch stores
            without using it.

    Source: as for `metric_state_from_torch`.
    """
    name = "greedy" if isinstance(state, GreedyState) else "reduce_lr_on_plateau"
    values = _settings(name, settings)
    state_dict = {
        key: [value] * len(base_lrs) if key in _LISTS.values() else value
        for key, value in values.items()
    }
    state_dict |= {
        "last_epoch": num_metrics,
        "_last_lr": [state.learning_rate] * len(base_lrs),
        "best": state.best,
        **{k: getattr(state, f) for f, k in _COUNTERS.items() if f in state._fields},
    }
    # `mode_worse` is the metric to which every other is an improvement.
    if isinstance(state, PlateauState):
        initial_best = math.inf if values["mode"] == "min" else -math.inf
        return {
            **state_dict,
            "default_min_lr": values["min_lrs"],
            "mode_worse": initial_best,
        }
    state_dict |= {"verbose": False, "_init_lrs": [float(rate) for rate in base_lrs]}
    # The average of smoothed metrics. The array here has a fixed size and is filled
    # from its end; torch stores a list of the values so far.
    if state.average is not None:
        size = len(state.average.values)
        state_dict["_streaming_avg"] = {
            "window_size": size,
            "values": state.average.values[size - state.average.num_values :].tolist(),
            "sum": state.average.total,
        }
    return state_dict


def _settings(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all settings of the schedule, defaults included, by torch's names."""
    parameters = dict(inspect.signature(_FUNCTIONS[name]).parameters)
    del parameters["learning_rate"]
    return {
        _SETTINGS.get(key, key): settings.get(key, parameter.default)
        for key, parameter in parameters.items()
    }


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _average(scheduler_state: Mapping[str, Any]) -> AverageState | None:
    average = scheduler_state.get("_streaming_avg")
    if average is None:
        return None
    num_values = len(average["values"])
    values = np.zeros(average["window_size"])
    values[len(values) - num_values :] = average["values"]
    return AverageState(values, float(average["sum"]), num_values)
