"""`scheduler.pt` of schedules that a metric drives: all that they remember."""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import _checks, schedules
from ..schedules import AverageState, GreedyState, PlateauState, greedy

# torch's name for a setting, where it has another or a list of them.
_PLATEAU_NAMES = {"min_lr": "min_lrs"}
_GREEDY_NAMES = {
    "min_lr": "min_lrs",
    "max_lr": "max_lrs",
    "reset_start": "reset_start_original",
}
_FUNCTIONS = {
    "reduce_lr_on_plateau": (schedules.reduce_lr_on_plateau, _PLATEAU_NAMES),
    "greedy": (greedy, _GREEDY_NAMES),
}


def metric_state_from_torch(
    scheduler_state: Mapping[str, Any], name: str, settings: Mapping[str, Any]
) -> PlateauState | GreedyState:
    """What `reduce_lr_on_plateau` or `greedy` remembers, read from `scheduler.pt`.

    Rate and metrics are torch's doubles, bit for bit.

    Args:
        scheduler_state: torch's `scheduler.state_dict()`.
        name: "reduce_lr_on_plateau" or "greedy".
        settings: the recipe's `lr_scheduler_kwargs`; what is not in it has its default.

    Raises:
        ValueError: if it is no state of this schedule, if groups have different rates,
            or if its settings contradict the recipe's: all are listed.

    Source: torch 2.13 `optim/lr_scheduler.py`, `ReduceLROnPlateau.state_dict`;
        transformers 5.23 `optimization.py`, `GreedyLR.state_dict`.
    """
    _checks.one_of("name", name, _FUNCTIONS)
    wanted = _settings(name, settings)
    own = {"num_bad_epochs", "cooldown_counter", "best", "_last_lr", *wanted}
    own |= {"num_good_epochs"} if name == "greedy" else {"mode_worse"}
    missing = sorted(own - set(scheduler_state))
    if missing:
        raise _checks.ArgumentError(
            "recipe",
            f"`scheduler_state` must be of {name!r}, got one without {missing}.",
            "Take the schedule that the file is of.",
        )
    found = {key: scheduler_state[key] for key in wanted}
    odd = [
        f"`{key}` is {found[key]!r} and the recipe's {value!r}"
        for key, value in wanted.items()
        if not _is_same(found[key], value)
    ]
    if odd:
        raise _checks.ArgumentError(
            "recipe",
            f"`scheduler_state` contradicts the recipe: {'; '.join(odd)}.",
            "Take the recipe that the run was begun with.",
        )
    rate = _one_rate(scheduler_state["_last_lr"])
    best = float(scheduler_state["best"])
    if math.isnan(best):  # infinite before the first metric
        raise ValueError("`best` must be a number, got nan: the file is damaged.")

    def count(key: str) -> int:
        return _checks.step_count(key, scheduler_state[key])

    bad, cooldown = count("num_bad_epochs"), count("cooldown_counter")
    if name == "reduce_lr_on_plateau":
        return PlateauState(rate, best, bad, cooldown)
    return GreedyState(
        learning_rate=rate,
        best=best,
        num_bad_updates=bad,
        num_good_updates=count("num_good_epochs"),
        cooldown_left=cooldown,
        warmup_left=count("warmup_counter"),
        reset_left=count("reset_start"),
        average=_average(scheduler_state),
    )


def torch_from_metric_state(
    state: PlateauState | GreedyState,
    settings: Mapping[str, Any],
    base_lrs: Sequence[float],
    num_metrics: int,
) -> dict[str, Any]:
    """The state with which torch's `ReduceLROnPlateau` or `GreedyLR` goes on.

    Args:
        state: what the schedule remembers.
        settings: the recipe's `lr_scheduler_kwargs`.
        base_lrs: the first rate of each parameter group.
        num_metrics: how many metrics it has seen; torch only counts them.

    Source: as for `metric_state_from_torch`.
    """
    name = "greedy" if isinstance(state, GreedyState) else "reduce_lr_on_plateau"
    groups = len(base_lrs)
    values = _settings(name, settings)
    for key in ("min_lrs", "max_lrs"):
        if key in values:
            values[key] = [values[key]] * groups
    state_dict = {
        **values,
        "last_epoch": num_metrics,
        "_last_lr": [state.learning_rate] * groups,
        "best": state.best,
        "cooldown_counter": state.cooldown_left,
        "num_bad_epochs": state.num_bad_updates,
    }
    if isinstance(state, PlateauState):
        worst = math.inf if values["mode"] == "min" else -math.inf
        least = values["min_lrs"][0]
        return {**state_dict, "default_min_lr": least, "mode_worse": worst}
    state_dict |= {
        "warmup_counter": state.warmup_left,
        "num_good_epochs": state.num_good_updates,
        "reset_start": state.reset_left,
        "verbose": False,
        "_init_lrs": [float(rate) for rate in base_lrs],
    }
    if state.average is not None:
        state_dict["_streaming_avg"] = _streaming_average(state.average)
    return state_dict


def _settings(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting of the schedule under torch's name, the defaults included."""
    function, names = _FUNCTIONS[name]
    defaults = {
        key: parameter.default
        for key, parameter in inspect.signature(function).parameters.items()
        if key != "learning_rate"
    }
    return {names.get(k, k): settings.get(k, v) for k, v in defaults.items()}


def _is_same(found: Any, wanted: Any) -> bool:
    values = found if isinstance(found, list | tuple) else [found]
    return all(value == wanted for value in values)


def _one_rate(rates: Sequence[float]) -> float:
    for rate in rates:
        _checks.non_negative("_last_lr", rate)
    if len(set(rates)) != 1:
        raise ValueError(
            "`scheduler_state` must have one rate for all groups, got "
            f"{list(rates)}: a schedule that a metric drives has one here."
        )
    return float(rates[0])


def _average(scheduler_state: Mapping[str, Any]) -> AverageState | None:
    held = scheduler_state.get("_streaming_avg")
    if held is None:
        return None
    values = np.zeros(held["window_size"])
    num_values = len(held["values"])
    values[len(values) - num_values :] = held["values"]
    return AverageState(values, float(held["sum"]), num_values)


def _streaming_average(average: AverageState) -> dict[str, Any]:
    size = len(average.values)
    return {
        "window_size": size,
        "values": average.values[size - average.num_values :].tolist(),
        "sum": average.total,
    }
