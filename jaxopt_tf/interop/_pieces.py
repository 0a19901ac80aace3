"""Moving data between torch tensors and leaves, bit for bit.

One sentence holds for every transformation: a range of a torch tensor is a range of a
leaf, seen in torch's layout, at one place of its stack. Transposed, reshaped, stacked,
fused and split are all cases of it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..optimizers import TorchLayout

Range = tuple[int, int]


class Piece(NamedTuple):
    """What a leaf and a torch tensor have in common."""

    leaf: str
    torch_name: str
    layout: TorchLayout  # how torch sees the leaf
    place: tuple[int, ...] = ()  # along the stacked axes of the leaf
    axis: int = 0  # the torch axis along which the ranges lie
    leaf_range: Range | None = None  # None: all of it; several tensors fused: a part
    torch_range: Range | None = None  # None: all of it; a tensor split: a part

    @property
    def is_whole(self) -> bool:
        """Whether one torch parameter is one parameter of the leaf."""
        return self.leaf_range is None and self.torch_range is None


def own_axes(layout: TorchLayout, num_axes: int) -> tuple[tuple[int, ...], ...]:
    """For every torch axis the leaf's axes that it is made of, as the leaf counts."""
    own = [axis for axis in range(num_axes) if axis not in layout.stacked_axes]
    groups = layout.axes or tuple((i,) for i in range(len(own)))
    return tuple(tuple(own[axis] for axis in group) for group in groups)


def to_torch(layout: TorchLayout, leaf: np.ndarray) -> np.ndarray:
    """The leaf as torch sees it, the stacked axes in front; a view where it can be."""
    order = _order(layout, leaf.ndim)
    return leaf.transpose(order).reshape(layout.torch_shape(leaf.shape))


def from_torch(
    layout: TorchLayout, viewed: np.ndarray, shape: Sequence[int]
) -> np.ndarray:
    """A leaf of `shape` from what torch sees of it: undoes `to_torch`."""
    order = _order(layout, len(shape))
    unmerged = viewed.reshape([shape[axis] for axis in order])
    return unmerged.transpose(np.argsort(order, kind="stable"))


def leaf_from_tensors(
    pieces: Sequence[Piece],
    tensor: Callable[[str], np.ndarray | None],
    shape: Sequence[int],
    dtype: Any,
) -> np.ndarray:
    """A leaf from the tensors that its pieces name; zeros where there is none.

    It is a view of a tensor where that serves.
    """
    layout = pieces[0].layout
    if len(pieces) == 1 and pieces[0].is_whole and not pieces[0].place:
        whole = tensor(pieces[0].torch_name)
        if whole is None:
            return np.zeros(shape, dtype)
        return from_torch(layout, whole, shape).astype(dtype, copy=False)
    viewed = np.zeros(layout.torch_shape(tuple(shape)), dtype)
    for piece in pieces:
        part = tensor(piece.torch_name)
        if part is not None:
            target = _cut(viewed[piece.place], piece.axis, piece.leaf_range)
            target[...] = _cut(part, piece.axis, piece.torch_range)
    return from_torch(layout, viewed, shape)


def tensor_from_leaves(
    pieces: Sequence[Piece], leaf: Callable[[str], np.ndarray]
) -> np.ndarray:
    """A torch tensor from the leaves that its pieces name."""
    parts = []
    for piece in pieces:
        viewed = to_torch(piece.layout, leaf(piece.leaf))[piece.place]
        parts.append(_cut(viewed, piece.axis, piece.leaf_range))
    return parts[0] if len(parts) == 1 else np.concatenate(parts, pieces[0].axis)


def by_leaf(pieces: Sequence[Piece]) -> Mapping[str, tuple[Piece, ...]]:
    """The pieces of every leaf."""
    return _grouped(pieces, lambda piece: piece.leaf)


def by_tensor(pieces: Sequence[Piece]) -> Mapping[str, tuple[Piece, ...]]:
    """The pieces of every torch tensor."""
    return _grouped(pieces, lambda piece: piece.torch_name)


def _order(layout: TorchLayout, num_axes: int) -> tuple[int, ...]:
    groups = own_axes(layout, num_axes)
    return (*layout.stacked_axes, *(axis for group in groups for axis in group))


def _cut(array: np.ndarray, axis: int, part: Range | None) -> np.ndarray:
    if part is None:
        return array
    return array[(slice(None),) * axis + (slice(*part),)]


def _grouped(
    pieces: Sequence[Piece], key: Callable[[Piece], str]
) -> Mapping[str, tuple[Piece, ...]]:
    groups: dict[str, list[Piece]] = {}
    for piece in pieces:
        groups.setdefault(key(piece), []).append(piece)
    return {name: tuple(group) for name, group in groups.items()}
