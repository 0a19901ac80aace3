"""From a dict of TrainingArguments to flags: what Transformers' Trainer would do.

A dict of our own flags comes out as it is.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard

from ..pretraining import held_out_loss_decides
from ._training_arguments import NEUTRAL, REFUSED, TRANSLATED, is_set, is_usual

# AdamW with torch's numbers, by other kernels.
_SAME_ADAMW = (
    "adamw_torch_fused",
    "adamw_torch_xla",
    "adamw_torch_npu_fused",
    "adamw_apex_fused",
)
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
    into = Translation({}, [], [])
    neutral = []
    for name, value in given.items():
        if name in NEUTRAL:
            if not is_usual(value, NEUTRAL[name]):
                neutral.append(name)
        elif name in REFUSED:
            usual, reason = REFUSED[name]
            if not is_usual(value, usual):
                into.refusals.append(f"`{name}` {value!r}: {reason}.")
        elif name not in TRANSLATED:
            into.settings[name] = value
    if neutral:
        into.notes.append(f"without effect here: {', '.join(neutral)}")
    _optimizer(given, into)
    _length(given, typed, into)
    _intervals(given, typed, into)
    _rest(given, typed, into)
    return into


def _optimizer(given: Mapping[str, Any], into: Translation) -> None:
    name = given.get("optim")
    if _is_true(given.get("adafactor")):
        into.settings["optim"] = "adafactor"
    elif name in _SAME_ADAMW:
        into.settings["optim"] = "adamw_torch"
        into.notes.append(f"`optim` {name!r} is 'adamw_torch' here: the same numbers")
    elif is_set(name) and name not in ("adamw_torch", "adafactor"):
        into.refusals.append(
            f"`optim` {name!r}: there are 'adamw_torch' (with its fused forms) and "
            "'adafactor' here; take one of them."
        )
    if "max_grad_norm" in given and given["max_grad_norm"] is None:
        into.settings["max_grad_norm"] = 0.0  # the Trainer does not clip either


def _length(
    given: Mapping[str, Any], typed: Mapping[str, Any], into: Translation
) -> None:
    """How long the run and its warm-up are."""
    max_steps, epochs = _max_steps({**given, **typed}), given.get("num_train_epochs")
    if max_steps is None and is_set(epochs):
        into.refusals.append(
            f"`num_train_epochs` {epochs!r}: how many steps they have is not known "
            "before the text is read; give `--max_steps`."
        )
    ratio = given.get("warmup_ratio")
    # As in 4.x: the ratio counts where there are no steps, and is rounded up.
    if is_set(ratio) and ratio != 0 and not given.get("warmup_steps"):
        # A `warmup_steps` of 1 would be one step, not all of them.
        into.settings["warmup_steps"] = max_steps if ratio == 1 else ratio


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
    config = given.get("accelerator_config")
    is_plain = isinstance(config, dict) and not (
        config.get("split_batches")
        or is_set(config.get("gradient_accumulation_kwargs"))
    )
    if is_set(config) and not is_plain:
        into.refusals.append(
            f"`accelerator_config` {config!r}: `gradient_accumulation_steps` and "
            "`per_device_train_batch_size` say all here; leave it out."
        )


def _max_steps(settings: Mapping[str, Any]) -> int | None:
    steps = settings.get("max_steps")
    return int(steps) if _is_number(steps) and steps > 0 else None


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_true(value: Any) -> bool:
    return value is True or value in ("True", "true")
