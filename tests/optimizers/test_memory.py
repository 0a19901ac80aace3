"""Temporary memory of a compiled step, which contains no copy of the gradients."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxopt_tf import adamw_tf, clip
from jaxopt_tf.optimizers import TorchLayout, adafactor_tf, adafactor_trainer

# Leaves of several sizes, some of equal shape, for which XLA may share buffers.
SHAPES = [(2000, 256), *[(256, 768), (768,), (256, 256), (256,), (1024, 256)] * 3]
PARAMS = {
    f"layer_{i:02}": jax.ShapeDtypeStruct(shape, jnp.float32)
    for i, shape in enumerate(SHAPES)
}
TRANSPOSED = {"layer_.*[05]": TorchLayout.dense()}


def temporary_share(transformation: optax.GradientTransformation) -> float:
    """Returns the temporary memory of a donated step, in units of the gradients'."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, grads):
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(transformation.init, PARAMS)
    compiled = step.lower(PARAMS, state, PARAMS).compile()
    of_grads = sum(4 * leaf.size for leaf in PARAMS.values())
    return compiled.memory_analysis().temp_size_in_bytes / of_grads


@pytest.mark.parametrize(
    "transformation",
    [
        optax.chain(clip(1.0), adamw_tf(1e-3, weight_decay=0.1)),
        adafactor_trainer(1e-3),
        adafactor_tf(1e-3, relative_step=False, weight_decay=0.1),
        adafactor_trainer(1e-3, beta1=0.9),
        adafactor_trainer(1e-3, layouts=TRANSPOSED),
    ],
    ids=["clip, adamw", "adafactor", "scaled", "momentum", "transposed"],
)
def test_keeps_nothing_of_the_gradients_size(transformation):
    # For leaves of this size, rows and columns need a few percent of the memory.
    assert temporary_share(transformation) < 0.05


def test_sees_a_copy_of_the_gradients():
    # Clipping by a select between gradients and scaled ones would store both.
    copies = optax.chain(optax.clip_by_global_norm(1.0), adamw_tf(1e-3))
    assert temporary_share(copies) > 0.5


def num_instructions(num_leaves: int) -> int:
    tx = adamw_tf(
        lambda step: 1e-3 / (1.0 + step.astype(jnp.float32)), weight_decay=0.1
    )
    params = {
        f"{i}": jax.ShapeDtypeStruct((8, 8), jnp.float32) for i in range(num_leaves)
    }
    state = jax.eval_shape(tx.init, params)
    program = jax.jit(tx.update).lower(params, state, params).compile()
    return program.as_text().count(" = ")


def test_a_leaf_does_not_compute_what_all_leaves_share():
    # About 70 instructions; 145 if the loop repeats the sums and selects of scalars.
    assert num_instructions(20) - num_instructions(10) < 10 * 100
