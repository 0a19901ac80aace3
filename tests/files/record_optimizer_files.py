"""Writes optimizer_files/: state dicts of bitsandbytes' and torch-optimi's optimizers.

pip install bitsandbytes==0.50.2 torch-optimi==0.3.3 torch==2.13.0
python tests/files/record_optimizer_files.py

One linear layer after three steps, in Trainer's two groups. Its weight has 4,096
elements, so that moments of 8 bits are codes; its bias is float32.
"""

import pathlib

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
    }
    for name, build in builds.items():
        torch.save(state_dict(build), folder / f"{name}.pt")
    bfloat16 = state_dict(builds["stable_adamw"], torch.bfloat16)
    torch.save(bfloat16, folder / "stable_adamw_bfloat16.pt")


if __name__ == "__main__":
    record()
