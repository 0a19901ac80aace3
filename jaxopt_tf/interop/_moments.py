"""Moments, counters and learning rate of one optimizer state, from torch and to torch.

Adafactor's row and column means are stored in the axes of the layout that
`adafactor_tf` was given for the leaf; torch stores them in the axes of its own tensor.
If the two layouts differ in the order of the axes alone, a mean over the last axis on
one side is a mean over the last or the last but one on the other.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from .. import _pytrees
from .._typing import PyTree
from ..optimizers import AdafactorState, TorchLayout, resolve_layouts
from ._arrays import as_tensor, check_fits, device_put_like
from ._extras import import_extra
from ._state_dict import TorchState
from ._tensor_slices import TensorSlice, leaf_from_tensors, tensor_from_leaves

Layouts = Mapping[str, TorchLayout] | None

_FIELDS = ("mu", "nu", "nu_row", "nu_col")
_KEYS = ("exp_avg_sq_row", "exp_avg_sq_col")


class LeafMoments(NamedTuple):
    """Moments of one leaf as a state stores them; `MaskedNode` for those it has not."""

    name: str
    param: Any
    # Axes of `nu`, `nu_row` and `nu_col`; None for AdamW, which has those of the leaf.
    layout: TorchLayout | None
    mu: Any
    nu: Any
    nu_row: Any
    nu_col: Any

    @property
    def is_masked(self) -> bool:
        """True if another optimizer updates the leaf, or none."""
        return _pytrees.is_masked(self.nu) and _pytrees.is_masked(self.nu_row)

    def full_second_moment(self) -> np.ndarray:
        """Returns an unfactored second moment of Adafactor in the leaf's shape."""
        assert self.layout is not None
        return self.layout.from_torch(np.asarray(self.nu), self.param.shape)


@dataclass(frozen=True)
class StateReader:
    """Reads the moments, counters and learning rate of a state dict into a state.

    Attributes:
        params: the parameters of the state.
        state: the state dict.
        slices: torch tensors of each leaf.
        layouts: as `adafactor_tf` has them.
        step: step passed to the schedule next; None for the largest count.
    """

    params: PyTree
    state: TorchState
    slices: Mapping[str, Sequence[TensorSlice]]
    layouts: Layouts
    step: int | None

    def read(self, node: Any) -> Any:
        """Returns `node` with torch's values for the leaves that it updates."""
        counts: dict[str, int] = {}
        read = []
        # Leaf by leaf, each copied to its devices before the next is read: the host
        # has one leaf of a mapped file in memory at a time.
        for moments in _leaf_moments(node, self.params, self.layouts):
            if not moments.is_masked:
                counts[moments.name] = self._count(moments.name)
                moments = self._moments(moments, self.slices[moments.name])
            read.append(moments)
        treedef: Any = jax.tree.structure(self.params)
        trees = {
            field: treedef.unflatten([getattr(moments, field) for moments in read])
            for field in _FIELDS
            if field in node._fields
        }
        step = max(counts.values(), default=0) if self.step is None else self.step
        new = node._replace(
            count=self._count_tree(counts, node.count),
            step=device_put_like(step, node.step),
            **trees,
        )
        rate = self._rate(counts)
        if rate is not None:
            new_rate = device_put_like(rate, node.learning_rate)
            new = new._replace(learning_rate=new_rate)
        return new

    def _moments(self, old: LeafMoments, slices: Sequence[TensorSlice]) -> LeafMoments:
        def full(key: str, like: Any) -> np.ndarray:
            """Returns a moment in the shape of the leaf."""

            def tensor(name: str) -> np.ndarray | None:
                return self._moment(name, key, like)

            return leaf_from_tensors(slices, tensor, old.param.shape, like.dtype)

        new = old
        if not _pytrees.is_masked(old.mu):
            new = new._replace(mu=device_put_like(full("exp_avg", old.mu), old.mu))
        elif any("exp_avg" in self.state.entry(s.torch_name) for s in slices):
            raise ValueError(
                "`opt_state` must keep a first moment, got none for the file's "
                f"`exp_avg` of {old.name!r}. Build the optimizer with the file's "
                "`beta1`."
            )
        if old.layout is None:
            return new._replace(nu=device_put_like(full("exp_avg_sq", old.nu), old.nu))
        # Checked for every layer of a stack; equal for all, as they share one layout.
        num_axes = len(old.param.shape)
        sources, *_ = [_mean_sources(s, old.layout, num_axes) for s in slices]
        if sources is None:
            nu = old.layout.to_torch(full("exp_avg_sq", old.nu))
            return new._replace(nu=device_put_like(nu, old.nu))
        factored: dict[str, Any] = {}
        for field, source in sources.items():
            like = getattr(old, field)
            means = np.zeros(like.shape, like.dtype)
            for found in slices:
                mean = self._moment(found.torch_name, source.key, like)
                if mean is not None:
                    means[found.place] = source.to_ours(mean)
            factored[field] = device_put_like(means, like)
        return new._replace(**factored)

    def _moment(self, name: str, key: str, like: Any) -> np.ndarray | None:
        value = self.state.moment(name, key)
        if value is not None:
            check_fits(value.dtype, like.dtype, f"`{key}` of {name!r}")
        return value

    def _count(self, leaf: str) -> int:
        """Returns the number of updates of a leaf."""
        names = [found.torch_name for found in self.slices[leaf]]
        counts = {name: self.state.num_updates(name) for name in names}
        if len(set(counts.values())) > 1:
            raise ValueError(
                f"`state_dict` must have one `step` for all that makes up the leaf "
                f"{leaf!r}, got {counts}. Keep these parameters in leaves of their own."
            )
        return next(iter(counts.values()))

    def _count_tree(self, counts: Mapping[str, int], old: PyTree) -> PyTree:
        """Returns one counter if all agree, else one for each leaf; (), int32."""
        # With one counter the update computes its bias corrections once for all leaves.
        like = jax.tree.leaves(old)[0]
        values = sorted(set(counts.values())) or [0]
        if len(values) == 1:
            return device_put_like(values[0], like)
        # Integer leaves are never updated, but have a counter in the tree.
        leaves = [
            device_put_like(counts.get(name, values[-1]), like)
            for name in _pytrees.leaf_names(self.params)
        ]
        return jax.tree.unflatten(jax.tree.structure(self.params), leaves)

    def _rate(self, counts: Mapping[str, int]) -> float | None:
        """Returns the rate that the leaves' groups share; None if they have none."""
        # A state has one rate. torch's groups may differ in decay, which a mask holds.
        group_of = self.state.group_of
        names = {found.torch_name for leaf in counts for found in self.slices[leaf]}
        numbers = sorted({group_of[name] for name in names & set(group_of)})
        rates = {number: self.state.groups[number].get("lr") for number in numbers}
        if len(set(rates.values())) > 1:
            raise ValueError(
                "`state_dict` must have one `lr` for all groups of one optimizer, got "
                f"{rates} by group. Keep groups of their own by "
                "`optax.multi_transform`."
            )
        rate = next(iter(rates.values()), None)
        return None if rate is None else float(rate)


def state_entries(
    node: Any,
    params: PyTree,
    slices: Mapping[str, Sequence[TensorSlice]],
    layouts: Layouts,
) -> dict[str, dict[str, Any]]:
    """Returns torch's entry for each tensor whose leaves a state updates."""
    moments = {m.name: m for m in _leaf_moments(node, params, layouts)}
    counts = [int(np.asarray(count)) for count in jax.tree.leaves(node.count)]
    # A state has one counter for all leaves, or one for each.
    counts = counts * len(moments) if len(counts) == 1 else counts
    count_of = dict(zip(moments, counts, strict=True))
    return {
        name: _entry(group, moments, count_of[group[0].leaf])
        for name, group in slices.items()
        if not moments[group[0].leaf].is_masked and count_of[group[0].leaf] > 0
    }


def _entry(
    slices: Sequence[TensorSlice], moments: Mapping[str, LeafMoments], count: int
) -> dict[str, Any]:
    """Returns the entry of one tensor.

    `RMS` of Adafactor is that of the present parameter; the next update recomputes it.
    """
    torch = import_extra("torch")

    def tensor(of_leaf: Callable[[LeafMoments], Any]) -> Any:
        return as_tensor(
            tensor_from_leaves(slices, lambda leaf: np.asarray(of_leaf(moments[leaf])))
        )

    first = moments[slices[0].leaf]
    has_mu = not _pytrees.is_masked(first.mu)
    mu = {"exp_avg": tensor(lambda leaf: leaf.mu)} if has_mu else {}
    if first.layout is None:
        # torch counts in a float32 tensor, Transformers' Adafactor in an int.
        step = torch.tensor(float(count), dtype=torch.float32)
        return {"step": step, **mu, "exp_avg_sq": tensor(lambda leaf: leaf.nu)}
    entry: dict[str, Any] = {"step": count, **mu}
    sources = _mean_sources(slices[0], first.layout, len(first.param.shape))
    if sources is None:
        entry["exp_avg_sq"] = tensor(LeafMoments.full_second_moment)
    else:
        field_of = {source.key: field for field, source in sources.items()}
        for key in _KEYS:
            mean = np.asarray(getattr(first, field_of[key]))[slices[0].place]
            entry[key] = as_tensor(sources[field_of[key]].to_torch(mean))
    weight = tensor(lambda leaf: leaf.param)
    # Transformers computes float64 parameters in float64, all others in float32.
    wide = weight if weight.element_size() == 8 else weight.float()
    return {**entry, "RMS": wide.norm(2) / weight.numel() ** 0.5}


def _leaf_moments(node: Any, params: PyTree, layouts: Layouts) -> list[LeafMoments]:
    treedef: Any = jax.tree.structure(params)
    nothing = [optax.MaskedNode()] * treedef.num_leaves
    columns = [
        treedef.flatten_up_to(getattr(node, field))
        if field in node._fields
        else nothing
        for field in _FIELDS
    ]
    seen: list[Any] = [None] * treedef.num_leaves
    if isinstance(node, AdafactorState):
        seen = treedef.flatten_up_to(resolve_layouts(layouts, params))
    named = _pytrees.named_leaves(params)
    return [
        LeafMoments(name, p, *others)
        for (name, p), *others in zip(named, seen, *columns, strict=True)
    ]


class _MeanSource(NamedTuple):
    """torch's mean that one of ours equals, and the order of its axes."""

    key: str  # one of `_KEYS`
    order: tuple[int, ...]  # of the mean's axes, those of torch in our order

    def to_ours(self, mean: np.ndarray) -> np.ndarray:
        """Returns our mean from torch's."""
        return mean.transpose(self.order)

    def to_torch(self, mean: np.ndarray) -> np.ndarray:
        """Returns torch's mean from ours."""
        return mean.transpose(np.argsort(self.order, kind="stable"))


def _mean_sources(
    found: TensorSlice, layout: TorchLayout, num_axes: int
) -> Mapping[str, _MeanSource] | None:
    """Returns the sources of `nu_row` and `nu_col` for one parameter of a leaf.

    Args:
        found: the parameter.
        layout: the layout that `adafactor_tf` was given for the leaf.
        num_axes: number of axes of the leaf.

    Returns:
        The sources by field; None if the second moment is not factored.

    Raises:
        ValueError: if the means of one layout are not those of the other.
    """
    theirs, ours = found.layout.groups(num_axes), layout.groups(num_axes)
    sources: dict[str, _MeanSource] = {}
    if layout.stacked_axes != found.layout.stacked_axes:
        why = "the stacked axes differ"
    elif len(theirs) < 2 and len(ours) < 2:
        # A vector has a moment for each element, which is copied as the vector is.
        return None
    elif len(theirs) < 2 or len(ours) < 2:
        why = "only one of them has two axes"
    # A mean over all of a fused tensor does not determine the means of its parts.
    elif not found.is_whole:
        why = "row and column means cannot be cut or joined"
    else:
        why = "they are means over other axes"
        for field, reduced in (("nu_row", ours[-1]), ("nu_col", ours[-2])):
            for key, their_reduced in zip(_KEYS, (theirs[-1], theirs[-2]), strict=True):
                # The same axes are averaged, and the same axes are left in any order.
                left = [group for group in theirs if group != reduced]
                wanted = [group for group in ours if group != reduced]
                is_same = their_reduced == reduced and sorted(left) == sorted(wanted)
                if is_same and field not in sources:
                    order = tuple(left.index(group) for group in wanted)
                    sources[field] = _MeanSource(key, order)
        if len(sources) == 2:
            return sources
    raise ValueError(
        f"`layouts` must see {found.leaf!r} as torch does for Adafactor's row and "
        f"column means, got {layout!r} where torch's {found.torch_name!r} is "
        f"{found.layout!r}: {why}. Give `adafactor_tf` that layout."
    )
