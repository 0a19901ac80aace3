"""GPT-2 of Transformers in torch, with given weights."""

from collections.abc import Mapping
from typing import Any

import numpy as np

# Names in Flax of torch's `weight`.
_WEIGHTS = ("kernel", "scale", "embedding")


def torch_name(name: str) -> str:
    """Returns torch's name: `transformer.h.0.ln_1.weight` for `...ln_1.scale`."""
    head, _, last = name.rpartition(".")
    return f"{head}.weight" if last in _WEIGHTS else name


def logits_loss_and_grads(
    sizes: Mapping[str, int],
    params: Mapping[str, np.ndarray],
    batch: np.ndarray,
    labels: np.ndarray | None = None,
) -> tuple[np.ndarray, float, dict[str, np.ndarray]]:
    """Runs `GPT2LMHeadModel` on a batch, in float32.

    Args:
        sizes: n_layer, n_head, n_embd, n_positions, vocab_size.
        params: parameters by their names in Flax; kernels [in, out].
        batch: tokens, [B, T + 1]; the first T predict the last T.
        labels: the same tokens, or -100 for those that are not predicted; None for all.

    Returns:
        Logits, [B, T, vocab_size]; the loss per token; its gradient by Flax names.
    """
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    dropout: dict[str, Any] = dict.fromkeys(
        ("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0
    )
    model = GPT2LMHeadModel(GPT2Config(**sizes, **dropout))
    state = {torch_name(k): torch.tensor(v) for k, v in params.items()}
    state["lm_head.weight"] = state["transformer.wte.weight"]
    model.load_state_dict(state)
    tokens = torch.tensor(batch, dtype=torch.long)
    targets = tokens if labels is None else torch.tensor(labels, dtype=torch.long)
    logits = model(input_ids=tokens[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), targets[:, 1:].reshape(-1)
    )
    loss.backward()
    grads = dict(model.named_parameters())
    ours = {name: grads[torch_name(name)].grad.numpy() for name in params}
    return logits.detach().numpy(), loss.item(), ours
