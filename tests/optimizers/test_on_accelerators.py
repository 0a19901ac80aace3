"""Optimizer steps compiled for an H100, if its compiler is installed."""

import jax
import numpy as np
import optax
import pytest

from benchmarks import _optimizer_steps as steps
from jaxopt_tf import adamw_tf, clip
from jaxopt_tf.optimizers import adafactor_trainer
from jaxopt_tf.planning import (
    is_compiler_installed,
    named_slice,
    program_cost,
    slice_devices,
)

pytestmark = pytest.mark.skipif(
    not is_compiler_installed(named_slice("h100")),
    reason="jax-cuda12-plugin is not installed: the H100's compiler is in it",
)
SHAPES = steps.gpt2(256, 2, 2000)


@pytest.mark.parametrize(
    ("transformation", "least"),
    [
        (optax.chain(clip(1.0), adamw_tf(1e-3, weight_decay=0.1)), 32),
        (adafactor_trainer(1e-3), 20),
    ],
    ids=["clip, adamw", "adafactor"],
)
def test_moves_what_it_must(transformation, least):
    mesh = jax.sharding.Mesh(np.array(slice_devices(named_slice("h100"))), ("x",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    program = steps.compiled(transformation, SHAPES, sharding=place)
    cost = program_cost(program, 1)
    # Rows, columns and biases need a few percent of the memory here.
    assert cost.hbm_bytes < 1.05 * least * steps.num_elements(SHAPES)
    assert cost.temporary < 0.05 * 4 * steps.num_elements(SHAPES)
