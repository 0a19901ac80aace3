"""Layout of a torch tensor relative to the leaf that stores the same parameter.

Adafactor's second moments, RMS and clipping depend on the order of the axes, and on
which of them only stack parameters, such as those of layers. A layout describes the
order and the stacked axes. `interop` uses the same description to convert parameters
and moments between torch tensors and leaves.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import PyTree
from . import _tree
from ._arrays import reshaped
from ._tree import match_rules

Array = TypeVar("Array", jax.Array, np.ndarray)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TorchLayout:
    """Axes of a torch tensor in terms of a leaf's axes, and the axes that stack layers.

    Each torch axis is a group of the leaf's axes, merged in the given order. A query
    kernel `[d, heads, k]`, in torch `[heads * k, d]`, has `axes=((1, 2), (0,))`. An
    empty group is an axis of size 1 that exists only in torch. A stacked axis, such as
    axis 0 of a scan over layers, has one torch parameter per index. `axes` numbers the
    remaining axes from 0, as if the stacked axes were absent. `TorchLayout()` describes
    a leaf that has the same axes in torch.

    Attributes:
        axes: for every torch axis, the leaf's axes that are merged into it; None if the
            leaf has the same axes in torch.
        stacked_axes: axes of the leaf along which parameters are stacked.

    Raises:
        ValueError: if `axes` does not contain 0, 1, ... once each, or if `stacked_axes`
            contains an axis twice or a negative number.
    """

    axes: tuple[tuple[int, ...], ...] | None = None
    stacked_axes: tuple[int, ...] = ()

    def __post_init__(self):
        """Checks that every axis occurs once."""
        if self.axes is not None:
            groups = _checked_tuple("axes", self.axes)
            flat = [axis for group in groups for axis in _checked_axes("axes", group)]
            if sorted(flat) != list(range(len(flat))):
                raise ValueError(
                    "`axes` must contain each axis of the leaf once, counted from 0 "
                    f"without the stacked axes, got {self.axes!r}."
                )
        stacked = _checked_axes("stacked_axes", self.stacked_axes)
        if len(set(stacked)) != len(stacked) or min(stacked, default=0) < 0:
            raise ValueError(
                "`stacked_axes` must be different axes counted from 0, got "
                f"{self.stacked_axes!r}."
            )

    @classmethod
    def dense(cls) -> "TorchLayout":
        """Layout of a kernel `[in, out]`, which is `[out, in]` in torch."""
        return cls.dense_general(1, 1)

    @classmethod
    def dense_general(cls, num_in: int, num_out: int) -> "TorchLayout":
        """Layout of a kernel `[*in, *out]`, in torch `[prod(out), prod(in)]`.

        A query, key or value projection `[d, heads, k]` has `num_in=1, num_out=2`. The
        output projection `[heads, k, d]` has `num_in=2, num_out=1`.
        """
        in_axes = tuple(range(num_in))
        out_axes = tuple(range(num_in, num_in + num_out))
        return cls(axes=(out_axes, in_axes))

    @classmethod
    def flat(cls, num_axes: int) -> "TorchLayout":
        """Layout of a leaf that is a vector in torch, such as a bias `[heads, k]`."""
        return cls(axes=(tuple(range(num_axes)),))

    @classmethod
    def conv(cls, num_spatial: int = 2) -> "TorchLayout":
        """Layout of a kernel `[*spatial, in, out]`, in torch `[out, in, *spatial]`."""
        # Flax has the spatial axes first (HWIO), torch last (OIHW).
        order = (num_spatial + 1, num_spatial, *range(num_spatial))
        return cls(axes=tuple((axis,) for axis in order))

    def stacked(self, *axes: int) -> "TorchLayout":
        """Layout of a stack of leaves along `axes`, by default along axis 0."""
        return dataclasses.replace(self, stacked_axes=axes or (0,))

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Returns whether a shape has as many axes as the layout requires."""
        num_axes = len(shape) - len(self.stacked_axes)
        if max(self.stacked_axes, default=-1) >= len(shape) or num_axes < 0:
            return False
        return self.axes is None or num_axes == sum(len(group) for group in self.axes)

    def torch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape in torch, preceded by the stacked axes."""
        groups = self.groups(len(shape))
        merged = (math.prod(shape[axis] for axis in group) for group in groups)
        return (*(shape[axis] for axis in self.stacked_axes), *merged)

    def to_torch(self, array: Array) -> Array:
        """Returns the leaf in torch's shape, preceded by the stacked axes.

        For a NumPy array the result is a view if possible.
        """
        shape = self.torch_shape(array.shape)
        return _reshape(array.transpose(self._order(array.ndim)), shape)

    def from_torch(self, array: Array, shape: tuple[int, ...]) -> Array:
        """Returns a leaf of `shape` from an array in torch's shape.

        The inverse of `to_torch`.
        """
        order = self._order(len(shape))
        unmerged = _reshape(array, tuple(shape[axis] for axis in order))
        # The indices that sort a permutation are its inverse.
        return unmerged.transpose(sorted(range(len(order)), key=order.__getitem__))

    def from_torch_reduced(
        self, array: jax.Array, torch_axis: int, shape: tuple[int, ...]
    ) -> jax.Array:
        """Returns a leaf with size 1 along the axes that torch reduced.

        Args:
            array: array in torch's shape without the axis over which it was reduced.
            torch_axis: that axis, -1 or -2 of torch's shape.
            shape: the shape of the leaf before the reduction.
        """
        # The result has size 1 along every axis that was merged into the reduced axis,
        # and broadcasts against the leaf. The leaf is not reshaped, because reshaping
        # would gather a sharded leaf.
        group = self.groups(len(shape))[torch_axis]
        ones = [1 if axis in group else size for axis, size in enumerate(shape)]
        return self.from_torch(jnp.expand_dims(array, torch_axis), tuple(ones))

    def param_axes(self, num_axes: int) -> tuple[int, ...]:
        """Returns the leaf's axes except the stacked ones."""
        return tuple(axis for axis in range(num_axes) if axis not in self.stacked_axes)

    def groups(self, num_axes: int) -> list[tuple[int, ...]]:
        """Returns for every torch axis the axes of the leaf that are merged into it."""
        # `self.axes` numbers the axes without the stacked ones; the result uses the
        # leaf's own numbers.
        axes = self.param_axes(num_axes)
        if self.axes is None:
            return [(axis,) for axis in axes]
        return [tuple(axes[axis] for axis in group) for group in self.axes]

    def _order(self, num_axes: int) -> tuple[int, ...]:
        """Returns the stacked axes, then the other axes in the order of torch."""
        merged = (axis for group in self.groups(num_axes) for axis in group)
        return (*self.stacked_axes, *merged)


def resolve_layouts(
    layouts: Mapping[str, TorchLayout] | None, params: PyTree
) -> PyTree:
    """Returns a layout for every leaf, as a tree of the structure of `params`.

    The keys of `layouts` are patterns: regular expressions that must match the whole
    name of a leaf. A rank-4 leaf named `kernel` that no pattern matches is assumed to
    be the HWIO kernel of a Flax convolution. Every other leaf that no pattern matches
    is assumed to have the same layout in torch as here (`TorchLayout()`).

    Raises:
        TypeError: if `layouts` is not a mapping from strings to `TorchLayout`.
        ValueError: if a pattern is not a regular expression or matches no leaf, if a
            layout does not fit its leaf, or if two patterns assign different layouts to
            a leaf.
    """
    patterns = {} if layouts is None else layouts
    values = match_rules("layouts", patterns, TorchLayout, "TorchLayout", params)
    declared = iter(values)  # `map_leaves` visits the leaves in the same order

    def layout_of(name: str, leaf: Any) -> tuple[TorchLayout]:
        layout = next(declared) or _default_layout(name, leaf)
        if not layout.fits(leaf.shape):
            raise ValueError(
                f"`layouts` must fit the leaves, but {name!r} has the shape "
                f"{list(leaf.shape)} and its layout requires {_describe_axes(layout)}, "
                f"got {layout!r}."
            )
        return (layout,)

    return _tree.map_leaves(layout_of, params, num_results=1)[0]


def _reshape(array: Array, shape: tuple[int, ...]) -> Array:
    # Arrays that were read from files are NumPy arrays, which have no sharding.
    if isinstance(array, np.ndarray):
        return array.reshape(shape)
    return reshaped(array, shape)


def _default_layout(name: str, leaf: Any) -> TorchLayout:
    is_conv = name.split(".")[-1] == "kernel" and len(leaf.shape) == 4
    return TorchLayout.conv(2) if is_conv else TorchLayout()


def _describe_axes(layout: TorchLayout) -> str:
    stacked = f"stacked axes {list(layout.stacked_axes)}"
    if layout.axes is None:
        return f"a leaf with {stacked}"
    num_axes = sum(len(group) for group in layout.axes)
    return f"{num_axes} axes" + (f" and {stacked}" if layout.stacked_axes else "")


def _checked_axes(name: str, axes: Any) -> tuple[int, ...]:
    for axis in _checked_tuple(name, axes):
        if isinstance(axis, bool) or not isinstance(axis, int):
            raise TypeError(f"`{name}` must hold whole numbers, got {axis!r}.")
    return axes


def _checked_tuple(name: str, value: Any) -> tuple:
    if not isinstance(value, tuple):
        expected = "a tuple of tuples" if name == "axes" else "a tuple"
        raise TypeError(f"`{name}` must be {expected}, got {value!r}.")
    return value
