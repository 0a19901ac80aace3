"""Writes optimizer_files/: state dicts of optimizers of three libraries.

pip install bitsandbytes==0.50.2 torch-optimi==0.3.3 torchao==0.18.0 torch==2.13.0
TORCHDYNAMO_DISABLE=1 python tests/files/record_optimizer_files.py

One linear layer after three steps, in Trainer's two groups. Its weight has 4,096
elements, so that moments of 8 or 4 bits are codes; its bias is float32. The arguments
of the program are the names of the files that are written; without one, all are.
"""

import pathlib
import sys

import torch


def module(dtype=torch.float32) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(128, 32)).to(dtype)


def state_dict(build, dtype=torch.float32) -> dict:
    layer = module(dtype)
    weight, bias = layer.parameters()
    optimizer = build(
        [
            {"params": [weight], "weight_decay": 0.1},
            {"params": [bias], "weight_decay": 0.0},
        ]
    )
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for p in (weight, bias):
            p.grad = torch.randn(p.shape, generator=generator).to(dtype)
        optimizer.step()
    return optimizer.state_dict()


def record() -> None:
    import optimi
    from bitsandbytes.optim import AdEMAMix, Lion, RMSprop
    from torchao.optim import AdamW4bit, AdamW8bit

    folder = pathlib.Path(__file__).with_name("optimizer_files")
    folder.mkdir(exist_ok=True)
    ademamix = {"t_alpha": 5, "t_beta3": 6, "weight_decay": 0.0}
    builds = {
        "ademamix": lambda p: AdEMAMix(p, 1e-3, **ademamix),
        "ademamix_8bit": lambda p: AdEMAMix(p, 1e-3, **ademamix, optim_bits=8),
        "lion_8bit": lambda p: Lion(p, 1e-3, betas=(0.9, 0.999), optim_bits=8),
        "lion_32bit": lambda p: Lion(p, 1e-3, betas=(0.9, 0.999)),
        "rmsprop_bnb": lambda p: RMSprop(p, 1e-3),
        "rmsprop_bnb_8bit": lambda p: RMSprop(p, 1e-3, optim_bits=8),
        "stable_adamw": lambda p: optimi.StableAdamW(
            p, 1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0
        ),
        "adamw_torch_8bit": lambda p: AdamW8bit(p, 1e-3, block_size=256),
        "adamw_torch_4bit": lambda p: AdamW4bit(p, 1e-3, block_size=256),
    }
    dtypes = {f"{name}.pt": (name, torch.float32) for name in builds}
    dtypes["stable_adamw_bfloat16.pt"] = "stable_adamw", torch.bfloat16
    for file in sys.argv[1:] or dtypes:
        name, dtype = dtypes[file]
        torch.save(state_dict(builds[name], dtype), folder / file)


if __name__ == "__main__":
    record()
