"""Configuration of a run: recipe, model and job, checked against each other.

`changed_settings` compares the configurations of two runs.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import _checks
from ..data import is_pretokenized
from ..models import (
    ModelConfig,
    config_type,
    fields_of_other_configs,
    placeholder_config,
)
from ..recipes import Recipe, recipe_settings
from ..sharding import axis_sizes, num_batch_shards
from ._conflicts import find_conflicts, uses_eval_loss
from ._intervals import with_whole_intervals
from ._job import Job
from ._model_folder import with_model_folder

# Settings that apply to a single start. They are not written to settings.json, because
# later starts read that file and would apply them again.
PER_START_SETTINGS = ("resume_from_checkpoint", "intended_changes")

# Keys that a checkpoint records in addition to the settings: the fingerprint of the
# data, their size as text, and the number of sequences of a micro-batch on all devices.
DATA = "data"
DATA_SIZE = "data_size"
SEQUENCES = "sequences"
# Fingerprint of the weights that checkpoints do not contain, because they are frozen.
BASE = "base"

# Settings that do not change the losses and parameters of a run: output paths and
# intervals, and the devices. `text` and `tokenizer` are left out because the
# fingerprint of the data is compared instead; paths differ between machines.
_WITHOUT_EFFECT_ON_NUMBERS = (
    *("text", "train_file", "validation_file", "test_file", "tokenizer"),
    "chat_template",
    *("output_dir", "logging_steps", "logging_first_step", "save_steps"),
    # The effect of these settings is compared in `max_steps`, `eval_steps` and
    # `save_steps`, which they determine.
    *("num_train_epochs", "eval_strategy", "save_strategy"),
    *("save_total_limit", "log_layers", "sample_prompt", "report_to"),
    *("mesh", "zero_1", DATA_SIZE, SEQUENCES),
    *PER_START_SETTINGS,
)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All settings of a run.

    Attributes:
        recipe: hyperparameters of the optimizer and the schedule.
        model: sizes and options of the model.
        job: data, output folder, evaluation, checkpoints, devices.

    Raises:
        ValueError: if settings conflict. The message lists all conflicts, each with its
            remedy.
    """

    recipe: Recipe
    model: ModelConfig
    job: Job

    def __post_init__(self) -> None:
        """Checks the settings against each other."""
        _raise_all(_find_all_conflicts(self.recipe, self.model, self.job))

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "RunConfig":
        """Builds the configuration from a flat dict, as returned by `to_dict`.

        Args:
            settings: fields of `Recipe`, of the model's configuration and of `Job` by
                name, with values of their types or of the equivalent JSON types.
                `max_steps` is required, see `resolve_epochs`; other missing fields take
                their defaults, or the values in the folder `model_name_or_path`.
                Intervals below 1 are fractions of `max_steps`, rounded up. `model_type`
                determines the type of the configuration.

        Raises:
            ValueError: if a name is unknown, a value is out of range or of the wrong
                type, or settings conflict. The message lists all problems.
        """
        if "model_class" in settings:
            if settings.get("task") is not None:
                raise ValueError(
                    "`output_dir` must be the folder of a run on text, but this run "
                    f"trains a {settings['model_class']} for {settings['task']}. "
                    "Resume it with `jaxopt-tf train`, and load its model with "
                    "`from_pretrained` of Transformers."
                )
            raise ValueError(
                "`output_dir` must be the folder of a run of `jaxopt-tf train`, but "
                f"this run trains a {settings['model_class']} that was given in "
                "Python. Call `jobs.train` again, with the same arguments, to resume "
                "it, or `jobs.export_run` with its module to export it."
            )
        settings = with_whole_intervals(with_model_folder(settings))
        record_types = {"recipe": Recipe, "model": config_type(settings), "job": Job}
        owners = _owners(*record_types.values())
        unknown = [name for name in settings if name not in owners]
        sizes = fields_of_other_configs(config_type(settings))
        problems = [
            f"{name!r} must be a setting of a run." + _checks.suggest(name, owners)
            for name in unknown
            if name not in sizes
        ]
        foreign = [f"`{name}`" for name in unknown if name in sizes]
        if foreign:
            problems.append(
                f"{', '.join(foreign)} must be left out with `model_name_or_path`: the "
                "sizes of this model are those in its config.json. To change them, "
                "edit a copy of the folder, and train it with `from_scratch`."
            )
        records: dict[str, Any] = {}
        for name, record in record_types.items():
            record_settings = {
                n: v for n, v in settings.items() if owners.get(n) is record
            }
            try:
                if record is Recipe and "max_steps" not in record_settings:
                    raise ValueError(_without_steps(settings))
                records[name] = record(**record_settings)
            except (TypeError, ValueError) as error:
                problems.append(str(error))
                # A valid record replaces the rejected one, so that conflicts between
                # the other records are reported in the same message.
                records[name] = _placeholder(name, record)
        problems += _find_all_conflicts(**records)
        pretokenized = any(map(is_pretokenized, records["job"].text))
        if pretokenized and "vocab_size" not in settings:
            problems.append(
                "`vocab_size` must be given with pretokenized files, which do not "
                "contain it."
            )
        _raise_all(problems)
        return cls(**records)

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as a flat dict: the content of settings.json.

        `resume_from_checkpoint` and `intended_changes` are left out: they apply to a
        single start of the run, and all later starts read settings.json.

        Returns:
            A JSON-serializable dict; the keys are the names of the flags. `from_dict`
            builds an equal configuration from it.
        """
        settings = recipe_settings(self.recipe) | vars(self.model) | vars(self.job)
        return {
            name: as_json(value)
            for name, value in settings.items()
            if name not in PER_START_SETTINGS
        }


def _placeholder(name: str, record: type) -> Any:
    """Returns a valid record that replaces an invalid one.

    The sizes are as large as possible, so that no check of the form "must be below
    `max_steps`" fails because of them.
    """
    if name == "model":
        return placeholder_config(record)
    return record(max_steps=2**31 - 1) if record is Recipe else record()


# Settings that later versions added. The default of each is the former behavior, so
# that a run without it can be resumed.
_FORMER: Mapping[str, Any] = {
    "model_name_or_path": None,
    "model_implementation": None,
    "from_scratch": False,
    "lora_r": None,
    "lora_alpha": 8.0,
    "lora_dropout": 0.0,
    "lora_target_modules": None,
    "freeze": [],
    "text_column": "text",
    "packing": False,
    "attn_pdrop": 0.0,
    "completion_only_loss": True,
    "per_device_eval_batch_size": None,
}
_NONE = object()  # equal to no value of a setting


def _owners(*records: type) -> dict[str, type]:
    """Returns the record that each setting belongs to."""
    return {
        field.name: record for record in records for field in dataclasses.fields(record)
    }


def _without_steps(settings: Mapping[str, Any]) -> str:
    epochs = settings.get("num_train_epochs")
    if epochs is None:
        return "`max_steps` is required: the number of updates."
    return (
        f"`max_steps` must be given with `num_train_epochs`, got {epochs!r} epochs "
        "alone: their number of steps is not known before the data are read. Pass the "
        "settings to `resolve_epochs` first, or give `max_steps`."
    )


def as_json(value: Any) -> Any:
    """Returns a setting with strings for paths."""
    if isinstance(value, Path):
        return str(value)
    is_texts = isinstance(value, tuple) and all(
        isinstance(x, str | Path) for x in value
    )
    return list(map(str, value)) if is_texts else value


def own_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings in a checkpoint without the additional keys."""
    data_settings = (DATA, DATA_SIZE, SEQUENCES, BASE)
    return {
        name: value for name, value in settings.items() if name not in data_settings
    }


def num_sequences(settings: Mapping[str, Any]) -> int:
    """Returns the number of sequences of a micro-batch on all devices together.

    Args:
        settings: `RunConfig.to_dict()`, or the settings in a checkpoint. The number in
            a checkpoint does not change if the run is resumed on another mesh.
    """
    if SEQUENCES in settings:
        return settings[SEQUENCES]
    mesh = settings.get("mesh")
    sizes = {} if mesh is None else axis_sizes(mesh)
    return settings["per_device_train_batch_size"] * num_batch_shards(sizes)


def changed_settings(
    saved: Mapping[str, Any], requested: Mapping[str, Any]
) -> dict[str, str]:
    """Compares the settings that determine the losses and parameters of a run.

    `eval_steps` and `per_device_eval_batch_size` are compared only if the evaluation
    loss drives the schedule, ends the run or selects its model.
    `per_device_train_batch_size` is compared only if the total batch size differs.

    Args:
        saved: settings of the saved run. A missing setting counts as changed.
        requested: settings of the run that resumes it.

    Returns:
        A phrase for each changed setting, by its name, in the order of `requested`; for
        example "`learning_rate` changed from 0.003 to 0.001".
    """
    ignored = set(_WITHOUT_EFFECT_ON_NUMBERS)
    batch_size = "per_device_train_batch_size"
    is_known = batch_size in saved and batch_size in requested
    if is_known and num_sequences(saved) == num_sequences(requested):
        ignored.add(batch_size)
    if not uses_eval_loss(saved) and not uses_eval_loss(requested):
        ignored |= {"eval_steps", "per_device_eval_batch_size"}
    return {
        name: _change(name, saved, requested)
        # A setting is compared even if only one of the two runs has it: a version that
        # lacks the setting may have behaved differently.
        for name in (*requested, *(name for name in saved if name not in requested))
        if name not in ignored
        and not (name not in saved and requested[name] == _FORMER.get(name, _NONE))
        and (
            name not in saved or name not in requested or saved[name] != requested[name]
        )
    }


def _change(name: str, saved: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if name == BASE:
        return (
            "the weights in `model_name_or_path`, of which the run needs the frozen "
            f"ones, have changed: {str(now.get('model_name_or_path'))!r}"
        )
    if name not in saved:
        return f"`{name}` was not set and is now {now[name]!r}"
    if name not in now:
        return f"`{name}` was {saved[name]!r} and is not set now"
    if name != DATA:
        return f"`{name}` changed from {saved[name]!r} to {now[name]!r}"
    before, after = _data_in_words(saved), _data_in_words(now)
    if before == after:
        return f"`data` has changed content: {after}"
    return f"`data` changed from {before} to {after}"


def _data_in_words(settings: Mapping[str, Any]) -> str:
    if "model_class" in settings and not settings.get("train_file"):
        return str(settings.get(DATA_SIZE))
    given = settings.get("train_file") or settings.get("text") or ()
    paths = [repr(str(path)) for path in given]
    if len(paths) > 4:  # the first three and the number of the others
        paths[3:] = [f"{len(paths) - 3} more"]
    words = ", ".join(paths) or "Python's standard library"
    if DATA_SIZE in settings:  # older versions did not record it
        words = f"{settings[DATA_SIZE]} of {words}"
    if settings.get("tokenizer"):
        words += f" with the tokenizer {str(settings['tokenizer'])!r}"
    return words


def _raise_all(problems: list[str]) -> None:
    if problems:
        raise ValueError("\n  ".join(problems))


def _find_all_conflicts(recipe: Recipe, model: ModelConfig, job: Job) -> list[str]:
    known = [*_owners(Recipe, type(model), Job), DATA, BASE]
    known = [name for name in known if name not in PER_START_SETTINGS]
    return [
        *find_conflicts(recipe, model, job),
        *(
            f"`intended_changes` must be names of settings, got {name!r}."
            + _checks.suggest(name, known)
            for name in job.intended_changes
            if name not in known
        ),
    ]
