"""Steps of low-bit optimizers compiled for accelerators, if there are compilers."""

import jax
import numpy as np
import optax
import pytest

from benchmarks import _optimizer_steps as steps
from jaxopt_tf import clip
from jaxopt_tf.optimizers import TorchLayout, adamw_4bit_tf, adamw_8bit_tf
from jaxopt_tf.planning import is_compiler_installed, named_slice, slice_devices

MATRICES = [(768, 2304), (768, 768), (768, 3072), (3072, 768)]
OF_FLAX = {".*": TorchLayout.dense()}


@pytest.mark.skipif(
    not is_compiler_installed(named_slice("h100")),
    reason="jax-cuda12-plugin is not installed: the H100's compiler is in it",
)
@pytest.mark.parametrize(
    ("make", "layouts", "num_bytes"),
    [
        (adamw_8bit_tf, None, 26),
        (adamw_8bit_tf, OF_FLAX, 27),
        (adamw_4bit_tf, None, 23),
        (adamw_4bit_tf, OF_FLAX, 29),
    ],
    ids=["8 bits", "8 bits, flax", "4 bits", "4 bits, flax"],
)
def test_codes_are_written_over_the_old_ones(make, layouts, num_bytes):
    optimizer = optax.chain(clip(1.0), make(1e-3, layouts=layouts))
    device = slice_devices(named_slice("h100"))[0]
    cost = steps.cost_on(optimizer, MATRICES, device)
    num = steps.num_elements(MATRICES)
    # Copies of the codes of the largest leaf would be 17 percent.
    assert cost.temporary < 0.08 * 4 * num
    assert cost.hbm_bytes < 1.06 * num_bytes * num


@pytest.mark.skipif(
    not is_compiler_installed(named_slice("v5e:2x4")),
    reason="libtpu is not installed: the v5e's compiler is in it",
)
@pytest.mark.parametrize("make", [adamw_8bit_tf, adamw_4bit_tf], ids=["8", "4"])
def test_a_tpu_does_not_transpose_quantized_leaves(make):
    mesh = jax.sharding.Mesh(np.array(slice_devices(named_slice("v5e:2x4"))[:1]), "x")
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    program = steps.compiled(make(1e-3), [(1024, 768)], sharding=place)
    assert "[1024,768]{1,0" in program.as_text()
    assert "[1024,768]{0,1" not in program.as_text()
