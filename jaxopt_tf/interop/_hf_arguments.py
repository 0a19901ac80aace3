"""TrainingArguments -> Recipe, refusing what it cannot keep."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

from .. import _checks
from .._io import SWITCH, is_set, read_value
from ..recipes import METRIC_DRIVEN, Recipe
from ._hf_fields import OF_A_JOB, OF_AN_EVALUATION, TRAINING_ARGUMENTS
from ._hf_source import read_training_arguments
from ._hf_subclass import select_fields, unknown_field
from ._hf_translation import (
    Translation,
    translate_training_arguments,
    with_all_devices,
)
from ._hf_values import KINDS, read_values
from ._hf_version import (
    Era,
    era_of,
    known_version,
    open_rules_note,
)

_OF_A_RECIPE = frozenset(field.name for field in fields(Recipe))
_KNOWN = (*_OF_A_RECIPE, *OF_A_JOB, *TRAINING_ARGUMENTS)
_LENGTHS = ("adafactor", "num_train_epochs", "warmup_ratio")


@dataclass(frozen=True, kw_only=True)
class FromTransformers:
    """A recipe, and what became of each of the TrainingArguments.

    Attributes:
        recipe: the numbers of the updates; its `decay_rule` is Trainer's.
        versions: of Transformers, whose rules were followed: "4.46.3" if the version
            is known, else "5", "4.53 to 4.55" and others by the fields.
        honoured: names of the fields that the recipe has, under this name or another.
        elsewhere: fields that decide numbers, but not those of the optimizer: the
            precision, the order of the data, and, where evaluations drive the schedule
            or pick the model, how often and by which metric is evaluated.
        without_effect: fields that are not as usual and change no number here, or
            that `max_steps` stands in for.
        notes: sentences on what is otherwise here with the same numbers.
        ignored: names of fields that were not read: those of a subclass of
            TrainingArguments, and those of `ignore_fields`.
    """

    recipe: Recipe
    versions: str
    honoured: tuple[str, ...]
    elsewhere: tuple[str, ...]
    without_effect: tuple[str, ...]
    notes: tuple[str, ...]
    ignored: tuple[str, ...] = ()


def recipe_from_transformers(
    source: Any,
    *,
    max_steps: int | None = None,
    num_examples: int | None = None,
    num_devices: int | None = None,
    ignore_fields: Collection[str] = (),
    transformers_version: str | None = None,
) -> FromTransformers:
    """The recipe that Trainer would follow with these TrainingArguments.

    Steps come from epochs as Trainer computes them: batches of an epoch are rounded up
    (down with `dataloader_drop_last`), so are its updates (down until 4.51) and the
    steps of all epochs. Where several devices took part, the recipe accumulates as many
    times as much, so that an update is of as many sequences.

    Args:
        source: a `TrainingArguments`, a mapping, a JSON string, or the path of a JSON
            file or of a `training_args.bin`. That is a pickle, of which nothing is run.
        max_steps: number of updates, as trainer_state.json has it; None for what the
            source says.
        num_examples: length of the training data; needed where `max_steps` is not set.
        num_devices: how many took part, each with a batch of its own; None for what
            the source says, or 1.
        ignore_fields: names of fields that are not read, as if they were not set.
        transformers_version: version that made the run, such as "4.46.3". None for
            that of config.json in the folder of the file, else the newest that has
            these fields. Decay, steps of an epoch and others depend on it.

    Returns:
        The recipe and a report. Fields of a subclass of TrainingArguments (TRL's
        `SFTConfig`, or your own) are ignored and listed.

    Raises:
        ValueError: naming all that would change the numbers and is not here, fields of
            a subclass that may change the optimizer, and all unknown names, at once; or
            if a file is no good.
        TypeError: if the source is of another kind.

    Source: transformers 4.0 to 4.57 and 5.0 to 5.24, `trainer.py`, `training_args.py`,
        `trainer_optimizer.py`.
    Differs: a warm-up longer than the training, phases that do not fit into it, and
        misspelt `optim_args` are refused; Trainer takes them.
    """
    if max_steps is not None:
        max_steps = _checks.step_count("max_steps", max_steps, least=1)
    if num_examples is not None:
        num_examples = _checks.step_count("num_examples", num_examples, least=1)
    if num_devices is not None:
        num_devices = _checks.step_count("num_devices", num_devices, least=1)
    found = read_training_arguments(source)
    version, version_notes = known_version(found, transformers_version)
    era = era_of(found.given, version)
    known_devices = num_devices or found.num_devices
    selected = select_fields(
        found.given, _KNOWN, ignore_fields, may_be_subclass=found.may_be_subclass
    )
    given = {
        n: v
        for n, v in read_values(selected.given).items()
        if not _is_device(n) or not known_devices
    }
    if max_steps is not None:
        given["max_steps"] = max_steps
    problems = list(selected.problems)
    steps = _steps(given, num_examples, known_devices or 1, era, problems)
    taken = translate_training_arguments(given, max_steps=steps, era=era)
    problems += [_told(refusal) for refusal in taken.refusals]
    with_all_devices(taken, known_devices or 1)
    settings, elsewhere, neutral = _sorted(given, taken, problems)
    settings["max_steps"] = 2**31 - 1 if steps is None else steps
    settings["decay_rule"] = era.decay_rule
    try:
        recipe = Recipe(**settings)
    except (TypeError, ValueError) as error:
        problems.append(str(error))
    if problems:
        raise ValueError(f"{found.name}: " + "\n  ".join(problems))
    lengths = {n for n in _LENGTHS if is_set(given.get(n))} - {*neutral}
    idle = lengths & {"num_train_epochs"} if _has_steps(given) else set()
    honoured = [n for n in given if n in settings or n in lengths - idle]
    return FromTransformers(
        recipe=recipe,
        versions=era.versions,
        honoured=tuple(sorted(honoured)),
        elsewhere=tuple(sorted(elsewhere)),
        without_effect=tuple(sorted({*neutral, *idle})),
        notes=(*taken.notes, *version_notes, *open_rules_note(era, recipe)),
        ignored=tuple(sorted(selected.ignored)),
    )


def _steps(
    given: Mapping[str, Any],
    num_examples: int | None,
    num_devices: int,
    era: Era,
    problems: list[str],
) -> int | None:
    """The number of updates; None, and a problem, where it is not known."""
    try:
        if _has_steps(given):
            return _checks.step_count("max_steps", given["max_steps"])
        epochs = given.get("num_train_epochs", 3.0)
        _checks.positive("num_train_epochs", epochs)
        if num_examples is None:
            problems.append(
                f"`num_train_epochs` {epochs!r}: how many steps they have is not known "
                "without the data; pass `num_examples`, or set `max_steps`."
            )
            return None
        batch = num_devices * _count(given, "per_device_train_batch_size", 8)
        accumulated = _count(given, "gradient_accumulation_steps", 1)
        name = "dataloader_drop_last"
        drops_last = read_value(name, SWITCH, given.get(name) or False)
        batches = num_examples // batch if drops_last else -(-num_examples // batch)
        updates = (
            -(-batches // accumulated) if era.rounds_up else batches // accumulated
        )
        steps = math.ceil(epochs * max(1, updates))
        if steps > 2**31 - 1:
            raise ValueError(
                f"`num_train_epochs` must have at most 2^31 - 1 steps, got {epochs!r}: "
                f"{steps:,} steps."
            )
        return steps
    except (TypeError, ValueError) as error:
        problems.append(str(error))
        return None


def _has_steps(given: Mapping[str, Any]) -> bool:
    """Whether `max_steps` decides, and not the epochs."""
    steps: Any = given.get("max_steps")
    return is_set(steps) and (not isinstance(steps, int | float) or steps >= 0)


def _count(given: Mapping[str, Any], name: str, default: int) -> int:
    return _checks.step_count(name, given.get(name, default), least=1)


def _sorted(
    given: Mapping[str, Any], taken: Translation, problems: list[str]
) -> tuple[dict[str, Any], list[str], list[str]]:
    """The recipe's settings, and names of the fields that are elsewhere or neutral."""
    settings: dict[str, Any] = {}
    elsewhere, neutral = list(taken.elsewhere), list(taken.neutral)
    for name, value in taken.settings.items():
        if name in _OF_A_RECIPE:
            if is_set(value) and name != "max_steps":
                try:
                    settings[name] = read_value(name, KINDS[name], value)
                except TypeError as error:
                    problems.append(str(error))
        elif name in OF_A_JOB:
            if is_set(value) and value is not False:
                (elsewhere if OF_A_JOB[name] == "elsewhere" else neutral).append(name)
        else:
            problems.append(unknown_field(name, _KNOWN, "one of TrainingArguments"))
    if _evaluation_decides(settings, given):
        deciding = {n for n in OF_AN_EVALUATION if is_set(given.get(n))}
        # In the place of an interval that is not set.
        if is_set(given.get("logging_steps")) and not given.get("eval_steps"):
            deciding.add("logging_steps")
        neutral = [name for name in neutral if name not in deciding]
        elsewhere += sorted(deciding - {*elsewhere})
    seed = given.get("data_seed")
    if is_set(seed) and seed != given.get("seed"):
        elsewhere.append("data_seed")
    return settings, elsewhere, neutral


def _evaluation_decides(settings: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Returns True if evaluations drive the schedule or pick the model."""
    is_driven = settings.get("lr_scheduler_type") in METRIC_DRIVEN
    return is_driven or given.get("load_best_model_at_end") is True


def _is_device(name: str) -> bool:
    return name in TRAINING_ARGUMENTS and TRAINING_ARGUMENTS[name].kind == "devices"


def _told(refusal: str) -> str:
    """A refusal of the table, with the cure that there is here."""
    name = refusal.split("`")[1]
    if not _is_device(name):
        return refusal
    value = refusal.partition("` ")[2].partition(":")[0]
    return f"`{name}` {value}: more than one device took part; pass `num_devices`."
