"""Time of a training step, relative to Trainer: the default job, and a Llama.

    python -m benchmarks.training_step_beside_trainer            # both, 10 minutes
    python -m benchmarks.training_step_beside_trainer --model gpt2
    python -m benchmarks.training_step_beside_trainer --smoke    # gpt2, or --model

Both sides have the same model, batch and precision. The Llama has 30 million
parameters, in the shape of SmolLM: grouped queries, a tied head and 32,000 tokens.
Trainer is paused between its steps
while our steps run, so that both are measured under the same conditions. A figure is
the median over three processes of the median ratio of their rounds. Only rounds count
in which the cores share one link to the memory (`_memory_link.py`).
"""

import argparse
import itertools
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

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
from jaxopt_tf.models import DecoderConfig, GPT2Config, build_model

MODEL = GPT2Config()
BATCH = np.random.default_rng(0).integers(0, 256, (8, MODEL.block_size + 1), np.int32)
RECIPE = Recipe(learning_rate=1e-3, weight_decay=0.1, max_steps=100_000)


LLAMA = DecoderConfig(
    model_type="llama",
    vocab_size=32_000,
    hidden_size=384,
    intermediate_size=1024,
    num_hidden_layers=11,
    num_attention_heads=6,
    num_key_value_heads=3,
    max_position_embeddings=256,
    tie_word_embeddings=True,
    # On CPUs a scan copies the activations of all layers. Without it the step is
    # faster, and takes longer to compile.
    scan_layers=False,
)


class Case(NamedTuple):
    """A model that both sides train."""

    title: str
    config: GPT2Config | DecoderConfig
    torch_model: Callable[[], Any]
    batch: np.ndarray  # [B, T + 1], int32
    num_steps: int  # of each side in a round
    num_rounds: int  # that count, in each process
    limit: float


def _torch_llama() -> Any:
    import transformers

    transformers.set_seed(0)
    settings = dict(build_model(LLAMA).transformers_config)
    config = transformers.LlamaConfig.from_dict(settings)
    return transformers.LlamaForCausalLM(config)


def _tokens(vocab_size: int, block_size: int) -> np.ndarray:
    shape = (8, block_size + 1)
    return np.random.default_rng(0).integers(0, vocab_size, shape, np.int32)


CASES = {
    "gpt2": Case(
        title="the default job",
        config=MODEL,
        torch_model=lambda: torch_model(model=MODEL),
        batch=BATCH,
        num_steps=50,
        num_rounds=12,
        limit=1.0,
    ),
    "llama": Case(
        title="a Llama of 30M parameters",
        config=LLAMA,
        torch_model=_torch_llama,
        batch=_tokens(LLAMA.vocab_size, LLAMA.block_size),
        num_steps=1,
        num_rounds=6,
        limit=1.3,
    ),
}


def rows(smoke: bool) -> Iterator[Row]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=CASES)
    parser.add_argument("--smoke", action="store_true")
    chosen = parser.parse_args().model
    default = ["gpt2"] if smoke else list(CASES)
    for name in [chosen] if chosen else default:
        yield _row(name, smoke)


def _row(name: str, smoke: bool) -> Row:
    case = CASES[name]
    num_steps = min(3, case.num_steps) if smoke else case.num_steps
    if smoke:
        runs = [_seconds(name, 2, num_steps, patience=0.0)]
    else:
        args = name, case.num_rounds, num_steps
        malloc = FRESH_LARGE_BLOCKS
        runs = [in_fresh_process(_seconds, *args, malloc=malloc) for _ in range(3)]
    tokens = num_steps * case.batch[:, 1:].size
    ours, theirs = (tokens / median_of(runs, side) for side in ("ours", "Trainer's"))
    return Row(
        claim=f"tokens per second of {case.title}, in those of Trainer",
        value=float(np.median(median_ratios(runs, "Trainer's", "ours"))),
        unit="times",
        limit=0.0 if smoke else case.limit,
        at_least=True,
        detail=f"{ours:.0f} to {theirs:.0f}",
    )


def _seconds(name, num_rounds, num_steps, patience=PATIENCE) -> dict[str, np.ndarray]:
    """Returns the seconds of the steps of each round, ours and Trainer's."""
    import torch
    import transformers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    case = CASES[name]
    model = build_model(case.config)
    optimizer = build_optimizer(
        RECIPE, layouts=model.layouts, layer_norms=model.layer_norms
    )
    step = make_train_step(model.make_loss(), optimizer)
    state = init_train_state(model.init(0), optimizer)
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
            batches = itertools.repeat(case.batch)
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
    inputs = torch.from_numpy(case.batch[:, 1:].astype(np.int64))
    dataset = [{"input_ids": row, "labels": row} for row in inputs]
    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            case.torch_model(),
            transformers.TrainingArguments(
                output_dir=folder,
                learning_rate=RECIPE.learning_rate,
                weight_decay=RECIPE.weight_decay,
                max_steps=RECIPE.max_steps,
                per_device_train_batch_size=len(case.batch),
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
