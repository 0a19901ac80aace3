"""What all leaves of one optimizer share: update counters, step and learning rate."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from .. import _pytrees
from .._typing import PyTree
from ._casting import placed_as
from ._pieces import Piece
from ._state_dict import TorchState, num_updates


def count_of_leaf(pieces: Sequence[Piece], state: TorchState) -> int:
    """The updates that a leaf has seen.

    Raises:
        ValueError: if the parameters that it is made of have seen different numbers.
    """
    counts = {p.torch_name: num_updates(state, p.torch_name) for p in pieces}
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"`state_dict` must have one `step` for all that makes up the leaf "
            f"{pieces[0].leaf!r}, got {counts}. Keep these parameters in leaves of "
            "their own."
        )
    return next(iter(counts.values()))


def with_clock(
    node: Any,
    params: PyTree,
    counts: Mapping[str, int],
    state: TorchState,
    pieces: Mapping[str, tuple[Piece, ...]],
    step: int | None,
) -> Any:
    """`node` with the counts, the schedule's step and the rate of the file."""
    position = max(counts.values(), default=0) if step is None else step
    new = node._replace(
        count=_count_tree(counts, params, node.count),
        step=placed_as(position, node.step),
    )
    rate = _rate({p.torch_name for name in counts for p in pieces[name]}, state)
    if rate is not None:
        new = new._replace(learning_rate=placed_as(rate, node.learning_rate))
    return new


def counts_by_leaf(count: PyTree, params: PyTree) -> dict[str, int]:
    """The counter of every leaf, by its name."""
    values = [int(np.asarray(value)) for value in jax.tree.leaves(count)]
    names = _pytrees.leaf_names(params)
    if len(values) == 1:
        values = values * len(names)
    return dict(zip(names, values, strict=True))


def _count_tree(counts: Mapping[str, int], params: PyTree, old: PyTree) -> PyTree:
    """One counter where all agree, else one for each leaf; (), int32."""
    like = jax.tree.leaves(old)[0]
    values = sorted(set(counts.values())) or [0]
    if len(values) == 1:
        return placed_as(values[0], like)
    # Integer leaves are never updated, but have a place.
    names = _pytrees.leaf_names(params)
    leaves = [placed_as(counts.get(name, values[-1]), like) for name in names]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _rate(names: set[str], state: TorchState) -> float | None:
    """The rate that the groups of these parameters share; None: they have none.

    Raises:
        ValueError: if they differ.
    """
    numbers = sorted({state.group_of[name] for name in names & set(state.group_of)})
    rates = {number: state.groups[number].get("lr") for number in numbers}
    if len(set(rates.values())) > 1:
        raise ValueError(
            "`state_dict` must have one `lr` for all groups of one optimizer, got "
            f"{rates} by group. Keep groups of their own by `optax.multi_transform`."
        )
    rate = next(iter(rates.values()), None)
    return None if rate is None else float(rate)
