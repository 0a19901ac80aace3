"""Configurations of decoders: reading, writing and errors."""

import dataclasses
import json

import pytest

from jaxopt_tf.models._decoder_config import DecoderConfig, LayerKind
from jaxopt_tf.models._transformers_decoder_config import (
    decoder_config_for_transformers,
    decoder_config_from_transformers,
)
from tests import references
from tests.references import decoders as reference

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
FULL, SLIDING = "full_attention", "sliding_attention"
KINDS = ["llama", "mistral", "qwen2", "qwen3", "smollm3"]


def config_of(model_type="llama", **changes):
    return DecoderConfig(model_type=model_type, **{**SIZES, **changes})


def read(model_type="llama", **changes):
    sizes = {**SIZES, "num_key_value_heads": 4, "pad_token_id": None}
    return decoder_config_from_transformers(
        {"model_type": model_type, **sizes, **changes}
    )


# --- fields


def test_derives_what_is_not_given():
    config = config_of(max_position_embeddings=4096)
    assert (config.num_key_value_heads, config.head_dim) == (4, 8)
    assert config.block_size == 1024
    assert config_of(max_position_embeddings=100).block_size == 100
    assert config.layer_kinds == [LayerKind(None, True)] * 4
    windows = config_of("mistral", sliding_window=7)
    assert windows.layer_kinds == [LayerKind(7, True)] * 4


@pytest.mark.parametrize("case", reference.CASES)
def test_is_the_same_after_it_was_json(case):
    config = decoder_config_from_transformers(
        {**reference.SIZES, **reference.CASES[case]}
    )
    fields = json.loads(json.dumps(vars(config)))
    assert fields == vars(config)  # as the settings of a run are compared
    assert DecoderConfig(**fields) == config
    assert hash(DecoderConfig(**fields)) == hash(config)
    assert dataclasses.replace(config, block_size=8).block_size == 8


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model_type": "lama"}, ValueError, "`model_type` must be one of .*'llama'?"),
        ({"vocab_size": 0}, ValueError, "`vocab_size` must be from 1"),
        ({"hidden_size": 2.5}, TypeError, "`hidden_size` must be a whole number"),
        ({"hidden_size": "32"}, TypeError, "`hidden_size` must be a whole number"),
        ({"pad_token_id": "a"}, TypeError, "`pad_token_id` must be a whole number"),
        ({"num_hidden_layers": "4"}, TypeError, "`num_hidden_layers` must be a whole"),
        ({"hidden_size": 30}, ValueError, "`hidden_size` must be a multiple .* Use 32"),
        ({"num_key_value_heads": 3}, ValueError, "`num_key_value_heads` must divide"),
        ({"head_dim": 7}, ValueError, "`head_dim` must be even.* got 7. Use 8"),
        ({"block_size": 4096}, ValueError, "`block_size` must be at most .* is 2048"),
        ({"rms_norm_eps": float("nan")}, ValueError, "`rms_norm_eps` must be finite"),
        ({"rope_theta": 0}, ValueError, "`rope_theta` must be finite and greater"),
        ({"initializer_range": 1.5}, ValueError, "`initializer_range` must be from 0"),
        ({"pad_token_id": 96}, ValueError, "`pad_token_id` must be from -96 to 95"),
        ({"tie_word_embeddings": 1}, TypeError, "`tie_word_embeddings` must be True"),
        ({"scan_layers": None}, TypeError, "`scan_layers` must be True or False"),
        ({"remat_policy": "al"}, ValueError, "`remat_policy` must be one of 'full'"),
        ({"rope_scaling": {"rope_type": "x"}}, ValueError, "`rope_scaling.rope_type`"),
        ({"sliding_window": 4}, ValueError, "`sliding_window` must be left out for"),
        ({"no_rope_layers": [1, 1, 1, 0]}, ValueError, "`no_rope_layers` must be a"),
        ({"layer_types": [FULL] * 3}, ValueError, "`layer_types` must be a list of 4"),
        ({"layer_types": [SLIDING] * 4}, ValueError, "`layer_types` must be a list of"),
    ],
)
def test_refuses_a_field(changes, error, message):
    with pytest.raises(error, match=message):
        config_of(**changes)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("mistral", {"attention_bias": True}),
        ("qwen2", {"attention_bias": True}),
        ("qwen3", {"mlp_bias": True}),
        ("mistral", {"sliding_window": 4, "layer_types": [SLIDING] * 3 + [FULL]}),
        ("qwen3", {"sliding_window": 0}),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 2]}),
    ],
)
def test_refuses_what_the_architecture_does_not_have(model_type, changes):
    with pytest.raises(ValueError, match=f"`{[*changes][-1]}` must be"):
        config_of(model_type, **changes)


# --- from config.json


@references.needs_transformers
@pytest.mark.parametrize("kind", KINDS)
def test_missing_fields_have_the_defaults_of_transformers(kind):
    from transformers import AutoConfig

    theirs = AutoConfig.for_model(kind).to_dict()
    ours = vars(decoder_config_from_transformers({"model_type": kind}))
    assert ours["rope_theta"] == theirs["rope_parameters"]["rope_theta"]
    assert ours["rope_scaling"] is None
    theirs["head_dim"] = theirs.get("head_dim") or (
        theirs["hidden_size"] // theirs["num_attention_heads"]
    )
    for name in ours.keys() & theirs.keys():
        if name != "sliding_window" or kind != "llama":
            assert ours[name] == theirs[name], name


@references.needs_transformers
@pytest.mark.parametrize("case", reference.CASES)
def test_what_is_written_is_what_transformers_reads(case):
    from transformers import AutoConfig

    given = {**reference.SIZES, **reference.CASES[case]}
    config = decoder_config_from_transformers(given)
    written = json.loads(json.dumps(decoder_config_for_transformers(config)))
    assert decoder_config_from_transformers(written) == config
    kind = given.pop("model_type")
    theirs = AutoConfig.for_model(kind, **given).to_dict()
    content = {k: v for k, v in written.items() if k != "model_type"}
    ours = AutoConfig.for_model(kind, **content).to_dict()
    # In version 4 the theta and the scaling have names of their own.
    beside = ("architectures", "bos_token_id", "eos_token_id", "no_rope_layer_interval")
    if not config.sliding_window:
        beside += ("max_window_layers",)
    for name in theirs.keys() - set(beside):
        if name == "rope_parameters":
            assert ours[name].items() >= theirs[name].items()
        elif name == "head_dim" and theirs[name] is None:
            assert ours[name] == config.head_dim
        else:
            assert ours[name] == theirs[name], name


def test_reads_rope_of_both_versions():
    yarn = {"factor": 2.0, "original_max_position_embeddings": 64}
    length = {"max_position_embeddings": 128}
    old = read(rope_theta=1e6, rope_scaling={"type": "yarn", **yarn}, **length)
    new = read(
        rope_parameters={"rope_type": "yarn", "rope_theta": 1e6, **yarn}, **length
    )
    assert old == new
    assert new.rope_theta == 1e6
    assert new.rope_scaling == {"rope_type": "yarn", **yarn}
    assert read(rope_theta=5e5, rope_scaling=None).rope_scaling is None
    assert read(rope_parameters={"rope_type": "default"}).rope_theta == 1e4
    # The length beside the scaling takes precedence, as in Transformers.
    beside = read(
        rope_scaling={"type": "yarn", **yarn},
        original_max_position_embeddings=32,
        **length,
    )
    assert beside.rope_scaling["original_max_position_embeddings"] == 32


@pytest.mark.parametrize(
    ("kind", "given", "windows"),
    [
        ("llama", {"sliding_window": 3}, [None] * 4),  # which Llama ignores
        ("mistral", {}, [4096] * 4),
        ("mistral", {"sliding_window": None}, [None] * 4),
        ("qwen2", {"sliding_window": 3}, [None] * 4),
        (
            "qwen2",
            {"sliding_window": 3, "use_sliding_window": True, "max_window_layers": 1},
            [None, 3, 3, 3],
        ),
        ("qwen3", {"use_sliding_window": True}, [None] * 4),  # from layer 28 on
        (
            "qwen3",
            {"use_sliding_window": True, "layer_types": [SLIDING, FULL] * 2},
            [4096, None] * 2,
        ),
        (
            "smollm3",
            {"sliding_window": 3, "use_sliding_window": True},
            [None, None, None, 3],
        ),
    ],
)
def test_reads_the_window_of_each_layer(kind, given, windows):
    assert [layer.window for layer in read(kind, **given).layer_kinds] == windows


def test_reads_layers_without_rope():
    def has_rope(**given):
        return [layer.has_rope for layer in read("smollm3", **given).layer_kinds]

    assert has_rope() == [True, True, True, False]
    assert has_rope(no_rope_layer_interval=2) == [True, False] * 2
    assert has_rope(no_rope_layers=[0, 1, 0, 1, 0]) == [False, True] * 2
    assert [layer.has_rope for layer in read(no_rope_layers=[0] * 4).layer_kinds] == (
        [True] * 4
    )


def test_reads_a_folder(tmp_path):
    content = {"model_type": "llama", **SIZES, "bos_token_id": 1, "use_cache": True}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert decoder_config_from_transformers(tmp_path) == read()


def test_without_a_range_weights_have_the_range_of_transformers():
    assert read(initializer_range=0).initializer_range == 0.02


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model_type": None}, "`model_type` is missing; supported: llama, mistral"),
        ({"model_type": "gemma3"}, "`model_type` 'gemma3' is not supported; supported"),
        ({"architectures": ["LlamaModel"]}, r"`architectures` \['LlamaModel'\] is not"),
        ({"hidden_act": "gelu"}, "`hidden_act` 'gelu' is not supported"),
        (
            {"attention_dropout": 0.1},
            "`attention_dropout` 0.1 .* dropout is not implemented",
        ),
        ({"partial_rotary_factor": 0.5}, "`partial_rotary_factor` 0.5 is not"),
        ({"quantization_config": {"bits": 4}}, "`quantization_config` .* without"),
        ({"per_layer_config": {"0": {}}}, "`per_layer_config` .* is not supported"),
        ({"rope_scaling": {"type": "su"}}, "`rope_scaling.rope_type` must be one of"),
        ({"rope_scaling": "yarn"}, "`rope_scaling` must be an object, got 'yarn'"),
        (
            {"rope_parameters": {FULL: {"rope_type": "default"}}},
            "`rope_parameters` for layer types",
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 2, "mrope_section": [1]}},
            r"`mrope_section` \[1\] is unknown",
        ),
        (
            {"rope_scaling": {"type": "default", "partial_rotary_factor": 0.5}},
            "`partial_rotary_factor` 0.5 is unknown",
        ),
        ({"num_hidden_layers": "4"}, "`num_hidden_layers` must be a whole number"),
        (
            {
                "model_type": "qwen2",
                "use_sliding_window": True,
                "max_window_layers": "a",
            },
            "`max_window_layers` must be a whole number",
        ),
        (
            {"model_type": "smollm3", "no_rope_layers": 3},
            "`no_rope_layers` must be a list of 4",
        ),
        (
            {"model_type": "qwen2", "layer_types": [SLIDING] * 4},
            "`layer_types` must be a list of 4",
        ),
        (
            {"model_type": "mistral", "layer_types": [SLIDING, FULL] * 2},
            "`layer_types` must be a list of 4",
        ),
        (
            {"model_type": "qwen3", "layer_types": ["chunked_attention"] * 4},
            "`layer_types` must be a list of 4",
        ),
    ],
)
def test_refuses_a_setting_by_its_name(given, message):
    with pytest.raises(ValueError, match=message) as error:
        read(**given)
    assert "`source` must be the configuration of a supported decoder" in str(
        error.value
    )
    assert "jaxopt_tf.interop" in str(error.value)


def test_names_all_settings_that_are_refused_at_once():
    with pytest.raises(ValueError, match="`hidden_act`") as error:
        read(hidden_act="relu", attention_dropout=0.5, rope_scaling={FULL: {}})
    for name in ("`attention_dropout`", "`rope_parameters`"):
        assert name in str(error.value)


def test_refuses_a_folder_without_a_configuration(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json"):
        decoder_config_from_transformers(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json"):
        decoder_config_from_transformers(tmp_path)
