"""Conversion between `GPT2Config` and the config.json of Transformers' GPT-2.

Source: transformers 5.23 `models/gpt2/configuration_gpt2.py`, `activations.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._io import read_json_object
from ._gpt2_config import GPT2Config

# Settings of Transformers' GPT-2 of which this model supports a single value.
_SUPPORTED_VALUES = {
    "activation_function": "gelu_new",
    "add_cross_attention": False,
    "layer_norm_epsilon": 1e-5,
    "model_type": "gpt2",
    "n_inner": None,
    "reorder_and_upcast_attn": False,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "tie_word_embeddings": True,
}
# Names of the formula x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) in Transformers'
# `activations.py`. Their implementations differ by float32 rounding at most.
_GELU_NEW = """gelu_accurate gelu_fast gelu_new gelu_python_tanh
gelu_pytorch_tanh"""
# Names of each size in config.json; the first one that is present is used. The second
# is the alias in `attribute_map` of Transformers' `GPT2Config`; `n_ctx` is the name in
# its first versions.
_SPELLINGS = {
    "n_layer": ("n_layer", "num_hidden_layers"),
    "n_head": ("n_head", "num_attention_heads"),
    "n_embd": ("n_embd", "hidden_size"),
    "n_positions": ("n_positions", "max_position_embeddings", "n_ctx"),
}
# Defaults of Transformers' `GPT2Config`.
_DROPOUT = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
# Names in config.json by the names of `GPT2Config`.
_SIZES = {
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "block_size": "n_positions",
    "vocab_size": "vocab_size",
    **{name: name for name in _DROPOUT},
}


def gpt2_settings_from_transformers(checkpoint: Path) -> dict[str, Any]:
    """Reads the sizes of a GPT-2 from config.json, by the names of `GPT2Config`.

    Args:
        checkpoint: folder with the config.json of a `GPT2LMHeadModel`.

    Raises:
        ValueError: if the file cannot be read, or settings are unsupported,
            inconsistent or missing. The message names all of them.
    """
    path = checkpoint / "config.json"
    given = read_json_object(path, "checkpoint")
    config = {**_DROPOUT, **given}
    problems = []
    for name, spellings in _SPELLINGS.items():
        values = {n: given[n] for n in spellings if n in given}
        # Current versions of Transformers ignore `n_ctx`: it may differ.
        values_in_use = {n: v for n, v in values.items() if n != "n_ctx"}
        if len({*values_in_use.values()}) > 1:
            problems.append(f"{_describe(values_in_use)}: names of the same size")
        if values:
            config[name] = next(iter(values.values()))
    if config.get("activation_function") in _GELU_NEW.split():
        config["activation_function"] = "gelu_new"
    if config.get("n_inner") and config["n_inner"] == 4 * config.get("n_embd", 0):
        config["n_inner"] = None  # 4 * n_embd is the meaning of None
    problems += [
        f"`{name}` {config[name]!r}: it must be {supported!r}"
        for name, supported in _SUPPORTED_VALUES.items()
        if config.get(name, supported) != supported
    ]
    missing = [name for name in _SIZES.values() if name not in config]
    problems += [f"`{name}` is missing" for name in missing]
    if problems:
        raise ValueError(
            f"`checkpoint` must contain a GPT-2 that is supported, but {path}:\n  "
            + "\n  ".join(problems)
            + "\nFor other models use the functions of jaxopt_tf.interop in Python."
        )
    return {name: config[key] for name, key in _SIZES.items()}


def gpt2_config_for_transformers(model: GPT2Config) -> dict[str, Any]:
    """Returns the content of a config.json from which Transformers builds the model."""
    sizes = {key: getattr(model, field) for field, key in _SIZES.items()}
    return {"architectures": ["GPT2LMHeadModel"], **_SUPPORTED_VALUES, **sizes}


def _describe(values: Mapping[str, Any]) -> str:
    return " and ".join(f"`{name}` {value!r}" for name, value in values.items())
