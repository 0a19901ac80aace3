"""`jaxopt-tf train`: parsing of flags, and whole runs on a short text."""

import dataclasses
import inspect
import json
import os
import re
import shutil
import signal
import threading
import time
import typing
from pathlib import Path

import pytest

from jaxopt_tf.cli import _train, main
from jaxopt_tf.cli._run_flags import RunFlags, parse
from jaxopt_tf.cli._train import Train
from jaxopt_tf.jobs import Job, RunResult
from jaxopt_tf.models import GPT2_PRESETS, GPT2Config, gpt2_preset
from jaxopt_tf.recipes import ParamGroup, Recipe

pytestmark = [
    pytest.mark.promotion_of_others,  # flax's layers
    pytest.mark.usefixtures("compiled_once", "compiled_quickly"),
]

DEFAULT = Recipe(
    max_steps=2_000,
    learning_rate=3e-3,
    lr_scheduler_type="linear",
    warmup_steps=0.05,
    weight_decay=0.1,
    adam_beta2=0.97,
)


def parsed(line):
    return records(line.split())


def records(args):
    run = parse(Train, args).run
    return run.recipe, run.model, run.job


def test_without_flags_it_is_the_default_job():
    assert parsed("") == (DEFAULT, GPT2Config(), Job())


def test_default_warmup_shrinks_with_max_steps():
    recipe, *_ = parsed("--max_steps 20")
    assert recipe.num_warmup_steps == 1


def test_each_flag_reaches_its_record():
    recipe, model, job = parsed(
        "--learning_rate 1e-2 --gradient_accumulation_steps 2 --n_layer 2 "
        "--gradient_checkpointing --text a b --eval_steps 1e2 --no_bf16"
    )
    assert recipe == dataclasses.replace(
        DEFAULT, learning_rate=1e-2, gradient_accumulation_steps=2
    )
    assert model == GPT2Config(n_layer=2, gradient_checkpointing=True)
    assert job == Job(text=("a", "b"), eval_steps=100)


def test_a_preset_is_changed_by_the_flags_beside_it():
    assert parsed("--preset gpt2")[1] == gpt2_preset("gpt2")
    assert parsed("--n_layer 2 --preset gpt2")[1] == gpt2_preset("gpt2", n_layer=2)


def test_the_help_lists_all_presets():
    annotation = inspect.get_annotations(RunFlags)["preset"]
    assert typing.get_args(annotation) == tuple(GPT2_PRESETS)


def test_a_typed_preset_wins_over_the_sizes_in_a_file(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text('{"n_layer": 2, "resid_pdrop": 0.1, "preset": "mini"}')
    assert parsed(f"--config {path}")[1] == gpt2_preset(
        "mini", n_layer=2, resid_pdrop=0.1
    )
    assert parsed(f"--config {path} --preset gpt2")[1] == gpt2_preset(
        "gpt2", resid_pdrop=0.1
    )


@pytest.mark.parametrize("name", ["reduce_lr_on_plateau", "greedy"])
def test_metric_driven_schedule_has_no_default_warmup(name):
    assert parsed(f"--lr_scheduler_type {name}")[0].warmup_steps == 0
    with pytest.raises(ValueError, match="`warmup_steps`"):
        parsed(f"--lr_scheduler_type {name} --warmup_steps 5")


def test_pretokenized_files_require_vocab_size():
    with pytest.raises(ValueError, match="`vocab_size` must be given with pretok"):
        parsed("--text tokens.npy")
    assert parsed("--text tokens.npy --vocab_size 256")[1].vocab_size == 256
    assert parsed("--text tokens.bin --preset gpt2")[1].vocab_size == 50_257


def test_all_conflicts_are_in_one_message():
    with pytest.raises(ValueError, match="`n_embd`") as refused:
        parsed(
            "--n_embd 15 --optim grokadamw --text a.npy b.txt --load_best_model_at_end "
            "--early_stopping_threshold 1 --eos_token_id 3"
        )
    named = re.findall(r"^ *`(\w+)` must", str(refused.value), re.MULTILINE)
    assert named == [
        "optim",
        "n_embd",
        "text",
        "early_stopping_threshold",
        "vocab_size",
    ]


SIZES = "--n_layer 1 --n_head 2 --n_embd 16 --block_size 16"
RUN = f"train {SIZES} --per_device_train_batch_size 8 --max_steps 20 --warmup_steps 2"


@pytest.fixture
def run(tmp_path, text):
    """Runs the command with further flags; the exit status."""

    def run(flags=""):
        args = f"{RUN} --text {text} --output_dir {tmp_path / 'run'} {flags}"
        return main(args.split())

    return run


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Collects the configurations of runs, which are not trained."""
    configs = []

    def pretrain(config, *, command_line):
        configs.append(config)
        return RunResult(0.0, 0.0, {}, tmp_path, stopped_by=None)

    with monkeypatch.context() as patch:
        patch.setattr(_train, "pretrain", pretrain)
        yield configs


def column(output_dir, name):
    """Returns the values of `name` in the log of the run, in order."""
    lines = (output_dir / "metrics.jsonl").read_text().splitlines()
    return [record[name] for record in map(json.loads, lines) if name in record]


@pytest.mark.usefixtures("with_picture")
def test_train_lowers_the_loss_and_prints_its_files(run, tmp_path, text, capsys):
    flags = "--eval_steps 8 --save_steps 10"
    assert run(flags) == 0
    folder = tmp_path / "run"
    first, *_, last = losses = column(folder, "eval_loss")
    assert len(losses) == 4
    assert first == pytest.approx(5.55, abs=0.1)
    assert last < first - 0.5
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == (
        f"evaluation loss {last:.3f} nats per byte (best {last:.3f} at step 20; "
        f"{first:.2f} before training)"
    )
    assert str(folder / "curves.png") in shown
    assert str(folder / "metrics.jsonl") in shown

    # What it wrote is the command line again.
    typed = f"{RUN} --text {text} --output_dir {folder} {flags}".split()
    config = ["--config", str(folder / "settings.json")]
    assert parse(Train, config).run == parse(Train, typed[1:]).run
    (start,) = map(json.loads, (folder / "starts.jsonl").read_text().splitlines())
    assert start["command_line"] == ["jaxopt-tf", *typed]
    check_that_it_resumes(folder, capsys)


def check_that_it_resumes(folder, capsys):
    """Checks that the folder alone resumes with the settings of its run."""
    losses, settings = column(folder, "loss"), (folder / "settings.json").read_text()
    shutil.rmtree(folder / "checkpoint-20")
    capsys.readouterr()
    assert main(["train", "--output_dir", str(folder)]) == 0
    assert "resumed at step 10" in capsys.readouterr().out
    assert column(folder, "loss") == losses
    assert (folder / "settings.json").read_text() == settings

    # What is typed beside it counts, and contradictions are refused by name.
    flags = "--save_steps 3 --learning_rate 1e-2 --n_layer 2"
    assert main(f"train --output_dir {folder} {flags}".split()) == 2
    refused = capsys.readouterr().err
    for change in (
        "`--learning_rate` changed from 0.003 to 0.01",
        "`--n_layer` changed from 1 to 2",
        "--intended_changes learning_rate n_layer",
        str(folder / "checkpoint-20"),
    ):
        assert change in refused
    assert "save_steps" not in refused
    assert "max_steps" not in refused


@pytest.mark.parametrize(
    ("saved", "flags", "mesh"),
    [
        (None, "", None),
        ("data=8", "", "data=8"),
        # Of machines with fewer devices; here are eight.
        ("data=2", "", "data=8"),
        ("fsdp=2,tensor=2", "", "fsdp=4,tensor=2"),
        ("data=2,fsdp=1", "", "data=2,fsdp=4"),
        ("tensor=2", "", None),
        ("data=2", "--mesh fsdp=8", "fsdp=8"),
    ],
)
def test_the_mesh_of_a_run_is_kept_where_it_fits(
    tmp_path, capsys, started, saved, flags, mesh
):
    config = parse(Train, []).run.to_dict()
    (tmp_path / "settings.json").write_text(json.dumps(config | {"mesh": saved}))
    assert main(f"train --output_dir {tmp_path} {flags}".split()) == 0
    assert started[0].job.mesh == mesh
    then = "it is ignored" if mesh is None else f"`--mesh {mesh}` is used"
    noted = f"`--mesh {saved}` of the run does not fit the 8 devices here; {then}"
    has_note = saved not in (None, "data=8") and not flags
    assert (noted in capsys.readouterr().err) == has_note


def test_the_mesh_of_a_run_divides_its_batch(tmp_path, capsys, started):
    # 4 sequences, as the last start recorded.
    config = parse(Train, []).run.to_dict() | {"mesh": "fsdp=2"}
    (tmp_path / "settings.json").write_text(json.dumps(config))
    (tmp_path / "starts.jsonl").write_text(json.dumps({"sequences": 4}) + "\n")
    assert main(["train", "--output_dir", str(tmp_path)]) == 0
    assert started[0].job.mesh is None
    assert "it is ignored" in capsys.readouterr().err


def test_a_signal_ends_it_with_the_status_of_the_signal(run, tmp_path, capsys):
    log = tmp_path / "run" / "metrics.jsonl"

    def stop_once_it_runs():
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if log.exists() and '"learning_rate"' in log.read_text():
                os.kill(os.getpid(), signal.SIGTERM)
                return
            time.sleep(0.05)

    health_monitor = threading.Thread(target=stop_once_it_runs)
    health_monitor.start()
    status = run("--max_steps 100000 --optim sgd")
    health_monitor.join()
    assert status == 128 + signal.SIGTERM
    *_, how, line = capsys.readouterr().out.splitlines()
    assert "stopped by SIGTERM after step" in how
    assert line == f"jaxopt-tf train --output_dir {tmp_path / 'run'}"


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
        ("--warmup_steps 21", "`--warmup_steps` must be at most `--max_steps`"),
        ("--max_steps 0 --warmup_steps 0", "`--max_steps` must be from 1"),
        ("--optim adamw_torhc", "Did you mean 'adamw_torch'"),
        ("--lr_scheduler_type lineal", "Did you mean 'linear'"),
        ("--lr_scheduler_kwargs [1]", "`--lr_scheduler_kwargs` must be a mapping"),
        ("--learning_rate nan", "`--learning_rate` must be finite"),
        ("--n_embd 15", "`--n_embd` must be a multiple of `--n_head`"),
        ("--preset gtp2", "Did you mean 'gpt2'"),
        ("--on_non_finite skpi", "Did you mean 'skip'"),
        ("--per_device_train_batch_size 0", "`--per_device_train_batch_size` must"),
        ("--eval_steps 0", "`--eval_steps` must be"),
        ("--learning_rat 1", "Did you mean --learning_rate?"),
        ("--block_size 4000", "`--text` must have at least"),
        ("--text missing.txt", "`--text` must be files or folders, but 'missing.txt'"),
    ],
)
def test_refuses_in_one_sentence(run, capsys, flags, words):
    status = run(flags)
    shown = capsys.readouterr().err
    assert status == 2
    assert shown.startswith("jaxopt-tf: ")
    assert words in shown
    assert shown.count("\n") == 1
    assert "Traceback" not in shown


def test_refuses_a_folder_that_cannot_be_made(run, capsys, text):
    assert run(f"--output_dir {text}") == 2
    shown = capsys.readouterr().err
    assert "must be a writable folder" in shown
    assert str(text) in shown


def test_notes_what_a_file_has_that_is_without_effect(run, capsys, tmp_path):
    path = tmp_path / "training_args.json"
    path.write_text('{"report_to": ["wandb"], "optim": "adamw_torch_fused"}')
    assert run(f"--config {path} --n_embd 15") == 2
    note, refusal = capsys.readouterr().err.splitlines()
    assert note.startswith(f"jaxopt-tf: {path}: without effect: report_to; `optim`")
    assert "`--n_embd`" in refusal


def test_a_file_of_transformers_runs_with_its_numbers(tmp_path, text):
    """The old file is all defaults: Transformers' own, not those of this command."""
    path = Path(__file__).parents[1] / "files/training_arguments_4.46.json"
    recipe, *_ = parsed(f"--config {path} --max_steps 10 --text {text}")
    assert recipe == Recipe(max_steps=10)


@pytest.mark.parametrize("args", ["momentum=0.9,nesterov=true", '{"momentum": 0.9}'])
def test_an_optimizer_takes_its_arguments_as_transformers_writes_them(args):
    recipe, *_ = records(["--optim", "sgd", "--optim_args", args])
    assert dict(recipe.optim_args)["momentum"] == 0.9


def test_rate_groups_are_json():
    recipe, *_ = records(["--rate_groups", '[{"pattern": "wte", "factor": 0.1}]'])
    assert recipe.rate_groups == (ParamGroup(pattern="wte", factor=0.1),)


def test_a_number_of_steps_wins_over_epochs(run, started, capsys):
    assert run("--max_steps 9 --num_train_epochs 1") == 0
    assert started[0].recipe.max_steps == 9
    said = "`--num_train_epochs 1` is ignored: `--max_steps 9` takes precedence"
    assert said in capsys.readouterr().err


def test_the_steps_of_an_epoch_are_counted_and_recorded(tmp_path, text, capsys):
    folder = tmp_path / "epochs"
    args = RUN.replace("--max_steps 20", "--num_train_epochs 0.5").split()
    args += ["--text", str(text), "--output_dir", str(folder), "--optim", "sgd"]
    args += ["--eval_strategy", "epoch", "--save_steps", "0.5"]
    assert main(args) == 0
    # 2,378 bytes to train on: 148 windows of 16, 19 batches of 8.
    assert "10 steps (0.5 epochs) of 8 x 16 bytes" in capsys.readouterr().out
    settings = json.loads((folder / "settings.json").read_text())
    assert (settings["max_steps"], settings["eval_steps"]) == (10, 19)
    assert settings["save_steps"] == 5
    # The same command line again, and the folder alone: the same run.
    for again in (args, ["train", "--output_dir", str(folder)]):
        assert main(again) == 0
        assert "this run is finished, after step 10 of 10" in capsys.readouterr().out
    assert main([*args, "--num_train_epochs", "1"]) == 2
    assert "`--max_steps` changed from 10 to 19" in capsys.readouterr().err


def test_the_warmup_ratio_of_version_4_is_a_share_of_all_steps():
    recipe, *_ = parsed("--max_steps 200 --warmup_ratio 0.1")
    assert (recipe.warmup_steps, recipe.num_warmup_steps) == (0.1, 20)
    assert parsed("--warmup_ratio 0")[0].num_warmup_steps == 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            "train --warmup_ratio 0.1 --warmup_steps 5",
            "`--warmup_ratio` must be left out with `--warmup_steps`, got 0.1 and 5. "
            "Give one of them.",
        ),
        ("train --warmup_ratio 1.5", "`--warmup_ratio` must be at least 0 and less"),
        ("train --num_train_epochs 0", "`--num_train_epochs` must be finite and great"),
        (
            "train --save_strategy best",
            "`--save_strategy` must be one of 'no'",
        ),
        (
            "doctor --num_train_epochs 3",
            "`--num_train_epochs` must be given as `--max_steps` to this command, "
            "which does not count the steps of an epoch, got 3.",
        ),
        (
            "find-lr --config FILE",
            "`num_train_epochs` must be given as `--max_steps` to this command",
        ),
        ("sweep --num_train_epochs 3", "`jaxopt-tf sweep` does not use it."),
        ("plan --eval_strategy epoch", "`jaxopt-tf plan` does not use it."),
    ],
)
def test_lengths_and_ratios_are_refused_in_one_sentence(tmp_path, capsys, args, words):
    path = tmp_path / "training_args.json"
    path.write_text('{"num_train_epochs": 3.0}')
    assert main(args.replace("FILE", str(path)).split()) == 2
    shown = capsys.readouterr().err
    assert words in shown
    assert shown.count("\n") == 1


def test_an_interval_in_epochs_is_no_concern_of_commands_without_data(capsys):
    assert main(["doctor", "--max_steps", "300", "--eval_strategy", "epoch"]) in (0, 1)
    # `eval_steps`, which is 400 by default, is not compared with 300 steps.
    flags = "--eval_strategy epoch --load_best_model_at_end"
    assert main(f"doctor --max_steps 300 {flags}".split()) in (0, 1)
    assert capsys.readouterr().err == ""


def test_an_interval_beside_an_epoch_is_noted(capsys):
    *_, job = parsed("--eval_strategy epoch --eval_steps 50")
    assert (job.eval_strategy, job.eval_steps) == ("epoch", Job.eval_steps)
    said = "`--eval_steps 50` is ignored: `--eval_strategy epoch` takes precedence"
    assert said in capsys.readouterr().err
