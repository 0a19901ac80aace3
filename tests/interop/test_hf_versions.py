"""Fields of written folders, which depend on the version in `like`."""

import dataclasses
import json

import jax.numpy as jnp
import jax.tree
import numpy as np
import pytest
import torch
import transformers

from jaxopt_tf.interop import (
    match_names,
    read_params,
    read_trainer_checkpoint,
    torch_from_opt_state,
    torch_model_from_module,
    write_trainer_checkpoint,
)
from jaxopt_tf.interop._param_groups import param_groups_from_recipe
from jaxopt_tf.interop._scheduler_state import (
    torch_from_metric_state,
    torch_from_schedule_step,
)
from jaxopt_tf.recipes import Recipe, build_optimizer, build_schedule
from tests.references import torch_models

pytestmark = pytest.mark.usefixtures("compiled_quickly")

RECIPE = Recipe(max_steps=20, learning_rate=1e-3, decay_rule="transformers_v5")
PLATEAU = dataclasses.replace(RECIPE, lr_scheduler_type="reduce_lr_on_plateau")

# trainer_state.json of Trainer 4.40.2 after two steps of a GPT-2.
OF_4_40 = {
    "best_metric": None,
    "best_model_checkpoint": None,
    "epoch": 0.25,
    "eval_steps": 20,
    "global_step": 2,
    "is_hyper_param_search": False,
    "is_local_process_zero": True,
    "is_world_process_zero": True,
    "log_history": [
        {
            "epoch": 0.125,
            "grad_norm": 1.3762407302856445,
            "learning_rate": 0.01,
            "loss": 4.0528,
            "step": 1,
        },
        {
            "epoch": 0.25,
            "grad_norm": 1.1637812852859497,
            "learning_rate": 0.008535533905932738,
            "loss": 3.9299,
            "step": 2,
        },
    ],
    "logging_steps": 1,
    "max_steps": 5,
    "num_input_tokens_seen": 0,
    "num_train_epochs": 1,
    "save_steps": 1,
    "total_flos": 3164160.0,
    "train_batch_size": 4,
    "trial_name": None,
    "trial_params": None,
}
_CONTROL = {
    "args": {
        "should_epoch_stop": False,
        "should_evaluate": False,
        "should_log": False,
        "should_save": True,
        "should_training_stop": False,
    },
    "attributes": {},
}
_STOPPING = {
    "args": {"early_stopping_patience": 3, "early_stopping_threshold": 0.0},
    "attributes": {"early_stopping_patience_counter": 1},
}
# Of 4.46.3, with an EarlyStoppingCallback.
OF_4_46 = {
    **OF_4_40,
    "stateful_callbacks": {
        "EarlyStoppingCallback": _STOPPING,
        "TrainerControl": _CONTROL,
    },
}
OF_4_50 = {**OF_4_46, "best_global_step": None}
# Settings of the run, in which Trainer follows the file and not its arguments.
OF_THE_RUN = {
    "eval_steps": 20,
    "logging_steps": 1,
    "num_train_epochs": 1,
    "save_steps": 1,
    "train_batch_size": 4,
}


@pytest.fixture(scope="module")
def module():
    return torch_models.gpt2(num_layers=1)


@pytest.fixture
def params(module):
    return torch_models.flax_tree(torch_models.flax_leaves(module))


@pytest.fixture
def names(module, params):
    return match_names(params, torch_model_from_module(module))


@pytest.fixture
def opt_state(params):
    return build_optimizer(RECIPE).init(params)


@pytest.fixture
def like(tmp_path):
    folder = tmp_path / "like"
    folder.mkdir()
    return folder


@pytest.fixture
def written(tmp_path, params, names, opt_state):
    """Writes step 3 of the run whose folder is `like`, and returns the new folder."""

    def write(like=None, recipe=RECIPE, opt_state=opt_state, **options):
        folder = tmp_path / f"checkpoint-{len(list(tmp_path.iterdir()))}"
        write_trainer_checkpoint(
            folder,
            params,
            opt_state,
            names,
            recipe=recipe,
            step=3,
            like=like,
            **options,
        )
        return folder

    return write


def json_of(folder):
    return json.loads((folder / "trainer_state.json").read_text())


@pytest.mark.parametrize("state", [OF_4_40, OF_4_46, OF_4_50], ids=["40", "46", "50"])
def test_the_fields_of_trainers_state_are_those_of_its_version(state, like, written):
    (like / "trainer_state.json").write_text(json.dumps(state))
    given = {"log_history": state["log_history"], "epoch": 0.25}
    found = json_of(written(like, trainer_state=given))
    assert found.keys() == state.keys()
    assert found["global_step"] == 3
    assert {**OF_THE_RUN, **given}.items() <= found.items()
    # Trainer finds its callbacks by name when it saves.
    assert found.get("stateful_callbacks") == state.get("stateful_callbacks")
    # As read from the folder itself, or from a run's: nothing is added either.
    found = json_of(written(like, trainer_state=state))
    assert found == {**state, "global_step": 3, "max_steps": 20}


def test_without_like_the_fields_are_those_of_the_version_of_today(written, like):
    fields = {field.name for field in dataclasses.fields(transformers.TrainerState)}
    assert json_of(written()).keys() == fields
    assert json_of(written(like)).keys() == fields


def test_fields_of_a_later_version_are_kept_and_others_refused(like, written):
    (like / "trainer_state.json").write_text(json.dumps(OF_4_46))
    with pytest.raises(ValueError, match=r"like/trainer_state.json', got \['best_g"):
        written(like, trainer_state=OF_4_50)
    newer = {**OF_4_50, "num_restarts": 2}
    with pytest.raises(ValueError, match=r"got \['num_restarts'\]. .*`like`"):
        written(trainer_state=newer)
    (like / "trainer_state.json").write_text(json.dumps(newer))
    assert json_of(written(like))["num_restarts"] == 2
    (like / "trainer_state.json").write_text("{")
    with pytest.raises(ValueError, match=r"got '.*like/trainer_state\.json'"):
        written(like)


def test_optimizer_and_scheduler_have_the_fields_of_their_torch(
    like, written, params, names, opt_state
):
    today = torch_from_opt_state(
        opt_state, params, names, param_groups_from_recipe(RECIPE, 1e-3)
    )
    # As older releases of torch have them.
    later = ("decoupled_weight_decay", "param_names")
    groups = [
        {key: value for key, value in group.items() if key not in later}
        for group in today["param_groups"]
    ]
    torch.save({"state": {}, "param_groups": groups}, like / "optimizer.pt")
    scheduler = torch_from_schedule_step(2, RECIPE)
    del scheduler["_is_initial"]
    torch.save({**scheduler, "verbose": False}, like / "scheduler.pt")
    folder = written(like)
    found = torch.load(folder / "optimizer.pt")["param_groups"]
    # Names are handed on by every torch, and tell which moment is whose.
    assert [g.keys() - {"param_names"} for g in found] == [g.keys() for g in groups]
    assert found[0]["weight_decay"] == groups[0]["weight_decay"]
    assert all("param_names" in group for group in found)
    found = torch.load(folder / "scheduler.pt")
    assert found == {
        **scheduler,
        "verbose": False,
        "last_epoch": 3,
        "_step_count": 4,
        "_last_lr": [1e-3 * (17 / 20)] * 2,
    }


def test_a_scheduler_that_a_metric_drives_has_the_fields_of_its_torch(like, written):
    state = build_schedule(PLATEAU).init()
    scheduler = torch_from_metric_state(state, {}, [1e-3] * 2, 0)
    del scheduler["default_min_lr"]
    torch.save({**scheduler, "verbose": False}, like / "scheduler.pt")
    found = torch.load(written(like, PLATEAU, schedule_state=state) / "scheduler.pt")
    assert found == {**scheduler, "verbose": False, "last_epoch": 3}


def test_files_of_another_optimizer_and_schedule_leave_the_fields_alone(like, written):
    group = {"lr": 1e-3, "momentum": 0.9, "params": [0]}
    torch.save({"state": {}, "param_groups": [group]}, like / "optimizer.pt")
    state = build_schedule(PLATEAU).init()
    scheduler = torch_from_metric_state(state, {}, [1e-3] * 2, 0)
    torch.save(scheduler, like / "scheduler.pt")
    own, other = written(), written(like)
    for name in ("optimizer.pt", "scheduler.pt"):
        assert torch.load(other / name).keys() == torch.load(own / name).keys()
    keys = [torch.load(f / "optimizer.pt")["param_groups"][0] for f in (own, other)]
    assert keys[0].keys() == keys[1].keys()


def test_an_optimizer_of_apex_counts_in_its_groups(like, written, opt_state):
    clipping, adamw = opt_state
    state = clipping, adamw._replace(count=jnp.ones_like(adamw.count))
    group = {"lr": 1e-3, "betas": (0.9, 0.999), "bias_correction": True, "step": 7}
    torch.save(
        {"state": {}, "param_groups": [{**group, "params": []}] * 2},
        like / "optimizer.pt",
    )
    found = torch.load(written(like, opt_state=state) / "optimizer.pt")
    assert [g["step"] for g in found["param_groups"]] == [1, 1]
    assert [g["bias_correction"] for g in found["param_groups"]] == [True, True]


@pytest.mark.parametrize(
    "names_of_files",
    [
        ["pytorch_model.bin"],
        ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"],
    ],
    ids=["whole", "sharded"],
)
def test_weights_are_in_the_file_that_the_run_reads(
    names_of_files, like, written, module, params, names
):
    """Trainer 4 with `save_safetensors=False` reads no other."""
    for name in names_of_files:
        (like / name).write_bytes(b"of another step")
    folder = written(like)
    assert sorted(path.name for path in folder.iterdir()) == [
        "optimizer.pt",
        "pytorch_model.bin",
        "scheduler.pt",
        "trainer_state.json",
    ]
    weights = torch.load(folder / "pytorch_model.bin")
    fresh = torch_models.gpt2(num_layers=1)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    missing, unexpected = fresh.load_state_dict(weights, strict=True)
    assert (missing, unexpected) == ([], [])
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, module.state_dict()[name])
    # Tied tensors are stored once.
    pointers = {tensor.data_ptr() for tensor in weights.values()}
    assert len(pointers) == len(list(module.parameters()))
    jax.tree.map(
        np.testing.assert_array_equal, read_params(folder, params, names), params
    )


def test_shards_of_another_step_are_not_copied(like, written, params, names, opt_state):
    for name in (
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "optimizer.bin",
    ):
        (like / name).write_bytes(b"of another step")
    (like / "tokenizer.json").write_text("{}")
    folder = written(like)
    assert sorted(path.name for path in folder.iterdir()) == [
        "model.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "tokenizer.json",
        "trainer_state.json",
    ]
    read_trainer_checkpoint(folder, params, names, recipe=RECIPE, opt_state=opt_state)
