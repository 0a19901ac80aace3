"""What stands on the command line, and what it says of what does not belong there."""

import re

import pytest

from jaxopt_tf.cli._command_line import typed_settings
from jaxopt_tf.cli._flags import Flag


def flag(name, kind, default=None, is_several=False, is_optional=False):
    return Flag(name, kind, is_several, is_optional, f"What {name} is.", default)


GROUPS = {
    "numbers": [
        flag("max_steps", "INT", 2_000),
        flag("learning_rate", "NUMBER", 3e-3),
    ],
    "rest": [
        flag("bf16", "", False),
        flag("text", "PATH", (), is_several=True),
        flag("tokenizer", "PATH", is_optional=True),
        flag("optim", "NAME", "adamw_torch"),
    ],
}


def typed(line):
    return typed_settings(GROUPS, line.split(), prog="jaxopt-tf x", description="Does.")


def test_has_what_was_typed_and_no_more():
    assert typed("") == {}
    assert typed("--max_steps 20") == {"max_steps": 20}


def test_takes_hyphens_equals_signs_and_negative_numbers():
    line = "--learning-rate=-1e-3 --max-steps 5"
    assert typed(line) == {"learning_rate": -1e-3, "max_steps": 5}


def test_the_last_of_a_flag_counts():
    assert typed("--max_steps 1 --max_steps 2") == {"max_steps": 2}


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
    paths = typed("--text a b --bf16")["text"]
    assert [path.name for path in paths] == ["a", "b"]
    assert typed("--tokenizer None") == {"tokenizer": None}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "--learning_rat 1",
            "`--learning_rat` must be a flag of `jaxopt-tf x`. Did you mean "
            "`--learning_rate`?",
        ),
        ("--max-step=1", "Did you mean `--max_steps`?"),
        ("--wandb", "`--wandb` must be a flag"),
        ("-q", "`-q` must be a flag"),
        ("oops --bf16", "'oops' must follow a flag"),
        ("--bf16 maybe", "'maybe' must follow a flag"),
        ("--max_steps", "`--max_steps` must have one value, got none"),
        ("--max_steps 1 2", "`--max_steps` must have one value, got 1 2"),
        ("--max_steps many", "`max_steps` must be a number, got 'many'"),
    ],
)
def test_refuses_what_does_not_belong(line, words):
    with pytest.raises(ValueError, match=re.escape(words)) as refused:
        typed(line)
    assert "\n" not in str(refused.value)


def test_names_all_that_does_not_belong_at_once():
    with pytest.raises(ValueError, match="flag") as refused:
        typed("--learning_rat 1 --max_steps many --optm sgd --text")
    found = str(refused.value).splitlines()
    assert len(found) == 3
    assert "--learning_rat`" in found[0]
    assert "`--optim`" in found[1]
    assert "'many'" in found[2]


def test_help_groups_the_flags_and_gives_kinds_and_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as done:
        typed("--help")
    assert done.value.code == 0
    shown = capsys.readouterr().out
    numbers, rest = shown.index("numbers options"), shown.index("rest options")
    assert numbers < shown.index("--learning_rate NUMBER") < rest
    assert rest < shown.index("--bf16, --no_bf16") < shown.index("--text PATH [PATH")
    assert "What max_steps is. (default: 2000)" in shown
    assert "What tokenizer is." in shown
    assert max(map(len, shown.splitlines())) <= 100
