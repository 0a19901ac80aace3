"""Parsing of a command's flags, which are the fields of dataclasses.

tyro converts fields to flags, splits the command line and prints the help. This module
adds features that tyro 1.0 does not have:

- The result contains only the settings that were given on the command line. Other
  settings come from the run's folder or from a file. tyro therefore does not build the
  dataclasses; it returns the words of each flag that was given.
- Values of flags and of JSON files are read by the same function, `read_value`.
- One message lists all errors, with the most similar flag for each unknown one. tyro
  prints the first error in a box.
- Switches accept a value, `--bf16 True`, as in scripts of Transformers, in addition to
  `--bf16` and `--no_bf16`.
"""

import dataclasses
import inspect
import re
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, TypeVar, cast, get_args, get_type_hints

import tyro
from tyro.constructors import (
    MISSING_NONPROP,
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from .. import _checks
from .._io import Kind, kinds_of, read_value

_Record = TypeVar("_Record")

# Exceptions whose message is printed without a traceback.
USER_ERRORS = (ValueError, TypeError, FloatingPointError, OSError)

# Flags whose name differs from the argument of the Python function that they set.
_FLAG_OF_ARGUMENT = {
    "axes": "mesh",
    "folder": "output_dir",
    "name": "devices",
    "path": "output",
    "reduction_factor": "halving",
    "scheduler_specific_kwargs": "lr_scheduler_kwargs",
}


def read_flags(
    flags_type: type,
    args: Sequence[str],
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Reads the flags of a command line; `--help` prints the help and exits.

    The words of a flag's name may be joined by underscores or hyphens. If a flag is
    repeated, the last value is used.

    Args:
        flags_type: dataclass of the command's flags. Fields that are dataclasses are
            groups of flags; the field `run` contains groups and is not a group itself.
            The class attribute `prog` is the name of the command, and `unused` contains
            names of fields that are not flags of the command. The docstring is the
            help.
        args: command line after the name of the command.
        defaults: defaults for the help that differ from those of the fields.

    Returns:
        The settings of the command line by name, including those of nested dataclasses.

    Raises:
        ValueError: if flags are unknown or values cannot be read. The message names all
            of them, with the most similar flag for each unknown one.
    """
    kinds = flag_kinds(flags_type)
    registry = ConstructorRegistry()

    @registry.struct_rule
    def words_of(info: StructTypeInfo) -> StructConstructorSpec | None:
        if not dataclasses.is_dataclass(info.type):
            return None
        specs = tuple(_field_specs(info.type, kinds, defaults))
        return StructConstructorSpec(_given_words, specs)

    # The overloads of `tyro.cli` support neither custom rules nor their result types:
    # the cast avoids errors of mypy.
    words, unknown = cast(Any, tyro.cli)(
        flags_type,
        prog=cast(Any, flags_type).prog,
        # tyro does not rewrap the description: each paragraph is one line.
        description=inspect.cleandoc(flags_type.__doc__ or "").partition(
            "\nAttributes:"
        )[0],
        args=_without_negations(args, kinds),
        use_underscores=True,
        return_unknown_args=True,
        registry=registry,
    )
    problems = _unknown_flags(unknown, kinds, flags_type)
    given: dict[str, Any] = {}
    for name, values in words.items():
        try:
            given[name] = _read_words(name, kinds[name], values)
        except TypeError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n  ".join(problems))
    return given


def flag_kinds(flags_type: type) -> dict[str, Kind]:
    """Returns the kind of each flag by name, including those of nested dataclasses."""
    groups, unused = _groups(flags_type), getattr(flags_type, "unused", ())
    kinds = {
        name: kind for name, kind in kinds_of(flags_type).items() if name not in groups
    }
    for record in groups.values():
        kinds |= flag_kinds(record)
    return {name: kind for name, kind in kinds.items() if name not in unused}


def build(record: type[_Record], settings: Mapping[str, Any], **given: Any) -> _Record:
    """Builds a dataclass from settings by the names of its fields.

    Args:
        record: the dataclass; fields that are dataclasses are built from the same
            settings.
        settings: values by name; missing fields take their defaults.
        **given: fields that are passed as they are, and not built.
    """
    groups = _groups(record)
    for name in kinds_of(record):
        if name in groups and name not in given:
            given[name] = build(groups[name], settings)
        elif name in settings:
            given.setdefault(name, settings[name])
    return record(**given)


def with_flag_names(
    text: str,
    flag_names: Collection[str],
    names_in_messages: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Replaces names of arguments in a message by the flags that set them.

    `max_steps` becomes `--max_steps`, and `optim='sgd'` becomes `--optim sgd`.

    Args:
        text: the message.
        flag_names: names of the command's flags.
        names_in_messages: names that replace those of arguments that are not flags.
    """

    def replaced(found: re.Match[str]) -> str:
        name, value = found[1], found[2]
        if name in names_in_messages:
            return f"`{names_in_messages[name]}`"
        for flag in (name, _FLAG_OF_ARGUMENT.get(name)):
            if flag in flag_names:
                return f"`--{flag} {value}`" if value else f"`--{flag}`"
        return found[0]

    return re.sub(r"`(\w+)(?:='([^`']*)')?`", replaced, text)


def _groups(record: type) -> dict[str, type]:
    """Returns the fields that are dataclasses.

    For a field annotated with a union, the first member of the union is returned.
    Fields of the other members have no flags; their values come from files.
    """
    hints = {
        name: get_args(hint)[0] if isinstance(hint, types.UnionType) else hint
        for name, hint in get_type_hints(record).items()
    }
    return {
        name: hint
        for name, hint in hints.items()
        if dataclasses.is_dataclass(hint) and isinstance(hint, type)
    }


class _NotGiven:
    """Value of a flag that was not given; also the type of all flags in tyro."""


def _given_words(**values: Any) -> dict[str, list[str]]:
    # No docstring: tyro would print it above the flags of each group.
    words: dict[str, list[str]] = {}
    # The value of a nested dataclass is the dict of its own words.
    for name, value in values.items():
        if isinstance(value, dict):
            words |= value
        elif not isinstance(value, _NotGiven):
            words[name] = value
    return words


def _field_specs(
    record: type, kinds: Mapping[str, Kind], defaults: Mapping[str, Any]
) -> Iterator[StructFieldSpec]:
    groups, helps = _groups(record), _help_by_name(record)
    hints = get_type_hints(record, include_extras=True)
    # `__mro__` lists the class before its bases, so flags of the command precede
    # inherited flags.
    names = [name for cls in record.__mro__ for name in inspect.get_annotations(cls)]
    for name in dict.fromkeys(names):
        if name in groups:
            # The name is the title of the group in the help; `run` has no title.
            title = tyro.conf.arg(name="" if name == "run" else name)
            hint = _annotated(groups[name], title)
            yield StructFieldSpec(name, hint, MISSING_NONPROP)
        elif name in kinds:
            kind, default = kinds[name], defaults.get(name, getattr(record, name, None))
            flag = tyro.conf.arg(
                # The help shows a switch as `--bf16, --no_bf16`: tyro lists the alias
                # first, so that the positive form has to be the alias.
                name=f"no_{name}" if kind.is_switch else None,
                aliases=[f"--{name}"] if kind.is_switch else None,
                prefix_name=False,
                help=helps[name],
                help_behavior_hint=_shown(default),
            )
            markers = getattr(hints[name], "__metadata__", ())
            hint = _annotated(_NotGiven, _conversion(kind), flag, *markers)
            yield StructFieldSpec(name, hint, _NotGiven())


def _conversion(kind: Kind) -> PrimitiveConstructorSpec[Any]:
    """Returns a rule for tyro that leaves the words of a flag unconverted."""
    return PrimitiveConstructorSpec(
        nargs="*",  # any number of words: `_read_words` reports a wrong number
        metavar=f"{kind.metavar} [{kind.metavar} ...]"
        if kind.is_list
        else kind.metavar,
        instance_from_str=lambda words: words,
        is_instance=lambda _: True,
        str_from_instance=lambda _: [],
    )


def _annotated(hint: Any, *metadata: Any) -> Any:
    return Annotated[(hint, *metadata)]  # type: ignore[misc]  # not a static type


def _help_by_name(record: type) -> dict[str, str]:
    """Returns the entries of "Attributes:" in the docstrings, each as one line."""
    helps: dict[str, str] = {}
    for cls in reversed(record.__mro__):
        _, _, entries = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
        entries, _, _ = entries.partition("\n\n")
        found = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", entries, re.MULTILINE)
        helps |= {name: " ".join(text.split()) for name, text in found}
    return helps


def _shown(default: Any) -> str:
    if default in (None, ()):
        return ""
    values = default if isinstance(default, tuple) else (default,)
    return f"(default: {' '.join(map(str, values))})"


def _read_words(name: str, kind: Kind, words: list[str]) -> Any:
    if kind.is_list:
        return read_value(name, kind, words)
    if not words and kind.is_switch:
        return True
    if len(words) != 1:
        got = " ".join(words) or "none"
        raise TypeError(f"`{name}` must have one value, got {got}.")
    return read_value(name, kind, words[0])


def _without_negations(args: Sequence[str], kinds: Mapping[str, Kind]) -> list[str]:
    """Replaces `--no_bf16` by `--bf16=False`.

    tyro passes only the values of a flag to its converter, and not its name on the
    command line, so that the two forms could not be distinguished.
    """

    def word(arg: str) -> str:
        found = re.fullmatch(r"--no[-_]([\w-]+)", arg)
        name = found[1].replace("-", "_") if found else ""
        is_negation = name in kinds and kinds[name].is_switch
        return f"--{name}=False" if is_negation else arg

    return list(map(word, args))


def _unknown_flags(
    words: Sequence[str], kinds: Mapping[str, Kind], flags_type: Any
) -> list[str]:
    """Returns a message for each unknown flag, or for a value that follows no flag."""
    # A word such as "-1" is a value, not a flag.
    names = [word.partition("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)]
    if words and not names:
        return [
            f"{words[0]!r} must follow a flag. `{flags_type.prog} --help` lists them."
        ]
    sentences = []
    for name in names:
        field = name.strip("-").replace("-", "_")
        if field.removeprefix("no_") in getattr(flags_type, "unused", ()):
            hint = f": `{flags_type.prog}` does not use it. Leave it out."
        else:
            near = _checks.suggest(field, kinds, "--{}")
            hint = "." + (near or f" `{flags_type.prog} --help` lists the flags.")
        sentences.append(f"Unknown flag {name}{hint}")
    return sentences
