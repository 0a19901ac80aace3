"""A Trainer's checkpoint folder comes in."""

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
from ._decay_groups import check_decay, decay_rule_of_file
from ._hf_folder import (
    OPTIMIZER,
    SCHEDULER,
    STATE,
    check_files,
    check_folder_is_trainers,
    check_order,
)
from ._metric_state import metric_state_from_torch
from ._model_file import read_weights
from ._param_groups import check_param_groups
from ._param_names import ParamNames
from ._scheduler_state import schedule_step_from_torch
from ._state_dict import Groups, has_names, read_state_dict
from ._torch_files import MappedState, errors_name, load_torch
from ._torch_state import opt_state_from_torch


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainerCheckpoint:
    """What a folder holds of a run, in our terms.

    Attributes:
        params: the parameters.
        opt_state: the optimizer's state; None where none was asked for.
        schedule_state: of a schedule that a metric drives, what it remembers.
        schedule_step: what the schedule is asked next; for one that a metric drives,
            how many metrics it has seen.
        step: batches taken, `global_step`; updates that torch skipped are in it.
        epoch: how often the data was gone through, in parts too.
        trainer_state: all of `trainer_state.json`, `log_history` included.
        param_groups: what torch's groups were set to, without their parameters.
        missing: the files that were not there.
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
    """Reads the run that a Trainer left in `checkpoint-500/`.

    Files are mapped and carried over leaf by leaf; nothing in them is run. Which moment
    is whose is told by the order of the groups, as `opt_state_from_torch` says, which
    cannot see parameters of one shape in another order.

    Args:
        folder: the folder.
        params: parameters of the right structure, dtypes and devices, or their shapes.
        names: which leaf is which torch parameter.
        recipe: the numbers of the run; the file's rate, schedule and groups are checked
            against it.
        opt_state: what `optimizer.init(params)` gives; of an optimizer that decays as
            Trainer, `build_optimizer(recipe, layer_norms=names.layer_norms)`. None:
            the parameters alone.
        groups: names in the order in which torch was given them, for each group; None
            for Trainer's own, which depend on the version: those of
            `recipe.decay_rule`, or those of the one version that fits the file.
        layouts: as `adafactor_tf` has them.
        without: names of files that need not be there, of optimizer.pt, scheduler.pt
            and trainer_state.json.

    Raises:
        ValueError: if a file is missing, with what could be done without it; if one is
            unreadable, of another model or another format; if the recipe contradicts
            them; or if it decays other parameters than the groups of optimizer.pt, with
            the `decay_rule` that fits. Where no weight decay is set, that is no error.

    Source: transformers 5.23 `trainer.py`, `_load_optimizer_and_scheduler`,
        `_load_from_checkpoint` and `_init_training_state`.
    Differs: what Trainer passes over with a warning, or not at all, is an error.
    """
    folder = Path(folder)
    check_folder_is_trainers(folder)
    wanted = [STATE, SCHEDULER] + [OPTIMIZER] * (opt_state is not None)
    missing = check_files(folder, wanted, without)
    trainer_state = {} if STATE in missing else read_trainer_state(folder / STATE)
    scheduler = None if SCHEDULER in missing else load_torch(folder / SCHEDULER)
    naming_scheduler = errors_name(folder / SCHEDULER)
    position, schedule_state = naming_scheduler(_schedule)(
        scheduler, trainer_state, recipe
    )
    step = trainer_state.get("global_step", position)

    saved_groups: tuple[Mapping[str, Any], ...] = ()
    if opt_state is not None:
        is_there = OPTIMIZER not in missing
        rate = _rate(recipe, position, schedule_state)
        path = folder / OPTIMIZER
        saved = _optimizer(path) if is_there else _nothing_updated(names, rate)
        naming_optimizer = errors_name(path)
        opt_state = naming_optimizer(opt_state_from_torch)(
            opt_state,
            params,
            saved,
            names,
            groups=groups,
            layouts=layouts,
            step=position,
            decay_rule=recipe.decay_rule,
        )
        if is_there:
            if groups is None and not has_names(saved["param_groups"]):
                check_order(folder)
            naming_optimizer(check_param_groups)(saved["param_groups"], recipe)
            named = naming_optimizer(read_state_dict)(
                saved, names, groups, recipe.decay_rule
            )
            check_decay(named.decayed, names, recipe, str(path))
            if schedule_state is not None and SCHEDULER in missing:
                found = float(saved["param_groups"][0]["lr"])
                schedule_state = schedule_state._replace(learning_rate=found)
            saved_groups = tuple(
                {key: value for key, value in group.items() if key != "params"}
                for group in saved["param_groups"]
            )
        del saved  # the file, before the next is read
    params, unused = read_weights(folder, params, names)
    return TrainerCheckpoint(
        params=params,
        opt_state=opt_state,
        schedule_state=schedule_state,
        schedule_step=position,
        step=step,
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

    For groups that are those of no version of Trainer: of a script, of a subclass.

    Args:
        folder: a Trainer's checkpoint folder.
        names: which leaf is which torch parameter.
        groups: as `read_trainer_checkpoint` takes them.

    Returns:
        "default" or "all", if these decay the same parameters; else regular expressions
        for the names of the leaves that are not decayed.

    Raises:
        ValueError: if optimizer.pt is not there or cannot be read; or if the file
            decays a leaf in part.
    """
    folder = Path(folder)
    check_folder_is_trainers(folder)
    path = folder / OPTIMIZER
    if not path.is_file():
        raise ValueError(
            f"`folder` must contain {OPTIMIZER}, got {str(folder)!r} without it. Name "
            "a rule of `decay_mask`."
        )
    named = read_state_dict(_optimizer(path), names, groups)
    return decay_rule_of_file(named.decayed, names)


def _optimizer(path: Path) -> Any:
    saved = load_torch(path)
    if isinstance(saved, dict) and isinstance(saved.get("state"), dict):
        saved["state"] = MappedState(path, saved["state"])
    return saved


def _nothing_updated(names: ParamNames, rate: float) -> dict[str, Any]:
    """What torch would have before its first update."""
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


def read_trainer_state(path: Path) -> dict[str, Any]:
    """`trainer_state.json` as a dict.

    Raises:
        ValueError: if it is no JSON of a Trainer's state.
    """
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


def _schedule(
    saved: Any, trainer_state: Mapping[str, Any], recipe: Recipe
) -> tuple[int, PlateauState | GreedyState | None]:
    """The position, and what a metric-driven schedule remembers."""
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
        step = schedule_step_from_torch(saved, schedule)
        if step > trainer_state.get("global_step", step):
            raise ValueError(
                f"{SCHEDULER} must be of the same step as {STATE}, got {step} steps of "
                f"the schedule and a `global_step` of {trainer_state['global_step']}. "
                "Copy the folder anew."
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
