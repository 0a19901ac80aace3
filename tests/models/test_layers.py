"""Layers that differ from Flax's: gradient, dtype and dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxopt_tf.models._layers import Embedding, dropout, matmul

pytestmark = pytest.mark.promotion_of_others  # flax's variables


@pytest.mark.parametrize("num_out", [3, 12], ids="num_out={}".format)
def test_product_has_the_gradient_of_a_product(num_out, rng):
    # Narrower and wider than what comes in: the two orders of the backward pass.
    x = jnp.asarray(rng.normal(size=(2, 5, 6)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(6, num_out)), jnp.float32)

    def grads_of(product):
        def loss(x, kernel):
            return jnp.sum(jnp.sin(product(x, kernel)))

        return jax.grad(loss, argnums=(0, 1))(x, kernel)

    for ours, plain in zip(grads_of(matmul), grads_of(jnp.matmul), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)


def test_an_embedding_keeps_the_dtype_of_its_parameters():
    graph, params = nnx.split(Embedding(5, 3, 0.1, nnx.Rngs(0)))
    narrow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    assert nnx.merge(graph, narrow)(jnp.arange(5)).dtype == jnp.bfloat16


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.int32])
def test_an_embedding_is_nan_where_there_is_no_token(dtype):
    embedding = Embedding(128, 3, 0.1, nnx.Rngs(0))
    vectors = embedding(jnp.array([-128, -1, 0, 127], dtype))
    there = np.isfinite(vectors).all(axis=-1)
    np.testing.assert_array_equal(there, [False, False, True, True])


def test_an_embedding_is_nan_past_its_last_token():
    embedding = Embedding(5, 3, 0.1, nnx.Rngs(0))
    vectors = embedding(jnp.array([4, 5, 255], jnp.uint8))
    there = np.isfinite(vectors).all(axis=-1)
    np.testing.assert_array_equal(there, [True, False, False])


def test_dropout_keeps_the_mean_and_the_dtype():
    x = jnp.ones((100, 100), jnp.bfloat16)
    y = dropout(x, 0.25, jax.random.key(0))
    assert y.dtype == jnp.bfloat16
    assert float(jnp.mean(y == 0)) == pytest.approx(0.25, abs=0.02)
    np.testing.assert_allclose(np.unique(y.astype(np.float32)), [0, 4 / 3], rtol=4e-3)


def test_nothing_is_dropped_without_a_key_or_a_share():
    x = jnp.ones((10, 10))
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x
