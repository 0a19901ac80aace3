"""Downsampled values of runs, and search for their logs."""

import json
import shutil

import numpy as np
import pytest

from jaxopt_tf.plots._run_log import (
    Downsampler,
    RunRecorder,
    Steps,
    finite_mean,
    read_run_log,
)
from tests.events import window_of


def write_state(folder, history, step=0):
    folder.mkdir(parents=True, exist_ok=True)
    state = {"global_step": step, "log_history": history}
    (folder / "trainer_state.json").write_text(json.dumps(state))


def test_a_file_is_as_good_as_its_folder(our_run, trainer_run):
    for folder, file in (
        (our_run, our_run / "metrics.jsonl"),
        (trainer_run, trainer_run / "checkpoint-8/trainer_state.json"),
        (trainer_run, trainer_run / "checkpoint-8"),
    ):
        one, other = read_run_log(folder), read_run_log(str(file))
        assert one.name == other.name == folder.name
        np.testing.assert_array_equal(one.steps, other.steps)
        assert one.evaluations == other.evaluations


def test_of_a_trainers_checkpoints_the_newest_counts(trainer_run):
    assert read_run_log(trainer_run).steps.step[-1] == 8
    assert read_run_log(trainer_run / "checkpoint-4").steps.step[-1] == 4


def test_a_trainers_own_state_counts_unless_the_run_has_gone_on(tmp_path):
    for step in (2, 10):
        history = [{"step": step, "loss": 1.0}]
        write_state(tmp_path / f"checkpoint-{step}", history, step)
    write_state(tmp_path, [{"step": 10, "loss": 7.0}], 10)
    assert read_run_log(tmp_path).steps.loss[0] == 7.0
    write_state(tmp_path, [{"step": 2, "loss": 7.0}], 2)
    assert read_run_log(tmp_path).steps.step[0] == 10


def test_a_long_run_of_a_trainer_has_a_bounded_number_of_points(tmp_path):
    history = [{"step": k + 1, "loss": float(k % 7)} for k in range(30_001)]
    write_state(tmp_path, history)
    steps = read_run_log(tmp_path).steps
    assert 2_000 <= len(steps.step) <= 5_000
    assert steps.step[-1] > 29_980


def test_numbers_that_a_trainer_did_not_have_are_gaps(tmp_path):
    history = [
        {"step": 1, "loss": 2.0, "grad_norm": None},
        {"step": 2, "loss": float("nan"), "learning_rate": 1e-3},
        {"step": 2, "eval_accuracy": 0.5},
    ]
    write_state(tmp_path, history)
    run = read_run_log(tmp_path)
    np.testing.assert_array_equal(run.steps.loss, [2.0, np.nan])
    assert run.evaluations == []


def test_refuses_a_path_where_nothing_is(tmp_path):
    with pytest.raises(ValueError, match=r"`folder` must be .*nowhere', which does"):
        read_run_log(tmp_path / "nowhere")


def test_refuses_a_folder_without_a_run(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match=r"must contain metrics\.jsonl, or .*neither\.$"
    ):
        read_run_log(tmp_path / "empty")


def test_names_the_run_that_is_nearby(our_run):
    with pytest.raises(ValueError, match=r"Did you mean '.*ours'\?"):
        read_run_log(our_run.parent)
    (our_run / "checkpoint-20").mkdir()
    with pytest.raises(ValueError, match=r"Did you mean '.*ours'\?"):
        read_run_log(our_run / "checkpoint-20")


def test_refuses_a_log_without_steps(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "eval_loss": 5.0}\n')
    with pytest.raises(
        ValueError, match=r"logged a step, got .*metrics\.jsonl contains"
    ):
        read_run_log(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    write_state(tmp_path, [{"step": 1, "eval_loss": 5.0}])
    with pytest.raises(ValueError, match=r"logged a step, got .*trainer_state\.json"):
        read_run_log(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"log_history": [{"loss": 1}]}'])
def test_refuses_a_state_that_is_none(tmp_path, text):
    (tmp_path / "trainer_state.json").write_text(text)
    with pytest.raises(ValueError, match="`folder` must contain .*cannot be read"):
        read_run_log(tmp_path)


def test_refuses_a_damaged_log_of_ours(our_run):
    path = our_run / "metrics.jsonl"
    path.write_text("no JSON\n" + path.read_text())
    with pytest.raises(ValueError, match="line 1 of"):
        read_run_log(our_run)


def test_a_copy_of_a_run_keeps_its_folders_name(our_run):
    copied = shutil.copytree(our_run, our_run.parent / "copied")
    assert read_run_log(copied).name == "copied"


def test_few_steps_are_kept_as_they_are():
    steps = np.arange(12.0).reshape(6, 2)
    points = Downsampler(2, finite_mean)
    points.add(steps[:4])
    points.add(steps[4:])
    np.testing.assert_array_equal(points.rows(), steps)


def test_many_steps_are_means_of_neighbours_and_none_is_lost():
    steps = np.arange(1003.0)[:, None]
    points = Downsampler(1, finite_mean, 10)
    for begin in range(0, len(steps), 7):
        points.add(steps[begin : begin + 7])
        assert len(points.points) <= 27
    rows = points.rows()
    assert len(rows) >= 10
    np.testing.assert_allclose(np.diff(rows[:-1, 0]), points.stride)
    counts = np.full(len(rows), points.stride)
    if len(points.rest):
        counts[-1] = len(points.rest)
    assert (rows[:, 0] * counts).sum() == steps.sum()


def test_a_mean_passes_over_what_is_not_finite():
    groups = np.array([[[1.0], [np.nan], [3.0]], [[np.inf], [np.nan], [np.nan]]])
    np.testing.assert_array_equal(finite_mean(groups), [[2.0], [np.nan]])


def test_neighbours_are_put_together_when_a_run_is_long():
    losses = np.random.default_rng(0).normal(size=50_003).astype(np.float32)
    losses[30_000] = 99.0
    losses[40_000] = -99.0
    skipped = np.zeros(len(losses), bool)
    skipped[[5, 49_999]] = True
    recorder, most = RunRecorder(), 0
    # Windows of 49, so that the number of points is odd at times.
    for begin in range(0, len(losses), 49):
        end = min(begin + 49, len(losses))
        columns = {"rate": np.arange(begin, end), "skipped": skipped[begin:end]}
        recorder.window(window_of(begin + 1, losses[begin:end], **columns))
        most = max(most, len(recorder.points.points))
    assert most <= 4_060
    rows, stride = recorder.points.points, recorder.points.stride
    assert len(rows) * stride + len(recorder.points.rest) == len(losses)
    assert len(rows) > 1_900
    steps = Steps(*rows.T)
    # All points are means over as many steps, in order, and none is left out.
    np.testing.assert_allclose(np.diff(steps.step), stride)
    means = losses[: len(rows) * stride].reshape(-1, stride).mean(axis=1)
    is_whole = steps.skipped == 0
    np.testing.assert_allclose(steps.loss[is_whole], means[is_whole], atol=1e-5)
    assert steps.highest.max() == 99.0
    assert steps.lowest.min() == -99.0
    assert steps.skipped.sum() == 2
    assert steps.rate[-1] == len(rows) * stride - 1
