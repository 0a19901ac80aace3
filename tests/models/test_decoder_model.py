"""Decoders: initialization, scan and checkpointing, batches."""

import dataclasses
import functools
import re

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from jaxopt_tf._pytrees import _tree
from jaxopt_tf.models._decoder import make_decoder_logits, make_decoder_loss
from jaxopt_tf.models._decoder_config import REMAT_POLICIES, DecoderConfig
from jaxopt_tf.models._decoder_params import (
    decoder_flops_per_token,
    decoder_rules,
    draw_decoder_params,
)
from jaxopt_tf.models._llama import Decoder, Inputs, periods
from jaxopt_tf.sharding import (
    batch_sharding,
    constrain_batch,
    constrain_batch_and_width,
    gather_columns,
    make_mesh,
    param_shardings,
    unmet_rules,
)

pytestmark = [
    pytest.mark.promotion_of_others,  # flax's variables
    pytest.mark.usefixtures("compiled_quickly"),
]

TINY = DecoderConfig(
    model_type="llama",
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    initializer_range=0.2,
)
BIASED = dataclasses.replace(TINY, attention_bias=True, mlp_bias=True)
# A period of two layers: one with RoPE, one with a window.
MIXED = dataclasses.replace(
    TINY,
    model_type="smollm3",
    num_hidden_layers=4,
    sliding_window=3,
    layer_types=["full_attention", "sliding_attention"] * 2,
    no_rope_layers=[1, 0, 1, 0],
)


@pytest.fixture
def batch(rng):
    return rng.integers(0, 96, size=(2, 13)).astype(np.int32)


@functools.cache
def gradient_of(config):
    params = draw_decoder_params(config, 0)
    return params, jax.jit(jax.value_and_grad(make_decoder_loss(config), has_aux=True))


def stacked(params):
    """The parameters of an unscanned model as a scanned one has them."""
    layers = params["model"]["layers"]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers.values())
    return {**params, "model": {**params["model"], "layers": stack}}


def shapes_of(config):
    shapes = jax.eval_shape(lambda: draw_decoder_params(config, 0))
    return {name: leaf.shape for name, leaf in _tree.named_leaves(shapes)}


def test_names_are_those_of_transformers():
    layer = {
        "input_layernorm.scale": (32,),
        "self_attn.q_proj.kernel": (32, 32),
        "self_attn.k_proj.kernel": (32, 16),
        "self_attn.v_proj.kernel": (32, 16),
        "self_attn.o_proj.kernel": (32, 32),
        "post_attention_layernorm.scale": (32,),
        "mlp.gate_proj.kernel": (32, 48),
        "mlp.up_proj.kernel": (32, 48),
        "mlp.down_proj.kernel": (48, 32),
    }
    outside = {
        "model.embed_tokens.embedding": (96, 32),
        "model.norm.scale": (32,),
        "lm_head.kernel": (32, 96),
    }
    stack = {f"model.layers.{name}": (2, *shape) for name, shape in layer.items()}
    assert shapes_of(TINY) == outside | stack
    apart = {
        f"model.layers.{i}.{name}": shape
        for i in range(2)
        for name, shape in layer.items()
    }
    assert shapes_of(dataclasses.replace(TINY, scan_layers=False)) == outside | apart


def test_starts_as_in_transformers():
    config = dataclasses.replace(
        BIASED, vocab_size=2000, pad_token_id=-1, initializer_range=0.02
    )
    params = draw_decoder_params(config, 0)
    for name, leaf in _tree.named_leaves(params):
        assert leaf.dtype == jnp.float32
        if name.endswith(("bias", "scale")):
            np.testing.assert_array_equal(leaf, float(name.endswith("scale")))
        else:
            assert np.std(leaf) == pytest.approx(0.02, rel=0.05), name
    padding = params["model"]["embed_tokens"]["embedding"][1999]
    np.testing.assert_array_equal(padding, 0.0)
    kernels = [leaf for name, leaf in _tree.named_leaves(params) if "_proj.k" in name]
    assert not any(np.array_equal(k[0], k[1]) for k in kernels)  # the two layers
    gate, up = (params["model"]["layers"]["mlp"][n]["kernel"] for n in MLP[:2])
    assert not np.array_equal(gate, up)


MLP = ("gate_proj", "up_proj", "down_proj")


def test_init_depends_on_the_seed_only():
    first, again, other = (draw_decoder_params(TINY, seed) for seed in (0, 0, 1))
    kernel = first["lm_head"]["kernel"]
    np.testing.assert_array_equal(kernel, again["lm_head"]["kernel"])
    assert not np.array_equal(kernel, other["lm_head"]["kernel"])


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (MIXED, {"gradient_checkpointing": True}),
        (TINY, {"gradient_checkpointing": True, "scan_layers": False}),
    ],
    ids=["scanned", "not scanned"],
)
def test_scan_and_checkpointing_do_not_change_the_loss(config, options, batch):
    params, plain = gradient_of(dataclasses.replace(config, scan_layers=False))
    (expected, _), expected_grads = plain(params, batch)
    otherwise = dataclasses.replace(config, **options)
    if otherwise.scan_layers:
        params, expected_grads = stacked(params), stacked(expected_grads)
    start, gradient = gradient_of(otherwise)
    jax.tree.map(np.testing.assert_array_equal, start, params)
    (loss, _), grads = gradient(params, batch)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    for (name, grad), (_, g) in zip(
        _tree.named_leaves(grads), _tree.named_leaves(expected_grads), strict=True
    ):
        np.testing.assert_allclose(grad, g, rtol=1e-4, atol=1e-5, err_msg=name)


def test_layers_are_scanned_by_periods_or_in_runs():
    assert periods("aaaa") == [(0, 4, ("a",))]
    assert periods("aaabaaab") == [(0, 2, tuple("aaab"))]
    assert periods("aaabb") == [(0, 3, ("a",)), (3, 2, ("b",))]
    assert periods("ab") == [(0, 1, ("a",)), (1, 1, ("b",))]
    assert periods("a") == [(0, 1, ("a",))]


def test_a_scan_is_one_layer_to_compile_however_many_there_are(batch):
    def num_equations(num_layers):
        config = dataclasses.replace(
            TINY, num_hidden_layers=num_layers, layer_types=None, no_rope_layers=None
        )
        params = jax.eval_shape(lambda: draw_decoder_params(config, 0))
        gradient = jax.grad(make_decoder_loss(config), has_aux=True)
        return len(list(equations(jax.make_jaxpr(gradient)(params, batch).jaxpr)))

    assert num_equations(2) == num_equations(5)


def equations(jaxpr):
    """Yields the equations of a jaxpr and of the functions that it calls."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def stored_by_a_layer(batch, **options):
    """Number of elements per layer that the forward pass keeps for the backward one."""
    config = dataclasses.replace(
        TINY, num_hidden_layers=5, layer_types=None, no_rope_layers=None, **options
    )
    return stored_by_a_repeat(config, batch)


def stored_by_a_repeat(config, batch):
    params = jax.eval_shape(lambda: draw_decoder_params(config, 0))
    gradient = jax.grad(make_decoder_loss(config), has_aux=True)
    all_equations = equations(jax.make_jaxpr(gradient)(params, batch).jaxpr)
    # The first scan is the forward pass; what is stacked is for the second.
    forward = next(e for e in all_equations if e.primitive.name == "scan")
    num_repeats = forward.params["length"]
    shapes = [v.aval.shape for v in forward.outvars]
    stacks = [shape for shape in shapes if shape[0] == num_repeats]
    return sum(np.prod(shape[1:]) for shape in stacks)


def test_a_policy_is_what_is_stored_of_checkpointed_layers(batch):
    stored = {
        policy: stored_by_a_layer(
            batch, gradient_checkpointing=True, remat_policy=policy
        )
        for policy in REMAT_POLICIES
        if "context" not in policy  # of the kernel for TPUs
    }
    num_tokens = 2 * 12
    came_in, qkv, out, mlp = 32, 32 + 16 + 16, 32, 48 + 48
    assert stored == {
        "full": num_tokens * came_in,
        "save_out_proj": num_tokens * (came_in + out),
        "save_qkv_proj": num_tokens * (came_in + qkv),
        "save_dot_except_mlp": num_tokens * (came_in + qkv + out),
        # The output of the MLP is not needed in the backward pass.
        "minimal": num_tokens * (came_in + qkv + out + mlp),
    }
    assert stored_by_a_layer(batch) > stored["minimal"]
    mixed = dataclasses.replace(MIXED, gradient_checkpointing=True)
    rows = np.concatenate([batch, batch[:1]])  # as many rows as no scan has repeats
    assert stored_by_a_repeat(mixed, rows) == 2 * 3 * 12 * came_in


@pytest.mark.parametrize("config", [TINY, MIXED], ids=["llama", "mixed"])
def test_sees_the_past_and_none_of_the_future(config, batch):
    params, _ = gradient_of(config)
    run = jax.jit(make_decoder_logits(config))
    tokens = batch[:, :12]
    logits = run(params, tokens)
    assert logits.shape == (2, 12, 96)
    for position in (0, 5, 11):
        changed = tokens.copy()
        changed[:, position] ^= 1
        differs = np.any(np.asarray(run(params, changed) != logits), axis=-1)
        assert not differs[:, :position].any()
        assert differs[:, position:].all()


def test_a_padding_token_has_no_gradient_from_its_lookup(batch):
    config = dataclasses.replace(TINY, pad_token_id=7)
    batch[:, 3] = 7
    _, gradient = gradient_of(config)
    params, plain = gradient_of(TINY)
    (loss, _), grads = gradient(params, batch)
    (expected, _), expected_grads = plain(params, batch)
    assert float(loss) == float(expected)
    ours, theirs = (
        g["model"]["embed_tokens"]["embedding"] for g in (grads, expected_grads)
    )
    assert np.any(theirs[7] != 0)
    assert np.all(ours[7] == 0)
    others = np.arange(96) != 7
    np.testing.assert_allclose(ours[others], theirs[others], rtol=1e-6)


# --- what a batch may hold


def losses_of(params, batch):
    """Returns the loss of each token after the first, [B, T]."""
    logits = jax.jit(make_decoder_logits(TINY))(params, batch[:, :-1])
    log_p = np.asarray(jax.nn.log_softmax(logits))
    return -np.take_along_axis(log_p, batch[:, 1:, None], axis=-1)[..., 0]


def test_an_array_is_a_text_that_is_predicted_completely(batch):
    params, gradient = gradient_of(TINY)
    (loss, num_items), _ = gradient(params, batch)
    assert loss.dtype == num_items.dtype == jnp.float32
    assert float(loss) == pytest.approx(losses_of(params, batch).sum(), rel=1e-6)
    assert float(num_items) == 2 * 12
    rows = {"input_ids": batch, "labels": batch}
    assert float(gradient(params, rows)[0][0]) == float(loss)


def test_labels_say_what_is_predicted(batch):
    params, gradient = gradient_of(TINY)
    labels = batch.copy()
    labels[0, :5] = labels[1, 9:] = -100
    (loss, num_items), _ = gradient(params, {"input_ids": batch, "labels": labels})
    losses = losses_of(params, batch)
    assert float(num_items) == 8 + 8
    expected = losses[0, 4:].sum() + losses[1, :8].sum()
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_a_row_may_end_early(batch):
    params, gradient = gradient_of(TINY)
    losses = losses_of(params, batch)
    batch[1, 4:] = -100
    (loss, num_items), _ = gradient(params, batch)
    assert float(num_items) == 12 + 3
    expected = losses[0].sum() + losses[1, :3].sum()
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    batch[0, 5] = -100  # a text does not go on after its end
    assert np.isnan(float(gradient(params, batch)[0][0]))


@pytest.mark.parametrize("token", [96, -1])
def test_a_token_outside_the_vocabulary_is_never_another_token(token, batch):
    params, gradient = gradient_of(TINY)
    batch[1, 5] = token
    assert np.isnan(float(gradient(params, batch)[0][0]))


def test_smooths_labels(batch):
    params, _ = gradient_of(TINY)
    logits = jax.jit(make_decoder_logits(TINY))(params, batch[:, :-1])
    uniform = -np.mean(np.asarray(jax.nn.log_softmax(logits)), axis=-1)
    expected = 0.9 * losses_of(params, batch).sum() + 0.1 * uniform.sum()
    loss, _ = make_decoder_loss(TINY, label_smoothing_factor=0.1)(params, batch)
    assert float(loss) == pytest.approx(expected, rel=1e-6)


TOKENS = np.zeros((2, 7), np.int32)


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (np.zeros((2, 66), np.int32), ValueError, "`batch` must be rows of at most 65"),
        (np.zeros((2, 1), np.int32), ValueError, "`batch` must be rows of at least 2"),
        (np.zeros((2, 7)), TypeError, "`batch` must contain integers, got float"),
        ({"labels": TOKENS}, ValueError, "`batch` must have the key 'input_ids'"),
        ({"input_ids": TOKENS}, ValueError, "`batch` must have the key 'labels'"),
        (
            {"input_ids": TOKENS, "labels": TOKENS, "attention_mask": TOKENS},
            ValueError,
            "`batch` must be one of .*'segment_ids'.* got 'attention_mask'",
        ),
        (
            {"input_ids": TOKENS, "labels": TOKENS[:, 1:]},
            ValueError,
            r"`batch\['labels'\]` must have the shape of `input_ids`, \[2, 7\], got",
        ),
        (
            {"input_ids": TOKENS, "labels": TOKENS.astype(float)},
            TypeError,
            r"`batch\['labels'\]` must contain integers",
        ),
    ],
)
def test_refuses_a_batch(batch, error, message):
    params, _ = gradient_of(TINY)
    with pytest.raises(error, match=message):
        make_decoder_loss(TINY)(params, batch)


def test_refuses_a_smoothing_that_is_no_share():
    with pytest.raises(ValueError, match="`label_smoothing_factor` must be"):
        make_decoder_loss(TINY, label_smoothing_factor=1.0)


# --- properties of the parameters


@pytest.mark.parametrize(
    "config",
    [
        BIASED,
        dataclasses.replace(TINY, scan_layers=False, tie_word_embeddings=True),
        dataclasses.replace(TINY, model_type="qwen2"),
        dataclasses.replace(TINY, model_type="qwen3", attention_bias=True),
    ],
    ids=["biases", "tied", "qwen2", "qwen3"],
)
def test_every_matrix_is_sharded_over_both_axes(config):
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    shapes = jax.eval_shape(lambda: draw_decoder_params(config, 0))
    rules = decoder_rules(config, mesh)
    assert unmet_rules(shapes, mesh, rules) == []
    shardings = dict(_tree.named_leaves(param_shardings(shapes, mesh, rules)))
    for name, sharding in shardings.items():
        is_matrix = name.endswith(("kernel", "embedding"))
        assert ("fsdp" in sharding.spec) == is_matrix, name
        # Outputs of the first layer of two, inputs of the second.
        by_tensor = re.search(r"(o|down)_proj\.bias|norm\.scale", name) is None
        assert ("tensor" in sharding.spec) == by_tensor, name
        if is_matrix and config.scan_layers and "layers" in name:
            assert sharding.spec[0] is None
            into = re.search("(o|down)_proj", name) is None
            assert sharding.spec[1:] == (
                ("fsdp", "tensor") if into else ("tensor", "fsdp")
            )


def test_a_mesh_without_an_axis_does_not_need_it():
    rules = decoder_rules(TINY, make_mesh({"data": 8}))
    assert {axis for spec in rules.values() for axis in spec} <= {None}


def test_a_table_is_gathered_forward_and_its_gradient_is_free(batch):
    # A constraint of the gradient would sum the whole table on every device.
    replicated = NamedSharding(make_mesh({"fsdp": 8}), PartitionSpec())

    def gather(table):
        return jax.lax.with_sharding_constraint(table, replicated)

    model = nnx.eval_shape(lambda: Decoder(TINY, constrain_table=gather))
    graph = nnx.graphdef(model)

    def loss(params):
        model = nnx.merge(graph, params)
        return jnp.sum(model.hidden(Inputs(batch))) + jnp.sum(model.head())

    jaxpr = jax.make_jaxpr(jax.grad(loss))(nnx.state(model)).jaxpr
    num = sum(e.primitive.name == "sharding_constraint" for e in equations(jaxpr))
    assert num == 1


@pytest.mark.parametrize("axes", ["data=2,fsdp=4", "data=2,fsdp=2,tensor=2", "fsdp=8"])
def test_no_device_has_the_gradients_of_all_embedded_tokens(axes):
    # XLA gathered them from a batch over `data` and `fsdp`, and warned on the console.
    mesh = make_mesh(axes)
    constrain, gather = constrain_batch(mesh), gather_columns(mesh, TINY.vocab_size)
    model = nnx.eval_shape(
        lambda: (
            Decoder(
                TINY,
                constrain_table=gather,
                constrain_gradient=constrain_batch_and_width(mesh),
            ).model.embed_tokens
        )
    )
    graph, rules = nnx.graphdef(model), decoder_rules(TINY, mesh)
    by_rule = NamedSharding(mesh, rules[r"model\.embed_tokens\.embedding"])
    by_batch = batch_sharding((8, 12), mesh, axis=0)

    def loss(params, tokens, scale):
        x = constrain(nnx.merge(graph, params)(tokens))
        return jnp.sum(x * scale)

    gradient = jax.jit(jax.grad(loss), out_shardings=by_rule)
    program = gradient.lower(
        jax.tree.map(
            lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=by_rule),
            nnx.state(model),
        ),
        jax.ShapeDtypeStruct((8, 12), jnp.int32, sharding=by_batch),
        jax.ShapeDtypeStruct((8, 12, 32), jnp.float32, sharding=by_batch),
    ).compile()
    assert "[8,12,32]" not in program.as_text()


def test_gradients_of_tokens_that_the_mesh_does_not_divide_are_replicated():
    constrain = jax.jit(constrain_batch_and_width(make_mesh("data=2,fsdp=4")))
    assert constrain(jnp.ones((3, 2, 6))).sharding.is_fully_replicated
    assert constrain(jnp.ones((2, 3, 6))).sharding.spec == PartitionSpec("data")


def test_few_heads_of_keys_are_replicated():
    mesh = make_mesh({"fsdp": 2, "tensor": 4})
    config = dataclasses.replace(TINY, model_type="qwen2")  # with 2 heads of keys
    shapes = jax.eval_shape(lambda: draw_decoder_params(config, 0))
    rules = decoder_rules(config, mesh)
    assert unmet_rules(shapes, mesh, rules) == []
    shardings = dict(_tree.named_leaves(param_shardings(shapes, mesh, rules)))
    specs = {n: s.spec for n, s in shardings.items() if "k_proj" in n or "v_proj" in n}
    assert len(specs) == 4
    assert not any("tensor" in spec for spec in specs.values())


def test_refuses_a_mesh_that_does_not_divide_the_heads():
    config = dataclasses.replace(TINY, num_attention_heads=6, hidden_size=48)
    message = "6 heads of queries, .* got tensor=4. Use 1 or 2 or 6, and assign"
    with pytest.raises(ValueError, match=message):
        decoder_rules(config, make_mesh({"fsdp": 2, "tensor": 4}))


@pytest.mark.parametrize("scan_layers", [False, True])
def test_flops_are_six_per_parameter_and_twelve_per_pair_of_attention(scan_layers):
    config = dataclasses.replace(BIASED, scan_layers=scan_layers, block_size=10)
    num_params = sum(int(np.prod(shape)) for shape in shapes_of(config).values())
    expected = 6 * (num_params - 96 * 32) + 12 * 2 * 32 * 10
    assert decoder_flops_per_token(config) == expected
    tied = dataclasses.replace(config, tie_word_embeddings=True)
    assert decoder_flops_per_token(tied) == expected
    window = dataclasses.replace(
        TINY, model_type="mistral", sliding_window=4, layer_types=None
    )
    full = dataclasses.replace(TINY, model_type="mistral")
    difference = decoder_flops_per_token(full) - decoder_flops_per_token(window)
    assert difference == 12 * 2 * 32 * (64 - 4)
