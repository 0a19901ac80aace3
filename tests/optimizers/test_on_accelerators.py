"""Optimizer steps for accelerators: lowered, and compiled for an H100 if possible."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import _optimizer_steps as steps
from jaxopt_tf import adamw_tf, clip
from jaxopt_tf.optimizers import adafactor_trainer, lion_tf, rmsprop_tf
from jaxopt_tf.planning import (
    is_compiler_installed,
    named_slice,
    slice_devices,
)

needs_compiler = pytest.mark.skipif(
    not is_compiler_installed(named_slice("h100")),
    reason="jax-cuda12-plugin is not installed: the H100's compiler is in it",
)
SHAPES = steps.gpt2(256, 2, 2000)
NUM_MATRICES = sum(len(shape) > 1 for shape in SHAPES)
CLIP_AND_ADAMW = optax.chain(clip(1.0), adamw_tf(1e-3, weight_decay=0.1))


def cost_on_h100(transformation):
    device = slice_devices(named_slice("h100"))[0]
    return steps.cost_on(transformation, SHAPES, device)


@needs_compiler
@pytest.mark.parametrize(
    ("transformation", "least"),
    [(CLIP_AND_ADAMW, 32), (adafactor_trainer(1e-3), 20)],
    ids=["clip, adamw", "adafactor"],
)
def test_moves_what_it_must(transformation, least):
    cost = cost_on_h100(transformation)
    # Rows, columns and biases need a few percent of the memory here.
    assert cost.hbm_bytes < 1.05 * least * steps.num_elements(SHAPES)
    assert cost.temporary < 0.05 * 4 * steps.num_elements(SHAPES)


@needs_compiler
def test_has_few_kernels():
    # A matrix needs two, for its norm and its update. 22 are for scalars, for all
    # vectors and for the sum of all parts of the norm.
    assert cost_on_h100(CLIP_AND_ADAMW).kernels <= 2 * NUM_MATRICES + 22


def lowered(transformation, shapes, platform):
    params = {f"leaf_{i}": jax.ShapeDtypeStruct(s, "float32") for i, s in shapes}
    state = jax.eval_shape(transformation.init, params)
    traced = steps.train_step(transformation).trace(params, state, params)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def vectors_behind_barriers(text):
    return re.findall(r"optimization_barrier %\S+ : (tensor<\d+xf32>)\n", text)


@pytest.mark.parametrize(
    "transformation",
    [adamw_tf(1e-3, weight_decay=0.1), lion_tf(1e-3), rmsprop_tf(1e-3)],
    ids=["adamw", "lion", "rmsprop"],
)
def test_small_leaves_share_a_vector_on_gpus(transformation):
    # XLA for GPUs joins loops that read a common array, but not a common scalar.
    shapes = [*enumerate([(16,)] * 8), (8, (512, 256))]
    (vector,) = vectors_behind_barriers(lowered(transformation, shapes, "cuda"))
    assert vector not in ("tensor<0xf32>", "tensor<1xf32>")
    for platform in ("cpu", "tpu"):
        assert not vectors_behind_barriers(lowered(transformation, shapes, platform))


def test_large_leaves_share_no_vector():
    text = lowered(adamw_tf(1e-3), [(0, (512, 256)), (1, (512, 256))], "cuda")
    assert not vectors_behind_barriers(text)


def test_norm_has_one_sum_of_all_parts_on_gpus():
    def num_sums(platform):
        text = lowered(CLIP_AND_ADAMW, list(enumerate(SHAPES)), platform)
        sums = r"stablehlo\.reduce\(.*tensor<f32>\) -> tensor<f32>"
        return len(re.findall(sums, text))

    # One sum of the parts of all matrices, and one of all vectors.
    assert num_sums("cuda") == 2
    assert num_sums("cpu") == NUM_MATRICES + 1


@pytest.fixture
def forms_for_gpus(monkeypatch):
    """Runs the forms of expressions for GPUs on this machine."""

    def of_gpu(*args, cuda, **of_others):
        del of_others
        return cuda(*args)

    monkeypatch.setattr(jax.lax, "platform_dependent", of_gpu)


def random_tree(shapes):
    rng = np.random.default_rng(0)
    return {
        f"leaf_{i}": jnp.asarray(rng.standard_normal(shape), "float32")
        for i, shape in enumerate(shapes)
    }


def updated(transformation, tree):
    @jax.jit
    def update(tree):
        return transformation.update(tree, transformation.init(tree), tree)

    return update(tree)


def test_shared_vector_changes_no_bit(request):
    tree = random_tree([(16,), (16,), (300, 400), ()])
    mask = dict.fromkeys(tree, True)
    optimizer = adamw_tf(1e-3, weight_decay=0.1, decay_mask=mask)
    expected = updated(optimizer, tree)
    request.getfixturevalue("forms_for_gpus")
    jax.tree.map(np.testing.assert_array_equal, updated(optimizer, tree), expected)


@pytest.mark.usefixtures("forms_for_gpus")
def test_norm_of_parts_is_exact():
    # Rows of fewer than 256 elements, several axes to a part, a vector, small leaves.
    tree = random_tree([(70, 3, 40), (300, 400), (9_000, 1), (5_000,), (8, 8), (3,)])
    _, state = updated(clip(1.0), tree)
    squares = [np.sum(np.square(x, dtype="float64")) for x in tree.values()]
    np.testing.assert_allclose(state.grad_norm, np.sqrt(sum(squares)), rtol=1e-6)
