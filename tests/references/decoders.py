"""Decoders of Transformers in torch, with random weights."""

import copy
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}

_LONG = {"original_max_position_embeddings": 16}
ROPE: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        **_LONG,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, **_LONG},
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "short_factor": [1.0, 1.1, 1.3, 1.5],
        "long_factor": [1.0, 1.5, 2.5, 4.0],
        **_LONG,
    },
}
# Settings that differ from `SIZES`, by the name of a case. Texts have 40 tokens.
CASES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama tied, with biases": {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": True,
        "pad_token_id": 5,
    },
    "llama with wider heads": {"model_type": "llama", "head_dim": 12},
    **{
        f"llama, {name}": {
            "model_type": "llama",
            "rope_parameters": {"rope_theta": 500.0, **scaling},
            # Longer texts than the context, where "dynamic" changes the frequencies.
            **({"max_position_embeddings": 24} if name == "dynamic" else {}),
        }
        for name, scaling in ROPE.items()
    },
    "mistral": {"model_type": "mistral", "sliding_window": 7},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2 with windows": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 7,
        "max_window_layers": 3,
        "num_hidden_layers": 4,
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 16, "attention_bias": True},
    "smollm3": {
        "model_type": "smollm3",
        "num_hidden_layers": 4,
        "no_rope_layer_interval": 2,
        "use_sliding_window": True,
        "sliding_window": 7,
    },
}


def model_of(case: Mapping[str, Any]) -> Any:
    """Returns a model of Transformers; biases and gains are random, too."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {**SIZES, **case}
    config = AutoConfig.for_model(sizes.pop("model_type"), **sizes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p += 0.2 * torch.randn_like(p)
    return model.eval()


def save(case: Mapping[str, Any], folder: pathlib.Path) -> Any:
    """Writes a model with `save_pretrained`, and returns it."""
    model = model_of(case)
    model.save_pretrained(folder)
    return model


def with_weights_in(model: Any, dtype: str) -> Any:
    """Returns a copy of a model with parameters of a dtype, such as "bfloat16".

    `model.to` would round the inverse frequencies of RoPE, too, which Transformers
    keeps in float32 if it loads a model in bfloat16.
    """
    import torch

    model = copy.deepcopy(model)
    for p in model.parameters():
        p.data = p.data.to(getattr(torch, dtype))
        p.grad = None
    return model


def logits_loss_and_grads(
    model: Any, batch: np.ndarray, **inputs: np.ndarray
) -> tuple[np.ndarray, float, dict[str, np.ndarray]]:
    """Runs a model on a batch.

    Args:
        model: model of Transformers.
        batch: tokens, [B, T + 1]; the first T predict the last T. Tokens below 0 are
            not predicted.
        **inputs: further inputs, such as `position_ids`, [B, T].

    Returns:
        Logits, [B, T, vocab_size], float32; the summed loss; its gradients, float32, by
        the names of torch.
    """
    import torch

    def tensor(array: np.ndarray) -> Any:
        return torch.tensor(array, dtype=torch.long)

    model.zero_grad()
    tokens = tensor(np.maximum(batch[:, :-1], 0))
    given = {name: tensor(array) for name, array in inputs.items()}
    logits = model(input_ids=tokens, use_cache=False, **given).logits.float()
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), tensor(batch[:, 1:]).flatten(), reduction="sum"
    )
    loss.backward()
    grads = {n: p.grad.float().numpy() for n, p in model.named_parameters()}
    return logits.detach().numpy(), loss.item(), grads
