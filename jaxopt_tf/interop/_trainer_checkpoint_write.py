"""Writing of checkpoint folders for Transformers' Trainer."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import _checks
from .._typing import PyTree
from ..monitors import default_trainer_state, write_trainer_state
from ..optimizers import TorchLayout
from ..recipes import Recipe
from ..schedules import GreedyState, PlateauState
from ._adapter import write_adapter_config
from ._model_weights import read_buffers, write_params
from ._optimizer_state import torch_from_opt_state
from ._param_groups import Groups, param_groups_from_recipe
from ._param_names import ParamNames
from ._quantized_moments import like_bitsandbytes
from ._schedule_free import has_schedule_free, mean_params
from ._scheduler_state import torch_from_schedule
from ._torch_files import load_torch, map_torch, save_torch
from ._trainer_checkpoint import read_trainer_state
from ._trainer_folder import (
    ADAPTER_CONFIG,
    ADAPTER_FILES,
    MODEL_FILES,
    OPTIMIZER,
    SCHEDULER,
    STATE,
)

# Prefixes of names of files that belong to one step and are not copied from `like`.
_NOT_COPIED = (
    *MODEL_FILES,
    *ADAPTER_FILES,
    "pytorch_model-",
    OPTIMIZER,
    "optimizer.bin",
    SCHEDULER,
    STATE,
    "rng_state",
    "scaler",
)
# Fields of trainer_state.json that are settings of a run; all others change with every
# step. Trainer uses the values in the file, not those of its arguments. A callback that
# is missing in `stateful_callbacks` fails when the resumed run saves.
_SETTINGS = (
    "eval_steps",
    "is_hyper_param_search",
    "logging_steps",
    "num_train_epochs",
    "save_steps",
    "stateful_callbacks",
    "train_batch_size",
    "trial_name",
    "trial_params",
)
# Keys that identify a group of AdamW, of bitsandbytes' AdamW, of schedulefree, of
# StableAdamW, of Adafactor or of torch's SGD, Adagrad or RMSprop, or the type of a
# schedule.
_KINDS = frozenset(
    {
        "betas",
        "train_mode",
        "t_alpha",
        "decouple_lr",
        "clip_threshold",
        "dampening",
        "lr_decay",
        "centered",
        "lr_lambdas",
        "mode_worse",
        "num_good_epochs",
    }
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
    frozen: PyTree = (),
    train_mode: bool = True,
) -> None:
    """Writes a folder from which `Trainer.train(resume_from_checkpoint=...)` resumes.

    The folder contains model.safetensors (for a PEFT model adapter_model.safetensors
    and adapter_config.json), optimizer.pt, scheduler.pt and trainer_state.json, and is
    written atomically. The files have the fields of the versions of Transformers and
    torch that wrote `like`, else those of transformers 5.23 and torch 2.13. The state
    of torch's random number generator is not written, so dropout masks differ. Trainer
    logs this, and derives the order of the data from its seed.

    Args:
        folder: a folder that does not exist yet, such as `checkpoint-500` in Trainer's
            `output_dir`.
        params: the parameters.
        opt_state: state of an optimizer that `torch_from_opt_state` converts.
        names: names of torch's parameters, with the leaf of each.
        recipe: the recipe of the run. The groups are those of its `decay_rule` if that
            is a version's rule or a sequence of patterns, else those of
            "transformers_v5". Trainer makes groups by the rule of its version, and
            refuses a file with groups of other lengths.
        step: `global_step`, the number of updates so far, including skipped ones.
        schedule_step: step passed to the schedule next; for a metric-driven schedule,
            the number of metrics that it received; None for `step`.
        schedule_state: state of a metric-driven schedule; else None.
        trainer_state: fields of `trainer_state.json`, such as those that a run has
            written. If a field is left out, a setting of the run (such as `eval_steps`)
            or a state of a callback has the value of `like`, and any other field
            Trainer's default.
        like: a checkpoint folder of the same run. Its other files, such as config.json
            and the tokenizer, and the buffers of the model are copied. If it contains
            trainer_state.json, optimizer.pt or scheduler.pt, the new file has the same
            fields, so that the same version can read it. If its weights are in
            pytorch_model.bin, the new weights are in a file of that name.
        groups: names of the parameters of each group; None for Trainer's groups.
        layouts: layouts that `adafactor_tf` or `adamw_8bit_tf` was built with.
        frozen: parameters that `opt_state` does not have, without leaves in common with
            `params`.
        train_mode: for a schedule-free optimizer, True to write the parameters of
            training, from which Trainer resumes with the same bits; False to write
            their mean, as Trainer does after an evaluation.

    Raises:
        ValueError: if the recipe has `ema_decay`, which Trainer does not have; if the
            folder exists, if the state of the recipe's optimizer cannot
            be converted, if a field of `trainer_state` does not exist in the version,
            or if a file of `like` is damaged.

    Source: transformers 5.23 `trainer.py`, `_save_checkpoint`.
    """
    folder = Path(folder)
    like = None if like is None else Path(like)
    if folder.exists():
        raise ValueError(
            f"`folder` must not exist yet, got {str(folder)!r}. Pass another folder, "
            "or remove it."
        )
    if not folder.parent.is_dir():
        raise ValueError(
            f"`folder` must be in an existing folder, got {str(folder)!r}. Create "
            f"{str(folder.parent)!r} first."
        )
    if recipe.ema_decay is not None:
        raise _checks.ArgumentError(
            "recipe",
            f"`recipe` must have no `ema_decay`, got {recipe.ema_decay!r}: Trainer has "
            "no mean of the parameters, and would lose it.",
            "Use `dataclasses.replace(recipe, ema_decay=None)` to write the parameters "
            "of training without the mean.",
        )
    step = _checks.step_count("step", step)
    position = step if schedule_step is None else schedule_step
    found = [] if like is None else sorted(path for path in like.iterdir())
    files = {path.name: path for path in found if path.is_file()}
    # Everything that may raise an error is computed before the folder is created.
    json_state = _trainer_state(files, trainer_state or {}, recipe, step)
    scheduler = torch_from_schedule(recipe, position, schedule_state)
    settings = param_groups_from_recipe(recipe, scheduler["_last_lr"][0])
    is_free, last_rate = has_schedule_free(opt_state), None
    if is_free and position > 0 and schedule_state is None:
        previous = torch_from_schedule(recipe, position - 1, None)
        last_rate = previous["_last_lr"][0]
    buffers = read_buffers(like, names.model)

    # The files are written to a temporary folder, which is renamed at the end: Trainer
    # never finds an incomplete checkpoint. If the process is killed, the temporary
    # folder remains until the next call.
    temporary = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        for name, path in files.items():
            if not name.startswith(_NOT_COPIED) and not name.endswith(".safetensors"):
                shutil.copy2(path, temporary / name)
        adapter = names.model.adapter
        if adapter is not None and ADAPTER_CONFIG not in files:
            write_adapter_config(temporary, adapter.config)
        weights = ADAPTER_FILES[0] if adapter is not None else _weights_file(files)
        written = params
        if is_free and not train_mode:
            written = mean_params(params, opt_state, settings)
        write_params(temporary / weights, written, names, buffers, frozen)
        state_dict = torch_from_opt_state(
            opt_state,
            params,
            names,
            settings,
            groups=groups,
            layouts=layouts,
            decay_rule=recipe.decay_rule,
            last_rate=last_rate,
        )
        if is_free and not train_mode:
            for group in state_dict["param_groups"]:
                group["train_mode"] = False
        save_torch(_state_dict_like(files, state_dict), temporary / OPTIMIZER)
        if SCHEDULER in files:
            scheduler = _keys_like(load_torch(files[SCHEDULER]), scheduler)
        save_torch(scheduler, temporary / SCHEDULER)
        write_trainer_state(temporary / STATE, json_state)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _weights_file(files: Mapping[str, Path]) -> str:
    """Returns the name of the weight file.

    Trainer 4 with `save_safetensors=False` reads only `pytorch_model.bin`.
    """
    is_old = any(name.startswith("pytorch_model") and ".bin" in name for name in files)
    is_new = any(name.startswith("model") and ".safetensors" in name for name in files)
    return "pytorch_model.bin" if is_old and not is_new else MODEL_FILES[0]


def _trainer_state(
    files: Mapping[str, Path], given: Mapping[str, Any], recipe: Recipe, step: int
) -> dict[str, Any]:
    """Returns all fields of `trainer_state.json` that the version of `like` has.

    `TrainerState(**fields)` raises for a field that the version does not have. Every
    version writes all of its fields, so the file of `like` lists them. Without `like`
    the fields are those of version 5.23.

    Raises:
        ValueError: if `given` has other fields.

    Source: transformers 5.23 `trainer_callback.py`, `TrainerState`; in 4.40 it has no
        `stateful_callbacks` and until 4.49 no `best_global_step`.
    """
    defaults = default_trainer_state()
    state, origin = dict(defaults), "of Trainer's state"
    remedy = "Remove them, or pass a checkpoint that has them as `like`."
    if STATE in files:
        trainer_state = read_trainer_state(files[STATE])
        state = {
            name: defaults.get(name, value) for name, value in trainer_state.items()
        }
        state |= {
            name: trainer_state[name] for name in _SETTINGS if name in trainer_state
        }
        origin = f"of {str(files[STATE])!r}"
        remedy = "Remove them: the version that wrote it does not have them."
    progress = {"global_step": step, "max_steps": recipe.max_steps}
    unexpected = sorted(set(given) - set(state) - set(progress))
    if unexpected:
        raise ValueError(
            f"`trainer_state` must have the fields {origin}, got {unexpected}. {remedy}"
        )
    state |= {**given, **progress}
    # Trainer divides by `train_batch_size` without a test for None.
    if "train_batch_size" in state and state["train_batch_size"] is None:
        state["train_batch_size"] = recipe.per_device_train_batch_size
    return state


def _state_dict_like(
    files: Mapping[str, Path], state_dict: dict[str, Any]
) -> dict[str, Any]:
    """Returns the state dict with the settings that groups have in `like`.

    The settings depend on the version of torch. `param_names` is always written: every
    version preserves it, and it assigns the moments to their parameters.
    """
    # Only the keys are used, so the file is mapped without reading its moments.
    saved = map_torch(files[OPTIMIZER]) if OPTIMIZER in files else None
    groups = saved.get("param_groups") if isinstance(saved, Mapping) else None
    if not isinstance(groups, list) or not groups:
        return state_dict
    names = ("params", "param_names")
    like_settings = {k: v for k, v in dict(groups[0]).items() if k not in names}
    # Apex counts updates in the group and not in the entries.
    if "step" in like_settings:
        entries = state_dict["state"].values()
        like_settings["step"] = max(
            (int(entry["step"]) for entry in entries if "step" in entry), default=0
        )
    new_groups = [
        {**_keys_like(like_settings, group), **{name: group[name] for name in names}}
        for group in state_dict["param_groups"]
    ]
    new = {**state_dict, "param_groups": new_groups}
    return like_bitsandbytes(new, saved)


def _keys_like(template: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Returns `settings` with the keys of `template`, if they are of one kind."""
    if (
        not isinstance(template, Mapping)
        or _KINDS & template.keys() != _KINDS & settings.keys()
    ):
        return settings
    return {key: settings.get(key, value) for key, value in template.items()}
