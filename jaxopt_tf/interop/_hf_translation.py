"""From TrainingArguments to the names of a recipe: what Trainer would do with them."""

import contextlib
import json
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from ..recipes import (
    TAKES_OPTIM_ARGS,
    optimizer_refusal,
    read_optim_args,
)
from ._hf_fields import TRAINING_ARGUMENTS, is_set, is_usual
from ._hf_version import Era, era_of

# AdamW with torch's numbers, by other kernels; Trainer's name decides what goes back.
_SAME_ADAMW = ("adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused")
# Of version 4, in a format of its own, which is read and not written.
_APEX = "adamw_apex_fused"


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
    era: Era | None = None,
    refused: Collection[str] = ("refused", "devices"),
) -> Translation:
    """Takes the table's part of TrainingArguments: all but lengths and strategies.

    Args:
        given: names and values; strings, numbers, lists and dicts only.
        max_steps: the number of updates, where it is known.
        era: whose rules hold; None for that whose fields are given.
        refused: the kinds of the table's fields that are refused where they are set.
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
    _optimizer(given, into)
    _optim_args(given, era or era_of(given), into)
    _warm_up(given, max_steps, into)
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


def _optimizer(given: Mapping[str, Any], into: Translation) -> None:
    name = given.get("optim")
    if is_true(given.get("adafactor")):
        into.settings["optim"] = "adafactor"
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
    if "max_grad_norm" in given and given["max_grad_norm"] is None:
        into.settings["max_grad_norm"] = 0.0  # the Trainer does not clip either


def _optim_args(given: Mapping[str, Any], era: Era, into: Translation) -> None:
    args: Any = given.get("optim_args")
    into.settings.pop("optim_args", None)
    optim = into.settings.get("optim") or "adamw_torch"
    if not is_set(args) or optimizer_refusal(given.get("optim") or optim) is not None:
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


def _warm_up(
    given: Mapping[str, Any], max_steps: int | None, into: Translation
) -> None:
    ratio = given.get("warmup_ratio")
    # As in 4.x: the ratio counts where there are no steps, and is rounded up.
    if is_set(ratio) and ratio != 0 and not given.get("warmup_steps"):
        # A `warmup_steps` of 1 would be one step, not all of them.
        into.settings["warmup_steps"] = max_steps if ratio == 1 else ratio


def _accelerator(given: Mapping[str, Any], into: Translation) -> None:
    config = given.get("accelerator_config")
    if isinstance(config, str) and config.lstrip().startswith("{"):
        with contextlib.suppress(json.JSONDecodeError):  # refused as it stands
            config = json.loads(config)
    is_plain = isinstance(config, dict) and not (
        config.get("split_batches")
        or is_set(config.get("gradient_accumulation_kwargs"))
    )
    if is_set(config) and not is_plain:
        into.refusals.append(
            f"`accelerator_config` {config!r}: `gradient_accumulation_steps` and "
            "`per_device_train_batch_size` say all here; leave it out."
        )


def is_true(value: Any) -> bool:
    """Whether a value of JSON or of a command line says yes."""
    return value is True or value in ("True", "true")
