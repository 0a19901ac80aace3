"""Runs of Transformers' Trainer imported as run folders, and run folders exported.

imported = import_run("trainer/checkpoint-500", "runs/mine", settings={"text": text})
pretrain(imported.config)
export_run("runs/mine", "trainer/checkpoint-900", like="trainer/checkpoint-500")
"""

import contextlib
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from .. import _checks, interop, training
from .._io import read_json_object
from ..models import (
    GPT2Config,
    gpt2_config_for_transformers,
    gpt2_layout,
    gpt2_settings_from_transformers,
    make_loss_fn,
)
from ..recipes import Recipe, recipe_settings
from ._config import RunConfig
from ._job_arguments import EVALUATION_FIELDS, job_settings
from ._run_io import Run, first_position, read_run, write_run

_STATE, _ARGUMENTS = "trainer_state.json", "training_args.bin"
# Remedies in errors of `interop` by its arguments, which are no arguments here.
_OF_MODEL = dict.fromkeys(
    ("folder", "params"), "A GPT2LMHeadModel, named under `architectures`, is taken."
)
_OF_CHECKPOINT = {
    "decay_rule": "Pass `decay_groups='file'` to decay what the file decays.",
    "recipe": "Give the TrainingArguments that the run was begun with, by "
    "`training_args`.",
}
_OF_RUN = {**_OF_MODEL, "recipe": "A run with it cannot be exported."}


@dataclass(frozen=True, kw_only=True)
class ImportedRun:
    """Report of a run that was imported from a Trainer's checkpoint.

    Attributes:
        config: the settings of the run; its `output_dir` is the new folder.
        step: number of batches that the run had taken.
        num_params: number of parameters.
        arguments: what became of each of the TrainingArguments, those of the job too.
        unused_tensors: names of tensors that were left out of the weight files.
        notes: sentences on what differs between the run here and in Trainer.
    """

    config: RunConfig
    step: int
    num_params: int
    arguments: interop.FromTransformers
    unused_tensors: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ExportedRun:
    """Report of a run that was exported as a Trainer's checkpoint.

    Attributes:
        folder: the new checkpoint.
        step: number of batches that the run had taken.
    """

    folder: Path
    step: int


def import_run(
    checkpoint: Path | str,
    out: Path | str,
    *,
    settings: Mapping[str, Any] = MappingProxyType({}),
    training_args: Path | str | None = None,
    num_devices: int | None = None,
    without: Collection[str] = (),
    groups: Sequence[Sequence[str]] | None = None,
    decay_groups: Literal["file"] | None = None,
    ignore_fields: Collection[str] = (),
    transformers_version: str | None = None,
) -> ImportedRun:
    """Makes the folder of a run from a Trainer's checkpoint of a GPT-2.

    Args:
        checkpoint: the checkpoint-<step> of a Trainer.
        out: a new folder, from which `pretrain` resumes.
        settings: settings of the run by name, as `RunConfig.from_dict` takes them; they
            win over those in the files. `text` is the one that no file has.
        training_args: file of the TrainingArguments, JSON too; None for the
            training_args.bin in the checkpoint.
        num_devices: how many devices took part, if the file does not show it.
        without: names of files that the checkpoint need not have: optimizer.pt,
            scheduler.pt.
        groups: names of the parameters of each group of optimizer.pt, in its order;
            None for Trainer's own.
        decay_groups: "file" applies weight decay to the parameters that optimizer.pt
            decays, for groups that a script made; None for those of Trainer's rule.
        ignore_fields: names of TrainingArguments that are not read.
        transformers_version: version of Transformers that made the run, such as
            "4.46.3"; None for that of config.json, or of the fields.

    Returns:
        The configuration of the run, and a report of what was taken over.

    Raises:
        ValueError: naming all that is missing, damaged, or cannot be carried over; no
            folder is left then.
        ModuleNotFoundError: if torch or Transformers is not installed.
    """
    if decay_groups is not None:
        _checks.one_of("decay_groups", decay_groups, ["file"])
    checkpoint, out = Path(checkpoint), _new_folder(out)
    state = read_json_object(checkpoint / _STATE, "checkpoint")
    if "max_steps" not in state:
        raise ValueError(
            f"{checkpoint / _STATE} must contain 'max_steps'. Copy the folder again."
        )
    arguments = Path(training_args or checkpoint / _ARGUMENTS)
    came = interop.recipe_from_transformers(
        arguments,
        max_steps=state["max_steps"],
        num_devices=num_devices,
        ignore_fields=ignore_fields,
        transformers_version=transformers_version,
    )
    job = job_settings(came, settings, state)
    job.raise_refusals(f"{arguments}: ")
    config = _run_config(checkpoint, out, came.recipe, job)
    params, _ = make_loss_fn(config.model, config.recipe.seed)
    with _remedies(_OF_MODEL):
        model = _torch_model(checkpoint, config.model.block_size)
        names = interop.match_names(params, model)
    if decay_groups == "file":
        rule = interop.decay_rule_from_checkpoint(checkpoint, names, groups=groups)
        recipe = dataclasses.replace(config.recipe, decay_rule=rule)
        config = dataclasses.replace(config, recipe=recipe)
    start = first_position(config.recipe, config.model, params)
    with _remedies(_OF_CHECKPOINT):
        read = interop.read_trainer_checkpoint(
            checkpoint,
            params,
            names,
            recipe=dataclasses.replace(
                came.recipe, decay_rule=config.recipe.decay_rule
            ),
            opt_state=start.state.opt_state,
            groups=groups,
            layouts=gpt2_layout(config.model),
            without=without,
        )
    _write(config, _position(start, read, came.recipe, config.recipe))
    return _report(checkpoint, config, came, job, read)


def export_run(
    folder: Path | str, out: Path | str, *, like: Path | str | None = None
) -> ExportedRun:
    """Writes a run of a GPT-2 as a checkpoint from which a Trainer resumes.

    Args:
        folder: folder of a run, whose newest valid checkpoint is taken; or of one of
            its checkpoints.
        out: a new folder.
        like: a checkpoint of the Trainer that is to resume, whose version can read the
            result; None for that of transformers 5.23.

    Returns:
        The new folder, and the step of the run.

    Raises:
        ValueError: if a folder is of another kind, or the run has no form in torch; no
            folder is left then.
        ModuleNotFoundError: if torch or Transformers is not installed.
    """
    out = _new_folder(out)
    if like is not None and not (Path(like) / "config.json").is_file():
        raise ValueError(
            f"`like` must hold config.json, got {str(like)!r}. Name the Trainer's "
            "checkpoint-<step> that the run came from."
        )
    run = read_run(Path(folder))
    state, schedule_state = run.position.state, run.position.schedule_state
    # It is smaller than `state.step` by the number of skipped updates.
    (_, num_updates), *_ = optax.tree.get_all_with_path(state.opt_state, "step")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        config = json.dumps(gpt2_config_for_transformers(run.model), indent=2)
        Path(made, "config.json").write_text(f"{config}\n", encoding="utf-8")
        like = Path(made if like is None else like)
        with _remedies(_OF_RUN):
            model = interop.torch_model_from_config(like)
            interop.write_trainer_checkpoint(
                out,
                state.params,
                state.opt_state,
                interop.match_names(state.params, model),
                recipe=run.recipe,
                step=int(state.step),
                schedule_step=int(num_updates) if schedule_state is None else None,
                schedule_state=schedule_state,
                # Trainer follows these, and not its arguments.
                trainer_state={
                    "eval_steps": run.job.eval_steps,
                    "logging_steps": run.job.logging_steps,
                    "save_steps": run.job.save_steps,
                },
                like=like,
                layouts=gpt2_layout(run.model),
            )
    return ExportedRun(folder=out, step=int(state.step))


@contextlib.contextmanager
def _remedies(by_argument: Mapping[str, str]) -> Iterator[None]:
    """Replaces the remedies in errors about these arguments of `interop`."""
    try:
        yield
    except _checks.ArgumentError as error:
        error.remedy = by_argument.get(error.argument, error.remedy)
        raise


def _new_folder(out: Path | str) -> Path:
    if Path(out).exists():
        raise ValueError(
            f"`out` must be a new folder, got {str(out)!r}. Name another: nothing is "
            "overwritten."
        )
    return Path(out)


def _run_config(
    checkpoint: Path, out: Path, recipe: Recipe, job: interop.Translation
) -> RunConfig:
    found = {
        # Our rule leaves out the same leaves of a GPT-2, by their names.
        **recipe_settings(dataclasses.replace(recipe, decay_rule="default")),
        **gpt2_settings_from_transformers(checkpoint),
        "output_dir": str(out),
    }
    config = RunConfig.from_dict({**found, **job.combined})
    if config.job.output_dir != out:
        raise ValueError(
            f"`output_dir` must be the new folder, {str(out)!r}, got "
            f"{str(config.job.output_dir)!r}. Leave it out: `out` names it."
        )
    return config


def _torch_model(checkpoint: Path, block_size: int) -> interop.TorchModel:
    """Describes the model; an old file may have `n_ctx` in place of `n_positions`."""
    config = read_json_object(checkpoint / "config.json", "checkpoint")
    if {"n_positions", "max_position_embeddings"} & set(config):
        return interop.torch_model_from_config(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        written = json.dumps({**config, "n_positions": block_size})
        Path(folder, "config.json").write_text(written, encoding="utf-8")
        return interop.torch_model_from_config(folder)


def _position(
    start: training.RunState,
    read: interop.TrainerCheckpoint,
    theirs: Recipe,
    ours: Recipe,
) -> training.RunState:
    """Returns the start of the run with the state of the checkpoint in its place."""
    if type(read.schedule_state) is not type(start.schedule_state):
        raise ValueError(
            "`lr_scheduler_type` must stay if a metric drives the rate, got "
            f"{ours.lr_scheduler_type!r} after {theirs.lr_scheduler_type!r}. Leave it "
            "out: its state is not that of another schedule."
        )
    state = dataclasses.replace(
        start.state,
        step=jnp.int32(read.step),
        params=read.params,
        opt_state=read.opt_state,
    )
    return training.RunState(state, start.progress, read.schedule_state)


def _write(config: RunConfig, position: training.RunState) -> None:
    folder = config.job.output_dir
    assert folder is not None
    folder.mkdir(parents=True)
    try:
        write_run(Run(config.recipe, config.model, config.job, position))
    except BaseException:  # half a run would be in the way of the next try
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _report(
    checkpoint: Path,
    config: RunConfig,
    came: interop.FromTransformers,
    job: interop.Translation,
    read: interop.TrainerCheckpoint,
) -> ImportedRun:
    carried = sorted(
        name
        for name, value in job.settings.items()
        if value is not None and name not in {*job.typed, "lr_scheduler_type"}
    )
    arguments = dataclasses.replace(
        came,
        mapped=(*came.mapped, *carried),
        ignored=tuple(sorted({*came.ignored, *job.ignored} - {*carried})),
        non_optimizer=tuple(
            name for name in came.non_optimizer if name not in EVALUATION_FIELDS
        ),
    )
    # Decay was compared with the groups of optimizer.pt.
    notes = [note for note in came.notes if not note.startswith("`decay_rule`")]
    return ImportedRun(
        config=config,
        step=read.step,
        num_params=sum(leaf.size for leaf in jax.tree.leaves(read.params)),
        arguments=arguments,
        unused_tensors=read.unused,
        notes=(*notes, *job.notes, *_differences(checkpoint, config.model, read)),
    )


def _differences(
    checkpoint: Path, model: GPT2Config, read: interop.TrainerCheckpoint
) -> list[str]:
    """Returns sentences on what differs between the run here and in Trainer."""
    found = []
    config = read_json_object(checkpoint / "config.json", "checkpoint")
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    if dtype != "float32":
        found.append(
            f"parameters and moments are float32 here, and were {dtype} in torch"
        )
    if not all("param_names" in group for group in read.param_groups):
        found.append(
            "moments were taken in the order of Trainer's groups: optimizer.pt has no "
            "names, and parameters of one shape in another order cannot be "
            "distinguished"
        )
    found.append(
        "a loss is the mean over all that is predicted here; Trainer 5.23 divides a "
        "GPT-2's by all labels, the first of each row included, so that its losses and "
        "gradients are (L - 1) / L of ours for rows of L tokens"
    )
    if model.has_dropout:
        found.append(
            "dropout starts again from `seed`: torch's random numbers are its own"
        )
    return found
