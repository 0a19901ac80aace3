"""Llama, Mistral, Qwen2, Qwen3 and SmolLM3 against Transformers in torch."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jaxopt_tf._pytrees import _tree
from jaxopt_tf.interop import match_names, read_params, torch_model_from_config
from jaxopt_tf.interop._tensor_slices import tensor_from_leaves
from jaxopt_tf.models._decoder import decoder_logits_of, decoder_loss_of
from jaxopt_tf.models._decoder_params import (
    draw_decoder_params,
)
from jaxopt_tf.models._transformers_decoder_config import (
    decoder_config_from_transformers,
)
from tests import twins
from tests.twins import decoders as twin

pytestmark = [
    pytest.mark.promotion_of_others,  # flax's variables
    pytest.mark.usefixtures("compiled_quickly"),
    twins.needs_transformers,
]

# The layers of every second case are stacked.
STACKED = {name: i % 2 == 0 for i, name in enumerate(twin.CASES)}


@pytest.fixture(scope="module")
def model_in_both(tmp_path_factory):
    """Builds a case: the model in torch, the configuration, parameters and names."""

    @functools.cache
    def build(case, scan_layers):
        folder = tmp_path_factory.mktemp("model")
        model = twin.save(twin.CASES[case], folder)
        config = dataclasses.replace(
            decoder_config_from_transformers(folder), scan_layers=scan_layers
        )
        shapes = jax.eval_shape(lambda: draw_decoder_params(config, 0))
        names = match_names(shapes, torch_model_from_config(folder))
        return model, config, read_params(folder, shapes, names), names

    return build


def compiled(config):
    logits, loss = decoder_logits_of(config), decoder_loss_of(config)

    @jax.jit
    def run(params, batch):
        inputs = batch[:, :-1]
        if isinstance(batch, dict):
            inputs = {k: v[:, :-1] for k, v in batch.items() if k != "labels"}
        return logits(params, inputs), jax.value_and_grad(loss, has_aux=True)(
            params, batch
        )

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


def tokens_of(rng, length=40):
    return rng.integers(0, 96, size=(2, length)).astype(np.int32)


@pytest.mark.parametrize("case", twin.CASES)
def test_is_the_model_of_transformers(case, model_in_both, rng):
    model, config, params, names = model_in_both(case, STACKED[case])
    batch = tokens_of(rng)
    if case == "llama, dynamic":  # longer than the context, where it has an effect
        object.__setattr__(config, "block_size", batch.shape[1])
    logits, ((loss, num_items), grads) = compiled(config)(params, batch)
    their_logits, their_loss, their_grads = twin.logits_loss_and_grads(model, batch)
    largest = np.max(np.abs(their_logits))
    np.testing.assert_allclose(logits, their_logits, rtol=0, atol=1e-5 * largest)
    assert float(loss) == pytest.approx(their_loss, rel=1e-6)
    assert float(num_items) == 2 * 39
    ours = by_torch_name(grads, names)
    assert ours.keys() == their_grads.keys()
    for name, grad in ours.items():
        assert distance(grad, their_grads[name]) < 1e-5, name
