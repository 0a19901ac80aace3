"""Time of a training step of GPT-2 124M on a GPU, relative to Trainer and the plan.

    python -m benchmarks.training_step_on_a_gpu            # two minutes, with a GPU
    python -m benchmarks.training_step_on_a_gpu --smoke    # small, on any device

8 sequences of 1,024 tokens, clipping and AdamW, with `--tf32`, with `--bf16` and
without both, as options of the job and of Trainer. Steps are dispatched without waiting
for the previous one, and both sides alternate. A figure is the median of the rounds'
ratios.
"""

import contextlib
import math
from collections.abc import Iterator

import jax
import numpy as np

from benchmarks import _optimizer_steps as steps
from benchmarks._report import Row, main
from benchmarks._trainer_runs import torch_model
from jaxopt_tf import Recipe, build_optimizer, init_train_state
from jaxopt_tf.jobs import Job, RunConfig, build_setup
from jaxopt_tf.models import gpt2_preset, make_loss_fn
from jaxopt_tf.planning import estimate, named_slice, program_cost
from jaxopt_tf.sharding import make_mesh

RECIPE = Recipe(learning_rate=1e-4, weight_decay=0.1, max_steps=100_000)


def rows(smoke: bool) -> Iterator[Row]:
    on_gpu = jax.default_backend() == "gpu"
    if not on_gpu and not smoke:
        print("left out: no GPU")
        return
    model = gpt2_preset("nano" if smoke else "gpt2")
    num_steps, num_rounds = (2, 2) if smoke else (10, 7)
    rng = np.random.default_rng(0)
    batch = rng.integers(0, model.vocab_size, (8, model.block_size + 1), np.int32)
    tokens = num_steps * batch[:, 1:].size
    jobs = (Job(), Job(tf32=True), Job(bf16=True))
    for job in jobs[-1:] if smoke else jobs:
        ours, at_least = _ours(model, batch, job, num_steps)
        sides = {"ours": ours, "torch's": _torchs(model, batch, job, num_steps)}
        seconds = steps.seconds_in_turn(sides, num_rounds)
        mine, its = (np.median(seconds[name]) for name in sides)
        precision = "bf16" if job.bf16 else "tf32" if job.tf32 else "float32"
        title = f"{jax.devices()[0].device_kind}, GPT-2 in {precision}"
        yield Row(
            claim=f"{title}: tokens per second, in those of Trainer's step",
            value=float(np.median(seconds["torch's"] / seconds["ours"])),
            unit="times",
            limit=0.0 if smoke else 1.0,
            at_least=True,
            detail=f"{tokens / mine:.0f} to {tokens / its:.0f}",
        )
        yield Row(
            claim=f"{title}: a step, in the least time that the plan of an H100 has",
            value=float(mine / num_steps / at_least),
            unit="times",
            limit=math.inf,
            detail=f"{1e3 * mine / num_steps:.1f} ms to {1e3 * at_least:.1f} ms",
        )


def _ours(model, batch, job, num_steps) -> tuple[steps.Step, float]:
    """Returns the step of a job, and its minimum time on an H100 in seconds."""
    mesh = make_mesh("data=1", jax.devices()[:1])
    setup = build_setup(RunConfig(recipe=RECIPE, model=model, job=job), mesh)
    params, _ = make_loss_fn(model, 0)
    state = [
        jax.device_put(
            init_train_state(params, build_optimizer(RECIPE)),
            jax.tree.map(lambda x: x.sharding, setup.run_state.state),
        )
    ]
    batch = jax.device_put(batch.astype(setup.batch.dtype), setup.batch.sharding)
    traced = setup.train_step.trace(state[0], batch)
    program = traced.lower().compile()
    cost = program_cost(program, 1, traced)

    def run():
        for _ in range(num_steps):
            state[0], metrics = program(state[0], batch)
        jax.block_until_ready((state[0], metrics))

    return steps.Step(run), estimate(cost, named_slice("h100").chip).seconds


def _torchs(model, batch, job, num_steps) -> steps.Step:
    """Returns the step of Trainer, without its loop."""
    import torch

    torch.set_float32_matmul_precision("high" if job.tf32 else "highest")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module = torch_model(model=model).to(device)
    inputs = torch.from_numpy(batch[:, 1:].astype(np.int64)).to(device)
    optimizer = torch.optim.AdamW(
        module.parameters(),
        lr=RECIPE.learning_rate,
        weight_decay=RECIPE.weight_decay,
        fused=True,
    )

    def autocast():
        if job.bf16:
            return torch.autocast(device, torch.bfloat16)
        return contextlib.nullcontext()

    def run():
        for _ in range(num_steps):
            with autocast():
                loss = module(input_ids=inputs, labels=inputs).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), RECIPE.max_grad_norm)
            optimizer.step()
            module.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    return steps.Step(run)


if __name__ == "__main__":
    main("A training step on a GPU", rows)
