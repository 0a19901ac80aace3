"""Llama, Mistral, Qwen2, Qwen3 and SmolLM3 against Transformers in torch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_tf._pytrees import _tree, resolve_layouts
from jaxopt_tf.interop import match_names, read_params, torch_model_from_config
from jaxopt_tf.interop._tensor_slices import tensor_from_leaves
from jaxopt_tf.models._decoder import make_decoder_logits, make_decoder_loss
from jaxopt_tf.models._decoder_params import (
    decoder_layer_norms,
    decoder_layout,
    draw_decoder_params,
)
from jaxopt_tf.models._transformers_decoder_config import (
    decoder_config_from_transformers,
)
from jaxopt_tf.optimizers import DECAY_RULES, decay_mask
from tests import references
from tests.references import decoders as reference

pytestmark = [
    pytest.mark.promotion_of_others,  # flax's variables
    pytest.mark.usefixtures("compiled_quickly"),
    references.needs_transformers,
]

# The layers of every second case are stacked.
STACKED = {name: i % 2 == 0 for i, name in enumerate(reference.CASES)}


@pytest.fixture(scope="module")
def model_in_both(tmp_path_factory):
    """Builds a case: the model in torch, the configuration, parameters and names."""

    @functools.cache
    def build(case, scan_layers):
        folder = tmp_path_factory.mktemp("model")
        model = reference.save(reference.CASES[case], folder)
        config = dataclasses.replace(
            decoder_config_from_transformers(folder), scan_layers=scan_layers
        )
        shapes = jax.eval_shape(lambda: draw_decoder_params(config, 0))
        names = match_names(shapes, torch_model_from_config(folder))
        return model, config, read_params(folder, shapes, names), names

    return build


def compiled(config):
    logits, loss = make_decoder_logits(config), make_decoder_loss(config)

    @jax.jit
    def run(params, batch):
        gradient = jax.value_and_grad(loss, has_aux=True)
        return logits(params, batch[:, :-1]), gradient(params, batch)

    return run


def by_torch_name(tree, names):
    leaves = {name: np.asarray(leaf, np.float32) for name, leaf in leaves_of(tree)}
    return {
        name: tensor_from_leaves(slices, leaves.__getitem__)
        for name, slices in names.by_tensor.items()
    }


def leaves_of(tree):
    return _tree.named_leaves(tree)


def distance(ours, theirs):
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def tokens_of(rng, num_rows=2):
    return rng.integers(0, 96, size=(num_rows, 40)).astype(np.int32)


def check_logits(ours, theirs):
    largest = np.max(np.abs(theirs))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * largest)


# Scalings of RoPE change the logits; the gradients are those of "llama".
SCALED = [
    case for case in reference.CASES if "rope_parameters" in reference.CASES[case]
]


@pytest.mark.parametrize(
    "case", [case for case in reference.CASES if case not in SCALED]
)
def test_decoder_matches_transformers(case, model_in_both, rng):
    model, config, params, names = model_in_both(case, STACKED[case])
    batch = tokens_of(rng)
    logits, ((loss, num_items), grads) = compiled(config)(params, batch)
    their_logits, their_loss, their_grads = reference.logits_loss_and_grads(
        model, batch
    )
    check_logits(logits, their_logits)
    assert float(loss) == pytest.approx(their_loss, rel=1e-6)
    assert float(num_items) == 2 * 39
    ours = by_torch_name(grads, names)
    assert ours.keys() == their_grads.keys()
    for name, grad in ours.items():
        assert distance(grad, their_grads[name]) < 1e-5, name


@pytest.mark.parametrize("case", SCALED)
def test_rotates_as_transformers(case, model_in_both, rng):
    model, config, params, _ = model_in_both(case, STACKED[case])
    batch = tokens_of(rng)
    logits = jax.jit(make_decoder_logits(config))(params, batch[:, :-1])
    check_logits(logits, reference.logits_loss_and_grads(model, batch)[0])


@pytest.mark.parametrize("case", ["llama", "qwen3"])
def test_bfloat16_is_as_near_to_float32_as_in_transformers(case, model_in_both, rng):
    model, config, params, names = model_in_both(case, STACKED[case])
    batch = tokens_of(rng, num_rows=16)
    narrow = jax.tree.map(lambda p: np.asarray(p).astype(jnp.bfloat16), params)
    run = compiled(config)
    logits, (_, grads) = run(narrow, batch)
    assert logits.dtype == jnp.bfloat16
    assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype(jnp.bfloat16)}
    ours = {"logits": np.asarray(logits, np.float32)} | by_torch_name(grads, names)

    model = reference.with_weights_in(model, "bfloat16")
    their_logits, _, their_grads = reference.logits_loss_and_grads(model, batch)
    theirs = {"logits": their_logits} | their_grads
    # The float32 run has the rounded weights: only the arithmetic differs.
    model = reference.with_weights_in(model, "float32")
    exact_logits, _, exact_grads = reference.logits_loss_and_grads(model, batch)
    exact = {"logits": exact_logits} | exact_grads
    ratios = [
        distance(ours[name], exact[name]) / distance(theirs[name], exact[name])
        for name in exact
    ]
    assert ratios[0] < 1.1
    # Gradients of single tensors vary; none is far off, and their mean is smaller.
    assert np.exp(np.mean(np.log(ratios))) < 1.05
    assert max(ratios) < 1.75


# --- packed documents


LENGTHS = (17, 13, 10)


def packed(rng):
    """A row of three documents, and the documents as padded rows."""
    tokens = rng.integers(0, 96, size=sum(LENGTHS)).astype(np.int32)
    starts = np.cumsum([0, *LENGTHS[:-1]])
    labels = tokens.copy()
    labels[starts] = -100  # no document predicts the first token of the next
    row = {
        "input_ids": tokens,
        "labels": labels,
        "segment_ids": np.repeat([1, 2, 3], LENGTHS).astype(np.int32),
        "position_ids": np.concatenate([np.arange(n) for n in LENGTHS]).astype("i4"),
    }
    documents = np.full((3, max(LENGTHS)), -100, np.int32)
    for document, start, length in zip(documents, starts, LENGTHS, strict=True):
        document[:length] = tokens[start : start + length]
    return {name: array[None] for name, array in row.items()}, documents


@pytest.mark.parametrize("case", ["llama", "mistral"])
def test_a_packed_row_is_its_documents_one_by_one(case, model_in_both, rng):
    _, config, params, _ = model_in_both(case, STACKED[case])
    batch, documents = packed(rng)
    loss_fn = make_decoder_loss(config)
    gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (loss, num_items), grads = gradient(params, batch)
    (expected, _), expected_grads = gradient(params, documents)
    assert float(num_items) == sum(LENGTHS) - 3
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    for (name, ours), (_, theirs) in zip(
        leaves_of(grads), leaves_of(expected_grads), strict=True
    ):
        assert distance(ours, theirs) < 1e-5, name
    # Positions are enough to see where documents start, as in Transformers.
    del batch["segment_ids"]
    without, _ = jax.jit(loss_fn)(params, batch)
    assert float(without) == pytest.approx(float(loss), rel=1e-6)


def test_packed_logits_are_those_of_transformers(model_in_both, rng):
    model, config, params, _ = model_in_both("mistral", STACKED["mistral"])
    batch, _ = packed(rng)
    rows = {name: batch[name] for name in ("input_ids", "position_ids")}
    ours = jax.jit(make_decoder_logits(config))(params, rows)
    theirs, _, _ = reference.logits_loss_and_grads(
        model,
        np.pad(batch["input_ids"], ((0, 0), (0, 1))),
        position_ids=batch["position_ids"],
    )
    check_logits(ours, theirs)


# --- weights and weight decay


@pytest.mark.parametrize("case", ["llama tied, with biases", "qwen2", "qwen3"])
@pytest.mark.parametrize("scan_layers", [False, True])
def test_decays_what_trainer_decays(case, scan_layers, model_in_both):
    import transformers

    model, config, params, names = model_in_both(case, scan_layers)
    assert decoder_layer_norms(config) == names.layer_norms
    mask = dict(
        leaves_of(
            decay_mask(
                params,
                rule="transformers_v5",
                layer_norms=decoder_layer_norms(config),
            )
        )
    )
    ours = {part.torch_name for part in names.slices if mask[part.leaf]}
    theirs = transformers.Trainer.get_decay_parameter_names(None, model)
    assert ours == {name for name, _ in model.named_parameters()} & set(theirs)
    for rule in DECAY_RULES:
        decay_mask(params, rule=rule, layer_norms=decoder_layer_norms(config))


@pytest.mark.parametrize("case", ["llama tied, with biases", "qwen2", "qwen3"])
@pytest.mark.parametrize("scan_layers", [False, True])
def test_layouts_are_those_of_the_torch_model(case, scan_layers, model_in_both):
    _, config, params, names = model_in_both(case, scan_layers)
    layouts = dict(leaves_of(resolve_layouts(decoder_layout(config), params)))
    assert layouts == {part.leaf: part.layout for part in names.slices}
