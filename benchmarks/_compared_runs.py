"""Runs of Trainer and of this package that are compared, and their checkpoints."""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxopt_tf import interop


class Ended(NamedTuple):
    """Result of a run of Trainer."""

    losses: dict[int, float]  # by step
    decayed: set[str]  # names of the parameters with weight decay


def arguments_of(
    folder: Path,
    *,
    max_steps: int,
    num_rows: int,
    save_steps: int,
    learning_rate: float = 1e-3,
    **others: Any,
) -> Any:
    """Returns the arguments of a run of Trainer on rows in their order, on a CPU.

    Args:
        folder: its `output_dir`.
        max_steps: number of steps.
        num_rows: number of rows of a micro-batch.
        save_steps: interval of its checkpoints.
        learning_rate: highest rate.
        others: further arguments.
    """
    import transformers

    return transformers.TrainingArguments(
        output_dir=str(folder),
        learning_rate=learning_rate,
        weight_decay=0.1,
        max_grad_norm=1.0,
        max_steps=max_steps,
        per_device_train_batch_size=num_rows,
        train_sampling_strategy="sequential",
        save_steps=save_steps,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **others,
    )


def trained(trainer: Any, resume_from: Path | None) -> Ended:
    """Runs a Trainer, from a checkpoint if one is given, and returns its result."""
    import transformers

    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train(resume_from_checkpoint=resume_from and str(resume_from))
    history = trainer.state.log_history
    losses = {entry["step"]: entry["loss"] for entry in history if "loss" in entry}
    # Without the second name of a tied parameter, which no optimizer receives.
    names = {name for name, _ in trainer.model.named_parameters()}
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    return Ended(losses, names & decayed)


def our_losses(folder: Path) -> dict[int, float]:
    """Returns the losses by step in the log of a run."""
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {record["step"]: record["loss"] for record in records if "loss" in record}


def losses_and_evaluations(
    log: Iterable[Mapping[str, Any]],
) -> tuple[dict[int, float], dict[int, dict[str, float]]]:
    """Returns the losses and the metrics of evaluations in a log, by step.

    Args:
        log: `log_history` of Trainer, or the records in metrics.jsonl.
    """
    records = list(log)
    losses = {record["step"]: record["loss"] for record in records if "loss" in record}
    evaluations = {
        record["step"]: {
            name.removeprefix("eval_"): value for name, value in record.items()
        }
        for record in records
        if "eval_loss" in record and record["step"] > 0
    }
    return losses, evaluations


def our_log(folder: Path) -> tuple[list[dict[str, Any]], int | None]:
    """Returns the log of a run of this package, and the step of its best evaluation."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    state = json.loads((folder / "trainer_state.json").read_text())
    return [json.loads(line) for line in lines], state["best_global_step"]


def difference(
    ours: Mapping[int, float], theirs: Mapping[int, float], after: int
) -> float:
    """Returns the largest relative difference of the losses of all later steps.

    Raises:
        KeyError: if a run has no loss of a step.
    """
    steps = range(after + 1, max(theirs) + 1)
    return relative_difference(ours, {n: theirs[n] for n in steps})


def relative_difference(
    ours: Mapping[int, float], theirs: Mapping[int, float], after: int = 0
) -> float:
    """Returns the largest relative difference of the numbers of all later steps.

    Args:
        ours: numbers by step.
        theirs: the same of Trainer, which determines the steps.
        after: last step that is not compared.
    """
    steps = [step for step in theirs if step > after]
    return max(abs(ours[n] - theirs[n]) / abs(theirs[n]) for n in steps)


def optimizer_arrays(checkpoint: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the moments, counters and numbers of groups in a checkpoint of Trainer."""
    saved = interop.load_torch(checkpoint / "optimizer.pt")
    for index, entry in saved["state"].items():
        # bitsandbytes has its arrays in an inner dict.
        inner = [value for value in entry.values() if isinstance(value, dict)]
        for name, value in itertools.chain(*(node.items() for node in (entry, *inner))):
            # `RMS` of Adafactor is that of the parameter before or after the update.
            if name == "RMS" or value is None or isinstance(value, dict):
                continue
            if not hasattr(value, "codes"):
                yield f"{index}.{name}", np.asarray(value)
                continue
            for part in ("codes", "scale", "qmap"):  # of a tensor of torchao
                yield f"{index}.{name}.{part}", np.asarray(getattr(value, part))
    for index, group in enumerate(saved["param_groups"]):
        for name, value in group.items():
            if name not in ("params", "param_names") and value is not None:
                yield f"group {index}.{name}", np.asarray(value)


def schedule_array(checkpoint: Path) -> np.ndarray:
    """Returns the step and the rates of the schedule in a checkpoint of Trainer."""
    schedule = interop.load_torch(checkpoint / "scheduler.pt")
    return np.asarray([schedule["last_epoch"], *schedule["_last_lr"]])


def carried(state: Any, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Returns the leaves of a state that the next step reads, by path.

    The others are reports on the last step, which torch does not store.

    Args:
        state: any tree.
        without: ends of the paths of further leaves that are left out.
    """
    reports = (".grad_norm", ".factor", ".learning_rate", *without)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    named = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    return {name: named[name] for name in named if not name.endswith(reports)}


def num_differing(ours: Mapping[Any, Any], theirs: Mapping[Any, Any]) -> int:
    """Returns the number of elements that are missing or differ in a bit."""
    if ours.keys() != theirs.keys():
        return len(ours.keys() ^ theirs.keys())

    def in_bytes(array: Any) -> np.ndarray:
        array = np.asarray(array)
        return np.frombuffer(array.tobytes(), np.uint8).reshape(-1, array.itemsize)

    pairs = [(in_bytes(ours[key]), in_bytes(theirs[key])) for key in ours]
    return sum(int(np.sum(np.any(a != b, axis=1))) for a, b in pairs)
