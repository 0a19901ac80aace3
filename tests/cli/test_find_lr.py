"""`jaxopt-tf find-lr`."""

import pytest

from jaxopt_tf.cli import main
from jaxopt_tf.cli._run_flags import parse
from jaxopt_tf.cli._train import Train

pytestmark = [
    pytest.mark.promotion_of_others,  # flax's layers
    pytest.mark.usefixtures("compiled_once", "compiled_quickly"),
]


@pytest.fixture
def found(small, tmp_path):
    """Runs the command with further flags; the exit status."""

    def run(flags):
        folder = tmp_path / "found"
        return main(f"find-lr {small} --output_dir {folder} {flags}".split())

    return run


def test_suggests_a_rate_in_the_words_of_train(found, tmp_path, capsys):
    bounds = "--min_rate 1e-4 --max_rate 1 --num_rates 3"
    assert found(f"{bounds} --num_steps 20 --memory_limit 2e9") == 0
    shown = capsys.readouterr().out
    *_, reason, flag = shown.splitlines()
    assert flag == "--learning_rate 0.01"
    assert reason.startswith("after 20 steps 0.01 has the lowest loss")
    assert parse(Train, flag.split()).run.recipe.learning_rate == 0.01
    assert shown.count("suggested") == 1
    assert (tmp_path / "found" / "find_lr.png").read_bytes().startswith(b"\x89PNG")


def test_one_run_whose_rate_rises(found, tmp_path, capsys):
    assert found("--rising --min_rate 1e-4 --max_rate 10 --num_steps 40") == 0
    *_, reason, flag = capsys.readouterr().out.splitlines()
    assert reason.startswith("the smoothed loss is lowest")
    rate = float(flag.removeprefix("--learning_rate "))
    assert 1e-3 < rate < 1
    assert (tmp_path / "found" / "find_lr.png").exists()


def test_status_shows_that_no_rate_can_be_suggested(found, tmp_path, capsys):
    bounds = "--min_rate 1e-9 --max_rate 1e-7 --num_rates 3"
    assert found(f"{bounds} --num_steps 5 --optim sgd") == 1
    shown = capsys.readouterr().out
    assert "try" in shown.splitlines()[-1]
    assert "--learning_rate" not in shown
    assert (tmp_path / "found" / "find_lr.png").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            "--min_rate 1 --max_rate 0.1",
            "`--max_rate` must be greater than `--min_rate`",
        ),
        ("--num_rates 2", "`--num_rates` must be from 3"),
        (
            "--rising --num_rates 5",
            "`--num_rates` must be left out with `--rising`, got 5",
        ),
        (
            "--rising --memory_limit 1",
            "`--memory_limit` must be left out with `--rising`",
        ),
        ("--num_rate 5", "Did you mean --num_rates?"),
        ("--load_best_model_at_end", "`jaxopt-tf find-lr` does not use it"),
    ],
)
def test_refuses_in_one_sentence(found, capsys, flags, said):
    assert found(flags) == 2
    refused = capsys.readouterr().err
    assert said in refused
    assert refused.count("\n") == 1
