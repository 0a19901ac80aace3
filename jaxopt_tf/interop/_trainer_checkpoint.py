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
from ..schedules import (
    GreedyState,
    MetricDrivenSchedule,
    PlateauState,
)
from ._metric_state import metric_state_from_torch
from ._model_weights import read_weights
from ._optimizer_state import convert_state
from ._param_groups import check_decay, check_param_groups, decay_rule_of_file
from ._param_names import ParamNames
from ._scheduler_state import schedule_step_from_torch
from ._state_dict import Groups, has_names, read_state_dict
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
        position, schedule_state = _schedule(scheduler, trainer_state, recipe)
    saved_groups: tuple[Mapping[str, Any], ...] = ()
    if opt_state is not None:
        path, is_there = folder / OPTIMIZER, OPTIMIZER not in missing
        rate = _rate(recipe, position, schedule_state)
        saved = _optimizer(path) if is_there else _nothing_updated(names, rate)
        with errors_name(path):
            state = read_state_dict(saved, names, groups, recipe.decay_rule)
            opt_state = convert_state(
                opt_state, params, state, names, layouts=layouts, step=position
            )
        if is_there:
            # Numbers alone are assigned by the order of the model's parameters.
            if groups is None and not has_names(state.groups):
                check_order(folder)
            with errors_name(path):
                check_param_groups(state.groups, recipe)
            check_decay(state.decayed, names, recipe, str(path))
            # The rate in optimizer.pt is the last one that the schedule set.
            if schedule_state is not None and SCHEDULER in missing:
                found = float(saved["param_groups"][0]["lr"])
                schedule_state = schedule_state._replace(learning_rate=found)
            saved_groups = tuple(
                {key: value for key, value in group.items() if key != "params"}
                for group in state.groups
            )
        del saved, state  # the mapped file, before the next is read
    params, unused = read_weights(folder, params, names)
    return TrainerCheckpoint(
        params=params,
        opt_state=opt_state,
        schedule_state=schedule_state,
        schedule_step=position,
        step=trainer_state.get("global_step", position),
        epoch=float(trainer_state.get("epoch") or 0.0),
        trainer_state=trainer_state,
        param_groups=saved_groups,
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
    path = folder / OPTIMIZER
    if not path.is_file():
        raise ValueError(
            f"`folder` must contain {OPTIMIZER}, got {str(folder)!r} without it. Name "
            "a rule of `decay_mask`."
        )
    state = read_state_dict(_optimizer(path), names, groups)
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


def _optimizer(path: Path) -> Any:
    saved = load_torch(path)
    # Anything else is refused by `read_state_dict`, with what it is.
    if isinstance(saved, dict) and isinstance(saved.get("state"), dict):
        saved["state"] = MappedState(path, saved["state"])
    return saved


def _nothing_updated(names: ParamNames, rate: float) -> dict[str, Any]:
    """Returns the state dict of an optimizer before its first update."""
    all_names = [p.name for p in names.model.parameters if p.is_trainable]
    numbers = list(range(len(all_names)))
    group = {"lr": rate, "params": numbers, "param_names": all_names}
    return {"state": {}, "param_groups": [group]}


def _rate(
    recipe: Recipe, position: int, schedule_state: PlateauState | GreedyState | None
) -> float:
    if schedule_state is not None:
        return schedule_state.learning_rate
    schedule: Any = build_schedule(recipe)
    return float(schedule(position))


def _schedule(
    saved: Any, trainer_state: Mapping[str, Any], recipe: Recipe
) -> tuple[int, PlateauState | GreedyState | None]:
    """Returns the schedule's step, and the state of one that a metric drives."""
    schedule = build_schedule(recipe)
    if saved is None:
        if isinstance(schedule, MetricDrivenSchedule):
            return 0, schedule.init()
        return trainer_state["global_step"], None
    if not isinstance(saved, Mapping):
        raise ValueError(
            f"{SCHEDULER} must hold a scheduler's state, got {type(saved).__name__}."
        )
    if not isinstance(schedule, MetricDrivenSchedule):
        # Updates that were skipped count in `global_step` and not in the schedule.
        step = schedule_step_from_torch(saved, schedule)
        if step > trainer_state.get("global_step", step):
            raise ValueError(
                f"{SCHEDULER} must be of the same step as {STATE}, got {step} steps of "
                f"the schedule and a `global_step` of {trainer_state['global_step']}. "
                "Copy the folder again."
            )
        return step, None
    if not trainer_state:
        raise ValueError(
            f"`folder` must hold {STATE} with {recipe.lr_scheduler_type!r}, got one "
            f"without: {SCHEDULER} counts the metrics, and nobody knows the step."
        )
    settings = dict(recipe.lr_scheduler_kwargs)
    state = metric_state_from_torch(saved, recipe.lr_scheduler_type, settings)
    return _checks.step_count("last_epoch", saved["last_epoch"]), state
