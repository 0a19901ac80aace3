"""Every field of a record is a flag: its name, its help, and how its value is read."""

import dataclasses
import inspect
import json
import re
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints


class Flag(NamedTuple):
    """A setting as the command line and a configuration file have it."""

    name: str
    kind: str  # how the help calls a value: "INT", or "{stop,skip}"; "" for a switch
    is_several: bool  # whether it takes any number of values
    is_optional: bool  # whether None is a value
    help: str  # one line, with the unit and the range
    default: Any  # what the help shows; None and () are not shown


def flags_of(record: type, defaults: Mapping[str, Any]) -> dict[str, Flag]:
    """A flag for each field of a dataclass, by its name.

    Args:
        record: its docstring's section "Attributes:" is the help.
        defaults: by the names of fields; where one is left out, it is the field's own.
    """
    hints, help_by_name = get_type_hints(record), _attributes(record)
    return {
        field.name: _flag(
            field.name,
            hints[field.name],
            help_by_name[field.name],
            defaults.get(field.name, field.default),
        )
        for field in dataclasses.fields(record)
    }


def read(flag: Flag, value: Any) -> Any:
    """A value of the flag's kind, from a string of the command line or from JSON.

    Raises:
        TypeError: if it cannot be read as one. Its range is the record's to check.
    """
    if flag.is_optional and (value is None or value in ("None", "none", "null")):
        return None
    try:
        if flag.is_several:
            several = [value] if isinstance(value, str) else value
            if not isinstance(several, list | tuple):
                raise _UnreadableError
            return tuple(_READ[flag.kind](item) for item in several)
        return _READ.get(flag.kind, _name)(value)
    except _UnreadableError as error:
        reason = f": {error}" if str(error) else ""
        raise TypeError(
            f"`{flag.name}` must be {_noun(flag)}, got {value!r}{reason}."
        ) from error


def _flag(name: str, annotation: Any, help: str, default: Any) -> Flag:
    options = _options(annotation)
    several = [get_args(o)[0] for o in options if get_origin(o) is tuple]
    is_several = several in ([Path], [str], [float])
    wanted = several if is_several else [o for o in options if o is not type(None)]
    if wanted == [bool]:
        kind = ""
    elif get_origin(wanted[0]) is Literal:
        kind = "{" + ",".join(get_args(wanted[0])) + "}"
    elif wanted in ([int], [float], [Path], [str]):
        kind = {int: "INT", float: "NUMBER", Path: "PATH", str: "NAME"}[wanted[0]]
    else:
        kind = "NUMBER" if set(wanted) == {int, float} else "JSON"
        kind = "JSON|NAME=VALUE,..." if str in wanted else kind
    return Flag(name, kind, is_several, type(None) in options, help, default)


def _options(annotation: Any) -> tuple[Any, ...]:
    is_union = get_origin(annotation) in (Union, types.UnionType)
    return get_args(annotation) if is_union else (annotation,)


def _attributes(record: type) -> dict[str, str]:
    """What the section "Attributes:" says of each, in one line."""
    # Cleaned, as Python 3.13 has it itself.
    _, _, section = inspect.cleandoc(record.__doc__ or "").partition("Attributes:\n")
    section, _, _ = section.partition("\n\n")
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


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
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise _UnreadableError(f"{error.msg} at character {error.colno}") from error


def _json_or_text(value: Any) -> Any:
    return _json(value) if str(value).lstrip().startswith("{") else value


_READ: dict[str, Callable[[Any], Any]] = {
    "": _switch,
    "INT": _number,
    "NUMBER": _number,
    "PATH": _path,
    "NAME": _name,
    "JSON": _json,
    "JSON|NAME=VALUE,...": _json_or_text,
}


def _noun(flag: Flag) -> str:
    nouns = {"": "true or false", "PATH": "a path", "NAME": "a name", "JSON": "JSON"}
    nouns["JSON|NAME=VALUE,..."] = "JSON or name=value,..."
    noun = nouns.get(flag.kind, "a number" if flag.kind in _READ else "a name")
    noun = f"{noun.removeprefix('a ')}s in a list" if flag.is_several else noun
    return f"{noun} or None" if flag.is_optional else noun
