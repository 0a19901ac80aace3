"""Labelled tasks of Transformers' examples beside the real Trainer.

    python -m benchmarks.labelled_tasks_beside_trainer            # all parts
    python -m benchmarks.labelled_tasks_beside_trainer --smoke    # a BERT, 2 epochs
    python -m benchmarks.labelled_tasks_beside_trainer --part reviews --data FOLDER

Parts:

- `parity`: a BERT, a T5 and a ViT for 200 steps, with exchanged checkpoints.
- `shapes`: compilations and padding with texts of 4 to 512 tokens.
- `devices`: metrics on 1, 2 and 8 devices, and in 2 processes.
- `dropout`: a permutation test of evaluation losses over 20 seeds.
- `reviews`: a BERT from scratch on film reviews, beside five seeds of Trainer. It reads
  movie_reviews_train.jsonl and movie_reviews_dev.jsonl in the folder of `--data`.

Runs that are killed are part of `survives_being_killed`.
"""

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np

from benchmarks import _labelled_runs as runs
from benchmarks import _processes
from benchmarks._compared_runs import relative_difference
from benchmarks._labelled_runs import Ended, Task
from benchmarks._report import Row, report
from jaxopt_tf import jobs

LIMIT = 1e-5
NUM_TRAIN, NUM_EVAL = 146, 45
DATA = Path("../shared/data")
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
        value=relative_difference(ours.losses, theirs.losses),
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
        value=relative_difference(*losses),
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
        value=relative_difference(continued.losses, theirs.losses, half),
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
        value=relative_difference(continued.losses, theirs.losses, half),
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

    common = {"metric_for_best_model": "f1", "learning_rate": 5e-4}
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
        "learning_rate": 1e-3,
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


# Other parts


def shapes(smoke: bool) -> Iterator[Row]:
    """Yields compilations and padding of a run with texts of 4 to 512 tokens."""
    rng = np.random.default_rng(0)
    length, num = (64, 60) if smoke else (512, 600)
    words = ["good", "bad"]
    rows = []
    for number in rng.integers(2, length - 1, num):
        label = int(rng.integers(2))
        text = " ".join([words[label], *["film"] * (int(number) - 1)])
        rows.append({"sentence": text, "label": label})
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        texts = [" ".join([*words, "film"])]
        tokenizer = runs.save_tokenizer(
            work / "bert", texts, vocab_size=40, is_bert=True
        )
        import transformers

        config = runs.bert_config(
            len(tokenizer), max_position_embeddings=length, num_hidden_layers=1
        )
        module = transformers.BertForSequenceClassification(config)
        module.save_pretrained(work / "bert")
        with _shapes_of_steps() as seen:
            jobs.train_labelled(
                {
                    "model_name_or_path": work / "bert",
                    "train_file": (runs.write_rows(work / "train.jsonl", rows),),
                    "output_dir": work / "run",
                    "report_to": "none",
                    "num_train_epochs": 2,
                    "per_device_train_batch_size": 8,
                    "group_by_length": True,
                }
            )
        lengths = [len(x["input_ids"]) for x in map(tokenizer, _sentences(rows))]
    num_tokens = sum(rows * width for rows, width in seen)
    yield Row(
        claim=f"{num} texts of {min(lengths)} to {max(lengths)} tokens: programs of "
        "the training step",
        value=len(set(seen)),
        unit="compilations",
        limit=6,
        detail=", ".join(f"{a} x {b}" for a, b in sorted(set(seen))),
    )
    yield Row(
        claim="padding of the same run, grouped by length",
        value=1 - 2 * sum(lengths) / num_tokens,
        unit="of all tokens",
        limit=0.15,
    )


def _sentences(rows: list[Any]) -> list[str]:
    return [row["sentence"] for row in rows]


@contextlib.contextmanager
def _shapes_of_steps() -> Iterator[list[tuple[int, int]]]:
    """Collects the number of rows and tokens of each batch of a training step."""
    from jaxopt_tf.jobs import _example_data

    seen: list[tuple[int, int]] = []
    step_batches = _example_data.DeviceBatches.step_batches

    class Noted(NamedTuple):
        batches: Any

        def iter_from(self, start: int) -> Iterator[Any]:
            for micro in self.batches.iter_from(start):
                seen.extend(one["input_ids"].shape for one in micro)
                yield micro

    def noting(self: Any, batches: Any, start: int) -> Iterator[Any]:
        return step_batches(self, Noted(batches), start)

    with mock.patch.object(_example_data.DeviceBatches, "step_batches", noting):
        yield seen


def devices(smoke: bool) -> Iterator[Row]:
    """Yields differences of the printed metrics on several devices and processes."""
    starts = [(1, 1), (1, 2)] if smoke else [(1, 1), (1, 2), (1, 8), (2, 1), (2, 4)]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        task = _bert(work)
        found = {}
        for num, per_process in starts:
            where = work / f"run-{num}-{per_process}"
            flags = [
                *("--model_name_or_path", str(task.folder)),
                *("--train_file", str(task.files["train_file"])),
                *("--validation_file", str(task.files["validation_file"])),
                *("--output_dir", str(where), "--num_train_epochs", "3"),
                *("--learning_rate", "3e-3", "--report_to", "none"),
                *("--per_device_train_batch_size", str(8 // (num * per_process))),
            ]
            _processes.run(flags, num=num, devices=per_process)
            found[num, per_process] = _printed_metrics(where)
        alone = found.pop((1, 1))
        for (num, per_process), metrics in found.items():
            yield Row(
                claim=f"BERT on {num} x {per_process} devices: metrics after 3 epochs "
                "whose 4 printed decimals differ from those on one device",
                value=sum(alone[name] != metrics.get(name) for name in alone),
                unit=f"of {len(alone)}",
                limit=0,
            )


def _printed_metrics(folder: Path) -> dict[str, str]:
    """Returns the metrics of all evaluations, as they are printed."""
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {
        f"{record['step']} {name}": f"{value:.4f}"
        for record in records
        for name, value in record.items()
        if name.startswith("eval_")
    }


def reviews(smoke: bool) -> Iterator[Row]:
    """Yields metrics on film reviews beside those of Trainer over five seeds."""
    seeds = range(2 if smoke else 5)
    num = 200 if smoke else None
    rows = [
        runs.rows_of(DATA / f"movie_reviews_{part}.jsonl", num)
        for part in ("train", "dev")
    ]
    for label, names in (("label", ("accuracy", "f1")), ("rating", ("pearson",))):
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            jax.config.update("jax_compilation_cache_dir", f"{folder}/cache")
            task = _reviews_task(work, rows, label)
            found: dict[str, list[Ended]] = {"ours": [], "theirs": []}
            for seed in seeds:
                for name, run in (("ours", runs.here), ("theirs", runs.by_trainer)):
                    found[name].append(run(task, work / f"{name}-{seed}", seed=seed))
            yield from _within_spread(found, names)


def _within_spread(found: dict[str, list[Ended]], names: Any) -> Iterator[Row]:
    for metric in names:
        last = {
            side: np.array([x.evaluations[max(x.evaluations)][metric] for x in ended])
            for side, ended in found.items()
        }
        theirs, ours = last["theirs"], last["ours"]
        # Half of the range of Trainer's own seeds.
        spread = float(np.ptp(theirs)) / 2
        yield Row(
            claim=f"film reviews: {metric}, mean over {len(ours)} seeds, distance "
            "from Trainer's mean; limit: half of the range of Trainer's seeds",
            value=abs(float(ours.mean() - theirs.mean())),
            unit="",
            limit=spread,
            detail=f"ours {ours.mean():.4f} ({ours.min():.4f} to {ours.max():.4f}), "
            f"theirs {theirs.mean():.4f} ({theirs.min():.4f} to {theirs.max():.4f})",
        )


def _reviews_task(work: Path, rows: list[Any], label: str) -> Task:
    import scipy.stats
    import sklearn.metrics
    import transformers

    train, evaluation = rows
    is_regression = label == "rating"
    folder = work / "bert"
    tokenizer = runs.save_tokenizer(
        folder, _sentences(train), vocab_size=4000, is_bert=True
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

    def examples(rows: list[Any]) -> list[Any]:
        return [
            {
                **tokenizer(
                    row["sentence"], truncation=True, max_length=runs.MAX_LENGTH
                ),
                "label": value(row),
            }
            for row in rows
        ]

    common = {
        "num_train_epochs": 3,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 32,
        "gradient_accumulation_steps": 1,
        "learning_rate": 5e-4,
        "logging_steps": 50,
    }
    return Task(
        name="BERT",
        folder=folder,
        files=_files(work, train, evaluation),
        settings={
            **common,
            "max_length": runs.MAX_LENGTH,
            "label_column": label,
            "text_column": "sentence",
        },
        arguments=common,
        parts=lambda: {
            "train_dataset": examples(train),
            "eval_dataset": examples(evaluation),
            "compute_metrics": metrics,
            "processing_class": tokenizer,
        },
        auto_class="AutoModelForSequenceClassification",
    )


def dropout(smoke: bool) -> Iterator[Row]:
    """Yields p-values of a permutation test of evaluation losses, over seeds."""
    seeds = range(3 if smoke else 20)
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        jax.config.update("jax_compilation_cache_dir", f"{folder}/cache")
        for rate in (0.1, 0.0):
            sizes = dict.fromkeys(runs.NO_DROPOUT, rate)
            (work / f"{rate}").mkdir()
            task = _bert(work / f"{rate}", classifier_dropout=rate, **sizes)
            sides = {"ours": runs.here, "theirs": runs.by_trainer}
            for name in sides if rate else ("ours",):
                for seed in seeds:
                    where = work / f"{name}-{rate}-{seed}"
                    ended = sides[name](task, where, seed=seed, num_train_epochs=6)
                    last = ended.evaluations[max(ended.evaluations)]
                    found.setdefault(f"{name} {rate}", []).append(last["loss"])
                    shutil.rmtree(where)
    ours, theirs, without = (
        np.array(found[name]) for name in ("ours 0.1", "theirs 0.1", "ours 0.0")
    )
    detail = f"mean {ours.mean():.4f} (ours), {theirs.mean():.4f} (Trainer's), "
    detail += f"{without.mean():.4f} without dropout; {len(ours)} seeds each"
    yield Row(
        claim="p-value of equal evaluation losses, dropout 0.1 here and in Trainer",
        value=_p_value(ours, theirs),
        unit="",
        limit=0.05,
        at_least=True,
        detail=detail,
    )
    yield Row(
        claim="p-value of equal evaluation losses, dropout 0.1 and 0 here",
        value=_p_value(ours, without),
        unit="",
        limit=1.0 if smoke else 0.01,
    )


def _p_value(a: np.ndarray, b: np.ndarray, num: int = 20_000) -> float:
    """Returns the p-value of equal means, by random permutations of the groups."""
    rng, both = np.random.default_rng(0), np.concatenate([a, b])
    distance = abs(a.mean() - b.mean())
    order = np.argsort(rng.random((num, len(both))), axis=1)
    mixed = both[order]
    means = mixed[:, : len(a)].mean(axis=1) - mixed[:, len(a) :].mean(axis=1)
    return float((1 + np.sum(np.abs(means) >= distance)) / (num + 1))


PARTS: dict[str, Callable[[bool], Iterator[Row]]] = {
    "parity": parity,
    "shapes": shapes,
    "devices": devices,
    "dropout": dropout,
    "reviews": reviews,
}
# What `--smoke` runs, without data that are not part of the project.
SMOKE = ("parity", "shapes")


def _rows(parts: list[str], smoke: bool) -> Iterator[Row]:
    runs.quiet()
    for part in parts:
        yield from PARTS[part](smoke)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="short forms of the parts")
    parser.add_argument("--part", choices=PARTS, action="append", help="default: all")
    parser.add_argument("--data", type=Path, default=DATA, help="of `reviews`")
    options = parser.parse_args()
    DATA = options.data
    found = _rows(
        options.part or list(SMOKE if options.smoke else PARTS), options.smoke
    )
    sys.exit(0 if report("Labelled tasks beside Trainer", found) else 1)
