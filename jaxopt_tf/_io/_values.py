"""Conversion of values from JSON, a command line or a file to the type of a field.

Values from all sources are converted in the same way: `"1e-4"` is accepted for every
number, and `"false"` for every switch.
"""

import contextlib
import dataclasses
import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

_NULL: tuple[Any, ...] = (None, "None", "none", "null")
_UNSET = (*_NULL, "", [], {})
_METAVARS = {bool: "", int: "INT", float: "NUMBER", Path: "PATH", str: "NAME"}
_JSON_OR_TEXT = "JSON|NAME=VALUE,..."


class Kind(NamedTuple):
    """Type of a value, as printed in the help of a command line."""

    metavar: str  # "INT", "NUMBER", "JSON", "{stop,skip}", ...; "" for a switch
    is_list: bool = False  # whether it is a list of values
    is_optional: bool = False  # whether None is accepted

    @property
    def is_switch(self) -> bool:
        """True for a bool, whose flag needs no value."""
        return not self.metavar


SWITCH, NUMBER = Kind(""), Kind("NUMBER")
JSON_OR_TEXT = Kind(_JSON_OR_TEXT)


def kinds_of(record: type) -> dict[str, Kind]:
    """Returns the kinds of the fields of a dataclass, by name."""
    hints = get_type_hints(record)
    return {f.name: kind_of(hints[f.name]) for f in dataclasses.fields(record)}


def kind_of(annotation: Any) -> Kind:
    """Returns the kind of the values of a type annotation."""
    # `X | Y` has another origin than `Union[X, Y]` before Python 3.14.
    is_union = get_origin(annotation) in (Union, types.UnionType)
    options = get_args(annotation) if is_union else (annotation,)
    items = [get_args(o)[0] for o in options if get_origin(o) is tuple]
    is_list = items in ([Path], [str], [float])
    alternatives = items if is_list else [o for o in options if o is not type(None)]
    if len(alternatives) == 1 and alternatives[0] in _METAVARS:
        metavar = _METAVARS[alternatives[0]]
    elif get_origin(alternatives[0]) is Literal:
        metavar = "{" + ",".join(get_args(alternatives[0])) + "}"
    elif set(alternatives) == {int, float}:
        metavar = "NUMBER"
    else:
        metavar = _JSON_OR_TEXT if str in alternatives else "JSON"
    return Kind(metavar, is_list, type(None) in options)


def is_set(value: Any) -> bool:
    """Returns False for None, "None", "none", "null", "", [] and {}, else True."""
    return value not in _UNSET


def is_null(value: Any) -> bool:
    """Returns True for None, "None", "none" and "null"."""
    return value in _NULL


def read_value(name: str, kind: Kind, value: Any) -> Any:
    """Converts a string, or a value from JSON, to a kind.

    Raises:
        TypeError: if the value cannot be converted. The caller checks its range.
    """
    if kind.is_optional and is_null(value):
        return None
    # The metavar of a `Literal` is its list of choices, which has no reader of its own:
    # the value is read as a string, and the dataclass checks that it is a choice.
    reader = _READERS.get(kind.metavar, _READERS["NAME"])
    try:
        if not kind.is_list:
            return reader.read(value)
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            raise _UnreadableError
        return tuple(map(reader.read, items))
    except _UnreadableError as error:
        noun = reader.noun
        noun = f"{noun.removeprefix('a ')}s in a list" if kind.is_list else noun
        noun = f"{noun} or None" if kind.is_optional else noun
        reason = f": {error}" if str(error) else ""
        raise TypeError(f"`{name}` must be {noun}, got {value!r}{reason}.") from error


def parse_json(content: str | bytes) -> Any:
    """Parses JSON, and refuses objects that contain a name twice.

    Raises:
        ValueError: if a name occurs twice; `json` would return the last value.
        json.JSONDecodeError, UnicodeDecodeError: if `content` is not valid JSON.
    """
    return json.loads(content, object_pairs_hook=_unique_names)


def read_json_object(
    path: Path, folder: str, remedy: str = "Copy the folder again."
) -> dict[str, Any]:
    """Reads a file that must contain a JSON object.

    Args:
        path: path of the file.
        folder: name of the argument that is the file's folder, for errors.
        remedy: sentence that states what to do if the file is damaged.

    Raises:
        ValueError: if the file cannot be read or does not contain a JSON object.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"`{folder}` must hold a readable {path.name}, but {str(path)!r} is not: "
            f"{error}. {remedy}"
        ) from error


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for name, value in pairs:
        if name in named:
            raise ValueError(f"`{name}` occurs twice; delete one of them")
        named[name] = value
    return named


class _UnreadableError(Exception):
    """Error of a value that cannot be converted to the required kind."""


def _parse_switch(value: Any) -> bool:
    if str(value) not in ("True", "true", "False", "false"):
        raise _UnreadableError
    return str(value).lower() == "true"


def _parse_number(value: Any) -> int | float:
    if isinstance(value, int | float):
        return value
    # Integers may be written as 1e6, so both types are tried. The dataclass checks
    # whether the field requires a whole number.
    for kind in (int, float):
        with contextlib.suppress(TypeError, ValueError):
            return kind(value)
    raise _UnreadableError


def _parse_path(value: Any) -> Path:
    if not isinstance(value, str) or not value:
        raise _UnreadableError
    return Path(value)


def _parse_name(value: Any) -> str:
    if not isinstance(value, str):
        raise _UnreadableError
    return value


def _parse_json(value: Any) -> Any:
    if not isinstance(value, str):
        return _parse_strings(value)
    try:
        return _parse_strings(json.loads(value))
    except json.JSONDecodeError as error:
        raise _UnreadableError(f"{error.msg} at character {error.colno}") from error


def _parse_strings(value: Any) -> Any:
    """Converts strings in an object to numbers and switches, as Transformers does."""
    if isinstance(value, dict):
        return {name: _parse_strings(item) for name, item in value.items()}
    if isinstance(value, str):
        for read in (_parse_switch, _parse_number):
            with contextlib.suppress(_UnreadableError):
                return read(value)
    return value


def _parse_json_or_text(value: Any) -> Any:
    is_text = isinstance(value, str) and not value.lstrip().startswith("{")
    return value if is_text else _parse_json(value)


class _Reader(NamedTuple):
    """Conversion of a value to one type."""

    read: Callable[[Any], Any]  # raises an error for an invalid value
    noun: str  # description of one valid value, for errors


_READERS = {
    "": _Reader(_parse_switch, "true or false"),
    "INT": _Reader(_parse_number, "a number"),
    "NUMBER": _Reader(_parse_number, "a number"),
    "PATH": _Reader(_parse_path, "a path"),
    "NAME": _Reader(_parse_name, "a name"),
    "JSON": _Reader(_parse_json, "JSON"),
    _JSON_OR_TEXT: _Reader(_parse_json_or_text, "JSON or name=value,..."),
}
