"""One run on several real processes of this machine."""

import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks._processes import losses, started
from jaxopt_tf.checkpoints import find_checkpoints
from jaxopt_tf.cli import main

pytestmark = pytest.mark.usefixtures("compiled_quickly", "compiled_once")

# A small text: few tokens are held out, and evaluations are short.
TEXT = Path(__file__).with_name("test_config.py")
SMALL = (
    *("--text", str(TEXT)),
    *("--n_layer", "1", "--n_head", "2", "--n_embd", "32", "--block_size", "32"),
    *("--per_device_train_batch_size", "2", "--eval_steps", "100"),
    # Compiles in half the time, and has a state.
    *("--optim", "sgd", "--optim_args", "momentum=0.9", "--learning_rate", "0.1"),
)


def wait_for_line(process, pattern):
    for line in process.stdout:
        if re.search(pattern, line):
            return
    pytest.fail(f"no line like {pattern!r}")


@pytest.fixture(scope="module")
def alone(tmp_path_factory, compiled_quickly, compiled_once):
    """The run that nothing happens to, on one device."""
    folder = tmp_path_factory.mktemp("alone")
    args = [*SMALL, "--max_steps", "200", "--per_device_train_batch_size", "4"]
    assert main(["train", *args, "--output_dir", str(folder)]) == 0
    return folder


def test_other_process_stops_when_one_dies_and_one_alone_resumes(alone, tmp_path):
    args = ["--max_steps", "200", "--output_dir", str(tmp_path)]
    # The second process is the one to die: the first writes what is looked at.
    with started([*SMALL, *args, "--save_steps", "20"], num=2) as (first, second):
        while not find_checkpoints(tmp_path):
            assert first.poll() is None, first.stdout.read()
            time.sleep(0.05)
        second.kill()
        said, _ = first.communicate(timeout=60)
    assert first.returncode != 0
    assert re.search("another (one has ended|task died)", said), said
    # What it had saved is whole, and one process has room for what two had.
    assert main(["train", *SMALL, *args]) == 0
    np.testing.assert_allclose(losses(tmp_path), losses(alone), rtol=5e-5)


def test_signal_to_one_process_stops_both_after_the_same_step(tmp_path):
    args = ["--max_steps", "5000", "--output_dir", str(tmp_path)]
    with started([*SMALL, *args], num=2) as (first, second):
        wait_for_line(first, "evaluation loss")
        second.send_signal(signal.SIGTERM)
        said, _ = first.communicate(timeout=60)
        second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (143, 143), said
    (step,) = map(int, re.findall(r"stopped by SIGTERM after step (\d+)", said))
    *_, checkpoint = find_checkpoints(tmp_path)  # before it that of the best evaluation
    assert checkpoint.name == f"checkpoint-{step}"
    assert len(losses(tmp_path)) == step


def test_rejects_processes_with_different_settings(tmp_path):
    args = ["--max_steps", "200", "--output_dir", str(tmp_path)]

    def rate(process):
        return ("--learning_rate", f"{1 + process}e-3")

    with started([*SMALL, *args], num=2, of=rate) as both:
        said = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [2, 2]
    assert "another process differs; its message lists the differences" in said[0]
    assert "`--learning_rate`: 0.001 in process 0, 0.002 in process 1" in said[1]
    assert not any(tmp_path.iterdir())


def test_error_of_process_0_is_raised_in_all_processes(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("of something else")
    args = ["--max_steps", "200", "--output_dir", str(tmp_path)]
    with started([*SMALL, *args], num=2) as both:
        said = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [2, 2]
    assert all("`--output_dir` must be a run's folder or a new one" in s for s in said)
