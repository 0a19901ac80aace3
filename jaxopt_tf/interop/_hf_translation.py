"""From TrainingArguments to the names of a recipe: what Trainer would do with them."""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from .. import _checks
from .._io import SWITCH, is_set, read_value
from ..recipes import (
    METRIC_DRIVEN,
    TAKES_OPTIM_ARGS,
    optimizer_refusal,
    read_optim_args,
)
from ._hf_before_4_40 import default_optimizer, is_before_4_40
from ._hf_fields import TRAINING_ARGUMENTS, is_usual
from ._hf_version import Era

# AdamW with torch's numbers, by other kernels; Trainer's name decides what goes back.
_SAME_ADAMW = ("adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused")
# Of version 4, in a format of its own, which is read and not written.
_APEX = "adamw_apex_fused"
# Trainer hands them no arguments at all.
_TAKES_NO_KWARGS = ("constant", "constant_with_warmup")


class Translation(NamedTuple):
    """What came of TrainingArguments."""

    settings: dict[str, Any]  # by our names; unknown names among them
    neutral: list[str]  # names of fields that are not as usual, and change no numbers
    elsewhere: list[str]  # that change numbers, but not those of the optimizer
    notes: list[str]  # what is here under another name, with the same numbers
    refusals: list[str]  # what is not here and would change the numbers


def translate_training_arguments(
    given: Mapping[str, Any],
    *,
    max_steps: int | None,
    era: Era,
    refused: Collection[str] = ("refused", "devices"),
    typed: Mapping[str, Any] = MappingProxyType({}),
) -> Translation:
    """Takes the table's part of TrainingArguments: all but lengths and strategies.

    Args:
        given: names and values, as `read_values` gives them.
        max_steps: the number of updates, where it is known.
        era: the version whose rules hold.
        refused: the kinds of the table's fields that are refused where they are set.
        typed: settings from elsewhere that win over these and are not among them.
    """
    into = Translation({}, [], [], [], [])
    for name, value in given.items():
        if name not in TRAINING_ARGUMENTS:
            into.settings[name] = value
            continue
        field = TRAINING_ARGUMENTS[name]
        if field.kind == "translated" or is_usual(value, field.usual):
            continue
        if field.kind in refused:
            into.refusals.append(f"`{name}` {value!r}: {field.reason}.")
        elif field.kind == "elsewhere":
            into.elsewhere.append(name)
        else:
            into.neutral.append(name)
    _optimizer(given, typed, into)
    _optim_args(given, typed, era, into)
    _decay(given, era, into)
    _warm_up(given, max_steps, era, into)
    _schedule(given, typed, into)
    _stable_decay(era, into)
    _accelerator(given, into)
    return into


def with_all_devices(taken: Translation, num_devices: int) -> None:
    """Has one device take the batches that several took at once."""
    accumulated: Any = taken.settings.get("gradient_accumulation_steps", 1)
    if num_devices == 1 or not isinstance(accumulated, int):
        return
    taken.settings["gradient_accumulation_steps"] = accumulated * num_devices
    taken.notes.append(
        f"`gradient_accumulation_steps` is {accumulated * num_devices} for "
        f"{accumulated}: {num_devices} devices took part, and an update here is of as "
        "many sequences on one"
    )
    # Off, each device divides its loss by its own number of labels.
    if "average_tokens_across_devices" in taken.neutral:
        taken.neutral.remove("average_tokens_across_devices")
        taken.elsewhere.append("average_tokens_across_devices")


def _optimizer(
    given: Mapping[str, Any], typed: Mapping[str, Any], into: Translation
) -> None:
    if "max_grad_norm" in given and given["max_grad_norm"] is None:
        into.settings["max_grad_norm"] = 0.0  # the Trainer does not clip either
    name = given.get("optim")
    try:
        oldest = default_optimizer({**given, **typed})
        is_adafactor = _switch(given, "adafactor")
    except (TypeError, ValueError) as error:
        into.refusals.append(str(error))
        return
    if is_adafactor:
        into.settings["optim"] = "adafactor"
    elif oldest is not None:
        into.settings["optim"] = oldest
        into.notes.append(
            f"`optim` is {oldest!r}: Transformers before 4.18 had no other AdamW"
        )
    elif name == _APEX:
        into.settings["optim"] = "adamw_torch"
        into.notes.append(f"`optim` {name!r} is 'adamw_torch' here: the same numbers")
    elif name in _SAME_ADAMW:
        into.notes.append(
            f"`optim` {name!r} computes as 'adamw_torch' here: the same numbers"
        )
    elif is_set(name):
        refusal = optimizer_refusal(name)
        if refusal is not None:
            into.refusals.append(refusal)
            into.settings.pop("optim")


def _optim_args(
    given: Mapping[str, Any], typed: Mapping[str, Any], era: Era, into: Translation
) -> None:
    args: Any = given.get("optim_args")
    into.settings.pop("optim_args", None)
    optim = {**into.settings, **typed}.get("optim") or "adamw_torch"
    if not is_set(args) or optimizer_refusal(optim) is not None:
        return
    if optim not in TAKES_OPTIM_ARGS or not era.reads_optim_args:
        into.notes.append(
            f"`optim_args` {args!r}: Trainer of version {era.versions} reads none for "
            f"{optim!r}"
        )
        return
    try:
        named = args if isinstance(args, str) else dict(args)
        if "weight_decay" in named:
            named = _without_weight_decay(args)
            into.notes.append(
                "`weight_decay` in `optim_args`: Trainer goes by the field of this name"
            )
        into.settings["optim_args"] = dict(read_optim_args(optim, named))
    except (TypeError, ValueError) as error:
        into.refusals.append(str(error))


def _without_weight_decay(args: Any) -> Any:
    if isinstance(args, str):
        items = args.replace(" ", "").split(",")
        return ",".join(i for i in items if not i.startswith("weight_decay="))
    return {name: value for name, value in args.items() if name != "weight_decay"}


def _decay(given: Mapping[str, Any], era: Era, into: Translation) -> None:
    if given.get("weight_decay") and era.decay_rule == "examples":
        into.refusals.append(
            f"`weight_decay` {given['weight_decay']!r}: the fields are those of "
            f"Transformers {era.versions}, whose Trainer decayed all parameters but "
            "those with `bias` or `LayerNorm.weight` in torch's name, which is not "
            "carried over; only runs without decay are."
        )
    elif given.get("weight_decay") and is_before_4_40(given):
        into.notes.append(
            "`weight_decay`: which layers are norms is taken from later versions; "
            "before 4.40 Trainer knew fewer of the RMSNorm classes"
        )


def _warm_up(
    given: Mapping[str, Any], max_steps: int | None, era: Era, into: Translation
) -> None:
    ratio, steps = given.get("warmup_ratio"), given.get("warmup_steps")
    if not is_set(ratio):
        return
    try:
        _checks.fraction("warmup_ratio", ratio)
    except (TypeError, ValueError) as error:
        into.refusals.append(f"{error} A number of steps is `warmup_steps`.")
        return
    if era.ratio_replaces_steps:
        # `warmup_steps = warmup_ratio`, whatever the steps: 1 is one step, not a share.
        into.settings["warmup_steps"] = 1 if ratio == 1 else ratio
        if is_set(steps) and steps != 0:
            into.neutral.append("warmup_steps")
        return
    if is_set(steps) and steps != 0:
        # As in 4.x: steps win, and a share of them was none.
        if isinstance(steps, float) and 0 < steps < 1:
            into.refusals.append(
                f"`warmup_steps` {steps!r}: beside `warmup_ratio`, which is {ratio!r}, "
                "it must be a whole number of steps. Give one of the two, a share as "
                "the ratio."
            )
        elif ratio:
            into.neutral.append("warmup_ratio")
        return
    # A `warmup_steps` of 1 would be one step, not all of them.
    if ratio == 1 and max_steps is None:
        into.refusals.append(
            f"`warmup_ratio` {ratio!r}: how many steps are all of them is not known; "
            "give `max_steps`."
        )
    else:
        into.settings["warmup_steps"] = max_steps if ratio == 1 else ratio


def _schedule(
    given: Mapping[str, Any], typed: Mapping[str, Any], into: Translation
) -> None:
    """Leaves out what Trainer does not hand to the schedule."""
    settings = into.settings
    schedule = {**settings, **typed}.get("lr_scheduler_type") or "linear"
    if schedule in _TAKES_NO_KWARGS and is_set(settings.get("lr_scheduler_kwargs")):
        del settings["lr_scheduler_kwargs"]
        into.notes.append(f"`lr_scheduler_kwargs`: Trainer reads none for {schedule!r}")
    warm_up = settings.get("warmup_steps")
    if isinstance(warm_up, float) and warm_up > 1:
        settings["warmup_steps"] = int(warm_up)
    if schedule in METRIC_DRIVEN and warm_up:
        settings["warmup_steps"] = 0
        written = "warmup_steps" if given.get("warmup_steps") else "warmup_ratio"
        into.notes.append(f"`{written}`: {schedule!r} has none in Trainer either")


def _stable_decay(era: Era, into: Translation) -> None:
    """Refuses a schedule whose warmup rose from 0, where ours starts at its minimum.

    Source: transformers 4.48 and 4.49 `optimization.py`, `_get_wsd_scheduler_lambda`.
    """
    settings, name = into.settings, "warmup_stable_decay"
    kwargs = settings.get("lr_scheduler_kwargs") or {}
    ratio = kwargs.get("min_lr_ratio", 0) if isinstance(kwargs, Mapping) else 0
    is_affected = era.warms_up_from_zero and settings.get("lr_scheduler_type") == name
    if is_affected and ratio and settings.get("warmup_steps"):
        into.refusals.append(
            f"`lr_scheduler_kwargs` must be without a `min_lr_ratio` for {name!r} of "
            f"Transformers {era.versions}, got {ratio!r}: its warmup rises from 0 "
            "there, and from this share of the rate here and since 4.49. Pass "
            "`transformers_version='4.49.0'` if the warmup is over."
        )


def _accelerator(given: Mapping[str, Any], into: Translation) -> None:
    config = given.get("accelerator_config")
    is_plain = isinstance(config, dict) and not (
        config.get("split_batches") not in (None, False, "false", "False")
        or is_set(config.get("gradient_accumulation_kwargs"))
    )
    if is_set(config) and not is_plain:
        into.refusals.append(
            f"`accelerator_config` {config!r}: `gradient_accumulation_steps` and "
            "`per_device_train_batch_size` set all of it here; leave it out, or "
            "name it in `ignore_fields`."
        )


def _switch(given: Mapping[str, Any], name: str) -> bool:
    """Returns a field that is on or off; raises if it is neither."""
    value = given.get(name)
    return bool(value) and read_value(name, SWITCH, value)
