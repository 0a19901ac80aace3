"""Stop requests by real signals, in separate processes."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from jaxopt_tf.training import stop_on_signals

_WAITS = """
import sys, time
from jaxopt_tf.training import stop_on_signals
with stop_on_signals() as should_stop:
    print("ready", flush=True)
    while not should_stop():
        time.sleep(0.01)
    print("saving", flush=True)
    time.sleep(float(sys.argv[1]))
print("saved", flush=True)
"""


def waiting(seconds):
    process = subprocess.Popen(
        [sys.executable, "-c", _WAITS, str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_lets_the_step_and_the_save_finish(number):
    process = waiting(0.2)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert out == "saving\nsaved\n"
    assert process.returncode == 0
    assert f"{number.name}: stopping after this step, then saving" in err


def test_a_second_signal_leaves_at_once():
    process = waiting(60)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "saving\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert out == ""
    assert process.returncode == 128 + signal.SIGINT
    assert "SIGINT again: exiting immediately" in err


def test_handlers_are_as_before_afterwards():
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with stop_on_signals() as should_stop:
        assert signal.getsignal(signal.SIGTERM) not in before
        os.kill(os.getpid(), signal.SIGTERM)
        assert should_stop()
        assert should_stop.signal == signal.SIGTERM
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before


def test_in_another_thread_nothing_is_changed():
    before, asked = signal.getsignal(signal.SIGTERM), []

    def inside():
        with stop_on_signals() as should_stop:
            asked.append((should_stop(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert asked == [(False, before)]
