"""`jaxopt-tf train`, end to end on a small text."""

import json

import pytest

from jaxopt_tf.cli import main

pytestmark = pytest.mark.promotion_of_others  # flax's layers

SIZES = "--n_layer 1 --n_head 2 --n_embd 16 --block_size 16"
RUN = f"train {SIZES} --per_device_train_batch_size 8 --max_steps 20 --warmup_steps 2"


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    return path


@pytest.fixture
def run(tmp_path, text):
    """Runs the command with further flags; the exit status."""

    def run(flags=""):
        args = f"{RUN} --text {text} --output_dir {tmp_path / 'run'} {flags}"
        return main(args.split())

    return run


def column(output_dir, name):
    """What the records of the run call `name`, in order."""
    lines = (output_dir / "metrics.jsonl").read_text().splitlines()
    return [record[name] for record in map(json.loads, lines) if name in record]


def test_learns_and_says_where_it_wrote(run, tmp_path, capsys):
    assert run("--eval_steps 8") == 0
    output_dir = tmp_path / "run"
    first, *_, last = losses = column(output_dir, "eval_loss")
    assert len(losses) == 4
    assert first == pytest.approx(5.55, abs=0.1)
    assert last < first - 0.5
    assert (output_dir / "curves.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert f"held-out loss {first:.2f} -> {last:.3f} nats per byte" in shown
    assert str(output_dir / "curves.png") in shown
    assert str(output_dir / "metrics.jsonl") in shown


def test_follows_the_schedule_it_was_given_in_hyphens_and_json(run, tmp_path):
    flags = (
        "--lr-scheduler-type polynomial --learning-rate 1e-2 "
        '--lr-scheduler-kwargs {"lr_end":5e-3,"power":1} --optim adafactor'
    )
    assert run(flags) == 0
    climb = [0.0, 5e-3]
    descent = [5e-3 + 5e-3 * (20 - step) / 18 for step in range(2, 20)]
    rates = column(tmp_path / "run", "learning_rate")
    assert rates == pytest.approx(climb + descent, abs=1e-8)
    # Adafactor learns, too.
    first, last = column(tmp_path / "run", "eval_loss")
    assert last < first - 0.5


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--warmup_steps 21", "`warmup_steps` must be at most `max_steps`"),
        ("--optim adamw_torhc", "Did you mean 'adamw_torch'"),
        ("--lr_scheduler_type greedy", "`lr_scheduler_type` must be a function"),
        ("--lr_scheduler_kwargs [1]", "`lr_scheduler_kwargs` must be a mapping"),
        ("--learning_rate nan", "`learning_rate` must be finite"),
        ("--n_embd 15", "`n_embd` must be a multiple of `n_head`"),
        ("--block_size 4000", "`text` must have at least"),
        ("--text missing.txt", "`text` must be files or folders, but 'missing.txt'"),
        ("--per_device_train_batch_size 0", "`per_device_train_batch_size` must"),
        ("--eval_steps 0", "`eval_steps` must be"),
    ],
)
def test_refuses_in_one_sentence(run, capsys, flags, words):
    status = run(flags)
    shown = capsys.readouterr().err
    assert status == 2
    assert words in shown
    assert shown.count("\n") == 1
    assert "Traceback" not in shown


def test_refuses_to_write_over_a_run(run, capsys, tmp_path):
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.parent.mkdir()
    metrics.write_text("precious")
    assert run() == 2
    assert "`output_dir` must not hold a run yet" in capsys.readouterr().err
    assert metrics.read_text() == "precious"


def test_refuses_a_folder_that_cannot_be_made(run, capsys, text):
    assert run(f"--output_dir {text}") == 2
    assert "`output_dir` must be a folder" in capsys.readouterr().err


def test_an_unknown_flag_names_the_nearest(run, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("--learning_rat 1")
    assert stopped.value.code == 2
    assert "--learning_rate" in capsys.readouterr().err
