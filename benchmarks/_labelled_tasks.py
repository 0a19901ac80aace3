"""Labelled tasks that both sides run: a BERT, a T5 and a ViT, with their data.

The first three have synthetic texts or scikit-learn's digits. `reviews` and
`descriptions` have real texts, and models with their default dropout.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _labelled_runs as runs
from benchmarks._labelled_runs import Task
from jaxopt_tf import jobs

NUM_TRAIN, NUM_EVAL = 146, 45
_DIGIT_MEAN = {"image_mean": [0.5], "image_std": [0.5], "rescale_factor": 1 / 16}


def _files(work: Path, train: list[Any], evaluation: list[Any]) -> dict[str, Path]:
    return {
        "train_file": runs.write_rows(work / "train.jsonl", train),
        "validation_file": runs.write_rows(work / "dev.jsonl", evaluation),
    }


def bert(work: Path, **sizes: Any) -> Task:
    """Writes a BERT and reviews of synthetic words; returns the task."""
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

    return _classification(
        work,
        train,
        evaluation,
        tokenizer=tokenizer,
        label_of=lambda row: ["negative", "positive"].index(row["label"]),
        metrics=metrics,
        common={"metric_for_best_model": "f1", "learning_rate": 5e-4},
    )


def t5(work: Path) -> Task:
    """Writes a T5 and texts of synthetic words; returns the task."""
    return _summaries(
        work,
        runs.synthetic_summaries(NUM_TRAIN, 0),
        runs.synthetic_summaries(NUM_EVAL, 1),
        vocab_size=200,
        dropout_rate=0.0,
        common={"metric_for_best_model": "rougeL", "learning_rate": 1e-3},
    )


def descriptions(work: Path, rows: Sequence[Any]) -> Task:
    """Writes a T5 from scratch, and descriptions of packages to summarize.

    Args:
        work: folder to write to.
        rows: those to train on, and those to evaluate on.
    """
    return _summaries(
        work,
        *rows,
        vocab_size=4000,
        dropout_rate=0.1,  # the default
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_heads=4,
        common={
            "num_train_epochs": 2,
            "per_device_train_batch_size": 32,
            "per_device_eval_batch_size": 64,
            "gradient_accumulation_steps": 1,
            "learning_rate": 3e-3,
            "logging_steps": 50,
        },
    )


def _summaries(
    work: Path,
    train: list[Any],
    evaluation: list[Any],
    *,
    vocab_size: int,
    common: dict[str, Any],
    **sizes: Any,
) -> Task:
    import transformers

    folder, texts = work / "t5", [row["text"] for row in train]
    tokenizer = runs.save_tokenizer(folder, texts, vocab_size=vocab_size, is_bert=False)
    transformers.set_seed(0)
    defaults = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    config = transformers.T5Config(
        vocab_size=len(tokenizer),
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=3,
        **defaults | sizes,
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

    common = {"predict_with_generate": True, **common}
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


def vit(work: Path) -> Task:
    """Writes a ViT and images of digits; returns the task."""
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
                    np.asarray(row["image"], np.uint8)[None], return_tensors="np"
                )["pixel_values"][0],
                "label": row["label"],
            }
            for row in rows
        ]

    def metrics(prediction: Any) -> dict[str, float]:
        found = prediction.predictions.argmax(-1) == prediction.label_ids
        return {"accuracy": float(found.mean())}

    common = {"metric_for_best_model": "accuracy", "learning_rate": 5e-4}
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


def reviews(work: Path, rows: list[Any], label: str) -> Task:
    """Writes a BERT from scratch, and film reviews to classify or to rate.

    Args:
        work: folder to write to.
        rows: those to train on, and those to evaluate on.
        label: "label" for the classes, "rating" for the regression.
    """
    import scipy.stats
    import sklearn.metrics
    import transformers

    train, evaluation = rows
    is_regression = label == "rating"
    folder = work / "bert"
    tokenizer = runs.save_tokenizer(
        folder, [row["sentence"] for row in train], vocab_size=4000, is_bert=True
    )
    # Dropout is 0.1, as by default.
    config = runs.bert_config(
        len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_labels=1 if is_regression else 2,
    )
    transformers.set_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)

    def metrics(prediction: Any) -> dict[str, float]:
        labels = prediction.label_ids
        if is_regression:
            found = prediction.predictions[:, 0]
            return {"pearson": float(scipy.stats.pearsonr(found, labels)[0])}
        found = prediction.predictions.argmax(-1)
        return {
            "accuracy": float((found == labels).mean()),
            "f1": float(sklearn.metrics.f1_score(labels, found)),
        }

    def value(row: Any) -> Any:
        return row[label] if is_regression else int(row[label] == "positive")

    return _classification(
        work,
        train,
        evaluation,
        tokenizer=tokenizer,
        label_of=value,
        metrics=metrics,
        common={
            "num_train_epochs": 3,
            "per_device_train_batch_size": 32,
            "per_device_eval_batch_size": 32,
            "gradient_accumulation_steps": 1,
            "learning_rate": 5e-4,
            "logging_steps": 50,
        },
        label_column=label,
        text_column="sentence",
    )


def _classification(
    work: Path,
    train: list[Any],
    evaluation: list[Any],
    *,
    tokenizer: Any,
    label_of: Callable[[Any], Any],
    metrics: Callable[[Any], dict[str, float]],
    common: dict[str, Any],
    **settings: Any,
) -> Task:
    """Returns the task of the BERT in `work`, with reviews as Trainer reads them."""

    def examples(rows: list[Any]) -> list[Any]:
        return [
            {
                **tokenizer(
                    row["sentence"], truncation=True, max_length=runs.MAX_LENGTH
                ),
                "label": label_of(row),
            }
            for row in rows
        ]

    return Task(
        name="BERT",
        folder=work / "bert",
        files=_files(work, train, evaluation),
        settings={**common, "max_length": runs.MAX_LENGTH, **settings},
        arguments=common,
        parts=lambda: {
            "train_dataset": examples(train),
            "eval_dataset": examples(evaluation),
            "compute_metrics": metrics,
            "processing_class": tokenizer,
        },
        auto_class="AutoModelForSequenceClassification",
    )
