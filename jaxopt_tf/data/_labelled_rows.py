"""Columns of labelled data: JSON Lines, JSON, CSV, TSV, Parquet, saved datasets."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ._row_files import (
    arrow_error,
    check_exists,
    describe_columns,
    import_pyarrow,
    read_delimited,
    read_rows,
)

_WHOLE_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)")
# Not 007, which would lose its zeros.
_NUMBER = re.compile(r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
# Files of `datasets.Dataset.save_to_disk` and of `datasets.DatasetDict.save_to_disk`.
_STATE, _INFO, _SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"


@dataclass(frozen=True, kw_only=True)
class LabelledRows:
    """Columns of a file or of a saved dataset.

    Attributes:
        path: the file or the folder.
        num_rows: N, number of rows.
        columns: sequences of N values by name of the column; None where a row has no
            value.
        class_names: names of the classes of columns of integers, by name of the
            column. Saved datasets with a `ClassLabel` contain them.
    """

    path: Path
    num_rows: int
    columns: Mapping[str, Sequence[Any]]
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read_labelled(path: str | Path, *, argument: str = "train_file") -> LabelledRows:
    """Reads the columns of a file of rows or of a saved dataset.

    A column of a .csv or .tsv file that contains numbers only is converted to numbers.
    A column of dictionaries of strings, such as "translation" with a text for each
    language, becomes one column per key: "translation.de", "translation.en".

    Args:
        path: file whose name ends in .jsonl, .json, .csv, .tsv or .parquet, or a folder
            that `datasets.Dataset.save_to_disk` wrote.
        argument: name of the argument that contains `path`, for messages.

    Raises:
        ModuleNotFoundError: if pyarrow is needed and not installed.
        ValueError: if the path does not exist, has another format, contains several
            splits or no rows, or cannot be parsed.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, argument)
    if path.suffix not in _SUFFIXES:
        raise ValueError(
            f"`{argument}` must be a file whose name ends in {', '.join(_SUFFIXES)}, "
            f"or the folder of a saved dataset, got {str(path)!r}. Convert it to one "
            "of these."
        )
    if path.suffix == ".tsv":
        check_exists(path, argument)
        rows = read_delimited(path, argument, delimiter="\t")
    else:
        rows = read_rows([path], argument=argument)
    columns = _by_column(row.values for row in rows)
    if path.suffix in (".csv", ".tsv"):
        columns = {name: _as_numbers(values) for name, values in columns.items()}
    return _labelled_rows(path, argument, columns)


def _labelled_rows(
    path: Path,
    argument: str,
    columns: Mapping[str, Sequence[Any]],
    class_names: Mapping[str, tuple[str, ...]] | None = None,
) -> LabelledRows:
    num_rows = max(map(len, columns.values()), default=0)
    if not num_rows:
        raise ValueError(
            f"`{argument}` must contain rows, but {str(path)!r} has none. Check how it "
            "was written."
        )
    flat = {n: x for name in columns for n, x in _flattened(name, columns[name])}
    return LabelledRows(
        path=path, num_rows=num_rows, columns=flat, class_names=class_names or {}
    )


def _by_column(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Returns the values of rows by column; None for a row without the column."""
    columns: dict[str, list[Any]] = {}
    number = 0
    for number, row in enumerate(rows, 1):
        for name, value in row.items():
            column = columns.setdefault(name, [])
            # Rows before this one may not have had the column.
            column.extend([None] * (number - 1 - len(column)))
            column.append(value)
    for column in columns.values():
        column.extend([None] * (number - len(column)))
    return columns


def _as_numbers(values: list[Any]) -> list[Any]:
    """Converts a column of strings if all of them are numbers."""
    kinds: tuple[tuple[re.Pattern[str], Callable[[str], Any]], ...]
    kinds = ((_WHOLE_NUMBER, int), (_NUMBER, float))
    for pattern, convert in kinds:
        if all(map(pattern.fullmatch, values)):
            return [convert(value) for value in values]
    return values


def _flattened(name: str, values: Sequence[Any]) -> Iterable[tuple[str, Any]]:
    first: Any = next((value for value in values if value is not None), None)
    keys = list(first) if isinstance(first, Mapping) else []
    is_text = bool(keys) and all(isinstance(first[key], str) for key in keys)
    if not is_text:  # such as the bytes and the path of an image
        yield name, values
        return
    for key in keys:
        yield f"{name}.{key}", [(value or {}).get(key) for value in values]


def _read_folder(path: Path, argument: str) -> LabelledRows:
    splits = _read_settings(path / _SPLITS, argument).get("splits")
    if splits:
        if len(splits) > 1:
            raise ValueError(
                f"`{argument}` must contain one split, but {str(path)!r} contains "
                f"{', '.join(map(repr, splits))}. Give the folder of one of them, such "
                f"as {str(path / splits[0])!r}."
            )
        path = path / splits[0]
    state = _read_settings(path / _STATE, argument)
    if not state:
        raise ValueError(
            f"`{argument}` must be a file, or a folder that "
            f"`datasets.Dataset.save_to_disk` wrote, but {str(path)!r} contains no "
            f"{_STATE}. Check the path."
        )
    if state.get("_indices_files"):
        raise ValueError(
            f"`{argument}` must be a dataset without a table of indices, but "
            f"{str(path)!r} has one. Save the result of its `flatten_indices()`."
        )
    files = [path / entry["filename"] for entry in state["_data_files"]]
    features = _read_settings(path / _INFO, argument).get("features") or {}
    return _labelled_rows(
        path, argument, _read_arrow(files, argument), _class_names(features)
    )


def _read_arrow(files: Sequence[Path], argument: str) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    for file in files:
        pyarrow = import_pyarrow(file, argument)
        try:
            with pyarrow.memory_map(str(file)) as opened:
                table = pyarrow.ipc.open_stream(opened).read_all()
                for name in table.column_names:
                    columns.setdefault(name, []).extend(table[name].to_pylist())
        except (OSError, pyarrow.ArrowException) as error:
            raise arrow_error(file, argument, error) from error
    return columns


def _class_names(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    found = {}
    for name, kind in features.items():
        # The feature of a column of lists is inside that of the list.
        while isinstance(kind, Mapping) and "feature" in kind:
            kind = kind["feature"]
        if isinstance(kind, Mapping) and kind.get("_type") == "ClassLabel":
            found[name] = tuple(kind["names"])
    return found


def _read_settings(path: Path, argument: str) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"`{argument}` must be a valid saved dataset, but {str(path)!r} is not "
            f"valid JSON: {error}. Save the dataset again."
        ) from error


def missing_column(argument: str, value: Any, columns: Iterable[str]) -> ValueError:
    """Returns the error of an argument that must be one of the columns."""
    return ValueError(
        f"`{argument}` must be a column of the data, got {value!r}, but the data has "
        f"{describe_columns(columns)}. Give one of these."
    )
