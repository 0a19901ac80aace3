"""Packed rows of modules of Transformers under torchax."""

import jax
import numpy as np
import pytest

from jaxopt_tf.models import from_transformers
from jaxopt_tf.models._packed_rows import takes_packed_rows

pytest.importorskip("torchax", reason="torchax is an optional, experimental extra")
transformers = pytest.importorskip("transformers", reason="it builds the modules")
pytestmark = [
    pytest.mark.promotion_of_others,
    pytest.mark.usefixtures("compiled_quickly"),
]
SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}


def build(name, **sizes):
    transformers.set_seed(0)
    config = transformers.AutoConfig.for_model(name, **SIZES, **sizes)
    return transformers.AutoModelForCausalLM.from_config(config)


def packed(documents, length=13):
    names = ("input_ids", "segment_ids", "position_ids", "labels")
    row = {name: np.zeros(length, np.int32) for name in names}
    row["labels"] -= 100
    start = 0
    for number, document in enumerate(documents, 1):
        span = slice(start, start + len(document))
        row["input_ids"][span] = row["labels"][span] = document
        row["labels"][start] = -100
        row["segment_ids"][span] = number
        row["position_ids"][span] = np.arange(len(document))
        start += len(document)
    return {name: values[None] for name, values in row.items()}


def test_documents_of_a_row_have_the_losses_of_rows_of_their_own():
    # The window is shorter than a document: masks of both kinds are combined.
    model = from_transformers(build("mistral", sliding_window=3, num_key_value_heads=2))
    loss_fn, params = jax.jit(model.make_loss()), model.init(0)
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 32, n) for n in (5, 1, 6)]
    total, number = loss_fn(params, packed(documents))
    alone = [loss_fn(params, packed([document])) for document in documents]
    np.testing.assert_allclose(total, sum(x for x, _ in alone), rtol=1e-6)
    assert number == sum(n for _, n in alone) == 9
    # Otherwise the mask would have no effect.
    joined, _ = loss_fn(params, packed([np.concatenate(documents)]))
    assert abs(joined / total - 1) > 1e-3


@pytest.mark.parametrize(
    ("name", "takes"),
    [("llama", True), ("gpt2", True), ("opt", False), ("bloom", False)],
)
def test_modules_that_ignore_positions_in_their_mask_are_found(name, takes):
    assert takes_packed_rows(build(name)) == takes


def test_refuses_packed_rows_of_a_recurrent_module():
    model = from_transformers(build("mamba"))
    with pytest.raises(ValueError, match="`packing` must be left out for MambaForC"):
        model.make_loss()(model.init(0), packed([[1, 2], [3]]))
