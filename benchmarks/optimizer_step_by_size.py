"""The optimizer's step where leaves are many, and from small models to large ones.

    python -m benchmarks.optimizer_step_by_size            # some minutes, 9 GB
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
    yield from _compilation((100, 200) if smoke else (500, 2000), smoke)


def _many_leaves(num_leaves, smoke) -> Iterator[Row]:
    import torch

    def foreach(params):
        return torch.optim.AdamW(params, lr=1e-4, weight_decay=0.01, foreach=True)

    shapes = steps.small_leaves(num_leaves)
    sides = {
        "ours": steps.in_jax(ADAMW, shapes),
        "handed over": steps.in_jax(ADAMW, shapes, make_step=steps.untouched),
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
    handed_over = seconds["handed over"]
    yield Row(
        claim=f"{num_leaves} small leaves: to hand them over and compute nothing, in "
        "the time of torch's, foreach",
        value=float(np.median(handed_over / seconds["torch's, foreach"])),
        unit="times",
        limit=math.inf,
        detail=f"{1e3 * np.median(handed_over):.0f} ms",
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
    few, some = counts
    yield Row(
        claim=f"to compile {some} leaves, per leaf, in the time of {few}",
        value=seconds[some] / some / (seconds[few] / few),
        unit="times",
        limit=math.inf if smoke else 1.0,
        detail=f"{seconds[few]:.1f} s and {seconds[some]:.1f} s",
    )


def _flat(smoke) -> Iterator[Row]:
    sizes = {
        "10M": (256, 12, 4000),
        "124M": (768, 12, 50_257),
        "537M": (1280, 24, 50_257),
    }
    if smoke:
        sizes = {"1M": (64, 12, 4000), "2M": (96, 12, 4000)}
    costs, computed = {}, {}
    for name, size in sizes.items():
        shapes = steps.gpt2(*size)
        sides = {
            "the memory": steps.streaming(),
            "ours": steps.in_jax(ADAMW, shapes),
            "handed over": steps.in_jax(ADAMW, shapes, make_step=steps.untouched),
        }
        seconds = steps.seconds_in_turn(sides, 3 if smoke else 15)
        del sides
        gc.collect()
        bandwidth = 8 * steps.STREAMED / seconds["the memory"]
        each = bandwidth / steps.num_elements(shapes)
        costs[name] = float(np.median(seconds["ours"] * each))
        net = seconds["ours"] - seconds["handed over"]
        computed[name] = float(np.median(net * each))
    for title, values, limit in (
        ("cost per parameter", costs, 1.15),
        ("the same without handing arrays over", computed, math.inf),
    ):
        listed = ", ".join(f"{name} {value:.1f}" for name, value in values.items())
        yield Row(
            claim=f"{title}, the largest of some sizes to the smallest",
            value=max(values.values()) / min(values.values()),
            unit="times",
            limit=math.inf if smoke else limit,
            detail=f"in bytes that the memory moves meanwhile: {listed}",
        )


if __name__ == "__main__":
    main("The optimizer's step by size", rows)
