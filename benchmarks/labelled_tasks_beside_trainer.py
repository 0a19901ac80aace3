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
- `descriptions`: a T5 from scratch on 3,000 descriptions of packages, beside five seeds
  of Trainer. It reads package_descriptions_train.jsonl and _dev.jsonl.

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
from benchmarks import _labelled_tasks as tasks
from benchmarks import _processes
from benchmarks._compared_runs import relative_difference
from benchmarks._labelled_runs import Ended, Task
from benchmarks._report import Row, report
from jaxopt_tf import jobs

LIMIT = 1e-5
DATA = Path("../shared/data")


def parity(smoke: bool) -> Iterator[Row]:
    """Yields the differences of losses, metrics and best steps of three models."""
    builders = (tasks.bert,) if smoke else (tasks.bert, tasks.t5, tasks.vit)
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
        task = tasks.bert(work)
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
                # In one process, other devices are used only by a mesh.
                *("--mesh", f"data={num * per_process}"),
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
    rows = _rows_of("movie_reviews", 200 if smoke else None)
    for label, names in (("label", ("accuracy", "f1")), ("rating", ("pearson",))):
        with tempfile.TemporaryDirectory() as folder:
            task = tasks.reviews(Path(folder), rows, label)
            yield from _within_spread("film reviews", task, folder, names, smoke)


def descriptions(smoke: bool) -> Iterator[Row]:
    """Yields loss and ROUGE-L on descriptions beside Trainer's over five seeds."""
    train, evaluation = _rows_of("package_descriptions", 200 if smoke else 3000)
    rows = train, evaluation[:400]
    with tempfile.TemporaryDirectory() as folder:
        task = tasks.descriptions(Path(folder), rows)
        names = ("loss", "rougeL")
        yield from _within_spread("package descriptions", task, folder, names, smoke)


def _rows_of(name: str, num: int | None) -> list[Any]:
    return [
        runs.rows_of(DATA / f"{name}_{part}.jsonl", num) for part in ("train", "dev")
    ]


def _within_spread(
    title: str, task: Task, folder: str, names: tuple[str, ...], smoke: bool
) -> Iterator[Row]:
    """Yields the distance of each metric from Trainer's mean over five seeds."""
    jax.config.update("jax_compilation_cache_dir", f"{folder}/cache")
    found: dict[str, list[Ended]] = {"ours": [], "theirs": []}
    for seed in range(2 if smoke else 5):
        for name, run in (("ours", runs.here), ("theirs", runs.by_trainer)):
            found[name].append(run(task, Path(folder, f"{name}-{seed}"), seed=seed))
    for metric in names:
        last = {
            side: np.array([x.evaluations[max(x.evaluations)][metric] for x in ended])
            for side, ended in found.items()
        }
        theirs, ours = last["theirs"], last["ours"]
        # Half of the range of Trainer's own seeds.
        spread = float(np.ptp(theirs)) / 2
        yield Row(
            claim=f"{title}: {metric}, mean over {len(ours)} seeds, distance from "
            "Trainer's mean; limit: half of the range of Trainer's seeds",
            value=abs(float(ours.mean() - theirs.mean())),
            unit="",
            limit=spread,
            detail=f"ours {ours.mean():.4f} ({ours.min():.4f} to {ours.max():.4f}), "
            f"theirs {theirs.mean():.4f} ({theirs.min():.4f} to {theirs.max():.4f})",
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
            task = tasks.bert(work / f"{rate}", classifier_dropout=rate, **sizes)
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
    "descriptions": descriptions,
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
    parser.add_argument(
        "--data", type=Path, default=DATA, help="folder of the real texts"
    )
    options = parser.parse_args()
    DATA = options.data
    found = _rows(
        options.part or list(SMOKE if options.smoke else PARTS), options.smoke
    )
    sys.exit(0 if report("Labelled tasks beside Trainer", found) else 1)
