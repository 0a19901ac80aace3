"""Runs of models that only Transformers has, under torchax."""

import json

import numpy as np
import pytest

from jaxopt_tf.jobs import RunConfig, generate, pretrain
from jaxopt_tf.models import TransformersConfig, _model, build_model

CONFIG = {
    "architectures": ["GPTNeoXForCausalLM"],
    "model_type": "gpt_neox",
    "dtype": "bfloat16",
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
}


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    np.save(tmp_path / "text.npy", np.arange(2000, dtype=np.uint16) * 7 % 61)
    return {
        "model_name_or_path": tmp_path,
        "model_implementation": "torchax",
        "from_scratch": True,
        "text": [tmp_path / "text.npy"],
        "output_dir": tmp_path / "run",
        "max_steps": 2,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 2,
    }


def test_a_folder_becomes_a_configuration_that_settings_json_holds(settings):
    config = RunConfig.from_dict(settings)
    assert isinstance(config.model, TransformersConfig)
    assert (config.model.vocab_size, config.model.block_size) == (64, 16)
    # Weights are float32, whatever the folder has.
    assert "dtype" not in config.model.transformers_config
    saved = json.loads(json.dumps(config.to_dict()))
    assert RunConfig.from_dict(saved).model == config.model


def test_an_unknown_architecture_needs_torchax(settings, monkeypatch):
    monkeypatch.setattr(_model, "has_torchax", lambda: True)
    del settings["model_implementation"]
    assert RunConfig.from_dict(settings).job.model_implementation == "torchax"
    monkeypatch.setattr(_model, "has_torchax", lambda: False)
    with pytest.raises(ValueError, match=r"`model_type` 'gpt_neox'.*\.\[torchax\]"):
        RunConfig.from_dict(settings)
    with pytest.raises(ValueError, match="`model_type` 'gpt_neox'"):
        RunConfig.from_dict({**settings, "model_implementation": "flax"})


def test_settings_that_torchax_does_not_have_are_refused(settings):
    folder = settings.pop("model_name_or_path")
    with pytest.raises(ValueError, match="`model_implementation` 'torchax' must be"):
        RunConfig.from_dict({**settings, "from_scratch": False})
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ValueError, match=r"must contain a causal .*no `vocab_size`"):
        RunConfig.from_dict({**settings, "model_name_or_path": folder})
    with pytest.raises(TypeError, match="`transformers_config` must be the content"):
        TransformersConfig(transformers_config=1, vocab_size=8)


def test_a_tied_head_is_no_parameter_of_its_own():
    # Transformers ties where it initializes, which is left out for the configuration.
    pytest.importorskip("torchax", reason="the extra torchax is not installed")
    content = {**CONFIG, "tie_word_embeddings": True}
    model = build_model(TransformersConfig(transformers_config=content, vocab_size=64))
    assert "gpt_neox.embed_in.weight" in model.shapes
    assert "embed_out.weight" not in model.shapes
    assert model.init(0).keys() == model.shapes.keys()


@pytest.mark.promotion_of_others
@pytest.mark.usefixtures("compiled_quickly", "compiled_once")
def test_a_run_is_written_as_transformers_reads_it(settings, capsys):
    pytest.importorskip("torchax", reason="torchax is an optional, experimental extra")
    torch = pytest.importorskip("torch", reason="it generates the reference")
    transformers = pytest.importorskip("transformers", reason="it builds the model")
    folder = settings["model_name_or_path"]
    config = transformers.GPTNeoXConfig.from_pretrained(folder)
    torch.manual_seed(0)
    transformers.GPTNeoXForCausalLM(config).save_pretrained(folder)
    # A token of the vocabulary is a number.
    tokenizers = pytest.importorskip("tokenizers")
    words = {str(i): i for i in range(61)} | {"</s>": 62}
    numbers = tokenizers.models.WordLevel(words, "0")
    tokenizer = tokenizers.Tokenizer(numbers)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "text.txt").write_text(" ".join(str(i * 7 % 61) for i in range(2000)))
    settings |= {"sample_prompt": "7 14", "text": [folder / "text.txt"]}
    result = pretrain(RunConfig.from_dict({**settings, "from_scratch": False}))
    assert result.last_loss < result.first_loss
    read = transformers.AutoModelForCausalLM.from_pretrained(result.folder)
    for name, p in read.named_parameters():
        np.testing.assert_array_equal(p.detach(), result.params[name])
    # Without a cache, each new token is that of a forward pass over the text.
    ids = torch.tensor([[7, 14]])
    (tokens,) = read.generate(ids, max_new_tokens=14, do_sample=False)
    text = generate(result.folder, "7 14", max_new_tokens=14)
    assert text.split() == [str(int(token)) for token in tokens]
    assert f"sample  {text!r}" in capsys.readouterr().out
