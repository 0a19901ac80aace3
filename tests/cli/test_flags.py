"""Flags from the fields of dataclasses: parsing, help and errors."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import tyro

from jaxopt_tf._io import kinds_of, read_value
from jaxopt_tf.cli._flags import build, flag_kinds, read_flags, with_flag_names
from jaxopt_tf.cli._run_flags import read_typed
from jaxopt_tf.cli._train import Train


@dataclasses.dataclass(frozen=True, kw_only=True)
class Numbers:
    """Numbers.

    Attributes:
        max_steps: number of steps; at least 1,
            in updates.
        learning_rate: highest rate.
    """

    max_steps: int
    learning_rate: float = 3e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """Flags of several commands.

    Attributes:
        text: files of text.
    """

    text: tuple[Path, ...] = ()
    numbers: Numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form(Base):
    """Does something.

    Example:
      jaxopt-tf x --text a

    Attributes:
        bf16: computes in bfloat16.
        tokenizer: file of a tokenizer.
        optim: name of the optimizer.
        saves: is not a flag of this command.
        decays: numbers to try.
        options: further options.
    """

    prog: ClassVar[str] = "jaxopt-tf x"
    unused: ClassVar[frozenset[str]] = frozenset({"saves"})

    bf16: bool = False
    tokenizer: Path | None = None
    optim: str = "adamw_torch"
    saves: bool = True
    decays: tuple[float, ...] = (0, 0.1)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Named:
    """Takes names.

    Attributes:
        names: what to draw.
        top: upper edge.
    """

    prog: ClassVar[str] = "jaxopt-tf y"

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    top: float = 1.0


def typed(line, form=Form):
    return read_flags(form, line.split())


def test_parse_returns_only_typed_flags():
    assert typed("") == {}
    assert typed("--max_steps 20 --tokenizer t") == {
        "max_steps": 20,
        "tokenizer": Path("t"),
    }


def test_takes_hyphens_equals_signs_and_negative_numbers():
    line = "--learning-rate=-1e-3 --max-steps 5 --decays 0 -0.1"
    found = {"learning_rate": -1e-3, "max_steps": 5, "decays": (0, -0.1)}
    assert typed(line) == found


def test_values_may_contain_equals_signs_and_json():
    assert typed('--options={"a":"b=c"}') == {"options": {"a": "b=c"}}
    assert typed("--optim=a=1,b=2") == {"optim": "a=1,b=2"}


def test_last_value_of_a_repeated_flag_wins():
    assert typed("--max_steps 1 --max_steps 2") == {"max_steps": 2}
    assert typed("--bf16 --text a --no_bf16 --text b c") == {
        "bf16": False,
        "text": (Path("b"), Path("c")),
    }


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("--bf16", True),
        ("--no_bf16", False),
        ("--no-bf16", False),
        ("--bf16 True", True),
        ("--bf16 false", False),
        ("--bf16=False", False),
        ("--bf16=true", True),
    ],
)
def test_switches_are_flags_or_words(line, value):
    assert typed(f"{line} --max_steps 2") == {"bf16": value, "max_steps": 2}


def test_a_word_is_no_switch_elsewhere():
    paths = typed("--text True bf16 false")["text"]
    assert [path.name for path in paths] == ["True", "bf16", "false"]
    assert typed("--optim True") == {"optim": "True"}


def test_several_values_of_a_flag():
    assert typed("--text a b --bf16")["text"] == (Path("a"), Path("b"))
    assert typed("--text") == {"text": ()}
    assert typed("--tokenizer None") == {"tokenizer": None}


def test_values_without_a_flag():
    assert typed("a b --top 2", Named) == {"names": ("a", "b"), "top": 2}
    assert typed("", Named) == {}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "--learning_rat 1",
            "Unknown flag --learning_rat. Did you mean --learning_rate?",
        ),
        ("--max-step=1", "Unknown flag --max-step. Did you mean --max_steps?"),
        ("--txt a", "Unknown flag --txt. Did you mean --text?"),
        ("--wandb", "Unknown flag --wandb. `jaxopt-tf x --help` lists the flags."),
        ("-q", "Unknown flag -q. "),
        (
            "--saves",
            "Unknown flag --saves: `jaxopt-tf x` does not use it. Leave it out.",
        ),
        ("--no_saves", "Unknown flag --no_saves: `jaxopt-tf x` does not use it."),
        ("oops --bf16", "'oops' must follow a flag. `jaxopt-tf x --help`"),
        ("--bf16 maybe", "`bf16` must be true or false, got 'maybe'."),
        ("--max_steps", "`max_steps` must have one value, got none"),
        ("--max_steps 1 2", "`max_steps` must have one value, got 1 2"),
        ("--max_steps many", "`max_steps` must be a number, got 'many'"),
    ],
)
def test_refuses_what_does_not_belong(line, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)) as refused:
        typed(line)
    assert "\n" not in str(refused.value)


def test_names_all_that_does_not_belong_at_once():
    with pytest.raises(ValueError, match="flag") as refused:
        typed("--learning_rat 1 --max_steps many --optm sgd --wd -1")
    first, second, third, last = str(refused.value).splitlines()
    assert "--learning_rat." in first
    assert "--optim?" in second
    assert "--wd." in third
    assert "'many'" in last


def test_builds_nested_records_from_what_was_typed():
    form = build(Form, typed("--max_steps 5 --bf16"), text=(Path("a"),))
    assert form == Form(numbers=Numbers(max_steps=5), bf16=True, text=(Path("a"),))


def test_sentences_about_arguments_name_flags():
    flags = {"max_steps", "mesh", "output_dir"}
    assert with_flag_names("`max_steps` and `axes` of `Recipe`", flags) == (
        "`--max_steps` and `--mesh` of `Recipe`"
    )
    # An argument that no flag of the command sets, and one that a flag of its own sets.
    assert with_flag_names("`scheduler_specific_kwargs`, `name`", flags) == (
        "`scheduler_specific_kwargs`, `name`"
    )
    assert with_flag_names("`axes`", {"axes", "mesh"}) == "`--axes`"
    assert with_flag_names("`mesh='data=2'`", flags) == "`--mesh data=2`"
    assert with_flag_names("`out`, `mesh`", flags, {"out": "OUT"}) == "`OUT`, `--mesh`"


def test_help_groups_flags_and_shows_kinds_and_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as done:
        typed("--help")
    assert done.value.code == 0
    shown = capsys.readouterr().out
    places = [
        shown.index(words)
        for words in (
            "Does something.",
            "Example:\n  jaxopt-tf x --text a",
            "--bf16, --no_bf16",  # its own flags come first
            "--tokenizer PATH",
            "--decays NUMBER [NUMBER ...]",
            "--text PATH [PATH ...]",
            "numbers options",
            "--max_steps INT",
            "number of steps; at least 1, in updates.",
            "--learning_rate NUMBER",
        )
    ]
    assert places == sorted(places)
    for default in ("(default: 0 0.1)", "(default: adamw_torch)", "(default: 0.003)"):
        assert default in shown
    assert "--saves" not in shown
    assert "Attributes" not in shown


@dataclasses.dataclass
class Record:
    """A record with a field of every kind."""

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


KINDS = kinds_of(Record)


def test_kinds_are_those_of_the_annotations():
    assert {name: kind.metavar for name, kind in flag_kinds(Record).items()} == {
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
    several = [name for name, kind in KINDS.items() if kind.is_list]
    assert several == ["paths", "names", "shares"]
    assert [n for n, kind in KINDS.items() if kind.is_optional] == ["either", "path"]
    assert flag_kinds(Form).keys() == {
        *("bf16", "tokenizer", "optim", "decays", "options", "text"),
        *("max_steps", "learning_rate"),
    }


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
    found = read_value(name, KINDS[name], value)
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
        read_value(name, KINDS[name], value)
    assert f"`{name}` must be {wanted}" in str(refused.value)


def test_freeze_can_be_repeated():
    words = ["--freeze", "a.*", "b", "--bf16", "--freeze=c", "--freeze", "d"]
    typed = read_typed(Train, words)
    assert typed["freeze"] == ("a.*", "b", "c", "d")
    assert typed["bf16"] is True
