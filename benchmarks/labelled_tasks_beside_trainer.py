"""Labelled tasks of Transformers' examples beside the real Trainer.

    python -m benchmarks.labelled_tasks_beside_trainer            # all parts
    python -m benchmarks.labelled_tasks_beside_trainer --smoke    # a BERT, 2 epochs
    python -m benchmarks.labelled_tasks_beside_trainer --part parity

Parts, with their time on 2 cores:

- `parity` (5 minutes): a BERT, a T5 and a ViT for 200 steps.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import _labelled_runs as runs
from benchmarks._labelled_runs import Ended, Task
from benchmarks._report import Row, report
from jaxopt_tf import jobs

LIMIT = 1e-5
NUM_TRAIN, NUM_EVAL = 146, 45
_DIGIT_MEAN = {"image_mean": [0.5], "image_std": [0.5], "rescale_factor": 1 / 16}


def parity(smoke: bool) -> Iterator[Row]:
    """Yields the differences of losses, metrics and best steps of three models."""
    builders = (_bert,) if smoke else (_bert, _t5, _vit)
    for build in builders:
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            jax.config.update("jax_compilation_cache_dir", f"{folder}/cache")
            yield from _compared(build(work), work, num_epochs=2 if smoke else 11)


def _compared(task: Task, work: Path, num_epochs: int) -> Iterator[Row]:
    name = task.name
    theirs = runs.by_trainer(task, work / "theirs", num_train_epochs=num_epochs)
    ours = runs.here(task, work / "ours", num_train_epochs=num_epochs)
    num_steps = max(theirs.losses)
    yield Row(
        claim=f"{name}: loss of each of {num_steps} steps, against Trainer's",
        value=runs.relative_difference(ours.losses, theirs.losses),
        unit="relative",
        limit=LIMIT,
        detail=f"{theirs.losses[1]:.3f} to {theirs.losses[num_steps]:.3f}",
    )
    losses = [
        {step: found["loss"] for step, found in run.evaluations.items()}
        for run in (ours, theirs)
    ]
    yield Row(
        claim=f"{name}: evaluation loss after each of {num_epochs} epochs",
        value=runs.relative_difference(*losses),
        unit="relative",
        limit=LIMIT,
    )
    names = _metric_names(ours, theirs)
    last = theirs.evaluations[max(theirs.evaluations)]
    yield Row(
        claim=f"{name}: {', '.join(names)} after each epoch",
        value=runs.metric_difference(ours, theirs, names),
        unit="largest difference",
        limit=1e-6,
        detail=", ".join(f"{last[n]:.4f}" for n in names),
    )
    yield Row(
        claim=f"{name}: distance of the best steps",
        value=abs((ours.best_step or 0) - (theirs.best_step or 0)),
        unit="steps",
        limit=0,
        detail=f"step {theirs.best_step}",
    )
    per_epoch = num_steps // num_epochs
    half = per_epoch * (num_epochs // 2)
    continued = runs.here(
        task,
        work / "here",
        num_train_epochs=num_epochs,
        resume_from=work / "theirs" / f"checkpoint-{half}",
    )
    yield Row(
        claim=f"{name}: Trainer to step {half}, then here: loss of each step after it",
        value=runs.relative_difference(continued.losses, theirs.losses, half),
        unit="relative",
        limit=LIMIT,
    )
    exported = work / "there" / f"checkpoint-{half}"
    jobs.export_run(work / "ours" / f"checkpoint-{half}", exported)
    continued = runs.by_trainer(
        task, work / "there", num_train_epochs=num_epochs, resume_from=exported
    )
    yield Row(
        claim=f"{name}: here to step {half}, then Trainer: loss of each step after it",
        value=runs.relative_difference(continued.losses, theirs.losses, half),
        unit="relative",
        limit=LIMIT,
    )


def _metric_names(ours: Ended, theirs: Ended) -> list[str]:
    found = theirs.evaluations[max(theirs.evaluations)]
    left_out = {"loss", "runtime", "samples_per_second", "steps_per_second", "epoch"}
    names = [name for name in found if name not in {*left_out, "step"}]
    assert names
    assert set(names) <= set(ours.evaluations[max(ours.evaluations)])
    return names


# Tasks


def _files(work: Path, train: list[Any], evaluation: list[Any]) -> dict[str, Path]:
    return {
        "train_file": runs.write_rows(work / "train.jsonl", train),
        "validation_file": runs.write_rows(work / "dev.jsonl", evaluation),
    }


def _bert(work: Path, **sizes: Any) -> Task:
    import sklearn.metrics
    import transformers

    train = runs.synthetic_reviews(NUM_TRAIN, 0)
    evaluation = runs.synthetic_reviews(NUM_EVAL, 1)
    folder, texts = work / "bert", [row["sentence"] for row in train]
    tokenizer = runs.save_tokenizer(folder, texts, vocab_size=200, is_bert=True)
    transformers.set_seed(0)
    config = runs.bert_config(len(tokenizer), **{**runs.NO_DROPOUT, **sizes})
    transformers.BertForSequenceClassification(config).save_pretrained(folder)

    def metrics(prediction: Any) -> dict[str, float]:
        found, labels = prediction.predictions.argmax(-1), prediction.label_ids
        return {
            "accuracy": float((found == labels).mean()),
            "f1": float(sklearn.metrics.f1_score(labels, found)),
            "matthews_correlation": float(
                sklearn.metrics.matthews_corrcoef(labels, found)
            ),
        }

    def examples(rows: list[Any]) -> list[Any]:
        names = ["negative", "positive"]
        return [
            {
                **tokenizer(
                    row["sentence"], truncation=True, max_length=runs.MAX_LENGTH
                ),
                "label": names.index(row["label"]),
            }
            for row in rows
        ]

    common = {"metric_for_best_model": "f1", "learning_rate": 3e-3}
    return Task(
        name="BERT",
        folder=folder,
        files=_files(work, train, evaluation),
        settings={**common, "max_length": runs.MAX_LENGTH},
        arguments=common,
        parts=lambda: {
            "train_dataset": examples(train),
            "eval_dataset": examples(evaluation),
            "compute_metrics": metrics,
            "processing_class": tokenizer,
        },
        auto_class="AutoModelForSequenceClassification",
    )


def _t5(work: Path) -> Task:
    import transformers

    train = runs.synthetic_summaries(NUM_TRAIN, 0)
    evaluation = runs.synthetic_summaries(NUM_EVAL, 1)
    folder, texts = work / "t5", [row["text"] for row in train]
    tokenizer = runs.save_tokenizer(folder, texts, vocab_size=200, is_bert=False)
    transformers.set_seed(0)
    config = transformers.T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=3,
    )
    module = transformers.T5ForConditionalGeneration(config)
    module.save_pretrained(folder)

    def metrics(prediction: Any) -> dict[str, float]:
        decoded = [
            tokenizer.batch_decode(
                np.where(tokens < 0, 0, tokens), skip_special_tokens=True
            )
            for tokens in (prediction.predictions, prediction.label_ids)
        ]
        return jobs.text_metrics(*[[x.strip() for x in texts] for texts in decoded])

    def examples(rows: list[Any]) -> list[Any]:
        return [
            {
                **tokenizer(row["text"], truncation=True, max_length=runs.MAX_LENGTH),
                "labels": tokenizer(
                    text_target=row["summary"],
                    truncation=True,
                    max_length=runs.MAX_TARGET_LENGTH,
                )["input_ids"],
            }
            for row in rows
        ]

    common = {
        "predict_with_generate": True,
        "metric_for_best_model": "rougeL",
        "learning_rate": 5e-3,
    }
    return Task(
        name="T5",
        folder=folder,
        files=_files(work, train, evaluation),
        settings={
            **common,
            "max_length": runs.MAX_LENGTH,
            "max_target_length": runs.MAX_TARGET_LENGTH,
        },
        arguments={
            **common,
            "generation_max_length": runs.MAX_TARGET_LENGTH,
            "generation_num_beams": 1,
        },
        parts=lambda: {
            "train_dataset": examples(train),
            "eval_dataset": examples(evaluation),
            "compute_metrics": metrics,
            "processing_class": tokenizer,
            "data_collator": transformers.DataCollatorForSeq2Seq(
                tokenizer, model=module
            ),
        },
        auto_class="AutoModelForSeq2SeqLM",
    )


def _vit(work: Path) -> Task:
    import transformers
    from transformers.image_processing_backends import PilBackend

    train, evaluation = runs.digits(NUM_TRAIN), runs.digits(NUM_EVAL, NUM_TRAIN)
    folder = work / "vit"
    transformers.set_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=8,
        patch_size=2,
        num_channels=1,
        num_labels=10,
        **runs.NO_DROPOUT,
    )
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    settings = {**_DIGIT_MEAN, "size": {"height": 8, "width": 8}, "do_resize": False}
    runs.write_rows(folder / "preprocessor_config.json", [settings])
    processor = PilBackend(**settings, do_rescale=True, do_normalize=True, resample=2)

    def examples(rows: list[Any]) -> list[Any]:
        return [
            {
                "pixel_values": processor(
                    np.asarray(row["image"], np.uint8), return_tensors="np"
                )["pixel_values"][0],
                "label": row["label"],
            }
            for row in rows
        ]

    def metrics(prediction: Any) -> dict[str, float]:
        found = prediction.predictions.argmax(-1) == prediction.label_ids
        return {"accuracy": float(found.mean())}

    common = {"metric_for_best_model": "accuracy", "learning_rate": 3e-3}
    return Task(
        name="ViT",
        folder=folder,
        files=_files(work, train, evaluation),
        settings=common,
        arguments=common,
        parts=lambda: {
            "train_dataset": examples(train),
            "eval_dataset": examples(evaluation),
            "compute_metrics": metrics,
        },
        auto_class="AutoModelForImageClassification",
    )


PARTS: dict[str, Callable[[bool], Iterator[Row]]] = {"parity": parity}


def _rows(parts: list[str], smoke: bool) -> Iterator[Row]:
    runs.quiet()
    for part in parts:
        yield from PARTS[part](smoke)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="short forms of the parts")
    parser.add_argument("--part", choices=PARTS, action="append", help="default: all")
    options = parser.parse_args()
    found = _rows(options.part or list(PARTS), options.smoke)
    sys.exit(0 if report("Labelled tasks beside Trainer", found) else 1)
