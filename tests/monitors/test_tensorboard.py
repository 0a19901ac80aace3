"""Event files, read by TensorBoard's own reader."""

import time
from pathlib import Path

import numpy as np
import pytest

from jaxopt_tf.monitors import tensorboard
from jaxopt_tf.training import Evaluation
from tests.events import metrics_of, part, tell, window_of

LAYERS = {"h.0.attn": (0.5, 0.1, 3.0)}


@pytest.fixture(scope="module")
def reader():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of protobuf
        from tensorboard.backend.event_processing import event_accumulator

    def read(folder):
        events = event_accumulator.EventAccumulator(
            str(folder), size_guidance={event_accumulator.SCALARS: 0}
        )
        events.Reload()
        return {
            tag: [(event.step, event.value) for event in events.Scalars(tag)]
            for tag in events.Tags()["scalars"]
        }

    return read


def test_shows_loss_rate_and_norms_in_groups(tmp_path, reader):
    monitor = tensorboard(tmp_path / "events", every=2)
    losses = [4.0, 2.0, 3.0, 1.0]
    monitor.evaluation(Evaluation(0, {"loss": 5.0, "accuracy": 0.5}))
    monitor.window(
        window_of(
            1,
            losses,
            rate=[0.0, 0.1, 0.2, 0.3],
            grads=[1.0, 3.0, 5.0, 7.0],
            clipped=[0, 1, 1, 1],
            layers=LAYERS,
        )
    )
    monitor.close()
    shown = reader(tmp_path / "events")
    assert shown["train/loss"] == [(2, 3.0), (4, 2.0)]
    assert shown["train/learning_rate"] == [
        (2, pytest.approx(0.1)),
        (4, pytest.approx(0.3)),
    ]
    assert shown["norms/gradient"] == [(2, 2.0), (4, 6.0)]
    assert shown["norms/update"] == [(2, pytest.approx(1e-2)), (4, pytest.approx(1e-2))]
    assert shown["norms/parameter"] == [(2, 10.0), (4, 10.0)]
    assert shown["norms/update_ratio"][0] == (2, pytest.approx(1e-3))
    assert shown["train/share_clipped"] == [(2, 0.5), (4, 1.0)]
    assert shown["layers/h.0.attn/gradient"] == [(2, 0.5), (4, 0.5)]
    assert shown["eval/loss"] == [(0, 5.0)]
    assert shown["eval/accuracy"] == [(0, 0.5)]


def test_means_do_not_depend_on_how_windows_are_cut(tmp_path, reader):
    losses = np.random.default_rng(0).normal(size=60)
    for name, cuts in (("one", ()), ("other", (3, 4, 19, 33, 58))):
        monitor = tensorboard(tmp_path / name, every=7)
        tell(monitor, metrics_of(losses), cuts=cuts)
        monitor.close()
    one, other = reader(tmp_path / "one"), reader(tmp_path / "other")
    assert one == other
    steps, values = zip(*one["train/loss"], strict=True)
    assert steps == tuple(range(7, 60, 7))
    expected = losses.astype(np.float32)[:56].reshape(-1, 7).mean(axis=1)
    np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_leaves_skipped_steps_out_of_the_mean_and_counts_them(tmp_path, reader):
    monitor = tensorboard(tmp_path, every=4)
    monitor.window(
        window_of(1, [4.0, np.nan, 2.0, np.nan], skipped=[False, True, False, True])
    )
    monitor.close()
    shown = reader(tmp_path)
    assert shown["train/loss"] == [(4, 3.0)]
    assert shown["train/num_skipped"] == [(4, 2.0)]


@pytest.mark.parametrize("saved_at", [20, 25])
def test_each_step_is_shown_once_after_a_kill_and_a_resume(
    tmp_path, reader, saved_at, monkeypatch
):
    metrics = metrics_of(np.arange(60))
    first = tensorboard(tmp_path, every=5)
    tell(first, part(metrics, 0, 47), evaluations={0: 5.0, 20: 4.0, 40: 3.0})
    # Killed: not closed. The next start is a second later.
    later = time.time() + 1
    monkeypatch.setattr("time.time", lambda: later)
    second = tensorboard(tmp_path, first_step=saved_at, every=5)
    rest = part(metrics, saved_at, 60)
    tell(second, rest, evaluations={40: 3.5, 60: 2.0}, first_step=saved_at + 1)
    second.close()
    shown = reader(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert [step for step, _ in shown["train/loss"]] == list(range(5, 61, 5))
    assert [loss for _, loss in shown["train/loss"]] == [
        pytest.approx(step - 3) for step in range(5, 61, 5)
    ]
    assert shown["eval/loss"] == [(0, 5.0), (20, 4.0), (40, 3.5), (60, 2.0)]
    first.close()


def test_starts_within_one_second_have_a_file_each(tmp_path, reader, monkeypatch):
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now)
    metrics = metrics_of(np.arange(40))
    for first_step, last_step in ((0, 15), (10, 25), (20, 40)):
        monitor = tensorboard(tmp_path, first_step=first_step, every=5)
        tell(monitor, part(metrics, first_step, last_step), first_step=first_step + 1)
        monitor.close()
    shown = reader(tmp_path)
    assert [step for step, _ in shown["train/loss"]] == list(range(5, 41, 5))


def test_restarted_run_hides_earlier_points(tmp_path, reader, monkeypatch):
    first = tensorboard(tmp_path, every=5)
    tell(first, metrics_of(np.full(20, 9.0)), evaluations={0: 9.0})
    first.close()
    later = time.time() + 1
    monkeypatch.setattr("time.time", lambda: later)
    second = tensorboard(tmp_path, every=5)
    tell(second, metrics_of(np.full(10, 1.0)), evaluations={0: 1.0})
    second.close()
    shown = reader(tmp_path)
    assert shown["train/loss"] == [(5, 1.0), (10, 1.0)]
    assert shown["eval/loss"] == [(0, 1.0)]


def test_a_point_is_in_the_file_when_the_monitor_returns(tmp_path, reader):
    monitor = tensorboard(tmp_path, every=1)
    monitor.window(window_of(1, [4.0]))
    assert reader(tmp_path)["train/loss"] == [(1, 4.0)]
    monitor.close()


def test_refuses_an_interval_below_1(tmp_path):
    with pytest.raises(ValueError, match="`every` must be"):
        tensorboard(tmp_path, every=0)


def test_refuses_a_folder_that_cannot_be_made(tmp_path):
    Path(tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="`folder` must be a writable folder"):
        tensorboard(tmp_path / "file" / "events")


def test_the_first_step_has_a_point_if_it_is_logged(tmp_path, reader):
    for name, is_logged, expected in (
        ("with", True, [(1, 4.0), (4, 2.0)]),
        ("without", False, [(4, 2.5)]),
    ):
        folder = tmp_path / name
        monitor = tensorboard(folder, every=4, logging_first_step=is_logged)
        monitor.window(window_of(1, [4.0, 3.0]))
        monitor.window(window_of(3, [2.0, 1.0]))
        monitor.close()
        assert reader(folder)["train/loss"] == expected
