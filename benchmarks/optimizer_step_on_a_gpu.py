"""Time of optimizer steps on a GPU, relative to optax, torch and memory bandwidth.

    python -m benchmarks.optimizer_step_on_a_gpu            # two minutes, with a GPU
    python -m benchmarks.optimizer_step_on_a_gpu --smoke    # small, on any device

Each side runs many consecutive steps: ours and optax's as one program, torch's as a
CUDA graph, so that no step waits for the host. Sides alternate. A figure is the median
of the rounds' ratios. The memory's time is that of the bytes that a step must move, at
the bandwidth of an in-place product of one large array.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import _optimizer_steps as steps
from benchmarks._report import Row, main
from benchmarks.optimizer_step_at_memory_speed import (
    ADAFACTOR,
    ADAMW,
    OPTAX_ADAMW,
    SCALED,
    ratios_to,
    seconds_beside_memory,
)


def rows(smoke: bool) -> Iterator[Row]:
    on_gpu = jax.default_backend() == "gpu"
    if not on_gpu and not smoke:
        print("left out: no GPU")
        return
    name, shapes = ("a small GPT-2", steps.gpt2(64, 2, 1000))
    if not smoke:
        name, shapes = "GPT-2 124M", steps.gpt2()
    num_steps, num_rounds = (2, 2) if smoke else (20, 15)
    turns = functools.partial(_seconds, shapes, num_steps, num_rounds)
    on = f"{jax.devices()[0].device_kind}, {name}"
    for title, seconds, limits in (
        (
            "clip and adamw_tf",
            turns(
                32,
                {"ours": ADAMW, "optax's chain": OPTAX_ADAMW},
                torchs=_fused,
            ),
            {"optax's chain": 1.0, "torch's": 1.0, "the memory": 1.35},
        ),
        (
            "adafactor_trainer",
            turns(20, {"ours": ADAFACTOR, "optax's": optax.adafactor(1e-4)}),
            {"optax's": 1.0, "the memory": 2.2},
        ),
        (
            "adafactor_tf with scale_parameter",
            turns(24, {"ours": SCALED}),
            {"the memory": math.inf},
        ),
        (
            "clip and adamw_tf in bfloat16, moments in float32",
            turns(24, {"ours": ADAMW}, dtype=jnp.bfloat16),
            {"the memory": math.inf},
        ),
    ):
        if smoke:
            limits = dict.fromkeys(limits, math.inf)
        yield from ratios_to(f"{on}, {title}", [seconds], limits)
    yield from _one_call(on, shapes, num_rounds)


def _fused(params: list) -> Any:
    import torch

    # `capturable` places the step count on the device, where a CUDA graph can read it.
    return torch.optim.AdamW(
        params, lr=1e-4, weight_decay=0.01, fused=True, capturable=True
    )


def _seconds(
    shapes,
    num_steps,
    num_rounds,
    num_bytes,
    sides,
    dtype: Any = jnp.float32,
    torchs=None,
) -> dict[str, np.ndarray]:
    """Returns seconds per step, and the time to move `num_bytes` in memory."""
    make_step = functools.partial(_many_steps, num_steps)
    ready = {
        name: steps.in_jax(optimizer, shapes, dtype, make_step)
        for name, optimizer in sides.items()
    }
    if torchs is not None:
        ready["torch's"] = _torch_steps(torchs, shapes, num_steps)
    seconds = seconds_beside_memory(
        num_rounds,
        num_bytes,
        shapes,
        ready,
        _streaming(num_steps, shapes),
    )
    return {name: rounds / num_steps for name, rounds in seconds.items()}


def _many_steps(num_steps: int, optimizer: optax.GradientTransformation) -> Callable:
    step = steps.train_step(optimizer)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def run_all(params, opt_state, grads):
        def next_step(_, carried):
            params, opt_state = carried
            # Otherwise the norm of constant gradients would be computed only once.
            held, params = jax.lax.optimization_barrier((grads, params))
            return step(params, opt_state, held)

        return jax.lax.fori_loop(0, num_steps, next_step, (params, opt_state))

    return run_all


def _torch_steps(make: Callable, shapes, num_steps) -> steps.Step:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    step = steps.in_torch(make, shapes, 1.0, device).run
    if device == "cpu":
        return steps.Step(lambda: [step() for _ in range(num_steps)])
    return steps.Step(_as_graph(step, num_steps))


def _as_graph(step: Callable[[], None], num_times: int) -> Callable[[], None]:
    """Returns many runs of `step`, without work of the host between them."""
    import torch

    aside = torch.cuda.Stream()
    with torch.cuda.stream(aside):  # torch requires a run before the capture
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def run():
        for _ in range(num_times):
            graph.replay()
        torch.cuda.synchronize()

    return run


def _streaming(num_times: int, shapes: steps.Shapes) -> steps.Step:
    @functools.partial(jax.jit, donate_argnums=0)
    def run_all(x):
        return jax.lax.fori_loop(0, num_times, lambda _, x: x * 1.0000001, x)

    held = [jnp.ones(steps.num_streamed(shapes))]

    def run():
        held[0] = jax.block_until_ready(run_all(held[0]))

    return steps.Step(run)


def _one_call(on, shapes, num_rounds) -> Iterator[Row]:
    """Returns the seconds of a loop that waits for every call of a step."""
    sides = {
        "ours": steps.in_jax(ADAMW, shapes),
        "optax's chain": steps.in_jax(OPTAX_ADAMW, shapes),
        "handed over": steps.in_jax(ADAMW, shapes, make_step=steps.untouched),
    }
    seconds = steps.seconds_in_turn(sides, num_rounds)
    limits = {"optax's chain": math.inf, "handed over": math.inf}
    yield from ratios_to(f"{on}, one call a step, clip and adamw_tf", [seconds], limits)


if __name__ == "__main__":
    main("The optimizer's step on a GPU", rows)
