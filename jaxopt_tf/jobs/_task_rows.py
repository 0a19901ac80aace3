"""Rows of the files of a labelled run, their columns and their classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .. import data
from .._io import read_json_object
from ._labelled_job import LabelledJob
from ._tasks import TASKS, Task


@dataclass(frozen=True, kw_only=True)
class TaskRows:
    """Rows of all files of a run, their columns and the classes of their labels.

    Attributes:
        task: the task.
        parts: rows by the name of the setting; files that are not given are missing.
        columns: names of the columns by the name of the setting.
        classes: names of the classes in the order of the logits; None without classes.
        is_regression: True if labels are numbers.
    """

    task: Task
    parts: Mapping[str, data.LabelledRows]
    columns: Mapping[str, data.TaskColumns]
    classes: tuple[str, ...] | None
    is_regression: bool

    @property
    def problem_type(self) -> str | None:
        """Field `problem_type` of the configuration; None to leave it unchanged."""
        return "regression" if self.is_regression else self.task.problem_type

    @property
    def has_filled_batches(self) -> bool:
        """True if short micro-batches are filled with rows without labels.

        The loss ignores such rows if labels are classes. Batches of images are not
        filled, because the rows take part in a batch normalization.
        """
        return not self.is_regression and self.task.name != "image-classification"


def read_task_rows(job: LabelledJob) -> TaskRows:
    """Reads the files of a run, and finds the columns and the classes.

    The names of the classes have the order of those in the config.json of the model if
    both have the same names, as in `run_glue.py`; else they are sorted.

    Raises:
        ValueError: if a file cannot be read, a column is missing, or labels of text and
            numbers are mixed.
    """
    assert job.task is not None
    task = TASKS[job.task]
    files = {
        "train_file": job.train_file[0],
        "validation_file": next(iter(job.validation_file), None),
        "test_file": job.test_file,
    }
    parts = {
        name: data.read_labelled(path, argument=name)
        for name, path in files.items()
        if path is not None
    }
    flags = ("text_column", "text_pair_column", "label_column", "target_column")
    given = {flag: getattr(job, flag) for flag in flags}
    found = data.find_columns(
        task.name, _columns(parts["train_file"], task), given=given
    )
    columns = {"train_file": found}
    of_all = dict(zip(flags, found, strict=True))
    for name in parts.keys() - {"train_file"}:
        # The data to predict need no labels.
        names = {
            flag: column
            for flag, column in of_all.items()
            if name != "test_file"
            or column in parts[name].columns
            or flag in ("text_column", "text_pair_column")
        }
        columns[name] = data.find_columns(
            task.name,
            list(parts[name].columns),
            given=names,
            needs_label=name != "test_file",
        )
        if "label_column" not in names:
            columns[name] = columns[name]._replace(label=None)
        if "target_column" not in names:
            columns[name] = columns[name]._replace(target=None)
    classes, is_regression = None, False
    if task.has_classes:
        classes = _classes(job, parts["train_file"], found.label)
        is_regression = classes is None
    return TaskRows(
        task=task,
        parts=parts,
        columns=columns,
        classes=classes,
        is_regression=is_regression,
    )


def _columns(rows: data.LabelledRows, task: Task) -> Any:
    # Columns without text are not taken for a text by default; images are no texts.
    return list(rows.columns) if task.name == "image-classification" else rows.columns


def _classes(
    job: LabelledJob, rows: data.LabelledRows, label: str | None
) -> tuple[str, ...] | None:
    """Returns the names of the classes; None for a regression."""
    assert label is not None
    if job.task_name == "stsb":
        return None
    names = data.label_names(rows.columns[label], given=rows.class_names.get(label))
    if names is None:
        if job.task != "sequence-classification":
            raise ValueError(
                f"`label_column` must contain classes for {job.task}, got numbers with "
                f"a fraction in {label!r}. Give the column of the classes."
            )
        return None
    assert job.model_name_or_path is not None
    config = read_json_object(
        job.model_name_or_path / "config.json", "model_name_or_path"
    )
    stored = {int(i): str(name) for i, name in (config.get("id2label") or {}).items()}
    ordered = tuple(stored[i] for i in sorted(stored))
    return ordered if sorted(ordered) == sorted(names) else names
