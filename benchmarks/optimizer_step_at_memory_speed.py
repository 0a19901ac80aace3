"""Time of optimizer steps on CPUs, relative to optax, torch and memory bandwidth.

    python -m benchmarks.optimizer_step_at_memory_speed     # 25 minutes
    python -m benchmarks.optimizer_step_at_memory_speed --smoke

All sides of a tree alternate, in three processes far apart in time. A figure is the
median over the processes of the median ratio of their rounds. Only rounds count in
which the cores share one link to the memory (`_memory_link.py`). The memory's time is
that of the bytes that a step must move, at the bandwidth of the same round.

Limits apply to processes with default settings, in which a step that allocates large
blocks waits for zeroed pages. With "freed pages kept" pages are reused, and only the
computation is measured.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import _memory_link
from benchmarks import _optimizer_steps as steps
from benchmarks._fresh_processes import (
    ALL_BLOCKS_KEPT,
    FRESH_LARGE_BLOCKS,
    in_fresh_process,
    median_of,
    median_ratios,
)
from benchmarks._report import Row, main
from jaxopt_tf import adamw_tf, clip
from jaxopt_tf.optimizers import adafactor_tf, adafactor_trainer

ADAMW = optax.chain(clip(1.0), adamw_tf(steps.rate, weight_decay=0.01))
OPTAX_ADAMW = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(steps.rate, weight_decay=0.01)
)
ADAFACTOR = adafactor_trainer(1e-4)
SCALED = adafactor_tf(1e-4, relative_step=False)

ADAMW_LIMITS = {"optax's chain": 0.45, "torch's, fused": 0.90, "the memory": 1.35}
ADAFACTOR_LIMITS = {"Transformers'": 0.30, "optax's": 0.35, "the memory": 2.2}
SCALED_LIMITS = {"Transformers'": 0.30}


def rows(smoke: bool) -> Iterator[Row]:
    name, shapes = "GPT-2 124M", steps.gpt2()
    others = {"BERT base": steps.bert(), "Llama's matrices": steps.llama()}
    if smoke:
        name, shapes = "a small GPT-2", steps.gpt2(64, 2, 1000)
        others = {}
    yield from _temporary(name, shapes, math.inf if smoke else 1.0)

    kept = "freed pages kept"
    work = list(_of_a_tree(name, shapes, FRESH_LARGE_BLOCKS))
    for other, of_other in {name: shapes, **others}.items():
        work += _of_a_tree(f"{other}, {kept}", of_other, ALL_BLOCKS_KEPT)
    title = f"{name}, {kept}, in bfloat16, moments in float32, clip and adamw_tf"
    no_limit = {"the memory": math.inf}
    work.append(_Work(title, _bfloat16, shapes, ALL_BLOCKS_KEPT, no_limit))

    # Other load lasts for minutes, so processes of one workload are far apart in time.
    num_processes = 1 if smoke else 3
    runs = [[_measured(each, smoke) for each in work] for _ in range(num_processes)]
    for each, of_each in zip(work, zip(*runs, strict=True), strict=True):
        limits = each.limits
        if smoke or each.malloc is ALL_BLOCKS_KEPT:  # limits are for the other
            limits = dict.fromkeys(limits, math.inf)
        yield from ratios_to(each.title, of_each, limits)


class _Work(NamedTuple):
    title: str
    seconds: Callable
    shapes: steps.Shapes
    malloc: dict[str, str]
    limits: dict[str, float]  # our time relative to each side


def _of_a_tree(name, shapes, malloc) -> Iterator[_Work]:
    for title, seconds, limits in (
        ("clip and adamw_tf", _adamw, ADAMW_LIMITS),
        ("adafactor_trainer", _adafactor, ADAFACTOR_LIMITS),
        ("adafactor_tf with scale_parameter", _scaled, SCALED_LIMITS),
    ):
        yield _Work(f"{name}, {title}", seconds, shapes, malloc, limits)


def _measured(work, smoke):
    if smoke:
        return work.seconds(work.shapes, 2, steps.seconds_in_turn)
    args = work.shapes, 9, _memory_link.seconds_in_turn
    return in_fresh_process(work.seconds, *args, malloc=work.malloc)


def _temporary(tree, shapes, limit) -> Iterator[Row]:
    grads = 4 * steps.num_elements(shapes)
    for name, ours, theirs in (
        ("clip and adamw_tf", ADAMW, OPTAX_ADAMW),
        ("adafactor_trainer", ADAFACTOR, optax.adafactor(1e-4)),
        ("adafactor_tf with scale_parameter", SCALED, optax.adafactor(1e-4)),
    ):
        of_ours, of_optax = (
            steps.compiled(tx, shapes).memory_analysis().temp_size_in_bytes / grads
            for tx in (ours, theirs)
        )
        yield Row(
            claim=f"{tree}, {name}: temporary memory",
            value=100 * of_ours,
            unit="% of the gradients",
            limit=limit,
            optax=100 * of_optax,
        )


def _adamw(shapes, num_rounds, in_turn):
    import torch

    def fused(params):
        return torch.optim.AdamW(params, lr=1e-4, weight_decay=0.01, fused=True)

    return _beside_streaming(
        num_rounds,
        in_turn,
        32,
        shapes,
        {
            "ours": steps.in_jax(ADAMW, shapes),
            "optax's chain": steps.in_jax(OPTAX_ADAMW, shapes),
            "torch's, fused": steps.in_torch(fused, shapes, 1.0),
        },
    )


def _adafactor(shapes, num_rounds, in_turn):
    return _beside_streaming(
        num_rounds,
        in_turn,
        20,
        shapes,
        {
            "ours": steps.in_jax(ADAFACTOR, shapes),
            "optax's": steps.in_jax(optax.adafactor(1e-4), shapes),
            "Transformers'": _transformers(shapes, scale_parameter=False),
        },
    )


def _scaled(shapes, num_rounds, in_turn):
    return _beside_streaming(
        num_rounds,
        in_turn,
        24,
        shapes,
        {
            "ours": steps.in_jax(SCALED, shapes),
            "Transformers'": _transformers(shapes, scale_parameter=True),
        },
    )


def _bfloat16(shapes, num_rounds, in_turn):
    # Bytes: 2 for the norm, 2 for the gradient, 4 for the parameter, 16 for moments.
    sides = {"ours": steps.in_jax(ADAMW, shapes, jnp.bfloat16)}
    return _beside_streaming(num_rounds, in_turn, 24, shapes, sides)


def _transformers(shapes, scale_parameter):
    from transformers.optimization import Adafactor

    options = {"scale_parameter": scale_parameter, "relative_step": False}
    return steps.in_torch(lambda p: Adafactor(p, lr=1e-4, **options), shapes, None)


def seconds_beside_memory(
    num_rounds: int,
    num_bytes: int,
    shapes: steps.Shapes,
    sides: dict[str, steps.Step],
    memory: steps.Step,
    in_turn: Callable = steps.seconds_in_turn,
) -> dict[str, np.ndarray]:
    """Returns the seconds of each round, and of the memory for as many bytes.

    Args:
        num_rounds: number of rounds, in which all sides alternate.
        num_bytes: minimum number of bytes that a step moves, per parameter.
        shapes: shapes of the parameters.
        sides: steps by name.
        memory: step that multiplies `num_streamed(shapes)` elements in place.
        in_turn: function that times the steps.
    """
    sides = {"the memory": memory, **sides}
    seconds = in_turn(sides, num_rounds)
    moved = num_bytes * steps.num_elements(shapes)
    seconds["the memory"] *= moved / (8 * steps.num_streamed(shapes))
    return seconds


def _beside_streaming(num_rounds, in_turn, num_bytes, shapes, sides):
    memory = steps.streaming(shapes)
    return seconds_beside_memory(num_rounds, num_bytes, shapes, sides, memory, in_turn)


def ratios_to(
    title: str, runs: Sequence[dict[str, np.ndarray]], limits: dict[str, float]
) -> Iterator[Row]:
    """Returns rows of our time relative to each side in `limits`."""
    for name, limit in limits.items():
        ratios = median_ratios(runs, "ours", name)
        yield Row(
            claim=f"{title}: in the time of {name}",
            value=float(np.median(ratios)),
            unit="times",
            limit=limit,
            detail=f"{1e3 * median_of(runs, 'ours'):.3g} ms to "
            f"{1e3 * median_of(runs, name):.3g} ms; {len(runs)} processes within "
            f"{ratios[0]:.2f} and {ratios[-1]:.2f}",
        )


if __name__ == "__main__":
    main("The optimizer's step on CPUs", rows)
