"""Translation of `TrainingArguments` to the settings of this package.

Values are parsed by the kinds of their fields, because a number may be stored as 1e-4
(in an object) or as "1e-4" (in a JSON file or on a command line). Fields of a subclass
(of TRL, of sentence-transformers, of a script) are left out and listed. A field of a
subclass whose name refers to the optimizer (`vision_lr`) is refused unless it is off.

Afterwards the table of fields is applied, followed by one step for each part of Trainer
that combines several fields: optimizer, its arguments, weight decay, warmup, schedule.
"""

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from .. import _checks
from .._io import SWITCH, Kind, is_null, is_set, kinds_of, read_value
from ..recipes import (
    METRIC_DRIVEN,
    TAKES_OPTIM_ARGS,
    Recipe,
    ignored_fields,
    optimizer_refusal,
    read_trainer_optim_args,
)
from ._argument_fields import TRAINING_ARGUMENTS, has_all_fields
from ._arguments_by_version import ArgsVersion, default_optimizer

RECIPE_KINDS = kinds_of(Recipe)

# Optimizers that compute torch's AdamW with other kernels. The name is kept, so that
# it can be written back.
_SAME_ADAMW = ("adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused")
# Apex's optimizer of version 4. Its state dict is read, but never written.
_APEX = "adamw_apex_fused"
# Schedules to which Trainer passes no `lr_scheduler_kwargs`.
_TAKES_NO_KWARGS = ("constant", "constant_with_warmup")

# Names of fields that refer to the optimizer: words between underscores (vision_lr,
# loraplus_lr_ratio, use_muon_optimizer), parts of a name (learning_rate_mapping), and
# whole names.
_OF_THE_OPTIMIZER = re.compile(
    r"(?:^|_)(?:lr|lrs|optim|optims|optimizer|optimizers|scheduler|warmup|momentum)"
    r"(?:_|$)|learning_rate|weight_decay"
    r"|^(?:use_(?:adam_mini|apollo|badam|galore|muon)|relora_steps)$"
)


@dataclass(eq=False)
class Translation:
    """Settings translated from fields of `TrainingArguments`, filled in step by step.

    Attributes:
        values: the fields, parsed by their kinds.
        typed: settings that a user gave explicitly, for example on a command line.
            They take precedence over the fields.
        settings: values by the names of this package.
        kinds: kinds of all settings by the names of this package.
        ignored: names of fields without effect that are read and not at their defaults.
        non_optimizer: names of fields that change results, but not the updates.
        notes: sentences on fields that were converted to an equivalent form.
        refusals: sentences on fields that would change the results and are not
            supported.
        unread: names of fields in `ignore_fields`, and of fields that a subclass adds.
    """

    values: Mapping[str, Any]
    typed: Mapping[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    non_optimizer: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    @property
    def combined(self) -> dict[str, Any]:
        """Settings translated so far, overridden by those of `typed`."""
        return {**self.settings, **self.typed}

    def refuse(self, name: str, reason: str) -> None:
        """Refuses the value of a field; `reason` ends with a remedy."""
        self.refusals.append(f"`{name}` {self.values[name]!r}: {reason}")

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Collects a TypeError or ValueError as a refusal instead of raising it."""
        try:
            yield
        except (TypeError, ValueError) as error:
            self.refusals.append(str(error))

    def raise_refusals(self, source: str = "") -> None:
        """Raises a ValueError that lists all refusals, if there are any."""
        if self.refusals:
            raise ValueError(source + "\n  ".join(self.refusals))

    def read_settings(self) -> dict[str, Any]:
        """Returns the settings that are set, parsed by their kinds."""
        parsed = {}
        for name, value in self.settings.items():
            if is_set(value) or self.kinds[name].is_optional:
                with self.refusing():
                    given = value if is_set(value) else None
                    parsed[name] = read_value(name, self.kinds[name], given)
        return parsed


def select_fields(
    values: Mapping[str, Any],
    kinds: Mapping[str, Kind],
    ignore_fields: Collection[str] = (),
    *,
    typed: Mapping[str, Any] = MappingProxyType({}),
    may_be_subclass: bool = True,
) -> Translation:
    """Parses fields by their kinds, except ignored ones and those of a subclass.

    A value that cannot be parsed is left unchanged. It is refused later, when its range
    is checked.

    Args:
        values: values by the names of the fields.
        kinds: kinds of the settings that have the name of a field.
        ignore_fields: names of fields that are left out.
        typed: settings that take precedence over the fields.
        may_be_subclass: False if the class is known to be one of Transformers.

    Returns:
        A translation with the values, the names of fields that were left out, and a
        refusal for each field of a subclass that may change the optimizer.

    Raises:
        TypeError: if `ignore_fields` is not a collection of names.
        ValueError: if `ignore_fields` contains a name that is not in `values`.
    """
    # A single string is refused: its characters would be taken for names.
    is_list = isinstance(ignore_fields, list | tuple | set | frozenset)
    if not is_list or not all(isinstance(name, str) for name in ignore_fields):
        raise TypeError(
            f"`ignore_fields` must be a list of field names, got {ignore_fields!r}."
        )
    for name in ignore_fields:
        if name not in values:
            raise ValueError(
                "`ignore_fields` must contain fields of the source, got "
                f"{name!r}, which it does not have.{_checks.suggest(name, values)}"
            )
    unread = [*dict.fromkeys(ignore_fields)]
    translation = Translation({}, typed, kinds=kinds, unread=unread)
    parsed = {}
    # In a partial source an unknown name may be a misspelling. It stays in the values
    # and is refused when the fields are translated.
    is_whole = may_be_subclass and has_all_fields(values)
    for name, value in values.items():
        is_known = name in kinds or name in TRAINING_ARGUMENTS
        if name in ignore_fields:
            continue
        if is_known or not is_whole:
            parsed[name] = _read_field(name, value)
        elif _OF_THE_OPTIMIZER.search(name) and value is not False and is_set(value):
            translation.refusals.append(
                f"`{name}` {value!r}: this field of a subclass may change the "
                f"optimizer and is not supported; if it does not change it, add "
                f"{name!r} to `ignore_fields`."
            )
        else:
            translation.unread.append(name)
    translation.values = parsed
    return translation


def translate_training_arguments(
    translation: Translation,
    *,
    version: ArgsVersion,
    max_steps: int | None,
    refused: Mapping[str, str],
) -> None:
    """Translates all fields to settings, except run lengths and strategies.

    Args:
        translation: contains the values; its other attributes are filled in.
        version: version of Transformers whose rules apply.
        max_steps: number of updates; None if unknown.
        refused: reason by effect of a field, for the effects that are refused if the
            field is set; "" for the reason in the table.
    """
    for name, value in translation.values.items():
        row = TRAINING_ARGUMENTS.get(name)
        if name in translation.kinds:
            translation.settings[name] = value
        elif row is None:
            known = (*translation.kinds, *TRAINING_ARGUMENTS)
            near = _checks.suggest(name, known, "`{}`")
            translation.refusals.append(
                f"`{name}` must be a field of TrainingArguments or a setting.{near} "
                "If it is your own field and does not change the optimizer, add "
                f"{name!r} to `ignore_fields`."
            )
        elif row.effect == "translated" or row.is_default(value):
            continue
        elif row.effect in refused:
            translation.refuse(name, f"{refused[row.effect] or row.reason}.")
        elif row.effect == "non_optimizer":
            translation.non_optimizer.append(name)
        else:
            translation.ignored.append(name)
    with translation.refusing():
        _translate_optimizer(translation)
    with translation.refusing():
        _translate_optim_args(translation, version)
    _check_decay(translation, version)
    _translate_warmup(translation, max_steps, version)
    _translate_schedule(translation)
    _check_stable_decay(translation, version)
    _check_accelerator(translation)


def _read_field(name: str, value: Any) -> Any:
    row = TRAINING_ARGUMENTS.get(name)
    kind = RECIPE_KINDS.get(name) if row is None else row.value_kind
    if is_null(value):
        return None
    if kind is not None and is_set(value):
        with contextlib.suppress(TypeError):
            return read_value(name, kind, value)
    return value


def _translate_optimizer(translation: Translation) -> None:
    """Translates `optim`, `adafactor` and `max_grad_norm`."""
    values, settings = translation.values, translation.settings
    if "max_grad_norm" in values and values["max_grad_norm"] is None:
        settings["max_grad_norm"] = 0.0  # Trainer does not clip for None and 0
    name, adafactor = values.get("optim"), values.get("adafactor")
    oldest = default_optimizer({**values, **translation.typed})
    if adafactor and read_value("adafactor", SWITCH, adafactor):
        settings["optim"] = "adafactor"
    elif oldest is not None:
        settings["optim"] = oldest
        translation.notes.append(
            f"`optim` is {oldest!r}: Transformers before 4.18 had no other AdamW"
        )
    elif name == _APEX:
        settings["optim"] = "adamw_torch"
        translation.notes.append(
            f"`optim` {name!r} becomes 'adamw_torch', which has the same updates"
        )
    elif name in _SAME_ADAMW:
        translation.notes.append(
            f"`optim` {name!r} has the same updates as 'adamw_torch'"
        )
    elif is_set(name) and (refusal := optimizer_refusal(name)) is not None:
        del settings["optim"]
        raise ValueError(refusal)


def _translate_optim_args(translation: Translation, version: ArgsVersion) -> None:
    """Parses `optim_args`, or removes them; lists fields that are ignored."""
    args: Any = translation.settings.pop("optim_args", None)
    optim = translation.combined.get("optim") or "adamw_torch"
    translation.ignored.extend(ignored_fields(optim, translation.values))
    if not is_set(args) or optimizer_refusal(optim) is not None:
        return
    if optim not in TAKES_OPTIM_ARGS or not version.reads_optim_args:
        translation.notes.append(
            f"`optim_args` {args!r}: Trainer of version {version.label} ignores them "
            f"for {optim!r}"
        )
        return
    named = args if isinstance(args, str) else dict(args)
    if "weight_decay" in named:
        # torch prefers the value of a group, which Trainer sets, to an argument.
        translation.notes.append(
            "`weight_decay` in `optim_args`: Trainer uses the field `weight_decay`"
        )
        if isinstance(named, str):
            items = named.replace(" ", "").split(",")
            named = ",".join(i for i in items if not i.startswith("weight_decay="))
        else:
            del named["weight_decay"]
    translation.settings["optim_args"] = dict(read_trainer_optim_args(optim, named))


def _check_decay(translation: Translation, version: ArgsVersion) -> None:
    """Refuses the decay rule before 4.4, and adds a note for those before 4.40."""
    if not translation.values.get("weight_decay"):
        return
    if version.decay_rule == "examples":
        translation.refuse(
            "weight_decay",
            f"the fields are those of Transformers {version.label}, whose Trainer "
            "excluded parameters with `bias` or `LayerNorm.weight` in torch's name "
            "from decay. This rule is not supported; set `weight_decay` to 0.",
        )
    elif version.number < (4, 40):
        translation.notes.append(
            "`weight_decay`: layer norms are those of later versions; Trainer before "
            "4.40 recognized fewer RMSNorm classes"
        )


def _translate_warmup(
    translation: Translation, max_steps: int | None, version: ArgsVersion
) -> None:
    """Translates `warmup_ratio` and `warmup_steps` by the rules of the version."""
    values = translation.values
    ratio, steps = values.get("warmup_ratio"), values.get("warmup_steps")
    if not is_set(ratio):
        return
    try:
        _checks.fraction("warmup_ratio", ratio)
    except (TypeError, ValueError) as error:
        translation.refusals.append(f"{error} Set a number of steps by `warmup_steps`.")
        return
    has_steps = is_set(steps) and steps != 0
    if version.ratio_replaces_steps:
        # These versions assign `warmup_steps = warmup_ratio`, whatever the steps are.
        # A ratio of 1 is then one step, because only values below 1 are fractions.
        translation.settings["warmup_steps"] = 1 if ratio == 1 else ratio
        if has_steps:
            translation.ignored.append("warmup_steps")
    elif has_steps and isinstance(steps, float) and 0 < steps < 1:
        # In 4.x steps take precedence over the ratio, and cannot be a fraction.
        translation.refuse(
            "warmup_steps",
            f"must be a whole number of steps if `warmup_ratio` is set, which is "
            f"{ratio!r}. Set one of the two, a fraction as `warmup_ratio`.",
        )
    elif has_steps:
        if ratio:
            translation.ignored.append("warmup_ratio")
    # A `warmup_steps` of 1 is one step, so a ratio of 1 needs the number of all steps.
    elif ratio == 1 and max_steps is None:
        translation.refuse(
            "warmup_ratio",
            "the number of steps is not known; set `max_steps`.",
        )
    else:
        translation.settings["warmup_steps"] = max_steps if ratio == 1 else ratio


def _translate_schedule(translation: Translation) -> None:
    """Removes settings that Trainer does not pass to the schedule."""
    settings = translation.settings
    schedule = translation.combined.get("lr_scheduler_type") or "linear"
    if schedule in _TAKES_NO_KWARGS and is_set(settings.get("lr_scheduler_kwargs")):
        del settings["lr_scheduler_kwargs"]
        translation.notes.append(
            f"`lr_scheduler_kwargs`: Trainer ignores them for {schedule!r}"
        )
    warmup = settings.get("warmup_steps")
    if isinstance(warmup, float) and warmup > 1:
        settings["warmup_steps"] = int(warmup)  # as `get_warmup_steps` of Trainer
    if schedule in METRIC_DRIVEN and warmup:
        settings["warmup_steps"] = 0
        has_steps = bool(translation.values.get("warmup_steps"))
        written = "warmup_steps" if has_steps else "warmup_ratio"
        note = f"`{written}`: Trainer has no warmup for {schedule!r} either"
        translation.notes.append(note)


def _check_stable_decay(translation: Translation, version: ArgsVersion) -> None:
    """Refuses a schedule whose warmup began at 0 in its version of Transformers.

    Source: transformers 4.48 and 4.49 `optimization.py`, `_get_wsd_scheduler_lambda`.
    """
    settings, name = translation.settings, "warmup_stable_decay"
    kwargs = settings.get("lr_scheduler_kwargs") or {}
    ratio = kwargs.get("min_lr_ratio", 0) if isinstance(kwargs, Mapping) else 0
    is_affected = (
        version.warms_up_from_zero and settings.get("lr_scheduler_type") == name
    )
    if is_affected and ratio and settings.get("warmup_steps"):
        translation.refusals.append(
            f"`lr_scheduler_kwargs` must not have a `min_lr_ratio` for {name!r} of "
            f"Transformers {version.label}, got {ratio!r}: the warmup of that version "
            "begins at 0, and since 4.49 at this fraction of the rate. Pass "
            "`transformers_version='4.49.0'` if the warmup is over."
        )


def _check_accelerator(translation: Translation) -> None:
    """Refuses an `accelerator_config` that changes batches or accumulation."""
    config = translation.values.get("accelerator_config")
    is_plain = isinstance(config, dict) and not (
        config.get("split_batches") not in (None, False, "false", "False")
        or is_set(config.get("gradient_accumulation_kwargs"))
    )
    if is_set(config) and not is_plain:
        translation.refuse(
            "accelerator_config",
            "`gradient_accumulation_steps` and `per_device_train_batch_size` replace "
            "it; leave it out, or name it in `ignore_fields`.",
        )
