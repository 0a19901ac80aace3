"""A short run of this package and one of Transformers' Trainer."""

import importlib.util

import numpy as np
import pytest

from jaxopt_tf.monitors import json_lines
from tests.events import metrics_of, tell

_HAS_TWINS = all(importlib.util.find_spec(n) for n in ("torch", "transformers"))
NUM_STEPS = 40
LAYERS = ("m.h.0.ln", "m.h.10.ln", "m.h.2.ln", "m.ln_f", "m.wte")


@pytest.fixture
def our_run(tmp_path):
    """As `jaxopt-tf train --log_layers` leaves it; one step was skipped."""
    folder = tmp_path / "ours"
    folder.mkdir()
    rates = np.linspace(0, 1e-3, NUM_STEPS)
    layers = {
        name: (10.0 ** -(k + 1), rates * 10 * (k + 1), 10.0)
        for k, name in enumerate(LAYERS)
    }
    metrics = metrics_of(
        np.linspace(4, 2, NUM_STEPS),
        rate=rates,
        grads=np.linspace(3, 1, NUM_STEPS),
        updates=rates * 20,
        skipped=np.arange(NUM_STEPS) == 10,
        layers=layers,
    )
    monitor = json_lines(folder / "metrics.jsonl")
    tell(monitor, metrics, evaluations={20: 2.5, 40: 2.25})
    monitor.close()
    return folder


@pytest.fixture(scope="session")
def trainer_run(tmp_path_factory):
    """The output_dir of a real Trainer: 8 steps, checkpoints at 4 and 8."""
    if not _HAS_TWINS:
        pytest.skip("torch and Transformers are not installed")
    from tests.interop import trainer_runs

    folder = tmp_path_factory.mktemp("trainer") / "output"
    trainer_runs.trainer(folder, "adamw_torch", "linear").train()
    return folder
