"""Moments, counters and learning rate of one optimizer state, from torch and to torch.

Adafactor's row and column means are stored in the axes of the layout that
`adafactor_tf` was given for the leaf; torch stores them in the axes of its own tensor.
If the two layouts differ in the order of the axes alone, a mean over the last axis on
one side is a mean over the last or the last but one on the other.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from .. import _pytrees
from .._typing import PyTree
from ..optimizers import AdafactorState, TorchLayout, resolve_layouts
from ._arrays import as_tensor, check_fits, device_put_like
from ._extras import import_extra
from ._param_names import ParamNames
from ._state_dict import TorchState
from ._tensor_slices import (
    TensorSlice,
    leaf_from_tensors,
    tensor_from_leaves,
)

Layouts = Mapping[str, TorchLayout] | None

# torch's key for each field of a state.
_KEYS = {
    "mu": "exp_avg",
    "nu": "exp_avg_sq",
    "nu_row": "exp_avg_sq_row",
    "nu_col": "exp_avg_sq_col",
}


class _Mean(NamedTuple):
    """torch's mean that a mean of ours equals, and the order of its axes."""

    key: str
    order: tuple[int, ...]  # torch's axes of the mean, in the order of ours


class _Leaf(NamedTuple):
    """Moments of one leaf, as a state stores them."""

    name: str
    param: Any
    slices: Sequence[TensorSlice]
    # Axes of `nu`, `nu_row` and `nu_col`; None for AdamW, which has those of the leaf.
    layout: TorchLayout | None
    moments: Mapping[str, Any]  # by field; empty if another optimizer updates the leaf
    means: Mapping[str, _Mean]  # of `nu_row` and `nu_col`; empty if not factored

    def full_moment(self, field: str) -> np.ndarray:
        """Returns `mu` or `nu` in the shape of the leaf."""
        moment = np.asarray(self.moments[field])
        if field == "mu" or self.layout is None:
            return moment
        return self.layout.from_torch(moment, self.param.shape)

    def moment_from_torch(self, field: str, state: TorchState) -> np.ndarray:
        """Returns a moment as the state stores it, from torch's."""
        like = self.moments[field]
        mean = self.means.get(field)
        key = mean.key if mean else _KEYS[field]

        def tensor(name: str) -> np.ndarray | None:
            value = state.moment(name, key)
            if value is not None:
                check_fits(value.dtype, like.dtype, f"`{key}` of {name!r}")
            return value

        if mean:
            means = np.zeros(like.shape, like.dtype)
            for found in self.slices:
                value = tensor(found.torch_name)
                if value is not None:
                    means[found.place] = value.transpose(mean.order)
            return means
        full = leaf_from_tensors(self.slices, tensor, self.param.shape, like.dtype)
        if field == "mu" or self.layout is None:
            return full
        return self.layout.to_torch(full)


class NodeMoments:
    """Moments, counters and learning rate of an `AdamWState` or `AdafactorState`."""

    def __init__(self, node: Any, params: PyTree, names: ParamNames, layouts: Layouts):
        """Finds the tensors of every moment.

        Args:
            node: the state.
            params: the parameters of the state.
            names: leaf of each torch parameter.
            layouts: as `adafactor_tf` has them.

        Raises:
            ValueError: if a leaf's row and column means are not those of torch.
        """
        treedef: Any = jax.tree.structure(params)
        self._node, self._treedef = node, treedef
        self._columns = {
            field: treedef.flatten_up_to(getattr(node, field))
            for field in _KEYS
            if field in node._fields
        }
        self._is_adafactor = isinstance(node, AdafactorState)
        layout_of: list[Any] = [None] * treedef.num_leaves
        if self._is_adafactor:
            layout_of = treedef.flatten_up_to(resolve_layouts(layouts, params))
        slices, self._slices = names.by_leaf, names.by_tensor
        self._leaves: dict[str, _Leaf] = {}
        for i, (name, p) in enumerate(_pytrees.named_leaves(params)):
            column = {field: column[i] for field, column in self._columns.items()}
            moments = {f: m for f, m in column.items() if not _pytrees.is_masked(m)}
            means: Mapping[str, _Mean] = {}
            if moments and layout_of[i] is not None:
                # Checked for every layer of a stack; equal for all of them.
                checked = [_means(s, layout_of[i], len(p.shape)) for s in slices[name]]
                means = checked[0]
            leaf = _Leaf(name, p, slices[name], layout_of[i], moments, means)
            self._leaves[name] = leaf

    def from_torch(self, state: TorchState, step: int | None) -> Any:
        """Returns the state with torch's values for the leaves that it updates.

        Args:
            state: the state dict.
            step: step passed to the schedule next; None for the largest count.
        """
        counts: dict[str, int] = {}
        columns = {field: list(column) for field, column in self._columns.items()}
        # Leaf by leaf, each copied to its devices before the next is read: the host
        # has one leaf of a mapped file in memory at a time.
        for i, leaf in enumerate(self._leaves.values()):
            if not leaf.moments:
                continue
            counts[leaf.name] = _count(leaf, state)
            has_mean = any("exp_avg" in state.entry(s.torch_name) for s in leaf.slices)
            if has_mean and "mu" not in leaf.moments:
                raise ValueError(
                    "`opt_state` must keep a first moment, got none for the file's "
                    f"`exp_avg` of {leaf.name!r}. Build the optimizer with the file's "
                    "`beta1`."
                )
            for field, like in leaf.moments.items():
                new = device_put_like(leaf.moment_from_torch(field, state), like)
                columns[field][i] = new
        node, unflatten = self._node, self._treedef.unflatten
        step = max(counts.values(), default=0) if step is None else step
        rate = _rate(state, [self._leaves[name] for name in counts])
        return node._replace(
            count=self._count_tree(counts),
            step=device_put_like(step, node.step),
            learning_rate=node.learning_rate
            if rate is None
            else device_put_like(rate, node.learning_rate),
            **{field: unflatten(column) for field, column in columns.items()},
        )

    def _count_tree(self, counts: Mapping[str, int]) -> PyTree:
        """Returns one counter if all agree, else one for each leaf; (), int32."""
        # With one counter the update computes its bias corrections once for all leaves.
        like = jax.tree.leaves(self._node.count)[0]
        values = sorted(set(counts.values())) or [0]
        if len(values) == 1:
            return device_put_like(values[0], like)
        # Integer leaves are never updated, but have a counter in the tree.
        per_leaf = [counts.get(name, values[-1]) for name in self._leaves]
        return self._treedef.unflatten([device_put_like(n, like) for n in per_leaf])

    def to_torch(self) -> dict[str, dict[str, Any]]:
        """Returns torch's entry for each tensor whose leaves the state has updated."""
        counts = [int(count) for count in jax.tree.leaves(self._node.count)]
        # A state has one counter for all leaves, or one for each.
        counts = counts * len(self._leaves) if len(counts) == 1 else counts
        count_of = dict(zip(self._leaves, counts, strict=True))
        return {
            name: self._entry(slices, count_of[slices[0].leaf])
            for name, slices in self._slices.items()
            if self._leaves[slices[0].leaf].moments and count_of[slices[0].leaf] > 0
        }

    def _entry(self, slices: Sequence[TensorSlice], count: int) -> dict[str, Any]:
        """Returns the entry of one tensor.

        `RMS` of Adafactor is that of the present parameter; the next update recomputes
        it.
        """
        torch = import_extra("torch")
        leaf, leaves = self._leaves[slices[0].leaf], {found.leaf for found in slices}
        # torch counts in a float32 tensor, Transformers' Adafactor in an int.
        entry: dict[str, Any] = {
            "step": count
            if self._is_adafactor
            else torch.tensor(count, dtype=torch.float32)
        }
        for field, moment in leaf.moments.items():
            if field in leaf.means:
                key, order = leaf.means[field]
                array = np.asarray(moment)[slices[0].place].transpose(np.argsort(order))
            else:
                key = _KEYS[field]
                full = {n: self._leaves[n].full_moment(field) for n in leaves}
                array = tensor_from_leaves(slices, full.__getitem__)
            entry[key] = as_tensor(array)
        if not self._is_adafactor:
            return entry
        params = {n: np.asarray(self._leaves[n].param) for n in leaves}
        weight = as_tensor(tensor_from_leaves(slices, params.__getitem__))
        # Transformers computes float64 parameters in float64, all others in float32.
        wide = weight if weight.element_size() == 8 else weight.float()
        return {**entry, "RMS": wide.norm(2) / weight.numel() ** 0.5}


def _count(leaf: _Leaf, state: TorchState) -> int:
    """Returns the number of updates of a leaf."""
    names = [found.torch_name for found in leaf.slices]
    counts = {name: state.num_updates(name) for name in names}
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"`state_dict` must have one `step` for all that makes up the leaf "
            f"{leaf.name!r}, got {counts}. Keep these parameters in leaves of their "
            "own."
        )
    return counts[names[0]]


def _rate(state: TorchState, leaves: Sequence[_Leaf]) -> float | None:
    """Returns the rate that the leaves' groups share; None if they have none."""
    # A state has one rate. torch's groups may differ in decay, which a mask holds.
    names = [found.torch_name for leaf in leaves for found in leaf.slices]
    numbers = sorted({state.group_of[n] for n in names if n in state.group_of})
    rates = {number: state.groups[number].get("lr") for number in numbers}
    if len(set(rates.values())) > 1:
        raise ValueError(
            "`state_dict` must have one `lr` for all groups of one optimizer, got "
            f"{rates} by group. Keep groups of their own by `optax.multi_transform`."
        )
    rate = next(iter(rates.values()), None)
    return None if rate is None else float(rate)


def _means(
    found: TensorSlice, layout: TorchLayout, num_axes: int
) -> Mapping[str, _Mean]:
    """Returns the sources of `nu_row` and `nu_col` for one parameter of a leaf.

    Args:
        found: the parameter.
        layout: the layout that `adafactor_tf` was given for the leaf.
        num_axes: number of axes of the leaf.

    Returns:
        The sources by field; empty if the second moment is not factored.

    Raises:
        ValueError: if the means of one layout are not those of the other.
    """
    ours, theirs = layout.groups(num_axes), found.layout.groups(num_axes)
    is_factored = [len(groups) >= 2 for groups in (ours, theirs)]
    if layout.stacked_axes != found.layout.stacked_axes:
        why = "the stacked axes differ"
    elif not any(is_factored):
        # A vector has a moment for each element, which is copied as the vector is.
        return {}
    elif not all(is_factored):
        why = "only one of them has two axes"
    # A mean over all of a fused tensor does not determine the means of its parts.
    elif not found.is_whole:
        why = "row and column means cannot be cut or joined"
    else:
        why = "they are means over other axes"
        # The same axis is averaged, and the same axes are left in any order.
        means = {
            field: _Mean(_KEYS[key], tuple(map(left.index, wanted)))
            for field, (averaged, wanted) in _averages(ours).items()
            for key, (their_averaged, left) in _averages(theirs).items()
            if their_averaged == averaged and sorted(left) == sorted(wanted)
        }
        if len(means) == 2:
            return means
    raise ValueError(
        f"`layouts` must see {found.leaf!r} as torch does for Adafactor's row and "
        f"column means, got {layout!r} where torch's {found.torch_name!r} is "
        f"{found.layout!r}: {why}. Give `adafactor_tf` that layout."
    )


def _averages(groups: list[Any]) -> dict[str, tuple[Any, list[Any]]]:
    """Returns the axis that a mean averages, and the axes that it leaves, by field."""
    return {
        "nu_row": (groups[-1], groups[:-1]),
        "nu_col": (groups[-2], [*groups[:-2], groups[-1]]),
    }
