"""Writes low_bit_states.npz: steps of bitsandbytes' and torchao's optimizers on a CPU.

pip install bitsandbytes==0.50.2 torchao==0.18.0 torch==2.13.0
TORCHDYNAMO_DISABLE=1 python tests/files/record_low_bit_states.py

bitsandbytes on a CPU rounds through a table; `nearest_levels` takes its place, which is
the rule of its CUDA kernel but for the sign of small numbers.
"""

import pathlib

import numpy as np
import torch

# Blocks along torch's last axis; rows of a quarter of a block; a last block of 137
# elements, which torchao does not quantize.
SHAPES = [(24, 256), (64, 64), (67, 67)]
STEPS = 20


def params() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(np.float32) for shape in SHAPES]


def grads(step: int) -> list[np.ndarray]:
    """Returns gradients whose sizes span four decades within a block."""
    rng = np.random.default_rng(1 + step)
    sizes = [10.0 ** rng.uniform(-4, 0, size=shape) for shape in SHAPES]
    return [(size * rng.normal(size=size.shape)).astype(np.float32) for size in sizes]


def nearest_levels(x, levels, scales_out, codes_out, block_size):
    n = x.numel()
    padded = torch.nn.functional.pad(x.reshape(-1), (0, -n % block_size))
    blocks = padded.reshape(-1, block_size)
    scales = blocks.abs().amax(1)
    ratios = (blocks * (1 / scales)[:, None]).clamp(-1, 1).reshape(-1)[:n]
    codes = torch.bucketize(ratios, (levels[1:] + levels[:-1]) / 2)
    codes_out.copy_(codes.to(torch.uint8).reshape(codes_out.shape))
    scales_out.copy_(scales)


def states(name: str, build) -> dict[str, np.ndarray]:
    """Returns every 16th parameter, and the codes and scales, after the last step."""
    tensors = [torch.nn.Parameter(torch.tensor(p)) for p in params()]
    optimizer = build(tensors)
    for step in range(STEPS):
        for tensor, grad in zip(tensors, grads(step), strict=True):
            tensor.grad = torch.tensor(grad)
        optimizer.step()
    found = {}
    for i, tensor in enumerate(tensors):
        found[f"{name}.{i}.param"] = tensor.detach().numpy().reshape(-1)[::16]
        entry = optimizer.state[tensor]
        for moment, own, scales in (
            ("exp_avg", "state1", "absmax1"),
            ("exp_avg_sq", "state2", "absmax2"),
        ):
            if own in entry:
                found[f"{name}.{i}.{moment}.codes"] = entry[own].numpy()
                found[f"{name}.{i}.{moment}.scales"] = entry[scales].numpy()
            elif hasattr(entry.get(moment), "codes"):
                found[f"{name}.{i}.{moment}.codes"] = entry[moment].codes.numpy()
                found[f"{name}.{i}.{moment}.scales"] = entry[moment].scale.numpy()
    return found


def record() -> None:
    import bitsandbytes
    from bitsandbytes.backends.cpu import ops
    from torchao.optim import AdamW4bit, AdamW8bit

    ops._quant_blockwise_fp32_direct = nearest_levels
    settings = {"lr": 1e-2, "weight_decay": 0.1}
    bits = {"optim_bits": 8}
    torchao = {"block_size": 256}
    np.savez_compressed(
        pathlib.Path(__file__).with_name("low_bit_states.npz"),
        **states("adamw", lambda p: bitsandbytes.optim.AdamW(p, **settings, **bits)),
        **states(
            "lion",
            lambda p: bitsandbytes.optim.Lion(p, betas=(0.9, 0.99), **settings, **bits),
        ),
        **states(
            "rmsprop", lambda p: bitsandbytes.optim.RMSprop(p, **settings, **bits)
        ),
        **states(
            "ademamix",
            lambda p: bitsandbytes.optim.AdEMAMix(
                p, t_alpha=15, t_beta3=15, **settings, **bits
            ),
        ),
        **states("torchao 8", lambda p: AdamW8bit(p, **settings, **torchao)),
        **states("torchao 4", lambda p: AdamW4bit(p, **settings, **torchao)),
    )


if __name__ == "__main__":
    record()
