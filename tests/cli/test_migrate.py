"""`jaxopt-tf migrate` from and to checkpoint folders of Transformers' Trainer."""

import dataclasses
import functools
import json
import shutil
import sys
import warnings

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxopt_tf._checks import ArgumentError
from jaxopt_tf.cli import main
from jaxopt_tf.jobs import (
    export_run,
    first_run_state,
    import_run,
    read_run,
    write_run,
)
from jaxopt_tf.optimizers import decay_mask

torch = pytest.importorskip("torch", reason="the folders are torch's")
transformers = pytest.importorskip("transformers", reason="the folders are Trainer's")

pytestmark = [
    pytest.mark.promotion_of_others,  # flax's layers
    pytest.mark.usefixtures("compiled_once", "compiled_quickly"),
]

MAX_STEPS = 6
MODEL = "model.safetensors"
SIZES = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 16, "vocab_size": 256}
NO_DROPOUT = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
TEXT = "the quick brown fox jumps over the lazy dog\n" * 60


def trainer(folder, **arguments):
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**SIZES, **NO_DROPOUT, bos_token_id=0, eos_token_id=0)
    )
    tokens = torch.tensor(list(TEXT.encode()[:1536])).reshape(-1, 16)
    made = transformers.Trainer(
        model,
        transformers.TrainingArguments(
            str(folder),
            **{
                "max_steps": MAX_STEPS,
                "save_steps": 3,
                "logging_steps": 1,
                "per_device_train_batch_size": 4,
                "learning_rate": 1e-2,
                "lr_scheduler_type": "cosine",
                "warmup_steps": 1,
                "weight_decay": 0.1,
                "report_to": [],
                "disable_tqdm": True,
                "use_cpu": True,
                **arguments,
            },
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in tokens],
        eval_dataset=[{"input_ids": row, "labels": row} for row in tokens[:4]],
    )
    made.remove_callback(transformers.PrinterCallback)
    return made


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Returns a checkpoint of Trainer's with an optimizer, halfway."""

    @functools.cache
    def trained(optim):
        folder = tmp_path_factory.mktemp("trainer")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer(folder, optim=optim).train()
        return folder / "checkpoint-3"

    return trained


@pytest.fixture(scope="module", params=["adamw_torch_fused", "adafactor"])
def theirs(request, trained):
    """A checkpoint of each optimizer, for what depends on it."""
    return trained(request.param)


@pytest.fixture(scope="module")
def adamw(trained):
    """A checkpoint for what does not depend on the optimizer."""
    return trained("adamw_torch_fused")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def migrated(theirs, tmp_path, text):
    run = tmp_path / "run"
    flags = ["--text", str(text), "--eval_steps", "2", "--save_steps", "2"]
    assert main(["migrate", str(theirs), str(run), *flags]) == 0
    return run


def changed(theirs, tmp_path, name, change):
    folder = tmp_path / "checkpoint-3"
    shutil.copytree(theirs, folder)
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | change))
    return folder


def tensors(folder):
    found = load_file(folder / MODEL)
    saved = torch.load(folder / "optimizer.pt", weights_only=True)
    for index, entries in saved["state"].items():
        for name, value in entries.items():
            if name != "RMS":  # torch computes it anew
                found[f"{index}.{name}"] = np.asarray(value)
    return found


def test_imported_trainer_run_resumes(theirs, tmp_path, text, capsys):
    run = migrated(theirs, tmp_path, text)
    assert "at step 3; to resume it:" in capsys.readouterr().out
    command = [
        "train",
        "--config",
        str(run / "settings.json"),
        "--output_dir",
        str(run),
    ]
    assert main(command) == 0
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    steps = [record["step"] for record in records if "loss" in record]
    assert steps == [4, 5, 6]
    assert (run / "checkpoint-6").exists()


def test_import_and_export_round_trip(theirs, tmp_path, text):
    run = migrated(theirs, tmp_path, text)
    back = tmp_path / "back"
    assert main(["migrate", str(run), str(back)]) == 0
    before, after = tensors(theirs), tensors(back)
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    schedules, optimizers = (
        [torch.load(f / name, weights_only=True) for f in (theirs, back)]
        for name in ("scheduler.pt", "optimizer.pt")
    )
    assert schedules[0] == schedules[1]
    groups = [optimizer["param_groups"] for optimizer in optimizers]
    for group in groups[1]:
        del group["param_names"]
    assert groups[0] == groups[1]  # Trainer's kernel, `fused`, too


def test_a_run_goes_back_into_the_version_that_it_came_from(adamw, tmp_path, text):
    old = changed(adamw, tmp_path, "trainer_state.json", {})
    state = json.loads((old / "trainer_state.json").read_text())
    del state["best_global_step"]  # until 4.49
    (old / "trainer_state.json").write_text(json.dumps(state))
    run, back = migrated(old, tmp_path, text), tmp_path / "back"
    assert main(["migrate", str(run), str(back), "--like", str(old)]) == 0
    found = json.loads((back / "trainer_state.json").read_text())
    assert found.keys() == state.keys()
    assert found["eval_steps"] == 2
    assert found["log_history"] == state["log_history"] != []
    assert (back / "training_args.bin").is_file()


def test_a_run_is_imported_and_exported_by_functions(adamw, tmp_path, text):
    out, back = tmp_path / "run", tmp_path / "back"
    imported = import_run(adamw, out, settings={"text": [str(text)], "save_steps": 2})
    assert imported.config.job.output_dir == out
    assert imported.config.job.save_steps == 2
    assert imported.config.recipe.learning_rate == 1e-2
    assert read_run(out).recipe == imported.config.recipe
    assert (imported.step, imported.unused_tensors) == (3, ())
    assert {"learning_rate", "logging_steps"} <= set(imported.arguments.mapped)
    assert "save_steps" not in imported.arguments.mapped
    assert "use_cpu" in imported.arguments.ignored
    assert imported.arguments.unread == ()
    exported = export_run(out, back, like=adamw)
    assert (exported.folder, exported.step) == (back, 3)
    with pytest.raises(ValueError, match="`out` must be a new folder, got '.*back'"):
        export_run(out, back)
    with pytest.raises(ValueError, match="`out` must be a new folder, got '.*back'"):
        import_run(adamw, back)


def test_without_torch_one_sentence_says_how_to_install_it(
    adamw, tmp_path, text, capsys, monkeypatch
):
    run = migrated(adamw, tmp_path, text)
    capsys.readouterr()
    for name in ("torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    for source in (adamw, run):
        assert main(["migrate", str(source), str(tmp_path / "new")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert error.endswith('Install it with `pip install -e ".[transformers]"`.\n')
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--max_steps", "3"], "must have no flag other than `--like CHECKPOINT`"),
        (["--like"], "must have no flag other than `--like CHECKPOINT`"),
        (["--like", "nowhere"], "`--like` must contain config.json, got 'nowhere'"),
    ],
)
def test_export_rejects_flags_of_import(flags, part, tmp_path, text, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "SHA256SUMS").write_text("")
    out = str(tmp_path / "out")
    assert main(["migrate", str(tmp_path / "run"), out, *flags]) == 2
    assert part in capsys.readouterr().err


def test_the_schedule_stays_behind_by_the_updates_that_were_skipped(
    adamw, tmp_path, text
):
    run = read_run(migrated(adamw, tmp_path, text))
    state = dataclasses.replace(run.run_state.state, step=run.run_state.state.step + 1)
    skipped = run.run_state._replace(state=state)
    job = dataclasses.replace(run.job, output_dir=tmp_path / "skipped")
    write_run(run._replace(job=job, run_state=skipped))
    assert main(["migrate", str(job.output_dir), str(tmp_path / "out")]) == 0
    schedules = [
        torch.load(f / "scheduler.pt", weights_only=True)
        for f in (adamw, tmp_path / "out")
    ]
    assert schedules[0] == schedules[1]
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["global_step"] == 4


def test_export_rejects_rate_groups(adamw, tmp_path, text, capsys):
    run = read_run(migrated(adamw, tmp_path, text))
    groups = [{"pattern": "wte", "factor": 0.5}]
    recipe = dataclasses.replace(run.recipe, rate_groups=groups)
    start = first_run_state(recipe, run.model, run.run_state.state.params)
    job = dataclasses.replace(run.job, output_dir=tmp_path / "groups")
    write_run(run._replace(recipe=recipe, job=job, run_state=start))
    assert main(["migrate", str(job.output_dir), str(tmp_path / "out")]) == 2
    assert "must have no `--rate_groups`" in (error := capsys.readouterr().err)
    assert error.endswith(" A run with it cannot be exported.\n")


@pytest.mark.filterwarnings("ignore")  # of torch and Trainer
def test_exported_run_resumes_in_trainer(tmp_path, text):
    run, out = tmp_path / "run", tmp_path / "trainer" / "checkpoint-3"
    out.parent.mkdir()
    sizes = "--n_layer 1 --n_head 2 --n_embd 16 --block_size 16 --save_steps 3"
    numbers = "--max_steps 6 --warmup_steps 1 --per_device_train_batch_size 4"
    # Layers apart are in `test_import_and_export_round_trip`.
    flags = f"{sizes} {numbers} --logging_steps 1 --scan_layers"
    command = f"train --text {text} --output_dir {run} {flags}"
    assert main(command.split()) == 0
    assert main(["migrate", str(run / "checkpoint-3"), str(out)]) == 0
    ours = load_file(out / "model.safetensors")
    resumed = trainer(
        out.parent,
        learning_rate=3e-3,
        lr_scheduler_type="linear",
        adam_beta2=0.97,
    )
    resumed.train(resume_from_checkpoint=str(out))
    history = resumed.state.log_history
    rates = [entry["learning_rate"] for entry in history if "loss" in entry]
    np.testing.assert_allclose(rates[3:], [1.8e-3, 1.2e-3, 0.6e-3])
    # The log of the first three steps is that of the run.
    assert [entry["step"] for entry in history if "loss" in entry] == [*range(1, 7)]
    log = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    losses = [entry["loss"] for entry in log if "loss" in entry]
    found = [entry["loss"] for entry in history if "loss" in entry]
    np.testing.assert_allclose(found[:3], losses[:3], rtol=1e-6)
    for name, parameter in resumed.model.named_parameters():
        moved = np.abs(parameter.detach().numpy() - ours[name]).max()
        assert 0 < moved < 0.1, name


def test_the_default_rule_leaves_out_what_trainer_does_in_a_gpt2(adamw):
    from jaxopt_tf.interop import match_names, torch_model_from_config
    from jaxopt_tf.models import GPT2Config, make_loss_fn

    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, block_size=16)
    params, _ = make_loss_fn(config, 0)
    names = match_names(params, torch_model_from_config(adamw))
    by_type = decay_mask(params, rule="transformers_v5", layer_norms=names.layer_norms)
    assert decay_mask(params) == by_type


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "bert"}, "`FOLDER` must contain a model of gpt2, llama"),
        ({"activation_function": "relu", "n_inner": 8}, "`n_inner` 8: it must be None"),
    ],
)
def test_refuses_another_model(adamw, tmp_path, capsys, monkeypatch, change, words):
    # With torchax, other architectures are trained, too.
    monkeypatch.setattr("jaxopt_tf.models._model.has_torchax", lambda: False)
    folder = changed(adamw, tmp_path, "config.json", change)
    assert main(["migrate", str(folder), str(tmp_path / "run")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_refuses_folders_that_are_neither_or_are_there(adamw, tmp_path, capsys):
    assert main(["migrate", str(tmp_path), str(tmp_path / "run")]) == 2
    assert "`FOLDER` must be a Trainer's" in capsys.readouterr().err
    assert main(["migrate", str(adamw), str(tmp_path)]) == 2
    assert "`OUT` must be a new folder" in capsys.readouterr().err
    assert main(["migrate", str(adamw)]) == 2
    assert "must be given two folders" in capsys.readouterr().err


def test_names_the_file_that_is_missing(adamw, tmp_path, capsys):
    folder = tmp_path / "checkpoint-3"
    shutil.copytree(adamw, folder)
    (folder / "training_args.bin").unlink()
    assert main(["migrate", str(folder), str(tmp_path / "run")]) == 2
    assert "training_args.bin" in capsys.readouterr().err
    (folder / "config.json").unlink()
    shutil.copy(adamw / "training_args.bin", folder)
    assert main(["migrate", str(folder), str(tmp_path / "run")]) == 2
    assert "config.json" in capsys.readouterr().err


def test_reports_what_was_read_and_taken_over(adamw, tmp_path, text, capsys):
    migrated(adamw, tmp_path, text)
    said = capsys.readouterr().out
    num_params = sum(leaf.size for leaf in load_file(adamw / MODEL).values())
    assert f"{num_params:,} parameters, at step 3" in said
    assert "imported: " in said
    assert "learning_rate" in said


def test_import_reports_unknown_and_different_settings(adamw, tmp_path, text, capsys):
    run = migrated(adamw, tmp_path, text)
    said = capsys.readouterr().out
    assert said.count("another order of parameters of equal shape cannot be") == 1
    assert said.count("Trainer 5.23 divides the loss of a GPT-2 by the number") == 1
    assert main(["migrate", str(run), str(tmp_path / "back")]) == 0
    # With the names in the file it is told; the loss is otherwise again.
    shutil.copy(adamw / "training_args.bin", tmp_path / "back")
    flags = ["--text", str(text)]
    assert main(["migrate", str(tmp_path / "back"), str(tmp_path / "n"), *flags]) == 0
    said = capsys.readouterr().out
    assert "cannot be detected" not in said
    assert said.count("Trainer 5.23 divides") == 1


def test_reports_where_precision_was_another(adamw, tmp_path, text, capsys):
    folder = changed(adamw, tmp_path, "config.json", {"dtype": "bfloat16"})
    migrated(folder, tmp_path, text)
    assert "float32 in the run and bfloat16 in torch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--output_dir other", "`--output_dir` must be the new folder"),
        (
            "--lr_scheduler_type greedy --warmup_steps 0 --eval_steps 2",
            "`--lr_scheduler_type` must not change",
        ),
        ("--text absent.txt", "'absent.txt' does not exist"),
    ],
)
def test_leaves_nothing_where_a_flag_is_refused(
    adamw, tmp_path, capsys, monkeypatch, flags, words
):
    monkeypatch.chdir(tmp_path)
    assert main(["migrate", str(adamw), "run", *flags.split()]) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", "{", "must hold a readable config.json"),
        ("trainer_state.json", "", "must hold a readable trainer_state.json"),
        ("trainer_state.json", "3", "must hold a readable trainer_state.json"),
        ("trainer_state.json", "{}", "must contain 'max_steps'"),
    ],
)
def test_names_a_file_that_is_damaged(adamw, tmp_path, capsys, name, content, words):
    folder = changed(adamw, tmp_path, name, {})
    (folder / name).write_text(content)
    assert main(["migrate", str(folder), str(tmp_path / "run")]) == 2
    assert words in capsys.readouterr().err


def test_asks_for_one_checkpoint_of_a_trainers_folder(adamw, tmp_path, capsys):
    assert main(["migrate", str(adamw.parent), str(tmp_path / "run")]) == 2
    assert "Pass one of its checkpoint-<step>" in capsys.readouterr().err


PLATEAU = {
    "lr_scheduler_type": "reduce_lr_on_plateau",
    "lr_scheduler_kwargs": {"factor": 0.5, "patience": 0, "threshold": 1.0},
    "warmup_steps": 0,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_steps": 4,
}


def callbacks(patience):
    args = {"early_stopping_patience": patience, "early_stopping_threshold": 0.5}
    return {"stateful_callbacks": {"EarlyStoppingCallback": {"args": args}}}


@pytest.fixture(scope="module")
def driven(tmp_path_factory):
    """A checkpoint of a run whose rate follows the evaluation loss."""
    folder = tmp_path_factory.mktemp("driven")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(folder, **PLATEAU).train()
    return folder / "checkpoint-4"


@pytest.fixture
def arguments(driven, tmp_path):
    """A file of the checkpoint's TrainingArguments with some of them changed."""

    def arguments(**changes):
        given = torch.load(driven / "training_args.bin", weights_only=False).to_dict()
        path = tmp_path / "args.json"
        path.write_text(json.dumps({**given, **changes}))
        return ["--training_args", str(path)]

    return arguments


@pytest.mark.parametrize("flags", ["", "--eval_steps 3"])
def test_a_metric_drives_the_rate_as_often_as_before(
    driven, tmp_path, text, capsys, flags
):
    command = ["migrate", str(driven), str(tmp_path / "run"), "--text", str(text)]
    assert main([*command, *flags.split()]) == 0
    said = capsys.readouterr().out
    run = read_run(tmp_path / "run")
    assert run.job.eval_steps == (3 if flags else 2)
    assert (run.job.save_steps, run.job.logging_steps) == (4, 1)
    without = said.partition("without effect: ")[2].partition("\n")[0]
    assert "eval_steps" not in without.split(", ")
    assert ("eval_steps" in said.partition("imported: ")[2]) == (not flags)
    assert "not Trainer's `eval_dataset`: their loss drives the schedule" in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metric_for_best_model": "accuracy"}, "`metric_for_best_model` 'accuracy'"),
        ({"eval_delay": 7}, "`eval_delay` 7: the first evaluation is at step 6"),
        ({"bf16_full_eval": True}, "`bf16_full_eval` True"),
        ({"eval_strategy": "no"}, "`--eval_strategy` 'no': the evaluation loss"),
        (
            {"load_best_model_at_end": True, "greater_is_better": True},
            "`greater_is_better` True: a lower evaluation loss is better",
        ),
    ],
    ids=str,
)
def test_what_decides_an_evaluation_is_refused_and_can_be_left_out(
    driven, arguments, tmp_path, text, capsys, changes, words
):
    run = tmp_path / "run"
    command = ["migrate", str(driven), str(run), "--text", str(text)]
    command += arguments(**changes)
    assert main(command) == 2
    assert words in capsys.readouterr().err
    assert not run.exists()
    (name,) = {*changes} - {"load_best_model_at_end"}
    remedy = ["--eval_steps", "2"]
    if name != "eval_strategy":
        remedy = ["--ignore_fields", name]
    assert main([*command, *remedy]) == 0
    assert read_run(run).job.eval_steps == 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"eval_delay": 6}, 2),  # it is over when the next evaluation comes
        ({"greater_is_better": True}, 2),  # the schedule does not read it
        ({"eval_steps": 0.5}, 3),  # of 6
        ({"eval_steps": None, "logging_steps": 3}, 3),
        ({"eval_strategy": "epoch", "max_steps": -1, "num_train_epochs": 2.0}, 3),
    ],
    ids=str,
)
def test_what_decides_an_evaluation_is_carried_over(
    driven, arguments, tmp_path, text, changes, expected
):
    if "num_train_epochs" in changes:  # the state's own count of epochs
        driven = changed(driven, tmp_path, "trainer_state.json", {"epoch": 4 / 3})
        shutil.move(driven, tmp_path / "checkpoint-4")
        driven = tmp_path / "checkpoint-4"
    command = ["migrate", str(driven), str(tmp_path / "run"), "--text", str(text)]
    assert main([*command, *arguments(**changes)]) == 0
    assert read_run(tmp_path / "run").job.eval_steps == expected


def test_an_epoch_of_unknown_length_needs_the_steps(
    driven, arguments, tmp_path, text, capsys
):
    command = ["migrate", str(driven), str(tmp_path / "run"), "--text", str(text)]
    assert main([*command, *arguments(eval_strategy="epoch")]) == 2
    assert "the evaluation interval is unknown; give `--eval_steps`" in (
        capsys.readouterr().err
    )


def test_the_patience_of_a_callback_is_carried_over(driven, tmp_path, text, capsys):
    folder = changed(driven, tmp_path, "trainer_state.json", callbacks(3))
    command = ["migrate", str(folder), str(tmp_path / "run"), "--text", str(text)]
    assert main(command) == 0
    job = read_run(tmp_path / "run").job
    assert (job.early_stopping_patience, job.early_stopping_threshold) == (3, 0.5)
    assert "`early_stopping_patience` 3: from trainer_state.json" in (
        capsys.readouterr().out
    )


def test_every_remedy_is_a_valid_command_line(driven, tmp_path, text, capsys):
    folder = tmp_path / "checkpoint-4"
    shutil.copytree(driven, folder)
    (folder / "scheduler.pt").unlink()
    command = ["migrate", str(folder), str(tmp_path / "run"), "--text", str(text)]
    assert main(command) == 2
    assert "add 'scheduler.pt' to `--without`" in capsys.readouterr().err
    assert main([*command, "--without", "scheduler.pt"]) == 0


def test_groups_and_devices_can_be_typed(driven, tmp_path, text, capsys):
    saved = torch.load(driven / "optimizer.pt", weights_only=True)
    model = transformers.GPT2LMHeadModel.from_pretrained(driven)
    names = [name for name, _ in model.named_parameters()]
    is_decayed = [n.endswith("weight") and "ln_" not in n for n in names]
    groups = [[n for n, d in zip(names, is_decayed, strict=True) if d == wanted]
              for wanted in (True, False)]  # fmt: skip
    assert [len(g["params"]) for g in saved["param_groups"]] == list(map(len, groups))
    given = torch.load(driven / "training_args.bin", weights_only=False).to_dict()
    (tmp_path / "args.json").write_text(json.dumps({**given, "_n_gpu": 2}))
    command = ["migrate", str(driven), str(tmp_path / "run"), "--text", str(text)]
    command += ["--training_args", str(tmp_path / "args.json")]
    assert main(command) == 2
    assert "the run used more than one device; pass `--num_devices`" in (
        capsys.readouterr().err
    )
    command += ["--num_devices", "2", "--groups", json.dumps(groups)]
    assert main(command) == 0
    assert read_run(tmp_path / "run").recipe.gradient_accumulation_steps == 2
    shutil.rmtree(tmp_path / "run")
    assert main([*command, "--groups", json.dumps(groups[::-1])]) == 2
    assert "groups" in capsys.readouterr().err


def test_groups_of_a_script_are_refused_or_taken_from_the_file(
    adamw, tmp_path, text, capsys
):
    folder = changed(adamw, tmp_path, "config.json", {})
    saved = torch.load(folder / "optimizer.pt", weights_only=True)
    for group in saved["param_groups"]:
        group["weight_decay"] = 0.1
    torch.save(saved, folder / "optimizer.pt")
    run, flags = tmp_path / "run", ["--text", str(text)]
    assert main(["migrate", str(folder), str(run), *flags]) == 2
    assert "are decayed by the file only" in (err := capsys.readouterr().err)
    assert "Pass `--decay_groups file`" in err
    wrong = ["--decay_groups", "ours"]
    assert main(["migrate", str(folder), str(run), *flags, *wrong]) == 2
    assert (
        "`--decay_groups` must be one of 'file', got 'ours'" in capsys.readouterr().err
    )
    remedy = ["--decay_groups", "file"]
    assert main(["migrate", str(folder), str(run), *flags, *remedy]) == 0
    assert json.loads((run / "settings.json").read_text())["decay_rule"] == "all"
    assert read_run(run)[0].decay_rule == "all"


def test_remedies_of_interop_are_replaced_by_ones_of_migrate(
    adamw, tmp_path, text, capsys
):
    folder = changed(adamw, tmp_path, "config.json", {"architectures": ["Other"]})
    command = ["migrate", str(folder), str(tmp_path / "run"), "--text", str(text)]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert (
        "`FOLDER` must contain a config.json that has a class of Transformers" in error
    )
    assert "config.json must name GPT2LMHeadModel, LlamaForCausalLM, " in error
    assert error.endswith("SmolLM3ForCausalLM under `architectures`.\n")
    with pytest.raises(
        ArgumentError, match="`folder` must contain a config.json.*name GPT2LMHead"
    ) as e:
        import_run(folder, tmp_path / "run", settings={"text": [str(text)]})
    assert (e.value.argument, isinstance(e.value, ValueError)) == ("folder", True)
    shutil.copy(adamw / "config.json", folder)
    saved = torch.load(folder / "optimizer.pt", weights_only=True)
    saved["param_groups"][0]["eps"] = 1e-3
    torch.save(saved, folder / "optimizer.pt")
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "optimizer.pt: `--training_args` must have the settings of the file" in error
    assert error.endswith(
        "Pass the TrainingArguments that the run was started with as "
        "`--training_args`.\n"
    )
