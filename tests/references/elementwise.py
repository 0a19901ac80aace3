"""SGD, Adagrad and RMSprop of torch, and the formula of Lion in float64."""

from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


def torch_run(
    name: str, params: Arrays, grads: Arrays, rates: list[float], **options: Any
) -> Arrays:
    """Returns the parameters after all steps of `torch.optim.<name>`, in float64.

    Args:
        name: "SGD", "Adagrad" or "RMSprop".
        params: the parameters; one named "bias" is not decayed.
        grads: one gradient per step for each parameter.
        rates: the learning rate of every step.
        **options: options of the optimizer; `dtype` of its parameters; `weight_decay`
            of the decayed ones.
    """
    import torch

    kind = getattr(torch, options.pop("dtype"))
    decay = options.pop("weight_decay", 0.0)
    tensors = {
        n: torch.nn.Parameter(torch.tensor(p).to(kind)) for n, p in params.items()
    }
    groups = [
        {"params": [tensor], "weight_decay": 0.0 if name_ == "bias" else decay}
        for name_, tensor in tensors.items()
    ]
    optimizer = getattr(torch.optim, name)(groups, lr=rates[0], **options)
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for name_, tensor in tensors.items():
            tensor.grad = torch.tensor(grads[name_][step]).to(kind)
        optimizer.step()
    return {n: t.detach().double().numpy() for n, t in tensors.items()}


def lion_in_float64(
    params: Arrays,
    grads: Arrays,
    rates: list[float],
    *,
    betas: tuple[float, float],
    weight_decay: float,
) -> Arrays:
    """Runs Program 1 of the paper, with decoupled decay of all but "bias"."""
    new = {}
    for name, p in params.items():
        p, mean = np.float64(p), np.zeros(p.shape)
        decay = 0.0 if name == "bias" else weight_decay
        for step, rate in enumerate(rates):
            g = np.float64(grads[name][step])
            direction = np.sign(betas[0] * mean + (1 - betas[0]) * g)
            p = p * (1 - rate * decay) - rate * direction
            mean = betas[1] * mean + (1 - betas[1]) * g
        new[name] = p
    return new
