"""The optimizer's step on CPUs, in the time of optax's, of torch's and of the memory.

    python -m benchmarks.optimizer_step_at_memory_speed            # some minutes
    python -m benchmarks.optimizer_step_at_memory_speed --smoke

All sides of a tree take turns; a figure is the median of the ratios of one round. The
limit of the memory is what the step must move at least, at the speed of the same round.
"""

import gc
import math
from collections.abc import Callable, Iterator

import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import _optimizer_steps as steps
from benchmarks._report import Row, main
from jaxopt_tf import adamw_tf, clip
from jaxopt_tf.optimizers import adafactor_tf, adafactor_trainer

ADAMW = optax.chain(clip(1.0), adamw_tf(steps.rate, weight_decay=0.01))
OPTAX_ADAMW = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(steps.rate, weight_decay=0.01)
)
ADAFACTOR = adafactor_trainer(1e-4)
SCALED = adafactor_tf(1e-4, relative_step=False)


def rows(smoke: bool) -> Iterator[Row]:
    yield from _temporary()
    trees = {
        "GPT-2 124M": steps.gpt2(),
        "BERT base": steps.bert(),
        "Llama's matrices": steps.llama(),
    }
    if smoke:
        trees = {"a small GPT-2": steps.gpt2(64, 2, 1000)}
    num_rounds = 2 if smoke else 15
    for name, shapes in trees.items():
        is_named = name == "GPT-2 124M"  # the limits are for this tree
        yield from _adamw(name, shapes, num_rounds, is_named)
        yield from _adafactor(name, shapes, num_rounds, is_named)
    yield from _bfloat16(*next(iter(trees.items())), num_rounds)


def _temporary() -> Iterator[Row]:
    shapes = steps.gpt2()
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
            claim=f"GPT-2 124M, {name}: temporary memory",
            value=100 * of_ours,
            unit="% of the gradients",
            limit=1.0,
            optax=100 * of_optax,
        )


def _adamw(tree, shapes, num_rounds, is_named) -> Iterator[Row]:
    import torch

    def fused(params):
        return torch.optim.AdamW(params, lr=1e-4, weight_decay=0.01, fused=True)

    seconds = _seconds(
        {
            "the memory": steps.streaming,
            "ours": lambda: steps.in_jax(ADAMW, shapes),
            "optax's chain": lambda: steps.in_jax(OPTAX_ADAMW, shapes),
            "torch's, fused": lambda: steps.in_torch(fused, shapes, 1.0),
        },
        num_rounds,
    )
    seconds["the memory"] *= 32 * steps.num_elements(shapes) / (8 * steps.STREAMED)
    limits = {"optax's chain": 0.45, "torch's, fused": 0.90, "the memory": 1.35}
    yield from _ratios(f"{tree}, clip and adamw_tf", seconds, is_named, limits)


def _adafactor(tree, shapes, num_rounds, is_named) -> Iterator[Row]:
    from transformers.optimization import Adafactor

    def theirs(scale_parameter):
        options = {"scale_parameter": scale_parameter, "relative_step": False}
        return lambda params: Adafactor(params, lr=1e-4, **options)

    seconds = _seconds(
        {
            "the memory": steps.streaming,
            "ours": lambda: steps.in_jax(ADAFACTOR, shapes),
            "scaled": lambda: steps.in_jax(SCALED, shapes),
            "optax's": lambda: steps.in_jax(optax.adafactor(1e-4), shapes),
            "Transformers'": lambda: steps.in_torch(theirs(False), shapes, None),
            "Transformers' scaled": lambda: steps.in_torch(theirs(True), shapes, None),
        },
        num_rounds,
    )
    seconds["the memory"] *= 20 * steps.num_elements(shapes) / (8 * steps.STREAMED)
    limits = {"Transformers'": 0.30, "optax's": 0.35, "the memory": 2.2}
    preset = {name: seconds[name] for name in ("ours", *limits)}
    yield from _ratios(f"{tree}, adafactor_trainer", preset, is_named, limits)
    scaled = {"ours": seconds["scaled"], "theirs": seconds["Transformers' scaled"]}
    title = f"{tree}, adafactor_tf with scale_parameter"
    yield from _ratios(title, scaled, is_named, {"theirs": 0.30})


def _bfloat16(tree, shapes, num_rounds) -> Iterator[Row]:
    seconds = _seconds(
        {
            "the memory": steps.streaming,
            "ours": lambda: steps.in_jax(ADAMW, shapes, jnp.bfloat16),
        },
        num_rounds,
    )
    # 2 for the norm; 2 for the gradient, 4 for the parameter, 16 for the moments.
    seconds["the memory"] *= 24 * steps.num_elements(shapes) / (8 * steps.STREAMED)
    title = f"{tree} in bfloat16, moments in float32, clip and adamw_tf"
    yield from _ratios(title, seconds, False, {"the memory": math.inf})


def _seconds(
    makers: dict[str, Callable[[], steps.Step]], num_rounds: int
) -> dict[str, np.ndarray]:
    taken = steps.seconds_in_turn({k: make() for k, make in makers.items()}, num_rounds)
    gc.collect()  # gigabytes of the last tree
    return taken


def _ratios(title, seconds, is_named, limits) -> Iterator[Row]:
    for name, limit in limits.items():
        ratios = seconds["ours"] / seconds[name]
        low, high = np.percentile(ratios, [25, 75])
        yield Row(
            claim=f"{title}: in the time of {name}",
            value=float(np.median(ratios)),
            unit="times",
            limit=limit if is_named else math.inf,
            detail=f"{1e3 * np.median(seconds['ours']):.0f} ms to "
            f"{1e3 * np.median(seconds[name]):.0f} ms; half of the rounds within "
            f"{low:.2f} and {high:.2f}",
        )


if __name__ == "__main__":
    main("The optimizer's step on CPUs", rows)
