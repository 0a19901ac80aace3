"""Time of a training step of the default job, relative to Trainer.

    python -m benchmarks.training_step_beside_trainer            # 2 to 4 minutes
    python -m benchmarks.training_step_beside_trainer --smoke

Both sides have the same GPT-2, batch and precision. Trainer is paused between its steps
while our steps run, so that both are measured under the same conditions. A figure is
the median over three processes of the median ratio of their rounds. Only rounds count
in which the cores share one link to the memory (`_memory_link.py`).
"""

import itertools
import logging
import tempfile
import time
from collections.abc import Iterator

import jax
import numpy as np

from benchmarks._fresh_processes import (
    FRESH_LARGE_BLOCKS,
    in_fresh_process,
    median_of,
    median_ratios,
)
from benchmarks._memory_link import PATIENCE, SharedLink
from benchmarks._report import Row, main
from benchmarks._trainer_runs import torch_model
from jaxopt_tf import (
    Recipe,
    build_optimizer,
    init_train_state,
    make_train_step,
    training,
)
from jaxopt_tf.models import GPT2Config, make_loss_fn

MODEL = GPT2Config()
BATCH = np.random.default_rng(0).integers(0, 256, (8, MODEL.block_size + 1), np.int32)
RECIPE = Recipe(learning_rate=1e-3, weight_decay=0.1, max_steps=100_000)


def rows(smoke: bool) -> Iterator[Row]:
    num_steps = 3 if smoke else 50
    if smoke:
        runs = [_seconds(2, num_steps, patience=0.0)]
    else:
        args = 12, num_steps
        malloc = FRESH_LARGE_BLOCKS
        runs = [in_fresh_process(_seconds, *args, malloc=malloc) for _ in range(3)]
    tokens = num_steps * BATCH[:, 1:].size
    ours, theirs = (tokens / median_of(runs, side) for side in ("ours", "Trainer's"))
    yield Row(
        claim="tokens per second of the default job, in those of Trainer",
        value=float(np.median(median_ratios(runs, "Trainer's", "ours"))),
        unit="times",
        limit=0.0 if smoke else 1.0,
        at_least=True,
        detail=f"{ours:.0f} to {theirs:.0f}",
    )


def _seconds(num_rounds, num_steps, patience=PATIENCE) -> dict[str, np.ndarray]:
    """Returns the seconds of the steps of each round, ours and Trainer's."""
    import torch
    import transformers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    params, loss_fn = make_loss_fn(MODEL, 0)
    optimizer = build_optimizer(RECIPE)
    step = make_train_step(loss_fn, optimizer)
    state = init_train_state(params, optimizer)
    rounds: list[tuple[float, float]] = []
    link = SharedLink(patience)

    class InTurn(transformers.TrainerCallback):
        def on_train_begin(self, args, trainer_state, control, **_):
            link.wait()
            self.start = time.perf_counter()

        def on_step_end(self, args, trainer_state, control, **_):
            nonlocal state
            if trainer_state.global_step % num_steps:
                return
            now = time.perf_counter()
            batches = itertools.repeat(BATCH)
            last = trainer_state.global_step
            state = training.train(step, state, batches, max_steps=last).state
            jax.block_until_ready(state)
            seconds = time.perf_counter() - now, now - self.start
            # The first two rounds compile, allocate and warm up.
            if last > 2 * num_steps and link.kept():
                rounds.append(seconds)
            else:
                link.wait()
            control.should_training_stop = len(rounds) == num_rounds
            self.start = time.perf_counter()

    # The number of tokens is equal. The shift removes one label per row.
    inputs = torch.from_numpy(BATCH[:, 1:].astype(np.int64))
    dataset = [{"input_ids": row, "labels": row} for row in inputs]
    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            torch_model(model=MODEL),
            transformers.TrainingArguments(
                output_dir=folder,
                learning_rate=RECIPE.learning_rate,
                weight_decay=RECIPE.weight_decay,
                max_steps=RECIPE.max_steps,
                per_device_train_batch_size=len(BATCH),
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
            ),
            train_dataset=dataset * RECIPE.max_steps,  # no epoch ends
            callbacks=[InTurn()],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    ours, theirs = np.array(rounds).T
    return {"ours": ours, "Trainer's": theirs}


if __name__ == "__main__":
    main("The training step", rows)
