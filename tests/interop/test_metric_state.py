"""Conversion of the states of plateau and greedy schedules."""

import math

import pytest
import torch
from transformers.optimization import GreedyLR

from jaxopt_tf.interop._scheduler_state import (
    metric_state_from_torch,
    torch_from_metric_state,
)
from jaxopt_tf.schedules import get_scheduler

CASES = {
    "plateau": ("reduce_lr_on_plateau", {"patience": 1, "cooldown": 1}),
    "plateau_max": ("reduce_lr_on_plateau", {"mode": "max", "min_lr": 1e-5}),
    "greedy": ("greedy", {"patience": 1, "min_lr": 1e-5, "max_lr": 1.0, "warmup": 1}),
    "greedy_smooth": (
        "greedy",
        {"patience": 0, "min_lr": 1e-3, "smooth": True, "window_size": 4},
    ),
}
every_case = pytest.mark.parametrize("case", CASES)


def metrics(rng, num):
    return [float(x) for x in 3.0 + rng.normal(size=num).astype("float32")]


def torch_scheduler(name, options):
    layers = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [layer]} for layer in layers], lr=1e-2)
    if name == "greedy":
        return GreedyLR(optimizer, **options)
    return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **options)


@every_case
@pytest.mark.parametrize("num_seen", [0, 3, 17])
def test_metric_states_round_trip_and_continue_equally(case, num_seen, rng):
    name, options = CASES[case]
    theirs = torch_scheduler(name, options)
    for metric in metrics(rng, num_seen):
        theirs.step(metric)
    saved = theirs.state_dict()
    state = metric_state_from_torch(saved, name, options)
    back = torch_from_metric_state(state, options, [1e-2, 1e-2], num_seen)
    if "_streaming_avg" in saved:  # a sum, which is held to 2^-48
        sums = [d["_streaming_avg"].pop("sum") for d in (back, saved)]
        assert math.isclose(*sums, rel_tol=1e-14)
    if case == "greedy_smooth":
        assert math.isclose(back.pop("best"), saved.pop("best"), rel_tol=1e-14)
    assert back == saved

    ours = get_scheduler(name, 1e-2, scheduler_specific_kwargs=options)
    again = torch_scheduler(name, options)
    again.load_state_dict(torch_from_metric_state(state, options, [1e-2] * 2, num_seen))
    for scheduler in (theirs, again):
        for group in scheduler.optimizer.param_groups:
            group["lr"] = saved["_last_lr"][0]
    for metric in metrics(rng, 30):
        theirs.step(metric)
        again.step(metric)
        state = ours.update(state, metric)
        assert float(state.learning_rate) == pytest.approx(
            theirs.optimizer.param_groups[0]["lr"], rel=1e-7
        )
        assert again.optimizer.param_groups[0]["lr"] == pytest.approx(
            theirs.optimizer.param_groups[0]["lr"], rel=1e-15
        )


def test_other_settings_contradict_the_recipe_all_at_once():
    name, options = CASES["plateau"]
    saved = torch_scheduler(name, options).state_dict()
    with pytest.raises(ValueError, match=r"(?s)contradicts.*`factor`.*`patience` is 1"):
        metric_state_from_torch(saved, name, {"cooldown": 1, "factor": 0.5})


def test_the_state_of_another_schedule_is_refused():
    name, options = CASES["plateau"]
    saved = torch_scheduler(name, options).state_dict()
    with pytest.raises(ValueError, match="must be that of 'greedy', got one without"):
        metric_state_from_torch(saved, "greedy", {})
    with pytest.raises(ValueError, match="`name` must be one of"):
        metric_state_from_torch(saved, "cosine", {})


def test_groups_with_different_rates_are_refused():
    name, options = CASES["plateau"]
    saved = torch_scheduler(name, options).state_dict()
    with pytest.raises(ValueError, match="one rate for all groups"):
        metric_state_from_torch({**saved, "_last_lr": [1.0, 2.0]}, name, options)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("best", float("nan"), "`best` must be a number, got nan"),
        ("_last_lr", [float("nan")], "`_last_lr` must be finite and at least 0"),
        ("_last_lr", [-1e-3], "`_last_lr` must be finite and at least 0"),
        ("num_bad_epochs", float("nan"), "`num_bad_epochs` must be a whole number"),
        ("cooldown_counter", -1, "`cooldown_counter` must be from 0"),
    ],
)
def test_history_must_be_numbers(key, value, says):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    state = scheduler.state_dict() | {key: value}
    with pytest.raises((ValueError, TypeError), match=says):
        metric_state_from_torch(state, "reduce_lr_on_plateau", {})
