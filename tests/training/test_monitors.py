"""What the monitors leave behind."""

import json

import numpy as np
import pytest

from jaxopt_tf.training import Evaluation, Metrics, Window, console, curves, json_lines


def window(first_step, losses):
    column = np.asarray(losses, np.float32)
    return Window(first_step, Metrics(column, column * 0.1, column + 1, column), 0.5)


def test_json_lines_hold_every_step_and_evaluation(tmp_path):
    path = tmp_path / "metrics.jsonl"
    monitor = json_lines(path)
    monitor.evaluation(Evaluation(0, 5.5))
    monitor.window(window(1, [4.0, 2.0]))
    # Followed while the run goes on: nothing waits for the end.
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    monitor.close()
    assert lines[0] == {"step": 0, "eval_loss": 5.5}
    assert [line["step"] for line in lines[1:]] == [1, 2]
    assert lines[1] == {
        "step": 1,
        "loss": 4.0,
        "learning_rate": pytest.approx(0.4),
        "grad_norm": 5.0,
        "num_items": 4.0,
    }


def test_json_lines_write_null_for_what_json_has_no_word_for(tmp_path):
    path = tmp_path / "metrics.jsonl"
    monitor = json_lines(path)
    monitor.window(window(1, [np.nan]))
    monitor.close()
    assert json.loads(path.read_text())["loss"] is None


def test_curves_are_a_picture(tmp_path):
    path = tmp_path / "curves.png"
    monitor = curves(path)
    monitor.evaluation(Evaluation(0, 5.0))
    monitor.window(window(1, [4.0, 3.0]))
    monitor.window(window(3, [2.0, np.nan]))
    monitor.close()
    assert path.read_bytes().startswith(b"\x89PNG")


def test_curves_draw_nothing_where_nothing_was_run(tmp_path):
    monitor = curves(tmp_path / "curves.png")
    monitor.close()
    assert list(tmp_path.iterdir()) == []


def test_console_shows_the_numbers(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monitor = console(4, unit="bytes")
    monitor.evaluation(Evaluation(0, 5.5))
    monitor.window(window(1, [4.0, 2.0, 3.0, 3.0]))
    monitor.close()
    shown = capsys.readouterr().out
    for words in (
        "step     0  held-out loss 5.5000",
        "step 4/4",
        "loss 3.000",
        "rate 3.00e-01",
        "norm 4.00",
        "24 bytes/s",
        "0:00:00",
    ):
        assert words in shown
