"""Whole small runs: repetition, interruption, resumption, refusals."""

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxopt_tf.checkpoints import find_checkpoints, lock_folder, open_checkpoints
from jaxopt_tf.jobs import (
    Job,
    RunConfig,
    build_setup,
    pretrain,
    read_settings,
    write_settings,
)
from jaxopt_tf.jobs._report import header
from jaxopt_tf.jobs._run_data import training_batches
from jaxopt_tf.jobs._run_folder import open_run
from jaxopt_tf.models import GPT2Config
from jaxopt_tf.recipes import Recipe
from jaxopt_tf.sharding import make_mesh
from jaxopt_tf.training import _evaluation

pytestmark = [
    pytest.mark.promotion_of_others,  # flax's layers
    pytest.mark.usefixtures("compiled_quickly", "compiled_once"),
]

RECIPE = Recipe(
    max_steps=9,
    learning_rate=1e-2,
    warmup_steps=1,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=2,
)
# Compiles in half the time.
DESCENT = dataclasses.replace(RECIPE, optim="sgd", gradient_accumulation_steps=1)
EXPLODES = dataclasses.replace(DESCENT, learning_rate=1e30, max_grad_norm=0)
TINY = GPT2Config(n_layer=1, n_head=2, n_embd=8, block_size=8, resid_pdrop=0.1)


TEXT = "the quick brown fox jumps over the lazy dog\n" * 40


def job_in(folder, **settings):
    (folder / "text.txt").write_text(TEXT)
    return Job(
        text=(folder / "text.txt",),
        output_dir=folder / "run",
        **{"eval_steps": 3, "save_steps": 2, "logging_steps": 1, **settings},
    )


def run(job, recipe=RECIPE, model=TINY, **changes):
    job = dataclasses.replace(job, **changes)
    return pretrain(RunConfig(recipe=recipe, model=model, job=job))


def log_of(folder):
    return (folder / "metrics.jsonl").read_text()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, compiled_quickly, compiled_once):
    """A run that nobody touched, with all its checkpoints: to be read only."""
    job = job_in(tmp_path_factory.mktemp("unbroken"), save_total_limit=None)
    with jax.numpy_dtype_promotion("standard"):
        return run(job)


@pytest.fixture
def job(tmp_path):
    """A job whose folder is new."""
    return job_in(tmp_path)


@pytest.fixture
def broken_off(job, unbroken):
    """A job whose folder holds what there was when this checkpoint was the last."""

    def at(step):
        shutil.copytree(unbroken.folder, job.output_dir)
        for path in find_checkpoints(job.output_dir):
            if int(path.name.removeprefix("checkpoint-")) > step:
                shutil.rmtree(path)
        return job

    return at


def assert_same_run(outcome, expected):
    assert log_of(outcome.folder) == log_of(expected.folder)
    assert outcome.last_loss == expected.last_loss
    assert outcome.first_loss == expected.first_loss
    jax.tree.map(np.testing.assert_array_equal, outcome.params, expected.params)


def test_leaves_a_run_that_people_and_tools_can_read(unbroken):
    folder = unbroken.folder
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        *("settings.json", "starts.jsonl", "metrics.jsonl", "trainer_state.json"),
        *("curves.png", "tensorboard", "checkpoint-8", "checkpoint-9"),
    }
    records = [json.loads(line) for line in log_of(folder).splitlines()]
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 10))
    assert [r["step"] for r in records if "eval_loss" in r] == [0, 3, 6, 9]
    (start,) = (folder / "starts.jsonl").read_text().splitlines()
    assert json.loads(start)["versions"].keys() >= {"jax", "flax", "optax", "python"}
    assert json.loads((folder / "settings.json").read_text())["learning_rate"] == 1e-2


def test_resumes_bit_for_bit(broken_off, unbroken):
    job = broken_off(4)
    assert_same_run(run(job), unbroken)
    *_, start = (job.output_dir / "starts.jsonl").read_text().splitlines()
    assert json.loads(start)["step"] == 4


@pytest.mark.parametrize("is_named", [False, True], ids=["newest", "named"])
def test_verifies_the_arrays_of_a_checkpoint_once(broken_off, monkeypatch, is_named):
    job = broken_off(8)
    named = job.output_dir / "checkpoint-8"
    hashed, file_digest = [], hashlib.file_digest

    def recorded(file, *arguments):
        hashed.append(Path(file.name))
        return file_digest(file, *arguments)

    arrays = [path for path in named.rglob("d/*") if path.is_file()]
    assert arrays
    monkeypatch.setattr(hashlib, "file_digest", recorded)
    run(job, resume_from_checkpoint=named if is_named else None)
    assert {path: hashed.count(path) for path in arrays} == dict.fromkeys(arrays, 1)


def test_restarts_if_killed_before_the_first_checkpoint(broken_off, unbroken):
    job = broken_off(0)
    before = log_of(job.output_dir)
    assert_same_run(run(job), unbroken)
    assert (job.output_dir / "aside-metrics.jsonl").read_text() == before


def contents(folder):
    """Bytes and times of all files of a run but its lock."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in paths
        if path.name != "run.lock"
    }


def test_a_finished_run_is_left_as_it_is(broken_off, unbroken, capsys):
    job = broken_off(9)
    before = contents(job.output_dir)
    assert_same_run(run(job), unbroken)
    assert contents(job.output_dir) == before
    first, *_, best, last = capsys.readouterr().out.splitlines()
    assert first == (
        "this run is finished, after step 9 of 9: there is nothing left to train"
    )
    assert best == f"best    {job.output_dir / 'checkpoint-9'}"
    assert last == (
        f"evaluation loss {unbroken.last_loss:.3f} nats per byte (best "
        f"{unbroken.last_loss:.3f} at step 9; {unbroken.first_loss:.2f} before "
        "training)"
    )


def test_a_finished_run_without_its_log_is_evaluated(broken_off, unbroken):
    job = broken_off(9)
    (job.output_dir / "metrics.jsonl").unlink()
    assert run(job).last_loss == unbroken.last_loss


def test_the_settings_in_its_folder_resume_a_run(broken_off):
    job = broken_off(4)
    settings = read_settings(job.output_dir / "settings.json")
    config = RunConfig.from_dict({**settings, "output_dir": str(job.output_dir)})
    assert config.recipe == RECIPE
    with open_run(config) as opened:
        assert (opened.step, opened.is_finished) == (4, False)


def test_the_first_lines_count_in_the_singular_and_name_skipped_files(job):
    folder = job.text[0].parent / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text(TEXT)
    (folder / "empty.txt").touch()
    recipe = dataclasses.replace(DESCENT, max_steps=1, warmup_steps=1)
    job = dataclasses.replace(job, text=(folder,))
    config = RunConfig(recipe=recipe, model=TINY, job=job)
    with open_run(config) as opened:
        mesh = make_mesh("data=1", jax.devices()[:1])
        sizes = {"block_size": 8, "batch_size": 2, "seed": 0}
        batches = training_batches(
            opened.corpus, job, gradient_accumulation_steps=1, **sizes
        )
        lines = header(config, build_setup(config, mesh), opened, batches)
    shown = "\n".join(lines) + "\n"
    assert f"skipped 1 file: {str(folder / 'empty.txt')!r} (empty)\n" in shown
    for words in ("1 document:", "1 layer,", "1 warmup step)", ", 1 step of 2 x 8"):
        assert words in shown


def test_a_run_without_a_checkpoint_keeps_its_batch_on_other_devices(job):
    job.output_dir.mkdir()
    config = RunConfig(recipe=RECIPE, model=TINY, job=job)
    write_settings(job.output_dir, config.to_dict())
    for sequences, line in ((2, "{}"), (6, '{"step": 0, "sequences": 6}')):
        (job.output_dir / "starts.jsonl").write_text(f'{{"sequences": 9}}\n{line}\n')
        with open_run(config) as opened:
            assert opened.num_sequences == sequences


def test_a_signal_ends_it_after_a_step_with_a_checkpoint(
    job, unbroken, monkeypatch, capsys
):
    asked = itertools.count(1)
    decide = _evaluation.is_patience_exhausted

    def at_the_fifth(progress, selection):  # once before the steps, then after each
        if next(asked) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return decide(progress, selection)

    monkeypatch.setattr(_evaluation, "is_patience_exhausted", at_the_fifth)
    job = dataclasses.replace(job, output_dir=job.output_dir.with_name("a run"))
    stopped = run(job)
    assert stopped.stopped_by == signal.SIGTERM
    assert find_checkpoints(job.output_dir)[-1].name == "checkpoint-4"
    kept = [
        line for line in log_of(unbroken.folder).splitlines() if '"step": 5' in line
    ]
    assert log_of(unbroken.folder).startswith(log_of(job.output_dir))
    assert kept[0] not in log_of(job.output_dir)
    *_, how, line = capsys.readouterr().out.splitlines()
    assert how == "stopped by SIGTERM after step 4 of 9; to resume:"
    assert line == f"jaxopt-tf train --output_dir '{job.output_dir}'"


def test_a_metric_drives_the_rate_across_a_resume(job):
    recipe = dataclasses.replace(
        DESCENT,
        warmup_steps=0,
        lr_scheduler_type="reduce_lr_on_plateau",
        lr_scheduler_kwargs={"patience": 0, "threshold": 0.5, "factor": 0.5},
    )
    whole = run(job, recipe, save_total_limit=None)
    log = log_of(whole.folder)
    rates = [json.loads(line).get("learning_rate") for line in log.splitlines()]
    assert len(set(rates) - {None}) > 1
    for name in ("checkpoint-8", "checkpoint-9"):
        shutil.rmtree(job.output_dir / name)
    assert_same_run(run(job, recipe), whole)
    assert log_of(whole.folder) == log


def test_ends_with_the_best_model_where_asked_to(job):
    recipe = dataclasses.replace(RECIPE, learning_rate=0.3, max_grad_norm=0)
    settings = {"load_best_model_at_end": True, "eval_steps": 2, "save_steps": 5}
    outcome = run(job, recipe, **settings, early_stopping_patience=8)
    losses = evaluations(outcome.folder)
    assert outcome.last_loss == min(losses.values())
    assert min(losses.values()) < losses[9]


def evaluations(folder):
    """Evaluation losses of a run by their steps, without that before training."""
    records = map(json.loads, log_of(folder).splitlines())
    return {
        r["step"]: r["eval_loss"]
        for r in records
        if r.get("eval_loss", 0) and r["step"]
    }


def test_the_best_checkpoint_is_there_whatever_is_loaded_at_the_end(job, capsys):
    recipe = dataclasses.replace(DESCENT, learning_rate=30.0, warmup_steps=7)
    outcome = run(job, recipe, eval_steps=1, save_steps=5, save_total_limit=None)
    losses = evaluations(outcome.folder)
    best = min(losses, key=losses.get)
    assert best not in (5, 9)
    # Those that were the best before are replaced: the limit is for `save_steps`.
    steps = [int(path.name[11:]) for path in find_checkpoints(outcome.folder)]
    assert steps == sorted({best, 5, 9})
    *_, named, last = capsys.readouterr().out.splitlines()
    assert named == f"best    {outcome.folder / f'checkpoint-{best}'}"
    assert last.endswith(
        f"(best {losses[best]:.3f} at step {best}; {outcome.first_loss:.2f} before "
        "training)"
    )
    assert last.startswith(f"evaluation loss {losses[9]:.3f} nats per byte")


def test_stops_where_the_loss_is_no_longer_finite(job):
    with pytest.raises(FloatingPointError, match=r"`loss` and its .* at step 3\."):
        run(job, EXPLODES)
    *_, last = log_of(job.output_dir).splitlines()
    assert json.loads(last)["loss"] is None
    # What was saved is from before.
    assert [p.name for p in find_checkpoints(job.output_dir)] == ["checkpoint-2"]


def test_skip_policy_stops_after_too_many_skipped_steps(job):
    with pytest.raises(FloatingPointError, match=r"at step 6\."):
        run(job, EXPLODES, on_non_finite="skip", max_skipped_in_a_row=3)


def test_propagate_policy_continues(job):
    assert np.isnan(run(job, EXPLODES, on_non_finite="propagate").last_loss)


def test_refuses_another_run_and_lists_what_differs(broken_off):
    recipe = dataclasses.replace(RECIPE, learning_rate=2e-2)
    model = dataclasses.replace(TINY, n_embd=16)
    with pytest.raises(
        ValueError, match="`output_dir` must contain a run with equal settings"
    ) as refusal:
        run(broken_off(9), recipe, model)
    assert "`learning_rate` changed from 0.01 to 0.02" in str(refusal.value)
    assert "`n_embd` changed from 8 to 16" in str(refusal.value)
    assert "--intended_changes learning_rate n_embd" in str(refusal.value)


def test_resumes_with_intended_changes(broken_off):
    recipe = dataclasses.replace(RECIPE, learning_rate=2e-2, max_steps=12)
    changes = ("learning_rate", "max_steps")
    outcome = run(broken_off(9), recipe, intended_changes=changes)
    records = [json.loads(line) for line in log_of(outcome.folder).splitlines()]
    assert records[-1]["step"] == 12


def test_a_model_of_another_size_is_no_change_that_can_be_intended(broken_off):
    model = dataclasses.replace(TINY, n_embd=16)
    with pytest.raises(ValueError, match="`like` must have the same leaves"):
        run(broken_off(9), model=model, intended_changes=("n_embd",))


def test_refuses_data_that_changed(broken_off):
    job = broken_off(9)
    path = job.text[0]
    moved = path.with_name("b.txt")
    moved.write_text(TEXT * 2)
    before, now = "1 document, 1,760 bytes of", "1 document, 3,520 bytes of"
    words = f"`data` changed from {before} '.*{path.name}' to {now} '{moved}'"
    with pytest.raises(ValueError, match=words):
        run(job, text=(moved,))


def test_refuses_another_recipe_before_the_first_checkpoint_too(broken_off):
    with pytest.raises(ValueError, match="`seed` changed from 42 to 7"):
        run(broken_off(0), dataclasses.replace(RECIPE, seed=7))


def test_refuses_changes_that_a_run_cannot_make(broken_off):
    recipe = dataclasses.replace(RECIPE, seed=7)
    with pytest.raises(ValueError, match="must be settings that can change in a run"):
        run(broken_off(9), recipe, intended_changes=("seed",))


def test_refuses_a_folder_of_another_run_for_a_checkpoint_from_elsewhere(job, unbroken):
    job.output_dir.mkdir()
    config = json.loads((unbroken.folder / "settings.json").read_text())
    config["learning_rate"] = 0.02
    (job.output_dir / "settings.json").write_text(json.dumps(config))
    checkpoint = unbroken.folder / "checkpoint-4"
    with pytest.raises(ValueError, match="`learning_rate` changed from 0.02 to 0.01"):
        run(job, resume_from_checkpoint=checkpoint)


def test_refuses_a_checkpoint_that_is_not_of_a_job(job, tmp_path):
    with lock_folder(tmp_path / "other") as lock, open_checkpoints(lock) as checkpoints:
        path = checkpoints.save(3, {"x": np.ones(2)}, {})
    with pytest.raises(ValueError, match="must be a checkpoint of `jaxopt-tf train`"):
        run(job, resume_from_checkpoint=path)


def test_refuses_a_log_that_belongs_to_no_run(job):
    job.output_dir.mkdir()
    (job.output_dir / "metrics.jsonl").write_text("precious\n")
    with pytest.raises(
        ValueError, match="`output_dir` must be a run's folder or a new"
    ):
        run(job)
    assert (job.output_dir / "metrics.jsonl").read_text() == "precious\n"


def test_refuses_a_config_that_cannot_be_read(job):
    job.output_dir.mkdir()
    (job.output_dir / "settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"must hold a readable settings\.json"):
        run(job)


def test_falls_back_where_the_newest_checkpoint_is_damaged(
    broken_off, unbroken, capsys
):
    job = broken_off(9)
    files = [p for p in (job.output_dir / "checkpoint-9").rglob("*") if p.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    whole = largest.read_bytes()
    largest.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert_same_run(run(job), unbroken)
    assert "checkpoint-9 is damaged" in capsys.readouterr().err


def test_raises_if_no_checkpoint_is_valid(broken_off):
    job = broken_off(9)
    for path in find_checkpoints(job.output_dir):
        (path / "SHA256SUMS").unlink()
    before = log_of(job.output_dir)
    with pytest.raises(ValueError, match="`folder` must contain a valid checkpoint"):
        run(job)
    assert log_of(job.output_dir) == before


def test_resume_from_checkpoint_archives_later_checkpoints(broken_off, unbroken):
    job = broken_off(9)
    named = job.output_dir / "checkpoint-4"
    assert_same_run(run(job, resume_from_checkpoint=named), unbroken)
    aside = [path.name for path in job.output_dir.glob("aside-*")]
    assert {name.rpartition("-")[2] for name in aside} == {"6", "8", "9"}


def test_resumes_in_another_folder_with_a_copy_of_the_log(job, unbroken):
    before = log_of(unbroken.folder)
    checkpoint = unbroken.folder / "checkpoint-4"
    assert_same_run(run(job, resume_from_checkpoint=checkpoint), unbroken)
    assert log_of(unbroken.folder) == before


def test_refuses_settings_that_contradict_each_other(job):
    with pytest.raises(ValueError, match="`early_stopping_threshold`") as refusal:
        run(job, early_stopping_threshold=0.1, eos_token_id=0)
    assert "`eos_token_id`" in str(refusal.value)
    assert not job.output_dir.exists()


def test_scanned_layers_bfloat16_and_label_smoothing_train(job):
    model = dataclasses.replace(TINY, scan_layers=True, gradient_checkpointing=True)
    smoothed = {"label_smoothing_factor": 0.1, "learning_rate": 0.3}
    recipe = dataclasses.replace(DESCENT, **smoothed)
    outcome = run(job, recipe, model, bf16=True, log_layers=True)
    assert outcome.last_loss < outcome.first_loss
    leaves = jax.tree.leaves(outcome.params)
    assert {str(leaf.dtype) for leaf in leaves} == {"float32"}
