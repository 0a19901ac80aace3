"""Small torch models, and their parameters as leaves of a Flax tree."""

from typing import Any

import jax.numpy as jnp
import numpy as np


def gpt2(num_layers: int = 2) -> Any:
    """Returns a GPT-2, whose projections are Conv1D."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_layer": num_layers, "n_head": 2, "n_embd": 8, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(**sizes, vocab_size=32, bos_token_id=0))


def bert(num_layers: int = 2) -> Any:
    """Returns a BERT for masked language modeling."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 16}
    sizes |= {"num_hidden_layers": num_layers, "vocab_size": 32}
    return BertForMaskedLM(BertConfig(**sizes))


def t5(num_layers: int = 2) -> Any:
    """Returns a T5 with `num_layers` layers in encoder and decoder."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"num_heads": 2, "d_model": 8, "d_kv": 4, "d_ff": 16}
    sizes |= {"num_layers": num_layers, "vocab_size": 32}
    return T5ForConditionalGeneration(T5Config(**sizes))


def convolutional() -> Any:
    """Returns a model of convolutions in one and two dimensions, norm and linear."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, (3, 2)),
        nn.GroupNorm(2, 4),
        nn.Flatten(2),
        nn.Conv1d(4, 5, 3),
        nn.Flatten(1),
        nn.Linear(20, 6),
    )


MODELS = {"gpt2": gpt2, "bert": bert, "t5": t5, "conv": convolutional}


def flax_leaves(module: Any) -> dict[str, np.ndarray]:
    """Returns the parameters as Flax would store them, by their paths in Flax."""
    return as_flax(module, dict(module.named_parameters()))


def as_flax(module: Any, tensors: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns tensors with the names of parameters as Flax would store them."""
    leaves = {}
    layers = dict(module.named_modules())
    for name, tensor in tensors.items():
        path, _, last = name.rpartition(".")
        layer, array = type(layers[path]).__name__, tensor.detach().numpy()
        if last == "weight":
            if layer in ("Linear", "Conv1D", "Conv1d", "Conv2d"):
                last = "kernel"
            else:
                last = "embedding" if layer == "Embedding" else "scale"
        if last == "kernel" and layer != "Conv1D":
            # Spatial axes, input channels, output channels.
            array = array.transpose(*range(2, array.ndim), 1, 0)
        leaves[f"{path}.{last}"] = array
    return leaves


def flax_tree(leaves: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns the leaves in a nested dict, split at the dots of their names."""
    tree: dict[str, Any] = {}
    for name, array in leaves.items():
        *above, last = name.split(".")
        node = tree
        for key in above:
            node = node.setdefault(key, {})
        node[last] = jnp.array(array)
    return tree


def set_gradients(module: Any, seed: int) -> dict[str, np.ndarray]:
    """Sets a random gradient for every parameter; returns them by Flax names."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype) * 0.1
    grads = {name: p.grad for name, p in module.named_parameters()}
    return {name: g.copy() for name, g in as_flax(module, grads).items()}


def trainer_groups(module: Any, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Returns the parameter groups that Trainer creates."""
    from transformers import Trainer

    decayed = set(Trainer.get_decay_parameter_names(None, module))
    named = list(module.named_parameters())
    return [
        {"params": [p for n, p in named if n in decayed], "weight_decay": weight_decay},
        {"params": [p for n, p in named if n not in decayed], "weight_decay": 0.0},
    ]
