"""Packed rows of causal language models of Transformers.

A packed row contains several documents, whose tokens attend to those of their own
document only. Transformers derives this mask from `position_ids`, which begin at 0 in
each document, if it gets no `attention_mask`.

Source: transformers 5.23 `masking_utils.py`, `find_packed_sequence_indices`.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ._inputs import as_tokens
from ._peft import base_module
from ._torchax import import_package, import_torch

# Key of a batch of packed rows, which `forward` of no module takes.
SEGMENTS = "segment_ids"
# Kinds of layers in which a mask separates documents.
_MASKED_LAYERS = {"full_attention", "sliding_attention"}


class _MaskOfPositionsError(Exception):
    """Raised where a module computes its mask from `position_ids`."""


def packed_inputs(
    batch: Mapping[str, Any], module: Any
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Returns the inputs of the first T positions and the labels of the last T.

    Args:
        batch: `input_ids`, `labels`, `segment_ids` and `position_ids`, [B, T + 1].
        module: the module that gets the inputs.

    Raises:
        ValueError: if the tokens of a document would attend to those of another one,
            because the mask of the module does not depend on `position_ids`.
    """
    if not takes_packed_rows(module):
        raise ValueError(
            f"`packing` must be left out for {type(base_module(module)).__name__}, got "
            "a batch of packed documents: this module derives no mask from "
            "`position_ids`, so that tokens would attend to those of other documents. "
            "Train on `text`, or on a `train_file` with a column of text, without "
            "`packing`: documents are then concatenated."
        )
    arrays = {
        name: as_tokens(f"batch[{name!r}]", batch[name], min_length=2)
        for name in ("input_ids", "position_ids", "labels")
    }
    inputs = {n: arrays[n][:, :-1] for n in ("input_ids", "position_ids")}
    return inputs, arrays["labels"][:, 1:].astype(jnp.int32)


def takes_packed_rows(module: Any) -> bool:
    """Returns whether a module separates the documents of a packed row.

    The module is called on fake tensors, up to where it computes its mask: no number is
    computed, and no memory is allocated. A module that fails on them has not reached
    that line, and counts as one that does not separate them.

    Args:
        module: a causal language model of Transformers, or a `PeftModel` of one.
    """
    torch, masks = import_torch(), import_package("transformers.masking_utils")
    base = base_module(module)
    kinds = {*(getattr(base.config.get_text_config(), "layer_types", None) or ())}
    # States of recurrent layers pass from one document to the next. All recurrent
    # layers of Transformers but RWKV's have a convolution over the tokens.
    is_recurrent = any(isinstance(part, torch.nn.Conv1d) for part in base.modules())
    takes_positions = "position_ids" in inspect.signature(base.forward).parameters
    if is_recurrent or not takes_positions or kinds - _MASKED_LAYERS:
        return False
    fake_tensor = import_package("torch._subclasses.fake_tensor")
    mode = fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)
    named = [*base.named_parameters(), *base.named_buffers()]

    def find_documents(position_ids: Any) -> None:
        raise _MaskOfPositionsError

    before = masks.find_packed_sequence_indices
    masks.find_packed_sequence_indices = find_documents
    try:
        with mode, torch.no_grad():
            tensors = {n: torch.empty(x.shape, dtype=x.dtype) for n, x in named}
            tokens = torch.zeros((1, 2), dtype=torch.int64)
            inputs = {"input_ids": tokens, "position_ids": tokens}
            torch.func.functional_call(
                base, tensors, kwargs={**inputs, "use_cache": False}
            )
    except _MaskOfPositionsError:
        return True
    except Exception:  # of fake tensors, in layers that follow the mask
        return False
    finally:
        masks.find_packed_sequence_indices = before
    return False
