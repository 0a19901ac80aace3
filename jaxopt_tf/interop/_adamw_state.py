"""AdamW's moments, from torch's entries to `AdamWState` and back."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from .. import _pytrees
from .._typing import PyTree
from ..optimizers import AdamWState
from ._casting import placed_like
from ._clock import count_of_leaf, counts_by_leaf, with_clock
from ._extras import import_extra
from ._moments import is_masked, moment_from_torch
from ._pieces import Piece, tensor_from_leaves
from ._state_dict import TorchState
from ._torch_files import as_tensor

_KEYS = ("exp_avg", "exp_avg_sq")


def adamw_from_torch(
    node: AdamWState,
    params: PyTree,
    state: TorchState,
    pieces: Mapping[str, tuple[Piece, ...]],
    step: int | None,
) -> AdamWState:
    """`node` with torch's moments and counts for the leaves that are its own."""
    counts: dict[str, int] = {}

    def leaf(name: str, p: Any, mu: Any, nu: Any) -> tuple:
        if is_masked(mu):
            return mu, nu
        counts[name] = count_of_leaf(pieces[name], state)

        def moment(key: str, like: Any) -> Any:
            found = moment_from_torch(pieces[name], state, key, p.shape, like.dtype)
            return placed_like(found, like)

        return moment("exp_avg", mu), moment("exp_avg_sq", nu)

    mu, nu = _pytrees.map_leaves(leaf, params, node.mu, node.nu, num_results=2)
    return with_clock(node._replace(mu=mu, nu=nu), params, counts, state, pieces, step)


def adamw_entries(
    node: AdamWState,
    params: PyTree,
    pieces: Mapping[str, tuple[Piece, ...]],
) -> dict[str, dict[str, Any]]:
    """Torch's entry for each tensor whose leaves are this state's own.

    Args:
        node: the state.
        params: the parameters that it is for.
        pieces: of every torch tensor.
    """
    torch = import_extra("torch")

    counts = counts_by_leaf(node.count, params)
    treedef: Any = jax.tree.structure(params)
    moments = {
        key: _on_host(dict(zip(counts, treedef.flatten_up_to(tree), strict=True)))
        for key, tree in zip(_KEYS, (node.mu, node.nu), strict=True)
    }
    entries: dict[str, dict[str, Any]] = {}
    for name, group in pieces.items():
        leaf = group[0].leaf
        if is_masked(moments["exp_avg"][leaf]) or counts[leaf] == 0:
            continue
        entry = {"step": torch.tensor(float(counts[leaf]), dtype=torch.float32)}
        for key, leaves in moments.items():
            entry[key] = as_tensor(tensor_from_leaves(group, leaves.__getitem__))
        entries[name] = entry
    return entries


def _on_host(leaves: dict[str, Any]) -> dict[str, Any]:
    return {
        name: leaf if is_masked(leaf) else np.asarray(leaf)
        for name, leaf in leaves.items()
    }
