"""Intervals of evaluating, saving and logging, from the TrainingArguments of a file.

Where evaluations drive the schedule, end the run or pick its model, the interval and
the metric decide numbers: they are carried over, or refused by name.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from .._io import is_set
from ..interop import Translation
from ..jobs import held_out_loss_decides

_INTERVALS = ("eval_steps", "save_steps", "logging_steps")
_LOGGING_STEPS = 500  # Transformers' default, in the place of `eval_steps`, too
_STRATEGIES = {
    "eval_strategy": ("no", "steps", "epoch"),
    "evaluation_strategy": ("no", "steps", "epoch"),
    "save_strategy": ("no", "steps", "epoch", "best"),
}
_OTHER_DATA = (
    "evaluations are of the part of `text` that is held out, not of Trainer's "
    "`eval_dataset`"
)


class Checkpoint(NamedTuple):
    """Step of a Trainer's checkpoint, and length of its epochs."""

    step: int
    updates_per_epoch: int | None  # None where it is not known


def set_intervals(
    given: Mapping[str, Any],
    typed: Mapping[str, Any],
    into: Translation,
    max_steps: int | None,
    checkpoint: Checkpoint | None = None,
) -> None:
    """Sets the intervals of evaluating, saving and logging, or refuses them.

    Args:
        given: fields of the file that no flag stands in for.
        typed: the flags of the command line.
        into: its settings are completed.
        max_steps: number of updates; None where it is not known.
        checkpoint: the checkpoint that the run continues from; None for a new run.
    """
    for name, choices in _STRATEGIES.items():
        if is_set(given.get(name)) and given[name] not in choices:
            listed = ", ".join(map(repr, choices))
            into.refusals.append(f"`{name}` {given[name]!r}: give one of {listed}.")
    _evaluate(given, typed, into, max_steps, checkpoint)
    settings = into.settings
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
    saving = given.get("save_strategy")
    if saving == "no" and max_steps:
        settings["save_steps"] = max_steps
        into.notes.append("`save_strategy` 'no': saved at the end only")
    elif saving == "epoch":
        settings.pop("save_steps", None)
        into.notes.append("`save_strategy` 'epoch': every `save_steps` instead")
    elif saving == "best":
        settings["save_steps"] = {**settings, **typed}.get("eval_steps")
        into.notes.append("`save_strategy` 'best': saved at every evaluation")
    _note_on_the_best(given, typed, into)


def check_metric(
    given: Mapping[str, Any],
    typed: Mapping[str, Any],
    into: Translation,
    checkpoint: Checkpoint,
) -> None:
    """Refuses what would change evaluations that decide the run from a checkpoint on.

    Call it after `set_intervals`.
    """
    settings = {**into.settings, **typed}
    if not held_out_loss_decides(settings):
        return
    picks = settings.get("load_best_model_at_end") is True
    picks = picks or settings.get("early_stopping_patience") is not None
    refused = {}
    if given.get("metric_for_best_model") not in (None, "", "loss", "eval_loss"):
        refused["metric_for_best_model"] = "the metric here is the evaluation loss"
    if given.get("greater_is_better") and picks:
        refused["greater_is_better"] = "of the evaluation loss less is better here"
    for name in ("bf16_full_eval", "fp16_full_eval"):
        if given.get(name):
            refused[name] = "the evaluation loss has the model's own precision here"
    delay, every = given.get("eval_delay") or 0, settings.get("eval_steps")
    if {given.get(n) for n in ("eval_strategy", "evaluation_strategy")} & {"epoch"}:
        delay *= checkpoint.updates_per_epoch or 0
    if every:
        first = (checkpoint.step // every + 1) * every
        if delay > first:
            refused["eval_delay"] = f"the first evaluation here is at step {first}"
    into.refusals.extend(
        f"`{name}` {given[name]!r}: {why}, and it {_does(settings)}; to go on by "
        f"that, name {name!r} in `ignore_fields`."
        for name, why in refused.items()
    )
    into.notes.append(
        f"{_OTHER_DATA}: their loss {_does(settings)} from here on, and the best one "
        "that the files hold is of the other data"
    )


def _evaluate(
    given: Mapping[str, Any],
    typed: Mapping[str, Any],
    into: Translation,
    max_steps: int | None,
    checkpoint: Checkpoint | None,
) -> None:
    settings = into.settings
    name = "eval_strategy" if is_set(given.get("eval_strategy")) else ""
    name = name or "evaluation_strategy"
    strategy = given.get(name)
    decides = held_out_loss_decides({**settings, **typed})
    every = checkpoint.updates_per_epoch if checkpoint else None
    if strategy == "steps" and not settings.get("eval_steps"):
        logging = {**settings, **typed}.get("logging_steps")
        settings["eval_steps"] = logging or _LOGGING_STEPS
    elif strategy == "epoch" and every:
        settings["eval_steps"] = every
        into.notes.append(f"`{name}` 'epoch': every {every} steps, as many as it had")
    elif strategy in ("no", "epoch"):
        settings.pop("eval_steps", None)
        if decides:
            into.refusals.append(
                f"`{name}` {strategy!r}: the evaluation loss "
                f"{_does({**settings, **typed})}, and how often it is taken is not "
                "known; give `eval_steps`."
            )
        elif strategy == "no" and max_steps:
            settings["eval_steps"] = max_steps
            into.notes.append(f"`{name}` 'no': evaluated at both ends only")
        elif strategy == "epoch":
            into.notes.append(f"`{name}` 'epoch': every `eval_steps` instead")
    if strategy == "steps" and decides and checkpoint is None:
        into.notes.append(f"`{name}`: {_OTHER_DATA}")


def _note_on_the_best(
    given: Mapping[str, Any], typed: Mapping[str, Any], into: Translation
) -> None:
    settings = {**into.settings, **typed}
    is_best = settings.get("load_best_model_at_end") is True
    saves = given.get("save_strategy") not in (None, "", "best")
    every, save = settings.get("eval_steps"), settings.get("save_steps")
    if is_best and saves and every and save and every != save:
        into.notes.append(
            "`load_best_model_at_end`: the best of all evaluations, every "
            f"{every} steps, where Trainer takes the best of those at which it saved, "
            f"every {save}"
        )


def _does(settings: Mapping[str, Any]) -> str:
    if settings.get("load_best_model_at_end") is True:
        return "picks the model"
    if settings.get("early_stopping_patience") is not None:
        return "ends the run"
    return "drives the schedule"
