"""Writes optimizer_runs.npz: parameters after steps of other libraries on a CPU.

pip install bitsandbytes==0.50.2 torch-optimi==0.3.3 lomo-optim==0.1.1 torch==2.13.0
python tests/files/record_optimizer_runs.py

AdaLomo allocates its state on a GPU; `Tensor.cuda` is replaced so that it runs here.
"""

import math
import pathlib

import numpy as np
import torch

SHAPES = [(12, 16), (5, 24), (7,)]
STEPS = 40
WEIGHT_DECAY = 0.1  # of the first two; the last one is not decayed


def params() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(np.float32) for shape in SHAPES]


def grads(step: int) -> list[np.ndarray]:
    """Returns gradients with one spike, which StableAdamW reduces."""
    rng = np.random.default_rng(1 + step)
    size = 30.0 if step == 20 else 1.0
    return [(size * rng.normal(size=s)).astype(np.float32) for s in SHAPES]


def rate(step: int) -> float:
    return 1e-2 * (0.5 + 0.5 * math.cos(math.pi * step / STEPS))


def run(build, dtype=torch.float32) -> list[np.ndarray]:
    """Returns the parameters after all steps, float32."""
    tensors = [torch.nn.Parameter(torch.tensor(p).to(dtype)) for p in params()]
    groups = [
        {"params": tensors[:2], "weight_decay": WEIGHT_DECAY},
        {"params": tensors[2:], "weight_decay": 0.0},
    ]
    optimizer = build(groups)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        for tensor, grad in zip(tensors, grads(step), strict=True):
            tensor.grad = torch.tensor(grad).to(dtype)
        optimizer.step()
    return [tensor.detach().float().numpy() for tensor in tensors]


def run_in_backward(build) -> list[np.ndarray]:
    """Returns the same for an optimizer that updates in the backward pass."""
    tensors = [torch.nn.Parameter(torch.tensor(p)) for p in params()]
    model = torch.nn.ParameterList(tensors)
    optimizer = build(model)
    for step in range(STEPS):
        pairs = zip(tensors, grads(step), strict=True)
        loss = sum((tensor * torch.tensor(grad)).sum() for tensor, grad in pairs)
        optimizer.fused_backward(loss, rate(step))
    return [tensor.detach().numpy() for tensor in tensors]


def record() -> None:
    import bitsandbytes
    import lomo_optim
    import optimi

    torch.Tensor.cuda = lambda self: self
    settings = {"lr": 1e-2, "weight_decay": 0.0}
    ademamix = bitsandbytes.optim.AdEMAMix
    scheduled = {"t_alpha": 25, "t_beta3": 30, "betas": (0.9, 0.999, 0.99)}
    decoupled = {"decouple_lr": True, "max_lr": 2e-2}
    runs = {
        "ademamix": run(lambda p: ademamix(p, **settings)),
        "ademamix scheduled": run(lambda p: ademamix(p, **settings, **scheduled)),
        "stable_adamw": run(lambda p: optimi.StableAdamW(p, **settings)),
        "stable_adamw decoupled": run(
            lambda p: optimi.StableAdamW(p, **settings, **decoupled)
        ),
        "stable_adamw bfloat16": run(
            lambda p: optimi.StableAdamW(p, **settings), torch.bfloat16
        ),
        "lomo": run_in_backward(lomo_optim.Lomo),
        "adalomo": run_in_backward(lomo_optim.AdaLomo),
    }
    np.savez_compressed(
        pathlib.Path(__file__).with_name("optimizer_runs.npz"),
        **{
            f"{name}.{i}": array
            for name, arrays in runs.items()
            for i, array in enumerate(arrays)
        },
    )


if __name__ == "__main__":
    record()
