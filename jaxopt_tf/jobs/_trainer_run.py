"""Continuation of Trainer's checkpoints by `train`, and export of its runs."""

import dataclasses
from pathlib import Path
from typing import Any

from .. import checkpoints, interop
from .._io import is_primary_process, read_json_object, run_on_process_0
from ..models import Model, TorchaxModel
from ._config import DATA, DATA_SIZE, SEQUENCES, num_sequences
from ._example_job import ExampleConfig, ExampleJob, read_example_settings
from ._job import mesh_axes
from ._run_folder import settings_of, write_settings

_STATE = "trainer_state.json"


def is_trainer_checkpoint(folder: Path) -> bool:
    """Returns whether a folder is a checkpoint of Trainer."""
    return (folder / _STATE).is_file() and not (folder / "SHA256SUMS").is_file()


def import_into(config: ExampleConfig, model: Model, corpus: Any) -> ExampleConfig:
    """Starts the run of a configuration from a checkpoint of Trainer, if it names one.

    Returns:
        The configuration without the checkpoint of Trainer: the folder of the run then
        contains a checkpoint of its own. The same configuration for others.

    Raises:
        ValueError: if the checkpoint is of another architecture, damaged or
            incomplete, or the folder of the run contains checkpoints of Trainer.
    """
    job = config.job
    _check_folder(job)
    checkpoint = job.resume_from_checkpoint
    if checkpoint is None or not is_trainer_checkpoint(checkpoint):
        return config
    if job.output_dir is None:
        raise ValueError(
            "`output_dir` must be given to continue a checkpoint of Trainer, got none. "
            "Name a new folder."
        )
    own = dataclasses.replace(
        config, job=dataclasses.replace(job, resume_from_checkpoint=None)
    )
    if run_on_process_0(lambda: bool(checkpoints.find_checkpoints(job.output_dir))):
        return own  # continued by an earlier call
    _check_architecture(checkpoint, model)
    run_on_process_0(lambda: _import(own, checkpoint, model, corpus))
    return own


def _import(
    config: ExampleConfig, checkpoint: Path, model: Model, corpus: Any
) -> None: ...


def _check_folder(job: ExampleJob) -> None: ...


def _check_architecture(checkpoint: Path, model: Model) -> None: ...
