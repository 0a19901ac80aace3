"""`jaxopt-tf decay-path`."""

import pytest

from jaxopt_tf.cli import main
from jaxopt_tf.cli._run_flags import parse
from jaxopt_tf.cli._train import Train

pytestmark = [
    pytest.mark.promotion_of_others,  # flax's layers
    pytest.mark.usefixtures("compiled_once", "compiled_quickly"),
]


@pytest.fixture
def followed(small, tmp_path):
    """Runs the command with further flags; the exit status."""

    def run(flags):
        folder = tmp_path / "path"
        return main(f"decay-path {small} --output_dir {folder} {flags}".split())

    return run


def test_suggests_a_decay_in_the_words_of_train(followed, tmp_path, capsys):
    # A decay of 3 takes nine tenths off the weights at every step: nothing is learnt.
    flags = "--optim sgd --learning_rate 0.3 --decays 3 0 0.1"
    assert followed(f"{flags} --num_folds 2 --num_windows 32") == 0
    shown = capsys.readouterr().out
    first, *_ = shown.splitlines()
    told = "3 decays on 2 folds of 32 windows, 20 steps each, in "
    assert first.startswith(f"{told}{tmp_path / 'path'}. ")
    *_, reason, flag = shown.splitlines()
    assert reason.startswith("The mean evaluation loss is lowest")
    assert parse(Train, flag.split()).run.recipe.weight_decay in (0, 0.1)
    assert shown.count("suggested") == 1
    assert (tmp_path / "path" / "decay_path.png").read_bytes().startswith(b"\x89PNG")


def test_takes_all_windows_of_a_short_text_and_starts_warm(followed, capsys):
    flags = "--decays 0 0.1 --num_folds 2 --warm_starts --resid_pdrop 0.1"
    assert followed(f"{flags} --optim sgd") == 0
    shown = capsys.readouterr().out
    # Nine tenths of 2,640 bytes, 16 a window.
    assert "2 folds of 148 windows" in shown
    assert shown.splitlines()[-1].startswith("--weight_decay ")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--decays 0 -0.1", "`--decays` must be finite and at least 0, got -0.1"),
        ("--decays", "`--decays` must contain at least one weight decay, got none"),
        ("--decays 0,0.1", "`--decays` must be numbers in a list, got ['0,0.1']"),
        ("--num_folds 1", "`--num_folds` must be from 2"),
        ("--num_folds 149", "at most the number of windows, which is 148, got 149"),
        ("--num_windows 4", "at most the number of windows, which is 4, got 5"),
        ("--num_windows 0", "`--num_windows` must be from 1"),
        ("--num_windows 8", "must be at most the number of training rows, which is 6"),
        ("--memory_limit 0", "`--memory_limit` must be finite"),
        ("--block_size 3000", "`--text` must have at least `--block_size` + 1 = 3001"),
        ("--num_fold 5", "Did you mean --num_folds?"),
        ("--mesh data=2", "--mesh: `jaxopt-tf decay-path` does not use it"),
    ],
)
def test_refuses_in_one_sentence(followed, tmp_path, capsys, flags, said):
    assert followed(flags) == 2
    refused = capsys.readouterr().err
    assert said in refused
    assert refused.count("\n") == 1
    assert not (tmp_path / "path").exists()
