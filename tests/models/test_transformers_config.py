"""Names and values in the config.json of a GPT-2."""

import json

import pytest

from jaxopt_tf.models import gpt2_settings_from_transformers

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 32, "vocab_size": 99}
GIVEN = {**SIZES, "attn_pdrop": 0.0, "resid_pdrop": 0.1, "embd_pdrop": 0.1}


@pytest.fixture
def sizes(tmp_path):
    """Sizes of a model whose file differs by some entries; None takes one out."""

    def sizes(**changes):
        config = {n: v for n, v in {**GIVEN, **changes}.items() if v is not None}
        (tmp_path / "config.json").write_text(json.dumps(config))
        return gpt2_settings_from_transformers(tmp_path)

    return sizes


@pytest.mark.parametrize(
    "changes",
    [
        {"activation_function": "gelu_new"},
        {"activation_function": "gelu_pytorch_tanh"},
        {"activation_function": "gelu_fast"},
        {"n_layer": None, "num_hidden_layers": 2},
        {"n_head": None, "num_attention_heads": 2},
        {"n_embd": None, "hidden_size": 16},
        {"n_positions": None, "max_position_embeddings": 32},
        {"n_positions": None, "n_ctx": 32},
        {"n_ctx": 32},
        {"n_ctx": 16, "hidden_size": 16},
        {"hidden_size": 16, "n_embd": None, "n_inner": 64},
        {"resid_pdrop": None, "embd_pdrop": None},  # 0.1, as in Transformers
    ],
    ids=str,
)
def test_other_names_of_a_size_and_of_gelu_are_read(sizes, changes):
    assert sizes(**changes) == sizes()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"hidden_size": 32},
            "`n_embd` 16 and `hidden_size` 32: names of the same size",
        ),
        ({"n_positions": None}, "`n_positions` is missing"),
        ({"activation_function": "gelu"}, "`activation_function` 'gelu': it must be"),
    ],
)
def test_what_contradicts_itself_is_refused(sizes, changes, words):
    with pytest.raises(ValueError, match=words):
        sizes(**changes)


def test_reads_the_dropout_of_released_models(sizes):
    assert sizes()["attn_pdrop"] == 0.0
    assert sizes(attn_pdrop=0.2)["attn_pdrop"] == 0.2
    assert sizes(attn_pdrop=None)["attn_pdrop"] == 0.1


def test_the_names_of_gelu_are_one_formula():
    import torch
    from transformers import activations

    x = torch.linspace(-12, 12, 2_001)
    expected = activations.ACT2FN["gelu_new"](x)
    for name in ("gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate"):
        found = activations.ACT2FN[name](x)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
