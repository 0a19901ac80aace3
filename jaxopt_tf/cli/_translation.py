"""From a dict of TrainingArguments to flags: what Transformers' Trainer would do.

A dict of our own flags comes out as it is.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard

from ..interop import is_set, translate_training_arguments
from ..pretraining import held_out_loss_decides

# What a job here does not do otherwise, the order of its data included.
_REFUSED = ("refused", "elsewhere", "devices")

_STRATEGIES = {
    "eval_strategy": ("no", "steps", "epoch"),
    "evaluation_strategy": ("no", "steps", "epoch"),
    "save_strategy": ("no", "steps", "epoch", "best"),
}
# What a flag on the command line says in the place of fields of another name.
_SAYS_TOO = {
    "eval_steps": ("eval_strategy", "evaluation_strategy"),
    "gradient_checkpointing": ("activation_checkpointing",),
    "max_steps": ("num_train_epochs",),
    "optim": ("adafactor",),
    "per_device_train_batch_size": ("per_gpu_train_batch_size",),
    "save_steps": ("save_strategy",),
    "warmup_steps": ("warmup_ratio",),
}


class Translation(NamedTuple):
    """What came of a file."""

    settings: dict[str, Any]  # by the names of our flags; unknown names among them
    notes: list[str]  # what is not as the file has it, and changes no numbers
    refusals: list[str]  # what is not here and would change them


def translate(raw: Mapping[str, Any], typed: Mapping[str, Any]) -> Translation:
    """Takes from the file what the command line leaves open.

    Args:
        raw: the file's names and values.
        typed: the flags of the command line, which win over the file.
    """
    told = {*typed, *(other for name in typed for other in _SAYS_TOO.get(name, ()))}
    given = {name: value for name, value in raw.items() if name not in told}
    general = translate_training_arguments(
        given, max_steps=_max_steps({**given, **typed}), refused=_REFUSED
    )
    notes, refusals = list(general.notes), list(general.refusals)
    if general.neutral:
        notes.insert(0, f"without effect here: {', '.join(general.neutral)}")
    into = Translation(dict(general.settings), notes, refusals)
    _length(given, typed, into)
    _intervals(given, typed, into)
    _rest(given, typed, into)
    return into


def _length(
    given: Mapping[str, Any], typed: Mapping[str, Any], into: Translation
) -> None:
    """How long the run is: not by epochs."""
    max_steps, epochs = _max_steps({**given, **typed}), given.get("num_train_epochs")
    if max_steps is None and is_set(epochs):
        into.refusals.append(
            f"`num_train_epochs` {epochs!r}: how many steps they have is not known "
            "before the text is read; give `--max_steps`."
        )


def _intervals(
    given: Mapping[str, Any], typed: Mapping[str, Any], into: Translation
) -> None:
    """When is evaluated, saved and logged."""
    settings, max_steps = into.settings, _max_steps({**given, **typed})
    for name in ("eval_steps", "save_steps", "logging_steps"):
        value = settings.get(name)
        if max_steps and _is_number(value) and 0 < value < 1:
            settings[name] = math.ceil(max_steps * value)
    for name, choices in _STRATEGIES.items():
        if is_set(given.get(name)) and given[name] not in choices:
            listed = ", ".join(map(repr, choices))
            into.refusals.append(f"`{name}` {given[name]!r}: give one of {listed}.")
    evaluation = given.get("eval_strategy") or given.get("evaluation_strategy")
    if evaluation == "steps" and not settings.get("eval_steps"):
        # As the Trainer has it.
        settings["eval_steps"] = {**settings, **typed}.get("logging_steps")
    elif evaluation in ("no", "epoch"):
        settings.pop("eval_steps", None)
        if held_out_loss_decides({**settings, **typed}):
            into.refusals.append(
                f"`eval_strategy` {evaluation!r}: the held-out loss drives the "
                "schedule, ends the run or picks its model; take 'steps' and give "
                "`eval_steps`."
            )
        elif evaluation == "no" and max_steps:
            settings["eval_steps"] = max_steps
            into.notes.append("`eval_strategy` 'no': evaluated at both ends only")
        elif evaluation == "epoch":
            into.notes.append("`eval_strategy` 'epoch': every `eval_steps` instead")
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


def _rest(
    given: Mapping[str, Any], typed: Mapping[str, Any], into: Translation
) -> None:
    if _is_true(given.get("activation_checkpointing")):
        into.settings["gradient_checkpointing"] = True
    if str(given.get("resume_from_checkpoint")) in ("True", "False"):
        # A folder that holds a run is resumed anyway.
        del into.settings["resume_from_checkpoint"]
    limit = given.get("save_total_limit")
    if _is_number(limit) and limit <= 0:
        into.settings["save_total_limit"] = None
    seed = typed.get("seed", given.get("seed"))
    if is_set(given.get("data_seed")) and given["data_seed"] != seed:
        into.refusals.append(
            f"`data_seed` {given['data_seed']!r}: `seed`, which is {seed!r}, shuffles "
            "the text too; leave it out."
        )


def _max_steps(settings: Mapping[str, Any]) -> int | None:
    steps = settings.get("max_steps")
    return int(steps) if _is_number(steps) and steps > 0 else None


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_true(value: Any) -> bool:
    return value is True or value in ("True", "true")
