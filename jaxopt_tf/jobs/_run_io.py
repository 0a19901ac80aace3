"""Writing and reading of runs: settings and state at one step, as a folder."""

from pathlib import Path
from typing import NamedTuple

import jax

from .. import checkpoints, training
from .._typing import PyTree
from ..models import Model, ModelConfig
from ..optimizers import without_moments
from ..recipes import Recipe
from ..sharding import make_mesh
from ._base_weights import (
    check_base,
    on_first_device,
    read_frozen,
    run_model,
    with_base,
)
from ._config import DATA, DATA_SIZE, RunConfig, own_settings
from ._job import Job
from ._run_data import read_corpus
from ._run_folder import is_finished, settings_of, write_settings
from ._setup import build_setup, init_schedule, schedule_and_optimizer


class TrainedParams(NamedTuple):
    """Parameters of a run at one step, averaged if its optimizer averages them."""

    checkpoint: Path  # folder of the checkpoint that was read
    config: RunConfig
    model: Model
    params: PyTree  # on the first device


class Run(NamedTuple):
    """Settings of a run and its state at one step."""

    recipe: Recipe
    model: ModelConfig
    job: Job
    run_state: training.RunState


def write_run(run: Run) -> Path:
    """Creates a run folder that `pretrain` resumes from.

    Args:
        run: settings and state. `output_dir` of its job must be new or empty.

    Returns:
        The path of the checkpoint.

    Raises:
        ValueError: if the folder is not empty, or the text does not fit the model.
    """
    config = RunConfig(recipe=run.recipe, model=run.model, job=run.job)
    folder, settings = run.job.output_dir, config.to_dict()
    if folder is None or (folder.exists() and any(folder.iterdir())):
        raise ValueError(
            f"`output_dir` must be a new folder, got {str(folder)!r}. Pass another "
            "folder."
        )
    with checkpoints.lock_folder(folder) as lock:
        corpus = read_corpus(run.job, run.model, folder)
        data = {DATA: corpus.fingerprint, DATA_SIZE: corpus.size}
        data |= with_base(run.job)
        with checkpoints.open_checkpoints(lock) as saving:
            metadata = {"settings": settings | data}
            path = training.save_run_state(saving, run.run_state, metadata)
        write_settings(folder, settings)
    return path


def read_run(folder: Path, *, verify: bool = True) -> Run:
    """Reads the settings of a run and its state at a checkpoint.

    Args:
        folder: folder of a run, whose newest valid checkpoint is read, or of a
            checkpoint.
        verify: False if `folder` is a checkpoint that is the result of `latest_valid`.

    Raises:
        ValueError: if `folder` is not of a run or a checkpoint, or contains no valid
            checkpoint.
    """
    checkpoint, is_verified = checkpoint_of(folder)
    config = RunConfig.from_dict(own_settings(settings_of(checkpoint)))
    # A checkpoint can be restored on any mesh. The whole state is placed on one device,
    # whatever mesh the run had.
    setup = build_setup(config, make_mesh("data=1", jax.devices()[:1]))
    run_state = training.restore_run_state(
        checkpoint, setup.run_state, verify=verify and not is_verified
    )
    return Run(config.recipe, config.model, config.job, run_state)


def read_params(folder: Path) -> TrainedParams:
    """Reads the parameters of a run with which it is evaluated.

    Other arrays are read only if the optimizer of the run averages the parameters.

    Args:
        folder: folder of a checkpoint; or of a run, whose newest valid checkpoint is
            read, or the one with the lowest evaluation loss if the run is finished and
            has `load_best_model_at_end`.

    Raises:
        ValueError: if `folder` is not of a run or a checkpoint, or contains no valid
            checkpoint.
    """
    checkpoint, is_verified = checkpoint_of(folder)
    config = RunConfig.from_dict(own_settings(settings_of(checkpoint)))
    if checkpoint != folder and config.job.load_best_model_at_end:
        progress = checkpoints.read_metadata(checkpoint).get("progress", {})
        best = folder / f"checkpoint-{progress.get('best_step')}"
        if is_finished(checkpoint, config) and best.is_dir():
            checkpoint, is_verified = best, False
    model = run_model(config.model, config.job)
    _, optimizer = schedule_and_optimizer(config.recipe, model)
    opt_state = jax.eval_shape(optimizer.init, model.shapes)
    arrays = {"params": model.shapes, "opt_state": without_moments(opt_state)}
    restored = checkpoints.restore(
        checkpoint,
        {"state": on_first_device(arrays)},
        is_partial=True,
        verify=not is_verified,
    )
    state = restored.arrays["state"]
    trained = training.evaluation_params(state["params"], state["opt_state"])
    frozen = read_run_frozen(checkpoint, model, config)
    params = training.merge_params(trained, frozen) if frozen else trained
    return TrainedParams(checkpoint, config, model, params)


def read_run_frozen(checkpoint: Path, model: Model, config: RunConfig) -> PyTree:
    """Reads the frozen parameters of a run, which its checkpoints do not contain.

    Args:
        checkpoint: a checkpoint of the run.
        model: the model of the run.
        config: settings of the run.

    Returns:
        The parameters on the first device; {} if there are none.

    Raises:
        ValueError: if the weights in `model_name_or_path` have changed.
    """
    frozen = on_first_device(model.frozen_shapes)
    if not jax.tree.leaves(frozen):
        return {}
    check_base(config.job, settings_of(checkpoint))
    return read_frozen(model, frozen, config)


def checkpoint_of(folder: Path) -> tuple[Path, bool]:
    """Returns the checkpoint of a folder, and True if its checksums were verified."""
    if (folder / "SHA256SUMS").exists():
        return folder, False
    checkpoint = checkpoints.latest_valid(folder)
    if checkpoint is None:
        raise ValueError(
            f"`folder` must be a run or a checkpoint, got {str(folder)!r}. Pass a "
            "folder that was written by `jaxopt-tf train`."
        )
    return checkpoint, True


def first_run_state(
    recipe: Recipe, model: ModelConfig, params: PyTree, *, job: Job | None = None
) -> training.RunState:
    """Returns the state of a run before its first step, with the given parameters.

    Args:
        recipe: hyperparameters of the run.
        model: sizes and options of the model.
        params: the trained parameters.
        job: settings that determine which parameters are trained; None for all.
    """
    built = run_model(model, job or Job())
    schedule, optimizer = schedule_and_optimizer(recipe, built)
    rng = recipe.seed if built.has_dropout else None
    state = training.init_train_state(params, optimizer, rng=rng)
    return training.RunState(state, schedule_state=init_schedule(schedule))
