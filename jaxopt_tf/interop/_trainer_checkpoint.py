"""Reading of checkpoint folders of Transformers' Trainer."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import _checks
from .._typing import PyTree
from ..optimizers import TorchLayout
from ..recipes import Recipe, build_schedule
from ..schedules import GreedyState, PlateauState
from ._model_weights import read_weights
from ._optimizer_state import convert_state
from ._param_groups import (
    Groups,
    check_decay,
    check_param_groups,
    decay_rule_of_file,
)
from ._param_names import ParamNames
from ._schedule_free import has_schedule_free, training_params
from ._scheduler_state import schedule_from_torch
from ._state_dict import TorchState, has_names, read_state_dict
from ._torch_files import MappedState, errors_with_path, load_torch
from ._trainer_folder import (
    OPTIMIZER,
    SCHEDULER,
    STATE,
    check_files,
    check_param_order,
    check_trainer_folder,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainerCheckpoint:
    """Contents of a Trainer's checkpoint folder.

    Attributes:
        params: the parameters.
        opt_state: the optimizer state; None if `opt_state` was not given.
        schedule_state: state of a metric-driven schedule; else None.
        schedule_step: step passed to the schedule next; for a metric-driven schedule,
            the number of metrics that it received.
        step: `global_step` of Trainer, which includes updates that torch skipped.
        epoch: number of passes over the data, as a fraction.
        trainer_state: contents of `trainer_state.json`, including `log_history`.
        param_groups: settings of torch's groups, without their parameters.
        missing: names of files that are missing.
        unused: names of tensors in the weight files that were left out.
    """

    params: PyTree
    opt_state: PyTree | None
    schedule_state: PlateauState | GreedyState | None
    schedule_step: int
    step: int
    epoch: float
    trainer_state: Mapping[str, Any]
    param_groups: tuple[Mapping[str, Any], ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...] = ()


def read_trainer_checkpoint(
    folder: Path | str,
    params: PyTree,
    names: ParamNames,
    *,
    recipe: Recipe,
    opt_state: PyTree | None = None,
    groups: Groups | None = None,
    layouts: Mapping[str, TorchLayout] | None = None,
    without: Collection[str] = (),
) -> TrainerCheckpoint:
    """Reads a Trainer's checkpoint folder, such as `checkpoint-500`.

    If `names` are those of a PEFT model, the weights are those of its adapter. Files
    are memory-mapped and converted leaf by leaf. No code in them is run. The weights of
    a file of schedulefree whose `train_mode` is False are converted to those of
    training. Moments
    are assigned by the order of the groups, as described in `opt_state_from_torch`: an
    exchange of two parameters of equal shape cannot be detected.

    Args:
        folder: the folder.
        params: parameters of the right structure, dtypes and devices, or their shapes.
        names: names of torch's parameters, with the leaf of each.
        recipe: the recipe of the run. The rate, schedule and groups in the files must
            agree with it.
        opt_state: the result of `optimizer.init(params)`, for an optimizer that decays
            the same parameters as Trainer, such as
            `build_optimizer(recipe, layer_norms=names.layer_norms)`. None: optimizer.pt
            is not read.
        groups: names of the parameters of each group, in the order in which they were
            passed to torch; None for Trainer's groups, which depend on its version:
            those of `recipe.decay_rule`, or those of the only version that matches.
        layouts: layouts that `adafactor_tf` or `adamw_8bit_tf` was built with.
        without: which of optimizer.pt, scheduler.pt and trainer_state.json may be
            missing.

    Returns:
        The parameters, the states of optimizer and schedule, and the step.

    Raises:
        ValueError: if a file is missing (the message describes the effect of reading
            without it), unreadable, or of another model or format; if the recipe
            contradicts the files; or if the recipe decays other parameters than the
            groups of optimizer.pt (the message has the matching `decay_rule`). Groups
            may differ if there is no weight decay.

    Source: transformers 5.23 `trainer.py`, `_load_optimizer_and_scheduler`,
        `_load_from_checkpoint` and `_init_training_state`.
    Differs: inconsistencies that Trainer ignores, with a warning or silently, are
        errors here.
    """
    # Small files are read first, so that most errors occur before gigabytes are read.
    folder = Path(folder)
    is_adapter = names.model.adapter is not None
    check_trainer_folder(folder, is_adapter=is_adapter)
    required = [STATE, SCHEDULER] + [OPTIMIZER] * (opt_state is not None)
    missing = check_files(folder, required, without, is_adapter=is_adapter)
    trainer_state = {} if STATE in missing else read_trainer_state(folder / STATE)
    scheduler = None if SCHEDULER in missing else load_torch(folder / SCHEDULER)
    with errors_with_path(folder / SCHEDULER):
        position, schedule_state = schedule_from_torch(
            scheduler, recipe, trainer_state.get("global_step")
        )
    param_groups: tuple[Mapping[str, Any], ...] = ()
    is_free = False
    if opt_state is not None:
        if OPTIMIZER in missing:
            if schedule_state is None:
                schedule: Any = build_schedule(recipe)
                rate = float(schedule(position))
            else:
                rate = schedule_state.learning_rate
            state = TorchState.before_first_update(names, rate)
        else:
            state = _checked_optimizer(folder, names, recipe, groups)
            # The rate in optimizer.pt is the last one that the schedule set.
            if schedule_state is not None and SCHEDULER in missing:
                rate = float(state.groups[0]["lr"])
                schedule_state = schedule_state._replace(learning_rate=rate)
            param_groups = tuple(
                {key: value for key, value in group.items() if key != "params"}
                for group in state.groups
            )
        is_free = has_schedule_free(opt_state)
        if is_free:  # z of a parameter without an entry is the parameter
            params, unused = read_weights(folder, params, names)
        with errors_with_path(folder / OPTIMIZER):
            opt_state = convert_state(
                opt_state, params, state, names, layouts=layouts, step=position
            )
        if is_free:
            params = training_params(params, opt_state, state.groups)
        del state  # closes the memory map before the weights are read
    if not is_free:
        params, unused = read_weights(folder, params, names)
    return TrainerCheckpoint(
        params=params,
        opt_state=opt_state,
        schedule_state=schedule_state,
        schedule_step=position,
        step=trainer_state.get("global_step", position),
        epoch=float(trainer_state.get("epoch") or 0.0),
        trainer_state=trainer_state,
        param_groups=param_groups,
        missing=missing,
        unused=unused,
    )


def decay_rule_from_checkpoint(
    folder: Path | str, names: ParamNames, *, groups: Groups | None = None
) -> str | tuple[str, ...]:
    """Returns the `decay_rule` that decays the same parameters as optimizer.pt.

        rule = decay_rule_from_checkpoint("checkpoint-500", names)
        recipe = dataclasses.replace(recipe, decay_rule=rule)

    The function is needed for groups that no version of Trainer makes, such as those of
    a script or of a subclass of Trainer.

    Args:
        folder: a Trainer's checkpoint folder.
        names: names of torch's parameters, with the leaf of each.
        groups: names of the parameters of each group, as for `read_trainer_checkpoint`.

    Returns:
        "default" or "all" if one of these decays the same parameters; else regular
        expressions for the names of the leaves that are not decayed.

    Raises:
        ValueError: if optimizer.pt is missing or cannot be read, or if a leaf contains
            both decayed and undecayed parameters.
    """
    folder = Path(folder)
    check_trainer_folder(folder, is_adapter=names.model.adapter is not None)
    if not (folder / OPTIMIZER).is_file():
        raise ValueError(
            f"`folder` must contain {OPTIMIZER}, got {str(folder)!r} without it. Use "
            "a rule of `decay_mask`."
        )
    state = read_state_dict(_optimizer(folder / OPTIMIZER), names, groups)
    return decay_rule_of_file(state.decayed, names)


def read_trainer_state(path: Path) -> dict[str, Any]:
    """Reads `trainer_state.json`.

    Raises:
        ValueError: if the file is not the JSON of a Trainer's state.
    """
    # `json.loads` raises ValueError for text that is not JSON, and RecursionError for
    # deeply nested lists. The lookup raises for JSON without `global_step`.
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        step = state["global_step"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"`path` must be the {STATE} of a Trainer, got {str(path)!r}: {error!r}."
        ) from error
    with errors_with_path(path):
        _checks.step_count("global_step", step)
        _checks.non_negative("epoch", state.get("epoch") or 0.0)
    return state


def _checked_optimizer(
    folder: Path, names: ParamNames, recipe: Recipe, groups: Groups | None
) -> TorchState:
    """Reads optimizer.pt, and raises if its groups contradict the recipe."""
    path = folder / OPTIMIZER
    saved = _optimizer(path)
    with errors_with_path(path):
        state = read_state_dict(saved, names, groups, recipe.decay_rule)
    # Without names, moments are assigned by the order of the model's parameters, which
    # some versions of Transformers changed.
    if groups is None and not has_names(state.groups):
        check_param_order(folder)
    with errors_with_path(path):
        check_param_groups(state.groups, recipe)
    check_decay(state.decayed, names, recipe, str(path))
    return state


def _optimizer(path: Path) -> Any:
    saved = load_torch(path)
    # Other contents are refused by `read_state_dict`.
    if isinstance(saved, dict) and isinstance(saved.get("state"), dict):
        saved["state"] = MappedState(path, saved["state"])
    return saved
