"""The command `jaxopt-tf`: its subcommands and its exit status."""

import pytest

from jaxopt_tf.cli import main


def test_lists_the_commands(capsys):
    assert main(["--help"]) == 0
    assert "train" in capsys.readouterr().out


def test_no_command_is_an_error_that_lists_them(capsys):
    assert main([]) == 2
    assert "usage: jaxopt-tf COMMAND" in capsys.readouterr().out


def test_an_unknown_command_names_the_nearest(capsys):
    assert main(["trian"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("jaxopt-tf: 'trian' must be a command")
    assert "Did you mean `train`?" in shown


def test_what_is_refused_is_a_sentence_on_stderr(capsys):
    assert main(["train", "--learning_rat", "1"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("jaxopt-tf: `--learning_rat` must be a flag")
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_help_of_a_command_lists_every_flag_within_100_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as done:
        main(["train", "--help"])
    assert done.value.code == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    for words in ("recipe options", "model options", "job options", "(default: 0.003)"):
        assert words in shown


def test_help_shows_several_values_as_one_types_them(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        main(["decay-path", "--help"])
    assert "(default: 0 0.01 0.1 1)" in capsys.readouterr().out
