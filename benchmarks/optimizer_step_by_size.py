"""Time of optimizer steps with many leaves, and for models of different sizes.

    python -m benchmarks.optimizer_step_by_size            # ten minutes, 9 GB
    python -m benchmarks.optimizer_step_by_size --smoke

Sides alternate, in three processes far apart in time. A figure is the median over the
processes of the median ratio of their rounds. Sizes are timed in rounds in which the
cores share one link to the memory (`_memory_link.py`).
"""

import math
from collections.abc import Iterator

import numpy as np

from benchmarks import _memory_link
from benchmarks import _optimizer_steps as steps
from benchmarks._fresh_processes import in_fresh_process, median_of, median_ratios
from benchmarks._report import Row, main
from benchmarks.optimizer_step_at_memory_speed import ADAMW, OPTAX_ADAMW


def rows(smoke: bool) -> Iterator[Row]:
    few, many = (20, 40) if smoke else (500, 2000)
    of_leaves, of_sizes = [], []
    for _ in range(1 if smoke else 3):
        of_leaves.append(_measured(smoke, _small_leaves, few, many, 3 if smoke else 20))
        of_sizes.append(_by_size(smoke))
    yield from _many_leaves(many, of_leaves, smoke)
    yield from _compilation(few, many, of_leaves, smoke)
    yield from _flat(of_sizes, smoke)


def _measured(smoke, seconds, *args):
    return seconds(*args) if smoke else in_fresh_process(seconds, *args)


def _small_leaves(few, many, num_rounds):
    import torch

    def foreach(params):
        return torch.optim.AdamW(params, lr=1e-4, weight_decay=0.01, foreach=True)

    shapes = steps.small_leaves(many)
    sides = {
        "ours": steps.in_jax(ADAMW, shapes),
        "handed over": steps.in_jax(ADAMW, shapes, make_step=steps.untouched),
        "optax's chain": steps.in_jax(OPTAX_ADAMW, shapes),
        "torch's, foreach": steps.in_torch(foreach, shapes, 1.0),
    }
    to_compile = {
        "ours compiled": sides["ours"].seconds,
        "optax's compiled": sides["optax's chain"].seconds,
        "few compiled": np.median(
            [steps.seconds_to_compile(ADAMW, steps.small_leaves(few)) for _ in range(3)]
        ),
    }
    return steps.seconds_in_turn(sides, num_rounds) | to_compile


def _many_leaves(many, runs, smoke) -> Iterator[Row]:
    title = f"{many} small leaves"
    for ours, theirs, what, limit in (
        ("ours", "optax's chain", "the step, in the time of optax's chain", 1.0),
        ("ours", "torch's, foreach", "the step, in the time of torch's, foreach", 0.5),
        (
            "handed over",
            "torch's, foreach",
            "to hand them over and compute nothing, in the time of torch's, foreach",
            math.inf,
        ),
        (
            "ours compiled",
            "optax's compiled",
            "to compile, in the time of optax's chain",
            1.0,
        ),
    ):
        ratios = median_ratios(runs, ours, theirs)
        yield Row(
            claim=f"{title}: {what}",
            value=float(np.median(ratios)),
            unit="times",
            limit=math.inf if smoke else limit,
            detail=f"{median_of(runs, ours):.3g} s to {median_of(runs, theirs):.3g} s; "
            f"{len(runs)} processes within {ratios[0]:.2f} and {ratios[-1]:.2f}",
        )


def _compilation(few, many, runs, smoke) -> Iterator[Row]:
    ratios = median_ratios(runs, "ours compiled", "few compiled") * few / many
    yield Row(
        claim=f"to compile {many} leaves, per leaf, in the time of {few}",
        value=float(np.median(ratios)),
        unit="times",
        limit=math.inf if smoke else 1.0,
        detail=f"{median_of(runs, 'few compiled'):.1f} s and "
        f"{median_of(runs, 'ours compiled'):.1f} s",
    )


def _of_size(size, num_rounds, in_turn):
    """Returns the bandwidth of each round, in bytes per parameter."""
    shapes = steps.gpt2(*size)
    sides = {
        "the memory": steps.streaming(shapes),
        "ours": steps.in_jax(ADAMW, shapes),
        "handed over": steps.in_jax(ADAMW, shapes, make_step=steps.untouched),
    }
    seconds = in_turn(sides, num_rounds)
    bandwidth = 8 * steps.num_streamed(shapes) / seconds["the memory"]
    each = bandwidth / steps.num_elements(shapes)
    return {
        "whole": seconds["ours"] * each,
        "net": (seconds["ours"] - seconds["handed over"]) * each,
    }


def _by_size(smoke):
    if smoke:
        sizes = {"0.4M": (64, 2, 4000), "0.7M": (96, 2, 4000)}
        args = 3, steps.seconds_in_turn
    else:
        sizes = {
            "10M": (256, 12, 4000),
            "124M": (768, 12, 50_257),
            "537M": (1280, 24, 50_257),
        }
        args = 9, _memory_link.seconds_in_turn
    return {
        name: _measured(smoke, _of_size, size, *args) for name, size in sizes.items()
    }


def _flat(runs, smoke) -> Iterator[Row]:
    for title, which, limit in (
        ("cost per parameter", "whole", 1.15),
        ("the same without handing arrays over", "net", math.inf),
    ):
        values = {
            name: float(np.median([np.median(run[name][which]) for run in runs]))
            for name in runs[0]
        }
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
