"""Adafactor's moments, from Transformers' entries to `AdafactorState` and back."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from .. import _pytrees
from .._typing import PyTree
from ..optimizers import AdafactorState, TorchLayout, resolve_layouts
from ._casting import check_fits, placed_like
from ._clock import count_of_leaf, counts_by_leaf, with_clock
from ._factors import Factors, factors, from_ours, to_ours
from ._moments import entry_value, is_masked, moment_from_torch
from ._pieces import Piece, from_torch, tensor_from_leaves, to_torch
from ._state_dict import TorchState
from ._torch_files import as_tensor

Layouts = Mapping[str, TorchLayout] | None


def adafactor_from_torch(
    node: AdafactorState,
    params: PyTree,
    state: TorchState,
    pieces: Mapping[str, tuple[Piece, ...]],
    step: int | None,
    layouts: Layouts,
) -> AdafactorState:
    """`node` with torch's moments and counts for the leaves that are its own."""
    counts: dict[str, int] = {}

    def leaf(name, p, layout, row, col, whole, mu) -> tuple:
        if is_masked(row) and is_masked(whole):
            return row, col, whole, mu
        own = pieces[name]
        counts[name] = count_of_leaf(own, state)

        def moment(key: str, like: Any) -> np.ndarray:
            return moment_from_torch(own, state, key, p.shape, like.dtype)

        sources = factors(own[0], layout, p.ndim)
        for piece in own[1:]:
            factors(piece, layout, p.ndim)
        if sources is None:
            seen = to_torch(layout, moment("exp_avg_sq", whole))
            whole = placed_like(seen, whole)
        else:
            row = placed_like(_means(own, state, sources, 0, row), row)
            col = placed_like(_means(own, state, sources, 1, col), col)
        if not is_masked(mu):
            mu = placed_like(moment("exp_avg", mu), mu)
        elif any("exp_avg" in state.entry(piece.torch_name) for piece in own):
            raise ValueError(
                "`opt_state` must keep a first moment, got none for the file's "
                f"`exp_avg` of {name!r}. Build the optimizer with the file's `beta1`."
            )
        return row, col, whole, mu

    layout_tree = resolve_layouts(layouts, params)
    old = _moments(node)
    new = _pytrees.map_leaves(leaf, params, layout_tree, *old.values(), num_results=4)
    node = node._replace(**dict(zip(old, new, strict=True)))
    return with_clock(node, params, counts, state, pieces, step)


def _moments(node: AdafactorState) -> dict[str, PyTree]:
    return {name: getattr(node, name) for name in ("nu_row", "nu_col", "nu", "mu")}


def _means(
    pieces: Sequence[Piece], state: TorchState, sources: Factors, which: int, like: Any
) -> np.ndarray:
    """The row means (0) or column means (1) of a leaf, stacked as ours are."""
    source, means = sources[which], np.zeros(like.shape, like.dtype)
    for piece in pieces:
        mean = entry_value(state, piece.torch_name, source.key)
        if mean is not None:
            check_fits(
                mean.dtype, like.dtype, f"`{source.key}` of {piece.torch_name!r}"
            )
            means[piece.place] = to_ours(source, mean)
    return means


def adafactor_entries(
    node: AdafactorState,
    params: PyTree,
    pieces: Mapping[str, tuple[Piece, ...]],
    layouts: Layouts,
) -> dict[str, dict[str, Any]]:
    """Transformers' entry for each tensor whose leaves are this state's own.

    `RMS` is that of the parameter as it is; the next update computes it anew.
    """
    counts = counts_by_leaf(node.count, params)

    def column(tree: PyTree) -> dict[str, Any]:
        treedef: Any = jax.tree.structure(params)
        flat = treedef.flatten_up_to(tree)
        return dict(zip(counts, flat, strict=True))

    leaves, seen = column(params), column(resolve_layouts(layouts, params))
    rows, cols, wholes, mus = map(column, _moments(node).values())

    def whole(name: str) -> np.ndarray:
        array = np.asarray(wholes[name])
        return from_torch(seen[name], array, leaves[name].shape)

    entries: dict[str, dict[str, Any]] = {}
    for name, group in pieces.items():
        leaf, first = group[0].leaf, group[0]
        if (is_masked(rows[leaf]) and is_masked(wholes[leaf])) or counts[leaf] == 0:
            continue
        entry: dict[str, Any] = {"step": counts[leaf]}
        if not is_masked(mus[leaf]):
            mu = tensor_from_leaves(group, lambda n: np.asarray(mus[n]))
            entry["exp_avg"] = as_tensor(mu)
        sources = factors(first, seen[leaf], leaves[leaf].ndim)
        if sources is None:
            entry["exp_avg_sq"] = as_tensor(tensor_from_leaves(group, whole))
        else:
            ours = [np.asarray(means[leaf])[first.place] for means in (rows, cols)]
            for key in ("exp_avg_sq_row", "exp_avg_sq_col"):
                entry[key] = as_tensor(from_ours(sources, key, *ours))
        weight = tensor_from_leaves(group, lambda n: np.asarray(leaves[n]))
        entry["RMS"] = _rms(as_tensor(weight))
        entries[name] = entry
    return entries


def _rms(tensor: Any) -> Any:
    # Transformers computes float64 parameters in float64, all others in float32.
    wide = tensor if tensor.element_size() == 8 else tensor.float()
    return wide.norm(2) / tensor.numel() ** 0.5
