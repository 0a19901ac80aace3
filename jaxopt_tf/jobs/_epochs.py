"""Lengths and intervals of a run in epochs, which are known once the data are read."""

import datetime
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import _io, checkpoints
from ._config import RunConfig, num_sequences
from ._conflicts import uses_eval_loss
from ._intervals import num_steps_per_epoch
from ._job import mesh_axes
from ._run_data import training_batches
from ._run_folder import (
    check_equal_settings,
    read_equal_corpus,
    sequences_of_last_start,
)

_MAX_STEPS = 2**31 - 1  # the largest `max_steps`
_STRATEGIES = {"eval_strategy": "eval_steps", "save_strategy": "save_steps"}


def check_before_reading(settings: Mapping[str, Any]) -> RunConfig:
    """Checks the settings of a run as far as possible before its data are read.

    Args:
        settings: as for `resolve_epochs`.

    Returns:
        The configuration, where the largest number takes the place of an unknown
        `max_steps`.

    Raises:
        ValueError: if settings are invalid or conflict. The message lists all problems.
    """
    if not _is_by_epochs(settings):
        return RunConfig.from_dict(settings)
    return RunConfig.from_dict({**settings, "max_steps": _MAX_STEPS})


def resolve_epochs(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces a length and intervals in epochs by numbers of steps.

        config = RunConfig.from_dict(resolve_epochs({"num_train_epochs": 3, ...}))

    `max_steps` is set from `num_train_epochs` if it is not given. The strategy "epoch"
    becomes "steps", with the number of steps of an epoch as `eval_steps` or
    `save_steps`. For this purpose the data of the run are read; tokenized text is
    stored in the run's folder, from which `pretrain` reads it. Settings without epochs
    are returned unchanged. All processes must call this function.

    Args:
        settings: settings of a run by name, as for `RunConfig.from_dict`.

    Returns:
        Settings for `RunConfig.from_dict`. `output_dir` is set if the data were read.

    Raises:
        ValueError: if settings are invalid or conflict, processes have different
            settings, the data cannot be read or are too short, the folder is in use,
            or an evaluation after each epoch comes too late.

    Source: transformers 5.23 `trainer.py`, `set_initial_training_values`.
    Differs: an epoch contains every row once, but it need not begin with a batch: the
        last batch of an epoch is filled with the first rows of the next one. Trainer
        makes a smaller batch. The number of steps is the same.
    """
    names = ("num_train_epochs", "max_steps", *_STRATEGIES)
    _io.check_equal_across_processes({name: settings.get(name) for name in names})
    by_epoch = [name for name in _STRATEGIES if settings.get(name) == "epoch"]
    if not by_epoch and not _is_by_epochs(settings):
        return dict(settings)
    config = check_before_reading(settings)
    check_equal_settings(config.to_dict())
    # All processes must name the same new folder; their clocks may differ.
    timestamp = _io.broadcast_from_process_0(
        f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}"
    )
    folder = config.job.output_dir or Path("runs", timestamp)
    with checkpoints.lock_folder(folder):
        steps = _steps_per_epoch(config, folder)
    resolved = {**settings, "output_dir": folder}
    if _is_by_epochs(settings):
        resolved["max_steps"] = _num_steps(settings["num_train_epochs"], steps)
    for name in by_epoch:
        resolved |= {name: "steps", _STRATEGIES[name]: steps}
    if "eval_strategy" in by_epoch:
        _check_evaluation(resolved, steps)
    return resolved


def check_resolved(config: RunConfig) -> None:
    """Raises if an interval of a run is an epoch, whose steps are not counted yet."""
    for name in _STRATEGIES:
        if getattr(config.job, name) == "epoch":
            raise ValueError(
                f"`{name}` must be 'steps' or 'no' in `pretrain`, got 'epoch'. Pass "
                "the settings to `resolve_epochs`, which counts the steps of an epoch, "
                "and then to `RunConfig.from_dict`."
            )


def _is_by_epochs(settings: Mapping[str, Any]) -> bool:
    has_epochs = settings.get("num_train_epochs") is not None
    return has_epochs and settings.get("max_steps") is None


def _steps_per_epoch(config: RunConfig, folder: Path) -> int:
    recipe, job = config.recipe, config.job
    settings = config.to_dict() | {"mesh": mesh_axes(job)}
    # A run that is resumed on another mesh keeps its number of sequences.
    settings |= _io.run_on_process_0(lambda: sequences_of_last_start(folder))
    batches = training_batches(
        read_equal_corpus(config, folder),
        job,
        block_size=config.model.block_size,
        batch_size=num_sequences(settings),
        seed=recipe.seed,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
    )
    return num_steps_per_epoch(
        batches.num_windows,
        batch_size=num_sequences(settings),
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
    )


def _num_steps(epochs: float, steps_per_epoch: int) -> int:
    steps = math.ceil(epochs * steps_per_epoch)
    if steps > _MAX_STEPS:
        raise ValueError(
            f"`num_train_epochs` must lead to at most 2^31 - 1 steps, got {epochs!r}: "
            f"an epoch has {steps_per_epoch:,}. Use fewer epochs."
        )
    return steps


def _check_evaluation(settings: Mapping[str, Any], steps_per_epoch: int) -> None:
    steps = settings["max_steps"]
    if uses_eval_loss(settings) and steps_per_epoch >= steps:
        raise ValueError(
            "`eval_strategy` must be 'steps' for a run of at most one epoch if the "
            "evaluation loss drives the schedule, ends the run or selects its model, "
            f"got 'epoch' with {steps:,} steps: the first evaluation would be at the "
            f"end. Use 'steps', with {max(1, steps // 10)} as `eval_steps`."
        )
