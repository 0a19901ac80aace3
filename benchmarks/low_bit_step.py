"""Memory and time of optimizer steps whose moments have 8 or 4 bits.

    python -m benchmarks.low_bit_step            # 5 minutes
    python -m benchmarks.low_bit_step --smoke    # small leaves, three rounds

Memory is that of GPT-2's step compiled for an H100 and for a v5e, without one; it needs
libtpu and the CUDA plugin, and rows whose compiler is missing are left out. Embeddings
are left out, since their moments stay float32. The time is
that of one step of AdamW with 8 bits, clipping included, beside bitsandbytes' step on
this CPU; it needs bitsandbytes 0.50.2.
"""

import functools
import importlib.util
import os
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import optax

from benchmarks import _optimizer_steps as steps
from benchmarks._report import Row, main
from jaxopt_tf import adamw_tf, clip
from jaxopt_tf.optimizers import TorchLayout, adamw_4bit_tf, adamw_8bit_tf
from jaxopt_tf.planning import (
    CompilerMissingError,
    Cost,
    named_slice,
    slice_devices,
)

# Function, and limit of the bytes of state per quantized parameter.
OPTIMIZERS = {
    "8 bits": (adamw_8bit_tf, 2.1),
    "4 bits": (adamw_4bit_tf, 1.1),
}


def rows(smoke: bool) -> Iterator[Row]:
    """Yields the rows of both parts."""
    _, _, *shapes = steps.gpt2(256, 2, 1024) if smoke else steps.gpt2()
    for name in ("h100", "v5e:2x4"):
        try:
            device = slice_devices(named_slice(name))[0]
        except CompilerMissingError as error:
            print(f"{name} is left out: {error}")
            continue
        yield from _memory(name, device, shapes)
    if importlib.util.find_spec("bitsandbytes") is None:
        print("the time is left out: bitsandbytes is missing")
    else:
        yield _time(smoke)


def _memory(name: str, device: Any, shapes: steps.Shapes) -> Iterator[Row]:
    """Yields bytes of state and of temporary memory, as compiled."""
    num = steps.num_elements(shapes)
    plain = _cost(adamw_tf(steps.rate), shapes, device)
    of_plain = 100 * plain.temporary / (4 * num)
    for title, (make, most) in OPTIMIZERS.items():
        for order, layouts in (("", None), (", kernels of Flax", _of_flax(shapes))):
            cost = _cost(make(steps.rate, layouts=layouts), shapes, device)
            detail = f"{cost.hbm_bytes / num:.1f} bytes per parameter moved"
            # Donated are the parameters, too. All leaves but vectors are quantized.
            yield Row(
                claim=f"{name}, AdamW with {title}{order}: state",
                value=cost.aliased / num - 4,
                unit="bytes per parameter",
                limit=most,
                detail=f"{detail}, {plain.hbm_bytes / num:.1f} with float32",
            )
            yield Row(
                claim=f"{name}, AdamW with {title}{order}: temporary memory",
                value=100 * cost.temporary / (4 * num),
                unit="% of the gradients",
                limit=2.0 if name == "h100" else of_plain + 1,
                detail=f"{of_plain:.2f} with float32",
            )


def _of_flax(shapes: steps.Shapes) -> dict[str, TorchLayout]:
    """Returns the layouts of kernels, whose blocks lie along the first axis."""
    return {
        f"leaf_{i:05}": TorchLayout(axes=((1,), (0,)))
        for i, shape in enumerate(shapes)
        if len(shape) == 2
    }


def _cost(optimizer: Any, shapes: steps.Shapes, device: Any) -> Cost:
    return steps.cost_on(optax.chain(clip(1.0), optimizer), shapes, device)


def _time(smoke: bool) -> Row:
    """Returns the time of a step in that of bitsandbytes."""
    import bitsandbytes

    shapes = steps.gpt2(256, 2, 1024) if smoke else steps.gpt2(512, 6, 8192)
    chain = optax.chain(clip(1.0), adamw_8bit_tf(steps.rate))
    sides = {
        "ours": steps.in_jax(chain, shapes),
        "theirs": steps.in_torch(
            functools.partial(bitsandbytes.optim.AdamW8bit, lr=1e-4), shapes, 1.0
        ),
    }
    seconds = steps.seconds_in_turn(sides, 3 if smoke else 12)
    ours, theirs = (1e3 * np.median(seconds[side]) for side in ("ours", "theirs"))
    return Row(
        claim="CPU, clipping and AdamW with 8 bits: time of a step",
        value=float(np.median(seconds["ours"] / seconds["theirs"])),
        unit="of bitsandbytes'",
        limit=1.0,
        detail=f"{steps.num_elements(shapes) / 1e6:.0f}M parameters, {ours:.0f} ms "
        f"and {theirs:.0f} ms",
    )


if __name__ == "__main__":
    main("Optimizer steps of 8 and 4 bits", rows)
