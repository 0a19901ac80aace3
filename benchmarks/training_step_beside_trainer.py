"""Time of a training step, relative to Trainer: five models.

    python -m benchmarks.training_step_beside_trainer            # all, 20 minutes
    python -m benchmarks.training_step_beside_trainer --model gpt2
    python -m benchmarks.training_step_beside_trainer --smoke    # gpt2, or --model

Both sides have the same model, batch and precision. The Llama has 30 million
parameters, in the shape of SmolLM: grouped queries, a tied head and 32,000 tokens. BERT
(4 layers of width 256, with four heads) and T5-small are modules of Transformers under
torchax, with their default dropout. Trainer is paused between its steps while our steps
run, so that both are measured under the same conditions, with huge pages for large
blocks, as in `jaxopt-tf train`. A figure is the median over three processes of the
median ratio of their rounds. Only rounds count in which the cores share one link to the
memory (`_memory_link.py`).
"""

import argparse
import functools
import itertools
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks._fresh_processes import (
    HUGE_PAGES,
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
from jaxopt_tf.models import (
    DecoderConfig,
    GPT2Config,
    Model,
    build_model,
    from_transformers,
)

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
    config: GPT2Config | DecoderConfig | None  # None: the torch model under torchax
    torch_model: Callable[[], Any]
    batch: Any  # [B, T + 1], int32, or a dict of the arguments of `forward`, [B, T]
    num_steps: int  # of each side in a round
    num_rounds: int  # that count, in each process
    limit: float

    def model(self) -> Model:
        """Returns the model that is trained here."""
        if self.config is None:
            return from_transformers(self.torch_model())
        return build_model(self.config)

    def torch_batch(self) -> dict[str, np.ndarray]:
        """Returns the arguments of `forward`, int64."""
        if isinstance(self.batch, dict):
            return {name: x.astype(np.int64) for name, x in self.batch.items()}
        # The number of tokens is equal. The shift removes one label per row.
        inputs = self.batch[:, 1:].astype(np.int64)
        return {"input_ids": inputs, "labels": inputs}

    def num_tokens(self) -> int:
        """Returns the number of tokens of a batch, those of encoder and decoder."""
        batch = self.torch_batch()
        both = self.title.startswith("T5")
        return batch["input_ids"].size + both * batch["labels"].size


def _torch_bert(head: str) -> Any:
    import transformers

    transformers.set_seed(0)
    config = transformers.BertConfig(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
    )
    return getattr(transformers, head)(config)


def _masked_tokens() -> dict[str, np.ndarray]:
    """Returns 16 rows of 128 tokens, of which 15% are predicted."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, 30_000, (16, 128), np.int32)
    labels = np.where(rng.random(ids.shape) < 0.15, ids, -100).astype(np.int32)
    inputs = np.where(labels < 0, ids, 103).astype(np.int32)
    return {
        "input_ids": inputs,
        "attention_mask": np.ones_like(ids),
        "labels": labels,
    }


def _labelled_texts() -> dict[str, np.ndarray]:
    """Returns 16 rows of 128 tokens with one of two labels each."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, 30_000, (16, 128), np.int32)
    labels = rng.integers(0, 2, 16, np.int32)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": labels}


def _torch_t5() -> Any:
    import transformers

    transformers.set_seed(0)
    # T5-small is Transformers' default, with a token that starts the decoder.
    config = transformers.T5Config(decoder_start_token_id=0)
    return transformers.T5ForConditionalGeneration(config)


def _pairs() -> dict[str, np.ndarray]:
    """Returns 8 pairs of 128 tokens and 64 labels."""
    rng = np.random.default_rng(0)
    ids = rng.integers(2, 32_000, (8, 128), np.int32)
    labels = rng.integers(2, 32_000, (8, 64), np.int32)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": labels}


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
    "bert": Case(
        title="BERT, 4 layers, with labels",
        config=None,
        torch_model=functools.partial(_torch_bert, "BertForSequenceClassification"),
        batch=_labelled_texts(),
        num_steps=1,
        num_rounds=10,
        limit=1.4,
    ),
    # The head has 30,522 classes, and half of the operations of a step.
    "masked_bert": Case(
        title="BERT, 4 layers, with masked tokens",
        config=None,
        torch_model=functools.partial(_torch_bert, "BertForMaskedLM"),
        batch=_masked_tokens(),
        num_steps=1,
        num_rounds=10,
        limit=1.4,
    ),
    "t5": Case(
        title="T5-small",
        config=None,
        torch_model=_torch_t5,
        batch=_pairs(),
        num_steps=1,
        num_rounds=6,
        limit=1.2,
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
        malloc = HUGE_PAGES
        runs = [in_fresh_process(_seconds, *args, malloc=malloc) for _ in range(3)]
    tokens = num_steps * case.num_tokens()
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
    model = case.model()
    optimizer = build_optimizer(
        RECIPE, layouts=model.layouts, layer_norms=model.layer_norms
    )
    step = make_train_step(model.make_loss(), optimizer)
    rng = 0 if model.has_dropout and case.config is None else None
    state = init_train_state(model.init(0), optimizer, rng=rng)
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

    inputs = {name: torch.from_numpy(x) for name, x in case.torch_batch().items()}
    num_rows = len(inputs["input_ids"])
    dataset = [{name: x[i] for name, x in inputs.items()} for i in range(num_rows)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            case.torch_model(),
            transformers.TrainingArguments(
                output_dir=folder,
                learning_rate=RECIPE.learning_rate,
                weight_decay=RECIPE.weight_decay,
                max_steps=RECIPE.max_steps,
                per_device_train_batch_size=num_rows,
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
