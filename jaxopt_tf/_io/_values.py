"""Values read by the kind of their field, from JSON, a command line or a file.

All of them are read alike: `"1e-4"` is a number wherever a number is required, and
`"false"` is False wherever a switch is.
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
_TYPES = {bool: "", int: "INT", float: "NUMBER", Path: "PATH", str: "NAME"}
_JSON_OR_TEXT = "JSON|NAME=VALUE,..."


class Kind(NamedTuple):
    """Kind of a value, as the help of a command line names it."""

    noun: str  # "INT", "NUMBER", "JSON", "{stop,skip}", ...; "" for a switch
    is_several: bool = False  # takes a list of values
    is_optional: bool = False  # None is a value


SWITCH, NUMBER = Kind(""), Kind("NUMBER")
JSON_OR_TEXT = Kind(_JSON_OR_TEXT)


def kinds_of(record: type) -> dict[str, Kind]:
    """Returns the kind of each field of a dataclass, by name."""
    hints = get_type_hints(record)
    return {f.name: kind_of(hints[f.name]) for f in dataclasses.fields(record)}


def kind_of(annotation: Any) -> Kind:
    """Returns the kind of value that a type annotation stands for."""
    is_union = get_origin(annotation) in (Union, types.UnionType)
    options = get_args(annotation) if is_union else (annotation,)
    items = [get_args(o)[0] for o in options if get_origin(o) is tuple]
    is_several = items in ([Path], [str], [float])
    wanted = items if is_several else [o for o in options if o is not type(None)]
    if len(wanted) == 1 and wanted[0] in _TYPES:
        noun = _TYPES[wanted[0]]
    elif get_origin(wanted[0]) is Literal:
        noun = "{" + ",".join(get_args(wanted[0])) + "}"
    elif set(wanted) == {int, float}:
        noun = "NUMBER"
    else:
        noun = _JSON_OR_TEXT if str in wanted else "JSON"
    return Kind(noun, is_several, type(None) in options)


def is_set(value: Any) -> bool:
    """Returns False for null, "", [], {} and the words for null, True otherwise."""
    return value not in _UNSET


def is_null(value: Any) -> bool:
    """Returns True for null and the words for it."""
    return value in _NULL


def read_value(name: str, kind: Kind, value: Any) -> Any:
    """Reads a value of a kind, from a string or from JSON.

    Raises:
        TypeError: if it cannot be read as one. The range is checked by the caller.
    """
    if kind.is_optional and is_null(value):
        return None
    reader = _READERS.get(kind.noun, _READERS["NAME"])
    try:
        if not kind.is_several:
            return reader.read(value)
        several = [value] if isinstance(value, str) else value
        if not isinstance(several, list | tuple):
            raise _UnreadableError
        return tuple(map(reader.read, several))
    except _UnreadableError as error:
        noun = reader.noun
        noun = f"{noun.removeprefix('a ')}s in a list" if kind.is_several else noun
        noun = f"{noun} or None" if kind.is_optional else noun
        reason = f": {error}" if str(error) else ""
        raise TypeError(f"`{name}` must be {noun}, got {value!r}{reason}.") from error


def parse_json(content: str | bytes) -> Any:
    """Parses JSON in which no object has a name twice.

    Raises:
        ValueError: if one has; `json` itself would take the last value.
        json.JSONDecodeError, UnicodeDecodeError: if it is no JSON.
    """
    return json.loads(content, object_pairs_hook=_unique_names)


def read_json_object(
    path: Path, folder: str, remedy: str = "Copy the folder again."
) -> dict[str, Any]:
    """Reads a file of a folder that must be a JSON object.

    Args:
        path: the file.
        folder: name of the argument that names the folder, for errors.
        remedy: sentence on what to do if the file is damaged.

    Raises:
        ValueError: if the file cannot be read or is no JSON object.
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
            raise ValueError(f"`{name}` is in it twice; delete one")
        named[name] = value
    return named


class _UnreadableError(Exception):
    """The value is of another kind."""


def _switch(value: Any) -> bool:
    if str(value) not in ("True", "true", "False", "false"):
        raise _UnreadableError
    return str(value).lower() == "true"


def _number(value: Any) -> int | float:
    if isinstance(value, int | float):
        return value
    for kind in (int, float):  # a count may be written 1e6, the record decides
        with contextlib.suppress(TypeError, ValueError):
            return kind(value)
    raise _UnreadableError


def _path(value: Any) -> Path:
    if not isinstance(value, str) or not value:
        raise _UnreadableError
    return Path(value)


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise _UnreadableError
    return value


def _json(value: Any) -> Any:
    if not isinstance(value, str):
        return _scalars(value)
    try:
        return _scalars(json.loads(value))
    except json.JSONDecodeError as error:
        raise _UnreadableError(f"{error.msg} at character {error.colno}") from error


def _scalars(value: Any) -> Any:
    """Reads numbers and switches out of the strings of an object, as Transformers."""
    if isinstance(value, dict):
        return {name: _scalars(item) for name, item in value.items()}
    if isinstance(value, str):
        for read in (_switch, _number):
            with contextlib.suppress(_UnreadableError):
                return read(value)
    return value


def _json_or_text(value: Any) -> Any:
    is_text = isinstance(value, str) and not value.lstrip().startswith("{")
    return value if is_text else _json(value)


class _Reader(NamedTuple):
    read: Callable[[Any], Any]
    noun: str  # of one value, for errors


_READERS = {
    "": _Reader(_switch, "true or false"),
    "INT": _Reader(_number, "a number"),
    "NUMBER": _Reader(_number, "a number"),
    "PATH": _Reader(_path, "a path"),
    "NAME": _Reader(_name, "a name"),
    "JSON": _Reader(_json, "JSON"),
    _JSON_OR_TEXT: _Reader(_json_or_text, "JSON or name=value,..."),
}
