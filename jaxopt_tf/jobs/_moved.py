"""A run's folder made of a position that was reached elsewhere, and read back."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

from .. import checkpoints, training
from .._typing import PyTree
from ..models import GPT2Config, gpt2_layer_norms, gpt2_layout, make_loss_fn
from ..recipes import Recipe, build_optimizer, build_schedule
from ..schedules import GreedyState, MetricDrivenSchedule, PlateauState
from . import _run_folder
from ._data import read_corpus
from ._settings import Job, flat


class Run(NamedTuple):
    """Where a run stands, and with which numbers it came there."""

    recipe: Recipe
    model: GPT2Config
    job: Job
    position: training.Position


def write_run(run: Run) -> Path:
    """Makes a folder of a run that `pretrain` goes on with.

    Args:
        run: its numbers and where it stands; its job's `output_dir` must be new or
            empty.

    Returns:
        The checkpoint.

    Raises:
        ValueError: if the folder holds something, or the text does not fit.
    """
    folder = run.job.output_dir
    if folder is None or (folder.exists() and any(folder.iterdir())):
        raise ValueError(
            f"`output_dir` must be a new folder, got {str(folder)!r}. Name another."
        )
    with checkpoints.hold(folder) as held:
        corpus = read_corpus(run.job, run.model, folder)
        config = flat(run.recipe, run.model, run.job)
        settings = config | {_run_folder.DATA: corpus.fingerprint}
        with checkpoints.open_checkpoints(held) as saving:
            path = training.save_position(saving, run.position, {"settings": settings})
        _run_folder.write_config(folder, config)
    return path


def read_run(folder: Path) -> Run:
    """Reads where a run stands.

    Args:
        folder: of a run, whose newest good checkpoint is taken; or of a checkpoint.

    Raises:
        ValueError: if it is neither, or no checkpoint is good.
    """
    is_checkpoint = (folder / "SHA256SUMS").exists()
    checkpoint = folder if is_checkpoint else checkpoints.find_intact(folder)
    if checkpoint is None:
        raise ValueError(
            f"`folder` must be a run's or a checkpoint's, got {str(folder)!r}. Name a "
            "folder that `jaxopt-tf train` wrote."
        )
    settings = _run_folder.settings_of(checkpoint)

    def of(record: type) -> dict:
        names = [field.name for field in dataclasses.fields(record)]
        return {name: settings[name] for name in names if name in settings}

    recipe, model, job = (
        Recipe(**of(Recipe)),
        GPT2Config(**of(GPT2Config)),
        Job(**of(Job)),
    )
    start = first_position(recipe, model, make_loss_fn(model, recipe.seed)[0])
    return Run(recipe, model, job, training.restore_position(checkpoint, start))


def first_position(
    recipe: Recipe, model: GPT2Config, params: PyTree
) -> training.Position:
    """Where a run begins."""
    optimizer = build_optimizer(
        recipe, layout=gpt2_layout(model), layer_norms=gpt2_layer_norms(model)
    )
    rng = recipe.seed if model.has_dropout else None
    return training.Position(
        training.init_train_state(params, optimizer, rng=rng),
        training.Progress(),
        first_schedule_state(recipe),
    )


def first_schedule_state(recipe: Recipe) -> PlateauState | GreedyState | None:
    """Returns the first state of a schedule that a metric drives, else None."""
    schedule = build_schedule(recipe)
    return schedule.init() if isinstance(schedule, MetricDrivenSchedule) else None
