"""The optimizer's step where leaves are many, and from small models to large ones.

    python -m benchmarks.optimizer_step_by_size            # a quarter of an hour, 9 GB
    python -m benchmarks.optimizer_step_by_size --smoke

Sides take turns; a figure is the median of the ratios of one round.
"""

import gc
import math
from collections.abc import Iterator

import numpy as np

from benchmarks import _optimizer_steps as steps
from benchmarks._report import Row, main
from benchmarks.optimizer_step_at_memory_speed import ADAMW, OPTAX_ADAMW


def rows(smoke: bool) -> Iterator[Row]:
    yield from _many_leaves(100 if smoke else 2000, smoke)
    yield from _flat(smoke)
    yield from _compilation((100, 200) if smoke else (500, 2000, 10_000), smoke)


def _many_leaves(num_leaves, smoke) -> Iterator[Row]:
    import torch

    def foreach(params):
        return torch.optim.AdamW(params, lr=1e-4, weight_decay=0.01, foreach=True)

    shapes = steps.small_leaves(num_leaves)
    sides = {
        "ours": steps.in_jax(ADAMW, shapes),
        "optax's chain": steps.in_jax(OPTAX_ADAMW, shapes),
        "torch's, foreach": steps.in_torch(foreach, shapes, 1.0),
    }
    seconds = steps.seconds_in_turn(sides, 3 if smoke else 40)
    for name, limit in (("optax's chain", 1.0), ("torch's, foreach", 0.5)):
        yield Row(
            claim=f"{num_leaves} small leaves: the step, in the time of {name}",
            value=float(np.median(seconds["ours"] / seconds[name])),
            unit="times",
            limit=math.inf if smoke else limit,
            detail=f"{1e3 * np.median(seconds['ours']):.0f} ms to "
            f"{1e3 * np.median(seconds[name]):.0f} ms",
        )
    ours, theirs = sides["ours"].seconds, sides["optax's chain"].seconds
    yield Row(
        claim=f"{num_leaves} small leaves: to compile, in the time of optax's chain",
        value=ours / theirs,
        unit="times",
        limit=math.inf if smoke else 1.0,
        detail=f"{ours:.0f} s to {theirs:.0f} s",
    )


def _compilation(counts, smoke) -> Iterator[Row]:
    seconds = {
        n: steps.seconds_to_compile(ADAMW, steps.small_leaves(n)) for n in counts
    }
    few, some = counts[:2]
    yield Row(
        claim=f"to compile {some} leaves, per leaf, in the time of {few}",
        value=seconds[some] / some / (seconds[few] / few),
        unit="times",
        limit=math.inf if smoke else 1.0,
        detail=f"{seconds[few]:.1f} s and {seconds[some]:.1f} s",
    )
    for n in counts[2:]:
        yield Row(
            claim=f"to compile {n} leaves", value=seconds[n], unit="s", limit=60.0
        )


def _flat(smoke) -> Iterator[Row]:
    sizes = {
        "10M": (256, 12, 4000),
        "124M": (768, 12, 50_257),
        "537M": (1280, 24, 50_257),
    }
    if smoke:
        sizes = {"1M": (64, 12, 4000), "2M": (96, 12, 4000)}
    costs = {}
    for name, size in sizes.items():
        shapes = steps.gpt2(*size)
        sides = {"the memory": steps.streaming(), "ours": steps.in_jax(ADAMW, shapes)}
        seconds = steps.seconds_in_turn(sides, 3 if smoke else 15)
        del sides
        gc.collect()
        bandwidth = 8 * steps.STREAMED / seconds["the memory"]
        moved = seconds["ours"] * bandwidth / steps.num_elements(shapes)
        costs[name] = float(np.median(moved))
    listed = ", ".join(f"{name} {cost:.1f}" for name, cost in costs.items())
    yield Row(
        claim="cost per parameter, the largest of some sizes to the smallest",
        value=max(costs.values()) / min(costs.values()),
        unit="times",
        limit=math.inf if smoke else 1.15,
        detail=f"in bytes that the memory moves meanwhile: {listed}",
    )


if __name__ == "__main__":
    main("The optimizer's step by size", rows)
