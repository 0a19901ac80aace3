"""Runs with frozen parameters: `freeze` of Flax models, and LoRA adapters."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from jaxopt_tf import tuning
from jaxopt_tf.cli import main
from jaxopt_tf.interop._weight_files import WeightFiles
from jaxopt_tf.jobs import (
    RunConfig,
    plan,
    pretrain,
    read_run,
    tuning_corpus,
    tuning_task,
)
from jaxopt_tf.jobs._final_folder import write_transformers_folder
from jaxopt_tf.jobs._run_io import read_params
from jaxopt_tf.models import build_model

pytestmark = [
    pytest.mark.promotion_of_others,
    pytest.mark.usefixtures("compiled_quickly", "compiled_once"),
    # PEFT 0.21 reads an attribute that Transformers 5.23 renames.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]
EMBEDDINGS = "transformer\\.w.e\\..*"


@pytest.fixture
def settings(tmp_path):
    np.save(tmp_path / "text.npy", np.arange(2000, dtype=np.uint16) * 7 % 61)
    return {
        "text": [tmp_path / "text.npy"],
        "output_dir": tmp_path / "run",
        "max_steps": 4,
        "save_steps": 2,
        "eval_strategy": "no",
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 4,
    }


@pytest.fixture
def gpt2(settings):
    sizes = {"vocab_size": 64, "block_size": 16}
    return {**settings, **sizes, "n_layer": 1, "n_head": 2, "n_embd": 16}


@pytest.fixture
def lora(settings, tmp_path):
    pytest.importorskip("torchax", reason="torchax is an optional, experimental extra")
    pytest.importorskip("peft", reason="it inserts the adapters")
    torch = pytest.importorskip("torch", reason="it draws the weights")
    transformers = pytest.importorskip("transformers", reason="it builds the model")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
    )
    base = tmp_path / "base"
    transformers.LlamaForCausalLM(config).save_pretrained(base)
    return {**settings, "model_name_or_path": base, "lora_r": 2, "lora_dropout": 0.1}


def run(settings, **others):
    return pretrain(RunConfig.from_dict({**settings, **others}))


def leaves(tree):
    return {jax.tree_util.keystr(p): x for p, x in jax.tree.leaves_with_path(tree)}


def assert_a_search_has_the_losses_of(result, folder):
    config = read_params(result.folder).config
    task = tuning_task(config, tuning_corpus(config, folder), num_eval_tokens=0)
    others = dataclasses.replace(config.recipe, learning_rate=1e-3)
    # The frozen parameters are replicated over two devices.
    runs = tuning.train_many(task, [others, config.recipe], devices=jax.devices()[:2])
    log = (result.folder / "metrics.jsonl").read_text().splitlines()
    losses = [x["loss"] for x in map(json.loads, log) if "loss" in x]
    np.testing.assert_allclose(runs.losses[1], losses, rtol=1e-5)
    assert abs(runs.losses[0, -1] / losses[-1] - 1) > 2e-5
    return task


def test_frozen_parameters_keep_their_values_and_have_no_state(gpt2, tmp_path):
    result = run(gpt2, freeze=[EMBEDDINGS])
    # The folder of the run contains all parameters; its checkpoints the trained ones.
    assert result.last_loss < result.first_loss
    state = read_run(result.folder).run_state.state
    assert not any("w.e" in name for name in leaves(state))
    everything = leaves(read_params(result.folder).params)
    assert everything.keys() == leaves(result.params).keys()
    start = leaves(build_model(RunConfig.from_dict(gpt2).model).init(42))
    for name, x in everything.items():
        # Compiled functions may round the initial values differently.
        is_equal = np.allclose(x, start[name], rtol=1e-6, atol=1e-8)
        assert is_equal == ("wte" in name or "wpe" in name), name
    task = assert_a_search_has_the_losses_of(result, tmp_path / "search")
    with pytest.raises(ValueError, match="`seed` must not vary with `freeze`"):
        task.init(7)  # which also draws the frozen parameters
    # Resumed from step 2, on a mesh: the same losses and frozen parameters.
    shutil.rmtree(result.folder / "checkpoint-4")
    on_mesh = {**gpt2, "mesh": "fsdp=4,tensor=2", "per_device_train_batch_size": 1}
    again = run(on_mesh, freeze=[EMBEDDINGS])
    np.testing.assert_allclose(again.last_loss, result.last_loss, rtol=1e-5)
    root = again.params["transformer"]
    for name in ("wte", "wpe"):
        expected = result.params["transformer"][name]["embedding"]
        np.testing.assert_array_equal(root[name]["embedding"], expected)
    found = plan(
        RunConfig.from_dict({**gpt2, "freeze": [EMBEDDINGS]}),
        devices="v5e:2x2",
        shapes_only=True,
    )
    parts = {part.name: part for part in found.parts}
    assert "frozen" in parts


def test_a_model_folder_is_written_whole(gpt2, tmp_path):
    whole = tmp_path / "base"
    model = build_model(RunConfig.from_dict(gpt2).model)
    write_transformers_folder(whole, model, model.init(1))
    start = {"model_name_or_path": whole, "text": gpt2["text"]}
    others = ("output_dir", "max_steps", "learning_rate", "save_steps")
    start |= {n: gpt2[n] for n in (*others, "per_device_train_batch_size")}
    tuned = run(start, freeze=[EMBEDDINGS])
    before, after = (WeightFiles(folder) for folder in (whole, tuned.folder))
    assert before.shapes == after.shapes
    equal = {n for n in before.shapes if np.array_equal(before.read(n), after.read(n))}
    assert equal == {"transformer.wte.weight", "transformer.wpe.weight"}


def test_an_adapter_is_trained_resumed_and_written_as_peft_reads_it(lora, tmp_path):
    import peft
    import torch
    import transformers

    result = run(lora)
    assert json.loads((result.folder / "adapter_config.json").read_text())[
        "base_model_name_or_path"
    ] == str(lora["model_name_or_path"])
    state = read_run(result.folder).run_state.state
    assert all("lora_" in name for name in state.params)
    moments = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim)
    assert moments == 2 * sum(x.size for x in state.params.values())
    base = transformers.AutoModelForCausalLM.from_pretrained(lora["model_name_or_path"])
    loaded = peft.PeftModel.from_pretrained(base, result.folder)
    ours = {name.replace(".default", ""): x for name, x in result.params.items()}
    theirs = peft.get_peft_model_state_dict(loaded)
    assert ours.keys() == theirs.keys()
    for name, x in theirs.items():
        np.testing.assert_array_equal(ours[name], x)
    assert_a_search_has_the_losses_of(result, tmp_path / "search")
    # Resumed from step 2, with the dropout of the same keys.
    shutil.rmtree(result.folder / "checkpoint-4")
    for name, x in run(lora).params.items():
        np.testing.assert_array_equal(x, result.params[name])
    on_mesh = run(
        lora,
        mesh="fsdp=4,tensor=2",
        per_device_train_batch_size=1,
        output_dir=tmp_path / "mesh",
    )
    np.testing.assert_allclose(on_mesh.last_loss, result.last_loss, rtol=1e-5)
    # Another base of the same shapes, then none.
    torch.manual_seed(1)
    type(base)(base.config).save_pretrained(lora["model_name_or_path"])
    with pytest.raises(ValueError, match="weights in `model_name_or_path`.*changed"):
        run(lora)
    (lora["model_name_or_path"] / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="`model_name_or_path` must contain the froz"):
        run(lora)


@pytest.mark.filterwarnings("ignore")  # of torch and Trainer
def test_a_run_with_frozen_parameters_resumes_in_trainer(gpt2, tmp_path, capsys):
    torch = pytest.importorskip("torch", reason="the files are torch's")
    transformers = pytest.importorskip("transformers", reason="Trainer resumes")
    pytest.importorskip("accelerate", reason="Trainer needs it")
    result = run(gpt2, freeze=[EMBEDDINGS])
    out = tmp_path / "trainer" / "checkpoint-2"
    checkpoint = result.folder / "checkpoint-2"
    assert main(["migrate", str(checkpoint), str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith("transformer.wte.weight, transformer.wpe.weight\n")
    saved = torch.load(out / "optimizer.pt", weights_only=True)
    names = [n for group in saved["param_groups"] for n in group["param_names"]]
    assert len(names) == 14
    assert not {n for n in names if "wte" in n or "wpe" in n}
    module = transformers.AutoModelForCausalLM.from_pretrained(out)
    for name in ("wte", "wpe"):
        getattr(module.transformer, name).weight.requires_grad_(False)
    arguments = transformers.TrainingArguments(
        str(out.parent), max_steps=4, report_to=[], disable_tqdm=True, use_cpu=True
    )
    tokens = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 40
    trainer = transformers.Trainer(module, arguments, train_dataset=tokens)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    trainer.train(resume_from_checkpoint=str(out))
    assert trainer.state.global_step == 4
    for name, p in module.named_parameters():
        assert torch.equal(p, before[name]) == ("wte" in name or "wpe" in name), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": ["h.*.wte"]}, r"`freeze` must match .*'h\.\*\.wte'.* nearest leaf"),
        ({"freeze": [".*"]}, "`freeze` must leave at least one parameter to train"),
        ({"freeze": [".*"], "lora_r": 2, "model_name_or_path": "x"}, "config.json"),
        ({"lora_r": 2}, "`lora_r` must be given with the weights of a base model"),
        (
            {"lora_r": 2, "model_implementation": "flax"},
            "`lora_r` must be left out with `model_implementation` 'flax'",
        ),
        ({"lora_alpha": 16}, "`lora_r` must be given with `lora_alpha`, got none"),
        ({"lora_dropout": 1.0}, "`lora_dropout` must be"),
    ],
    ids=str,
)
def test_refuses_settings_that_do_not_fit(gpt2, changes, message):
    with pytest.raises(ValueError, match=message):
        run(gpt2, **changes)
