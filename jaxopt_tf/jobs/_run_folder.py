"""What lies in a run's folder besides checkpoints, and which of them to go on from."""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from .. import checkpoints
from .._io import done_by_first, whole_file
from ..recipes import METRIC_DRIVEN
from ._alike import versions
from ._config import DATA, changed_settings, num_sequences
from ._job import Job

CONFIG = "config.json"
METRICS = "metrics.jsonl"

# Which data come when, and which of them are dropped.
_FIXED = ("seed", "per_device_train_batch_size", "gradient_accumulation_steps")
# The rate is in the state of a schedule that a metric drives, not in the settings.
_FIXED_IF_DRIVEN = ("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs")


class Start(NamedTuple):
    """Where a run begins, or goes on."""

    checkpoint: Path | None  # to go on from; None for the first step
    num_sequences: int  # of a micro-batch, on whatever mesh


def find_start(folder: Path, job: Job, settings: Mapping[str, Any]) -> Start:
    """The checkpoint to go on from, and the batch that the run has.

    Args:
        folder: of the run.
        job: which names a checkpoint, or leaves it to what the folder holds.
        settings: the configuration and the data's fingerprint: what a checkpoint must
            have been made with, but for `intended_changes`.

    Raises:
        ValueError: if no checkpoint is good, or the run is another one: all differences
            are listed.
    """
    checkpoint = job.resume_from_checkpoint
    is_elsewhere = (
        checkpoint is not None and checkpoint.resolve().parent != folder.resolve()
    )
    if checkpoint is None or is_elsewhere:
        # A run that was taken up from elsewhere, and has come further since.
        checkpoint = checkpoints.find_intact(folder) or checkpoint
    saved = None
    if checkpoint is not None:
        saved = settings_of(checkpoint)
        _check_same_run(checkpoint, saved, settings, job.intended_changes)
    must_be_new = checkpoint is None
    if must_be_new or checkpoint == job.resume_from_checkpoint:
        config = done_by_first(
            lambda: _check_folder(folder, job, settings, must_be_new)
        )
        saved = config if saved is None else saved
    return Start(checkpoint, num_sequences(settings if saved is None else saved))


def _check_folder(
    folder: Path, job: Job, settings: Mapping[str, Any], must_be_new: bool
) -> dict[str, Any] | None:
    """The configuration of the run that the folder holds; None where it holds none.

    Raises if it is another run, of which there may be no checkpoint.
    """
    saved = None
    if (folder / CONFIG).exists():
        # Killed before it saved for the first time; or of a run whose checkpoints
        # somebody took away.
        saved = read_config(folder / CONFIG)
        now = {name: value for name, value in settings.items() if name != DATA}
        _check_same_run(folder / CONFIG, saved, now, job.intended_changes)
    elif (folder / METRICS).exists():
        raise ValueError(
            f"`output_dir` must be a run's folder or a new one, but "
            f"{str(folder / METRICS)!r} has no {CONFIG} beside it. Name another folder."
        )
    log = folder / METRICS
    if must_be_new and log.exists() and log.stat().st_size > 0:
        aside = folder / f"aside-{METRICS}"
        log.replace(aside)
        print(
            f"there is no checkpoint in {folder} to go on from: the run starts anew, "
            f"its log so far is {aside.name}"
        )
    return saved


def set_aside(folder: Path, step: int) -> None:
    """Takes the checkpoints after `step` out of the run that goes on from there.

    They are renamed, not deleted: else the next start would find them, the newest.
    """
    for path in checkpoints.find_checkpoints(folder):
        if checkpoints.step_of(path) > step:
            now = time.strftime("%Y%m%d-%H%M%S")
            aside = path.with_name(f"aside-{now}-{path.name}")
            path.rename(aside)
            print(f"{path.name} is after step {step}: it is now {aside.name}.")


def bring_log(folder: Path, checkpoint: Path) -> None:
    """Copies the log of the run that a checkpoint elsewhere comes from."""
    log = checkpoint.absolute().parent / METRICS
    if log.exists() and log.parent != folder.absolute():
        with whole_file(folder / METRICS) as temporary:
            shutil.copyfile(log, temporary)


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Writes the resolved configuration, for people and for `--config`."""
    with whole_file(folder / CONFIG) as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_start(folder: Path, step: int, command_line: Sequence[str]) -> None:
    """Adds a line to starts.jsonl: when, how, with what, and from which step."""
    start = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "step": step,
        "command_line": list(command_line),
        "devices": [device.device_kind for device in jax.devices()],
        "num_processes": jax.process_count(),
        "versions": versions(),
    }
    with (folder / "starts.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(start) + "\n")


def _check_same_run(
    where: Path,
    saved: Mapping[str, Any],
    now: Mapping[str, Any],
    intended: Sequence[str],
) -> None:
    different = changed_settings(saved, now)
    is_driven = saved.get("lr_scheduler_type") in METRIC_DRIVEN
    fixed = [*_FIXED, *(_FIXED_IF_DRIVEN if is_driven else ())]
    impossible = [line for name, line in different.items() if name in fixed]
    if impossible and all(name in intended for name in different):
        raise ValueError(
            "`intended_changes` must be of settings that a run can change, but these "
            "are in what it has come to, its place in the data or its rate:\n  "
            + "\n  ".join(impossible)
            + "\nKeep them, or start another run."
        )
    found = {name: line for name, line in different.items() if name not in intended}
    if found:
        raise ValueError(
            f"`output_dir` must hold the run that is asked for, but {str(where)!r} was "
            "made with other numbers:\n  "
            + "\n  ".join(found.values())
            + "\nName another folder, or, if the run shall go on with the new ones: "
            f"--intended_changes {' '.join(found)}"
        )


def settings_of(checkpoint: Path) -> dict[str, Any]:
    """The settings that a checkpoint was made with, its data's fingerprint included."""
    settings = checkpoints.read_notes(checkpoint).get("settings")
    if not isinstance(settings, dict):
        raise ValueError(
            "`resume_from_checkpoint` must be a checkpoint of `jaxopt-tf train`, but "
            f"{str(checkpoint)!r} has no settings in it. Name another, or another "
            "folder for the run."
        )
    return settings


def read_config(path: Path) -> dict[str, Any]:
    """Reads what `write_config` wrote.

    Raises:
        ValueError: if that cannot be read.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return dict(config)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"`output_dir` must hold a readable {CONFIG}, but {str(path)!r} is not: "
            f"{error}. Delete it if the run shall start anew, or name another folder."
        ) from error
