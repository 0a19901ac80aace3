"""GPT-2 against its reference in torch."""

import jax
import numpy as np
import pytest
from flax import nnx

from jaxopt_tf._pytrees import _tree
from jaxopt_tf.models import GPT2, GPT2Config
from jaxopt_tf.models._loss import draw_params, make_gpt2_loss
from tests import references
from tests.references import gpt2 as reference

pytestmark = pytest.mark.promotion_of_others  # flax's layers

TINY = GPT2Config(n_layer=2, n_head=2, n_embd=8, block_size=6, vocab_size=256)


@jax.jit
def logits_and_gradient(params, batch):
    graph = nnx.graphdef(nnx.eval_shape(lambda: GPT2(TINY, rngs=nnx.Rngs(0))))
    logits = nnx.merge(graph, params)(batch[:, :-1])
    return logits, jax.value_and_grad(make_gpt2_loss(TINY), has_aux=True)(params, batch)


@references.needs_transformers
def test_gpt2_matches_torch(rng):
    batch = rng.integers(0, 256, size=(3, 7)).astype(np.int32)
    shapes = jax.eval_shape(lambda: draw_params(TINY, seed=0))

    def drawn(path, p):  # biases and gains too, which start as zeros and ones
        middle = 1.0 if path[-1].key == "scale" else 0.0
        return rng.normal(middle, 0.2, p.shape).astype(np.float32)

    params = jax.tree.map_with_path(drawn, shapes)
    logits, ((total, num_items), grads) = logits_and_gradient(params, batch)

    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 6}
    their_logits, their_loss, their_grads = reference.logits_loss_and_grads(
        sizes | {"vocab_size": 256}, dict(_tree.named_leaves(params)), batch
    )
    np.testing.assert_allclose(logits, their_logits, rtol=1e-5, atol=1e-5)
    assert float(num_items) == 18
    assert float(total / num_items) == pytest.approx(their_loss, rel=1e-6)
    assert their_grads.keys() == {name for name, _ in _tree.named_leaves(params)}
    for name, grad in _tree.named_leaves(grads):
        ours, theirs = np.asarray(grad) / 18, their_grads[name]
        distance = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        assert distance < 1e-5, name
