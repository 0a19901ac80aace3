"""Lock of a run folder, with real processes."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest

from jaxopt_tf.checkpoints._folder_lock import LOCK_FILE, lock_folder

HOLDS_UNTIL_TOLD = """
import sys
from jaxopt_tf.checkpoints import lock_folder
with lock_folder(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextlib.contextmanager
def another_process(folder):
    command = [sys.executable, "-c", HOLDS_UNTIL_TOLD, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdout.readline() == "held\n"
        yield process


def test_lock_creates_the_folder_and_names_its_holder(tmp_path):
    with lock_folder(tmp_path / "runs" / "x") as lock:
        assert lock.folder == tmp_path / "runs" / "x"
    (lock.folder / LOCK_FILE).write_text("what an older version wrote" * 99)
    with lock_folder(lock.folder):
        holder = json.loads((lock.folder / LOCK_FILE).read_text())
        assert holder["pid"] == os.getpid()


def test_refuses_a_second_process_and_names_the_first(tmp_path):
    with another_process(tmp_path) as process:
        holder = f"locked by process {process.pid} on {os.uname().nodename} since 2"
        with pytest.raises(ValueError, match=holder), lock_folder(tmp_path):
            pass
        process.communicate("\n")
    with lock_folder(tmp_path):  # it has ended
        pass


def test_lock_is_released_when_its_holder_is_killed(tmp_path):
    with another_process(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with lock_folder(tmp_path) as lock:
            assert str(process.pid) not in (lock.folder / LOCK_FILE).read_text()


def test_refuses_the_same_process_twice_until_it_has_ended(tmp_path):
    with lock_folder(tmp_path), pytest.raises(ValueError, match="one job at a time"):
        lock_folder(tmp_path).__enter__()
    with contextlib.suppress(ZeroDivisionError), lock_folder(tmp_path):
        _ = 1 / 0
    with lock_folder(tmp_path):
        pass


def test_child_process_does_not_inherit_the_lock(tmp_path):
    with lock_folder(tmp_path):
        child = subprocess.Popen(["sleep", "60"])
    try:
        with lock_folder(tmp_path):
            pass
    finally:
        child.kill()
        child.wait()


def test_refuses_without_a_name_while_the_holder_has_not_written_it(tmp_path):
    with lock_folder(tmp_path):
        (tmp_path / LOCK_FILE).write_text("")
        with (
            pytest.raises(ValueError, match="a process that is starting"),
            lock_folder(tmp_path),
        ):
            pass


def test_refuses_what_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "x"):
        with (
            pytest.raises(ValueError, match="`folder` must be a writable folder"),
            lock_folder(path),
        ):
            pass
