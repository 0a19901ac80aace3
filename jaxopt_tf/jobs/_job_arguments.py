"""Settings of a job from TrainingArguments: when it is evaluated, saved and logged.

If evaluations drive the schedule, end the run or pick its model, their interval and
metric decide numbers: they are carried over, or refused by name.
"""

import math
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from .. import _checks
from .._io import SWITCH, Kind, is_set, kinds_of, read_value
from ..interop import (
    TRAINING_ARGUMENTS,
    FromTransformers,
    Translation,
    args_version,
    select_fields,
    translate_training_arguments,
)
from ..models import GPT2Config
from ..recipes import Recipe
from ._config import uses_eval_loss
from ._job import Job

_KINDS = {**kinds_of(Recipe), **kinds_of(GPT2Config), **kinds_of(Job)}

# Kinds of fields that a new run refuses, the order of its data among them.
_REFUSED = dict.fromkeys(("refused", "non_optimizer", "devices"), "")
_INTERVALS = ("eval_steps", "save_steps", "logging_steps")
_DRIVES = "drives the schedule"
_LOGGING_STEPS = 500  # Transformers' default, which also replaces `eval_steps`
_STRATEGIES = {
    "eval_strategy": ("no", "steps", "epoch"),
    "evaluation_strategy": ("no", "steps", "epoch"),
    "save_strategy": ("no", "steps", "epoch", "best"),
}
_OTHER_DATA = (
    "evaluations use the evaluation part of `text`, not Trainer's `eval_dataset`"
)
# Fields of a job that a Trainer's files set, and others about its evaluations.
_JOB_FIELDS = (*_INTERVALS, "load_best_model_at_end", "save_total_limit")
EVALUATION_FIELDS = (
    *_JOB_FIELDS,
    *("bf16_full_eval", "fp16_full_eval", "eval_delay", *_STRATEGIES),
    *("greater_is_better", "metric_for_best_model"),
)


class _Checkpoint(NamedTuple):
    """Step of a Trainer's checkpoint, and length of its epochs."""

    step: int
    updates_per_epoch: int | None  # None if it is not known


def settings_from_transformers(
    raw: Mapping[str, Any],
    typed: Mapping[str, Any] = MappingProxyType({}),
    *,
    kinds: Mapping[str, Kind] = _KINDS,
    ignore_fields: Collection[str] = (),
) -> Translation:
    """Translates a dict of TrainingArguments, or of our own settings, for a new run.

    Our own settings are left unchanged.

    Args:
        raw: names and values, of a file for example.
        typed: settings that win over them, of a command line for example.
        kinds: kinds of all settings by name.
        ignore_fields: names that are not read.

    Returns:
        Settings by our names, and notes on what is not as in the file and changes no
        numbers.

    Raises:
        ValueError: naming all settings that do not exist here and would change the
            numbers, all that cannot be read, and all unknown names.
    """
    into = select_fields(raw, kinds, ignore_fields, typed=typed)
    into.values = values = _not_replaced(into.values, typed)
    steps: Any = {**values, **typed}.get("max_steps")
    is_number = isinstance(steps, int | float) and not isinstance(steps, bool)
    max_steps = int(steps) if is_number and steps > 0 else None
    translate_training_arguments(
        into, version=args_version(raw), max_steps=max_steps, refused=_REFUSED
    )
    listed = {"ignored": sorted(into.unread), "without effect here": into.ignored}
    into.notes[:0] = [f"{title}: {', '.join(n)}" for title, n in listed.items() if n]
    epochs = values.get("num_train_epochs")
    if max_steps is None and is_set(epochs):
        into.refuse(
            "num_train_epochs",
            "how many steps they have is not known before the text is read; give "
            "`--max_steps`.",
        )
    _set_intervals(into, max_steps)
    _translate_others(into)
    into.settings = into.read_settings()
    into.raise_refusals()
    return into


def job_settings(
    came: FromTransformers, typed: Mapping[str, Any], state: Mapping[str, Any]
) -> Translation:
    """Returns the settings of the job in a Trainer's files: evaluation and checkpoints.

    Args:
        came: the TrainingArguments, and the recipe that they are.
        typed: settings that win over the files.
        state: the content of trainer_state.json.

    Returns:
        Settings by our names, notes, fields without effect, and refusals of all that
        decides numbers and cannot be carried over.
    """
    values = _not_replaced(
        {n: came.values[n] for n in EVALUATION_FIELDS if n in came.values}, typed
    )
    settings = {n: values[n] for n in _JOB_FIELDS if is_set(values.get(n))}
    settings.setdefault("save_total_limit", None)  # Trainer's default
    settings["lr_scheduler_type"] = came.recipe.lr_scheduler_type
    into = Translation(values, typed, settings)
    _take_patience(into, state)
    checkpoint = _Checkpoint(
        int(state.get("global_step") or 0), _updates_per_epoch(came.values, state)
    )
    _set_intervals(into, state["max_steps"], checkpoint)
    _check_metric(into, checkpoint)
    for name in values.keys() - settings.keys():
        field = TRAINING_ARGUMENTS[name]
        if field.kind == "non_optimizer" and not field.is_default(values[name]):
            into.ignored.append(name)
    return into


def _not_replaced(
    values: Mapping[str, Any], typed: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the fields that no typed setting replaces."""
    replaced = {n for n, field in TRAINING_ARGUMENTS.items() if field.ours in typed}
    return {n: v for n, v in values.items() if n not in typed and n not in replaced}


def _translate_others(into: Translation) -> None:
    """Translates fields of the model and of the start; refuses a seed of the data."""
    values, settings = into.values, into.settings
    recompute = values.get("activation_checkpointing")
    if is_set(recompute):
        with into.refusing():
            if read_value("activation_checkpointing", SWITCH, recompute):
                settings["gradient_checkpointing"] = True
    if isinstance(values.get("resume_from_checkpoint"), bool):
        # A folder that contains a run is resumed anyway.
        del settings["resume_from_checkpoint"]
    seed = into.typed.get("seed", values.get("seed"))
    if is_set(values.get("data_seed")) and values["data_seed"] != seed:
        into.refuse(
            "data_seed",
            f"`seed`, which is {seed!r}, shuffles the text too; leave it out, or name "
            "it in `ignore_fields`.",
        )


def _set_intervals(
    into: Translation, max_steps: int | None, checkpoint: _Checkpoint | None = None
) -> None:
    """Sets the intervals of evaluating, saving and logging, or refuses them.

    Args:
        into: its settings are completed.
        max_steps: number of updates; None if it is not known.
        checkpoint: the checkpoint that the run continues from; None for a new run.
    """
    values, settings = into.values, into.settings
    for name, choices in _STRATEGIES.items():
        if is_set(values.get(name)) and values[name] not in choices:
            into.refuse(name, f"give one of {', '.join(map(repr, choices))}.")
    _set_evaluation(into, max_steps, checkpoint)
    for name in _INTERVALS:
        value = settings.get(name)
        if isinstance(value, float) and 0 < value < 1:
            if max_steps:
                settings[name] = math.ceil(max_steps * value)
            else:
                del settings[name]
                into.refusals.append(
                    f"`{name}` {value!r}: a share of `max_steps`, which is not known; "
                    "give `max_steps`."
                )
    limit = values.get("save_total_limit")
    if isinstance(limit, int | float) and limit <= 0:
        settings["save_total_limit"] = None
    saving = values.get("save_strategy")
    if saving == "no" and max_steps:
        settings["save_steps"] = max_steps
        into.notes.append("`save_strategy` 'no': saved at the end only")
    elif saving == "epoch":
        settings.pop("save_steps", None)
        into.notes.append("`save_strategy` 'epoch': every `save_steps` instead")
    elif saving == "best":
        settings["save_steps"] = into.combined.get("eval_steps")
        into.notes.append("`save_strategy` 'best': saved at every evaluation")
    combined = into.combined
    every, save = combined.get("eval_steps"), combined.get("save_steps")
    is_best = combined.get("load_best_model_at_end") is True and saving != "best"
    if is_best and is_set(saving) and every and save and every != save:
        into.notes.append(
            "`load_best_model_at_end`: the best of all evaluations, every "
            f"{_checks.counted(every, 'step')}, where Trainer takes the best of those "
            f"at which it saved, every {save}"
        )


def _set_evaluation(
    into: Translation, max_steps: int | None, checkpoint: _Checkpoint | None
) -> None:
    values, settings = into.values, into.settings
    is_new_name = is_set(values.get("eval_strategy"))
    name = "eval_strategy" if is_new_name else "evaluation_strategy"
    strategy = values.get(name)
    role = _role(into)
    every = checkpoint.updates_per_epoch if checkpoint else None
    if strategy == "steps":
        if not settings.get("eval_steps"):
            logging_steps = into.combined.get("logging_steps")
            settings["eval_steps"] = logging_steps or _LOGGING_STEPS
        if role and checkpoint is None:
            into.notes.append(f"`{name}`: {_OTHER_DATA}")
    elif strategy == "epoch" and every:
        settings["eval_steps"] = every
        into.notes.append(
            f"`{name}` 'epoch': every {_checks.counted(every, 'step')}, the length of "
            "an epoch there"
        )
    elif strategy in ("no", "epoch"):
        settings.pop("eval_steps", None)
        if role:
            into.refuse(
                name,
                f"the evaluation loss {role}, and how often it is taken is not "
                "known; give `eval_steps`.",
            )
        elif strategy == "epoch":
            into.notes.append(f"`{name}` 'epoch': every `eval_steps` instead")
        elif max_steps:
            settings["eval_steps"] = max_steps
            into.notes.append(f"`{name}` 'no': evaluated at both ends only")


def _check_metric(into: Translation, checkpoint: _Checkpoint) -> None:
    """Refuses what would change evaluations that decide the run from a checkpoint on.

    Call it after `_set_intervals`.
    """
    values, role = into.values, _role(into)
    if not role:
        return
    refused = {}
    if values.get("metric_for_best_model") not in (None, "", "loss", "eval_loss"):
        refused["metric_for_best_model"] = "the metric here is the evaluation loss"
    if values.get("greater_is_better") and role != _DRIVES:
        refused["greater_is_better"] = "of the evaluation loss less is better here"
    for name in ("bf16_full_eval", "fp16_full_eval"):
        if values.get(name):
            refused[name] = "the evaluation loss has the model's own precision here"
    delay, every = values.get("eval_delay") or 0, into.combined.get("eval_steps")
    if "epoch" in (values.get("eval_strategy"), values.get("evaluation_strategy")):
        delay *= checkpoint.updates_per_epoch or 0
    if every and delay > (first := (checkpoint.step // every + 1) * every):
        refused["eval_delay"] = f"the first evaluation here is at step {first}"
    for name, why in refused.items():
        into.refuse(
            name,
            f"{why}, and it {role}; to continue with that, name {name!r} in "
            "`ignore_fields`.",
        )
    into.notes.append(
        f"{_OTHER_DATA}: their loss {role} from here on, and the best one that the "
        "files hold is of the other data"
    )


def _role(into: Translation) -> str:
    """Returns the verb for what the evaluation loss decides; "" for nothing."""
    combined = into.combined
    if not uses_eval_loss(combined):
        return ""
    if combined.get("load_best_model_at_end") is True:
        return "picks the model"
    if combined.get("early_stopping_patience") is not None:
        return "ends the run"
    return _DRIVES


def _take_patience(into: Translation, state: Mapping[str, Any]) -> None:
    """Takes over the patience of an EarlyStoppingCallback in trainer_state.json."""
    found = dict(state.get("stateful_callbacks") or {}).get("EarlyStoppingCallback")
    for callback in found if isinstance(found, list) else [found] if found else []:
        args = callback.get("args", {})
        patience = args.get("early_stopping_patience")
        if patience is not None and "early_stopping_patience" not in into.typed:
            into.settings["early_stopping_patience"] = patience
            threshold = args.get("early_stopping_threshold") or 0.0
            into.settings["early_stopping_threshold"] = threshold
            into.notes.append(
                f"`early_stopping_patience` {patience!r}: of trainer_state.json; "
                "evaluations are counted from here on"
            )


def _updates_per_epoch(
    values: Mapping[str, Any], state: Mapping[str, Any]
) -> int | None:
    """Returns the updates of an epoch; None if the files do not agree on them."""
    steps: Any = values.get("max_steps")
    epochs: Any = values.get("num_train_epochs")
    is_by_epochs = not is_set(steps) or steps <= 0
    if not is_by_epochs or not epochs or state["max_steps"] % epochs:
        return None
    updates = int(state["max_steps"] // epochs)
    step, epoch = state.get("global_step"), state.get("epoch")
    if not isinstance(step, int) or not isinstance(epoch, int | float):
        return None
    # The epoch that Trainer counted has to agree with it.
    return updates if abs(epoch * updates - step) < 0.5 else None
