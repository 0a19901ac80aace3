"""A Trainer's checkpoint folder goes out."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import _checks
from .._typing import PyTree
from ..optimizers import TorchLayout
from ..recipes import METRIC_DRIVEN, Recipe
from ..schedules import GreedyState, PlateauState
from ._hf_folder import MODEL_FILES, OPTIMIZER, SCHEDULER, STATE
from ._hf_like import (
    scheduler_like,
    state_dict_like,
    trainer_state_like,
    weights_file_like,
)
from ._metric_state import torch_from_metric_state
from ._model_file import read_buffers, write_params
from ._param_groups import param_groups_from_recipe
from ._param_names import ParamNames
from ._scheduler_state import torch_from_schedule_step
from ._state_dict import Groups
from ._torch_files import save_torch
from ._torch_state import torch_from_opt_state

# Of another step than the one that is written.
_NOT_COPIED = (
    *MODEL_FILES,
    "pytorch_model-",
    OPTIMIZER,
    "optimizer.bin",
    SCHEDULER,
    STATE,
    "rng_state",
    "scaler",
)


def write_trainer_checkpoint(
    folder: Path | str,
    params: PyTree,
    opt_state: PyTree,
    names: ParamNames,
    *,
    recipe: Recipe,
    step: int,
    schedule_step: int | None = None,
    schedule_state: PlateauState | GreedyState | None = None,
    trainer_state: Mapping[str, Any] | None = None,
    like: Path | str | None = None,
    groups: Groups | None = None,
    layouts: Mapping[str, TorchLayout] | None = None,
) -> None:
    """Writes a folder from which `Trainer.train(resume_from_checkpoint=...)` goes on.

    It holds model.safetensors, optimizer.pt, scheduler.pt and trainer_state.json, and
    is there whole or not at all. Each has the fields of the version of Transformers and
    torch that wrote `like`, else those of transformers 5.23 and torch 2.13. The state
    of torch's random numbers is left out, so dropout draws other numbers: Trainer notes
    that in its log and takes the order of the data from its seed.

    Args:
        folder: a folder that is not there yet; a `checkpoint-500` in Trainer's
            `output_dir`, say.
        params: the parameters.
        opt_state: the state of their optimizer, AdamW or Adafactor.
        names: which leaf is which torch parameter.
        recipe: the numbers of the run. The groups are those of its `decay_rule`, if
            that is a version's or patterns; else those of "transformers_v5". Trainer
            makes its groups by its own rule, and refuses groups of other lengths.
        step: batches taken, for `global_step`.
        schedule_step: what the schedule is asked next, or how many metrics it has seen;
            None for `step`.
        schedule_state: of a schedule that a metric drives, what it remembers.
        trainer_state: fields of `trainer_state.json`, such as those of a run's own
            file. Other fields have Trainer's default; settings of the run, such as
            `eval_steps`, and the states of callbacks have the values of `like`.
        like: a checkpoint folder of the same run. Its other files, such as config.json
            and the tokenizer, are copied, and so are the model's buffers. If it
            contains trainer_state.json, optimizer.pt or scheduler.pt, the new file has
            the same fields, so that the same version reads it. If its weights are in
            pytorch_model.bin, so are the new ones.
        groups: names of each group; None for Trainer's own.
        layouts: as `adafactor_tf` has them.

    Raises:
        ValueError: if the folder is there, the recipe has no state in torch, a field
            of `trainer_state` is unknown to the version, or a file of `like` is
            damaged.

    Source: transformers 5.23 `trainer.py`, `_save_checkpoint`.
    """
    folder = Path(folder)
    like = None if like is None else Path(like)
    if folder.exists():
        raise ValueError(
            f"`folder` must not be there yet, got {str(folder)!r}. Name another, or "
            "remove it."
        )
    if not folder.parent.is_dir():
        raise ValueError(
            f"`folder` must be in a folder that exists, got {str(folder)!r}. Make "
            f"{str(folder.parent)!r} first."
        )
    step = _checks.step_count("step", step)
    position = step if schedule_step is None else schedule_step
    json_state = trainer_state_like(like, trainer_state or {}, recipe, step)
    scheduler, rate = _scheduler(recipe, position, schedule_state)
    settings = param_groups_from_recipe(recipe, rate)
    buffers = read_buffers(like, names.model)

    temporary = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        for path in _others(like):
            shutil.copy2(path, temporary / path.name)
        weights = temporary / weights_file_like(like)
        write_params(weights, params, names, buffers)
        state_dict = torch_from_opt_state(
            opt_state,
            params,
            names,
            settings,
            groups=groups,
            layouts=layouts,
            decay_rule=recipe.decay_rule,
        )
        save_torch(state_dict_like(like, state_dict), temporary / OPTIMIZER)
        save_torch(scheduler_like(like, scheduler), temporary / SCHEDULER)
        text = json.dumps(json_state, indent=2, sort_keys=True)
        (temporary / STATE).write_text(f"{text}\n", encoding="utf-8")
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _scheduler(
    recipe: Recipe, position: int, schedule_state: PlateauState | GreedyState | None
) -> tuple[dict[str, Any], float]:
    """The scheduler's state, and the rate of the next update."""
    if recipe.lr_scheduler_type not in METRIC_DRIVEN:
        state = torch_from_schedule_step(position, recipe)
        return state, state["_last_lr"][0]
    if schedule_state is None:
        raise ValueError(
            f"`schedule_state` must be given for {recipe.lr_scheduler_type!r}, got "
            "None. Pass what the schedule remembers."
        )
    settings = dict(recipe.lr_scheduler_kwargs)
    bases = [float(recipe.learning_rate)] * 2
    state = torch_from_metric_state(schedule_state, settings, bases, position)
    return state, state["_last_lr"][0]


def _others(like: Path | None) -> list[Path]:
    """The files of a folder that a checkpoint of another step has too."""
    if like is None:
        return []
    return sorted(
        path
        for path in like.iterdir()
        if path.is_file()
        and not path.name.startswith(_NOT_COPIED)
        and not path.name.endswith(".safetensors")
    )
