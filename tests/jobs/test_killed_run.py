"""A run with Muon that SIGKILL ends, and that resumes."""

import json
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxopt_tf.checkpoints import find_checkpoints
from jaxopt_tf.jobs import Job, RunConfig, pretrain
from jaxopt_tf.jobs._run_io import read_run
from jaxopt_tf.models import GPT2Config
from jaxopt_tf.optimizers import MuonState
from jaxopt_tf.recipes import Recipe

pytestmark = [
    pytest.mark.promotion_of_others,  # flax's layers
    pytest.mark.usefixtures("compiled_quickly", "compiled_once"),
]

RECIPE = Recipe(
    max_steps=12,
    learning_rate=1e-2,
    warmup_steps=1,
    weight_decay=0.1,
    per_device_train_batch_size=2,
    optim="muon",
    optim_args={"ns_steps": 2},
)
TINY = GPT2Config(n_layer=1, n_head=2, n_embd=8, block_size=8, resid_pdrop=0.1)
TEXT = "the quick brown fox jumps over the lazy dog\n" * 40
# Sleeps after each step, so that the run is not over before it is killed.
PROGRAM = """
import json, sys, time
from jaxopt_tf.jobs import RunConfig, pretrain
from jaxopt_tf.training import _evaluation
decide = _evaluation.is_patience_exhausted
def slowly(*arguments):
    time.sleep(0.2)
    return decide(*arguments)
_evaluation.is_patience_exhausted = slowly
pretrain(RunConfig.from_dict(json.loads(sys.argv[1])))
"""


def config_in(folder):
    folder.mkdir()
    (folder / "text.txt").write_text(TEXT)
    job = Job(
        text=(folder / "text.txt",), output_dir=folder / "run",
        save_steps=2, eval_steps=6, logging_steps=1,
    )  # fmt: skip
    return RunConfig(recipe=RECIPE, model=TINY, job=job)


def killed_after_a_checkpoint(config):
    """Runs in a process that is killed; returns its last complete step."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(config.to_dict())]
    with subprocess.Popen(command) as process:
        while not find_checkpoints(config.job.output_dir):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    name = find_checkpoints(config.job.output_dir)[-1].name
    return int(name.removeprefix("checkpoint-"))


def test_a_killed_run_with_muon_resumes_with_equal_bits(tmp_path):
    unbroken = config_in(tmp_path / "unbroken")
    expected = pretrain(unbroken)
    config = config_in(tmp_path / "killed")
    step = killed_after_a_checkpoint(config)
    assert 0 < step < RECIPE.max_steps
    found = pretrain(config)
    *_, start = (found.folder / "starts.jsonl").read_text().splitlines()
    assert json.loads(start)["step"] == step
    states = [read_run(r.folder).run_state.state for r in (found, expected)]
    assert any(isinstance(state, MuonState) for state in states[0].opt_state)
    carried = [(state.params, state.opt_state) for state in states]
    jax.tree.map(np.testing.assert_array_equal, *carried)
    logs = [(r.folder / "metrics.jsonl").read_bytes() for r in (found, expected)]
    assert logs[0] == logs[1]
