"""Attention of GPT-2 on rows of one segment: cuDNN's kernel where there is one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_tf.models import _attention
from jaxopt_tf.models._gpt2 import gpt2_attention

# JAX promotes dtypes implicitly in its attention.
pytestmark = pytest.mark.promotion_of_others


@pytest.fixture
def on_h100(monkeypatch):
    """Implementations that JAX is called with; cuDNN has heads of size 16 at most."""
    calls = []
    compute = jax.nn.dot_product_attention

    def recorded(*arrays, implementation=None, **options):
        calls.append(implementation)
        if implementation == "cudnn" and arrays[0].shape[-1] > 16:
            raise NotImplementedError("The head dim must be <= 16.")
        return compute(*arrays, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", recorded)
    kind = "gpu", "NVIDIA H100 80GB HBM3"
    monkeypatch.setattr(_attention, "_device", lambda mesh: kind)
    return calls


@pytest.mark.parametrize(
    ("size", "dtype", "expected"),
    [
        (16, "bfloat16", ["cudnn"]),
        (24, "bfloat16", ["cudnn", None]),  # not supported by cuDNN
        (16, "float32", [None]),
    ],
    ids=["supported", "unsupported", "float32"],
)
def test_cudnn_is_used_where_it_can(on_h100, size, dtype, expected):
    shape = (2, 40, 2, size)
    q, k, v = jax.random.normal(jax.random.key(0), (3, *shape), dtype)
    ours = jax.jit(gpt2_attention())(q, k, v)
    assert on_h100 == expected
    exact = jax.nn.dot_product_attention(
        *(x.astype("float32") for x in (q, k, v)), is_causal=True
    )
    difference = np.asarray(ours.astype(jnp.float32)) - exact
    assert np.linalg.norm(difference) < 2**-6 * np.linalg.norm(exact)
