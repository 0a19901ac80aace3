"""Time of the products of matrices in a training step, without all else.

The products of a linear layer are those of its output and of two gradients. Each is
computed by XLA and by torch, and the faster one counts: no step that computes them in
float32 on these cores, one after the other, is faster.
"""

import collections
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

Shape = tuple[int, int, int]  # [rows, inner] x [inner, columns]

_NUM_ROUNDS = 7
_LEAST = 0.05  # seconds of a measurement


def shapes_of(model: Any, num_tokens: int) -> list[Shape]:
    """Returns the products of a step of a model of Transformers.

    Products of attention are left out, and those of layers that do not receive all
    tokens.

    Args:
        model: the model.
        num_tokens: number of tokens in a batch.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    found: list[Shape] = []
    for name, layer in model.named_modules():
        if not isinstance(layer, (torch.nn.Linear, Conv1D)):
            continue
        if any(part in name for part in ("pooler", "classifier")):
            continue
        width, columns = layer.weight.shape
        if isinstance(layer, torch.nn.Linear):
            width, columns = columns, width
        found += [
            (num_tokens, width, columns),
            (num_tokens, columns, width),
            (width, num_tokens, columns),
        ]
    return found


def seconds_of(shapes: Sequence[Shape]) -> float:
    """Returns the seconds of all products, by the faster library for each shape."""
    total = 0.0
    for shape, count in collections.Counter(shapes).items():
        times: dict[str, list[float]] = collections.defaultdict(list)
        products = dict(_products(shape))
        for _ in range(_NUM_ROUNDS):
            for library, product in products.items():
                times[library].append(_seconds(product))
        total += count * min(map(statistics.median, times.values()))
    return total


def _products(shape: Shape) -> Iterator[tuple[str, Any]]:
    import jax
    import torch

    num_rows, inner, num_columns = shape
    rng = np.random.default_rng(0)
    left = rng.standard_normal((num_rows, inner), np.float32)
    right = rng.standard_normal((inner, num_columns), np.float32)
    of_torch = torch.from_numpy(left), torch.from_numpy(right)
    yield "torch", lambda: torch.mm(*of_torch)
    of_jax, dot = jax.device_put((left, right)), jax.jit(jax.numpy.dot)
    yield "jax", lambda: jax.block_until_ready(dot(*of_jax))


def _seconds(product: Any) -> float:
    """Returns the seconds of one call, of as many as take `_LEAST` seconds."""
    product()
    number, begin = 0, time.perf_counter()
    while (now := time.perf_counter()) < begin + _LEAST:
        product()
        number += 1
    return (now - begin) / number
