"""The command `jaxopt-tf`: subcommands, help, messages and exit status."""

import importlib
import importlib.metadata
import os
import re
import signal
import subprocess
import sys

import pytest

from jaxopt_tf.cli import main
from jaxopt_tf.cli._flags import flag_kinds
from jaxopt_tf.cli._main import _COMMANDS


def test_lists_the_commands(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for command in _COMMANDS:
        assert f"\n  {command} " in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_no_command_is_an_error_that_lists_them(capsys):
    assert main([]) == 2
    assert "usage: jaxopt-tf COMMAND" in capsys.readouterr().out


def test_has_a_version(capsys):
    assert main(["--version"]) == 0
    version = importlib.metadata.version("jaxopt_tf")
    assert capsys.readouterr().out == f"jaxopt-tf {version}\n"


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ("trian", "Unknown command 'trian'. Did you mean 'train'?"),
        ("zzz", "Unknown command 'zzz'. `jaxopt-tf --help` lists all."),
        ("train --txt a", "Unknown flag --txt. Did you mean --text?"),
        (
            "sweep --save_steps 1",
            "Unknown flag --save_steps: `jaxopt-tf sweep` does not use it. Leave it "
            "out.",
        ),
        ("train --max_steps many", "`--max_steps` must be a number, got 'many'."),
    ],
)
def test_what_is_refused_is_a_sentence_on_stderr(capsys, args, sentence):
    assert main(args.split()) == 2
    assert capsys.readouterr() == ("", f"jaxopt-tf: {sentence}\n")


@pytest.mark.parametrize("command", _COMMANDS)
def test_help_fits_80_columns_without_broken_words(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert f"Example:\n  jaxopt-tf {command} " in shown
    # "(default: d e f a u l t)": a string that is shown as a list of its letters.
    words = shown.split()
    assert not [w for w in words if len(w) == 1 and w.isalpha() and w not in "aAxN"]
    module, form, _ = _COMMANDS[command]
    form = getattr(importlib.import_module(f"jaxopt_tf.cli.{module}"), form)
    listed = re.findall(r"^ +--(?:no_\w+, --)?(\w+)", shown, re.MULTILINE)
    assert {*listed, "names"} == {*flag_kinds(form), "names"}
    own = [name for name in vars(form)["__annotations__"] if name in listed]
    assert listed[: len(own)] == own


def test_commands_have_flags_that_they_use(capsys):
    def flags(command):
        assert main([command, "--help"]) == 0
        shown = capsys.readouterr().out.replace("│", " ").split()
        return {word.strip("[],") for word in shown if word.startswith("--")}

    of_training = {"--save_steps", "--logging_steps", "--mesh", "--intended_changes"}
    assert of_training <= flags("train")
    for command in ("find-lr", "sweep", "decay-path"):
        assert not of_training & flags(command)
        assert {"--text", "--bf16", "--n_layer", "--optim"} <= flags(command)
    planned = flags("plan")
    assert {"--mesh", "--zero_1", "--bf16", "--devices"} <= planned
    assert not planned & {"--text", "--save_steps", "--output_dir", "--eval_steps"}
    assert not flags("explain") & {"--text", "--bf16", "--output_dir"}
    for command in ("doctor", "migrate"):
        found = flags(command)
        assert {"--text", "--eval_steps", "--mesh"} <= found
        assert not found & {"--intended_changes", "--resume_from_checkpoint"}


@pytest.mark.parametrize(
    ("args", "words", "not_there"),
    [
        ("train --mesh data=x", "`--mesh` must be names and sizes", "`axes`"),
        ("plan --devices foo", "`--devices` must be the name of a slice", "`name`"),
        (
            "train --lr_scheduler_type warmup_stable_decay --lr_scheduler_kwargs {}",
            "Pass it in `--lr_scheduler_kwargs`",
            "scheduler_specific_kwargs",
        ),
        ("schedule warmup_stable_decay", "in `--scheduler_specific_kwargs`", "lr_s"),
        (
            "sweep --over weight_decay=0:0.1",
            "low:high:linear on the command line",
            "`path`",
        ),
        ("train --rate_groups 3", "mappings with 'pattern'", "__init__"),
        ("train --rate_groups {}", "must have a `pattern` in each group", "__init__"),
        ('train --rate_groups [{"patern":1}]', "Did you mean 'pattern'?", "__init__"),
        ("schedule greedy", "curves.png of a run shows them", "plot_run"),
        ("train --optim galore_adamw", "use 'adamw_torch'", "`folder`"),
        (
            "train --ignore_fields fp16",
            "`--ignore_fields` must be given with `--config`",
            "`source`",
        ),
    ],
)
def test_remedies_are_valid_command_lines(capsys, args, words, not_there):
    assert main(args.split()) == 2
    said = capsys.readouterr().err
    assert words in said
    assert not_there not in said


def _interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("command", ["find-lr", "decay-path"])
def test_ctrl_c_prints_a_line_to_paste(command, capsys, monkeypatch):
    monkeypatch.setattr("jaxopt_tf.cli._searches.tuning_corpus", _interrupt)
    args = [command, "--text", "two words.txt"]
    assert main(args) == 128 + signal.SIGINT
    assert capsys.readouterr().err == (
        "\njaxopt-tf: stopped by Ctrl-C. To start again:\n"
        f"  jaxopt-tf {command} --text 'two words.txt'\n"
    )


@pytest.mark.parametrize("args", [["--help"], ["schedule", "--help"]])
def test_closed_pipe_ends_the_command_quietly(args):
    code = f"import sys; from jaxopt_tf.cli import main; sys.exit(main({args}))"
    # Closed at once, in the place of `| head` and of luck with the time it takes.
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE


@pytest.mark.parametrize(
    ("command", "mode", "before", "after"),
    [
        ("train", "always [madvise] never", None, "glibc.malloc.hugetlb=1"),
        (
            "sweep",
            "always [madvise] never",
            "glibc.malloc.arena_max=2",
            "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1",
        ),
        # Left alone: the user's choice, other modes, and commands without steps.
        ("train", "always [madvise] never", *["glibc.malloc.hugetlb=0"] * 2),
        ("train", "[always] madvise never", None, "None"),
        ("train", "always madvise [never]", None, "None"),
        ("train", None, None, "None"),
        ("schedule", "always [madvise] never", None, "None"),
    ],
)
def test_commands_that_train_have_huge_pages(command, mode, before, after, tmp_path):
    if mode is not None:
        (tmp_path / "enabled").write_text(mode)
    code = (
        "import os, pathlib\n"
        "from jaxopt_tf.cli import _main\n"
        f"_main._HUGE_PAGES_MODE = pathlib.Path({str(tmp_path / 'enabled')!r})\n"
        "_main._run = lambda args: print(os.environ.get('GLIBC_TUNABLES'), *args)\n"
        "_main.main()"
    )
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    if before is not None:
        environment["GLIBC_TUNABLES"] = before
    shown = subprocess.run(
        [sys.executable, "-c", code, command, "--seed", "1"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout.split("\n") == [f"{after} {command} --seed 1", ""]
