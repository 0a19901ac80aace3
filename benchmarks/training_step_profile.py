"""Time of the parts of a training step, for the default job and for Trainer.

    python -m benchmarks.training_step_profile            # 1 to 5 minutes
    python -m benchmarks.training_step_profile --smoke

Both sides have the same GPT-2 and batch in float32, and their parts alternate. Each
part is timed alone; "backward" is the gradient less the forward pass. A figure is the
median over three processes of the median ratio of their rounds. Only rounds count in
which the cores share one link to the memory (`_memory_link.py`).
"""

import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import _memory_link
from benchmarks import _optimizer_steps as steps
from benchmarks._fresh_processes import (
    FRESH_LARGE_BLOCKS,
    in_fresh_process,
    median_of,
    median_ratios,
)
from benchmarks._report import Row, main
from benchmarks._trainer_runs import torch_model
from benchmarks.training_step_beside_trainer import BATCH, MODEL, RECIPE
from jaxopt_tf import build_optimizer, init_train_state, make_train_step
from jaxopt_tf.models import make_loss_fn

PARTS = ("forward", "backward", "clipping and optimizer")


def rows(smoke: bool) -> Iterator[Row]:
    if smoke:
        runs = [_seconds(5, steps.seconds_in_turn)]
    else:
        args = 100, _memory_link.seconds_in_turn
        malloc = FRESH_LARGE_BLOCKS
        runs = [in_fresh_process(_seconds, *args, malloc=malloc) for _ in range(3)]
    whole = median_of(runs, "ours: whole step")
    for name in PARTS:
        ours, its = f"ours: {name}", f"Trainer's: {name}"
        part = median_of(runs, ours)
        yield Row(
            claim=f"{name}, in the time of the Trainer's",
            value=float(np.median(median_ratios(runs, ours, its))),
            unit="times",
            limit=math.inf,
            detail=f"{1e3 * part:.1f} ms to {1e3 * median_of(runs, its):.1f} ms; "
            f"{100 * part / whole:.0f} % of our step",
        )
    yield Row(
        claim="a step, in the time of forward, backward and optimizer measured apart",
        value=float(np.median(median_ratios(runs, "ours: whole step", "ours: apart"))),
        unit="times",
        limit=math.inf if smoke else 1.03,
        detail=f"{1e3 * whole:.1f} ms, its metrics and checks included",
    )


def _seconds(num_rounds, in_turn):
    ours, theirs = _ours(), _trainers()
    sides = {f"ours: {name}": step for name, step in ours.items()}
    sides |= {f"Trainer's: {name}": step for name, step in theirs.items()}
    seconds = in_turn(sides, num_rounds)
    for side in ("ours", "Trainer's"):
        seconds[f"{side}: backward"] = (
            seconds.pop(f"{side}: gradient") - seconds[f"{side}: forward"]
        )
    seconds["ours: apart"] = sum(seconds[f"ours: {name}"] for name in PARTS)
    return seconds


def _ours() -> dict[str, steps.Step]:
    params, loss_fn = make_loss_fn(MODEL, 0)
    optimizer = build_optimizer(RECIPE)

    def mean_loss(params):
        total, num_items = loss_fn(params, BATCH)
        return total / num_items

    def apply(carried, grads):
        params, opt_state = carried
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    forward, gradient = jax.jit(mean_loss), jax.jit(jax.value_and_grad(mean_loss))
    update = jax.jit(apply, donate_argnums=0)
    step = make_train_step(loss_fn, optimizer)
    _, grads = gradient(params)
    carried = [jax.tree.map(jnp.copy, params), optimizer.init(params)]
    state = [init_train_state(jax.tree.map(jnp.copy, params), optimizer)]

    def whole():
        state[0], metrics = step(state[0], BATCH)
        jax.block_until_ready((state[0], metrics))

    def updated():
        carried[:] = jax.block_until_ready(update(tuple(carried), grads))

    return {
        "forward": steps.Step(lambda: jax.block_until_ready(forward(params))),
        "gradient": steps.Step(lambda: jax.block_until_ready(gradient(params))),
        "clipping and optimizer": steps.Step(updated),
        "whole step": steps.Step(whole),
    }


def _trainers() -> dict[str, steps.Step]:
    """Returns the parts of a step of `Trainer`, with its default optimizer."""
    import torch

    model = torch_model(model=MODEL)
    inputs = torch.from_numpy(BATCH[:, 1:].astype(np.int64))
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=RECIPE.learning_rate,
        weight_decay=RECIPE.weight_decay,
        fused=True,
    )

    def loss():
        return model(input_ids=inputs, labels=inputs).loss

    def gradient():
        model.zero_grad()
        loss().backward()

    def updated():
        torch.nn.utils.clip_grad_norm_(model.parameters(), RECIPE.max_grad_norm)
        optimizer.step()

    gradient()
    parts: dict[str, Callable[[], object]] = {
        "forward": loss,
        "gradient": gradient,
        "clipping and optimizer": updated,
    }
    return {name: steps.Step(part) for name, part in parts.items()}


if __name__ == "__main__":
    main("Where a training step's time goes", rows)
