"""Runs that start from a model folder of Transformers."""

import json

import jax
import numpy as np
import pytest

from jaxopt_tf.jobs import Job, RunConfig, generate, pretrain
from jaxopt_tf.jobs._import_source import unused_tokenizer
from tests import references

pytestmark = [
    pytest.mark.promotion_of_others,  # flax's variables
    pytest.mark.usefixtures("compiled_quickly", "compiled_once"),
    references.needs_transformers,
]

TEXT = "In the beginning was the word. " * 40
SETTINGS = {"max_steps": 6, "learning_rate": 1e-2, "block_size": 16, "eval_steps": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Llama with random weights, as `save_pretrained` writes it, and a tokenizer."""
    import tokenizers
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("llama")
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        [TEXT], vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        bos_token_id=7,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "text").mkdir()
    (folder / "text" / "a.txt").write_text(TEXT)
    rows = [{"prompt": f"{i} is", "completion": f" {i}"} for i in range(40)]
    lines = "\n".join(map(json.dumps, rows))
    (folder / "rows.jsonl").write_text(lines)
    return folder


@pytest.fixture
def settings(folder, tmp_path):
    return {
        **SETTINGS,
        "model_name_or_path": str(folder),
        "text": [str(folder / "text")],
        "output_dir": str(tmp_path / "run"),
    }


def run(settings, **changes):
    return pretrain(RunConfig.from_dict({**settings, **changes}))


def test_the_result_is_a_model_of_transformers(folder, settings):
    import torch
    import transformers

    result = run(settings)
    assert result.last_loss < result.first_loss
    model = transformers.AutoModelForCausalLM.from_pretrained(result.folder)
    before = json.loads((folder / "config.json").read_text())
    after = json.loads((result.folder / "config.json").read_text())
    assert after["bos_token_id"] == before["bos_token_id"] == 7
    tokenizer = transformers.AutoTokenizer.from_pretrained(result.folder)
    ids = tokenizer("In the beginning", return_tensors="pt")["input_ids"]
    assert int(ids.max()) < 300
    theirs = dict(model.named_parameters())["model.layers.1.mlp.up_proj.weight"]
    ours = result.params["model"]["layers"]["mlp"]["up_proj"]["kernel"][1]
    np.testing.assert_array_equal(np.asarray(ours).T, theirs.detach().numpy())
    with torch.no_grad():
        expected = model.generate(ids, max_new_tokens=5, do_sample=False)
    text = generate(result.folder, "In the beginning", max_new_tokens=5)
    assert text.endswith(tokenizer.decode(expected[0, ids.shape[1] :]))


def test_the_weights_of_the_folder_are_the_first_parameters(folder, settings):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    still = {"max_steps": 1, "learning_rate": 0.0, "optim": "sgd"}
    recorded = run(settings, **still)
    theirs = model.model.embed_tokens.weight.detach().numpy()
    ours = recorded.params["model"]["embed_tokens"]["embedding"]
    np.testing.assert_array_equal(np.asarray(ours), theirs)
    folder = settings["output_dir"] + "-2"
    drawn = run(settings, **still, output_dir=folder, from_scratch=True)
    embedding = np.asarray(drawn.params["model"]["embed_tokens"]["embedding"])
    assert not np.allclose(embedding, theirs)


def test_resumes_bit_for_bit_and_does_not_need_the_folder(settings, tmp_path):
    whole = run(settings, save_steps=3)
    saved = json.loads((whole.folder / "settings.json").read_text())
    assert saved["model_type"] == "llama"
    changed = {
        "model_name_or_path": str(tmp_path / "gone"),
        "output_dir": str(tmp_path / "resumed"),
        "resume_from_checkpoint": str(whole.folder / "checkpoint-3"),
        "intended_changes": ["model_name_or_path"],
    }
    resumed = run(saved, **changed)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)


def test_fine_tunes_on_completions_of_packed_rows(folder, settings):
    rows = {"text": [], "train_file": [str(folder / "rows.jsonl")], "packing": True}
    result = run(settings, **rows, gradient_accumulation_steps=2)
    assert result.last_loss < result.first_loss
    lines = (result.folder / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 6 + 3


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_name_or_path": "nowhere"}, "must be a folder that contains config"),
        ({"vocab_size": 400}, r"must be those in .*`vocab_size` 400 instead of 300"),
        ({"n_lyer": 2}, "'n_lyer' must be a setting of a run"),
        ({"text": []}, "`text` or `train_file` must be given"),
        ({"train_file": ["a.jsonl"]}, "`train_file` must be left out with `text`"),
        ({"validation_file": ["a.jsonl"]}, "must be given with `train_file`"),
    ],
)
def test_refuses(settings, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        run(settings, **changes)


def test_refuses_to_overwrite_the_folder(folder, settings):
    with pytest.raises(ValueError, match="must be another folder than"):
        run(settings, output_dir=str(folder))
    with pytest.raises(ValueError, match="`from_scratch` must be given with"):
        RunConfig.from_dict({"max_steps": 1, "from_scratch": True})


def test_sizes_of_another_architecture_are_those_of_the_folder(settings):
    message = "must be those in .*, got `n_layer` 2. Leave them out, and `preset` too."
    with pytest.raises(ValueError, match=message):
        run(settings, n_layer=2)
    message = (
        "`n_layer`, `n_head` must be left out with `model_name_or_path`: the sizes"
    )
    with pytest.raises(ValueError, match=message):
        run(settings, n_layer=2, n_head=2, from_scratch=True)


def test_names_the_folder_of_damaged_weights(folder, settings, tmp_path):
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    message = "The weights in `model_name_or_path` must contain model.safetensors or"
    with pytest.raises(ValueError, match=message):
        run(settings, model_name_or_path=str(tmp_path))
    weights = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-9])
    message = "The weights in `model_name_or_path` must be a complete safetensors file"
    with pytest.raises(ValueError, match=message):
        run(settings, model_name_or_path=str(tmp_path))


def test_rows_without_a_completion_are_named_as_a_file(settings, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "", "completion": ""}\n' * 20)
    message = "`train_file` must have a row in its training part with a predicted"
    with pytest.raises(ValueError, match=message):
        run(settings, train_file=[str(tmp_path / "rows.jsonl")], text=[])


def test_refuses_a_folder_without_a_tokenizer(folder, settings, tmp_path):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"must contain tokenizer\.json"):
        run(settings, model_name_or_path=str(tmp_path))


def test_rows_for_fine_tuning_need_a_tokenizer(folder, tmp_path):
    rows = {"train_file": [str(folder / "rows.jsonl")]}
    given = {"max_steps": 1, "output_dir": str(tmp_path / "run"), **rows}
    with pytest.raises(ValueError, match="`tokenizer` must be given for rows"):
        run(given)


def test_names_the_tokenizer_that_an_import_does_not_use(folder):
    message = f"give {folder / 'tokenizer.json'} as `tokenizer`"
    assert message in unused_tokenizer(folder, Job())[0]
    assert not unused_tokenizer(folder, Job(tokenizer=folder / "tokenizer.json"))
    assert not unused_tokenizer(folder / "text", Job())
