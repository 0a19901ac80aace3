"""Checkpoint folder of Transformers' Trainer, read as a run of ours."""

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
from ._scheduler_state import schedule_from_torch
from ._state_dict import TorchState, has_names, read_state_dict
from ._torch_files import MappedState, errors_name, load_torch
from ._trainer_folder import (
    OPTIMIZER,
    SCHEDULER,
    STATE,
    check_files,
    check_folder_is_trainers,
    check_order,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainerCheckpoint:
    """Run in a Trainer's checkpoint folder.

    Attributes:
        params: the parameters.
        opt_state: the optimizer's state; None if `opt_state` was not given.
        schedule_state: state of a schedule that a metric drives; else None.
        schedule_step: step passed to the schedule next; for one that a metric drives,
            the number of its metrics.
        step: number of batches, `global_step`; updates that torch skipped count.
        epoch: number of passes over the data, with a fraction.
        trainer_state: all of `trainer_state.json`, `log_history` included.
        param_groups: settings of torch's groups, without their parameters.
        missing: missing files.
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
    """Reads the run in a Trainer's checkpoint folder, such as `checkpoint-500/`.

    Files are mapped and converted leaf by leaf; no code in them is run. Moments are
    assigned by the order of the groups, as `opt_state_from_torch` describes, which
    cannot detect parameters of one shape in another order.

    Args:
        folder: the folder.
        params: parameters of the right structure, dtypes and devices, or their shapes.
        names: leaf of each torch parameter.
        recipe: the numbers of the run; the file's rate, schedule and groups are checked
            against it.
        opt_state: the result of `optimizer.init(params)`, for an optimizer that decays
            as Trainer does, `build_optimizer(recipe, layer_norms=names.layer_norms)`.
            None: the parameters alone.
        groups: names in the order in which torch was given them, for each group; None
            for Trainer's own, which depend on the version: those of
            `recipe.decay_rule`, or those of the one version that fits the file.
        layouts: as `adafactor_tf` has them.
        without: names of files that may be missing, of optimizer.pt, scheduler.pt and
            trainer_state.json.

    Raises:
        ValueError: if a file is missing, with the consequence of reading without it; if
            one is unreadable, of another model or another format; if the recipe
            contradicts them; or if it decays other parameters than the groups of
            optimizer.pt, with the `decay_rule` that fits. Without weight decay, other
            groups are no error.

    Source: transformers 5.23 `trainer.py`, `_load_optimizer_and_scheduler`,
        `_load_from_checkpoint` and `_init_training_state`.
    Differs: what Trainer ignores with a warning, or silently, is an error.
    """
    # Small files first: an unfit folder is refused before gigabytes are read.
    folder = Path(folder)
    check_folder_is_trainers(folder)
    wanted = [STATE, SCHEDULER] + [OPTIMIZER] * (opt_state is not None)
    missing = check_files(folder, wanted, without)
    trainer_state = {} if STATE in missing else read_trainer_state(folder / STATE)
    scheduler = None if SCHEDULER in missing else load_torch(folder / SCHEDULER)
    with errors_name(folder / SCHEDULER):
        position, schedule_state = schedule_from_torch(
            scheduler, recipe, trainer_state.get("global_step")
        )
    param_groups: tuple[Mapping[str, Any], ...] = ()
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
        with errors_name(folder / OPTIMIZER):
            opt_state = convert_state(
                opt_state, params, state, names, layouts=layouts, step=position
            )
        del state  # the mapped file, before the next is read
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
    """Returns the `decay_rule` by which a recipe decays what optimizer.pt decays.

        rule = decay_rule_from_checkpoint("checkpoint-500", names)
        recipe = dataclasses.replace(recipe, decay_rule=rule)

    It is for groups that no version of Trainer makes: those of a script, of a subclass.

    Args:
        folder: a Trainer's checkpoint folder.
        names: leaf of each torch parameter.
        groups: as `read_trainer_checkpoint` takes them.

    Returns:
        "default" or "all", if these decay the same parameters; else regular expressions
        for the names of the leaves that are not decayed.

    Raises:
        ValueError: if optimizer.pt is missing or cannot be read; or if the file decays
            a leaf in part.
    """
    folder = Path(folder)
    check_folder_is_trainers(folder)
    if not (folder / OPTIMIZER).is_file():
        raise ValueError(
            f"`folder` must contain {OPTIMIZER}, got {str(folder)!r} without it. Name "
            "a rule of `decay_mask`."
        )
    state = read_state_dict(_optimizer(folder / OPTIMIZER), names, groups)
    return decay_rule_of_file(state.decayed, names)


def read_trainer_state(path: Path) -> dict[str, Any]:
    """Reads `trainer_state.json`.

    Raises:
        ValueError: if it is no JSON of a Trainer's state.
    """
    # Text of any kind ends in one of these: deep nesting in a RecursionError.
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        step = state["global_step"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"`path` must be a Trainer's {STATE}, got {str(path)!r}: {error!r}."
        ) from error
    with errors_name(path):
        _checks.step_count("global_step", step)
        _checks.non_negative("epoch", state.get("epoch") or 0.0)
    return state


def _checked_optimizer(
    folder: Path, names: ParamNames, recipe: Recipe, groups: Groups | None
) -> TorchState:
    """Reads optimizer.pt; raises unless its groups have the recipe's numbers."""
    path = folder / OPTIMIZER
    saved = _optimizer(path)
    with errors_name(path):
        state = read_state_dict(saved, names, groups, recipe.decay_rule)
    # Numbers alone are assigned by the order of the model's parameters.
    if groups is None and not has_names(state.groups):
        check_order(folder)
    with errors_name(path):
        check_param_groups(state.groups, recipe)
    check_decay(state.decayed, names, recipe, str(path))
    return state


def _optimizer(path: Path) -> Any:
    saved = load_torch(path)
    # Anything else is refused by `read_state_dict`, with what it is.
    if isinstance(saved, dict) and isinstance(saved.get("state"), dict):
        saved["state"] = MappedState(path, saved["state"])
    return saved
