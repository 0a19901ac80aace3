"""Rows of files: JSON Lines, JSON, CSV and Parquet."""

import codecs
import csv
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ._tokens import chunks

# Key of the list of rows in a .json file that contains an object, as in SQuAD.
_FIELD = "data"

RowForm = Literal["strings", "prompts", "messages"]
# Forms of rows for fine-tuning, for messages.
FORMS: Mapping[RowForm, str] = {
    "strings": "strings `prompt` and `completion`",
    "prompts": "lists of messages `prompt` and `completion`",
    "messages": "`messages`",
}


class Row(NamedTuple):
    """Row of a file."""

    location: str  # path and number of the row, for messages
    values: dict[str, Any]  # values by column

    def column(self, name: str, argument: str, flag: str) -> Any:
        """Returns the value of a column.

        Args:
            name: name of the column.
            argument: argument that contains the file, for the message.
            flag: argument that contains `name`, for the message.

        Raises:
            ValueError: if the row has no such column. The message names its columns.
        """
        if name not in self.values:
            raise ValueError(
                f"`{flag}` must be a column of each row of `{argument}`, got {name!r}, "
                f"but {self.location} has {describe_columns(self.values)}. Give one of "
                "these, or correct the row."
            )
        return self.values[name]


def read_rows(paths: Sequence[Path], *, argument: str) -> Iterator[Row]:
    """Yields the rows of files in order.

    `.jsonl` contains one object per line; blank lines are skipped. `.json` contains a
    list of objects, or an object whose field "data" is such a list, or JSON Lines.
    `.csv` has a header; all of its values are strings. `.parquet` needs pyarrow. All
    formats but `.json` are read in chunks.

    Args:
        paths: files.
        argument: name of the argument that contains `paths`, for messages.

    Raises:
        ModuleNotFoundError: if pyarrow is needed and not installed.
        ValueError: if a file does not exist, has another suffix, has no rows or cannot
            be parsed. The message contains the path and the number of the line.
    """
    for path in map(Path, paths):
        _check_file(path, argument)
        num_rows = 0
        try:
            for row in _READERS[path.suffix](path, argument):
                num_rows += 1
                yield row
        except OSError as error:
            raise ValueError(
                f"`{argument}` must be files that can be read, but {str(path)!r} "
                f"cannot: {error.strerror}."
            ) from error
        if not num_rows:
            raise ValueError(
                f"`{argument}` must contain rows, but {str(path)!r} has none."
                " Leave it out."
            )


def is_row_file(path: Path) -> bool:
    """Returns True if the suffix of a file is that of a format of rows."""
    return path.suffix in _READERS


def sha256_of(path: Path, argument: str) -> str:
    """Returns the SHA-256 of a file of rows; raises a ValueError like `read_rows`."""
    _check_file(path, argument)
    digest = hashlib.sha256()
    for chunk in chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


def check_encodable(text: str, location: str, argument: str) -> None:
    """Raises a ValueError unless `text` can be written in UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # JSON can contain one half of a pair, such as "\\ud83d".
        raise ValueError(
            f"`{argument}` must be text without lone surrogates, but {location} "
            f"contains {error.object[error.start]!r}. Correct or remove it."
        ) from error


def describe_columns(columns: Any) -> str:
    """Returns the names of columns, as text."""
    names = ", ".join(repr(name) for name in columns)
    return f"the columns {names}" if names else "no columns"


def _check_file(path: Path, argument: str) -> None:
    if not is_row_file(path):
        raise ValueError(
            f"`{argument}` must be files whose names end in {', '.join(_READERS)}, got "
            f"{str(path)!r}. Convert it to one of these."
        )
    check_exists(path, argument)


def check_exists(path: Path, argument: str) -> None:
    """Raises a ValueError unless `path` is a file that is not empty."""
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(
            f"`{argument}` must be files, but {str(path)!r} {problem}. Check the path."
        )
    if not path.stat().st_size:
        raise ValueError(
            f"`{argument}` must contain rows, but {str(path)!r} is empty. Leave it out."
        )


def import_pyarrow(path: Path, argument: str) -> Any:
    """Imports pyarrow, which is large and which only these files need."""
    try:
        import pyarrow
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"pyarrow must be installed to read {str(path)!r} of `{argument}`. Install "
            "it with `pip install pyarrow`, or convert the file to .jsonl.",
            name=error.name,
        ) from error
    return pyarrow


def arrow_error(path: Path, argument: str, error: Exception) -> ValueError:
    """Returns the error of a Parquet or Arrow file that cannot be read."""
    kind = {".parquet": "Parquet"}.get(path.suffix, "Arrow")
    return ValueError(
        f"`{argument}` must be a complete {kind} file, but {str(path)!r} is not: "
        f"{error}. Write it again."
    )


def _parse_error(path: Path, argument: str, line: int, problem: object) -> ValueError:
    return ValueError(
        f"`{argument}` must contain valid {path.suffix.removeprefix('.')}, but line "
        f"{line:,} of {str(path)!r} is not: {problem}. Correct or remove it."
    )


def _read_jsonl(path: Path, argument: str) -> Iterator[Row]:
    with open(path, "rb") as opened:
        for row_number, line in enumerate(opened, 1):
            if row_number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            try:
                values = json.loads(line.decode())
            # `UnicodeDecodeError` and `JSONDecodeError` are both `ValueError`s.
            except ValueError as error:
                raise _parse_error(path, argument, row_number, error) from error
            yield _make_row(values, f"line {row_number:,} of {str(path)!r}", argument)


def _read_json(path: Path, argument: str) -> Iterator[Row]:
    content = path.read_bytes()
    try:
        rows = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise _parse_error(path, argument, line, error) from error
    except json.JSONDecodeError as error:
        # Several objects, one per line: JSON Lines under the name .json, as
        # `datasets.load_dataset("json")` accepts them.
        if error.msg == "Extra data" and content.lstrip()[:1] == b"{":
            yield from _read_jsonl(path, argument)
            return
        raise _parse_error(path, argument, error.lineno, error) from error
    if isinstance(rows, dict):
        rows = rows.get(_FIELD)
    if not isinstance(rows, list):
        raise ValueError(
            f"`{argument}` must contain a list of objects, or an object with such a "
            f"list as {_FIELD!r}, but {str(path)!r} contains neither. Save its rows as "
            ".jsonl, one object per line."
        )
    for row_number, values in enumerate(rows, 1):
        yield _make_row(values, f"row {row_number:,} of {str(path)!r}", argument)


def _make_row(values: Any, location: str, argument: str) -> Row:
    if not isinstance(values, dict):
        raise ValueError(
            f"`{argument}` must contain an object in each row, but {location} is a "
            f"{type(values).__name__}. Name the columns, as in "
            '{"text": "..."}.'
        )
    return Row(location, values)


def read_delimited(path: Path, argument: str, delimiter: str = ",") -> Iterator[Row]:
    """Yields the rows of a file with a header; all values are strings."""
    # Otherwise a text of more than 131,072 characters is an error. The largest value
    # must fit in a C long, which has 32 bits on Windows.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with open(path, encoding="utf-8-sig", newline="") as opened:
        rows = csv.DictReader(opened, delimiter=delimiter, strict=True)
        try:
            for row_number, values in enumerate(rows, 1):
                if None in values or None in values.values():
                    names = rows.fieldnames or []
                    problem = f"it does not have {len(names)} values, as the header has"
                    raise _parse_error(path, argument, rows.line_num, problem)
                yield Row(f"row {row_number:,} of {str(path)!r}", values)
        except csv.Error as error:
            # `rows.line_num` is that of the last complete row.
            raise _parse_error(path, argument, rows.reader.line_num, error) from error
        except UnicodeDecodeError as error:
            raise ValueError(
                f"`{argument}` must be text in UTF-8, but {str(path)!r} is not: "
                f"{error}. Convert it to UTF-8."
            ) from error


def _read_parquet(path: Path, argument: str) -> Iterator[Row]:
    pyarrow = import_pyarrow(path, argument)
    from pyarrow import parquet

    row_number = 0
    try:
        with parquet.ParquetFile(path) as opened:
            for batch in opened.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    row_number += 1
                    yield Row(f"row {row_number:,} of {str(path)!r}", values)
    except pyarrow.ArrowException as error:
        raise arrow_error(path, argument, error) from error


_READERS: dict[str, Callable[[Path, str], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": read_delimited,
    ".parquet": _read_parquet,
}


def form_of_row(row: Row, argument: str) -> RowForm:
    """Returns the form of a row; raises a ValueError if it has none."""
    # In formats with a schema, a column that a row does not have is null.
    columns = [name for name, value in row.values.items() if value is not None]
    has_pair = {"prompt", "completion"} <= set(columns)
    if has_pair == ("messages" in columns):
        problem = "all three" if has_pair else describe_columns(columns)
        raise ValueError(
            f"`{argument}` must have the columns `prompt` and `completion`, or "
            f"`messages`, but {row.location} has {problem}. Rename them, or remove "
            "those that are not intended."
        )
    names = ("prompt", "completion") if has_pair else ("messages",)
    values = [row.values[name] for name in names]
    if has_pair and all(isinstance(value, str) for value in values):
        return "strings"
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, list) or not value or not all(map(_is_message, value)):
            requirement = "non-empty lists of messages, each with `role` and `content`"
            requirement = f"strings or {requirement}" if has_pair else requirement
            raise ValueError(
                f"`{argument}` must have {' and '.join(f'`{n}`' for n in names)} as "
                f"{requirement}, but {name!r} in {row.location} is "
                f"{_short_repr(value)}. Correct or remove the row."
            )
    return "prompts" if has_pair else "messages"


def _is_message(value: Any) -> bool:
    # An answer that only calls functions has no content.
    return (
        isinstance(value, dict)
        and isinstance(value.get("role"), str)
        and ("content" in value or "tool_calls" in value)
    )


def _short_repr(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
