"""Writes schedule_free_states.npz: steps of schedulefree's optimizers on a CPU.

pip install schedulefree==1.4.1 torch==2.13.0
python tests/files/record_schedule_free_states.py

Each case has 100 steps in float32 and in float64, with a learning rate that changes,
weight decay for one of two parameters, and the options in `CASES`.
"""

import pathlib

import numpy as np

SHAPES = {"kernel": (20, 10), "bias": (10,)}
NUM_STEPS = 100
# Class of schedulefree and options, by the name of the case.
CASES = {
    "adamw": ("AdamWScheduleFree", {"weight_decay": 0.1, "warmup_steps": 10}),
    "adamw r": (
        "AdamWScheduleFree",
        {"betas": (0.6, 0.95), "eps": 1e-3, "r": 0.5, "weight_lr_power": 1.5},
    ),
    "radam": ("RAdamScheduleFree", {"weight_decay": 0.1, "r": 1.0}),
    "radam sgd": ("RAdamScheduleFree", {"silent_sgd_phase": False}),
    "sgd": ("SGDScheduleFree", {"weight_decay": 0.1, "warmup_steps": 10}),
    "sgd r": ("SGDScheduleFree", {"momentum": 0.5, "r": 2.0, "weight_lr_power": 0.0}),
}


def params() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {n: rng.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}


def grads() -> dict[str, np.ndarray]:
    """Returns a gradient for each step; [100, ...]."""
    rng = np.random.default_rng(1)
    drawn = {n: rng.normal(size=(NUM_STEPS, *s)) for n, s in SHAPES.items()}
    return {name: g.astype(np.float32) for name, g in drawn.items()}


def rates() -> list[float]:
    """Returns rates that start at 0, as those of a warmup, and then fall."""
    return [1e-2 * min(step / 5, 1 - step / 200) for step in range(NUM_STEPS)]


def states(case: str, dtype: str) -> dict[str, np.ndarray]:
    """Returns y, x, z, squares and the scalars of a group after the last step."""
    import schedulefree
    import torch

    kind, options = CASES[case]
    decay = options.get("weight_decay", 0.0)
    tensors = {
        name: torch.nn.Parameter(torch.tensor(p.astype(dtype)))
        for name, p in params().items()
    }
    groups = [
        {"params": [tensor], "weight_decay": 0.0 if name == "bias" else decay}
        for name, tensor in tensors.items()
    ]
    optimizer = getattr(schedulefree, kind)(groups, lr=0.0, **options)
    optimizer.train()
    all_grads = grads()
    for step, rate in enumerate(rates()):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(all_grads[name][step].astype(dtype))
        optimizer.step()
    label = f"{case}.{dtype}"
    found = {}
    for name, tensor in tensors.items():
        found[f"{label}.{name}.y"] = tensor.detach().numpy().copy()
        for key, value in optimizer.state[tensor].items():
            found[f"{label}.{name}.{key}"] = value.numpy().copy()
    for key in ("weight_sum", "lr_max", "scheduled_lr"):
        found[f"{label}.{key}"] = np.float64(optimizer.param_groups[0][key])
    optimizer.eval()
    for name, tensor in tensors.items():
        found[f"{label}.{name}.x"] = tensor.detach().numpy().copy()
    return found


def record() -> None:
    arrays = {}
    for case in CASES:
        for dtype in ("float32", "float64"):
            arrays |= states(case, dtype)
    np.savez_compressed(
        pathlib.Path(__file__).with_name("schedule_free_states.npz"), **arrays
    )


if __name__ == "__main__":
    record()
