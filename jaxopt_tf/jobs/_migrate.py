"""Import of runs of Transformers' Trainer as run folders, and export in reverse.

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

from .. import _checks, _pytrees, interop, training
from .._io import read_json_object
from .._typing import PyTree
from ..models import (
    ARCHITECTURES,
    Model,
    settings_from_transformers_config,
)
from ..recipes import Recipe, recipe_settings
from ._base_weights import run_model
from ._config import RunConfig
from ._import_source import (
    adapter_settings,
    base_of_adapter,
    check_all_trained,
    differences,
    is_adapter,
    notes_on_base,
    unused_tokenizer,
)
from ._job_arguments import EVALUATION_FIELDS, job_settings
from ._run_folder import settings_of
from ._run_io import (
    Run,
    checkpoint_of,
    first_run_state,
    read_run,
    read_run_frozen,
    write_run,
)
from ._trainer_run import ExportedRun, export_module_run, write_for_trainer

_MODEL_CONFIGS = ("config.json", "adapter_config.json")
_STATE, _ARGUMENTS = "trainer_state.json", "training_args.bin"
# Remedies for errors of `interop`, by the name of the argument. The remedies of
# `interop` refer to arguments that the functions of this module do not have.
_MODEL_REMEDIES = dict.fromkeys(
    ("folder", "params"),
    f"config.json must name {', '.join([*ARCHITECTURES.values()][:-1])} or "
    f"{[*ARCHITECTURES.values()][-1]} under `architectures`.",
)
_CHECKPOINT_REMEDIES = {
    "keep_float32": "Remove optimizer.pt, and pass it as `without` for new moments.",
    "decay_rule": "Pass `decay_groups='file'` to use the decay groups of the file.",
    "recipe": "Pass the TrainingArguments that the run was started with as "
    "`training_args`.",
}
_RUN_REMEDIES = {**_MODEL_REMEDIES, "recipe": "A run with it cannot be exported."}


@dataclass(frozen=True, kw_only=True)
class ImportedRun:
    """Report of a run that was imported from a Trainer's checkpoint.

    Attributes:
        config: settings of the run; its `output_dir` is the new folder.
        step: number of steps of the run.
        num_params: number of parameters.
        arguments: treatment of each field of the TrainingArguments, and of the job's.
        unused_tensors: names of tensors in the weight files that were not imported.
        notes: sentences on differences between the imported run and that of Trainer.
    """

    config: RunConfig
    step: int
    num_params: int
    arguments: interop.FromTransformers
    unused_tensors: tuple[str, ...]
    notes: tuple[str, ...]


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
    """Creates a run folder from a Trainer's checkpoint.

    Args:
        checkpoint: folder checkpoint-<step> of a Trainer.
        out: new folder, from which `pretrain` resumes.
        settings: settings of the run by name, as for `RunConfig.from_dict`. They take
            precedence over those in the files. `text` is required: no file contains it.
        training_args: file of the TrainingArguments, training_args.bin or JSON; None
            for the training_args.bin in the checkpoint.
        num_devices: number of devices of the run, if the file does not contain it.
        without: names of files that may be missing in the checkpoint: optimizer.pt,
            scheduler.pt.
        groups: names of the parameters in each group of optimizer.pt, in its order;
            None for the groups of Trainer.
        decay_groups: "file" applies weight decay to the parameters that optimizer.pt
            decays, for custom parameter groups; None applies Trainer's rule.
        ignore_fields: names of TrainingArguments that are not read.
        transformers_version: version of Transformers that wrote the checkpoint, such as
            "4.46.3"; None infers it from config.json or from the fields.

    Returns:
        The configuration of the run, and a report of the import.

    Raises:
        ValueError: if something is missing or damaged, or has no equivalent here. The
            message names all problems; `out` is not created.
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
    converted = interop.recipe_from_transformers(
        arguments,
        max_steps=state["max_steps"],
        num_devices=num_devices,
        ignore_fields=ignore_fields,
        transformers_version=transformers_version,
    )
    job = job_settings(converted, settings, state)
    job.raise_refusals(f"{arguments}: ")
    config = _run_config(checkpoint, out, converted.recipe, job)
    check_all_trained(config.job)
    model = run_model(config.model, config.job)
    params = model.init(config.recipe.seed)
    with _remedies(_MODEL_REMEDIES):
        names = _names(checkpoint, model, params)
    if decay_groups == "file":
        rule = interop.decay_rule_from_checkpoint(checkpoint, names, groups=groups)
        recipe = dataclasses.replace(config.recipe, decay_rule=rule)
        config = dataclasses.replace(config, recipe=recipe)
    start = first_run_state(config.recipe, config.model, params, job=config.job)
    # optimizer.pt is compared with the recipe in the files. `settings` may change the
    # recipe of the imported run.
    with _remedies(_CHECKPOINT_REMEDIES):
        read = interop.read_trainer_checkpoint(
            checkpoint,
            params,
            names,
            recipe=dataclasses.replace(
                converted.recipe, decay_rule=config.recipe.decay_rule
            ),
            opt_state=start.state.opt_state,
            groups=groups,
            layouts=model.layouts,
            without=without,
        )
    _write(config, _imported_run_state(start, read, converted.recipe, config.recipe))
    return _report(checkpoint, config, converted, job, read)


def export_run(
    folder: Path | str,
    out: Path | str,
    *,
    like: Path | str | None = None,
    model: Any = None,
) -> ExportedRun:
    """Writes a run as a checkpoint from which a Trainer resumes.

    Args:
        folder: folder of a run, whose newest valid checkpoint is exported, or folder of
            one of its checkpoints.
        out: new folder.
        like: checkpoint of the Trainer that will resume. The result has its format;
            None writes the format of transformers 5.23.
        model: the module of a run of `train`, or its `models.Model`; None for a run of
            `pretrain`, which contains the configuration of its model.

    Returns:
        The new folder, and the step of the run.

    Raises:
        ValueError: if `folder` is not a run or a checkpoint, or the run has no
            equivalent in PyTorch. `out` is then not created.
        ModuleNotFoundError: if torch or Transformers is not installed.
    """
    out = _new_folder(out)
    is_file = [(Path(like or ".") / name).is_file() for name in _MODEL_CONFIGS]
    if like is not None and not any(is_file):
        raise ValueError(
            f"`like` must contain config.json, got {str(like)!r}. Name the Trainer's "
            "checkpoint-<step> that the run was imported from."
        )
    checkpoint, verified = checkpoint_of(Path(folder))
    settings = settings_of(checkpoint)
    if "model_class" in settings:
        return export_module_run(
            checkpoint, settings, out, like=like, module=model, verify=not verified
        )
    run = read_run(checkpoint, verify=not verified)
    config = RunConfig(recipe=run.recipe, model=run.model, job=run.job)
    model = run_model(run.model, run.job)
    frozen: PyTree = {}
    if run.job.lora_r is None:  # an adapter is written without its base model
        frozen = read_run_frozen(checkpoint, model, config)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        if run.job.lora_r is None:  # an adapter has its own configuration
            content = json.dumps(dict(model.transformers_config), indent=2)
            Path(made, "config.json").write_text(f"{content}\n", encoding="utf-8")
        like = Path(made if like is None else like)
        with _remedies(_RUN_REMEDIES):
            names = model.names
            if run.job.lora_r is None:
                names = _names_with_frozen(
                    run.run_state.state.params, frozen, model, like
                )
            return write_for_trainer(
                out,
                run.run_state,
                recipe=run.recipe,
                job=run.job,
                model=model,
                names=names,
                like=like,
                frozen=frozen,
                run_folder=checkpoint.parent,
            )


@contextlib.contextmanager
def _remedies(by_argument: Mapping[str, str]) -> Iterator[None]:
    """Replaces the remedies in errors of `interop` about the given arguments."""
    try:
        yield
    except _checks.ArgumentError as error:
        error.remedy = by_argument.get(error.argument, error.remedy)
        raise


def _new_folder(out: Path | str) -> Path:
    if Path(out).exists():
        raise ValueError(
            f"`out` must be a new folder, got {str(out)!r}. Name another folder: "
            "existing ones are not overwritten."
        )
    return Path(out)


def _run_config(
    checkpoint: Path, out: Path, recipe: Recipe, job: interop.Translation
) -> RunConfig:
    implementation = job.combined.get("model_implementation")
    source, of_adapter = checkpoint, dict[str, Any]()
    if is_adapter(checkpoint):
        source = base_of_adapter(checkpoint, job.combined)
        of_adapter = adapter_settings(checkpoint, source)
        implementation = "torchax"
    of_model = settings_from_transformers_config(source, implementation)
    if "transformers_config" not in of_model:
        # For the models of this package, the default rule excludes the same parameters
        # from weight decay as Trainer's rule, and it matches their names in Flax.
        recipe = dataclasses.replace(recipe, decay_rule="default")
    found = {**recipe_settings(recipe), **of_model, **of_adapter}
    found["output_dir"] = str(out)
    config = RunConfig.from_dict({**found, **job.combined})
    if config.job.output_dir != out:
        raise ValueError(
            f"`output_dir` must be the new folder, {str(out)!r}, got "
            f"{str(config.job.output_dir)!r}. Leave it out: `out` names it."
        )
    return config


def _names(checkpoint: Path, model: Model, params: PyTree) -> interop.ParamNames:
    if is_adapter(checkpoint):
        return model.names
    described = _torch_model(checkpoint, model)
    return interop.match_names(params, described, layouts=model.layouts)


def _names_with_frozen(
    params: PyTree, frozen: PyTree, model: Model, like: Path
) -> interop.ParamNames:
    """Returns the names of all parameters in the torch model of config.json."""
    described = interop.torch_model_from_config(like)
    everything = training.merge_params(params, frozen) if frozen else params
    names = interop.match_names(everything, described, layouts=model.all_layouts)
    return names.with_frozen(_pytrees.leaf_names(frozen))


def _torch_model(checkpoint: Path, model: Model) -> interop.TorchModel:
    """Reads the names and shapes of the torch model from config.json."""
    config = read_json_object(checkpoint / "config.json", "checkpoint")
    # Old files may have `n_ctx` in place of `n_positions`. Transformers 5 would then
    # build a model with the default of 1,024 positions.
    missing = {"n_positions", "max_position_embeddings"}.isdisjoint(config)
    if not missing:
        return interop.torch_model_from_config(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        written = json.dumps({**config, **model.transformers_config})
        Path(folder, "config.json").write_text(written, encoding="utf-8")
        return interop.torch_model_from_config(folder)


def _imported_run_state(
    start: training.RunState,
    read: interop.TrainerCheckpoint,
    theirs: Recipe,
    ours: Recipe,
) -> training.RunState:
    """Returns the initial state of the run with the arrays of the checkpoint."""
    if type(read.schedule_state) is not type(start.schedule_state):
        raise ValueError(
            "`lr_scheduler_type` must not change if a metric drives the learning rate, "
            f"got {ours.lr_scheduler_type!r} after {theirs.lr_scheduler_type!r}. Leave "
            "it out: the schedule's state cannot be converted."
        )
    state = dataclasses.replace(
        start.state,
        step=jnp.int32(read.step),
        params=read.params,
        opt_state=read.opt_state,
    )
    return training.RunState(state, start.progress, read.schedule_state)


def _write(config: RunConfig, run_state: training.RunState) -> None:
    folder = config.job.output_dir
    assert folder is not None
    folder.mkdir(parents=True)
    try:
        write_run(Run(config.recipe, config.model, config.job, run_state))
    except BaseException:  # an incomplete folder would block the next import
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _report(
    checkpoint: Path,
    config: RunConfig,
    converted: interop.FromTransformers,
    job: interop.Translation,
    read: interop.TrainerCheckpoint,
) -> ImportedRun:
    carried = sorted(
        name
        for name, value in job.settings.items()
        if value is not None and name not in {*job.typed, "lr_scheduler_type"}
    )
    arguments = dataclasses.replace(
        converted,
        mapped=(*converted.mapped, *carried),
        ignored=tuple(sorted({*converted.ignored, *job.ignored} - {*carried})),
        non_optimizer=tuple(
            name for name in converted.non_optimizer if name not in EVALUATION_FIELDS
        ),
    )
    built = run_model(config.model, config.job)
    is_lora = config.job.lora_r is not None
    base = config.job.model_name_or_path if is_lora else checkpoint
    assert base is not None
    # This note is obsolete: the decay rule has been checked against the groups of
    # optimizer.pt.
    notes = [note for note in converted.notes if not note.startswith("`decay_rule`")]
    return ImportedRun(
        config=config,
        step=read.step,
        num_params=sum(leaf.size for leaf in jax.tree.leaves(read.params)),
        arguments=arguments,
        unused_tensors=read.unused,
        notes=(
            *notes,
            *job.notes,
            *differences(base, built, read),
            *notes_on_base(checkpoint, config.job),
            *unused_tokenizer(checkpoint, config.job),
        ),
    )
