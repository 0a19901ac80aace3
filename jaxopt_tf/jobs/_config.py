"""Configuration of a run: recipe, model and job, checked against each other.

`changed_settings` compares the configurations of two runs.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import _checks
from ..data import is_ready_tokens
from ..models import DecoderConfig, GPT2Config, ModelConfig
from ..recipes import METRIC_DRIVEN, Recipe, recipe_settings
from ..sharding import axis_sizes, num_batch_shards
from ._job import Job
from ._model_folder import config_type, with_model_folder

# Settings that apply to a single start. They are not written to settings.json, because
# later starts read that file and would apply them again.
PER_START_SETTINGS = ("resume_from_checkpoint", "intended_changes")

# Keys that a checkpoint records in addition to the settings: the fingerprint of the
# data, their size as text, and the number of sequences of a micro-batch on all devices.
DATA = "data"
DATA_SIZE = "data_size"
SEQUENCES = "sequences"

_BYTE_VOCAB_SIZE = (
    256  # vocabulary size of text without a tokenizer: one token per byte
)

# Settings that do not change the losses and parameters of a run: output paths and
# intervals, and the devices. `text` and `tokenizer` are left out because the
# fingerprint of the data is compared instead; paths differ between machines.
_WITHOUT_EFFECT_ON_NUMBERS = (
    *("text", "train_file", "validation_file", "tokenizer", "chat_template"),
    *("output_dir", "logging_steps", "save_steps"),
    *("save_total_limit", "log_layers", "sample_prompt"),
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
        _raise_all(find_conflicts(self.recipe, self.model, self.job))

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "RunConfig":
        """Builds the configuration from a flat dict, as returned by `to_dict`.

        Args:
            settings: fields of `Recipe`, of the model's configuration and of `Job` by
                name, with values of their types or of the equivalent JSON types.
                `max_steps` is required; other missing fields take their defaults, or
                the values in the folder `model_name_or_path`. `model_type` determines
                the configuration: `GPT2Config` without it.

        Raises:
            ValueError: if a name is unknown, a value is out of range or of the wrong
                type, or settings conflict. The message lists all problems.
        """
        settings = with_model_folder(settings)
        kinds = {"recipe": Recipe, "model": config_type(settings), "job": Job}
        owners = _owners(*kinds.values())
        problems = [
            f"{name!r} must be a setting of a run." + _checks.nearest(name, owners)
            for name in settings
            if name not in owners
        ]
        records: dict[str, Any] = {}
        for name, record in kinds.items():
            own = {n: v for n, v in settings.items() if owners.get(n) is record}
            try:
                if record is Recipe and "max_steps" not in own:
                    raise ValueError("`max_steps` is required: the number of updates.")
                records[name] = record(**own)
            except (TypeError, ValueError) as error:
                problems.append(str(error))
                # A valid record in place of the rejected one, so that conflicts
                # between the others are reported in the same message.
                records[name] = record(**_NEUTRAL.get(record, {}))
        problems += find_conflicts(**records)
        pretokenized = any(map(is_ready_tokens, records["job"].text))
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
        single start of the run, and settings.json is read by all later ones.

        Returns:
            A JSON-serializable dict; the keys are the names of the flags. `from_dict`
            builds an equal configuration from it.
        """
        settings = recipe_settings(self.recipe) | vars(self.model) | vars(self.job)
        return {
            name: _as_json(value)
            for name, value in settings.items()
            if name not in PER_START_SETTINGS
        }


# Arguments of records that replace invalid ones. The sizes are as large as possible
# so that no check of the form "must be below `max_steps`" fails because of them.
_NEUTRAL: Mapping[type, dict[str, Any]] = {
    Recipe: {"max_steps": 2**31 - 1},
    GPT2Config: {"vocab_size": 2**31 - 1},
    DecoderConfig: {
        **{"model_type": "llama", "vocab_size": 2**31 - 1, "num_hidden_layers": 1},
        **{"hidden_size": 2, "intermediate_size": 1, "num_attention_heads": 1},
    },
}

# Settings that later versions added. The default of each is the former behavior, so
# that a run without it can be resumed.
_FORMER: Mapping[str, Any] = {
    "model_name_or_path": None,
    "from_scratch": False,
    "text_column": "text",
    "packing": False,
    "completion_only_loss": True,
}
_NONE = object()  # equal to no value of a setting


def _owners(*records: type) -> dict[str, type]:
    """Returns the record that each setting belongs to."""
    return {
        field.name: record for record in records for field in dataclasses.fields(record)
    }


def _as_json(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    is_paths = isinstance(value, tuple) and all(isinstance(x, Path) for x in value)
    return list(map(str, value)) if is_paths else value


def uses_eval_loss(settings: Mapping[str, Any]) -> bool:
    """Returns True if evaluation losses affect the rate, end or final model of a run.

    Args:
        settings: `RunConfig.to_dict()` or a part of it. Missing settings take their
            defaults.
    """
    return (
        settings.get("lr_scheduler_type") in METRIC_DRIVEN
        or settings.get("early_stopping_patience") is not None
        or settings.get("load_best_model_at_end", False) is True
    )


def own_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings in a checkpoint without the additional keys."""
    beside = (DATA, DATA_SIZE, SEQUENCES)
    return {name: value for name, value in settings.items() if name not in beside}


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
    saved: Mapping[str, Any], now: Mapping[str, Any]
) -> dict[str, str]:
    """Compares the settings that determine the losses and parameters of a run.

    `eval_steps` is compared only if the evaluation loss drives the schedule, ends the
    run or selects its model. `per_device_train_batch_size` is compared only if the
    total batch size differs.

    Args:
        saved: settings of the saved run. A missing setting counts as changed.
        now: settings of the run that resumes it.

    Returns:
        A phrase for each changed setting, by its name, in the order of `now`; for
        example "`learning_rate` changed from 0.003 to 0.001".
    """
    ignored = set(_WITHOUT_EFFECT_ON_NUMBERS)
    batch_size = "per_device_train_batch_size"
    is_known = batch_size in saved and batch_size in now
    if is_known and num_sequences(saved) == num_sequences(now):
        ignored.add(batch_size)
    if not uses_eval_loss(saved) and not uses_eval_loss(now):
        ignored.add("eval_steps")
    return {
        name: _change(name, saved, now)
        # A setting is compared even if only one of the two runs has it: a version that
        # lacks the setting may have behaved differently.
        for name in (*now, *(name for name in saved if name not in now))
        if name not in ignored
        and not (name not in saved and now[name] == _FORMER.get(name, _NONE))
        and (name not in saved or name not in now or saved[name] != now[name])
    }


def _change(name: str, saved: Mapping[str, Any], now: Mapping[str, Any]) -> str:
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


def find_conflicts(recipe: Recipe, model: ModelConfig, job: Job) -> list[str]:
    """Returns messages on all conflicts that can be found before data are read.

    Args:
        recipe: hyperparameters of the optimizer and the schedule.
        model: sizes and options of the model.
        job: all other settings.
    """
    return [
        *_conflicts_of_data(model, job),
        *_conflicts_of_evaluation(recipe, job),
        *_conflicts_of_start(model, job),
    ]


def _raise_all(problems: list[str]) -> None:
    if problems:
        raise ValueError("\n  ".join(problems))


def _conflicts_of_data(model: ModelConfig, job: Job) -> Iterator[str]:
    ready = [path for path in job.text if is_ready_tokens(path)]
    if ready and len(ready) < len(job.text):
        other = next(path for path in job.text if path not in ready)
        yield (
            "`text` must be either pretokenized files or text, got both: "
            f"{str(ready[0])!r} and {str(other)!r}. Tokenize the text first, or leave "
            "one out."
        )
    if ready and job.tokenizer is not None:
        yield (
            f"`tokenizer` must be left out with pretokenized files, got "
            f"{str(job.tokenizer)!r} with {str(ready[0])!r}. Leave it out, or give "
            "text instead of tokens."
        )
    if job.tokenizer is not None and not job.text and not job.train_file:
        yield (
            f"`tokenizer` must be given with `text`, got {str(job.tokenizer)!r} and no "
            "text. Name files or folders, or leave it out."
        )
    yield from _conflicts_of_rows(model, job)
    if job.eos_token_id is not None and not ready:
        yield (
            "`eos_token_id` must be left out unless `text` is pretokenized (.npy, "
            f".bin), got {job.eos_token_id!r}. Leave it out: each file of text is one "
            "document."
        )
    elif job.eos_token_id is not None and job.eos_token_id >= model.vocab_size:
        yield (
            f"`eos_token_id` must be below `vocab_size`, which is {model.vocab_size}, "
            f"got {job.eos_token_id!r}. Give the `vocab_size` of the tokens."
        )
    if not ready and job.tokenizer is None and model.vocab_size < _BYTE_VOCAB_SIZE:
        yield (
            f"`vocab_size` must be at least 256 for bytes, got {model.vocab_size!r}. "
            "Leave it out, or give a `tokenizer`."
        )


def _conflicts_of_rows(model: ModelConfig, job: Job) -> Iterator[str]:
    if job.text and job.train_file:
        yield (
            "`train_file` must be left out with `text`, got "
            f"{str(job.train_file[0])!r} and {str(job.text[0])!r}. Give all files as "
            "`train_file`."
        )
    if job.validation_file and not job.train_file:
        yield (
            "`validation_file` must be given with `train_file`, got "
            f"{str(job.validation_file[0])!r} alone. Without `train_file` a tenth of "
            "the text is for evaluation."
        )
    if job.packing and isinstance(model, GPT2Config):
        yield (
            "`packing` must be left out for a GPT-2, whose attention is not restricted "
            "to a document here. Leave it out: documents are then concatenated."
        )


def _conflicts_of_evaluation(recipe: Recipe, job: Job) -> Iterator[str]:
    if job.early_stopping_patience is None and job.early_stopping_threshold > 0:
        yield (
            "`early_stopping_threshold` must be left out without "
            f"`early_stopping_patience`, got {job.early_stopping_threshold!r}. Give "
            "`early_stopping_patience` as well."
        )
    settings = vars(job) | {"lr_scheduler_type": recipe.lr_scheduler_type}
    if uses_eval_loss(settings) and job.eval_steps >= recipe.max_steps:
        yield (
            f"`eval_steps` must be less than `max_steps`, which is {recipe.max_steps}, "
            "if the evaluation loss drives the schedule, ends the run or selects its "
            f"model, got {job.eval_steps}: the first evaluation would be at the end. "
            f"Use {max(1, recipe.max_steps // 10)}."
        )
    # The default counts as not given: the dataclass does not record what was passed.
    is_default = job.max_skipped_in_a_row == Job.max_skipped_in_a_row
    if job.on_non_finite != "skip" and not is_default:
        yield (
            "`max_skipped_in_a_row` must be left out unless `on_non_finite` is 'skip', "
            f"got {job.max_skipped_in_a_row!r} with {job.on_non_finite!r}. Leave it "
            "out, or set `on_non_finite` to 'skip'."
        )


def _conflicts_of_start(model: ModelConfig, job: Job) -> Iterator[str]:
    if job.zero_1 and job.mesh is not None and "data" not in axis_sizes(job.mesh):
        yield (
            "`zero_1` must be left out unless `mesh` has the axis data, got "
            f"{job.mesh!r}. Leave it out: the other axes shard the optimizer state "
            "without it."
        )
    folder = job.model_name_or_path
    if folder is not None and job.output_dir == folder:
        yield (
            "`output_dir` must be another folder than `model_name_or_path`, got "
            f"{str(folder)!r} for both: the trained model would overwrite it. Name "
            "another one."
        )
    if job.from_scratch and folder is None:
        yield (
            "`from_scratch` must be given with `model_name_or_path`, got no folder. "
            "Leave it out: without a folder the weights are always initialized."
        )
    checkpoint = job.resume_from_checkpoint
    if checkpoint is not None and not checkpoint.is_dir():
        found = sorted(path.name for path in checkpoint.parent.glob("checkpoint-*"))
        listed = ", ".join(found) or "no checkpoints"
        why = f"does not exist; {str(checkpoint.parent)!r} contains {listed}."
        if checkpoint.exists():
            why = "is a file. Name the folder that contains it."
        yield (
            "`resume_from_checkpoint` must be the folder of a checkpoint, but "
            f"{str(checkpoint)!r} {why}"
        )
    known = [*_owners(Recipe, type(model), Job), DATA]
    known = [name for name in known if name not in PER_START_SETTINGS]
    for name in job.intended_changes:
        if name not in known:
            yield (
                f"`intended_changes` must be names of settings, got {name!r}."
                + _checks.nearest(name, known)
            )
