"""Values read by the kind of their field, from JSON, a command line or a file.

One reading for all of them: `"1e-4"` is a number wherever a number is required, and
`"false"` is False wherever a switch is.
"""

import contextlib
import dataclasses
import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

_UNSET: tuple[Any, ...] = (None, "", "None", "none", "null", [], {})


class Kind(NamedTuple):
    """Kind of a value, as the help of a command line names it."""

    noun: str  # "INT", "NUMBER", "JSON", "{stop,skip}", ...; "" for a switch
    is_several: bool = False  # takes a list of values
    is_optional: bool = False  # None is a value


SWITCH, NUMBER = Kind(""), Kind("NUMBER")


def kinds_of(record: type) -> dict[str, Kind]:
    """Returns the kind of each field of a dataclass, by name."""
    hints = get_type_hints(record)
    return {f.name: kind_of(hints[f.name]) for f in dataclasses.fields(record)}


def kind_of(annotation: Any) -> Kind:
    """Returns the kind of value that a type annotation stands for."""
    is_union = get_origin(annotation) in (Union, types.UnionType)
    options = get_args(annotation) if is_union else (annotation,)
    several = [get_args(o)[0] for o in options if get_origin(o) is tuple]
    is_several = several in ([Path], [str], [float])
    wanted = several if is_several else [o for o in options if o is not type(None)]
    if wanted == [bool]:
        noun = ""
    elif get_origin(wanted[0]) is Literal:
        noun = "{" + ",".join(get_args(wanted[0])) + "}"
    elif wanted in ([int], [float], [Path], [str]):
        noun = {int: "INT", float: "NUMBER", Path: "PATH", str: "NAME"}[wanted[0]]
    else:
        noun = "NUMBER" if set(wanted) == {int, float} else "JSON"
        noun = "JSON|NAME=VALUE,..." if str in wanted else noun
    return Kind(noun, is_several, type(None) in options)


def is_set(value: Any) -> bool:
    """Returns False for null, "", [], {} and the words for null, True otherwise."""
    return value not in _UNSET


def read_value(name: str, kind: Kind, value: Any) -> Any:
    """Reads a value of a kind, from a string or from JSON.

    Raises:
        TypeError: if it cannot be read as one. The range is checked by the caller.
    """
    if kind.is_optional and value in (None, "None", "none", "null"):
        return None
    try:
        if kind.is_several:
            several = [value] if isinstance(value, str) else value
            if not isinstance(several, list | tuple):
                raise _UnreadableError
            return tuple(_READ[kind.noun](item) for item in several)
        return _READ.get(kind.noun, _name)(value)
    except _UnreadableError as error:
        reason = f": {error}" if str(error) else ""
        raise TypeError(
            f"`{name}` must be {_noun(kind)}, got {value!r}{reason}."
        ) from error


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
        try:
            return kind(value)
        except (TypeError, ValueError):
            continue
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


_READ: dict[str, Callable[[Any], Any]] = {
    "": _switch,
    "INT": _number,
    "NUMBER": _number,
    "PATH": _path,
    "NAME": _name,
    "JSON": _json,
    "JSON|NAME=VALUE,...": _json_or_text,
}


def _noun(kind: Kind) -> str:
    nouns = {"": "true or false", "PATH": "a path", "NAME": "a name", "JSON": "JSON"}
    nouns["JSON|NAME=VALUE,..."] = "JSON or name=value,..."
    noun = nouns.get(kind.noun, "a number" if kind.noun in _READ else "a name")
    noun = f"{noun.removeprefix('a ')}s in a list" if kind.is_several else noun
    return f"{noun} or None" if kind.is_optional else noun
