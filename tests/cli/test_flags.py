"""Fields of records as flags: kinds, help, and values read from strings and JSON."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from jaxopt_tf.cli._flags import flags_of, read
from jaxopt_tf.jobs import Job
from jaxopt_tf.models import GPT2Config
from jaxopt_tf.recipes import Recipe


@dataclasses.dataclass
class Record:
    """A record.

    Attributes:
        count: how many; at least 1,
            in units.
        share: a share.
        either: a count or a share.
        switch: on or off.
        name: a name.
        choice: one of two.
        path: where.
        paths: where from.
        names: which.
        shares: some.
        options: more.

    Raises:
        nothing: this is no field.
    """

    count: int = 1
    share: float = 0.5
    either: int | float | None = 1
    switch: bool = False
    name: str = "a"
    choice: Literal["x", "y"] = "x"
    path: Path | None = None
    paths: tuple[Path, ...] = ()
    names: tuple[str, ...] = ()
    shares: tuple[float, ...] = (0.5, 1)
    options: Mapping[str, Any] | tuple[tuple[str, Any], ...] = ()


FLAGS = flags_of(Record, {"count": 7})


def test_kinds_are_those_of_the_annotations():
    assert {name: flag.kind for name, flag in FLAGS.items()} == {
        "count": "INT",
        "share": "NUMBER",
        "either": "NUMBER",
        "switch": "",
        "name": "NAME",
        "choice": "{x,y}",
        "path": "PATH",
        "paths": "PATH",
        "names": "NAME",
        "shares": "NUMBER",
        "options": "JSON",
    }
    assert [name for name, flag in FLAGS.items() if flag.is_several] == [
        "paths",
        "names",
        "shares",
    ]
    optional = [name for name, flag in FLAGS.items() if flag.is_optional]
    assert optional == ["either", "path"]


def test_help_is_the_docstring_in_one_line():
    assert FLAGS["count"].help == "how many; at least 1, in units."
    assert FLAGS["options"].help == "more."


def test_defaults_are_those_given_or_the_fields():
    assert FLAGS["count"].default == 7
    assert FLAGS["share"].default == 0.5


@pytest.mark.parametrize("record", [Recipe, GPT2Config, Job])
def test_every_field_of_the_records_has_a_help(record):
    for flag in flags_of(record, {}).values():
        assert len(flag.help) > 10
        assert flag.help.endswith(".")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("count", "20", 20),
        ("count", "1e6", 1e6),
        ("count", 20, 20),
        ("share", "-1e-3", -1e-3),
        ("either", "None", None),
        ("either", None, None),
        ("switch", "True", True),
        ("switch", "false", False),
        ("switch", False, False),
        ("name", "None", "None"),
        ("choice", "z", "z"),
        ("path", "a/b", Path("a/b")),
        ("path", "None", None),
        ("paths", ["a", "b"], (Path("a"), Path("b"))),
        ("paths", "a", (Path("a"),)),
        ("names", ("a",), ("a",)),
        ("options", '{"a": 1}', {"a": 1}),
        ("options", {"a": 1}, {"a": 1}),
    ],
)
def test_reads_strings_and_json(name, value, expected):
    found = read(FLAGS[name], value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("count", "many", "a number, got 'many'"),
        ("count", None, "a number, got None"),
        ("count", [1], "a number"),
        ("either", "x", "a number or None"),
        ("switch", "yes", "true or false, got 'yes'"),
        ("name", 1, "a name, got 1"),
        ("choice", None, "a name"),
        ("path", "", "a path or None"),
        ("path", 3, "a path or None"),
        ("paths", 3, "paths in a list"),
        ("paths", [3], "paths in a list"),
        ("names", [None], "names in a list"),
        ("options", '{"a"', "JSON, got '{\"a\"': Expecting ':' delimiter at character"),
    ],
)
def test_refuses_another_kind_by_name(name, value, wanted):
    with pytest.raises(TypeError) as refused:
        read(FLAGS[name], value)
    assert f"`{name}` must be {wanted}" in str(refused.value)
