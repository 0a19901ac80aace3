"""The config.json of a GPT-2 of Transformers, read as our sizes and written from them.

Source: transformers 5.23 `models/gpt2/configuration_gpt2.py`, `activations.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._io import read_json_object
from ._config import GPT2Config

# Settings of torch's GPT-2 that have one value here.
_FIXED = {
    "activation_function": "gelu_new",
    "add_cross_attention": False,
    "attn_pdrop": 0.0,
    "layer_norm_epsilon": 1e-5,
    "model_type": "gpt2",
    "n_inner": None,
    "reorder_and_upcast_attn": False,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "tie_word_embeddings": True,
}
# Names of one formula, x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), in Transformers'
# `activations.py`; they differ by float32 rounding at most.
_GELU_NEW = """gelu_accurate gelu_fast gelu_new gelu_python_tanh
gelu_pytorch_tanh"""
# Names of a size, of which the first that is given counts: its own, those of
# `attribute_map` in Transformers' `GPT2Config`, and that of its first versions.
_SPELLINGS = {
    "n_layer": ("n_layer", "num_hidden_layers"),
    "n_head": ("n_head", "num_attention_heads"),
    "n_embd": ("n_embd", "hidden_size"),
    "n_positions": ("n_positions", "max_position_embeddings", "n_ctx"),
}
_CURES = {
    "attn_pdrop": "; attention has no dropout here. With 0.0 in config.json the run "
    "goes on without it, which changes the training"
}
# Names in config.json, by our names.
_SIZES = {
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "block_size": "n_positions",
    "vocab_size": "vocab_size",
    "resid_pdrop": "resid_pdrop",
    "embd_pdrop": "embd_pdrop",
}


def gpt2_settings_from_transformers(checkpoint: Path) -> dict[str, Any]:
    """Returns the sizes of the GPT-2 in a folder, by the names of `GPT2Config`.

    Args:
        checkpoint: a folder with the config.json of a `GPT2LMHeadModel`.

    Raises:
        ValueError: naming all that `GPT2` does not have, contradicts itself or is not
            given; or if the file cannot be read.
    """
    path = checkpoint / "config.json"
    given = read_json_object(path, "checkpoint")
    config = {"attn_pdrop": 0.1, **given}  # torch's default if it is not given
    problems = []
    for name, spellings in _SPELLINGS.items():
        values = {n: given[n] for n in spellings if n in given}
        # Transformers does not read `n_ctx` any more.
        read = {n: v for n, v in values.items() if n != "n_ctx"}
        if len({*read.values()}) > 1:
            problems.append(f"{_listed(read)}: one size by several names")
        if values:
            config[name] = next(iter(values.values()))
    if config.get("activation_function") in _GELU_NEW.split():
        config["activation_function"] = "gelu_new"
    if config.get("n_inner") and config["n_inner"] == 4 * config.get("n_embd", 0):
        config["n_inner"] = None  # torch's default, written as a number
    problems += [
        f"`{name}` {config[name]!r}: here it is {ours!r}{_CURES.get(name, '')}"
        for name, ours in _FIXED.items()
        if config.get(name, ours) != ours
    ]
    missing = [name for name in _SIZES.values() if name not in config]
    problems += [f"`{name}` is not given" for name in missing]
    if problems:
        raise ValueError(
            f"`checkpoint` must hold a GPT-2 as it is here, but {path}:\n  "
            + "\n  ".join(problems)
            + "\nOther models: by the functions of jaxopt_tf.interop, in Python."
        )
    return {name: config[theirs] for name, theirs in _SIZES.items()}


def gpt2_config_for_transformers(model: GPT2Config) -> dict[str, Any]:
    """Returns the content of the config.json by which torch builds our model."""
    sizes = {theirs: getattr(model, ours) for ours, theirs in _SIZES.items()}
    return {"architectures": ["GPT2LMHeadModel"], **_FIXED, **sizes}


def _listed(values: Mapping[str, Any]) -> str:
    return " and ".join(f"`{name}` {value!r}" for name, value in values.items())
