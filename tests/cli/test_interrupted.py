"""Ctrl-C in a command that trains several runs, as a terminal sends it."""

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


def test_ctrl_c_prints_a_line_to_paste_and_is_the_status(small, tmp_path):
    folder = tmp_path / "a run"
    flags = [*small.split(), "--max_steps", "1000000", "--output_dir", str(folder)]
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, "sweep", "--over", "seed=1,2", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert "1,000,000 steps each" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert told == (
        "\njaxopt-tf: stopped by Ctrl-C. Finished runs are kept. To resume:\n"
        f"  jaxopt-tf sweep --output_dir '{folder}'\n"
    )
    assert process.returncode == 130
