"""Rounding of 8-bit moments by bitsandbytes on CPUs as by its CUDA kernel."""

from typing import Any


def replace_rounding() -> bool:
    """Replaces the quantization of bitsandbytes; returns False if it is missing."""
    try:
        from bitsandbytes.backends.cpu import ops
    except ImportError:
        return False
    ops._quant_blockwise_fp32_direct = round_to_nearest_levels
    return True


def round_to_nearest_levels(
    x: Any, levels: Any, scales_out: Any, codes_out: Any, block_size: int
) -> None:
    """Replaces bitsandbytes' quantization on CPUs by the rule of its CUDA kernel."""
    import torch

    n = x.numel()
    padded = torch.nn.functional.pad(x.reshape(-1), (0, -n % block_size))
    blocks = padded.reshape(-1, block_size)
    scales = blocks.abs().amax(1)
    ratios = (blocks * (1 / scales)[:, None]).clamp(-1, 1)
    codes = torch.bucketize(ratios, (levels[1:] + levels[:-1]) / 2)
    if levels[0] < 0:  # a small negative number has the level below 0
        codes[(levels[codes] == 0) & (blocks < 0)] -= 1
    codes[scales == 0] = 0
    codes_out.copy_(codes.reshape(-1)[:n].to(torch.uint8).reshape(codes_out.shape))
    scales_out.copy_(scales)
