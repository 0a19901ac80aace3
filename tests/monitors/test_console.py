"""Output of the progress bar."""

import re
import subprocess
import sys
import time

import jax
import pytest

from jaxopt_tf.monitors import console
from jaxopt_tf.training import Evaluation
from tests.events import window_of


@pytest.fixture(autouse=True)
def _width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")


def test_shows_the_numbers(capsys):
    monitor = console(8, unit="bytes")
    monitor.evaluation(Evaluation(0, {"loss": 5.5, "accuracy": 0.25}))
    losses = [4.0, 2.0, 3.0, 3.0]
    numbers = {"rate": [0, 0, 0, 0.3], "grads": 4.0, "items": 3.0}
    monitor.window(window_of(1, losses, **numbers))
    monitor.window(window_of(5, losses, **numbers))
    monitor.close()
    shown = capsys.readouterr().out
    for words in (
        "step     0  evaluation loss 5.5000  accuracy 0.2500",
        "step 8/8",
        "0:00:00",
        "loss 3.000",
        "rate 3.0e-01",
        "norm 4.00",
        "24 bytes/s",
    ):
        assert words in shown
    assert "of peak" not in shown


def test_its_line_fits_into_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monitor = console(10_000)
    monitor.window(window_of(1, [4.0], items=1e5))
    monitor.window(window_of(2, [4.0], items=1e5))
    monitor.close()
    assert "200,000 tokens/s" in capsys.readouterr().out


@pytest.mark.parametrize("first_step", [0, 40], ids=["start", "resume"])
def test_the_speed_leaves_out_compilation(capsys, first_step):
    monitor = console(100, first_step=first_step, flops_per_item=1e6)
    first = window_of(first_step + 1, [4.0] * 10, seconds=60.0, items=10.0)
    monitor.window(first)
    # Nothing is known yet: the first window of each start contains compilation.
    monitor.close()
    assert "/s" not in capsys.readouterr().out
    monitor = console(100, first_step=first_step)
    monitor.window(first)
    monitor.window(window_of(first_step + 11, [4.0] * 10, seconds=0.5, items=10.0))
    monitor.close()
    assert " 200 tokens/s" in capsys.readouterr().out


def test_the_speed_is_that_of_the_last_windows(capsys):
    monitor = console(1000)
    for i in range(30):
        seconds = 5.0 if i < 20 else 0.5
        monitor.window(window_of(1 + 10 * i, [4.0] * 10, seconds=seconds, items=10.0))
    monitor.close()
    assert " 200 tokens/s" in capsys.readouterr().out


def test_the_time_left_is_from_the_steps_of_this_start(capsys):
    # 8 of 9 tenths are left of what this start has to do, of which one took 0.4 s;
    # counted from step 0, there would be nothing left.
    monitor = console(10_090, first_step=10_000)
    monitor.window(window_of(10_001, [4.0] * 10))
    time.sleep(0.4)
    monitor.evaluation(Evaluation(10_010, {"loss": 1.0}))
    monitor.window(window_of(10_011, [4.0] * 10))
    monitor.close()
    shown = capsys.readouterr().out
    assert "step 10020/10090" in shown
    assert 2 < seconds_left(shown) < 15


def test_the_bar_begins_at_the_step_that_the_run_goes_on_from(capsys):
    monitor = console(100, first_step=50)
    monitor.evaluation(Evaluation(50, {"loss": 1.0}))
    monitor.close()
    assert "step 50/100" in capsys.readouterr().out


def seconds_left(shown):
    hours, minutes, seconds = re.findall(r"(\d+):(\d\d):(\d\d)", shown)[-1]
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds)


def test_reports_which_steps_were_skipped_and_leaves_them_out_of_the_means(capsys):
    monitor = console(100)
    nan = float("nan")
    skipped = [False, True, False, True]
    monitor.window(window_of(1, [4.0, nan, 2.0, nan], skipped=skipped))
    monitor.window(window_of(5, [nan], skipped=True))
    monitor.window(window_of(6, [3.0]))
    monitor.close()
    shown = capsys.readouterr().out
    assert "skipped steps 2, 4 (not finite), 2 in total" in shown
    assert "skipped step 5 (not finite), 3 in total" in shown
    assert "loss 3.000" in shown


def test_a_step_that_stops_the_run_is_left_to_the_loop(capsys):
    monitor = console(100)
    monitor.window(window_of(1, [4.0, float("nan")], skipped=[0, 1], stopped=[0, 1]))
    monitor.close()
    assert "skipped" not in capsys.readouterr().out


def test_shows_the_share_of_the_peak_where_it_is_known(capsys, monkeypatch):
    monkeypatch.setattr("jaxopt_tf.monitors._console.peak_flops", lambda kind: 1e9)
    monitor = console(100, flops_per_item=1e6)
    # 200 items in half a second, 4e8 operations a second, on as many devices.
    monitor.window(window_of(1, [4.0] * 10, seconds=60.0, items=20.0))
    monitor.window(window_of(11, [4.0] * 10, items=20.0))
    monitor.close()
    share = 0.4 / jax.device_count()
    assert f"{share:.0%} of peak" in capsys.readouterr().out


def test_what_others_print_stands_above_the_bar_on_a_terminal():
    code = (
        "from jaxopt_tf.monitors import console\n"
        "from tests.events import window_of\n"
        "monitor = console(20)\n"
        "monitor.window(window_of(1, [4.0] * 10))\n"
        "print('from elsewhere')\n"
        "monitor.window(window_of(11, [4.0] * 10))\n"
        "monitor.close()\n"
    )
    environment = {"FORCE_COLOR": "1", "COLUMNS": "120", "PATH": "", "LANG": "C.UTF-8"}
    shown = subprocess.check_output(
        [sys.executable, "-c", code], text=True, env=environment | {"PYTHONUTF8": "1"}
    )
    # A terminal goes back to the line's begin and clears it before the words come.
    (line,) = [line for line in shown.splitlines() if "from elsewhere" in line]
    before, after = line.split("from elsewhere")
    assert before.endswith("\x1b[2K")
    assert after == ""
    assert "step 20/20" in shown


def test_shows_nothing_before_the_first_event(capsys):
    console(4)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("arguments", [{"max_steps": 0}, {"first_step": -1}])
def test_refuses_a_number_of_steps_out_of_range(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        console(**{"max_steps": 4, **arguments})


def test_refuses_work_that_is_none():
    with pytest.raises(ValueError, match="`flops_per_item` must be"):
        console(4, flops_per_item=0)
