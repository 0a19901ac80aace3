"""Fields and files of a checkpoint, as the version that wrote `like` has them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..recipes import Recipe
from ._hf_checkpoint import read_trainer_state
from ._hf_folder import MODEL_FILES, OPTIMIZER, SCHEDULER, STATE
from ._torch_files import load_torch, map_torch

_SAFETENSORS, _BIN = MODEL_FILES[0], "pytorch_model.bin"

# Trainer resumes without it and fails when it saves.
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
_DEFAULTS: dict[str, Any] = {
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
# Trainer follows the file in these, not its arguments. The other fields change with
# every step. A callback that is not among the `stateful_callbacks` fails when it saves.
_OF_THE_RUN = (
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
# Keys of which a file has one, by its optimizer or schedule.
_OPTIMIZERS = frozenset({"betas", "clip_threshold"})
_SCHEDULES = frozenset({"lr_lambdas", "mode_worse", "num_good_epochs"})


def trainer_state_like(
    like: Path | None, given: Mapping[str, Any], recipe: Recipe, step: int
) -> dict[str, Any]:
    """Returns all fields of `trainer_state.json` that the version of `like` has.

    `TrainerState(**fields)` of a version fails on a field that it does not have, and
    every version writes all of its fields: the file of `like` lists them. Without one
    they are those of version 5.23.

    Raises:
        ValueError: if `given` has other fields.

    Source: transformers 5.23 `trainer_callback.py`, `TrainerState`; in 4.40 it has no
        `stateful_callbacks` and until 4.49 no `best_global_step`.
    """
    state, own = dict(_DEFAULTS), {}
    whose = "of Trainer's state"
    cure = "Leave them out, or pass a checkpoint that has them as `like`."
    if like is not None and (like / STATE).is_file():
        own = read_trainer_state(like / STATE)
        state = {name: _DEFAULTS.get(name, value) for name, value in own.items()}
        state |= {name: own[name] for name in _OF_THE_RUN if name in own}
        whose = f"of {str(like / STATE)!r}"
        cure = "Leave them out: the version that wrote it fails on them."
    counted = {"global_step": step, "max_steps": recipe.max_steps}
    odd = sorted(set(given) - set(state) - set(counted))
    if odd:
        raise ValueError(
            f"`trainer_state` must have the fields {whose}, got {odd}. {cure}"
        )
    state |= {**given, **counted}
    # Trainer divides by it, None or not.
    if "train_batch_size" in state and state["train_batch_size"] is None:
        state["train_batch_size"] = recipe.per_device_train_batch_size
    return state


def state_dict_like(like: Path | None, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the optimizer's state with the settings that groups have in `like`.

    Releases of torch have further settings or fewer. `param_names` is kept: every
    release hands it on, and it tells which moment is whose.
    """
    state_dict = dict(state_dict)
    if like is None or not (like / OPTIMIZER).is_file():
        return state_dict
    # Only its keys are read: gigabytes of moments are not.
    saved = map_torch(like / OPTIMIZER)
    groups = saved.get("param_groups") if isinstance(saved, Mapping) else None
    if not isinstance(groups, list) or not groups:
        return state_dict
    named = {"params", "param_names"}
    theirs = {k: v for k, v in dict(groups[0]).items() if k not in named}
    if "step" in theirs:  # of Apex, which counts in the group and not in the entries
        entries = state_dict["state"].values()
        theirs["step"] = max((int(entry["step"]) for entry in entries), default=0)
    state_dict["param_groups"] = [
        {
            **_keys_like(
                theirs, {k: v for k, v in g.items() if k not in named}, _OPTIMIZERS
            ),
            **{key: g[key] for key in named if key in g},
        }
        for g in state_dict["param_groups"]
    ]
    return state_dict


def scheduler_like(like: Path | None, scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the scheduler's state with the keys that it has in `like`."""
    if like is None or not (like / SCHEDULER).is_file():
        return dict(scheduler)
    theirs = load_torch(like / SCHEDULER)
    return _keys_like(theirs, dict(scheduler), _SCHEDULES)


def weights_file_like(like: Path | None) -> str:
    """Returns the name of the file with the weights.

    Trainer 4 with `save_safetensors=False` reads `pytorch_model.bin` alone.
    """
    if like is None or any(like.glob("model*.safetensors*")):
        return _SAFETENSORS
    return _BIN if any(like.glob("pytorch_model*.bin*")) else _SAFETENSORS


def _keys_like(
    theirs: Any, ours: dict[str, Any], kinds: frozenset[str]
) -> dict[str, Any]:
    """Returns `ours` with the keys of `theirs`; all of `ours` for another kind."""
    if not isinstance(theirs, Mapping) or kinds & theirs.keys() != kinds & ours.keys():
        return ours
    return {key: ours.get(key, value) for key, value in theirs.items()}
