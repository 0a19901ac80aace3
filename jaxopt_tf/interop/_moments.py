"""Conversion of moments, counters and rate between torch and an optimizer state.

`adafactor_tf` stores Adafactor's row and column means in the axes of the layout that it
has for the leaf; torch stores them in the axes of its tensor. If the two layouts differ
only in the order of the axes, a mean over the last axis on one side is a mean over the
last or the second to last axis on the other.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from .. import _pytrees
from .._typing import PyTree
from ..optimizers import (
    AdafactorState,
    AdagradState,
    AdamWState,
    QuantizedMoment,
    RMSpropState,
    ScheduleFreeState,
    SGDState,
    StableAdamWState,
    TorchaoMoment,
    TorchLayout,
    resolve_layouts,
)
from ._arrays import as_tensor, device_put_like
from ._param_names import ParamNames
from ._quantized_moments import (
    bitsandbytes_entry,
    check_quantized,
    check_same_bits,
    quantized_from_torch,
    quantized_to_torch,
)
from ._schedule_free import num_updates, with_numbers
from ._state_dict import TorchState
from ._state_keys import (
    KEYS_BY_STATE,
    check_for_bitsandbytes,
    check_no_more_keys,
    check_uncompensated,
)
from ._tensor_slices import TensorSlice, leaf_from_tensors, tensor_from_leaves

Layouts = Mapping[str, TorchLayout] | None

_KEYS = KEYS_BY_STATE[AdafactorState]
_COUNTS_IN_TENSOR = (AdagradState, AdamWState, RMSpropState, StableAdamWState)


class _Moment(NamedTuple):
    """Array of a state, and its correspondence with torch's arrays."""

    key: str  # key of torch's array in the entry of each tensor
    array: Any  # array or `QuantizedMoment` of the optax state
    slices: Sequence[TensorSlice]  # ranges that equal ranges of torch's arrays
    layout: Any = None  # layout that the optimizer has for the leaf, else None


class NodeMoments:
    """Moments, counters and learning rate of a state in `KEYS_BY_STATE`."""

    def __init__(self, node: Any, params: PyTree, names: ParamNames, layouts: Layouts):
        """Finds the slices of every moment.

        Args:
            node: the optimizer state.
            params: parameters of the state, or their shapes.
            names: names of torch's parameters, with the leaf of each.
            layouts: layouts that `adafactor_tf` or `adamw_8bit_tf` was built with.

        Raises:
            ValueError: if a leaf's row and column means, or its blocks, are not those
                of torch.
        """
        keys = KEYS_BY_STATE[type(node)]
        treedef: Any = jax.tree.structure(params)
        self._node, self._treedef, self._names = node, treedef, names
        self._params = dict(_pytrees.named_leaves(params))
        # `flatten_up_to` stops at the leaves of `params`, so that a `MaskedNode`, which
        # has no leaves of its own, remains at its position in the list.
        self._columns = {
            field: treedef.flatten_up_to(getattr(node, field)) for field in keys
        }
        self._is_adafactor = isinstance(node, AdafactorState)
        quantized = [
            m
            for moments in self._columns.values()
            for m in moments
            if isinstance(m, QuantizedMoment)
        ]
        self.is_of_torchao = any(isinstance(m, TorchaoMoment) for m in quantized)
        self.is_of_bitsandbytes = bool(quantized) and not self.is_of_torchao
        leaf_layouts: list[Any] = [None] * treedef.num_leaves
        if self._is_adafactor or quantized:
            leaf_layouts = treedef.flatten_up_to(resolve_layouts(layouts, params))
        # SGD without momentum updates all leaves.
        self._has_no_moments = isinstance(node, SGDState) and not jax.tree.leaves(
            node.momentum
        )
        # Moments by leaf and field. The inner dict is empty for a leaf that this state
        # does not update.
        self._moments: dict[str, dict[str, _Moment]] = {}
        for i, (name, p) in enumerate(self._params.items()):
            slices = names.by_leaf[name]
            layout = leaf_layouts[i]
            moments = {
                field: _Moment(keys[field], column[i], slices, layout)
                for field, column in self._columns.items()
                if not _pytrees.is_masked(column[i])
            }
            self._moments[name] = moments
            for moment in moments.values():
                if isinstance(moment.array, QuantizedMoment):
                    check_quantized(name, p.shape, layout, slices)
            if not moments or not self._is_adafactor:
                continue
            # All layers of a stack are checked. They have the same keys, because a leaf
            # has one layout.
            views = [_views(found, layout, len(p.shape)) for found in slices]
            for field, (key, _) in views[0].items():
                viewed = [
                    found._replace(layout=view[field][1])
                    for found, view in zip(slices, views, strict=True)
                ]
                moments[field] = _Moment(key, moments[field].array, viewed)

    def from_torch(self, state: TorchState, step: int | None) -> Any:
        """Returns the state with torch's values for the leaves that it updates.

        Args:
            state: torch's state dict.
            step: step passed to the schedule next; None for the largest count.

        Raises:
            ValueError: if the file has a moment that the state does not have, or if
                torch's counts or rates differ where the state has only one.
        """
        if state.kind is RMSpropState and "centered" not in state.groups[0]:
            check_for_bitsandbytes(self._node)
        counts: dict[str, int] = {}
        columns = {field: list(column) for field, column in self._columns.items()}
        # Each leaf is copied to its devices before the next is read, so that host
        # memory contains one leaf of a mapped file at a time.
        for i, (leaf, moments) in enumerate(self._moments.items()):
            if not moments and not self._has_no_moments:
                continue
            tensors = [found.torch_name for found in self._names.by_leaf[leaf]]
            counts[leaf] = _count(leaf, tensors, state)
            entries = {n: state.entry(n) for n in tensors}
            if "compensation" not in moments:
                check_uncompensated(leaf, entries)
            keys = [moment.key for moment in moments.values()]
            check_no_more_keys(leaf, self._node, keys, entries.values())
            shape = tuple(self._params[leaf].shape)
            arrays = [moment.array for moment in moments.values()]
            check_same_bits(leaf, shape, arrays, tensors, state)
            for field, (key, like, slices, layout) in moments.items():
                if isinstance(like, QuantizedMoment):
                    columns[field][i] = quantized_from_torch(
                        key, like, shape, layout, slices, state
                    )
                    continue
                tensor: Any = partial(state.moment, key=key, dtype=like.dtype)
                if key == "z":
                    tensor = partial(self._iterate, leaf=leaf, state=state)
                array = leaf_from_tensors(slices, tensor, like.shape, like.dtype)
                columns[field][i] = device_put_like(array, like)
        node, unflatten = self._node, self._treedef.unflatten
        if isinstance(node, ScheduleFreeState):
            # Counted in the groups: a tensor without an entry has the same count.
            groups = state.groups_of(self._tensors(counts))
            counts = dict.fromkeys(counts, num_updates(groups))
            node = with_numbers(node, groups)
        if isinstance(node, SGDState):
            # torch's SGD counts no updates. The number of a leaf decides only whether
            # its next update is the first one, which has no dampening.
            counts = {
                leaf: max(count, step or 0) if count or self._has_no_moments else 0
                for leaf, count in counts.items()
            }
        step = max(counts.values(), default=0) if step is None else step
        new = node._replace(
            count=self._count_tree(counts),
            step=device_put_like(step, node.step),
            **{field: unflatten(column) for field, column in columns.items()},
        )
        rate = self._rate(state, counts)
        if rate is None:
            return new
        return new._replace(learning_rate=device_put_like(rate, node.learning_rate))

    def _count_tree(self, counts: Mapping[str, int]) -> PyTree:
        """Returns one counter if all agree, else one for each leaf; (), int32."""
        # With one counter, the bias corrections are computed once for all leaves.
        like = jax.tree.leaves(self._node.count)[0]
        values = sorted(set(counts.values())) or [0]
        if len(values) == 1:
            return device_put_like(values[0], like)
        # Integer leaves are never updated, but the tree needs a counter for them.
        per_leaf = [counts.get(name, values[-1]) for name in self._params]
        return self._treedef.unflatten([device_put_like(n, like) for n in per_leaf])

    def _rate(self, state: TorchState, leaves: Collection[str]) -> float | None:
        """Returns the common rate of the groups of `leaves`; None if none has a rate.

        Raises:
            ValueError: if the groups have different rates.
        """
        # A state has one rate. Groups that differ only in weight decay share it, since
        # the optimizer here decays by a mask.
        names = self._tensors(leaves)
        numbers = sorted(
            {state.group_by_name[n] for n in names if n in state.group_by_name}
        )
        found = {number: state.groups[number].get("lr") for number in numbers}
        # A rate may be a tensor, which a set compares by its identity.
        rates = {k: None if rate is None else float(rate) for k, rate in found.items()}
        if len(set(rates.values())) > 1:
            raise ValueError(
                "`state_dict` must have one `lr` for all groups of one optimizer, got "
                f"{rates} by group. Build one optimizer for each rate with "
                "`optax.multi_transform`."
            )
        return next(iter(rates.values()), None)

    def _tensors(self, leaves: Collection[str]) -> list[str]:
        return [s.torch_name for s in self._names.slices if s.leaf in leaves]

    def _iterate(self, name: str, *, leaf: str, state: TorchState) -> np.ndarray:
        """Returns z of schedulefree; without an entry it equals the parameter.

        Raises:
            ValueError: if there is no entry, and `params` are shapes.
        """
        p = self._params[leaf]
        z = state.moment(name, key="z", dtype=p.dtype)
        if z is not None:
            return z
        if isinstance(p, jax.ShapeDtypeStruct):
            raise ValueError(
                f"`params` must be arrays, got shapes: the file has no `z` of "
                f"{name!r}, which equals the parameter then. Read the weights first."
            )
        slices = self._names.by_tensor[name]
        return tensor_from_leaves(slices, lambda n: np.asarray(self._params[n]))

    def to_torch(self, *, for_bitsandbytes: bool = False) -> dict[str, dict[str, Any]]:
        """Returns torch's entry for each tensor whose leaves the state has updated.

        `RMS` of Adafactor is computed from the current parameters. The next update
        recomputes it.

        Args:
            for_bitsandbytes: return entries of bitsandbytes, nested as in its version
                0.49.2 and later.
        """
        if for_bitsandbytes:
            check_for_bitsandbytes(self._node)
        counts = [int(count) for count in jax.tree.leaves(self._node.count)]
        # A state has one counter for all leaves, or one counter for each leaf.
        counts = counts * len(self._params) if len(counts) == 1 else counts
        count_by_leaf = dict(zip(self._params, counts, strict=True))
        entries: dict[str, dict[str, Any]] = {}
        for name, slices in self._names.by_tensor.items():
            leaf = slices[0].leaf
            if leaf not in self._moments:  # frozen
                continue
            count, moments = count_by_leaf[leaf], self._moments[leaf]
            # torch's Adagrad has entries before the first update, and needs them.
            if not moments or (count == 0 and not isinstance(self._node, AdagradState)):
                continue
            # torch counts in a float32 tensor since version 1.12, Transformers'
            # Adafactor in an int, StableAdamW in the group.
            entry: dict[str, Any] = {"step": count}
            if isinstance(self._node, _COUNTS_IN_TENSOR):
                entry["step"] = as_tensor(np.array(count, np.float32))
            if isinstance(self._node, StableAdamWState):
                entry["kahan_comp"] = None
            # Counted in the groups, or not at all.
            if isinstance(self._node, ScheduleFreeState | SGDState):
                del entry["step"]
            for field, moment in moments.items():
                parts = [self._moments[found.leaf][field] for found in slices]
                if isinstance(moment.array, QuantizedMoment):
                    entry[moment.key] = quantized_to_torch(
                        moment.key,
                        moment.array,
                        self._params[leaf],
                        moment.layout,
                        slices[0],
                    )
                    continue
                arrays = {
                    found.leaf: np.asarray(part.array)
                    for found, part in zip(slices, parts, strict=True)
                }
                cuts = [
                    s for part in parts for s in part.slices if s.torch_name == name
                ]
                entry[moment.key] = as_tensor(
                    tensor_from_leaves(cuts, arrays.__getitem__)
                )
            entries[name] = bitsandbytes_entry(entry) if for_bitsandbytes else entry
            if self._is_adafactor:
                weight = as_tensor(
                    tensor_from_leaves(slices, lambda n: np.asarray(self._params[n]))
                )
                # Transformers' Adafactor converts float16 and bfloat16 parameters to
                # float32 and keeps float64.
                wide = weight if weight.element_size() == 8 else weight.float()
                entry["RMS"] = wide.norm(2) / weight.numel() ** 0.5
        return entries


def _count(leaf: str, tensors: Sequence[str], state: TorchState) -> int:
    """Returns the number of updates of a leaf; raises if its tensors disagree."""
    counts = {name: state.num_updates(name) for name in tensors}
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"`state_dict` must have one `step` for all parameters of the leaf "
            f"{leaf!r}, got {counts}. Use separate leaves for these parameters."
        )
    return counts[tensors[0]]


def _views(
    found: TensorSlice, layout: TorchLayout, num_axes: int
) -> dict[str, tuple[str, TorchLayout]]:
    """Returns torch's key and layout for each second moment of Adafactor, by field.

    The layout is relative to the array that `adafactor_tf` stores for the leaf.

    Args:
        found: a slice of the leaf.
        layout: the layout that `adafactor_tf` has for the leaf.
        num_axes: number of axes of the leaf.

    Raises:
        ValueError: if the two layouts lead to different arrays.
    """
    # Each group lists the axes of the leaf that are merged to one axis of the layout.
    # Two or more groups mean that Adafactor factors the second moment.
    leaf_groups, torch_groups = layout.groups(num_axes), found.layout.groups(num_axes)
    is_factored = [len(groups) >= 2 for groups in (leaf_groups, torch_groups)]

    def view(have: list[Any], torch: list[Any]) -> TorchLayout:
        axes = tuple((have.index(group),) if group in have else () for group in torch)
        stacked_axes = tuple(range(len(layout.stacked_axes)))
        return TorchLayout(axes=axes, stacked_axes=stacked_axes)

    if layout.stacked_axes != found.layout.stacked_axes:
        reason = "the stacked axes differ"
    elif not any(is_factored):
        # A vector has an unfactored moment. torch's tensor may have an axis of size 1,
        # which is an empty group.
        if set(leaf_groups) <= set(torch_groups) <= {*leaf_groups, ()}:
            return {"nu": (_KEYS["nu"], view(leaf_groups, torch_groups))}
        reason = "they merge the axes of a vector in another order"
    elif not all(is_factored):
        reason = "only one of them has two axes"
    # The means over a fused tensor do not determine the means of its parts.
    elif not found.is_whole:
        reason = "row and column means cannot be split or concatenated"
    else:
        reason = "they are means over other axes"
        # Two means are equal if they average the same axis. The remaining axes may be
        # in another order, which `view` transposes.
        views = {
            field: (_KEYS[key], view(leaf_remaining, torch_remaining))
            for field, (averaged, leaf_remaining) in _averages(leaf_groups).items()
            for key, (torch_averaged, torch_remaining) in _averages(
                torch_groups
            ).items()
            if torch_averaged == averaged
            and sorted(leaf_remaining) == sorted(torch_remaining)
        }
        if len(views) == 2:
            return views
    raise ValueError(
        f"`layouts` must give {found.leaf!r} the axes of torch for Adafactor's row and "
        f"column means, got {layout!r}, but torch's {found.torch_name!r} has "
        f"{found.layout!r}: {reason}. Pass that layout to `adafactor_tf`."
    )


def _averages(groups: list[Any]) -> dict[str, tuple[Any, list[Any]]]:
    """Returns the averaged axis and the remaining axes of each mean, by field."""
    # `nu_row` is the mean over the last axis, `nu_col` over the second to last, as in
    # Transformers' `exp_avg_sq_row` and `exp_avg_sq_col`.
    return {
        "nu_row": (groups[-1], groups[:-1]),
        "nu_col": (groups[-2], [*groups[:-2], groups[-1]]),
    }
