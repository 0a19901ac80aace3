"""How torch would see a leaf that Flax stores otherwise.

Adafactor's second moments, its RMS and its clipping depend on which axes come last and
on what counts as one parameter. A layout says both, so that they come out as torch's.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .._typing import PyTree
from . import _tree
from ._arrays import reshaped
from ._tree import match_rules


@dataclasses.dataclass(frozen=True, kw_only=True)
class TorchLayout:
    """How torch would see a leaf: its own axes, and which of ours only stack layers.

    Each torch axis is a group of the leaf's axes, merged in the order given: a query
    kernel `[d, heads, k]`, for torch `[heads * k, d]`, has `axes=((1, 2), (0,))`. An
    empty group is an axis of size 1 that torch has and the leaf has not. Stacked axes
    hold one torch parameter per index and are not counted in `axes`: a scan over layers
    makes axis 0 one. `TorchLayout()` is a leaf that torch stores as we do.

    Attributes:
        axes: for every torch axis the leaf's axes that it is made of; None: as stored.
        stacked_axes: the axes that only stack parameters, as the leaf numbers them.

    Raises:
        ValueError: if `axes` does not name 0, 1, ... once each, or if `stacked_axes`
            repeats itself or has a negative number.
    """

    axes: tuple[tuple[int, ...], ...] | None = None
    stacked_axes: tuple[int, ...] = ()

    def __post_init__(self):
        """Checks that every axis is named once."""
        if self.axes is not None:
            groups = _tuple("axes", self.axes)
            flat = [axis for group in groups for axis in _axes("axes", group)]
            if sorted(flat) != list(range(len(flat))):
                raise ValueError(
                    "`axes` must name each axis of the leaf once, counted from 0 "
                    f"without the stacked ones, got {self.axes!r}."
                )
        stacked = _axes("stacked_axes", self.stacked_axes)
        if len(set(stacked)) != len(stacked) or min(stacked, default=0) < 0:
            raise ValueError(
                "`stacked_axes` must be different axes counted from 0, got "
                f"{self.stacked_axes!r}."
            )

    @classmethod
    def dense(cls) -> "TorchLayout":
        """A kernel `[in, out]`, for torch `[out, in]`."""
        return cls.dense_general(1, 1)

    @classmethod
    def dense_general(cls, num_in: int, num_out: int) -> "TorchLayout":
        """A kernel `[*in, *out]`, for torch `[prod(out), prod(in)]`.

        A query, key or value projection `[d, heads, k]` has `num_in=1, num_out=2`; the
        projection out of the heads, `[heads, k, d]`, has `num_in=2, num_out=1`.
        """
        ins = tuple(range(num_in))
        outs = tuple(range(num_in, num_in + num_out))
        return cls(axes=(outs, ins))

    @classmethod
    def flat(cls, num_axes: int) -> "TorchLayout":
        """A leaf that torch holds as a vector, as the bias `[heads, k]` of a query."""
        return cls(axes=(tuple(range(num_axes)),))

    @classmethod
    def conv(cls, num_spatial: int = 2) -> "TorchLayout":
        """A kernel `[*spatial, in, out]` (HWIO), for torch `[out, in, *spatial]`."""
        order = (num_spatial + 1, num_spatial, *range(num_spatial))
        return cls(axes=tuple((axis,) for axis in order))

    def stacked(self, *axes: int) -> "TorchLayout":
        """This layout for each layer of a stack along `axes`; none given: axis 0."""
        return dataclasses.replace(self, stacked_axes=axes or (0,))

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a leaf of this shape has the axes that the layout names."""
        num_own = len(shape) - len(self.stacked_axes)
        if max(self.stacked_axes, default=-1) >= len(shape) or num_own < 0:
            return False
        return self.axes is None or num_own == sum(len(group) for group in self.axes)

    def torch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that torch sees, the stacked axes in front."""
        groups = self.groups(len(shape))
        merged = (math.prod(shape[axis] for axis in group) for group in groups)
        return (*(shape[axis] for axis in self.stacked_axes), *merged)

    def to_torch(self, array: jax.Array) -> jax.Array:
        """The leaf as torch sees it, the stacked axes in front."""
        shape = self.torch_shape(array.shape)
        return reshaped(jnp.transpose(array, self._order(array.ndim)), shape)

    def from_torch(self, array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """A leaf of `shape` from what torch sees of it: undoes `to_torch`."""
        order = self._order(len(shape))
        unmerged = reshaped(array, tuple(shape[axis] for axis in order))
        back = sorted(range(len(order)), key=order.__getitem__)
        return jnp.transpose(unmerged, back)

    def without(
        self, array: jax.Array, torch_axis: int, shape: tuple[int, ...]
    ) -> jax.Array:
        """From what torch sees without its axis -1 or -2 a leaf that has size 1 there.

        Otherwise the leaf is of `shape`.
        """
        group = self.groups(len(shape))[torch_axis]
        ones = [1 if axis in group else size for axis, size in enumerate(shape)]
        return self.from_torch(jnp.expand_dims(array, torch_axis), tuple(ones))

    def own_axes(self, num_axes: int) -> tuple[int, ...]:
        """The leaf's axes that are of one parameter."""
        return tuple(axis for axis in range(num_axes) if axis not in self.stacked_axes)

    def groups(self, num_axes: int) -> list[tuple[int, ...]]:
        """For every torch axis the leaf's axes, as the leaf numbers them."""
        own = self.own_axes(num_axes)
        if self.axes is None:
            return [(axis,) for axis in own]
        return [tuple(own[axis] for axis in group) for group in self.axes]

    def _order(self, num_axes: int) -> tuple[int, ...]:
        """The leaf's axes in the order in which torch has them."""
        own = (axis for group in self.groups(num_axes) for axis in group)
        return (*self.stacked_axes, *own)


def resolve_layouts(
    layouts: Mapping[str, TorchLayout] | None, params: PyTree
) -> PyTree:
    """A layout for every leaf, as a tree of the structure of `params`.

    A pattern is a regular expression for the whole name of a leaf. Undeclared, a rank-4
    leaf named `kernel` is the HWIO of a Flax convolution and every other leaf is as it
    stands.

    Raises:
        TypeError: if `layouts` is not a mapping of strings to `TorchLayout`.
        ValueError: if a pattern is no regular expression or matches no leaf, if a
            layout does not fit its leaf, or if two patterns give a leaf two layouts.
    """
    patterns = {} if layouts is None else layouts
    values = match_rules("layouts", patterns, TorchLayout, "TorchLayout", params)
    declared = iter(values)

    def layout_of(name: str, leaf: Any) -> tuple[TorchLayout]:
        layout = next(declared) or _undeclared(name, leaf)
        if not layout.fits(leaf.shape):
            raise ValueError(
                f"`layouts` must fit the leaves, but {name!r} has the shape "
                f"{list(leaf.shape)} and its layout is for {_wanted(layout)}, got "
                f"{layout!r}."
            )
        return (layout,)

    return _tree.map_leaves(layout_of, params, num_results=1)[0]


def _undeclared(name: str, leaf: Any) -> TorchLayout:
    is_conv = name.split(".")[-1] == "kernel" and len(leaf.shape) == 4
    return TorchLayout.conv(2) if is_conv else TorchLayout()


def _wanted(layout: TorchLayout) -> str:
    stacked = f"stacked axes {list(layout.stacked_axes)}"
    if layout.axes is None:
        return f"a leaf with {stacked}"
    own = sum(len(group) for group in layout.axes)
    return f"{own} axes" + (f" and {stacked}" if layout.stacked_axes else "")


def _axes(name: str, axes: Any) -> tuple[int, ...]:
    for axis in _tuple(name, axes):
        if isinstance(axis, bool) or not isinstance(axis, int):
            raise TypeError(f"`{name}` must hold whole numbers, got {axis!r}.")
    return axes


def _tuple(name: str, value: Any) -> tuple:
    if not isinstance(value, tuple):
        kind = "a tuple of tuples" if name == "axes" else "a tuple"
        raise TypeError(f"`{name}` must be {kind}, got {value!r}.")
    return value
