"""`jaxopt-tf sweep`."""

import json

import pytest

from jaxopt_tf.cli import main
from jaxopt_tf.cli._run_flags import parse
from jaxopt_tf.cli._sweep import as_flags
from jaxopt_tf.cli._train import Train
from jaxopt_tf.recipes import Recipe

pytestmark = [
    pytest.mark.promotion_of_others,  # flax's layers
    pytest.mark.usefixtures("compiled_once", "compiled_quickly"),
]


@pytest.fixture
def swept(small, tmp_path):
    """Runs the command with further flags; the exit status."""

    def run(flags):
        folder = tmp_path / "sweep"
        return main(f"sweep {small} --output_dir {folder} {flags}".split())

    return run


GRID = "--over learning_rate=1e-4,1e-2 optim=lion_32bit,sgd"


def test_prints_the_best_run_and_reuses_finished_runs(swept, small, tmp_path, capsys):
    assert swept(GRID) == 0
    folder = tmp_path / "sweep"
    shown = capsys.readouterr().out
    first, *_ = shown.splitlines()
    assert first == f"4 runs in 2 programs, at most 20 steps each, in {folder}"
    assert shown.count("reached step 20") == 2
    assert "evaluation loss" in shown
    trials = list(map(json.loads, (folder / "sweep.jsonl").read_text().splitlines()))
    best = min(trials, key=lambda trial: trial["held_out_loss"])
    assert best["learning_rate"] == 1e-2
    flags = shown.splitlines()[-1].removeprefix("best    ")
    assert flags == f"--learning_rate 0.01 --optim {best['optim']}"
    # What it says can be typed.
    recipe = parse(Train, flags.split()).run.recipe
    assert (recipe.learning_rate, recipe.optim) == (1e-2, best["optim"])
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")

    # Resumed by the same command, and by the folder alone.
    alone = f"sweep --output_dir {folder}"
    for flags in (f"sweep {small} --output_dir {folder} {GRID}", alone):
        assert main(flags.split()) == 0
        resumed = capsys.readouterr().out
        assert "have come to" not in resumed
        assert resumed.splitlines()[-1] == shown.splitlines()[-1]

    # Neither another model nor another grid continues it.
    for flags, differences in (
        (
            "--n_embd 32 --bf16",
            [
                "`--n_embd` is 16 in the folder, got 32",
                "`--bf16` is False in the folder, got True",
            ],
        ),
        (
            "--over learning_rate=1e-3",
            [
                "`--over` is ['learning_rate=1e-4,1e-2', 'optim=lion_32bit,sgd'] in "
                "the folder, got ['learning_rate=1e-3']"
            ],
        ),
        ("--seed 7", ["`--seed` is 42 in the folder, got 7"]),
    ):
        assert main(f"{alone} {flags}".split()) == 2
        first, *lines = capsys.readouterr().err.splitlines()
        assert "`--output_dir` must be a new" in first
        assert str(folder) in first
        assert lines == [f"  {line}" for line in differences]
    (folder / "settings.json").write_text("{")
    assert swept(GRID) == 2
    assert "must hold a readable settings.json" in capsys.readouterr().err


def test_random_search_with_successive_halving(swept, capsys):
    flags = "--over learning_rate=1e-4:1e-2 weight_decay=0:0.3:linear --num_samples 2"
    assert swept(f"{flags} --halving 2 --optim sgd") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("2 runs in 1 program, ")
    told = [line for line in shown.splitlines() if "reached step" in line]
    assert [line.partition(";")[0] for line in told] == [
        "2 of 2 runs have reached step 10",
        "1 of 1 run has reached step 20",
    ]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("", "`--over` must name at least one field and its values, got none"),
        ("--over learning_rat=1", "Did you mean 'learning_rate'?"),
        ("--over learning_rate=", "at least one value"),
        ("--over learning_rate=1e-2:1e-4 --num_samples 2", "`high` must be greater"),
        (
            "--over learning_rate=1e-4:1e-2",
            "Give `--num_samples` to draw values from it",
        ),
        ("--over learning_rate=-1", "`--learning_rate` must be finite and at least 0"),
        ("--over label_smoothing_factor=0.1", "it changes the loss"),
        ("--over seed=1,2 --num_samples 0", "`--num_samples` must be from 1"),
        ("--over seed=1,2 --halving 1", "`--halving` must be from 2"),
        ("--over seed=1,2 --memory_limit 0", "`--memory_limit` must be finite"),
        ("--over seed=1,2 --mesh data=2", "`jaxopt-tf sweep` does not use it"),
    ],
)
def test_refuses_in_one_sentence(swept, capsys, flags, said):
    assert swept(flags) == 2
    refused = capsys.readouterr().err
    assert said in refused
    assert refused.count("\n") == 1


def test_sweep_whose_runs_all_diverged_is_plotted_and_rejected(swept, tmp_path, capsys):
    assert swept("--over learning_rate=1e38,2e38 --warmup_steps 0 --optim sgd") == 2
    shown = capsys.readouterr()
    assert "diverged" in shown.out
    assert "all 2 diverged; the smallest `--learning_rate` tried was 1e+38" in shown.err
    assert (tmp_path / "sweep" / "sweep.png").exists()


def test_flags_are_words_of_a_shell():
    recipe = Recipe(
        max_steps=10, lr_scheduler_type="polynomial", lr_scheduler_kwargs={"power": 2}
    )
    names = ["max_steps", "lr_scheduler_kwargs", "adam_epsilon"]
    assert as_flags(recipe, names) == (
        "--max_steps 10 --lr_scheduler_kwargs '{\"power\": 2}' --adam_epsilon 1e-08"
    )


def test_the_folder_of_an_earlier_version_is_resumed(swept, tmp_path, capsys):
    """Its search is not in a file: it is typed, the settings of the job are not."""
    assert swept("--over seed=1,2 --optim sgd --max_steps 4") == 0
    shown = capsys.readouterr().out
    folder = tmp_path / "sweep"
    (folder / "search.json").unlink()
    assert main(f"sweep --output_dir {folder}".split()) == 2
    assert "`--over` must name at least one field" in capsys.readouterr().err
    assert main(f"sweep --output_dir {folder} --over seed=1,2".split()) == 0
    assert capsys.readouterr().out.splitlines()[-1] == shown.splitlines()[-1]
