"""`jobs.train` beside Trainer: the same module, examples and arguments.

    python -m benchmarks.jobs_train_beside_trainer            # 10 minutes on 2 cores
    python -m benchmarks.jobs_train_beside_trainer --smoke    # the BERT, 1 epoch

A BERT classifies rows of tokens, given as a list of dictionaries, and a T5 copies them,
with `DataCollatorForSeq2Seq`; both have 2 layers, no dropout and float32. A Llama is
trained by `schedule_free_adamw` for 96 steps, which needs schedulefree 1.4.1. An update
has two micro-batches; the last one of an epoch has fewer, and its last batch fewer
rows. Both sides evaluate after each epoch, with `compute_metrics`, and load the best
model. After half of the epochs each side continues the other's checkpoint.
"""

import copy
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks._compared_runs import (
    losses_and_evaluations,
    our_log,
    relative_difference,
)
from benchmarks._report import Row, main
from jaxopt_tf import jobs

LIMIT = 1e-5
NUM_TRAIN, NUM_EVAL, LENGTH, VOCABULARY = 45, 13, 12, 64


class Task(NamedTuple):
    """A module, its data and its metric."""

    name: str
    module: Any
    data: Mapping[str, Any]  # arguments of `jobs.train` and of Trainer
    arguments: Mapping[str, Any] = MappingProxyType({})  # other `TrainingArguments`
    num_epochs: int = 3


class Ended(NamedTuple):
    """Result of a run."""

    losses: dict[int, float]  # by step
    evaluations: dict[int, dict[str, float]]  # by step
    best_step: int | None
    params: dict[str, np.ndarray]  # the best ones


def rows(smoke: bool) -> Iterator[Row]:
    """Yields the figures of all tasks."""
    import transformers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    for build in (_bert,) if smoke else (_bert, _t5, _llama):
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            # torch's notes on the scheduler of a resumed run.
            warnings.simplefilter("ignore")
            jax.config.update("jax_compilation_cache_dir", f"{folder}/cache")
            task = build()
            num_epochs = 2 if smoke else task.num_epochs
            yield from _case(task, Path(folder), num_epochs)


def _case(task: Task, work: Path, num_epochs: int) -> Iterator[Row]:
    name, per_epoch = task.name, math.ceil(math.ceil(NUM_TRAIN / 4) / 2)
    theirs = _by_trainer(task, work / "theirs", num_epochs)
    ours = _here(task, work / "ours", num_epochs)
    yield Row(
        claim=f"{name}: loss of each of {len(theirs.losses)} steps, against Trainer's",
        value=relative_difference(ours.losses, theirs.losses),
        unit="relative",
        limit=LIMIT,
        detail=f"{theirs.losses[1]:.3f} to {theirs.losses[max(theirs.losses)]:.3f}",
    )
    losses = [
        {step: found["loss"] for step, found in run.evaluations.items()}
        for run in (ours, theirs)
    ]
    yield Row(
        claim=f"{name}: evaluation loss after each epoch",
        value=relative_difference(*losses),
        unit="relative",
        limit=LIMIT,
    )
    metrics = [
        {step: found["accuracy"] for step, found in run.evaluations.items()}
        for run in (ours, theirs)
    ]
    yield Row(
        claim=f"{name}: metrics of `compute_metrics` and best step that differ",
        value=sum(metrics[0].get(n) != value for n, value in metrics[1].items())
        + (ours.best_step != theirs.best_step),
        unit="numbers",
        limit=0,
        detail=f"accuracy {', '.join(f'{x:.3f}' for x in metrics[1].values())}; best "
        f"step {theirs.best_step}",
    )
    yield Row(
        claim=f"{name}: parameters of the best model, read by `from_pretrained`",
        value=max(
            float(np.max(np.abs(ours.params[n] - p))) for n, p in theirs.params.items()
        ),
        unit="largest difference",
        limit=1e-4,
    )
    half = per_epoch * (num_epochs // 2)
    checkpoint = work / "theirs" / f"checkpoint-{half}"
    continued = _here(task, work / "here", num_epochs, resume_from=checkpoint)
    yield Row(
        claim=f"{name}: Trainer to step {half}, then here: loss of each step after it",
        value=relative_difference(continued.losses, theirs.losses, half),
        unit="relative",
        limit=LIMIT,
    )
    exported = work / "there" / f"checkpoint-{half}"
    jobs.export_run(work / "ours" / f"checkpoint-{half}", exported, model=task.module)
    continued = _by_trainer(task, work / "there", num_epochs, resume_from=exported)
    yield Row(
        claim=f"{name}: here to step {half}, then Trainer: loss of each step after it",
        value=relative_difference(continued.losses, theirs.losses, half),
        unit="relative",
        limit=LIMIT,
    )


# Tasks


def _bert() -> Task:
    import transformers

    transformers.set_seed(0)
    module = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=LENGTH,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=3,
        )
    )

    def accuracy(prediction: Any) -> dict[str, float]:
        found = prediction.predictions.argmax(-1) == prediction.label_ids
        return {"accuracy": float(found.mean())}

    def examples(ids: np.ndarray) -> list[dict[str, Any]]:
        return [
            {
                "number": n,  # a column that the module does not take
                "input_ids": row.tolist(),
                "attention_mask": [1] * LENGTH,
                "label": int(np.sum(row > VOCABULARY // 2) > LENGTH // 2),
            }
            for n, row in enumerate(ids)
        ]

    return Task("bert", module, _data(examples, accuracy))


def _t5() -> Task:
    import transformers

    transformers.set_seed(0)
    module = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=VOCABULARY,
            d_model=32,
            d_kv=16,
            d_ff=64,
            num_layers=2,
            num_heads=2,
            dropout_rate=0.0,
            decoder_start_token_id=0,
        )
    )
    collator = transformers.DataCollatorForSeq2Seq(
        _Padding(), model=module, padding="max_length", max_length=LENGTH
    )

    def accuracy(prediction: Any) -> dict[str, float]:
        # The second prediction is the last hidden state of the encoder.
        logits, labels = prediction.predictions[0], prediction.label_ids
        is_counted = labels != -100
        found = logits.argmax(-1)[is_counted] == labels[is_counted]
        return {"accuracy": float(found.mean())}

    def examples(ids: np.ndarray) -> list[dict[str, Any]]:
        lengths = 6 + np.arange(len(ids)) % (LENGTH - 6)
        return [
            {"input_ids": row[:n].tolist(), "labels": row[: n // 2].tolist()}
            for row, n in zip(ids, lengths, strict=True)
        ]

    return Task("t5", module, {**_data(examples, accuracy), "data_collator": collator})


def _llama() -> Task:
    import transformers

    transformers.set_seed(0)
    module = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=LENGTH,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=None,
        )
    )

    def accuracy(prediction: Any) -> dict[str, float]:
        found = prediction.predictions.argmax(-1)[:, :-1]
        return {"accuracy": float((found == prediction.label_ids[:, 1:]).mean())}

    def examples(ids: np.ndarray) -> list[dict[str, Any]]:
        ids = np.repeat(ids[:, ::2], 2, axis=1)  # half of the tokens can be predicted
        return [{"input_ids": row.tolist(), "labels": row.tolist()} for row in ids]

    arguments = {
        "optim": "schedule_free_adamw",
        "optim_args": "r=0.5",
        "lr_scheduler_type": "constant",
        "warmup_steps": 8,
    }
    name, data = "llama, schedule_free_adamw", _data(examples, accuracy)
    return Task(name, module, data, arguments, num_epochs=16)


def _data(
    examples: Callable[[np.ndarray], list[dict[str, Any]]], accuracy: Callable
) -> dict[str, Any]:
    shape = (NUM_TRAIN + NUM_EVAL, LENGTH)
    ids = np.random.default_rng(0).integers(2, VOCABULARY, shape)
    return {
        "train_dataset": examples(ids[:NUM_TRAIN]),
        "eval_dataset": examples(ids[NUM_TRAIN:]),
        "compute_metrics": accuracy,
    }


class _Padding:
    """The part of a tokenizer that `DataCollatorForSeq2Seq` uses."""

    padding_side = "right"
    pad_token_id = 0
    deprecation_warnings: dict[str, bool] = {}  # noqa: RUF012 - a class attribute in Transformers

    def save_pretrained(self, folder: str) -> None:
        """Saves nothing: Trainer calls it for the tokenizer of its collator."""

    def pad(self, features: list[dict[str, Any]], max_length: int, **_: Any) -> Any:
        import torch

        ids = [row["input_ids"] for row in features]
        padded = [row + [0] * (max_length - len(row)) for row in ids]
        mask = [[1] * len(row) + [0] * (max_length - len(row)) for row in ids]
        batch = {
            "input_ids": torch.tensor(padded),
            "attention_mask": torch.tensor(mask),
        }
        if features[0].get("labels") is not None:
            batch["labels"] = torch.tensor([row["labels"] for row in features])
        return batch


# Runs


def _arguments(task: Task, folder: Path, num_epochs: int) -> Any:
    import transformers

    settings = {
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        **task.arguments,
    }
    return transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=num_epochs,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=8,
        gradient_accumulation_steps=2,
        learning_rate=5e-3,
        weight_decay=0.1,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **settings,
    )


def _here(
    task: Task, folder: Path, num_epochs: int, *, resume_from: Path | None = None
) -> Ended:
    result = jobs.train(
        task.module,
        _arguments(task, folder, num_epochs),
        resume_from_checkpoint=resume_from,
        **task.data,
    )
    best = type(task.module).from_pretrained(result.folder)
    return _ended(*our_log(folder), best)


def _by_trainer(
    task: Task, folder: Path, num_epochs: int, *, resume_from: Path | None = None
) -> Ended:
    import transformers

    trainer = transformers.Trainer(
        copy.deepcopy(task.module), _arguments(task, folder, num_epochs), **task.data
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train(resume_from_checkpoint=resume_from and str(resume_from))
    state = trainer.state
    return _ended(state.log_history, state.best_global_step, trainer.model)


def _ended(log: list[dict[str, Any]], best_step: int | None, module: Any) -> Ended:
    params = {name: p.detach().numpy() for name, p in module.named_parameters()}
    return Ended(*losses_and_evaluations(log), best_step, params)


if __name__ == "__main__":
    main("jobs.train beside Trainer", rows)
