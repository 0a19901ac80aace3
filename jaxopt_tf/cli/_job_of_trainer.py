"""The settings of a job from a Trainer's files: when is evaluated and saved."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import interop
from .._io import is_set
from ..recipes import Recipe
from ._intervals import Checkpoint, check_metric, set_intervals
from ._run_flags import Typed
from ._translation import untyped

STATE = "trainer_state.json"
# Fields of a job that a Trainer's files set.
_OF_THE_JOB = (
    "eval_steps",
    "load_best_model_at_end",
    "logging_steps",
    "save_steps",
    "save_total_limit",
)
OF_AN_EVALUATION = (
    *_OF_THE_JOB,
    "bf16_full_eval",
    "eval_delay",
    "eval_strategy",
    "evaluation_strategy",
    "fp16_full_eval",
    "greater_is_better",
    "metric_for_best_model",
    "save_strategy",
)


def job_settings(
    arguments: Path, typed: Typed, recipe: Recipe, state: Mapping[str, Any]
) -> interop.Translation:
    """Returns what a Trainer's files have of the job: when is evaluated and saved.

    Args:
        arguments: file of the TrainingArguments.
        typed: the command line, which wins over the files.
        recipe: the numbers of the run.
        state: the content of trainer_state.json.

    Raises:
        ValueError: naming all that decides numbers and cannot be carried over.
    """
    raw = interop.read_training_arguments(arguments).given
    fields = interop.read_values(
        {n: v for n, v in raw.items() if n not in typed.ignore_fields}
    )
    given = untyped(
        {n: fields[n] for n in OF_AN_EVALUATION if n in fields}, typed.settings
    )
    settings = {n: given[n] for n in _OF_THE_JOB if is_set(given.get(n))}
    limit: Any = given.get("save_total_limit")
    settings["save_total_limit"] = limit if is_set(limit) and limit > 0 else None
    settings["lr_scheduler_type"] = recipe.lr_scheduler_type
    into = interop.Translation(settings, [], [], [], [])
    _early_stopping(state, typed.settings, into)
    checkpoint = Checkpoint(
        int(state.get("global_step") or 0), _updates_per_epoch(fields, state)
    )
    set_intervals(given, typed.settings, into, state["max_steps"], checkpoint)
    check_metric(given, typed.settings, into, checkpoint)
    if into.refusals:
        raise ValueError(f"{arguments}: " + "\n  ".join(into.refusals))
    into.neutral.extend(
        name
        for name, field in interop.TRAINING_ARGUMENTS.items()
        if field.kind == "elsewhere"
        and is_set(given.get(name))
        and given[name] not in field.usual
    )
    return into


def _early_stopping(
    state: Mapping[str, Any], typed: Mapping[str, Any], into: interop.Translation
) -> None:
    """Takes over the patience of an EarlyStoppingCallback that the state holds."""
    found = dict(state.get("stateful_callbacks") or {}).get("EarlyStoppingCallback")
    for callback in found if isinstance(found, list) else [found] if found else []:
        args = callback.get("args", {})
        patience = args.get("early_stopping_patience")
        if patience is not None and "early_stopping_patience" not in typed:
            into.settings["early_stopping_patience"] = patience
            threshold = args.get("early_stopping_threshold") or 0.0
            into.settings["early_stopping_threshold"] = threshold
            into.notes.append(
                f"`early_stopping_patience` {patience!r}: of {STATE}; evaluations are "
                "counted from here on"
            )


def _updates_per_epoch(
    fields: Mapping[str, Any], state: Mapping[str, Any]
) -> int | None:
    """Returns the updates of an epoch; None where the files do not agree on them."""
    steps: Any = fields.get("max_steps")
    epochs: Any = fields.get("num_train_epochs")
    is_by_epochs = not is_set(steps) or steps <= 0
    if not is_by_epochs or not epochs or state["max_steps"] % epochs:
        return None
    updates = int(state["max_steps"] // epochs)
    step, epoch = state.get("global_step"), state.get("epoch")
    if not isinstance(step, int) or not isinstance(epoch, int | float):
        return None
    # The epoch that Trainer counted has to agree with it.
    return updates if abs(epoch * updates - step) < 0.5 else None
