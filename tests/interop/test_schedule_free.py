"""Checkpoints of Trainer with schedulefree, in both modes of its optimizer."""

import copy
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jaxopt_tf.interop import (
    load_torch,
    match_names,
    opt_state_from_torch,
    read_trainer_checkpoint,
    recipe_from_transformers,
    save_torch,
    torch_model_from_config,
    write_trainer_checkpoint,
)
from jaxopt_tf.jobs import RunConfig, export_run, import_run
from jaxopt_tf.jobs._run_io import read_params as read_run_params
from jaxopt_tf.models import build_model, settings_from_transformers_config
from jaxopt_tf.optimizers import schedule_free_adamw_tf
from jaxopt_tf.recipes import build_optimizer
from jaxopt_tf.training import evaluation_params
from tests.files import record_schedule_free_checkpoints as record

pytestmark = [
    pytest.mark.promotion_of_others,  # flax's layers
    pytest.mark.usefixtures("compiled_quickly"),
]

FOLDERS = {
    True: pathlib.Path(record.__file__).with_name(record.TARGET.name) / "checkpoint-2",
    False: pathlib.Path(record.__file__).with_name(record.TARGET.name) / "checkpoint-4",
}


class Run:
    """The model and the recipe of the files."""

    def __init__(self):
        folder = FOLDERS[True]
        settings = settings_from_transformers_config(folder, None)
        settings |= {"max_steps": 8, "text": ["unused.npy"]}
        self.model = build_model(RunConfig.from_dict(settings).model)
        self.recipe = recipe_from_transformers(folder / "training_args.bin").recipe
        self.params = jax.tree.map(
            lambda p: jnp.zeros(p.shape, p.dtype), self.model.shapes
        )
        described = torch_model_from_config(folder)
        self.names = match_names(self.params, described, layouts=self.model.layouts)
        self.optimizer = build_optimizer(
            self.recipe, layer_norms=self.names.layer_norms
        )

    def read(self, folder):
        return read_trainer_checkpoint(
            folder,
            self.params,
            self.names,
            recipe=self.recipe,
            opt_state=self.optimizer.init(self.params),
            layouts=self.model.layouts,
        )

    def write(self, folder, read, **options):
        write_trainer_checkpoint(
            folder,
            read.params,
            read.opt_state,
            self.names,
            recipe=self.recipe,
            step=read.step,
            layouts=self.model.layouts,
            **options,
        )


@pytest.fixture(scope="module")
def run(compiled_quickly):
    return Run()


def weights(folder):
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


def assert_same_files(ours, theirs):
    ours, theirs = (load_torch(f / "optimizer.pt") for f in (ours, theirs))
    assert ours["state"].keys() == theirs["state"].keys()
    for number, entry in theirs["state"].items():
        assert ours["state"][number].keys() == entry.keys()
        for key, array in entry.items():
            assert torch.equal(ours["state"][number][key], array), (number, key)
    groups = zip(ours["param_groups"], theirs["param_groups"], strict=True)
    for new, group in groups:
        assert {k: v for k, v in new.items() if k != "param_names"} == group


def test_a_file_of_training_is_written_again_bit_for_bit(run, tmp_path):
    read = run.read(FOLDERS[True])
    for like in (None, FOLDERS[True]):
        out = tmp_path / f"{like is None}"
        run.write(out, read, like=like)
        assert_same_files(out, FOLDERS[True])
        for name, array in weights(FOLDERS[True]).items():
            np.testing.assert_array_equal(weights(out)[name], array)


def test_weights_of_an_evaluation_become_those_of_training_and_back(run, tmp_path):
    read = run.read(FOLDERS[False])
    run.write(tmp_path / "y", read)
    run.write(tmp_path / "x", read, train_mode=False)
    assert_same_files(tmp_path / "x", FOLDERS[False])
    theirs = load_torch(FOLDERS[False] / "optimizer.pt")
    ours = load_torch(tmp_path / "y" / "optimizer.pt")
    assert [group["train_mode"] for group in ours["param_groups"]] == [True, True]
    groups = ours["param_groups"]
    numbers = {
        name: number
        for group in groups
        for name, number in zip(group["param_names"], group["params"], strict=True)
    }
    for name, x in weights(FOLDERS[False]).items():
        # As `train` and `eval` of schedulefree, in place and in float32.
        z = theirs["state"][numbers[name]]["z"]
        y = torch.tensor(x).lerp_(end=z, weight=1 - 0.9)
        np.testing.assert_array_equal(weights(tmp_path / "y")[name], y.numpy())
        y.lerp_(end=z, weight=1 - 1 / 0.9)
        np.testing.assert_array_equal(weights(tmp_path / "x")[name], y.numpy())
        np.testing.assert_allclose(y.numpy(), x, atol=1e-7)


def test_a_run_of_trainer_is_continued(run):
    # Steps 3 and 4, which Trainer took between the two files, and its evaluation.
    read = run.read(FOLDERS[True])
    loss_fn = run.model.make_loss()
    rows = jnp.asarray(record.rows(), jnp.int32)

    @jax.jit
    def mean_loss(params, batch):
        total, number = loss_fn(params, batch)
        return total / number

    params, state, losses = read.params, read.opt_state, []
    for step in (2, 3):
        batch = rows[2 * step : 2 * step + 2]
        loss, grads = jax.value_and_grad(mean_loss)(params, batch)
        updates, state = jax.jit(run.optimizer.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(loss))
    losses.append(float(mean_loss(evaluation_params(params, state), rows[8:])))
    history = run.read(FOLDERS[False]).trainer_state["log_history"]
    theirs = [
        entry["loss"] for entry in history if entry["step"] > 2 if "loss" in entry
    ]
    theirs += [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    np.testing.assert_allclose(losses, theirs, rtol=1e-6)
    y = run.read(FOLDERS[False]).params
    for ours, trained in zip(jax.tree.leaves(params), jax.tree.leaves(y), strict=True):
        np.testing.assert_allclose(ours, trained, atol=2e-6)


@pytest.mark.parametrize("train_mode", [True, False])
def test_a_run_is_imported_and_exported(tmp_path, train_mode):
    rows = record.rows().astype(np.uint8)
    np.save(tmp_path / "rows.npy", np.tile(rows.reshape(-1), 8))
    source, out = FOLDERS[train_mode], tmp_path / "run"
    import_run(source, out, settings={"text": [str(tmp_path / "rows.npy")]})
    # The run is evaluated with the mean.
    read = read_run_params(out)
    average = weights(FOLDERS[False])["model.norm.weight"]
    if not train_mode:
        found = np.asarray(read.params["model"]["norm"]["scale"])
        np.testing.assert_allclose(found, average, atol=1e-7)
    export_run(out, tmp_path / "back", like=source)
    if train_mode:
        assert_same_files(tmp_path / "back", source)
        for name, array in weights(source).items():
            np.testing.assert_array_equal(weights(tmp_path / "back")[name], array)


def test_a_parameter_without_an_entry_has_itself_as_z(run, tmp_path):
    # It never had a gradient. Before the first update no parameter has an entry.
    like = tmp_path / "like"
    shutil.copytree(FOLDERS[True], like)
    saved = load_torch(like / "optimizer.pt")
    saved["state"] = {}
    for group in saved["param_groups"]:
        group |= {"k": 0, "weight_sum": 0.0, "lr_max": -1.0, "scheduled_lr": 0.0}
    save_torch(saved, like / "optimizer.pt")
    read = run.read(like)
    state = read.opt_state[1]
    jax.tree.map(np.testing.assert_array_equal, state.z, read.params)
    assert int(state.count) == 0
    assert not any(x.any() for x in jax.tree.leaves(state.nu))
    run.write(tmp_path / "new", read)
    again = load_torch(tmp_path / "new" / "optimizer.pt")
    assert again["state"] == {}
    assert again["param_groups"][0]["lr_max"] == -1.0


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ([{"train_mode": None}] * 2, "`train_mode` must be True in all groups"),
        ([{"train_mode": False}, {}], r"`train_mode` .* got \[False, True\]"),
        ([{"k": 3}, {}], r"`k` must be equal in all groups.*\[2, 3\]"),
        ([{"lr_max": 0.5}, {}], "`lr_max` must be equal in all groups"),
        ([{"lr_max": float("nan")}] * 2, "`lr_max` of group 0 must be finite and at"),
    ],
)
def test_files_with_other_groups_are_refused(run, changes, match):
    saved = copy.deepcopy(load_torch(FOLDERS[True] / "optimizer.pt"))
    for group, change in zip(saved["param_groups"], changes, strict=True):
        group |= change
        for key in [key for key, value in change.items() if value is None]:
            del group[key]
    state = schedule_free_adamw_tf(1e-3).init(run.params)
    with pytest.raises(ValueError, match=match):
        opt_state_from_torch(
            state, run.params, saved, run.names, decay_rule=run.recipe.decay_rule
        )


def test_a_fraction_that_trainer_passed_as_warmup_is_refused(run, tmp_path):
    # The first update of such a run had 10 times the rate.
    like = tmp_path / "like"
    shutil.copytree(FOLDERS[True], like)
    saved = load_torch(like / "optimizer.pt")
    for group in saved["param_groups"]:
        group["warmup_steps"] = 0.1
    save_torch(saved, like / "optimizer.pt")
    with pytest.raises(ValueError, match="`warmup_steps` of group 0 is 0.1 and the"):
        run.read(like)


def test_a_run_with_a_mean_is_not_written_for_trainer(run, tmp_path):
    import dataclasses

    other = Run()
    other.recipe = dataclasses.replace(
        run.recipe, optim="adamw_torch", optim_args=(), ema_decay=0.9
    )
    with pytest.raises(ValueError, match="`recipe` must have no `ema_decay`, got 0.9"):
        other.write(tmp_path / "new", run.read(FOLDERS[True]))
