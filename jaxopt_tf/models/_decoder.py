"""Loss function and logits of a decoder."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from .. import _checks, sharding, training
from .._typing import PyTree
from ._attention import AttentionFn, make_attention
from ._decoder_config import DecoderConfig
from ._decoder_params import gather_layer
from ._layers import IGNORE_INDEX, as_tokens, identity, use_matmul_precision
from ._llama import Decoder, Inputs
from ._loss import Batch, LossFn

# Number of tokens whose logits are in memory at a time, per device. Each chunk reads
# and writes the gradient of the head once. From 1,024 tokens on, this takes little
# time compared with the matrix products of the chunk.
_CHUNK_SIZE = 1024
_KEYS = ("input_ids", "labels", "segment_ids", "position_ids")


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
        segment_ids: number of the document of each token, from 1; 0 for padding.
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
        inputs, labels = _inputs_and_labels(batch, config.block_size)
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
        arrays = _batch_arrays(batch, min_length=1)
        inputs = _inputs(arrays, slice(None))
        with use_matmul_precision(matmul_precision):
            model = nnx.merge(graph, params)
            return model.hidden(inputs) @ model.head()

    return logits_fn


def _decoder_graph(config: DecoderConfig, mesh: Any, attend: AttentionFn | None) -> Any:
    """Returns the graph definition of a decoder; no array is allocated."""
    attend = make_attention(mesh) if attend is None else attend
    constrain: Callable[[jax.Array], jax.Array] = identity
    constrain_table: Callable[[jax.Array], jax.Array] = identity
    gather: Callable[[PyTree], PyTree] | None = None
    if mesh is not None:
        constrain = sharding.constrain_batch(mesh)
        constrain_table = sharding.gather_columns(mesh, config.vocab_size)
        gather = gather_layer(config, mesh)

    def decoder() -> Decoder:
        return Decoder(
            config,
            constrain=constrain,
            constrain_table=constrain_table,
            gather=gather,
            attend=attend,
        )

    return nnx.graphdef(nnx.eval_shape(decoder))


def _inputs_and_labels(batch: Batch, block_size: int) -> tuple[Inputs, jax.Array]:
    """Returns the first T tokens and the labels of the last T, from [B, T + 1]."""
    arrays = _batch_arrays(batch, min_length=2)
    tokens = arrays["input_ids"]
    length = tokens.shape[1] - 1
    if length > block_size:
        raise ValueError(
            f"`batch` must be rows of at most {block_size + 1} tokens, one more than "
            f"`block_size`, got {length + 1}. Truncate the rows, or use a larger "
            "`block_size`."
        )
    inputs = _inputs(arrays, slice(None, -1))
    if isinstance(batch, Mapping):
        if "labels" not in arrays:
            raise ValueError(
                f"`batch` must have the key 'labels', got {list(batch)}. For a text "
                "that is predicted completely, pass `input_ids` as `labels`."
            )
        return inputs, arrays["labels"][:, 1:]
    labels = tokens[:, 1:]
    is_missing = inputs.tokens == IGNORE_INDEX
    # Padding in the inputs is replaced by token 0. At the end of a row this is
    # harmless, because attention is causal. In the middle of a row, later tokens would
    # attend to it: their label becomes -1, which makes the loss NaN.
    labels = jnp.where(is_missing & (labels != IGNORE_INDEX), -1, labels)
    return inputs._replace(tokens=jnp.where(is_missing, 0, inputs.tokens)), labels


def _inputs(arrays: Mapping[str, jax.Array], positions: slice) -> Inputs:
    segment_ids, position_ids = arrays.get("segment_ids"), arrays.get("position_ids")
    if segment_ids is None and position_ids is not None:
        steps = jnp.diff(position_ids, axis=1, prepend=position_ids[:, :1] - 1)
        segment_ids = 1 + jnp.cumsum(steps != 1, axis=1, dtype=jnp.int32)
    return Inputs(
        arrays["input_ids"][:, positions],
        None if segment_ids is None else segment_ids[:, positions],
        None if position_ids is None else position_ids[:, positions],
    )


def _batch_arrays(batch: Batch, *, min_length: int) -> dict[str, jax.Array]:
    """Returns the arrays of a batch as int32; raises unless all are [B, T]."""
    given = dict(batch) if isinstance(batch, Mapping) else {"input_ids": batch}
    for name in given:
        _checks.one_of("batch", name, _KEYS)
    if "input_ids" not in given:
        raise ValueError(
            f"`batch` must have the key 'input_ids', got {list(given)}. Pass the "
            "tokens under it."
        )
    arrays = {
        name: as_tokens(
            f"batch[{name!r}]" if isinstance(batch, Mapping) else "batch",
            value,
            min_length=min_length,
        ).astype(jnp.int32)
        for name, value in given.items()
    }
    shape = arrays["input_ids"].shape
    for name, array in arrays.items():
        if array.shape != shape:
            raise ValueError(
                f"`batch[{name!r}]` must have the shape of `input_ids`, "
                f"{list(shape)}, got {list(array.shape)}. Pad all arrays to one length."
            )
    return arrays
