"""From a dict of TrainingArguments to flags: what Transformers' Trainer would do.

A dict of our own flags comes out as it is.
"""

from collections.abc import Collection, Mapping
from typing import Any

from .._io import is_set
from ..interop import (
    Translation,
    era_of,
    read_values,
    select_fields,
    translate_training_arguments,
)
from ._intervals import set_intervals

# What a job here does not do otherwise, the order of its data included.
_REFUSED = ("refused", "elsewhere", "devices")

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


def translate(
    raw: Mapping[str, Any],
    typed: Mapping[str, Any],
    *,
    known: Collection[str],
    ignore_fields: Collection[str] = (),
) -> Translation:
    """Takes from the file what the command line leaves open.

    Args:
        raw: the file's names and values.
        typed: the flags of the command line, which win over the file.
        known: names of the flags and of the fields of TrainingArguments.
        ignore_fields: names in the file that are not read.

    Returns:
        Settings by the names of our flags, unknown names among them; notes on what is
        not as the file has it and changes no numbers; and refusals of what would.
    """
    selected = select_fields(raw, known, ignore_fields)
    given = untyped(read_values(selected.given), typed)
    max_steps = max_steps_of({**given, **typed})
    into = translate_training_arguments(
        given,
        max_steps=max_steps,
        era=era_of(raw),
        refused=_REFUSED,
        typed=typed,
    )
    into.refusals[:0] = selected.problems
    if into.neutral:
        into.notes.insert(0, f"without effect here: {', '.join(into.neutral)}")
    if selected.ignored:
        into.notes.insert(0, f"ignored: {', '.join(sorted(selected.ignored))}")
    _length(given, max_steps, into)
    set_intervals(given, typed, into, max_steps)
    _rest(given, typed, into)
    return into


def untyped(given: Mapping[str, Any], typed: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that no flag of the command line stands in for."""
    told = {*typed, *(other for name in typed for other in _SAYS_TOO.get(name, ()))}
    return {name: value for name, value in given.items() if name not in told}


def max_steps_of(settings: Mapping[str, Any]) -> int | None:
    """Returns the number of updates; None where epochs decide."""
    steps: Any = settings.get("max_steps")
    is_number = isinstance(steps, int | float) and not isinstance(steps, bool)
    return int(steps) if is_number and steps > 0 else None


def _length(given: Mapping[str, Any], max_steps: int | None, into: Translation) -> None:
    """How long the run is: not by epochs."""
    epochs = given.get("num_train_epochs")
    if max_steps is None and is_set(epochs):
        into.refusals.append(
            f"`num_train_epochs` {epochs!r}: how many steps they have is not known "
            "before the text is read; give `--max_steps`."
        )


def _rest(
    given: Mapping[str, Any], typed: Mapping[str, Any], into: Translation
) -> None:
    recompute = given.get("activation_checkpointing")
    if recompute is True:
        into.settings["gradient_checkpointing"] = True
    elif is_set(recompute) and recompute is not False:
        into.refusals.append(
            f"`activation_checkpointing` must be true or false, got {recompute!r}."
        )
    if str(given.get("resume_from_checkpoint")) in ("True", "False"):
        # A folder that holds a run is resumed anyway.
        del into.settings["resume_from_checkpoint"]
    limit = given.get("save_total_limit")
    if isinstance(limit, int | float) and limit <= 0:
        into.settings["save_total_limit"] = None
    seed = typed.get("seed", given.get("seed"))
    if is_set(given.get("data_seed")) and given["data_seed"] != seed:
        into.refusals.append(
            f"`data_seed` {given['data_seed']!r}: `seed`, which is {seed!r}, shuffles "
            "the text too; leave it out, or name it in `ignore_fields`."
        )
