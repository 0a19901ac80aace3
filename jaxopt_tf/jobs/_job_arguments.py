"""Translation of TrainingArguments to settings of a job: evaluation, saving, logging.

If evaluations drive the schedule, end the run or select its model, their interval and
metric affect the parameters. They are then translated exactly, or an error names them.
"""

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
from ..models import CONFIG_TYPES
from ..recipes import Recipe
from ._conflicts import uses_eval_loss
from ._intervals import INTERVALS, steps_of_fraction
from ._job import Job

# Types are visited from the last to the first: if several have a field, its kind is
# that in the first type, GPT2Config, from which the command-line flags are made.
_MODEL_KINDS = {n: k for t in CONFIG_TYPES[::-1] for n, k in kinds_of(t).items()}
_KINDS = {**kinds_of(Recipe), **_MODEL_KINDS, **kinds_of(Job)}

# Effects of fields that raise an error for a new run; "non_optimizer" includes the
# fields that set the order of the data.
_REFUSED = dict.fromkeys(("refused", "non_optimizer", "devices"), "")
_DRIVES_SCHEDULE = "drives the schedule"
_LOGGING_STEPS = 500  # Transformers' default, also that of `eval_steps`
_STRATEGIES = {
    "eval_strategy": ("no", "steps", "epoch"),
    "evaluation_strategy": ("no", "steps", "epoch"),
    "save_strategy": ("no", "steps", "epoch", "best"),
}
_OTHER_DATA = (
    "evaluations use the evaluation part of `text`, not Trainer's `eval_dataset`"
)
# Fields of `Job` that a Trainer's files set, and further fields about evaluations.
_JOB_FIELDS = (*INTERVALS, "load_best_model_at_end", "save_total_limit")
EVALUATION_FIELDS = (
    *_JOB_FIELDS,
    *("bf16_full_eval", "fp16_full_eval", "eval_delay", *_STRATEGIES),
    *("greater_is_better", "metric_for_best_model"),
)


class _Checkpoint(NamedTuple):
    """Step of a Trainer's checkpoint, and length of its epochs."""

    step: int  # `global_step` of the checkpoint
    updates_per_epoch: int | None  # None if unknown


def settings_from_transformers(
    raw: Mapping[str, Any],
    typed: Mapping[str, Any] = MappingProxyType({}),
    *,
    kinds: Mapping[str, Kind] = _KINDS,
    ignore_fields: Collection[str] = (),
) -> Translation:
    """Translates TrainingArguments to settings of a new run.

    Settings of this package are left unchanged, so that `raw` may also be the content
    of a settings.json.

    Args:
        raw: names and values, for example from a JSON file.
        typed: settings that a user gave explicitly, for example on a command line.
            They take precedence over `raw`.
        kinds: kinds of all settings by name.
        ignore_fields: names of fields in `raw` that are not read.

    Returns:
        Settings by their names in this package, and notes on fields that are not
        applied and do not change the numbers of the run.

    Raises:
        ValueError: if fields are unsupported and would change the numbers of the run,
            have invalid values, or are unknown. The message names all of them.
    """
    translation = select_fields(raw, kinds, ignore_fields, typed=typed)
    translation.values = values = _not_replaced(translation.values, typed)
    steps: Any = {**values, **typed}.get("max_steps")
    if is_set(typed.get("num_train_epochs")) and "max_steps" not in typed:
        steps = None  # the number of epochs has higher precedence
    is_number = isinstance(steps, int | float) and not isinstance(steps, bool)
    max_steps = int(steps) if is_number and steps > 0 else None
    translate_training_arguments(
        translation, version=args_version(raw), max_steps=max_steps, refused=_REFUSED
    )
    # `unread` are fields that `ignore_fields` names or a subclass adds; `ignored` are
    # fields that are read but have no effect.
    listed = {
        "ignored": sorted(translation.unread),
        "without effect": translation.ignored,
    }
    translation.notes[:0] = [
        f"{title}: {', '.join(n)}" for title, n in listed.items() if n
    ]
    # Trainer uses one of the two: `max_steps` if it is greater than 0.
    if max_steps is not None:
        translation.settings.pop("num_train_epochs", None)
    elif is_set(translation.combined.get("num_train_epochs")):
        translation.settings.pop("max_steps", None)
    _set_intervals(translation, max_steps)
    _translate_others(translation)
    translation.settings = translation.read_settings()
    translation.raise_refusals()
    return translation


def job_settings(
    converted: FromTransformers, typed: Mapping[str, Any], state: Mapping[str, Any]
) -> Translation:
    """Translates the evaluation and checkpoint settings of a Trainer's checkpoint.

    Args:
        converted: the TrainingArguments and the recipe that was built from them.
        typed: settings that a user gave explicitly. They take precedence over the
            files.
        state: content of trainer_state.json.

    Returns:
        Settings by their names in this package, notes, names of fields without effect,
        and errors on fields that affect the parameters and have no equivalent.
    """
    values = _not_replaced(
        {n: converted.values[n] for n in EVALUATION_FIELDS if n in converted.values},
        typed,
    )
    settings = {n: values[n] for n in _JOB_FIELDS if is_set(values.get(n))}
    settings.setdefault("save_total_limit", None)  # Trainer's default
    settings["lr_scheduler_type"] = converted.recipe.lr_scheduler_type
    translation = Translation(values, typed, settings)
    _take_patience(translation, state)
    checkpoint = _Checkpoint(
        int(state.get("global_step") or 0), _updates_per_epoch(converted.values, state)
    )
    _set_intervals(translation, state["max_steps"], checkpoint)
    _check_metric(translation, checkpoint)
    for name in values.keys() - settings.keys():
        field = TRAINING_ARGUMENTS[name]
        if field.effect == "non_optimizer" and not field.is_default(values[name]):
            translation.ignored.append(name)
    return translation


def _not_replaced(
    values: Mapping[str, Any], typed: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the fields that are not overridden by a setting in `typed`."""
    replaced = {n for n, field in TRAINING_ARGUMENTS.items() if field.setting in typed}
    if "eval_strategy" in typed:
        replaced.add("evaluation_strategy")  # former name of `eval_strategy`
    return {n: v for n, v in values.items() if n not in typed and n not in replaced}


def _translate_others(translation: Translation) -> None:
    """Translates `activation_checkpointing`, `resume_from_checkpoint`, `data_seed`."""
    values, settings = translation.values, translation.settings
    recompute = values.get("activation_checkpointing")
    if is_set(recompute):
        with translation.refusing():
            if read_value("activation_checkpointing", SWITCH, recompute):
                settings["gradient_checkpointing"] = True
    if isinstance(values.get("resume_from_checkpoint"), bool):
        # Trainer's True means the last checkpoint in `output_dir`. That is the default
        # here, and the setting takes paths only.
        del settings["resume_from_checkpoint"]
    seed = translation.typed.get("seed", values.get("seed"))
    if is_set(values.get("data_seed")) and values["data_seed"] != seed:
        translation.refuse(
            "data_seed",
            f"the text is shuffled with `seed`, which is {seed!r}; leave `data_seed` "
            "out, or name it in `ignore_fields`.",
        )


def _set_intervals(
    translation: Translation,
    max_steps: int | None,
    checkpoint: _Checkpoint | None = None,
) -> None:
    """Sets the intervals of evaluation, saving and logging, or records errors.

    Args:
        translation: translation whose settings are completed in place.
        max_steps: number of updates; None if unknown.
        checkpoint: checkpoint that the run resumes from; None for a new run.
    """
    values, settings = translation.values, translation.settings
    for name, choices in _STRATEGIES.items():
        if is_set(values.get(name)) and values[name] not in choices:
            translation.refuse(name, f"give one of {', '.join(map(repr, choices))}.")
    _set_evaluation(translation, max_steps, checkpoint)
    for name in INTERVALS:
        if name in settings:
            settings[name] = steps_of_fraction(settings[name], max_steps)
    limit = values.get("save_total_limit")
    if isinstance(limit, int | float) and limit <= 0:
        settings["save_total_limit"] = None
    saving = values.get("save_strategy")
    settings.pop("save_strategy", None)
    if saving == "no":
        settings |= _at_the_end("save", max_steps)
        translation.notes.append(
            "`save_strategy` 'no': the run is saved at its end only"
        )
    elif saving == "epoch" and checkpoint is None:
        settings.pop("save_steps", None)
        settings["save_strategy"] = "epoch"
    elif saving == "epoch":
        settings.pop("save_steps", None)
        translation.notes.append("`save_strategy` 'epoch': replaced by `save_steps`")
    elif saving == "best":
        settings["save_steps"] = translation.combined.get("eval_steps")
        translation.notes.append(
            "`save_strategy` 'best': the run is saved at each evaluation"
        )
    combined = translation.combined
    eval_steps, save_steps = combined.get("eval_steps"), combined.get("save_steps")
    # Trainer selects the best of its checkpoints; here each evaluation with a lower
    # loss is saved, at any step.
    selects_otherwise = (
        combined.get("load_best_model_at_end") is True
        and is_set(saving)
        and saving != "best"
        and eval_steps != save_steps
    )
    if (
        selects_otherwise
        and isinstance(eval_steps, int)
        and isinstance(save_steps, int)
    ):
        translation.notes.append(
            "`load_best_model_at_end`: the best of all evaluations, every "
            f"{_checks.pluralize(eval_steps, 'step')}, is loaded; Trainer loads the "
            f"best of its checkpoints, every {save_steps}"
        )


def _set_evaluation(
    translation: Translation, max_steps: int | None, checkpoint: _Checkpoint | None
) -> None:
    values, settings = translation.values, translation.settings
    is_new_name = is_set(values.get("eval_strategy"))
    name = "eval_strategy" if is_new_name else "evaluation_strategy"
    strategy = values.get(name)
    role = _role(translation)
    every = checkpoint.updates_per_epoch if checkpoint else None
    settings.pop("eval_strategy", None)
    if strategy == "steps":
        # Transformers' default of `eval_steps` is `logging_steps`.
        if not settings.get("eval_steps"):
            logging_steps = translation.combined.get("logging_steps")
            settings["eval_steps"] = logging_steps or _LOGGING_STEPS
        if role and checkpoint is None:
            translation.notes.append(f"`{name}`: {_OTHER_DATA}")
    elif strategy == "epoch" and every:
        settings["eval_steps"] = every
        translation.notes.append(
            f"`{name}` 'epoch': every {_checks.pluralize(every, 'step')}, the length "
            "of an epoch in Trainer"
        )
    elif strategy == "epoch" and checkpoint is None:
        settings.pop("eval_steps", None)
        settings["eval_strategy"] = "epoch"
    elif strategy in ("no", "epoch"):
        settings.pop("eval_steps", None)
        if role:
            translation.refuse(
                name,
                f"the evaluation loss {role}, and the evaluation interval is "
                "unknown; give `eval_steps`.",
            )
        elif strategy == "epoch":
            translation.notes.append(f"`{name}` 'epoch': replaced by `eval_steps`")
        else:
            settings |= _at_the_end("eval", max_steps)
            translation.notes.append(
                f"`{name}` 'no': the run is evaluated at its start and end only"
            )


def _at_the_end(kind: str, max_steps: int | None) -> dict[str, Any]:
    """Returns settings that evaluate (or save) in the run only at its end."""
    if max_steps is None:
        return {f"{kind}_strategy": "no"}
    return {f"{kind}_steps": max_steps}


def _check_metric(translation: Translation, checkpoint: _Checkpoint) -> None:
    """Records errors on fields of evaluations, if evaluations affect the parameters.

    Call this function after `_set_intervals`, which sets `eval_steps`.
    """
    values, role = translation.values, _role(translation)
    if not role:
        return
    refused = {}
    if values.get("metric_for_best_model") not in (None, "", "loss", "eval_loss"):
        refused["metric_for_best_model"] = "the metric is always the evaluation loss"
    if values.get("greater_is_better") and role != _DRIVES_SCHEDULE:
        refused["greater_is_better"] = "a lower evaluation loss is better"
    for name in ("bf16_full_eval", "fp16_full_eval"):
        if values.get(name):
            refused[name] = "evaluation has the precision of training"
    delay, every = values.get("eval_delay") or 0, translation.combined.get("eval_steps")
    if "epoch" in (values.get("eval_strategy"), values.get("evaluation_strategy")):
        delay *= checkpoint.updates_per_epoch or 0
    if every and delay > (first := (checkpoint.step // every + 1) * every):
        refused["eval_delay"] = f"the first evaluation is at step {first}"
    for name, reason in refused.items():
        translation.refuse(
            name,
            f"{reason}, and the evaluation loss {role}; to continue nevertheless, name "
            f"{name!r} in `ignore_fields`.",
        )
    translation.notes.append(
        f"{_OTHER_DATA}: their loss {role} from this checkpoint on; the best metric in "
        "the files is a loss on `eval_dataset`"
    )


def _role(translation: Translation) -> str:
    """Returns the effect of the evaluation loss as a verb phrase; "" for none."""
    combined = translation.combined
    if not uses_eval_loss(combined):
        return ""
    if combined.get("load_best_model_at_end") is True:
        return "selects the model"
    if combined.get("early_stopping_patience") is not None:
        return "ends the run"
    return _DRIVES_SCHEDULE


def _take_patience(translation: Translation, state: Mapping[str, Any]) -> None:
    """Copies the patience of an EarlyStoppingCallback in trainer_state.json."""
    found = dict(state.get("stateful_callbacks") or {}).get("EarlyStoppingCallback")
    # A Trainer writes a list if it has several callbacks of one class.
    for callback in found if isinstance(found, list) else [found] if found else []:
        args = callback.get("args", {})
        patience = args.get("early_stopping_patience")
        if patience is not None and "early_stopping_patience" not in translation.typed:
            translation.settings["early_stopping_patience"] = patience
            threshold = args.get("early_stopping_threshold") or 0.0
            translation.settings["early_stopping_threshold"] = threshold
            translation.notes.append(
                f"`early_stopping_patience` {patience!r}: from trainer_state.json; the "
                "count of evaluations without improvement starts at 0"
            )


def _updates_per_epoch(
    values: Mapping[str, Any], state: Mapping[str, Any]
) -> int | None:
    """Returns the number of updates per epoch; None if the files are inconsistent."""
    steps: Any = values.get("max_steps")
    epochs: Any = values.get("num_train_epochs")
    is_by_epochs = not is_set(steps) or steps <= 0
    if not is_by_epochs or not epochs or state["max_steps"] % epochs:
        return None
    updates = int(state["max_steps"] // epochs)
    step, epoch = state.get("global_step"), state.get("epoch")
    if not isinstance(step, int) or not isinstance(epoch, int | float):
        return None
    # `epoch` in trainer_state.json is a fraction: it must give `global_step` again.
    return updates if abs(epoch * updates - step) < 0.5 else None
