"""The config.json of a GPT-2, from torch's words to ours and back."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..pretraining import GPT2Config

# What torch's GPT-2 can be and ours is not: the one value that is ours.
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
_CURES = {
    "attn_pdrop": "; attention has no dropout here. With 0.0 in config.json the run "
    "goes on without it, which changes the training"
}
# By our names.
_SIZES = {
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "block_size": "n_positions",
    "vocab_size": "vocab_size",
    "resid_pdrop": "resid_pdrop",
    "embd_pdrop": "embd_pdrop",
}


def sizes_of(source: Path) -> dict[str, Any]:
    """The sizes of the GPT-2 in a folder, by our names; raises if it is not as ours."""
    path = source / "config.json"
    config = {"attn_pdrop": 0.1, **json_object(path)}  # as torch has it where it is not
    problems = [
        f"`{name}` {config[name]!r}: here it is {ours!r}{_CURES.get(name, '')}"
        for name, ours in _FIXED.items()
        if config.get(name, ours) != ours and not _is_usual(name, config)
    ]
    missing = [name for name in _SIZES.values() if name not in config]
    problems += [f"`{name}` is not given" for name in missing]
    if problems:
        raise ValueError(
            f"`FOLDER` must hold a GPT-2 as it is here, but {path}:\n  "
            + "\n  ".join(problems)
            + "\nA model that is otherwise needs a step of its own: take the functions "
            "of `jaxopt_tf.interop`."
        )
    return {name: config[theirs] for name, theirs in _SIZES.items()}


def torch_config(model: GPT2Config) -> dict[str, Any]:
    """What torch builds our model by."""
    sizes = {theirs: getattr(model, ours) for ours, theirs in _SIZES.items()}
    return {"architectures": ["GPT2LMHeadModel"], **_FIXED, **sizes}


def json_object(path: Path) -> dict[str, Any]:
    """What a file of the folder holds; raises if that cannot be read."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"`FOLDER` must hold a readable {path.name}, but {str(path)!r} is not: "
            f"{error}. Copy the folder anew."
        ) from error


def _is_usual(name: str, config: Mapping[str, Any]) -> bool:
    return name == "n_inner" and config[name] == 4 * config.get("n_embd", 0)
