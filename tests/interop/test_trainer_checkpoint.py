"""Reading and writing of Trainer checkpoints; Trainer resumes bit for bit."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxopt_tf.interop import (
    load_torch,
    match_names,
    read_trainer_checkpoint,
    torch_model_from_config,
    write_trainer_checkpoint,
)
from jaxopt_tf.recipes import build_optimizer
from tests.interop import trainer_runs
from tests.references import torch_models

CASES = [
    ("adamw_torch", "linear"),
    ("adamw_torch_fused", "cosine"),
    ("adamw_torch", "plateau"),
    ("adamw_torch", "greedy"),
    ("adafactor", "linear"),
    ("adafactor", "plateau"),
    ("sgd", "linear"),
    ("adagrad", "linear"),
    ("rmsprop", "plateau"),
]
every_case = pytest.mark.parametrize(
    ("optim", "schedule"), CASES, ids=["-".join(case) for case in CASES]
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Trainer's run to its end, with the folder that it left halfway; each once."""
    made = {}

    def run(optim, schedule):
        if (optim, schedule) not in made:
            folder = tmp_path_factory.mktemp("run")
            trainer = trainer_runs.trainer(folder, optim, schedule)
            trainer.train()
            weights = trainer_runs.weights(trainer)
            made[optim, schedule] = folder / "checkpoint-4", weights
        return made[optim, schedule]

    return run


def template(optim, schedule):
    params = torch_models.flax_tree(torch_models.flax_leaves(torch_models.gpt2()))
    params = jax.tree.map(jnp.zeros_like, params)
    optimizer = build_optimizer(trainer_runs.recipe(optim, schedule))
    return params, optimizer.init(params)


def read(folder, optim="adamw_torch", schedule="linear", **options):
    params, opt_state = template(optim, schedule)
    names = match_names(params, torch_model_from_config(folder))
    recipe = trainer_runs.recipe(optim, schedule)
    options = {"opt_state": opt_state, "recipe": recipe, **options}
    return read_trainer_checkpoint(folder, params, names, **options), names


def write(folder, checkpoint, names, optim, schedule, **options):
    write_trainer_checkpoint(
        folder,
        checkpoint.params,
        checkpoint.opt_state,
        names,
        recipe=trainer_runs.recipe(optim, schedule),
        step=checkpoint.step,
        schedule_step=checkpoint.schedule_step,
        schedule_state=checkpoint.schedule_state,
        trainer_state=checkpoint.trainer_state,
        **options,
    )


@every_case
def test_trainer_resumes_bit_for_bit(optim, schedule, runs, tmp_path):
    theirs, finished = runs(optim, schedule)
    checkpoint, names = read(theirs, optim, schedule)
    assert checkpoint.step == checkpoint.schedule_step == 4
    assert [e["step"] for e in checkpoint.trainer_state["log_history"]][-1] == 4
    ours = tmp_path / "checkpoint-4"
    write(ours, checkpoint, names, optim, schedule, like=theirs)

    trainer = trainer_runs.trainer(tmp_path, optim, schedule)
    trainer.train(resume_from_checkpoint=str(ours))
    for name, weight in trainer_runs.weights(trainer).items():
        assert torch.equal(weight, finished[name]), name


def same(a, b):
    if torch.is_tensor(a):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


@every_case
def test_files_have_the_same_content(optim, schedule, runs, tmp_path):
    theirs, _ = runs(optim, schedule)
    checkpoint, names = read(theirs, optim, schedule)
    ours = tmp_path / "checkpoint-4"
    write(ours, checkpoint, names, optim, schedule, like=theirs)

    for name in ("model.safetensors", "config.json", "training_args.bin"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    logs = [json.loads((f / "trainer_state.json").read_text()) for f in (ours, theirs)]
    assert logs[0] == logs[1]
    states = [load_torch(folder / "optimizer.pt") for folder in (ours, theirs)]
    for state in states:
        for entry in state["state"].values():
            entry.pop("RMS", None)  # of the parameter before the update
    for group in states[0]["param_groups"]:
        # Not in the order of a set, which differs from one process to the next.
        assert list(group)[-2:] == ["params", "param_names"]
        group.pop("param_names")
    assert same(*states)
    assert same(*(load_torch(folder / "scheduler.pt") for folder in (ours, theirs)))


@every_case
def test_our_own_folder_is_read_back(optim, schedule, runs, tmp_path):
    theirs, _ = runs(optim, schedule)
    checkpoint, names = read(theirs, optim, schedule)
    ours = tmp_path / "checkpoint-4"
    write(ours, checkpoint, names, optim, schedule)
    (ours / "config.json").write_bytes((theirs / "config.json").read_bytes())
    again, _ = read(ours, optim, schedule)
    for a, b in (
        (again.params, checkpoint.params),
        (again.opt_state, checkpoint.opt_state),
        (again.schedule_state, checkpoint.schedule_state),
    ):
        jax.tree.map(np.testing.assert_array_equal, a, b)
