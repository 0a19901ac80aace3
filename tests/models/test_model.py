"""GPT-2: names, initialization, causality, scan and checkpointing."""

import dataclasses
import functools
import re

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxopt_tf._pytrees import _tree
from jaxopt_tf.models import GPT2, GPT2Config, make_attention, make_loss_fn
from jaxopt_tf.models._gpt2 import _dropout_attention
from jaxopt_tf.optimizers import decay_mask

pytestmark = [
    pytest.mark.promotion_of_others,  # flax's layers
    pytest.mark.usefixtures("compiled_quickly"),
]

TINY = GPT2Config(n_layer=2, n_head=2, n_embd=8, block_size=6, vocab_size=256)
SCANNED = dataclasses.replace(TINY, scan_layers=True)
DROPPING = dataclasses.replace(TINY, resid_pdrop=0.2, embd_pdrop=0.3)


@pytest.fixture
def batch(rng):
    return rng.integers(0, 256, size=(3, 7)).astype(np.int32)


@functools.cache
def gradient_of(config):
    """The parameters, and the compiled loss with its gradient."""
    params, loss_fn = make_loss_fn(config, 0)
    return params, jax.jit(jax.value_and_grad(loss_fn, has_aux=True))


@jax.jit
def logits_of(params, tokens):
    graph = nnx.graphdef(nnx.eval_shape(lambda: GPT2(TINY, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, params)(tokens)


def key(seed):
    return jax.random.key(seed, impl="unsafe_rbg")  # the fastest to compile


def losses_of(batch):
    """Returns the loss of each token after the first, [B, T]."""
    return -np.take_along_axis(log_p_of(batch), batch[:, 1:, None], axis=-1)[..., 0]


def log_p_of(batch):
    params, _ = gradient_of(TINY)
    return np.asarray(jax.nn.log_softmax(logits_of(params, batch[:, :-1])))


def stacked(params):
    """The parameters of an unscanned model as a scanned one has them."""
    blocks = params["transformer"]["h"]
    h = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks.values())
    return {"transformer": {**params["transformer"], "h": h}}


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
    stack = {f"h.{name}": (2, *shape) for name, shape in block.items()}
    assert shapes(make_loss_fn(SCANNED, seed=0)[0]) == with_root(expected | stack)
    for i in range(2):
        expected |= {f"h.{i}.{name}": shape for name, shape in block.items()}
    assert shapes(params) == with_root(expected)


def shapes(params):
    return {name: leaf.shape for name, leaf in _tree.named_leaves(params)}


def with_root(expected):
    return {f"transformer.{name}": shape for name, shape in expected.items()}


def test_starts_with_the_spread_of_gpt2():
    config = GPT2Config(n_layer=2, n_head=2, n_embd=48, block_size=64)
    params, _ = make_loss_fn(config, seed=0)
    std = {
        name.removeprefix("transformer."): np.std(leaf)
        for name, leaf in _tree.named_leaves(params)
    }
    # 0.02 at the width of 768; a sixteenth of the width has four times that.
    assert std["wte.embedding"] == pytest.approx(0.08, rel=0.05)
    assert std["wpe.embedding"] == pytest.approx(0.08, rel=0.05)
    assert std["h.0.attn.c_attn.kernel"] == pytest.approx(0.08, rel=0.05)
    # Halved, as four products add to the stream.
    assert std["h.0.attn.c_proj.kernel"] == pytest.approx(0.04, rel=0.05)
    assert std["h.1.mlp.c_proj.kernel"] == pytest.approx(0.04, rel=0.05)


def test_starts_as_uniform_as_a_guess(batch):
    params, gradient = gradient_of(TINY)
    (total, num_items), _ = gradient(params, batch)
    assert float(num_items) == 18
    assert float(total) == pytest.approx(losses_of(batch).sum(), rel=1e-6)
    assert total.dtype == num_items.dtype == jnp.float32
    assert float(total / num_items) == pytest.approx(np.log(256), abs=0.3)


def test_init_depends_on_the_seed_only():
    first, _ = make_loss_fn(TINY, seed=0)
    again, _ = make_loss_fn(TINY, seed=0)
    other, _ = make_loss_fn(TINY, seed=1)

    def kernel(params):
        return params["transformer"]["h"][0]["attn"]["c_attn"]["kernel"]

    np.testing.assert_array_equal(kernel(first), kernel(again))
    assert not np.array_equal(kernel(first), kernel(other))


def test_sees_every_token_of_the_past_and_none_of_the_future(batch):
    (params, _), tokens = gradient_of(TINY), batch[:, :6]
    logits = logits_of(params, tokens)
    assert logits.shape == (3, 6, 256)
    for position in range(6):
        changed = tokens.copy()
        changed[:, position] ^= 1
        moved = np.any(np.asarray(logits_of(params, changed) != logits), axis=-1)
        assert not moved[:, :position].any()
        assert moved[:, position:].all()


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_checkpointing": True},
        {"scan_layers": True, "gradient_checkpointing": True},
    ],
    ids=["checkpointed", "scanned and checkpointed"],
)
def test_scan_and_checkpointing_change_neither_loss_nor_dropout(options, batch):
    params, plain = gradient_of(DROPPING)
    (expected, _), expected_grads = plain(params, batch, key(1))
    if "scan_layers" in options:
        params, expected_grads = stacked(params), stacked(expected_grads)
    start, otherwise = gradient_of(dataclasses.replace(DROPPING, **options))
    jax.tree.map(np.testing.assert_array_equal, start, params)
    (total, _), grads = otherwise(params, batch, key(1))
    assert float(total) == pytest.approx(float(expected), rel=1e-6)
    for (name, grad), (_, g) in zip(
        _tree.named_leaves(grads), _tree.named_leaves(expected_grads), strict=True
    ):
        np.testing.assert_allclose(grad, g, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_scan_is_one_layer_to_compile_however_many_there_are(batch):
    def num_equations(num_layers):
        params, loss_fn = make_loss_fn(
            dataclasses.replace(SCANNED, n_layer=num_layers), seed=0
        )
        gradient = jax.grad(loss_fn, has_aux=True)
        return len(list(equations(jax.make_jaxpr(gradient)(params, batch).jaxpr)))

    assert num_equations(2) == num_equations(5)


def test_checkpointed_layers_store_little_more_than_their_inputs(batch):
    def kept_by_a_layer(**options):
        config = dataclasses.replace(SCANNED, n_layer=5, **options)
        params, loss_fn = make_loss_fn(config, seed=0)
        gradient = jax.grad(loss_fn, has_aux=True)
        all_equations = equations(jax.make_jaxpr(gradient)(params, batch).jaxpr)
        # The first scan is the forward pass; what is stacked is for the second.
        forward = next(e for e in all_equations if e.primitive.name == "scan")
        stacks = [v.aval.shape for v in forward.outvars if v.aval.shape[:1] == (5,)]
        return sum(np.prod(shape[1:]) for shape in stacks)

    came_in = 3 * 6 * 8
    assert kept_by_a_layer() > 10 * came_in
    assert kept_by_a_layer(gradient_checkpointing=True) == came_in


def test_a_mask_leaves_out_the_norms_of_stacked_layers_too():
    params, _ = make_loss_fn(SCANNED, seed=0)
    decayed = dict(_tree.named_leaves(decay_mask(params)))
    kernels = {name for name in decayed if name.endswith(("kernel", "embedding"))}
    assert {name for name in decayed if decayed[name]} == kernels


# --- dropout


def test_drops_as_the_key_says(batch):
    params, gradient = gradient_of(DROPPING)
    losses = [float(gradient(params, batch, key(i))[0][0]) for i in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_drops_nothing_without_a_key(batch):
    params, dropping = make_loss_fn(DROPPING, seed=0)
    _, plain = make_loss_fn(TINY, seed=0)

    def program(loss_fn, *rng):
        return str(jax.make_jaxpr(loss_fn)(params, batch, *rng))

    # As text, which has the addresses of functions in it.
    without, of_plain = (
        re.sub("0x[0-9a-f]+", "", program(loss_fn)) for loss_fn in (dropping, plain)
    )
    assert without == of_plain
    assert "random_bits" not in program(plain, key(1))


@pytest.mark.parametrize("rate", ["resid_pdrop", "embd_pdrop", "attn_pdrop"])
def test_each_share_drops_on_its_own(rate, batch):
    params, loss_fn = make_loss_fn(dataclasses.replace(TINY, **{rate: 0.5}), seed=0)
    jaxpr = jax.make_jaxpr(loss_fn)(params, batch, key(1))
    num_draws = sum(e.primitive.name == "random_bits" for e in equations(jaxpr.jaxpr))
    assert num_draws == {"resid_pdrop": 4, "embd_pdrop": 1, "attn_pdrop": 2}[rate]


def test_attention_drops_probabilities_and_keeps_documents_apart(rng):
    q, k = rng.normal(size=(2, 1, 6, 2, 6)).astype(np.float32)
    v = np.broadcast_to(np.eye(6, dtype=np.float32)[None, :, None], k.shape)
    segment_ids = np.asarray([[1, 1, 1, 2, 2, 2]], np.int32)
    # With these values, outputs are probabilities.
    attend = make_attention(implementation="xla")
    whole = np.asarray(attend(q, k, v, segment_ids=jnp.asarray(segment_ids)))
    dropped = _dropout_attention(q, k, v, jnp.asarray(segment_ids), 0.25, key(0))
    is_kept = np.asarray(dropped) > 0
    np.testing.assert_allclose(dropped, is_kept * whole / 0.75, rtol=1e-5)
    assert 0.6 < is_kept.sum() / (whole > 0).sum() < 0.9


# --- bfloat16


@pytest.mark.parametrize("config", [DROPPING, SCANNED], ids=["plain", "scanned"])
def test_with_bfloat16_parameters_every_product_is_of_bfloat16(config, batch):
    params, loss_fn = make_loss_fn(config, seed=0)
    narrow = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.bfloat16), params)
    gradient = jax.grad(loss_fn, has_aux=True)
    jaxpr = jax.make_jaxpr(gradient)(narrow, batch, key(0))
    factors = [
        factor.aval.dtype
        for equation in equations(jaxpr.jaxpr)
        if equation.primitive.name == "dot_general"
        for factor in equation.invars
    ]
    # But for softmax's own gradient, which is float32 beside a bfloat16 query or key.
    num_layers = 1 if config.scan_layers else config.n_layer
    assert sum(dtype != jnp.bfloat16 for dtype in factors) <= 2 * num_layers
    assert len(factors) > 2 * 3 * 6 * num_layers


def equations(jaxpr):
    """Yields the equations of a jaxpr and of the functions that it calls."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def test_bfloat16_is_near_float32(batch):
    params, gradient = gradient_of(TINY)
    narrow = jax.tree.map(lambda p: np.asarray(p).astype(jnp.bfloat16), params)
    (expected, _), wide_grads = gradient(params, batch)
    (total, num_items), grads = gradient(narrow, batch)
    assert total.dtype == num_items.dtype == jnp.float32
    assert float(total) == pytest.approx(float(expected), rel=2e-3)
    for (name, g), (_, wide) in zip(
        _tree.named_leaves(grads), _tree.named_leaves(wide_grads), strict=True
    ):
        assert g.dtype == jnp.bfloat16, name
        distance = np.linalg.norm(np.asarray(g, np.float32) - wide)
        assert distance < 0.03 * np.linalg.norm(wide), name


# --- what a batch may hold


def test_takes_bytes(batch):
    params, loss_fn = make_loss_fn(TINY, seed=0)
    expected, _ = gradient_of(TINY)[1](params, batch)
    total, _ = jax.jit(loss_fn)(params, batch.astype(np.uint8))
    assert float(total) == pytest.approx(float(expected[0]), rel=1e-6)


def test_a_row_may_end_early(batch):
    params, gradient = gradient_of(TINY)
    padded = batch.copy()
    padded[1, 4:] = padded[2, 1:] = -100
    (total, num_items), _ = gradient(params, padded)
    losses = losses_of(batch)
    assert float(num_items) == 6 + 3
    expected = losses[0].sum() + losses[1, :3].sum()
    assert float(total) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("token", [256, -1, -99, 2**31 - 1])
@pytest.mark.parametrize("position", [0, 6])
def test_a_token_outside_the_vocabulary_is_never_another_token(token, position, batch):
    params, gradient = gradient_of(TINY)
    batch[1, position] = token
    (total, _), _ = gradient(params, batch)
    assert np.isnan(float(total))


def test_a_token_after_the_end_of_a_row_is_not_guessed_from_nothing(batch):
    params, gradient = gradient_of(TINY)
    batch[1, 3] = -100
    (total, _), _ = gradient(params, batch)
    assert np.isnan(float(total))


def test_smooths_labels(batch):
    params, loss_fn = make_loss_fn(TINY, seed=0, label_smoothing_factor=0.1)
    uniform = -np.mean(log_p_of(batch), axis=-1)
    expected = 0.9 * losses_of(batch).sum() + 0.1 * uniform.sum()
    total, _ = jax.jit(loss_fn)(params, batch)
    assert float(total) == pytest.approx(expected, rel=1e-6)


def test_refuses_a_row_longer_than_the_model_sees():
    params, loss_fn = make_loss_fn(TINY, seed=0)
    with pytest.raises(ValueError, match=r"rows of at most 7 tokens, one more than"):
        loss_fn(params, np.zeros((1, 8), np.int32))


@pytest.mark.parametrize("shape", [(7,), (2, 3, 7), (2, 1), (2, 0)])
def test_refuses_a_batch_of_another_shape(shape):
    params, loss_fn = make_loss_fn(TINY, seed=0)
    with pytest.raises(ValueError, match="`batch` must be rows of at least 2 tokens"):
        loss_fn(params, np.zeros(shape, np.int32))


def test_refuses_tokens_that_are_no_integers():
    params, loss_fn = make_loss_fn(TINY, seed=0)
    with pytest.raises(TypeError, match="`batch` must contain integers, got float32"):
        loss_fn(params, np.zeros((2, 7), np.float32))
    with pytest.raises(TypeError, match="`batch` must contain integers, got float32"):
        logits_of(params, np.zeros((2, 6), np.float32))


def test_refuses_a_smoothing_that_is_no_share():
    with pytest.raises(ValueError, match="`label_smoothing_factor` must be"):
        make_loss_fn(TINY, seed=0, label_smoothing_factor=1.0)
