"""Every field of a record is a flag: its name, its help, and how its value is read."""

import dataclasses
import inspect
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from .._io import Kind, kinds_of, read_value


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
    kinds, help_by_name = kinds_of(record), _attributes(record)
    return {
        field.name: Flag(
            field.name,
            *kinds[field.name],
            help_by_name[field.name],
            defaults.get(field.name, field.default),
        )
        for field in dataclasses.fields(record)
    }


def read(flag: Flag, value: Any) -> Any:
    """Reads a value of the flag's kind, as `read_value` does."""
    kind = Kind(flag.kind, flag.is_several, flag.is_optional)
    return read_value(flag.name, kind, value)


def _attributes(record: type) -> dict[str, str]:
    """What the section "Attributes:" says of each, in one line."""
    # Cleaned, as Python 3.13 has it itself.
    _, _, section = inspect.cleandoc(record.__doc__ or "").partition("Attributes:\n")
    section, _, _ = section.partition("\n\n")
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}
