"""`scheduler.pt` of schedules that a metric drives, such as `ReduceLROnPlateau`."""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import _checks, schedules
from ..schedules import AverageState, GreedyState, PlateauState, greedy

_FUNCTIONS = {
    "reduce_lr_on_plateau": schedules.reduce_lr_on_plateau,
    "greedy": greedy,
}
# torch's keys for the counters of a state, by field.
_COUNTERS = {
    "reduce_lr_on_plateau": {
        "num_bad_updates": "num_bad_epochs",
        "cooldown_left": "cooldown_counter",
    },
    "greedy": {
        "num_bad_updates": "num_bad_epochs",
        "num_good_updates": "num_good_epochs",
        "cooldown_left": "cooldown_counter",
        "warmup_left": "warmup_counter",
        "reset_left": "reset_start",
    },
}
# torch's keys for settings that have another name there. The first two are lists.
_LISTS = {"min_lr": "min_lrs", "max_lr": "max_lrs"}
_SETTINGS = {**_LISTS, "reset_start": "reset_start_original"}


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
    counters, wanted = _COUNTERS[name], _settings(name, settings)
    own = {"best", "_last_lr", *counters.values(), *wanted}
    own |= {"mode_worse"} if name == "reduce_lr_on_plateau" else set()
    missing = sorted(own - set(scheduler_state))
    if missing:
        raise ValueError(
            f"`scheduler_state` must be of {name!r}, got one without {missing}. Take "
            "the schedule that the file is of."
        )
    odd = [
        f"`{key}` is {found!r} and the recipe's {value!r}"
        for key, value in wanted.items()
        for found in [scheduler_state[key]]
        if any(one != value for one in (found if _is_list(found) else [found]))
    ]
    if odd:
        raise ValueError(
            f"`scheduler_state` contradicts the recipe: {'; '.join(odd)}. Take the "
            "recipe that the run was begun with."
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
    fields: dict[str, Any] = {"learning_rate": float(rates[0]), "best": best}
    for field, key in counters.items():
        fields[field] = _checks.step_count(key, scheduler_state[key])
    if name == "reduce_lr_on_plateau":
        return PlateauState(**fields)
    return GreedyState(**fields, average=_average(scheduler_state))


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
        **{key: getattr(state, field) for field, key in _COUNTERS[name].items()},
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
