"""`jaxopt-tf schedule`."""

import io
import sys

import pytest

from jaxopt_tf.cli import main


@pytest.fixture(autouse=True)
def _width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")


def shown_by(capsys, *args):
    assert main(["schedule", *args]) == 0
    return capsys.readouterr().out


def refused(capsys, *args):
    assert main(["schedule", *args]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    return shown.err


def test_a_name_is_enough(capsys):
    lines = shown_by(capsys, "cosine").splitlines()
    assert lines[0] == (
        "cosine: first 0, peak 0.001 at step 100, last 3.046e-09 at step 999"
    )
    assert lines[1].startswith("0.001 │")
    assert lines[-2].startswith("    0 │⡏")  # it begins at the bottom
    assert lines[-1].startswith("      └0───")
    assert lines[-1].endswith("─999")
    assert len(lines) == 10
    assert max(map(len, lines[1:])) <= 60


def test_flags_are_those_of_get_scheduler(capsys):
    flags = "--num_warmup_steps 10 --num_training_steps 1e6 --learning_rate 2e-4"
    shown = shown_by(capsys, "linear", *flags.split())
    assert "peak 0.0002 at step 10, last 2e-10 at step 999,999" in shown


def test_several_have_one_scale(capsys):
    options = '{"cosine_with_min_lr": {"min_lr": 5e-4}}'
    names = ["cosine", "constant", "cosine_with_min_lr"]
    shown = shown_by(capsys, *names, "--scheduler_specific_kwargs", options)
    lines = shown.splitlines()
    assert len(lines) == 3 * 7
    assert [line.partition(":")[0] for line in lines[::7]] == names
    assert all(line.startswith("0.001 │") for line in lines[1::7])
    assert "last 0.0005 at step 999" in lines[14]
    # A constant is at the top of the scale that it shares, all the way.
    assert set(lines[8].partition("│")[2]) == {"⠉"}
    assert set(lines[12].partition("│")[2]) <= {" "}


def test_the_scale_is_that_of_the_highest(capsys):
    # A run that ends halfway through its warm-up.
    flags = ["--num_warmup_steps", "2000"]
    lines = shown_by(capsys, "linear", "constant", *flags).splitlines()
    assert "peak 0.0004995 at step 999" in lines[0]
    assert lines[1].startswith("0.001 │")
    assert set(lines[1].partition("│")[2]) <= {" "}


def test_options_of_one_schedule_stand_alone(capsys):
    flags = ["--scheduler_specific_kwargs", '{"num_decay_steps": 200}']
    shown = shown_by(capsys, "warmup_stable_decay", *flags)
    assert "peak 0.001 at step 100" in shown
    flags[1] = '{"num_decay_steps": 200, "num_stable_steps": 100}'
    assert "last 0 at step 999" in shown_by(capsys, "warmup_stable_decay", *flags)


def test_a_terminal_without_braille_gets_ascii(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert main(["schedule", "linear"]) == 0
    sys.stdout.flush()
    lines = written.getvalue().decode("ascii").splitlines()
    assert lines[1].startswith("0.001 |    -'''--..")
    assert lines[-1].startswith("      +0---")


def test_draws_a_picture_too(capsys, tmp_path):
    path = tmp_path / "schedules.png"
    shown = shown_by(capsys, "linear", "cosine", "--output", str(path))
    assert shown.endswith(f"picture {path}\n")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_rate_of_zero_is_a_line_at_the_bottom(capsys):
    lines = shown_by(capsys, "constant", "--learning_rate", "0").splitlines()
    assert set(lines[-2].partition("│")[2]) == {"⣀"}


def test_help_lists_its_flags(capsys):
    shown = shown_by(capsys, "--help")
    assert "usage: jaxopt-tf schedule [-h] [OPTIONS] [NAME [NAME ...]]" in shown
    for flag in ("learning_rate", "num_warmup_steps", "scheduler_specific", "output"):
        assert f"--{flag}" in shown


def test_a_name_misspelt_gets_the_nearest(capsys):
    assert "Did you mean 'cosine'?" in refused(capsys, "cosin")


@pytest.mark.parametrize("name", ["greedy", "reduce_lr_on_plateau"])
def test_refuses_what_a_metric_drives(capsys, name):
    assert "the rates of this schedule depend on a metric" in refused(
        capsys, "linear", name
    )


def test_refuses_no_name_at_all(capsys):
    assert "must be given the name of a schedule" in refused(capsys)


def test_refuses_a_run_without_steps(capsys):
    shown = refused(capsys, "linear", "--num_training_steps", "0")
    assert "`--num_training_steps` must be from 1" in shown


def test_refuses_a_picture_of_no_kind(capsys, tmp_path):
    shown = refused(capsys, "linear", "--output", str(tmp_path / "schedule.txt"))
    assert "`--output` must end with one of .png" in shown


@pytest.mark.parametrize(
    ("names", "given", "said"),
    [
        ("polynomial", "3", 'must be a JSON object, such as {"power": 2}, got 3'),
        ("linear polynomial", '{"power": 2}', "must be a JSON object, such as"),
        ("linear polynomial", '{"linea": {}}', "Did you mean 'linear'?"),
        ("linear", '{"power": 2}', "must contain only options of 'linear'"),
    ],
)
def test_refuses_options_that_are_none(capsys, names, given, said):
    flags = ["--scheduler_specific_kwargs", given]
    assert said in refused(capsys, *names.split(), *flags)
