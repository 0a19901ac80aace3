"""Incomplete checkpoint folders, and folders of other frameworks."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from jaxopt_tf.interop import (
    match_names,
    read_params,
    read_trainer_checkpoint,
    torch_model_from_module,
    write_trainer_checkpoint,
)
from jaxopt_tf.interop._param_groups import (
    check_param_groups,
    param_groups_from_recipe,
)
from jaxopt_tf.recipes import ParamGroup, Recipe, build_optimizer, build_schedule
from tests.references import torch_models

pytestmark = pytest.mark.usefixtures("compiled_quickly")

RECIPE = Recipe(max_steps=20, learning_rate=1e-3, decay_rule="transformers_v5")


@pytest.fixture(scope="module")
def names():
    module = torch_models.gpt2()
    params = torch_models.flax_tree(torch_models.flax_leaves(module))
    return match_names(params, torch_model_from_module(module))


@pytest.fixture
def params():
    return torch_models.flax_tree(torch_models.flax_leaves(torch_models.gpt2()))


@pytest.fixture(scope="module")
def trained(compiled_quickly):
    """The optimizer's state after two steps."""
    params = torch_models.flax_tree(torch_models.flax_leaves(torch_models.gpt2()))
    optimizer, grads = build_optimizer(RECIPE), jax.tree.map(np.ones_like, params)
    update, opt_state = jax.jit(optimizer.update), optimizer.init(params)
    for _ in range(2):
        _, opt_state = update(grads, opt_state, params)
    return opt_state


@pytest.fixture
def folder(tmp_path, params, names, trained):
    """A folder of two steps, written by ourselves."""
    path = tmp_path / "checkpoint-2"
    write_trainer_checkpoint(path, params, trained, names, recipe=RECIPE, step=2)
    return path


def read(folder, params, names, recipe=RECIPE, **options):
    options.setdefault("opt_state", build_optimizer(recipe).init(params))
    return read_trainer_checkpoint(folder, params, names, recipe=recipe, **options)


def test_missing_files_are_listed_with_what_can_be_done(folder, params, names):
    for name in ("optimizer.pt", "scheduler.pt"):
        (folder / name).unlink()
    says = r"(?s)scheduler.pt. Without it the sch.*optimizer.pt. Without it moments"
    with pytest.raises(ValueError, match=says):
        read(folder, params, names)
    files = {"optimizer.pt", "scheduler.pt"}
    checkpoint = read(folder, params, names, without=files)
    assert set(checkpoint.missing) == files
    assert checkpoint.step == checkpoint.schedule_step == 2
    state = checkpoint.opt_state[1]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.mu))
    # New moments, and the schedule where it was.
    assert (int(state.count), int(state.step)) == (0, 2)
    np.testing.assert_allclose(state.learning_rate, 9e-4, rtol=1e-6)


def test_without_the_trainers_state_the_step_is_the_schedules(folder, params, names):
    (folder / "trainer_state.json").unlink()
    checkpoint = read(folder, params, names, without={"trainer_state.json"})
    assert checkpoint.step == 2
    assert checkpoint.trainer_state == {}
    (folder / "scheduler.pt").unlink()
    both = {"trainer_state.json", "scheduler.pt"}
    with pytest.raises(ValueError, match="Without both the step is unknown"):
        read(folder, params, names, without=both)
    (folder / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match="Without both the step is unknown"):
        read(folder, params, names, without={*both, "optimizer.pt"})


def test_files_of_different_steps_are_detected(folder, params, names):
    state = json.loads((folder / "trainer_state.json").read_text())
    (folder / "trainer_state.json").write_text(json.dumps(state | {"global_step": 1}))
    with pytest.raises(ValueError, match="got 2 steps of the schedule and a `global_"):
        read(folder, params, names)


def test_without_its_file_a_schedule_that_a_metric_drives_keeps_the_rate(
    tmp_path, params, names
):
    recipe = Recipe(
        max_steps=20, learning_rate=1e-3, lr_scheduler_type="reduce_lr_on_plateau"
    )
    state = build_optimizer(recipe).init(params)
    reduced = build_schedule(recipe).init()
    reduced = reduced._replace(learning_rate=2.5e-4)
    folder = tmp_path / "checkpoint-9"
    options = {"recipe": recipe, "step": 9, "schedule_step": 3}
    write_trainer_checkpoint(
        folder, params, state, names, schedule_state=reduced, **options
    )
    (folder / "scheduler.pt").rename(tmp_path / "scheduler.pt")
    checkpoint = read(folder, params, names, recipe, without={"scheduler.pt"})
    assert checkpoint.schedule_state.learning_rate == 2.5e-4
    (tmp_path / "scheduler.pt").rename(folder / "scheduler.pt")
    (folder / "trainer_state.json").unlink()
    with pytest.raises(
        ValueError, match="contains the number of metrics, not the step"
    ):
        read(folder, params, names, recipe, without={"trainer_state.json"})


def test_without_parameters_there_is_nothing(folder, params, names):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="contains the parameters"):
        read(folder, params, names)
    with pytest.raises(ValueError, match="`without` must contain only"):
        read(folder, params, names, without={"model.safetensors"})


def test_parameters_alone_need_no_optimizer(folder, params, names):
    (folder / "optimizer.pt").unlink()
    checkpoint = read(folder, params, names, opt_state=None)
    assert checkpoint.opt_state is None
    jax.tree.map(np.testing.assert_array_equal, checkpoint.params, params)


def test_old_and_sharded_parameters_are_read(folder, params, names):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    # A file of version 4 has tied tensors under both names.
    torch.save(
        tensors | {"lm_head.weight": tensors["transformer.wte.weight"]},
        folder / "pytorch_model.bin",
    )
    checkpoint = read(folder, params, names)
    jax.tree.map(np.testing.assert_array_equal, checkpoint.params, params)
    torch.save([1, 2], folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"by name in pytorch_model.bin, got list"):
        read(folder, params, names)

    weight_map = {}
    for number, name in enumerate(tensors):
        file = f"model-{number:05}.safetensors"
        save_file({name: tensors[name]}, folder / file)
        weight_map[name] = file
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    checkpoint = read(folder, params, names)
    jax.tree.map(np.testing.assert_array_equal, checkpoint.params, params)
    index.write_text(json.dumps({"weight_map": {"a": "../x"}}))
    with pytest.raises(ValueError, match="got '../x' outside it"):
        read(folder, params, names)
    index.write_text("{")
    with pytest.raises(ValueError, match="must contain a readable model.safe"):
        read(folder, params, names)


def test_low_precision_parameters_are_widened_and_never_rounded(folder, params, names):
    tensors = load_file(folder / "model.safetensors")
    half = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    save_file(half, folder / "model.safetensors")
    checkpoint = read(folder, params, names)
    wanted = half["transformer.wpe.weight"].float()
    found = checkpoint.params["transformer"]["wpe"]["embedding"]
    np.testing.assert_array_equal(found, wanted)
    save_file(tensors, folder / "model.safetensors")
    small = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    with pytest.raises(ValueError, match="must fit into the tree's bfloat16"):
        read(folder, small, names)


def test_another_models_parameters_are_all_listed(folder, params, names):
    tensors = load_file(folder / "model.safetensors")
    del tensors["transformer.ln_f.bias"]
    tensors |= {"x": torch.ones(1), "transformer.wpe.weight": torch.ones(3, 8)}
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match="has 3 differences") as error:
        read(folder, params, names)
    for part in (
        "wpe.weight' has shape [3, 8], not [16, 8]",
        "ln_f.bias' [8] is missing",
        "'x'",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("content", [b"", b"text", b"\x10" * 64])
def test_a_damaged_parameter_file_is_named(folder, params, names, content):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="must be a complete safetensors file.*model"):
        read(folder, params, names)


@pytest.mark.parametrize("content", ["", "[]", '{"epoch": 1}', "{"])
def test_a_damaged_trainer_state_is_named(folder, params, names, content):
    (folder / "trainer_state.json").write_text(content)
    with pytest.raises(ValueError, match="must be the trainer_state.json of a Trainer"):
        read(folder, params, names)


def test_a_scheduler_of_something_else_is_named(folder, params, names):
    torch.save([1, 2], folder / "scheduler.pt")
    with pytest.raises(ValueError, match=r"scheduler.pt must contain .* got list"):
        read(folder, params, names)


def test_a_recipe_that_contradicts_the_folder_is_refused(folder, params, names):
    longer = Recipe(max_steps=40, learning_rate=1e-3)
    with pytest.raises(ValueError, match="contradicts the recipe: after 2 steps"):
        read(folder, params, names, recipe=longer)
    slower = Recipe(max_steps=20, learning_rate=1e-3, adam_beta2=0.9, weight_decay=0.1)
    with pytest.raises(ValueError, match=r"`betas` of group 0.*`weight_decay` of"):
        read(folder, params, names, recipe=slower)


@pytest.mark.parametrize(
    ("name", "whose"),
    [
        ("global_step2/", "DeepSpeed: .*python zero_to_fp32.py . OUT"),
        ("zero_to_fp32.py", "DeepSpeed's ZeRO: .*python zero_to_fp32.py . OUT"),
        ("bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "DeepSpeed's ZeRO"),
        ("zero_pp_rank_0_mp_rank_00_optim_states.pt", "DeepSpeed's ZeRO"),
        (
            "pytorch_model_fsdp_0/",
            "FSDP: .*merge-weights FOLDER/pytorch_model_fsdp_0 OUT",
        ),
        ("optimizer_0/", "FSDP: .*accelerate merge-weights"),
        ("optimizer.bin", "FSDP or Accelerate's `save_state`: .*optimizer.pt"),
        ("random_states_0.pkl", "Accelerate's `save_state`: .*rename them to"),
        ("__0_0.distcp", "torch.distributed.checkpoint"),
        ("rank0-of-8-optimizer.pt", "FSDP on XLA"),
        ("adapter_model.safetensors", "PEFT.*merge_and_unload"),
        ("adapter_config.json", "PEFT.*merge_and_unload"),
    ],
)
def test_folders_of_others_are_refused_by_name(folder, params, names, name, whose):
    path = folder / name
    path.mkdir() if name.endswith("/") else path.write_bytes(b"")
    with pytest.raises(ValueError, match=f"which was written by {whose}"):
        read(folder, params, names)
    # Where the whole model is there too, its parameters can be read.
    with pytest.raises(ValueError, match="can read the parameters"):
        read(folder, params, names)
    found = read_params(folder, params, names)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"which was written by {whose}"):
        read_params(folder, params, names)


def test_a_folder_without_weights_is_named(tmp_path, folder, params, names):
    says = "must contain model.safetensors or .*, which has none"
    with pytest.raises(ValueError, match=says):
        read_params(tmp_path / "checkpoint-2" / "..", params, names)
    with pytest.raises(ValueError, match="pass one of them, such as 'checkpoint-2'"):
        read_params(tmp_path, params, names)
    with pytest.raises(ValueError, match="pass one of them, such as 'checkpoint-2'"):
        read(tmp_path, params, names)
    with pytest.raises(ValueError, match="which is not a folder"):
        read_params(tmp_path / "no", params, names)


def test_a_folder_of_save_only_model_is_named(folder, params, names):
    for name in ("optimizer.pt", "scheduler.pt"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match="made with `save_only_model=True`"):
        read(folder, params, names)


def saved(path, change):
    """Changes the object in a file of torch."""
    value = torch.load(path)
    change(value)
    torch.save(value, path)


def as_former_adamw(state):
    """Gives groups the keys that `transformers.AdamW` gave them."""
    kept = ("lr", "betas", "eps", "weight_decay", "initial_lr", "params")
    state["param_groups"] = [
        {key: group[key] for key in kept} | {"correct_bias": True}
        for group in state["param_groups"]
    ]


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("optimizer.pt", lambda s: s["state"][0]["exp_avg"].fill_(np.nan), "`exp_avg`"),
        ("optimizer.pt", lambda s: s["state"][3].pop("step"), "a `step` for all"),
        ("optimizer.pt", lambda s: s["state"][3].update(step=-1), "`step` of"),
        ("optimizer.pt", lambda s: s["param_groups"].pop(), "every parameter"),
        ("optimizer.pt", lambda s: s["param_groups"][0].update(lr=np.nan), "`lr` of"),
        ("optimizer.pt", lambda s: s["param_groups"][0].update(eps=1.0), "`eps` of"),
        ("optimizer.pt", as_former_adamw, "a file of transformers.AdamW"),
        ("optimizer.pt", lambda s: s["state"].update({0: 3}), "a dict for each entry"),
        ("scheduler.pt", lambda s: s.pop("last_epoch"), "without .'last_epoch'"),
        ("scheduler.pt", lambda s: s.update(last_epoch=-1), "`last_epoch` must be"),
        ("scheduler.pt", lambda s: s.update(last_epoch=None), "`last_epoch` must be"),
        ("scheduler.pt", lambda s: s.update(_last_lr=[np.nan] * 2), "contradicts"),
        ("scheduler.pt", lambda s: s.update(_last_lr=3), "'float' object|'int' object"),
        ("scheduler.pt", lambda s: s.update(base_lrs=[1.0]), "base_lrs|argument"),
    ],
)
def test_errors_name_the_file_that_they_are_about(
    folder, params, names, file, change, says
):
    saved(folder / file, change)
    with pytest.raises((ValueError, TypeError), match=says) as error:
        read(folder, params, names)
    assert str(folder / file) in str(error.value)


@pytest.mark.parametrize("epoch", [float("nan"), -1.0, "two"])
def test_an_epoch_that_is_no_number_is_named(folder, params, names, epoch):
    state = json.loads((folder / "trainer_state.json").read_text()) | {"epoch": epoch}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    with pytest.raises(
        (ValueError, TypeError), match="trainer_state.json: `epoch` mus"
    ):
        read(folder, params, names)


def test_a_folder_that_is_not_there_is_named(tmp_path, params, names):
    with pytest.raises(ValueError, match="which is not a folder"):
        read(tmp_path / "checkpoint-1", params, names)


def test_a_folder_is_written_whole_and_only_where_none_is(
    folder, params, names, tmp_path
):
    state = build_optimizer(RECIPE).init(params)
    with pytest.raises(ValueError, match="`folder` must not exist yet"):
        write_trainer_checkpoint(folder, params, state, names, recipe=RECIPE, step=2)
    deep = tmp_path / "no" / "checkpoint-1"
    with pytest.raises(ValueError, match="must be in an existing folder"):
        write_trainer_checkpoint(deep, params, state, names, recipe=RECIPE, step=2)
    with pytest.raises(ValueError, match=r"fields of Trainer's state, got \['steps'\]"):
        write_trainer_checkpoint(
            tmp_path / "a",
            params,
            state,
            names,
            recipe=RECIPE,
            step=2,
            trainer_state={"steps": 3},
        )
    with pytest.raises(ValueError, match="must contain a state of `adamw_tf`"):
        write_trainer_checkpoint(
            tmp_path / "a", params, (), names, recipe=RECIPE, step=2
        )
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_a_schedule_that_a_metric_drives_needs_its_state(params, names, tmp_path):
    recipe = Recipe(max_steps=20, lr_scheduler_type="reduce_lr_on_plateau")
    state = build_optimizer(recipe).init(params)
    with pytest.raises(ValueError, match="`schedule_state` must be given"):
        write_trainer_checkpoint(
            tmp_path / "a", params, state, names, recipe=recipe, step=2
        )


def test_what_a_model_saves_beside_its_parameters_is_carried(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    params = torch_models.flax_tree(torch_models.flax_leaves(module))
    names = match_names(params, torch_model_from_module(module))
    state = build_optimizer(RECIPE).init(params)
    like, new = tmp_path / "like", tmp_path / "new"
    options = {"recipe": RECIPE, "step": 0}
    with pytest.raises(
        ValueError, match=r"`like` must be a checkpoint folder.*1.running_mean"
    ):
        write_trainer_checkpoint(new, params, state, names, **options)
    like.mkdir()
    module[1].running_mean.fill_(0.5)
    save_file(module.state_dict(), like / "model.safetensors")
    (like / "tokenizer.json").write_text("{}")
    (like / "rng_state.pth").write_text("of another step")
    write_trainer_checkpoint(new, params, state, names, like=like, **options)
    saved = load_file(new / "model.safetensors")
    assert saved.keys() == module.state_dict().keys()
    assert torch.equal(saved["1.running_mean"], module[1].running_mean)
    assert (new / "tokenizer.json").is_file()
    assert not (new / "rng_state.pth").exists()
    shutil.rmtree(like)


def test_groups_that_torch_does_not_have_are_refused():
    layered = Recipe(max_steps=2, rate_groups=[ParamGroup(pattern="a", factor=0.5)])
    with pytest.raises(ValueError, match="must have no `rate_groups`"):
        param_groups_from_recipe(layered, 1e-3)
    with pytest.raises(ValueError, match="must have AdamW, SGD, Adagrad or RMSprop"):
        param_groups_from_recipe(Recipe(max_steps=2, optim="lomo"), 1e-3)


@pytest.mark.parametrize(
    ("optim", "change", "num_groups"),
    [
        ("adamw_torch", {"decoupled_weight_decay": False}, 2),  # torch's Adam
        ("adamw_torch", {"maximize": True}, 2),
        ("adamw_torch", {"betas": None}, 2),  # an SGD without momentum has no state
        ("adamw_torch", {"weight_decay": 0.3}, 1),
        ("adamw_torch", {"weight_decay": 0.3}, 3),
        ("adafactor", {"scale_parameter": True}, 2),
        ("adafactor", {"clip_threshold": 3.0}, 1),  # of a script's own
    ],
)
def test_another_optimizer_with_the_same_state_is_refused(optim, change, num_groups):
    recipe = Recipe(max_steps=20, optim=optim, weight_decay=0.1)
    decayed, undecayed = param_groups_from_recipe(recipe, 1e-3)
    groups = [decayed, undecayed, undecayed][:num_groups]
    check_param_groups(groups, recipe)
    groups[0] = {k: v for k, v in (decayed | change).items() if v is not None}
    with pytest.raises(ValueError, match=f"`{next(iter(change))}` of group 0 is"):
        check_param_groups(groups, recipe)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "adafactor"])
def test_groups_are_set_as_trainer_sets_them(optim, tmp_path):
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        str(tmp_path), optim=optim, weight_decay=0.1, use_cpu=True, report_to=[]
    )
    trainer = Trainer(torch_models.convolutional(), arguments)
    trainer.create_optimizer_and_scheduler(20)
    theirs = trainer.optimizer.state_dict()["param_groups"]
    recipe = Recipe(max_steps=20, optim=optim, weight_decay=0.1)
    ours = param_groups_from_recipe(recipe, 5e-5)
    for group, their_group in zip(ours, theirs, strict=True):
        del their_group["params"]
        assert group == their_group
    check_param_groups(theirs, recipe)
