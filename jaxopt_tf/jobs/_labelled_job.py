"""Settings of a run on labelled data, and its record for settings.json."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .. import _checks
from .._io import kinds_of
from ..models import CONFIG_TYPES
from ..recipes import Recipe, recipe_settings
from ._config import PER_START_SETTINGS, as_json, own_settings
from ._example_job import OF_TEXT, ExampleConfig, ExampleJob
from ._metrics import GLUE_TASKS
from ._tasks import TASKS, find_task

# Settings of text that labelled data have, too.
_SHARED = (
    *("model_name_or_path", "from_scratch", "train_file", "validation_file"),
    *("text_column", "tokenizer", "num_train_epochs", "freeze"),
)
_OF_TEXT = tuple(name for name in OF_TEXT if name not in _SHARED)
# Settings of the models of this package, which the flags have for runs on text.
_SIZES = frozenset(name for kind in CONFIG_TYPES for name in kinds_of(kind))
# Records in settings.json that are no settings.
CLASSES = "classes"
RECORDS = ("model_class", "model_fingerprint", "eval_data", CLASSES)


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """Settings of runs on labelled data only.

    Attributes:
        task: sequence-classification, token-classification, masked-lm, seq2seq or
            image-classification. Default: that of the class in the config.json of
            `model_name_or_path`.
        task_name: task of GLUE, such as sst2, whose metrics are computed.
        test_file: file or saved dataset for which predictions.jsonl is written.
        text_pair_column: column of the second text. Default: as in `run_glue.py`.
        label_column: column of the labels. Default: as in Transformers' examples.
        target_column: column of the target of seq2seq. Default: as in
            `run_summarization.py`.
        max_length: maximum number of tokens of a text, at which longer ones are cut.
            Default: that of the model.
        max_target_length: the same for targets, and for generated text.
        source_prefix: text in front of each text of seq2seq.
        mlm_probability: fraction of the tokens that masked-lm predicts.
        ignore_pad_token_for_loss: whether the loss of seq2seq leaves out the padding of
            targets.
        predict_with_generate: whether evaluations of seq2seq generate text, and compute
            ROUGE and chrF.
        num_beams: must be 1: text is generated greedily.
        ignore_mismatched_sizes: draw a new head if that of the model has another number
            of classes.
        group_by_length: the same as `train_sampling_strategy` group_by_length.
        train_sampling_strategy: random shuffles the rows in each epoch, sequential
            keeps their order, group_by_length makes batches of rows of similar lengths.
        metric_for_best_model: metric of evaluations that selects the best model, ends
            the run early and drives the schedule.
        greater_is_better: whether a greater metric is better. Default: True unless its
            name ends with "loss".
        dataloader_drop_last: whether a last batch of fewer rows is dropped.
        data_seed: seed of the order of the rows. Default: `seed`.
        report_to: tensorboard writes event files, none does not.
    """

    task: str | None = None
    task_name: str | None = None
    test_file: Path | None = None
    text_pair_column: str | None = None
    label_column: str | None = None
    target_column: str | None = None
    max_length: int | None = None
    max_target_length: int | None = None
    source_prefix: str | None = None
    mlm_probability: float = 0.15
    ignore_pad_token_for_loss: bool = True
    predict_with_generate: bool = False
    num_beams: int = 1
    ignore_mismatched_sizes: bool = False
    group_by_length: bool = False
    train_sampling_strategy: Literal["random", "sequential", "group_by_length"] = (
        "random"
    )
    metric_for_best_model: str = "loss"
    greater_is_better: bool | None = None
    dataloader_drop_last: bool = False
    data_seed: int | None = None
    report_to: Literal["tensorboard", "none"] = "tensorboard"


@dataclass(frozen=True, kw_only=True)
class LabelledJob(TaskSettings, ExampleJob):  # type: ignore[misc]  # wider field types
    """Settings of a run on labelled data, in addition to those of `ExampleJob`.

    The other settings have the meaning of those of `Job`; `train_file` and
    `validation_file` are one file each.

    Attributes:
        gradient_checkpointing: whether activations are recomputed in the backward pass.
        text_column: column of the text, the words or the image. Default: as in the
            examples of Transformers.
    """

    gradient_checkpointing: bool = False
    text_column: str | None = None  # type: ignore[assignment]  # not None in `Job`
    eval_strategy: Literal["no", "steps", "epoch"] = "epoch"
    save_strategy: Literal["no", "steps", "epoch"] = "epoch"

    def __post_init__(self) -> None:
        """Checks every field, and the settings of the task against each other."""
        super().__post_init__()
        problems = list(_problems(self))
        if problems:
            raise ValueError("\n  ".join(problems))

    @property
    def is_grouped(self) -> bool:
        """True if batches consist of rows of similar lengths."""
        return self.group_by_length or self.train_sampling_strategy == "group_by_length"


def _problems(job: LabelledJob) -> Any:
    """Yields messages on settings that conflict."""
    default = {f.name: f.default for f in dataclasses.fields(LabelledJob)}
    given = {n: x for n, x in vars(job).items() if x != default[n]}
    for name in _OF_TEXT:
        if name in given and given[name] != "torchax":
            remedy = "Leave it out."
            if name.startswith("lora_"):
                remedy = "Pass a `PeftModel` to `jobs.train` in Python."
            yield (
                f"`{name}` must be left out for a labelled task, got "
                f"{as_json(given[name])!r}. {remedy}"
            )
    for name in ("train_file", "validation_file"):
        if len(getattr(job, name)) > 1:
            yield (
                f"`{name}` must be one file for a labelled task, got "
                f"{len(getattr(job, name))}. Join the files."
            )
    if not job.train_file:
        yield (
            "`train_file` must be given for a labelled task, got none. Name a .jsonl, "
            ".json, .csv, .tsv or .parquet file, or a folder of a saved dataset."
        )
    if job.model_name_or_path is None:
        yield (
            "`model_name_or_path` must be given for a labelled task, got none. Name "
            "the folder of a model of Transformers."
        )
    if job.num_beams != 1:
        yield (
            f"`num_beams` must be 1, got {job.num_beams!r}: text is generated "
            "greedily. Leave it out, and search with `generate` of Transformers, whose "
            "`from_pretrained` reads the folder of the run."
        )
    if job.task_name is not None and job.task_name not in GLUE_TASKS:
        near = _checks.suggest(job.task_name, GLUE_TASKS)
        yield (
            f"`task_name` must be one of {', '.join(GLUE_TASKS)}, got "
            f"{job.task_name!r}.{near}"
        )
    if not 0 < job.mlm_probability < 1:
        yield (
            "`mlm_probability` must be greater than 0 and less than 1, got "
            f"{job.mlm_probability!r}."
        )
    if job.group_by_length and job.train_sampling_strategy == "sequential":
        yield (
            "`group_by_length` must be left out with `train_sampling_strategy` "
            "'sequential', got both. Leave one of them out."
        )
    if job.task is not None and job.task in TASKS:
        yield from TASKS[job.task].check_settings(given)


@dataclass(frozen=True, kw_only=True)
class LabelledConfig(ExampleConfig):
    """All settings of a run on labelled data, and the classes of its labels.

    Attributes:
        classes: names of the classes in the order of the logits; None without classes.
    """

    job: LabelledJob
    classes: tuple[str, ...] | None

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as a flat dict: the content of settings.json."""
        left_out = (*PER_START_SETTINGS, *_OF_TEXT)
        job = {n: as_json(x) for n, x in vars(self.job).items() if n not in left_out}
        classes = None if self.classes is None else list(self.classes)
        return {
            **recipe_settings(self.recipe),
            **job,
            **self.model,
            **self.data,
            CLASSES: classes,
        }


def labelled_settings(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the settings of a run on labelled data; None for a run on text.

    Args:
        settings: settings of a run by name, from any source, such as settings.json.

    Raises:
        ValueError: if the task is unknown, or a setting of labelled data is given for a
            run on text.
    """
    task = find_task(settings)
    if task is not None:
        own = {n: x for n, x in settings.items() if n not in RECORDS}
        return {**own, "task": task.name}
    names = {f.name for f in dataclasses.fields(TaskSettings)}
    given = [n for n in settings if n in names and settings[n] is not None]
    if given and "model_class" not in settings:
        raise ValueError(
            f"`{given[0]}` must be left out for a run on text, got "
            f"{as_json(settings[given[0]])!r}. Give `task`, one of {', '.join(TASKS)}, "
            "or the folder of a model for one of them as `model_name_or_path`."
        )
    return None


def records(settings: Mapping[str, Any]) -> tuple[Recipe, LabelledJob]:
    """Returns the recipe and the job of settings.

    Args:
        settings: result of `labelled_settings`, or the settings in a checkpoint.

    Raises:
        ValueError: if a name is unknown, or values are out of range or conflict. The
            message lists all problems.
    """
    fields = {
        kind: {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
        for kind in (Recipe, LabelledJob)
    }
    known = [*fields[Recipe], *fields[LabelledJob]]
    own = {n: x for n, x in own_settings(settings).items() if n not in RECORDS}
    problems = [
        f"`{name}` must be left out for a labelled task, got {own[name]!r}: the sizes "
        "of the model are those in its config.json. To change them, edit a copy of the "
        "folder, and train it with `from_scratch`."
        if name in _SIZES
        else f"{name!r} must be a setting of a run.{_checks.suggest(name, known)}"
        for name in own
        if name not in known and own[name] is not None
    ]
    found: list[Any] = []
    for kind in (Recipe, LabelledJob):
        try:
            values = {n: x for n, x in own.items() if n in fields[kind]}
            found.append(kind(**values))  # type: ignore[operator]
        except (TypeError, ValueError) as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n  ".join(problems))
    recipe, job = found
    return recipe, job
