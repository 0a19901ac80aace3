"""A training step of the default job beside the Trainer's, and beside its own parts.

    python -m benchmarks.training_step_beside_trainer            # two minutes
    python -m benchmarks.training_step_beside_trainer --smoke

The same GPT-2, batch and precision; Trainer is halted between its steps while we take
ours, so that both see the same machine. A figure is the median of the rounds' ratios.
"""

import itertools
import logging
import math
import tempfile
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks._report import Row, main
from benchmarks._trainer_runs import torch_model
from jaxopt_tf import (
    Recipe,
    build_optimizer,
    init_train_state,
    make_train_step,
    training,
)
from jaxopt_tf.pretraining import GPT2Config, make_loss_fn

MODEL = GPT2Config()
BATCH = np.random.default_rng(0).integers(0, 256, (8, MODEL.block_size + 1), np.int32)
RECIPE = Recipe(learning_rate=1e-3, weight_decay=0.1, max_steps=100_000)


def rows(smoke: bool) -> Iterator[Row]:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    num_rounds, num_steps = (2, 3) if smoke else (12, 50)
    ours, theirs = _beside_trainer(num_rounds, num_steps)
    tokens = num_steps * BATCH[:, 1:].size
    yield Row(
        claim="tokens per second of the default job, in those of Trainer",
        value=float(np.median(theirs / ours)),
        unit="times",
        limit=0.0 if smoke else 1.0,
        at_least=True,
        detail=f"{tokens / np.median(ours):.0f} to {tokens / np.median(theirs):.0f}",
    )
    whole, apart = _beside_its_parts(10 if smoke else 400)
    yield Row(
        claim="a step, in the time of forward, backward and optimizer measured apart",
        value=float(np.median(whole / apart.sum(0))),
        unit="times",
        limit=math.inf if smoke else 1.03,
        detail="{:.1f} ms to {:.1f} and {:.1f} ms".format(
            *(1e3 * np.median(each) for each in (whole, *apart))
        ),
    )


def _beside_trainer(num_rounds, num_steps) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of each round's steps, ours and Trainer's."""
    import torch
    import transformers

    params, loss_fn = make_loss_fn(MODEL, 0)
    optimizer = build_optimizer(RECIPE)
    step = make_train_step(loss_fn, optimizer)
    state = init_train_state(params, optimizer)
    ours: list[float] = []
    theirs: list[float] = []

    class InTurn(transformers.TrainerCallback):
        def on_train_begin(self, args, trainer_state, control, **_):
            self.start = time.perf_counter()

        def on_step_end(self, args, trainer_state, control, **_):
            nonlocal state
            if trainer_state.global_step % num_steps:
                return
            now = time.perf_counter()
            theirs.append(now - self.start)
            last = len(theirs) * num_steps
            batches = itertools.repeat(BATCH)
            state = training.train(step, state, batches, max_steps=last).state
            jax.block_until_ready(state)
            self.start = time.perf_counter()
            ours.append(self.start - now)

    # As many tokens go through the model; what it shifts away is one label of a row.
    inputs = torch.from_numpy(BATCH[:, 1:].astype(np.int64))
    num_rows = (num_rounds + 2) * num_steps * len(BATCH)
    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            torch_model(model=MODEL),
            transformers.TrainingArguments(
                output_dir=folder,
                learning_rate=1e-3,
                weight_decay=0.1,
                max_steps=(num_rounds + 2) * num_steps,
                per_device_train_batch_size=len(BATCH),
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
            ),
            train_dataset=[
                {"input_ids": inputs[i % len(BATCH)], "labels": inputs[i % len(BATCH)]}
                for i in range(num_rows)
            ],
            callbacks=[InTurn()],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    # The first compile, allocate and warm up.
    return np.array(ours[2:]), np.array(theirs[2:])


def _beside_its_parts(num_rounds) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of the whole step, and of its gradient and its update, [2, rounds]."""
    params, loss_fn = make_loss_fn(MODEL, 0)
    optimizer = build_optimizer(RECIPE)

    def mean_loss(params, batch):
        total, num_items = loss_fn(params, batch)
        return total / num_items

    def apply(carried, grads):
        params, opt_state = carried
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    gradient = jax.jit(jax.value_and_grad(mean_loss))
    update = jax.jit(apply, donate_argnums=0)
    step = make_train_step(loss_fn, optimizer)
    state = init_train_state(jax.tree.map(jnp.copy, params), optimizer)
    carried = (params, optimizer.init(params))
    seconds = []
    for _ in range(num_rounds + 3):
        times = [time.perf_counter()]
        state, _metrics = jax.block_until_ready(step(state, BATCH))
        times.append(time.perf_counter())
        _, grads = jax.block_until_ready(gradient(carried[0], BATCH))
        times.append(time.perf_counter())
        carried = jax.block_until_ready(update(carried, grads))
        times.append(time.perf_counter())
        seconds.append(np.diff(times))
    whole, *apart = np.array(seconds[3:]).T
    return whole, np.array(apart)


if __name__ == "__main__":
    main("The training step", rows)
