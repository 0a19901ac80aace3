"""GPT-2: its names, its start, its causality, and the gradient of its products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxopt_tf import _tree
from jaxopt_tf.pretraining import GPT2, GPT2Config, make_loss_fn
from jaxopt_tf.pretraining._model import times

pytestmark = pytest.mark.promotion_of_others  # flax's layers

TINY = GPT2Config(n_layer=2, n_head=2, n_embd=8, block_size=6)


@pytest.fixture
def batch(rng):
    return rng.integers(0, 256, size=(3, 7)).astype(np.uint8)


def test_names_are_those_of_the_flax_gpt2_of_transformers():
    params, _ = make_loss_fn(TINY, seed=0)
    block = {
        "ln_1.scale": (8,),
        "ln_1.bias": (8,),
        "attn.c_attn.kernel": (8, 24),
        "attn.c_attn.bias": (24,),
        "attn.c_proj.kernel": (8, 8),
        "attn.c_proj.bias": (8,),
        "ln_2.scale": (8,),
        "ln_2.bias": (8,),
        "mlp.c_fc.kernel": (8, 32),
        "mlp.c_fc.bias": (32,),
        "mlp.c_proj.kernel": (32, 8),
        "mlp.c_proj.bias": (8,),
    }
    expected = {"wte.embedding": (256, 8), "wpe.embedding": (6, 8)}
    expected |= {"ln_f.scale": (8,), "ln_f.bias": (8,)}
    for i in range(2):
        expected |= {f"h.{i}.{name}": shape for name, shape in block.items()}
    assert {name: leaf.shape for name, leaf in _tree.named_leaves(params)} == expected


def test_starts_with_the_spread_of_gpt2():
    config = GPT2Config(n_layer=2, n_head=2, n_embd=48, block_size=64)
    params, _ = make_loss_fn(config, seed=0)
    std = {name: float(jnp.std(leaf)) for name, leaf in _tree.named_leaves(params)}
    # 0.02 at the width of 768; a sixteenth of the width has four times that.
    assert std["wte.embedding"] == pytest.approx(0.08, rel=0.05)
    assert std["wpe.embedding"] == pytest.approx(0.08, rel=0.05)
    assert std["h.0.attn.c_attn.kernel"] == pytest.approx(0.08, rel=0.05)
    # Halved, as four products add to the stream.
    assert std["h.0.attn.c_proj.kernel"] == pytest.approx(0.04, rel=0.05)
    assert std["h.1.mlp.c_proj.kernel"] == pytest.approx(0.04, rel=0.05)


def test_starts_as_uniform_as_a_guess(batch):
    params, loss_fn = make_loss_fn(TINY, seed=0)
    total, num_items = loss_fn(params, batch)
    assert float(num_items) == 18
    assert float(total / num_items) == pytest.approx(np.log(256), abs=0.3)


def test_one_seed_is_one_model_and_another_seed_another():
    first, _ = make_loss_fn(TINY, seed=0)
    again, _ = make_loss_fn(TINY, seed=0)
    other, _ = make_loss_fn(TINY, seed=1)

    def kernel(params):
        return params["h"][0]["attn"]["c_attn"]["kernel"]

    np.testing.assert_array_equal(kernel(first), kernel(again))
    assert not np.array_equal(kernel(first), kernel(other))


def test_sees_every_byte_of_the_past_and_none_of_the_future(batch):
    model = nnx.jit(GPT2(TINY, rngs=nnx.Rngs(0)))
    tokens = batch[:, :6].astype(np.int32)
    logits = model(tokens)
    assert logits.shape == (3, 6, 256)
    for position in range(6):
        changed = tokens.copy()
        changed[:, position] ^= 1
        moved = np.any(np.asarray(model(changed) != logits), axis=-1)
        assert not moved[:, :position].any()
        assert moved[:, position:].all()


@pytest.mark.parametrize("num_out", [3, 12], ids="num_out={}".format)
def test_product_has_the_gradient_of_a_product(num_out, rng):
    # Narrower and wider than what comes in: the two orders of the backward pass.
    x = jnp.asarray(rng.normal(size=(2, 5, 6)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(6, num_out)), jnp.float32)

    def grads_of(product):
        def loss(x, kernel):
            return jnp.sum(jnp.sin(product(x, kernel)))

        return jax.grad(loss, argnums=(0, 1))(x, kernel)

    for ours, plain in zip(grads_of(times), grads_of(jnp.matmul), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["n_layer", "n_head", "n_embd", "block_size"])
@pytest.mark.parametrize("value", [0, -1])
def test_refuses_a_size_below_1(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        GPT2Config(**{name: value})


def test_refuses_heads_that_do_not_divide_the_width():
    with pytest.raises(ValueError, match=r"`n_embd` must be a multiple .* got 30"):
        GPT2Config(n_embd=30, n_head=4)
