"""Labelled tasks: the classes of Transformers that train them, and their settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import _checks
from .._io import read_json_object

# Settings that only some tasks have.
_OF_TASKS = (
    *("text_pair_column", "label_column", "target_column", "task_name"),
    *("max_length", "max_target_length", "mlm_probability", "source_prefix"),
    *("ignore_pad_token_for_loss", "predict_with_generate", "num_beams"),
    *("ignore_mismatched_sizes", "test_file", "group_by_length"),
)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A labelled task.

    Attributes:
        name: value of the setting `task`.
        suffixes: ends of the names of its classes in Transformers.
        auto_class: class of Transformers that chooses the class of a model.
        settings: settings of the task, of those that only some tasks have.
        problem_type: field of the configuration for labels that are classes.
    """

    name: str
    suffixes: tuple[str, ...]
    auto_class: str
    settings: tuple[str, ...]
    problem_type: str | None = None

    @property
    def has_classes(self) -> bool:
        """True if the head of the model has an output for each class of the data."""
        return "label_column" in self.settings

    def check_settings(self, given: Mapping[str, Any]) -> list[str]:
        """Returns a message for each given setting that the task does not have."""
        others = [n for n in _OF_TASKS if n in given and n not in self.settings]
        return [
            f"`{name}` must be left out with `task` {self.name!r}, got "
            f"{given[name]!r}. Leave it out, or give another `task`: "
            f"{' and '.join(t.name for t in TASKS.values() if name in t.settings)} "
            "have it."
            for name in others
        ]


_ALL = (
    Task(
        name="sequence-classification",
        suffixes=("ForSequenceClassification",),
        auto_class="AutoModelForSequenceClassification",
        settings=(
            *("text_pair_column", "label_column", "task_name", "max_length"),
            *("ignore_mismatched_sizes", "test_file", "group_by_length"),
        ),
        problem_type="single_label_classification",
    ),
    Task(
        name="token-classification",
        suffixes=("ForTokenClassification",),
        auto_class="AutoModelForTokenClassification",
        settings=(
            *("label_column", "max_length", "ignore_mismatched_sizes", "test_file"),
            "group_by_length",
        ),
    ),
    Task(
        name="masked-lm",
        suffixes=("ForMaskedLM",),
        auto_class="AutoModelForMaskedLM",
        settings=("max_length", "mlm_probability", "group_by_length"),
    ),
    Task(
        name="seq2seq",
        suffixes=("ForConditionalGeneration", "MarianMTModel"),
        auto_class="AutoModelForSeq2SeqLM",
        settings=(
            *("target_column", "max_length", "max_target_length", "source_prefix"),
            *("ignore_pad_token_for_loss", "predict_with_generate", "num_beams"),
            *("test_file", "group_by_length"),
        ),
    ),
    Task(
        name="image-classification",
        suffixes=("ForImageClassification",),
        auto_class="AutoModelForImageClassification",
        settings=("label_column", "ignore_mismatched_sizes", "test_file"),
        problem_type="single_label_classification",
    ),
)
TASKS: Mapping[str, Task] = {task.name: task for task in _ALL}
_ANSWERING = "QuestionAnswering"


def find_task(settings: Mapping[str, Any]) -> Task | None:
    """Returns the labelled task of a run; None for a run on text.

    The setting `task` determines it, else `task_name`, which is one of GLUE, else the
    class under `architectures` in the config.json of `model_name_or_path`.

    Args:
        settings: settings of a run by name.

    Raises:
        ValueError: if `task` is unknown, or the class answers questions.
    """
    name = settings.get("task")
    if name is not None:
        if str(name).replace("_", "-") == "question-answering":
            raise _answering(name)
        _checks.one_of("task", name, TASKS)
        return TASKS[name]
    if settings.get("task_name") is not None:
        return TASKS["sequence-classification"]
    folder = settings.get("model_name_or_path")
    path = None if folder is None else Path(folder) / "config.json"
    if path is None or not path.is_file():
        return None
    config = read_json_object(path, "model_name_or_path")
    (architecture, *_) = config.get("architectures") or ("",)
    if str(architecture).endswith(_ANSWERING):
        raise _answering(architecture)
    for task in _ALL:
        # Models of images and text are decoders with the same end of their name.
        is_other = task.name == "seq2seq" and not config.get("is_encoder_decoder")
        if str(architecture).endswith(task.suffixes) and not is_other:
            return task
    return None


def _answering(got: Any) -> ValueError:
    return ValueError(
        f"`task` must be one of {', '.join(TASKS)}, got {got!r}. Train a model that "
        "answers questions with `jobs.train` in Python, on a dataset with "
        "`start_positions` and `end_positions`."
    )
