"""Moments with a number for each of the parameter's, from torch to a leaf."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import optax

from ._casting import check_finite, check_fits
from ._pieces import Piece, leaf_from_tensors
from ._state_dict import TorchState
from ._torch_files import as_numpy


def moment_from_torch(
    pieces: Sequence[Piece],
    state: TorchState,
    key: str,
    shape: Sequence[int],
    dtype: Any,
) -> np.ndarray:
    """The moment of a leaf, in the leaf's shape; zeros where torch keeps none."""

    def tensor(name: str) -> np.ndarray | None:
        value = entry_value(state, name, key)
        if value is not None:
            check_fits(value.dtype, dtype, f"`{key}` of {name!r}")
        return value

    return leaf_from_tensors(pieces, tensor, shape, dtype)


def entry_value(state: TorchState, name: str, key: str) -> np.ndarray | None:
    """Returns one array of a parameter's entry; None if it has no entry.

    Raises:
        ValueError: if its entry is without it, if a number is not finite, or if a
            second moment is negative.
    """
    entry = state.entry(name)
    if not entry:
        return None
    if key not in entry:
        raise ValueError(
            f"`state_dict` must have `{key}` for {name!r}, got {sorted(entry)}. Build "
            "the optimizer with the options that the file is of."
        )
    array = as_numpy(entry[key])
    is_square = key.startswith("exp_avg_sq")
    check_finite(array, f"`{key}` of {name!r}", non_negative=is_square)
    return array


def is_masked(node: Any) -> bool:
    """Whether optax has put nothing here."""
    return isinstance(node, optax.MaskedNode)
