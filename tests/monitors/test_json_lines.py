"""The log `metrics.jsonl`: writing, interruption and reading."""

import json
import math
import resource

import numpy as np
import pytest

from jaxopt_tf.monitors import json_lines, read_history
from jaxopt_tf.training import Evaluation
from tests.events import are_same, metrics_of, part, tell, window_of

LAYERS = {"h.0": (0.5, 0.1, 3.0), "ln_f": (0.25, 0.0, 1.0)}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def run_of(num_steps, **numbers):
    losses = np.random.default_rng(num_steps).normal(size=num_steps) + 5
    return metrics_of(losses, **numbers)


def test_holds_every_step_and_evaluation_under_the_names_of_the_trainer(path):
    monitor = json_lines(path)
    monitor.evaluation(Evaluation(0, {"loss": 5.5, "accuracy": 0.25}))
    monitor.window(window_of(1, [4.0, 2.0], clipped=[True, False]))
    # Followed while the run goes on: nothing waits for the end.
    found = lines(path)
    monitor.close()
    assert found[0] == {"step": 0, "eval_loss": 5.5, "eval_accuracy": 0.25}
    assert [line["step"] for line in found] == [0, 1, 2]
    assert found[1] == {
        "step": 1,
        "loss": 4.0,
        "learning_rate": float(np.float32(1e-3)),
        "grad_norm": 1.0,
        "update_norm": float(np.float32(1e-2)),
        "param_norm": 10.0,
        "num_items": 64.0,
        "is_clipped": True,
        "is_skipped": False,
    }


def test_holds_the_norms_of_layers_where_there_are_any(path):
    monitor = json_lines(path)
    monitor.window(window_of(1, [4.0], layers=LAYERS))
    monitor.close()
    (line,) = lines(path)
    assert line["layers"]["h.0"]["grad_norm"] == 0.5
    assert line["layers"]["ln_f"] == {
        "grad_norm": 0.25,
        "update_norm": 0.0,
        "param_norm": 1.0,
    }


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_writes_null_for_what_json_has_no_word_for(path, value):
    monitor = json_lines(path)
    monitor.window(window_of(1, [value]))
    monitor.evaluation(Evaluation(1, {"loss": value}))
    monitor.close()
    step, evaluation = lines(path)
    assert step["loss"] is None
    assert evaluation["eval_loss"] is None


@pytest.mark.parametrize("saved_at", [1, 10, 25, 30, 57])
@pytest.mark.parametrize("killed_at", [57, 60])
def test_a_resumed_file_is_that_of_an_unbroken_run_to_the_byte(
    path, tmp_path, saved_at, killed_at
):
    metrics = run_of(80, layers=LAYERS)
    evaluations = {0: 5.0, 25: 4.0, 50: 3.0, 80: 2.0}
    unbroken = json_lines(tmp_path / "unbroken.jsonl")
    tell(unbroken, metrics, evaluations=evaluations)
    unbroken.close()

    first = json_lines(path)
    told = part(metrics, 0, killed_at)
    tell(first, told, evaluations={s: evaluations[s] for s in (0, 25, 50)})
    with path.open("ab") as file:  # killed while writing: closing is not reached
        file.write(b'{"step": 61, "loss": 3.1')
    second = json_lines(path, first_step=saved_at)
    rest = part(metrics, saved_at, 80)
    later = {step: loss for step, loss in evaluations.items() if step > saved_at}
    tell(second, rest, evaluations=later, first_step=saved_at + 1)
    second.close()
    first.close()
    assert path.read_bytes() == (tmp_path / "unbroken.jsonl").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "metrics.jsonl",
        "unbroken.jsonl",
    ]


def test_restarted_run_replaces_the_log(path):
    first = json_lines(path)
    tell(first, run_of(7), evaluations={0: 5.0})
    first.close()
    second = json_lines(path)
    second.evaluation(Evaluation(0, {"loss": 5.0}))
    second.close()
    assert lines(path) == [{"step": 0, "eval_loss": 5.0}]


def test_a_line_that_an_editor_left_without_its_end_is_kept(path):
    monitor = json_lines(path)
    tell(monitor, run_of(5))
    monitor.close()
    path.write_bytes(path.read_bytes()[:-1])
    monitor = json_lines(path, first_step=5)
    tell(monitor, run_of(2), first_step=6)
    monitor.close()
    assert [line["step"] for line in lines(path)] == [1, 2, 3, 4, 5, 6, 7]


def test_a_run_may_go_on_from_a_step_of_another_folder(path):
    for first_step in (20, 20, 22):
        monitor = json_lines(path, first_step=first_step)
        tell(monitor, run_of(3), first_step=first_step + 1)
        monitor.close()
    assert [line["step"] for line in lines(path)] == [21, 22, 23, 24, 25]


def spoil(path, how):
    kept = path.read_bytes().splitlines(keepends=True)
    if how == "missing":
        del kept[3]
    elif how == "twice":
        kept.insert(3, kept[3])
    elif how == "garbage":
        kept[3] = b"\0" * 50 + b"\n"
    elif how == "other":
        kept[3] = b'{"step": 4, "loss": "low"}\n'
    elif how == "ends early":
        kept = kept[:5]
    path.write_bytes(b"".join(kept))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "line 4 of .* must be step 4, got step 5"),
        ("twice", "line 5 of .* must be step 5, got step 4"),
        ("garbage", "line 4 of .* must be a JSON object"),
        ("other", "line 4 of .* must be a JSON object"),
        ("ends early", "must contain every step up to 10, .* but ends at 5"),
    ],
)
def test_refuses_a_file_with_a_gap_and_leaves_it_as_it_is(path, how, message):
    monitor = json_lines(path)
    tell(monitor, run_of(20))
    monitor.close()
    spoil(path, how)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        json_lines(path, first_step=10)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_log_round_trips_bit_for_bit(path):
    rng = np.random.default_rng(0)
    told = []
    monitor = json_lines(path)
    # Numbers of all sizes, of which many have no short name in decimals.
    bits = rng.integers(0, 2**31 - 2**23, (8, 27), np.int32)  # finite, not below 0
    columns = bits.view(np.float32)
    metrics = metrics_of(
        columns[0],
        rate=columns[1],
        grads=columns[2],
        updates=columns[3],
        params=columns[4],
        items=columns[5],
        clipped=bits[6] % 2,
        skipped=bits[7] % 2,
        layers=LAYERS,
    )

    def window(event):
        told.append(event)
        monitor.window(event)

    def evaluation(event):
        told.append(event)
        monitor.evaluation(event)

    evaluations = {0: 1 / 3, 10: math.nan, 27: 1e-300}
    listener = monitor._replace(window=window, evaluation=evaluation)
    tell(listener, metrics, evaluations=evaluations)
    monitor.close()
    found = list(read_history(path))
    assert len(found) == len(told)
    for one, other in zip(found, told, strict=True):
        assert are_same(one, other)
    assert all(math.isnan(w.seconds) for w in found if hasattr(w, "seconds"))


def test_reads_nan_for_null(path):
    monitor = json_lines(path)
    monitor.window(window_of(1, [np.nan, 2.0], rate=np.nan))
    monitor.close()
    (window,) = read_history(path)
    np.testing.assert_array_equal(window.metrics.loss, np.float32([np.nan, 2.0]))
    assert np.isnan(window.metrics.learning_rate).all()


def test_reads_windows_of_at_most_ten_steps(path):
    monitor = json_lines(path)
    tell(monitor, run_of(25), cuts=range(1, 25))
    monitor.close()
    windows = list(read_history(path))
    assert [len(window.metrics.loss) for window in windows] == [10, 10, 5]
    assert [window.first_step for window in windows] == [1, 11, 21]


def test_ignores_an_incomplete_last_line(path):
    monitor = json_lines(path)
    tell(monitor, run_of(5))
    with path.open("ab") as file:
        file.write(b'{"step": 6, "lo')
    (window,) = read_history(path)
    monitor.close()
    assert len(window.metrics.loss) == 5


@pytest.mark.parametrize("how", ["missing", "twice", "garbage"])
def test_does_not_read_over_a_gap(path, how):
    monitor = json_lines(path)
    tell(monitor, run_of(20))
    monitor.close()
    spoil(path, how)
    with pytest.raises(ValueError, match="line [45] of"):
        list(read_history(path))


def test_refuses_a_file_that_is_not_there(path):
    with pytest.raises(ValueError, match="`path` must be a file of `json_lines`"):
        list(read_history(path))


def test_refuses_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="`path` must be in a folder that exists"):
        json_lines(tmp_path / "nowhere" / "metrics.jsonl")


def test_refuses_a_path_that_is_a_folder(tmp_path):
    with pytest.raises(ValueError, match="`path` must be a writable file"):
        json_lines(tmp_path)


def test_refuses_a_step_that_is_none(path):
    with pytest.raises(ValueError, match="`first_step` must be"):
        json_lines(path, first_step=-1)


def test_reports_that_a_disk_is_full_and_goes_on_from_what_was_written(path):
    # As much as a file may have is what a disk has left: the system's own refusal.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    monitor = json_lines(path)
    tell(monitor, run_of(10))
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 300, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            monitor.window(window_of(11, [4.0, 3.0, 2.0]))
        monitor.close()  # and does not try again
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not path.read_bytes().endswith(b"\n")
    json_lines(path, first_step=10).close()
    assert [line["step"] for line in lines(path)] == list(range(1, 11))


def test_float64_metrics_are_read_with_all_their_digits(path):
    window = window_of(1, [1.0, 2.0])
    loss, norms = np.array([1 / 3, 1e300]), window.metrics.norms
    norms = norms.replace(grads=np.array([0.1, 0.2]))
    metrics = window.metrics.replace(loss=loss, norms=norms)
    monitor = json_lines(path)
    monitor.window(window._replace(metrics=metrics))
    monitor.close()
    (read,) = read_history(path)
    assert are_same(read._replace(seconds=0.5), window._replace(metrics=metrics))
