"""Conversion of `TrainingArguments` to a `Recipe` with equal updates."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from .. import _checks
from .._io import SWITCH, is_set, read_value
from ..recipes import METRIC_DRIVEN, Recipe
from ._argument_fields import EVALUATION_FIELDS, TRAINING_ARGUMENTS
from ._argument_translation import (
    RECIPE_KINDS,
    Translation,
    select_fields,
    translate_training_arguments,
)
from ._arguments_by_version import ArgsVersion, note_on_decay, source_version
from ._training_arguments import read_training_arguments

_DEVICES = {n for n, field in TRAINING_ARGUMENTS.items() if field.effect == "devices"}
# Fields that `Recipe` has under another name, or as a number of steps.
_MAPPED_OTHERWISE = [
    name
    for name, field in TRAINING_ARGUMENTS.items()
    if field.effect == "translated" and field.setting in RECIPE_KINDS
]
_REFUSED = {
    "refused": "",
    "devices": "the run used more than one device; pass `num_devices`",
}


@dataclass(frozen=True, kw_only=True)
class FromTransformers:
    """Recipe, and a report on each field of the `TrainingArguments`.

    Attributes:
        recipe: the recipe. Its `decay_rule` is that of Trainer.
        versions: version or versions of Transformers whose rules were applied:
            "4.46.3" if the version is known, else a range that the fields allow, such
            as "5" or "4.53 to 4.55".
        mapped: names of fields that the recipe has, under the same or another name.
        non_optimizer: names of fields that change results, but not the updates: the
            precision, the order of the data, and, if evaluations drive the schedule or
            select the best model, the interval and the metric of evaluations.
        ignored: names of fields that are not at their defaults and do not change the
            results here, or that `max_steps` replaces.
        notes: sentences on fields that were converted to an equivalent form.
        unread: names of fields that were left out: those of a subclass of
            TrainingArguments, and those of `ignore_fields`.
        values: the fields that were read, with their values.
    """

    recipe: Recipe
    versions: str
    mapped: tuple[str, ...]
    non_optimizer: tuple[str, ...]
    ignored: tuple[str, ...]
    notes: tuple[str, ...]
    unread: tuple[str, ...] = ()
    values: Mapping[str, Any]


def recipe_from_transformers(
    source: Any,
    *,
    max_steps: int | None = None,
    num_examples: int | None = None,
    num_devices: int | None = None,
    ignore_fields: Collection[str] = (),
    transformers_version: str | None = None,
) -> FromTransformers:
    """Returns the recipe that Trainer follows with these `TrainingArguments`.

    The number of steps is computed from epochs as in Trainer. The batches of an epoch
    are rounded up (down with `dataloader_drop_last`), the updates of an epoch are
    rounded up (down until 4.51), and so is the total number of steps. If the run used
    several devices, the accumulation steps are multiplied by their number, so that an
    update has the same number of sequences.

    Args:
        source: a `TrainingArguments`, a mapping, a JSON string, or the path of a JSON
            file or of a `training_args.bin`. `training_args.bin` is a pickle, which is
            read without running code.
        max_steps: number of updates, as in trainer_state.json; None for that of the
            source.
        num_examples: number of training examples; required if neither `max_steps` nor
            the source has a number of steps.
        num_devices: number of devices, each with its own batch; None for the number
            that the source contains, or 1.
        ignore_fields: names of fields that are treated as if they were not set.
        transformers_version: version that made the run, such as "4.46.3"; None for
            that of config.json in the folder of the file, else the newest with these
            fields. Weight decay, steps of an epoch and other rules depend on it.

    Returns:
        The recipe and a report. Fields of a subclass of TrainingArguments (such as
        TRL's `SFTConfig`) are left out and listed.

    Raises:
        ValueError: if fields would change the results and are not supported, if fields
            of a subclass may change the optimizer, or if names are unknown (all are
            listed); or if a file cannot be read.
        TypeError: if the source is of another type.

    Source: transformers 4.0 to 4.57 and 5.0 to 5.24, `trainer.py`, `training_args.py`,
        `trainer_optimizer.py`.
    Differs: a warmup longer than the training, phases that exceed it, and misspelled
        `optim_args` are errors; Trainer accepts them.
    """
    max_steps = _positive_or_none("max_steps", max_steps)
    num_examples = _positive_or_none("num_examples", num_examples)
    num_devices = _positive_or_none("num_devices", num_devices)
    found = read_training_arguments(source)
    version = source_version(found, transformers_version)
    num_devices = num_devices or found.num_devices
    translation = select_fields(
        found.values, RECIPE_KINDS, ignore_fields, may_be_subclass=found.may_be_subclass
    )
    values = translation.values
    if num_devices:
        translation.values = {n: v for n, v in values.items() if n not in _DEVICES}
    if max_steps is not None:
        translation.values = {**translation.values, "max_steps": max_steps}
    steps = None
    with translation.refusing():
        steps = _num_updates(
            translation.values, num_examples, num_devices or 1, version
        )
    translate_training_arguments(
        translation, version=version, max_steps=steps, refused=_REFUSED
    )
    _accumulate_devices(translation, num_devices or 1)
    # If the steps are refused, a placeholder lets the other settings be checked, so
    # that one error lists all refusals.
    translation.settings["max_steps"] = 2**31 - 1 if steps is None else steps
    settings = {**translation.read_settings(), "decay_rule": version.decay_rule}
    _mark_fields_that_change_results(translation, settings.get("lr_scheduler_type"))
    with translation.refusing():
        recipe = Recipe(**settings)
    translation.raise_refusals(f"{found.name}: ")
    if _has_steps(translation.values) and is_set(
        translation.values.get("num_train_epochs")
    ):
        translation.ignored.append("num_train_epochs")
    mapped = {n for n in _MAPPED_OTHERWISE if is_set(translation.values.get(n))}
    mapped -= {*translation.ignored}
    mapped |= translation.values.keys() & settings.keys()
    return FromTransformers(
        recipe=recipe,
        versions=version.label,
        mapped=tuple(sorted(mapped)),
        non_optimizer=tuple(sorted(translation.non_optimizer)),
        ignored=tuple(sorted({*translation.ignored})),
        notes=(*translation.notes, *version.notes, *note_on_decay(version, recipe)),
        unread=tuple(sorted(translation.unread)),
        values=values,
    )


def _positive_or_none(name: str, value: int | None) -> int | None:
    return None if value is None else _checks.step_count(name, value, minimum=1)


def _has_steps(values: Mapping[str, Any]) -> bool:
    """Returns True if `max_steps` determines the length, False if the epochs do."""
    # Trainer's default is -1. A value that is not a number is refused later.
    steps: Any = values.get("max_steps")
    return is_set(steps) and (not isinstance(steps, int | float) or steps >= 0)


def _num_updates(
    values: Mapping[str, Any],
    num_examples: int | None,
    num_devices: int,
    version: ArgsVersion,
) -> int:
    """Returns the number of updates; raises if it is unknown.

    Source: transformers 5.23 `trainer.py`, `set_initial_training_values`.
    """
    if _has_steps(values):
        return _checks.step_count("max_steps", values["max_steps"])
    epochs = values.get("num_train_epochs", 3.0)
    _checks.positive("num_train_epochs", epochs)
    if num_examples is None:
        raise ValueError(
            f"`num_train_epochs` {epochs!r}: the number of steps depends on the data; "
            "pass `num_examples`, or set `max_steps`."
        )

    def count(name: str, default: int) -> int:
        return _checks.step_count(name, values.get(name, default), minimum=1)

    batch = num_devices * count("per_device_train_batch_size", 8)
    accumulated = count("gradient_accumulation_steps", 1)
    name = "dataloader_drop_last"
    drops_last = read_value(name, SWITCH, values.get(name) or False)
    batches = num_examples // batch if drops_last else -(-num_examples // batch)
    # An epoch has at least one update, even if it has fewer batches than one update.
    whole, rest = divmod(batches, accumulated)
    updates = whole + (version.rounds_up and rest > 0)
    steps = math.ceil(epochs * max(1, updates))
    if steps > 2**31 - 1:
        raise ValueError(
            f"`num_train_epochs` must lead to at most 2^31 - 1 steps, got {epochs!r}: "
            f"{steps:,} steps."
        )
    return steps


def _accumulate_devices(translation: Translation, num_devices: int) -> None:
    """Replaces the parallel batches of several devices by accumulation on one."""
    steps: Any = translation.settings.get("gradient_accumulation_steps", 1)
    if num_devices == 1 or not isinstance(steps, int):
        return
    translation.settings["gradient_accumulation_steps"] = steps * num_devices
    translation.notes.append(
        f"`gradient_accumulation_steps` is {steps * num_devices} instead of {steps}: "
        f"the run used {num_devices} devices, and an update here has the same number "
        "of sequences on one"
    )
    # If this field is off, each device divides its loss by its own number of labels,
    # not by that of all devices.
    name = "average_tokens_across_devices"
    if name in translation.ignored:
        translation.ignored.remove(name)
        translation.non_optimizer.append(name)


def _mark_fields_that_change_results(
    translation: Translation, schedule: str | None
) -> None:
    """Moves fields that change results to `non_optimizer`.

    These are the fields of evaluations, if evaluations drive the schedule or select the
    best model, and a separate seed of the data.
    """
    values = translation.values
    if schedule in METRIC_DRIVEN or values.get("load_best_model_at_end") is True:
        deciding = {n for n in EVALUATION_FIELDS.split() if is_set(values.get(n))}
        # `logging_steps` is the default of an `eval_steps` that is not set.
        if is_set(values.get("logging_steps")) and not values.get("eval_steps"):
            deciding.add("logging_steps")
        translation.ignored = [
            name for name in translation.ignored if name not in deciding
        ]
        translation.non_optimizer += sorted(deciding - {*translation.non_optimizer})
    seed = values.get("data_seed")
    if is_set(seed) and seed != values.get("seed"):
        translation.non_optimizer.append("data_seed")
