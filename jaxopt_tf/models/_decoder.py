"""Loss function and logits of a decoder."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from .. import _checks, sharding, training
from .._typing import PyTree
from ._attention import AttentionFn, make_attention
from ._decoder_config import DecoderConfig
from ._decoder_params import gather_layer
from ._inputs import IGNORE_INDEX, Batch, inputs_and_labels, inputs_of
from ._layers import identity, use_matmul_precision
from ._llama import Decoder
from ._loss import LossFn

# Number of tokens whose logits are in memory at a time, per device. Each chunk reads
# and writes the gradient of the head once. From 1,024 tokens on, this takes little
# time compared with the matrix products of the chunk.
_CHUNK_SIZE = 1024


def make_decoder_loss(
    config: DecoderConfig,
    *,
    label_smoothing_factor: float = 0.0,
    mesh: Any = None,
    matmul_precision: str | None = None,
    attend: AttentionFn | None = None,
) -> LossFn:
    """Returns the loss function of a decoder.

    A batch is either an array of integers, [B, T + 1], or a dict of integer arrays,
    [B, T + 1], as in Transformers. In an array, the first T tokens predict the last T,
    and -100 pads the end of a row. A dict contains:

        input_ids: tokens.
        labels: the same tokens, or -100 for a token that is not predicted.
        segment_ids: index of the document of each token, counted from 1; 0 for padding.
            Attention is restricted to a document. Optional.
        position_ids: position of each token in its document. Optional. Without
            `segment_ids`, a document starts wherever the position does not increase by
            1, as in Transformers.

    T is at most `block_size`. The loss is NaN if a token is outside the vocabulary.
    With parameters in bfloat16, activations are bfloat16; normalizations, rotations,
    softmax and the loss are computed in float32.

    Args:
        config: configuration of the model.
        label_smoothing_factor: weight of the mean loss over the vocabulary, at least 0
            and less than 1.
        mesh: mesh over which the batch and activations are sharded; None for a single
            device.
        matmul_precision: precision of matrix products in the forward and backward pass,
            as for `jax.default_matmul_precision`; None for the precision that is
            configured when the loss is called.
        attend: attention function; None for `make_attention(mesh)`.

    Returns:
        (params, batch, rng=None) -> (summed loss, number of predicted tokens). `rng` is
        ignored, because the model has no dropout.

    Raises:
        ValueError: if `label_smoothing_factor` is out of range. The loss function
            raises it if a batch has wrong keys or shapes, or is too long.
        TypeError: if an argument has the wrong type. The loss function raises it if a
            batch does not contain integers.
    """
    _checks.fraction_below_one("label_smoothing_factor", label_smoothing_factor)
    graph = _decoder_graph(config, mesh, attend)

    def loss_fn(params, batch, rng=None):
        del rng
        inputs, labels = inputs_and_labels(batch, config.block_size)
        with use_matmul_precision(matmul_precision):
            model = nnx.merge(graph, params)
            return training.chunked_cross_entropy(
                model.hidden(inputs),
                model.head(),
                labels,
                chunk_size=_CHUNK_SIZE,
                label_smoothing_factor=label_smoothing_factor,
                ignore_index=IGNORE_INDEX,
                mesh=mesh,
            )

    return loss_fn


def make_decoder_logits(
    config: DecoderConfig,
    *,
    mesh: Any = None,
    matmul_precision: str | None = None,
    attend: AttentionFn | None = None,
) -> Callable[[PyTree, Batch], jax.Array]:
    """Returns the function that computes the logits of the next token.

    Args:
        config: configuration of the model.
        mesh: as for `make_decoder_loss`.
        matmul_precision: as for `make_decoder_loss`.
        attend: as for `make_decoder_loss`.

    Returns:
        (params, tokens) -> [B, T, vocab_size], in the dtype of the parameters. Tokens
        are [B, T], or a dict with `input_ids`, and optionally `segment_ids` and
        `position_ids`, all [B, T]. T may exceed `block_size`.
    """
    graph = _decoder_graph(config, mesh, attend)

    def logits_fn(params, batch):
        inputs = inputs_of(batch)
        with use_matmul_precision(matmul_precision):
            model = nnx.merge(graph, params)
            return model.hidden(inputs) @ model.head()

    return logits_fn


def _decoder_graph(config: DecoderConfig, mesh: Any, attend: AttentionFn | None) -> Any:
    """Returns the graph definition of a decoder; no array is allocated."""
    attend = make_attention(mesh) if attend is None else attend
    constrain: Callable[[jax.Array], jax.Array] = identity
    constrain_table: Callable[[jax.Array], jax.Array] = identity
    constrain_gradient: Callable[[jax.Array], jax.Array] = identity
    gather: Callable[[PyTree], PyTree] | None = None
    if mesh is not None:
        constrain = sharding.constrain_batch(mesh)
        constrain_table = sharding.gather_columns(mesh, config.vocab_size)
        constrain_gradient = sharding.constrain_batch_and_width(mesh)
        gather = gather_layer(config, mesh)

    def decoder() -> Decoder:
        return Decoder(
            config,
            constrain=constrain,
            constrain_table=constrain_table,
            constrain_gradient=constrain_gradient,
            gather=gather,
            attend=attend,
        )

    return nnx.graphdef(nnx.eval_shape(decoder))
