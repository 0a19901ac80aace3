"""Ctrl-C in the commands that train many runs, as a terminal sends it."""

import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.usefixtures("compiled_quickly")

# A shell that starts the tests in the background would have them ignore Ctrl-C.
COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from jaxopt_tf.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            "sweep --over seed=1,2",
            "What is finished is kept: the same command with --output_dir {} goes on.",
        ),
        ("decay-path", ""),
    ],
)
def test_ctrl_c_is_a_sentence_and_a_status(small, tmp_path, command, said):
    folder = tmp_path / "run"
    flags = f"{command} {small} --max_steps 1000000 --output_dir {folder}"
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, *flags.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert "1,000,000 steps each" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert told == f"\njaxopt-tf: stopped by Ctrl-C. {said.format(folder)}".rstrip() + (
        "\n"
    )
    assert process.returncode == 130
