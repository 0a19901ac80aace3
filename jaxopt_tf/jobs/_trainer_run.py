"""Continuation of Trainer's checkpoints by `train`, and export of its runs."""

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .. import checkpoints, interop, training
from .._io import read_json_object, run_on_process_0
from .._typing import PyTree
from ..models import Model, from_transformers
from ..recipes import Recipe
from ..sharding import make_mesh
from ._config import DATA, DATA_SIZE, SEQUENCES, num_sequences
from ._example_job import (
    ExampleConfig,
    ExampleJob,
    model_identity,
    read_example_settings,
)
from ._job import Job, mesh_axes
from ._labelled_job import records
from ._labelled_setup import labelled_model
from ._run_folder import write_settings
from ._setup import init_schedule, schedule_and_optimizer, setup_of

_STATE, _SUMS = "trainer_state.json", "SHA256SUMS"


@dataclass(frozen=True, kw_only=True)
class ExportedRun:
    """Report of a run that was exported as a Trainer's checkpoint.

    Attributes:
        folder: the new checkpoint.
        step: number of steps of the run.
        frozen: names of the frozen parameters in PyTorch, which the module that Trainer
            resumes must have frozen, too; empty for an adapter.
    """

    folder: Path
    step: int
    frozen: tuple[str, ...] = ()


def import_into(config: ExampleConfig, model: Model, corpus: Any) -> ExampleConfig:
    """Starts the run of a configuration from a checkpoint of Trainer, if it names one.

    Args:
        config: settings of the run.
        model: the model.
        corpus: record of the data, with `fingerprint` and `size`.

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
    if checkpoint is None or not _is_of_trainer(checkpoint):
        return config
    if job.output_dir is None or jax.process_count() > 1:
        raise ValueError(
            "`output_dir` must be given to continue a checkpoint of Trainer, and the "
            f"first call must be made in one process, got {job.output_dir!r} and "
            f"{jax.process_count()} processes. Call `train` once in one process, with "
            "a new folder."
        )
    own = dataclasses.replace(
        config, job=dataclasses.replace(job, resume_from_checkpoint=None)
    )
    if not checkpoints.find_checkpoints(job.output_dir):  # else an earlier call did
        _check_architecture(checkpoint, model)
        _import(own, checkpoint, model, corpus)
    return own


def export_module_run(
    checkpoint: Path,
    settings: Mapping[str, Any],
    out: Path,
    *,
    like: Path | str | None,
    module: Any,
    verify: bool,
) -> ExportedRun:
    """Writes a checkpoint of `train` as one from which Trainer resumes.

    Args:
        checkpoint: the checkpoint.
        settings: settings in it.
        out: new folder.
        like: checkpoint of Trainer whose format is written; None for that of the newest
            supported version.
        module: the module of the run, or its `models.Model`.
        verify: False if the checkpoint is the result of `latest_valid`.

    Raises:
        ValueError: if no module is given, or one of another architecture or with other
            frozen parameters.
    """
    name, is_labelled = settings["model_class"], settings.get("task") is not None
    if module is None and is_labelled:
        module = labelled_model(settings)
    if module is None:
        raise ValueError(
            f"`model` must be given to export a run of a module, here of {name}. Pass "
            "the module that was passed to `train`."
        )
    model = module if isinstance(module, Model) else from_transformers(module)
    identity = model_identity(model)
    if any(settings[key] != identity[key] for key in identity):
        raise ValueError(
            f"`model` must be the module of the run, {name} with the sizes of its "
            f"configuration, got {identity['model_class']} with another architecture "
            "or other frozen parameters."
        )
    recipe, job = (records if is_labelled else read_example_settings)(settings)
    setup = setup_of(model, recipe, job, make_mesh("data=1", jax.devices()[:1]))
    found = training.restore_run_state(checkpoint, setup.run_state, verify=verify)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        config = json.dumps(dict(model.transformers_config), indent=2)
        Path(made, "config.json").write_text(f"{config}\n", encoding="utf-8")
        like = made if like is None else like
        return write_for_trainer(
            out,
            found,
            recipe=recipe,
            job=job,
            model=model,
            names=model.names,
            like=like,
            frozen=model.init_frozen(recipe.seed),
            run_folder=checkpoint.parent,
        )


def write_for_trainer(
    out: Path,
    run_state: training.RunState,
    *,
    recipe: Recipe,
    job: Job,
    model: Model,
    names: interop.ParamNames,
    like: Path | str,
    frozen: PyTree,
    run_folder: Path,
) -> ExportedRun:
    """Writes the state of a run as a checkpoint from which Trainer resumes.

    Args:
        out: new folder.
        run_state: the state.
        recipe: the recipe of the run.
        job: the job of the run.
        model: the model of the run.
        names: names of torch's parameters.
        like: as for `interop.write_trainer_checkpoint`.
        frozen: frozen parameters; {} if there are none. Those of the base model of an
            adapter are not written, as in PEFT.
        run_folder: folder of the run, whose log is written, too.
    """
    is_adapter = names.model.adapter is not None
    state, schedule_state = run_state.state, run_state.schedule_state
    # The optimizer's counter is smaller than `state.step` by the number of skipped
    # updates. torch's scheduler counts the updates, too.
    (_, num_updates), *_ = optax.tree.get_all_with_path(state.opt_state, "step")
    interop.write_trainer_checkpoint(
        out,
        state.params,
        state.opt_state,
        names,
        recipe=recipe,
        step=int(state.step),
        schedule_step=int(num_updates) if schedule_state is None else None,
        schedule_state=schedule_state,
        # When Trainer resumes, the intervals in trainer_state.json replace those of its
        # arguments.
        trainer_state={
            "eval_steps": job.eval_steps,
            "logging_steps": job.logging_steps,
            "save_steps": job.save_steps,
            "log_history": _log_history(run_folder, Path(like), int(state.step)),
        },
        like=like,
        layouts=model.layouts,
        frozen={} if is_adapter else frozen,
    )
    found = [p.name for p in names.model.parameters if not p.is_trainable]
    return ExportedRun(folder=out, step=int(state.step), frozen=tuple(found))


def _log_history(run_folder: Path, like: Path, step: int) -> list[dict[str, Any]]:
    """Returns the log of a run up to a step, after that of the run it continues.

    Args:
        run_folder: folder of the run. Its log is left out if it has none.
        like: checkpoint of Trainer from which the run was imported, or any other.
        step: last step.
    """
    ours, theirs = (
        read_json_object(folder / _STATE, name).get("log_history", [])
        if (folder / _STATE).is_file()
        else []
        for folder, name in ((run_folder, "folder"), (like, "like"))
    )
    first = min((entry["step"] for entry in ours), default=step + 1)
    entries = [entry for entry in theirs if entry["step"] < first] + ours
    # The last entry of a run that has ended has its time, and is in no checkpoint.
    return [e for e in entries if e["step"] <= step and "train_runtime" not in e]


def _import(config: ExampleConfig, checkpoint: Path, model: Model, corpus: Any) -> None:
    """Writes the first checkpoint of a run, with the arrays of Trainer's."""
    recipe, folder = config.recipe, config.job.output_dir
    assert folder is not None
    schedule, optimizer = schedule_and_optimizer(recipe, model)
    params = model.init(recipe.seed)
    rng = recipe.seed if model.has_dropout else None
    state = training.init_train_state(params, optimizer, rng=rng)
    try:
        read = interop.read_trainer_checkpoint(
            checkpoint,
            params,
            model.names,
            recipe=recipe,
            opt_state=state.opt_state,
            layouts=model.layouts,
        )
    except ValueError as error:
        raise ValueError(
            f"`resume_from_checkpoint` must be a checkpoint of the same run: {error}"
        ) from error
    state = dataclasses.replace(
        state,
        step=jnp.int32(read.step),
        params=read.params,
        opt_state=read.opt_state,
    )
    schedule_state = init_schedule(schedule)
    if schedule_state is not None:
        schedule_state = read.schedule_state
    run_state = training.RunState(state, schedule_state=schedule_state)
    settings = config.to_dict()
    data = {DATA: corpus.fingerprint, DATA_SIZE: corpus.size}
    data[SEQUENCES] = num_sequences(settings | {"mesh": mesh_axes(config.job)})
    with (
        checkpoints.lock_folder(folder) as lock,
        checkpoints.open_checkpoints(lock) as saving,
    ):
        training.save_run_state(saving, run_state, {"settings": settings | data})
        write_settings(folder, settings)


def _is_of_trainer(folder: Path) -> bool:
    return (folder / _STATE).is_file() and not (folder / _SUMS).is_file()


def _check_folder(job: ExampleJob) -> None:
    """Raises if the folder of the run contains checkpoints of Trainer."""
    folder = job.output_dir
    if folder is None:
        return
    found = run_on_process_0(
        lambda: [
            str(p) for p in sorted(folder.glob("checkpoint-*")) if _is_of_trainer(p)
        ]
    )
    if found:
        raise ValueError(
            "`output_dir` must be another folder than that of Trainer, got "
            f"{str(folder)!r}, which contains {found[-1]!r}. Name a new folder, and "
            "that checkpoint as `resume_from_checkpoint` to continue it."
        )


def _check_architecture(checkpoint: Path, model: Model) -> None:
    path = checkpoint / "config.json"
    if not path.is_file() or not model.transformers_config:
        return
    theirs = read_json_object(path, "resume_from_checkpoint").get("architectures")
    ours = model.transformers_config.get("architectures")
    if theirs and ours and list(theirs) != list(ours):
        raise ValueError(
            "`resume_from_checkpoint` must be a checkpoint of the class of `model`, "
            f"{ours[0]}, got one of {theirs[0]}: {str(checkpoint)!r}. Build the module "
            "with `from_pretrained` of this class."
        )
