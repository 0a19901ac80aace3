"""Conversion of the steps of torch's schedules."""

import pytest
import torch
from transformers import get_scheduler as torch_get_scheduler

from jaxopt_tf.interop._scheduler_state import (
    schedule_step_from_torch,
    torch_from_schedule_step,
)
from jaxopt_tf.recipes import Recipe
from jaxopt_tf.schedules import get_scheduler

NAMES = [
    ("linear", {}),
    ("cosine", {}),
    ("cosine_with_restarts", {"num_cycles": 2}),
    ("polynomial", {"power": 2.0}),
    ("inverse_sqrt", {}),
    ("constant_with_warmup", {}),
    ("warmup_stable_decay", {"num_decay_steps": 10}),
    ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
]
every_schedule = pytest.mark.parametrize(
    ("name", "options"), NAMES, ids=[name for name, _ in NAMES]
)


def recipe(name, options):
    return Recipe(
        max_steps=50,
        warmup_steps=5,
        learning_rate=1e-3,
        lr_scheduler_type=name,
        lr_scheduler_kwargs=options,
    )


def torch_scheduler(name, options, num_steps, rate=1e-3):
    layers = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [layer]} for layer in layers]
    optimizer = torch.optim.SGD(groups, lr=rate)
    scheduler = torch_get_scheduler(name, optimizer, 5, 50, dict(options))
    for _ in range(num_steps):
        optimizer.step()
        scheduler.step()
    return scheduler


@every_schedule
@pytest.mark.parametrize("num_steps", [0, 3, 20, 49, 50])
def test_schedule_steps_round_trip(name, options, num_steps):
    theirs = torch_scheduler(name, options, num_steps).state_dict()
    ours = get_scheduler(name, 1e-3, 5, 50, options)
    assert schedule_step_from_torch(theirs, ours) == num_steps
    assert torch_from_schedule_step(num_steps, recipe(name, options)) == theirs


def test_torch_resumes_from_an_exported_schedule():
    state = torch_from_schedule_step(30, recipe("cosine", {}))
    theirs = torch_scheduler("cosine", {}, 0)
    theirs.load_state_dict(state)
    expected = torch_scheduler("cosine", {}, 30)
    for scheduler in (theirs, expected):
        scheduler.optimizer.step()
        scheduler.step()
    assert theirs.get_last_lr() == expected.get_last_lr()


def test_another_shape_contradicts_the_recipe():
    state = torch_scheduler("cosine", {}, 20).state_dict()
    with pytest.raises(ValueError, match=r"contradicts the recipe: after 20 .*0\.0007"):
        schedule_step_from_torch(state, get_scheduler("linear", 1e-3, 5, 50))


def test_every_group_must_have_the_rate():
    state = torch_scheduler("linear", {}, 20).state_dict()
    schedule = get_scheduler("linear", 1e-3, 5, 50)
    assert schedule_step_from_torch(state, schedule) == 20
    state["_last_lr"][1] *= 2
    with pytest.raises(ValueError, match="contradicts the recipe.*in group 1"):
        schedule_step_from_torch(state, schedule)


def test_plateau_has_no_schedule_step():
    state = {"best": 1.0, "_last_lr": [1e-3], "last_epoch": 3}
    with pytest.raises(
        ValueError, match="must be the state of torch's LambdaLR.*'base_lrs'"
    ):
        schedule_step_from_torch(state, get_scheduler("constant", 1e-3))
