"""Columns of a labelled task, and the classes of its labels.

The defaults are those of the example scripts of Transformers.
"""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple

import numpy as np

from .. import _checks
from ._labelled_rows import missing_column
from ._row_files import describe_columns

Task = Literal[
    "sequence-classification",
    "token-classification",
    "masked-lm",
    "seq2seq",
    "image-classification",
]
# Labelled tasks that `jaxopt-tf train` and `jobs.train_labelled` train.
TASKS: tuple[Task, ...] = (
    "sequence-classification",
    "token-classification",
    "masked-lm",
    "seq2seq",
    "image-classification",
)
FLAGS = ("text_column", "text_pair_column", "label_column", "target_column")
_PAIR = ("sentence1", "sentence2")


class TaskColumns(NamedTuple):
    """Names of the columns that a task uses; None for those that it does not have."""

    text: str  # texts, lists of words, or images
    text_pair: str | None = None
    label: str | None = None
    target: str | None = None


def find_columns(
    task: str,
    names: Iterable[str] | Mapping[str, Sequence[Any]],
    *,
    given: Mapping[str, str | None] | None = None,
    needs_label: bool = True,
) -> TaskColumns:
    """Returns the columns of a task: those that are given, or the default ones.

    Args:
        task: one of `TASKS`.
        names: names of all columns in order, or the columns themselves by name: columns
            without text are then not taken for a text by default.
        given: names of columns by flag: `text_column`, `text_pair_column`,
            `label_column`, `target_column`; None or missing for the default.
        needs_label: whether a missing label or target is an error. Data to predict need
            none.

    Raises:
        ValueError: if a column is missing. The message lists the columns.

    Source: transformers 5.23 `examples/pytorch`: `run_glue.py`, `run_ner.py`,
        `run_mlm.py`, `run_summarization.py`, `run_translation.py`,
        `run_image_classification.py`.
    Differs: `run_glue.py` takes columns of numbers for texts, too.
    """
    _checks.one_of("task", task, TASKS)
    chosen = {flag: name for flag, name in (given or {}).items() if name is not None}
    columns = _Columns(names, chosen)
    if task == "sequence-classification":
        label = columns.find("label_column", ("label",), needed=needs_label)
        text, pair = columns.texts(without=label)
        return TaskColumns(text, pair, label)
    if task == "masked-lm":
        return TaskColumns(columns.find_text(("text",)))
    if task == "image-classification":
        label = columns.find("label_column", ("label", "labels"), needed=needs_label)
        image = columns.find("text_column", ("image", "img"), needed=True)
        assert image is not None
        return TaskColumns(image, None, label)
    if task == "token-classification":
        text = columns.find_text(("tokens", "words"))
        defaults = ("ner_tags", "labels", *columns.others(text)[:1])
        label = columns.find("label_column", defaults, needed=needs_label)
        return TaskColumns(text, None, label)
    # Columns of the languages of a translation are named "translation.en".
    pairs = [name for name in columns.names if name.startswith("translation.")]
    text = columns.find_text(tuple(pairs[:1]))
    rest = tuple(name for name in pairs if name != text)
    defaults = (*rest, *columns.others(text, only_text=True)[:1])
    target = columns.find("target_column", defaults, needed=needs_label)
    return TaskColumns(text, None, None, target)


class _Columns:
    """Columns of the data, and those that flags name."""

    def __init__(
        self,
        names: Iterable[str] | Mapping[str, Sequence[Any]],
        given: Mapping[str, str],
    ):
        self.names, self._given = list(names), given
        self._values = names if isinstance(names, Mapping) else {}
        for flag, name in given.items():
            if name not in self.names:
                raise missing_column(flag, name, self.names)

    def find(
        self, flag: str, defaults: Sequence[str], *, needed: bool = False
    ) -> str | None:
        """Returns the given column, else the first default that the data has."""
        if flag in self._given:
            return self._given[flag]
        found = next((name for name in defaults if name in self.names), None)
        if found is None and needed:
            expected = f" named {defaults[0]!r}" if defaults else ""
            raise ValueError(
                f"`{flag}` must be given for data without a column{expected}, got "
                f"{describe_columns(self.names)}. Give one of these."
            )
        return found

    def find_text(self, defaults: Sequence[str]) -> str:
        """Returns the text column: the given, a default, or the first other one."""
        used = set(self._given.values())
        others = [name for name in self.names if name not in used]
        texts = [name for name in others if self._is_text(name)]
        found = self.find("text_column", (*defaults, *texts[:1]), needed=True)
        assert found is not None
        return found

    def texts(self, *, without: str | None) -> tuple[str, str | None]:
        """Returns the one or two columns of texts that are classified."""
        pair_flag = "text_pair_column"
        if "text_column" in self._given:
            return self._given["text_column"], self._given.get(pair_flag)
        given_pair = self._given.get(pair_flag)
        if given_pair is None and set(_PAIR) <= set(self.names):
            return _PAIR
        # As in `run_glue.py`, a column "label" is no text, with another label too.
        used = (without, given_pair, "label")
        rest = [name for name in self.names if name not in used]
        texts = [name for name in rest if self._is_text(name)]
        first = self.find("text_column", texts[:1], needed=True)
        assert first is not None
        return first, given_pair or next(iter(texts[1:]), None)

    def others(self, text: str, *, only_text: bool = False) -> list[str]:
        """Returns the columns besides the text."""
        return [
            name
            for name in self.names
            if name != text and (not only_text or self._is_text(name))
        ]

    def _is_text(self, name: str) -> bool:
        """Returns whether a column can contain texts, or lists of words."""
        if name not in self._values:
            return True
        value = next((x for x in self._values[name] if x is not None), None)
        if isinstance(value, list | tuple):
            value = value[0] if value else ""
        return isinstance(value, str)


def label_names(
    values: Iterable[Any],
    *,
    given: Sequence[str] | None = None,
    argument: str = "label_column",
) -> tuple[str, ...] | None:
    """Returns the names of the classes; None for numbers with a fraction (regression).

    Strings are sorted as text, integers by value: class k is the k-th of them, and its
    name is the text of the label.

    Args:
        values: labels, or lists of labels.
        given: names in the order of the classes, of a `ClassLabel` or of a checkpoint.
            Integers are then numbers of classes.
        argument: name of the argument that contains the labels, for messages.

    Raises:
        ValueError: if a label is missing, strings and numbers are mixed, there are
            fewer than 2 classes, or a label is not in `given`.

    Source: transformers 5.23 `examples/pytorch/text-classification/run_glue.py`.
    """
    values = list(values)
    kind, example = None, None
    distinct = set()
    for row, label in _flat(values):
        found = _kind_of(label)
        if found is None:
            raise ValueError(
                f"`{argument}` must contain a string or a number in each row, but row "
                f"{row:,} has {label!r}. Correct or remove the row."
            )
        if kind is None:
            kind, example = found, label
        elif {kind, found} == {"whole", "fraction"}:
            kind = "fraction"  # a column of JSON such as 0.5, 1, 1.5
        elif kind != found:
            raise ValueError(
                f"`{argument}` must contain either strings or numbers, got "
                f"{example!r} and, in row {row:,}, {label!r}. Write all labels alike."
            )
        distinct.add(label)
    if kind == "fraction":
        return None
    if given is not None:
        names = tuple(map(str, given))
        label_ids(values, names, argument=argument)
        return names
    if len(distinct) < 2:
        raise ValueError(
            f"`{argument}` must contain at least 2 different labels, got "
            f"{', '.join(map(repr, distinct)) or 'none'}. Give data with all classes."
        )
    return tuple(str(label) for label in sorted(distinct))


def label_ids(
    values: Sequence[Any],
    names: Sequence[str] | None,
    *,
    argument: str = "label_column",
    source: Any = None,
) -> Any:
    """Returns the numbers of the classes of labels, or the values of a regression.

    Args:
        values: N labels, or N lists of labels.
        names: names of the classes; None for a regression.
        argument: name of the argument that contains the labels, for messages.
        source: path of the data, for messages.

    Returns:
        int32 [N], float32 [N] for a regression, or a list of N lists of integers.

    Raises:
        ValueError: if a label is not one of `names`, or not a number in a regression.
            The message names it and its row.
    """
    place = "" if source is None else f" of {str(source)!r}"
    if names is None:
        for row, label in _flat(values):
            if _kind_of(label) not in ("whole", "fraction"):
                raise ValueError(
                    f"`{argument}` must contain numbers, as the labels of a "
                    f"regression, but row {row:,}{place} has {label!r}. Correct or "
                    "remove the row."
                )
        return np.asarray(values, np.float32)
    ids = {name: number for number, name in enumerate(names)}
    # Integers are numbers of classes if the names are words.
    are_numbers = not any(map(_is_whole, names))

    def id_of(row: int, label: Any) -> int:
        is_whole = _kind_of(label) == "whole"
        if are_numbers and is_whole and 0 <= label < len(names):
            return int(label)
        if isinstance(label, float) and label.is_integer():
            label = int(label)  # a column of integers with an empty row, as of pandas
        found = ids.get(str(label))
        if found is None:
            shown = ", ".join(map(repr, names[:20])) + (" ..." * (len(names) > 20))
            raise ValueError(
                f"`{argument}` must contain the labels of the training data, {shown}, "
                f"but row {row:,}{place} has {label!r}. Correct or remove the row, or "
                "add the label to the training data."
            )
        return found

    if any(_is_list(value) for value in values):
        return [[id_of(row, x) for x in value] for row, value in enumerate(values, 1)]
    found = [id_of(row, value) for row, value in enumerate(values, 1)]
    return np.asarray(found, np.int32)


def _flat(values: Iterable[Any]) -> Iterable[tuple[int, Any]]:
    """Yields each label with the number of its row, counted from 1."""
    for row, value in enumerate(values, 1):
        for label in value if _is_list(value) else (value,):
            yield row, label


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray)


def _is_whole(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def _kind_of(label: Any) -> str | None:
    if isinstance(label, str):
        return "text" if label else None
    if isinstance(label, bool | np.bool_):
        return "boolean"
    if isinstance(label, Integral):
        return "whole"
    is_number = isinstance(label, Real) and np.isfinite(float(label))
    return "fraction" if is_number else None
