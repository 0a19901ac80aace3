"""Batches of a model: tokens and labels, or packed documents with their positions."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import _checks

# Tokens, [B, T + 1], or a dict of arrays of this shape.
Batch = jax.Array | Mapping[str, jax.Array]

IGNORE_INDEX = -100  # label without a loss; PyTorch's default `ignore_index`
_KEYS = ("input_ids", "labels", "segment_ids", "position_ids")


class Inputs(NamedTuple):
    """Inputs of a model."""

    tokens: jax.Array  # [B, T], int32
    segment_ids: jax.Array | None = None  # [B, T], int32; documents of a packed row
    position_ids: jax.Array | None = None  # [B, T], int32; None for 0, 1, ..., T - 1


def inputs_and_labels(batch: Batch, block_size: int) -> tuple[Inputs, jax.Array]:
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
    # attend to the padding. A label at a padding position that is not -100 is therefore
    # set to -1, so that the loss becomes NaN.
    labels = jnp.where(is_missing & (labels != IGNORE_INDEX), -1, labels)
    return inputs._replace(tokens=jnp.where(is_missing, 0, inputs.tokens)), labels


def inputs_of(batch: Batch) -> Inputs:
    """Returns the inputs of a batch without labels, [B, T]; raises for other shapes."""
    return _inputs(_batch_arrays(batch, min_length=1), slice(None))


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


def as_tokens(name: str, tokens: Any, *, min_length: int) -> jax.Array:
    """Returns `tokens` as an array; raises unless it is [B, T], T >= `min_length`."""
    tokens = jnp.asarray(tokens)
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(
            f"`{name}` must contain integers, got {tokens.dtype}. Pass the indices of "
            "the tokens."
        )
    if tokens.ndim != 2 or tokens.shape[1] < min_length:
        raise ValueError(
            f"`{name}` must be rows of at least {min_length} tokens, [B, T], got shape "
            f"{list(tokens.shape)}."
        )
    return tokens
