"""A Trainer's checkpoint folder goes out."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import _check
from .._typing import PyTree
from ..optimizers import TorchLayout
from ..recipes import METRIC_DRIVEN, Recipe
from ..schedules import GreedyState, PlateauState
from ._hf_folder import MODEL_FILES, OPTIMIZER, SCHEDULER, STATE
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
    SCHEDULER,
    STATE,
    "rng_state",
    "scaler",
)

# Without it Trainer goes on, and fails when it saves.
_CONTROL = {
    "args": {
        "should_epoch_stop": False,
        "should_evaluate": False,
        "should_log": False,
        "should_save": True,
        "should_training_stop": False,
    },
    "attributes": {},
}


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
    is there whole or not at all. The state of torch's random numbers is left out, with
    which only dropout would go on as it was: Trainer notes that in its log, and takes
    the order of the data from its seed.

    Args:
        folder: a folder that is not there yet; a `checkpoint-500` in Trainer's
            `output_dir`, say.
        params: the parameters.
        opt_state: the state of their optimizer, AdamW or Adafactor.
        names: which leaf is which torch parameter.
        recipe: the numbers of the run. Decay is by Trainer's groups, which are those of
            `decay_rule="transformers_v5"`.
        step: batches taken, for `global_step`.
        schedule_step: what the schedule is asked next, or how many metrics it has seen;
            None for `step`.
        schedule_state: of a schedule that a metric drives, what it remembers.
        trainer_state: fields of `trainer_state.json`, those of a run's own file, say.
            What is not in it has Trainer's default.
        like: a folder of the same run: what else is in it, its config.json and its
            tokenizer, is copied, and what the model saves beside its parameters.
        groups: names of each group; None for Trainer's own.
        layouts: as `adafactor_tf` has them.

    Raises:
        ValueError: if the folder is there, the recipe has no state in torch, or a
            field of `trainer_state` is unknown.

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
    step = _check.step_count("step", step)
    position = step if schedule_step is None else schedule_step
    json_state = _trainer_state(trainer_state or {}, recipe, step)
    scheduler, rate = _scheduler(recipe, position, schedule_state)
    settings = param_groups_from_recipe(recipe, rate)
    buffers = read_buffers(like, names.model)

    temporary = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        for path in _others(like):
            shutil.copy2(path, temporary / path.name)
        write_params(temporary / MODEL_FILES[0], params, names, buffers)
        state_dict = torch_from_opt_state(
            opt_state, params, names, settings, groups=groups, layouts=layouts
        )
        save_torch(state_dict, temporary / OPTIMIZER)
        save_torch(scheduler, temporary / SCHEDULER)
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


def _trainer_state(
    given: Mapping[str, Any], recipe: Recipe, step: int
) -> dict[str, Any]:
    """All fields of Trainer's state.

    Source: transformers 5.23 `trainer_callback.py`, `TrainerState`.
    """
    defaults: dict[str, Any] = {
        "best_global_step": None,
        "best_metric": None,
        "best_model_checkpoint": None,
        "epoch": 0.0,
        "eval_steps": 500,
        "is_hyper_param_search": False,
        "is_local_process_zero": True,
        "is_world_process_zero": True,
        "log_history": [],
        "logging_steps": 500,
        "num_input_tokens_seen": 0,
        "num_train_epochs": 0,
        "save_steps": 500,
        "stateful_callbacks": {"TrainerControl": _CONTROL},
        "total_flos": 0.0,
        "train_batch_size": None,
        "trial_name": None,
        "trial_params": None,
    }
    odd = sorted(set(given) - set(defaults) - {"global_step", "max_steps"})
    if odd:
        raise ValueError(
            f"`trainer_state` must have the fields of Trainer's state, got {odd}."
        )
    state = {**defaults, **given, "global_step": step, "max_steps": recipe.max_steps}
    # Trainer divides by it, None or not.
    if state["train_batch_size"] is None:
        state["train_batch_size"] = recipe.per_device_train_batch_size
    return state


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
