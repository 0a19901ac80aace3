"""The config.json of a GPT-2, from torch's words to ours and back."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..models import GPT2Config

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
# Names of the same formula, x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), in
# Transformers' `activations.py`; they differ by float32 rounding at most.
_GELU_NEW = (
    "gelu_accurate",
    "gelu_fast",
    "gelu_new",
    "gelu_python_tanh",
    "gelu_pytorch_tanh",
)
# Other names of a size, the first that is there counts: those of `attribute_map` in
# Transformers' `GPT2Config`, and that of its first versions.
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
    given = json_object(path)
    config = {"attn_pdrop": 0.1, **given}  # torch's default where it is not given
    problems = []
    for name, spellings in _SPELLINGS.items():
        values = {n: given[n] for n in spellings if n in given}
        # Transformers does not read `n_ctx` any more.
        odd = {n: v for n, v in values.items() if n != "n_ctx"}
        if len({*odd.values()}) > 1:
            problems.append(f"{_listed(odd)}: one size by several names")
        if values:
            config[name] = next(iter(values.values()))
    if config.get("activation_function") in _GELU_NEW:
        config["activation_function"] = "gelu_new"
    problems += [
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
            + "\n`migrate` takes no other model; in Python, the functions of "
            "jaxopt_tf.interop do."
        )
    return {name: config[theirs] for name, theirs in _SIZES.items()}


def _listed(values: Mapping[str, Any]) -> str:
    return " and ".join(f"`{name}` {value!r}" for name, value in values.items())


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
