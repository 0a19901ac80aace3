"""`scheduler.pt`: the step of a schedule, or the state of one that a metric drives."""

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
from ._extras import import_extra
from ._trainer_folder import SCHEDULER, STATE

# Tolerance of the rate of a schedule that is evaluated at a step.
_RELATIVE = 1e-6
# Relative to the base rate: where cosines cancel, doubles are no better than this.
_ABSOLUTE = 1e-15

_FUNCTIONS = {
    "reduce_lr_on_plateau": schedules.reduce_lr_on_plateau,
    "greedy": greedy,
}
# torch's keys for the counters of a state. A plateau has the first two.
_COUNTERS = {
    "num_bad_updates": "num_bad_epochs",
    "cooldown_left": "cooldown_counter",
    "num_good_updates": "num_good_epochs",
    "warmup_left": "warmup_counter",
    "reset_left": "reset_start",
}
# torch's keys for settings that have another name there. The first two are lists.
_LISTS = {"min_lr": "min_lrs", "max_lr": "max_lrs"}
_SETTINGS = {**_LISTS, "reset_start": "reset_start_original"}


def schedule_from_torch(
    scheduler_state: Any, recipe: Recipe, global_step: int | None
) -> tuple[int, PlateauState | GreedyState | None]:
    """Returns the step passed to the schedule next, and a metric-driven one's state.

    The step of a schedule that a metric drives is the number of its metrics.

    Args:
        scheduler_state: torch's `scheduler.state_dict()`; None without a file.
        recipe: the numbers of the run.
        global_step: number of batches; None if unknown.
    """
    schedule = build_schedule(recipe)
    if scheduler_state is None:
        if isinstance(schedule, MetricDrivenSchedule):
            return 0, schedule.init()
        assert global_step is not None  # one of the two files has the step
        return global_step, None
    if not isinstance(scheduler_state, Mapping):
        raise ValueError(
            f"{SCHEDULER} must hold a scheduler's state, got "
            f"{type(scheduler_state).__name__}."
        )
    if isinstance(schedule, MetricDrivenSchedule):
        name, settings = recipe.lr_scheduler_type, dict(recipe.lr_scheduler_kwargs)
        if global_step is None:
            raise ValueError(
                f"`folder` must hold {STATE} with {name!r}, got one without: "
                f"{SCHEDULER} counts the metrics, and nobody knows the step."
            )
        state = metric_state_from_torch(scheduler_state, name, settings)
        num_metrics = scheduler_state["last_epoch"]
        return _checks.step_count("last_epoch", num_metrics), state
    # Updates that were skipped count in `global_step` and not in the schedule.
    step = schedule_step_from_torch(scheduler_state, schedule)
    if global_step is not None and step > global_step:
        raise ValueError(
            f"{SCHEDULER} must be of the same step as {STATE}, got {step} steps of "
            f"the schedule and a `global_step` of {global_step}. Copy the folder again."
        )
    return step, None


def torch_from_schedule(
    recipe: Recipe, position: int, state: PlateauState | GreedyState | None
) -> dict[str, Any]:
    """Returns the scheduler's state; its `_last_lr` has the rate of the next update.

    Args:
        recipe: the numbers of the run.
        position: step passed to the schedule next, or the number of its metrics.
        state: state of a schedule that a metric drives.
    """
    if recipe.lr_scheduler_type not in METRIC_DRIVEN:
        return torch_from_schedule_step(position, recipe)
    if state is None:
        raise ValueError(
            f"`schedule_state` must be given for {recipe.lr_scheduler_type!r}, got "
            "None. Pass the state of the schedule."
        )
    # Trainer's two groups.
    bases = [float(recipe.learning_rate)] * 2
    settings = dict(recipe.lr_scheduler_kwargs)
    return torch_from_metric_state(state, settings, bases, position)


def schedule_step_from_torch(
    scheduler_state: Mapping[str, Any], schedule: Schedule
) -> int:
    """Returns the step passed to the schedule next, from the state of a `LambdaLR`.

    The file contains the number of steps and the rate there, and not the shape of the
    schedule. The rate is compared with that of `schedule`, to check that the run
    continues as it was planned.

    Args:
        scheduler_state: torch's `scheduler.state_dict()`.
        schedule: the run's schedule.

    Raises:
        ValueError: if it is no state of a `LambdaLR`, or if a group's rate differs from
            the schedule's by more than 1e-6 of it.

    Source: torch 2.13 `optim/lr_scheduler.py`, `LambdaLR.state_dict`; `last_epoch` is
        the argument of the next update's rate, which is already in the optimizer.
    """
    needed = ("last_epoch", "_last_lr", "base_lrs", "lr_lambdas")
    missing = [key for key in needed if key not in scheduler_state]
    if missing:
        raise _checks.ArgumentError(
            "recipe",
            "`scheduler_state` must be of torch's LambdaLR, got one without "
            f"{missing}.",
            "Take the recipe that the run was begun with.",
        )
    step = _checks.step_count("last_epoch", scheduler_state["last_epoch"])
    rates = [float(rate) for rate in scheduler_state["_last_lr"]]
    ours, bases = float(schedule(step)), scheduler_state["base_lrs"]
    for group, (rate, base) in enumerate(zip(rates, bases, strict=True)):
        # Written so that NaN fails.
        if not abs(rate - ours) <= _RELATIVE * abs(ours) + _ABSOLUTE * abs(base):
            raise _checks.ArgumentError(
                "recipe",
                f"`scheduler_state` contradicts the recipe: after {step} steps its "
                f"rate is {rate!r} in group {group}, and the recipe's is {ours!r}.",
                "Take the recipe that the run was begun with.",
            )
    return step


def torch_from_schedule_step(step: int, recipe: Recipe) -> dict[str, Any]:
    """Returns the state from which Transformers' own schedule continues.

    The rate in it is computed by Transformers in double precision, so that a run that
    is exported and imported again has the same bits as one that never was.

    Args:
        step: step passed to the schedule next.
        recipe: the numbers of the run, whose schedule no metric drives.

    Source: torch 2.13 `optim/lr_scheduler.py`, `LambdaLR.state_dict`; transformers 5.23
        `optimization.py`, `get_scheduler`.
    """
    torch = import_extra("torch")
    transformers = import_extra("transformers")

    step = _checks.step_count("step", step)
    base = float(recipe.learning_rate)
    # Trainer's two groups, decayed and not.
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(2)]
    scheduler = transformers.get_scheduler(
        recipe.lr_scheduler_type,
        torch.optim.SGD(groups, lr=base),
        recipe.num_warmup_steps,
        recipe.max_steps,
        dict(recipe.lr_scheduler_kwargs) or None,
    )
    return {
        **scheduler.state_dict(),
        "last_epoch": step,
        "_step_count": step + 1,
        "_last_lr": [base * factor(step) for factor in scheduler.lr_lambdas],
    }


def metric_state_from_torch(
    scheduler_state: Mapping[str, Any], name: str, settings: Mapping[str, Any]
) -> PlateauState | GreedyState:
    """Reads the state of `reduce_lr_on_plateau` or `greedy` from `scheduler.pt`.

    Rate and metrics are torch's doubles, bit for bit.

    Args:
        scheduler_state: torch's `scheduler.state_dict()`.
        name: "reduce_lr_on_plateau" or "greedy".
        settings: the recipe's `lr_scheduler_kwargs`; other settings have their default.

    Raises:
        ValueError: if it is no state of this schedule, if groups have different rates,
            or if its settings contradict the recipe's: all are listed.

    Source: torch 2.13 `optim/lr_scheduler.py`, `ReduceLROnPlateau.state_dict`;
        transformers 5.23 `optimization.py`, `GreedyLR.state_dict`.
    """
    _checks.one_of("name", name, _FUNCTIONS)
    kind = GreedyState if name == "greedy" else PlateauState
    counters = {f: key for f, key in _COUNTERS.items() if f in kind._fields}
    wanted = _settings(name, settings)
    own = {"best", "_last_lr", *counters.values(), *wanted}
    own |= {"mode_worse"} if kind is PlateauState else set()
    missing = sorted(own - set(scheduler_state))
    if missing:
        raise _checks.ArgumentError(
            "recipe",
            f"`scheduler_state` must be of {name!r}, got one without {missing}.",
            "Take the schedule that the file is of.",
        )
    odd = [
        f"`{key}` is {found!r} and the recipe's {value!r}"
        for key, value in wanted.items()
        for found in [scheduler_state[key]]
        if any(one != value for one in (found if _is_list(found) else [found]))
    ]
    if odd:
        raise _checks.ArgumentError(
            "recipe",
            f"`scheduler_state` contradicts the recipe: {'; '.join(odd)}.",
            "Take the recipe that the run was begun with.",
        )
    rates = scheduler_state["_last_lr"]
    for rate in rates:
        _checks.non_negative("_last_lr", rate)
    if len(set(rates)) != 1:
        raise ValueError(
            "`scheduler_state` must have one rate for all groups, got "
            f"{list(rates)}: a schedule that a metric drives has one here."
        )
    best = float(scheduler_state["best"])
    if math.isnan(best):  # infinite before the first metric
        raise ValueError("`best` must be a number, got nan: the file is damaged.")
    fields: dict[str, Any] = {
        field: _checks.step_count(key, scheduler_state[key])
        for field, key in counters.items()
    }
    if kind is GreedyState:
        fields["average"] = _average(scheduler_state)
    return kind(learning_rate=float(rates[0]), best=best, **fields)


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
        base_lrs: the first rate of each parameter group.
        num_metrics: number of metrics that the schedule has received; torch only
            counts them.

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
    if isinstance(state, PlateauState):
        worst = math.inf if values["mode"] == "min" else -math.inf
        return {**state_dict, "default_min_lr": values["min_lrs"], "mode_worse": worst}
    state_dict |= {"verbose": False, "_init_lrs": [float(rate) for rate in base_lrs]}
    if state.average is not None:
        size = len(state.average.values)
        state_dict["_streaming_avg"] = {
            "window_size": size,
            "values": state.average.values[size - state.average.num_values :].tolist(),
            "sum": state.average.total,
        }
    return state_dict


def _settings(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns every setting of the schedule under torch's name, with the defaults."""
    parameters = dict(inspect.signature(_FUNCTIONS[name]).parameters)
    del parameters["learning_rate"]
    return {
        _SETTINGS.get(key, key): settings.get(key, parameter.default)
        for key, parameter in parameters.items()
    }


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _average(scheduler_state: Mapping[str, Any]) -> AverageState | None:
    held = scheduler_state.get("_streaming_avg")
    if held is None:
        return None
    num_values = len(held["values"])
    values = np.zeros(held["window_size"])
    values[len(values) - num_values :] = held["values"]
    return AverageState(values, float(held["sum"]), num_values)
