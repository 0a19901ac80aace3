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


def drawn_params(rng):
    shapes = jax.eval_shape(lambda: draw_params(TINY, seed=0))

    def drawn(path, p):  # biases and gains too, which start as zeros and ones
        middle = 1.0 if path[-1].key == "scale" else 0.0
        return rng.normal(middle, 0.2, p.shape).astype(np.float32)

    return jax.tree.map_with_path(drawn, shapes)


SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 6, "vocab_size": 256}


@references.needs_transformers
def test_gpt2_matches_torch(rng):
    batch = rng.integers(0, 256, size=(3, 7)).astype(np.int32)
    params = drawn_params(rng)
    logits, ((total, num_items), grads) = logits_and_gradient(params, batch)

    their_logits, their_loss, their_grads = reference.logits_loss_and_grads(
        SIZES, dict(_tree.named_leaves(params)), batch
    )
    np.testing.assert_allclose(logits, their_logits, rtol=1e-5, atol=1e-5)
    assert float(num_items) == 18
    assert float(total / num_items) == pytest.approx(their_loss, rel=1e-6)
    assert their_grads.keys() == {name for name, _ in _tree.named_leaves(params)}
    for name, grad in _tree.named_leaves(grads):
        ours, theirs = np.asarray(grad) / 18, their_grads[name]
        distance = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        assert distance < 1e-5, name


@references.needs_transformers
def test_rows_for_fine_tuning_are_those_of_torch(rng):
    # Two rows as torch has them, padded, and both in one packed row.
    tokens = rng.integers(0, 256, size=(2, 4)).astype(np.int32)
    tokens[1, 3] = 0  # padding
    labels = tokens.copy()
    labels[:, :2] = labels[1, 3] = -100  # prompts, and padding
    params = drawn_params(rng)
    _, their_loss, their_grads = reference.logits_loss_and_grads(
        SIZES, dict(_tree.named_leaves(params)), tokens, labels
    )
    position_ids = np.tile(np.arange(4, dtype=np.int32), (2, 1))
    rows = {"input_ids": tokens, "labels": labels, "position_ids": position_ids}
    padded = rows | {"segment_ids": np.asarray([[1, 1, 1, 1], [1, 1, 1, 0]], np.int32)}
    packed = {
        name: np.concatenate([array[0], array[1, :3]])[None]
        for name, array in rows.items()
    } | {"segment_ids": np.asarray([[1, 1, 1, 1, 2, 2, 2]], np.int32)}
    gradient = jax.jit(jax.value_and_grad(make_gpt2_loss(TINY), has_aux=True))
    for batch in (padded, packed):
        (total, num_items), grads = gradient(params, batch)
        assert float(num_items) == 3
        assert float(total / num_items) == pytest.approx(their_loss, rel=1e-6)
        for name, grad in _tree.named_leaves(grads):
            ours, theirs = np.asarray(grad) / 3, their_grads[name]
            distance = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
            assert distance < 1e-5, name
