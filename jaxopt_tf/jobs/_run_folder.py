"""Run folders: lock, start of the run, records.

runs/books/settings.json    settings of the run, as `--config` reads them
           starts.jsonl     one line for each start: time, command line, versions,
                            seconds to the first step
           metrics.jsonl    one line for each step and each evaluation
           checkpoint-400/  settings, arrays and progress at that step
           config.json, model.safetensors, tokenizer.json: the model as Transformers
                            reads it, written at the end
"""

import contextlib
import datetime
import functools
import importlib.metadata
import json
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from .. import _io, checkpoints
from ..data import Corpus
from ..recipes import METRIC_DRIVEN
from ._base_weights import with_base
from ._config import (
    DATA,
    DATA_SIZE,
    SEQUENCES,
    RunConfig,
    changed_settings,
    num_sequences,
    own_settings,
)
from ._example_job import ExampleConfig
from ._job import Job, mesh_axes
from ._run_data import read_corpus

SETTINGS = "settings.json"
_FORMER_SETTINGS = "config.json"  # name in folders of earlier versions
METRICS = "metrics.jsonl"
_STARTS = "starts.jsonl"

# The batches depend on these settings. After a change, the step of the checkpoint would
# no longer be the position in the data.
_UNCHANGEABLE = ("seed", "per_device_train_batch_size", "gradient_accumulation_steps")
# The learning rate of a metric-driven schedule is part of its state: the checkpoint
# would override a change of these settings.
_UNCHANGEABLE_IF_DRIVEN = ("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs")

_PACKAGES = ("jaxopt_tf", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")


@dataclass(frozen=True, kw_only=True)
class OpenRun:
    """Run whose folder is locked, and the checkpoint that it resumes from.

    Attributes:
        lock: lock of the folder, for `open_checkpoints`.
        corpus: tokens to train and evaluate on.
        settings: settings of the run and its data, for its checkpoints.
        checkpoint: checkpoint to resume from; None to start at the first step.
        is_finished: True if the run in the folder has trained for `max_steps`, or was
            ended by `early_stopping_patience`.
    """

    lock: checkpoints.FolderLock
    corpus: Any  # a `Corpus`, or another record with `fingerprint` and `size`
    settings: Mapping[str, Any]
    checkpoint: Path | None
    is_finished: bool

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.lock.folder

    @property
    def log(self) -> Path:
        """The log of losses and norms, metrics.jsonl."""
        return self.folder / METRICS

    @property
    def has_final_model(self) -> bool:
        """True if the folder has the last file that a run writes.

        This file is config.json, or adapter_config.json of a LoRA run. In folders of
        earlier versions, config.json contains the settings of the run.
        """
        name = _FORMER_SETTINGS
        if self.settings["lora_r"] is not None:
            name = "adapter_config.json"
        return (self.folder / name).exists()

    @property
    def num_sequences(self) -> int:
        """Number of sequences in a micro-batch, summed over all devices."""
        return self.settings[SEQUENCES]

    @property
    def step(self) -> int:
        """Step of the checkpoint that the run resumes from; 0 without one."""
        return 0 if self.checkpoint is None else checkpoints.step_of(self.checkpoint)

    def record_start(self, command_line: Sequence[str]) -> None:
        """Prepares the folder for new steps, and records the start in starts.jsonl.

        Args:
            command_line: command line of this start.
        """
        # Later checkpoints are renamed before settings.json is rewritten. In the
        # other order, an interruption could leave checkpoints with other settings,
        # from which the next start would refuse to resume.
        if self.checkpoint is not None:
            _archive_later_checkpoints(self.folder, self.step)
            _copy_log(self.checkpoint, self.folder)
        write_settings(self.folder, own_settings(self.settings))
        start = {
            "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "step": self.step,
            "command_line": list(command_line),
            "devices": [device.device_kind for device in jax.devices()],
            "num_processes": jax.process_count(),
            SEQUENCES: self.num_sequences,
            "versions": _versions(),
        }
        with (self.folder / _STARTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(start) + "\n")

    def record_first_step(self, seconds: float) -> None:
        """Adds `seconds_to_first_step` to the line of this start in starts.jsonl.

        A start that ended before its first step has a line without it.
        """
        path = self.folder / _STARTS
        *earlier, last = path.read_text(encoding="utf-8").splitlines()
        start = json.loads(last) | {"seconds_to_first_step": seconds}
        with _io.atomic_write(path) as temporary:
            lines = "".join(f"{line}\n" for line in [*earlier, json.dumps(start)])
            temporary.write_text(lines, encoding="utf-8")


@contextlib.contextmanager
def open_run(
    config: RunConfig | ExampleConfig,
    read: Callable[[Path], Any] | None = None,
) -> Iterator[OpenRun]:
    """Locks the run's folder, reads the data and finds the checkpoint to resume from.

    If the folder contains a run, its newest valid checkpoint is used, provided that the
    settings and the data are equal. No file of the run is changed. All processes must
    call this function.

    Args:
        config: all settings of the run.
        read: function that reads the data, given the folder; None for the corpus of the
            configuration.

    Raises:
        ValueError: if processes have different settings, the folder is in use or
            contains another run, no checkpoint in it is valid, or the data cannot be
            read. The message lists all changed settings.
    """
    job, settings = config.job, config.to_dict()
    # All processes must name the same new folder; their clocks may differ.
    timestamp = _io.broadcast_from_process_0(
        f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}"
    )
    check_equal_settings(settings)
    with checkpoints.lock_folder(job.output_dir or Path("runs", timestamp)) as lock:
        if read is None:
            assert isinstance(config, RunConfig)
            read = functools.partial(read_equal_corpus, config)
        corpus = read(lock.folder)
        settings |= {DATA: corpus.fingerprint, DATA_SIZE: corpus.size}
        settings |= with_base(job)
        # With several processes, the default mesh has all devices: `mesh_axes`.
        settings[SEQUENCES] = num_sequences(settings | {"mesh": mesh_axes(job)})
        checkpoint, saved = _find_start(lock.folder, job, settings)
        settings[SEQUENCES] = num_sequences(saved)
        yield OpenRun(
            lock=lock,
            corpus=corpus,
            settings=settings,
            checkpoint=checkpoint,
            is_finished=is_finished(checkpoint, config),
        )


def check_equal_settings(settings: Mapping[str, Any]) -> None:
    """Raises in all processes unless all have equal settings and versions.

    Processes with different settings could compile different programs, whose
    collectives would wait for each other forever.
    """
    # The paths of the text may differ between machines; its content is compared later.
    local = (
        *("text", "train_file", "validation_file", "test_file", "tokenizer"),
        "chat_template",
    )
    shared = {name: value for name, value in settings.items() if name not in local}
    _io.check_equal_across_processes(shared | _versions())


def read_equal_corpus(config: RunConfig, folder: Path) -> Corpus:
    """Reads the data of a run in all processes, and raises unless they are equal."""
    # With a tokenizer, process 0 writes the tokens first; the others then read them.
    corpus: list[Corpus] = []
    read_own = functools.partial(read_corpus, config.job, config.model, folder)
    _io.run_on_process_0(lambda: corpus.append(read_own()))
    found = corpus[0] if corpus else read_own()
    _io.check_equal_across_processes({DATA: found.fingerprint})
    return found


def _find_start(
    folder: Path, job: Job, settings: Mapping[str, Any]
) -> tuple[Path | None, Mapping[str, Any]]:
    """Returns the checkpoint to resume from, if any, and the settings of the run."""
    named = checkpoint = job.resume_from_checkpoint
    if named is None or named.resolve().parent != folder.resolve():
        # A run that started from a checkpoint of another folder resumes from its own
        # checkpoints as soon as it has saved one.
        checkpoint = checkpoints.latest_valid(folder) or named
    saved = None
    if checkpoint is not None:
        saved = settings_of(checkpoint)
        _check_same_run(checkpoint, saved, settings, job.intended_changes)
    # The checkpoint, if any, may be of another folder: what this folder contains is
    # checked as well.
    if checkpoint is None or checkpoint == named:
        is_new = checkpoint is None
        config = _io.run_on_process_0(
            lambda: _check_folder(folder, job, settings, is_new)
        )
        saved = saved or config
    return checkpoint, saved or settings


def _check_folder(
    folder: Path, job: Job, settings: Mapping[str, Any], is_new: bool
) -> dict[str, Any] | None:
    """Returns the settings in the folder; None if there is no run.

    A run without a checkpoint was killed before its first one, or its checkpoints were
    deleted.

    Raises:
        ValueError: if the folder contains another run.
    """
    saved, log = None, folder / METRICS
    path = settings_path(folder)
    if path.exists():
        saved = read_settings(path)
        requested = own_settings(settings)
        _check_same_run(path, saved, requested, job.intended_changes)
        saved |= sequences_of_last_start(folder)
    elif log.exists():
        raise ValueError(
            f"`output_dir` must be a run's folder or a new one, but {str(log)!r} has "
            f"no {SETTINGS} beside it. Pass another folder."
        )
    if is_new and log.exists() and log.stat().st_size > 0:
        archived = folder / f"aside-{METRICS}"
        log.replace(archived)
        print(
            f"{folder} contains no checkpoint: the run starts at its first step; its "
            f"previous log was renamed {archived.name}"
        )
    return saved


def sequences_of_last_start(folder: Path) -> dict[str, int]:
    """Reads the number of sequences in a micro-batch from starts.jsonl.

    settings.json does not contain it for a run of several processes without `mesh`.
    """
    try:
        *_, last = (folder / _STARTS).read_text(encoding="utf-8").splitlines()
        return {SEQUENCES: json.loads(last)[SEQUENCES]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # written by an older version, whose settings have the mesh


def _check_same_run(
    path: Path,
    saved: Mapping[str, Any],
    current: Mapping[str, Any],
    intended: Sequence[str],
) -> None:
    changes = changed_settings(saved, current)
    fixed: tuple[str, ...] = _UNCHANGEABLE
    if saved.get("lr_scheduler_type") in METRIC_DRIVEN:
        fixed += _UNCHANGEABLE_IF_DRIVEN
    impossible = [line for name, line in changes.items() if name in fixed]
    if impossible and all(name in intended for name in changes):
        raise ValueError(
            "`intended_changes` must be settings that can change in a run, but these "
            "determine its state, the order of its data or its learning rate:\n  "
            + "\n  ".join(impossible)
            + "\nKeep them, or start another run."
        )
    found = {name: line for name, line in changes.items() if name not in intended}
    if found:
        raise ValueError(
            f"`output_dir` must contain a run with equal settings, but {str(path)!r} "
            "was written with other settings:\n  "
            + "\n  ".join(found.values())
            + "\nPass another folder, or, to continue the run with the new settings, "
            "add " + _how_to_change(current, list(found))
        )


def _how_to_change(current: Mapping[str, Any], names: list[str]) -> str:
    # A run of `train` has no command line.
    if "model_class" in current and current.get("task") is None:
        return f"`intended_changes={names}`"
    return f"--intended_changes {' '.join(names)}"


def is_finished(checkpoint: Path | None, config: RunConfig | ExampleConfig) -> bool:
    """Returns True if a run has no steps left after a checkpoint of its folder."""
    if checkpoint is None or checkpoint == config.job.resume_from_checkpoint:
        return False
    if checkpoints.step_of(checkpoint) >= config.recipe.max_steps:
        return True
    patience = config.job.early_stopping_patience
    progress = checkpoints.read_metadata(checkpoint).get("progress", {})
    return patience is not None and progress.get("num_worse_in_a_row", 0) >= patience


def _archive_later_checkpoints(folder: Path, step: int) -> None:
    # Checkpoints after the step are renamed: under their names the next start would
    # resume from them. They are not deleted, because the user may want them back.
    for path in checkpoints.find_checkpoints(folder):
        if checkpoints.step_of(path) > step:
            timestamp = time.strftime("%Y%m%d-%H%M%S")
            archived = path.with_name(f"aside-{timestamp}-{path.name}")
            path.rename(archived)
            print(f"{path.name} is after step {step}; it was renamed {archived.name}.")


def _copy_log(checkpoint: Path, folder: Path) -> None:
    """Copies the log next to a checkpoint of another folder to this folder."""
    log = checkpoint.absolute().parent / METRICS
    if log.exists() and log.parent != folder.absolute():
        with _io.atomic_write(folder / METRICS) as temporary:
            shutil.copyfile(log, temporary)


def settings_path(folder: Path) -> Path:
    """Returns the path of the settings in the folder of a run or a sweep.

    Earlier versions wrote the settings to config.json. Now config.json is the
    configuration of a model of Transformers, which has no `max_steps`.
    """
    path, former = folder / SETTINGS, folder / _FORMER_SETTINGS
    if path.exists() or not former.exists():
        return path
    return former if "max_steps" in read_settings(former) else path


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Writes the settings to settings.json, which `--config` reads."""
    with _io.atomic_write(folder / SETTINGS) as temporary:
        temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def read_settings(path: Path) -> dict[str, Any]:
    """Reads the settings in a settings.json, for `RunConfig.from_dict`.

    Raises:
        ValueError: if the file cannot be read.
    """
    remedy = "Delete it to start the run again, or pass another folder."
    return _io.read_json_object(path, "output_dir", remedy)


def settings_of(checkpoint: Path) -> dict[str, Any]:
    """Reads the settings of the run and of its data from a checkpoint."""
    settings = checkpoints.read_metadata(checkpoint).get("settings")
    if not isinstance(settings, dict):
        raise ValueError(
            "`resume_from_checkpoint` must be a checkpoint of `jaxopt-tf train`, but "
            f"{str(checkpoint)!r} contains no settings. Pass another checkpoint, or "
            "another folder for the run."
        )
    return settings


def _versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that affect the numbers."""
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version()} | packages
