"""Correspondence between ranges of leaves and ranges of torch tensors.

A `TensorSlice` pairs a range of a torch tensor with a range of a leaf. The leaf is
first brought into the axes of torch (`TorchLayout.to_torch`) and indexed along its
stacked axes. Slices describe transposed, reshaped, stacked, fused and split parameters.
Values are copied bitwise.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..optimizers import TorchLayout
from ._torch_model import TorchParam

CONVENTIONS = ("linear", "conv1d", "former_flax_gpt2")

_Range = tuple[int, int]
_SHAPE_MISMATCH = "the shapes do not fit"


class TensorSlice(NamedTuple):
    """Range of a leaf that equals a range of a torch tensor."""

    leaf: str  # name of the leaf
    torch_name: str  # name of the torch tensor
    layout: TorchLayout  # layout of the whole leaf
    stack_index: tuple[int, ...] = ()  # index along the stacked axes of the leaf
    axis: int = 0  # torch axis of the two ranges
    leaf_range: _Range | None = None  # part of a leaf of fused tensors; None: all
    torch_range: _Range | None = None  # part of a tensor that is split; None: all

    @property
    def is_whole(self) -> bool:
        """True if neither the leaf nor the torch tensor is divided along `axis`."""
        return self.leaf_range is None and self.torch_range is None


class NameMatch(NamedTuple):
    """Names of the torch tensors of a leaf."""

    leaf: str  # name of the leaf
    shape: tuple[int, ...]  # shape of the leaf
    parts: tuple[tuple[str, ...], ...]  # fused tensors; for each the layers of a stack
    is_stacked: bool  # whether the first axis of the leaf stacks layers


def leaf_from_tensors(
    slices: Sequence[TensorSlice],
    tensor: Callable[[str], np.ndarray | None],
    shape: Sequence[int],
    dtype: Any,
) -> np.ndarray:
    """Builds a leaf from the tensors of its slices.

    Args:
        slices: all slices of the leaf.
        tensor: returns a torch tensor by name, or None for zeros.
        shape: shape of the leaf.
        dtype: dtype of the leaf.

    Returns:
        The leaf, as a view of the tensor if possible.
    """
    first, shape = slices[0], tuple(shape)
    # A tensor that is not stacked, fused or split remains a view of the mapped file, so
    # that its data is copied only once, to the device.
    if len(slices) == 1 and first.is_whole and not first.stack_index:
        array = tensor(first.torch_name)
        if array is None:
            return np.zeros(shape, dtype)
        return first.layout.from_torch(array, shape).astype(dtype, copy=False)
    # All slices of a leaf have the same layout. They are written to one array in
    # torch's axes, which is transposed once at the end.
    in_torch_axes = np.zeros(first.layout.torch_shape(shape), dtype)
    for part in slices:
        source = tensor(part.torch_name)
        if source is not None:
            target = _part(in_torch_axes[part.stack_index], part.axis, part.leaf_range)
            target[...] = _part(source, part.axis, part.torch_range)
    return first.layout.from_torch(in_torch_axes, shape)


def tensor_from_leaves(
    slices: Sequence[TensorSlice], leaf: Callable[[str], np.ndarray]
) -> np.ndarray:
    """Builds a torch tensor from the leaves of its slices."""
    parts = []
    for part in slices:
        in_torch_axes = part.layout.to_torch(leaf(part.leaf))[part.stack_index]
        parts.append(_part(in_torch_axes, part.axis, part.leaf_range))
    return parts[0] if len(parts) == 1 else np.concatenate(parts, slices[0].axis)


def group_slices(
    slices: Sequence[TensorSlice], field: str
) -> dict[str, list[TensorSlice]]:
    """Returns the slices by the name of their leaf or of their torch tensor."""
    groups: dict[str, list[TensorSlice]] = {}
    for part in slices:
        groups.setdefault(getattr(part, field), []).append(part)
    return groups


def resolve_slices(
    matches: Sequence[NameMatch],
    torch_params: Mapping[str, TorchParam],
    layouts: Mapping[str, TorchLayout],
    convention: str,
) -> tuple[list[TensorSlice], list[str]]:
    """Finds the slices of all leaves.

    Args:
        matches: torch names of all leaves.
        torch_params: the torch parameters by name.
        layouts: declared layouts by pattern. Others are inferred.
        convention: orientation of kernels, as for `match_names`.

    Returns:
        The slices, and a description of each leaf and tensor that does not match.
    """
    users = Counter(name for m in matches for part in m.parts for name in part)
    ends: dict[str, int] = {}  # end of the last slice of each split tensor
    slices: list[TensorSlice] = []
    problems: list[str] = []
    for match in matches:
        tensors = [[torch_params[name] for name in part] for part in match.parts]
        first = tensors[0][0]
        axis = _output_axis(match.leaf, first, convention)
        is_split = users[first.name] > 1
        candidates, reason = _layouts(match, first, layouts, convention)
        found = {
            layout: leaf_slices
            for layout in candidates
            if (
                leaf_slices := _slices(
                    match, layout, axis, tensors, ends if is_split else None
                )
            )
        }
        if len(found) == 1:
            (leaf_slices,) = found.values()
            slices += leaf_slices
            ends |= {
                s.torch_name: s.torch_range[1] for s in leaf_slices if s.torch_range
            }
            continue
        if found:
            reason = "several layouts match, declare one in `layouts`"
        listed = ", ".join(f"{t[0].name!r} {list(t[0].shape)}" for t in tensors)
        suffix = " (and so on)" if match.is_stacked else ""
        problems.append(
            f"{match.leaf!r} {list(match.shape)} for torch's {listed}{suffix}: {reason}"
        )
    # The leaves must cover a split tensor completely. A part that no leaf contains
    # would be lost when the tensor is written.
    groups = group_slices(slices, "torch_name")
    for name, end in ends.items():
        shape, leaves = torch_params[name].shape, [s.leaf for s in groups[name]]
        axis = groups[name][0].axis
        size = shape[axis]
        if end != size:
            problems.append(
                f"torch's {name!r} {list(shape)}: its leaves {leaves} cover {end} of "
                f"{size} indices of axis {axis}"
            )
    return slices, problems


def _part(array: np.ndarray, axis: int, part: _Range | None) -> np.ndarray:
    if part is None:
        return array
    return array[(slice(None),) * axis + (slice(*part),)]


def _is_kernel(leaf: str) -> bool:
    return leaf.rpartition(".")[2] == "kernel"


def _is_in_out(layer: str, convention: str) -> bool:
    """Returns True if torch's weight of a kernel is [in, out], False for [out, in]."""
    return layer == "Conv1D" or (layer == "" and convention != "linear")


def _output_axis(leaf: str, tensor: TorchParam, convention: str) -> int:
    """Returns torch's output axis, along which tensors are fused or split."""
    # Layers with the same input (queries, keys and values) are fused by concatenating
    # their outputs: axis 0 of [out, in], axis 1 of Conv1D's [in, out].
    is_matrix = _is_kernel(leaf) and len(tensor.shape) == 2
    return int(is_matrix and _is_in_out(tensor.layer, convention))


def _layouts(
    match: NameMatch,
    tensor: TorchParam,
    layouts: Mapping[str, TorchLayout],
    convention: str,
) -> tuple[list[TorchLayout], str]:
    """Returns the possible layouts of a leaf, and the error if none of them matches."""
    for pattern, layout in layouts.items():
        if re.fullmatch(pattern, match.leaf):
            stacking_agrees = len(layout.stacked_axes) == match.is_stacked
            if stacking_agrees and layout.fits(match.shape):
                return [layout], _SHAPE_MISMATCH
            return [], f"`layouts` has {layout!r}, which does not fit"
    # Flax's kernels of transposed convolutions have reversed spatial axes, which a
    # layout, a permutation of axes, cannot describe.
    if tensor.layer.startswith("ConvTranspose"):
        return [], (
            f"kernels of {tensor.layer} have reversed spatial axes in Flax, which no "
            "layout describes"
        )
    found = _candidates(match, tensor, convention)
    if match.is_stacked:
        found = [layout.stacked() for layout in found]
    return [layout for layout in found if layout.fits(match.shape)], _SHAPE_MISMATCH


def _candidates(
    match: NameMatch, tensor: TorchParam, convention: str
) -> list[TorchLayout]:
    """Returns the layouts that the name of a leaf and the type of a layer allow.

    The shape selects one of them. The shape alone would not suffice: a square shape
    does not show whether a kernel is transposed.
    """
    num_axes, num_torch_axes = len(match.shape) - match.is_stacked, len(tensor.shape)
    # Kernels of convolutions: [*spatial, in, out] for torch's [out, in, *spatial].
    if _is_kernel(match.leaf) and num_torch_axes >= 3 and num_axes == num_torch_axes:
        return [TorchLayout.conv(num_axes - 2)]
    if _is_kernel(match.leaf) and num_torch_axes == 2 and num_axes >= 2:
        # Kernels of attention may have an axis of heads among the inputs or the
        # outputs. Every boundary between the two that matches torch's matrix is
        # possible.
        if not _is_in_out(tensor.layer, convention):
            return [
                TorchLayout.dense_general(num_in, num_axes - num_in)
                for num_in in range(1, num_axes)
            ]
        if convention == "former_flax_gpt2":
            return [TorchLayout.dense()]
        if num_axes == 2:
            return [TorchLayout()]
        axes = tuple(range(num_axes))
        return [TorchLayout(axes=(axes[:n], axes[n:])) for n in range(1, num_axes)]
    if num_axes == num_torch_axes:
        return [TorchLayout()]
    # A bias [heads, k] is a vector in torch.
    return [TorchLayout.flat(num_axes)] if num_torch_axes == 1 else []


def _slices(
    match: NameMatch,
    layout: TorchLayout,
    axis: int,
    tensors: Sequence[Sequence[TorchParam]],
    ends: Mapping[str, int] | None,
) -> list[TensorSlice]:
    """Returns the slices of a leaf in a layout; empty if the shapes do not match.

    Args:
        match: the leaf.
        layout: layout of the leaf.
        axis: torch axis along which tensors are fused or split.
        tensors: the fused tensors; for each the layers of a stack.
        ends: end of the last slice of each tensor; None if the tensors are not split.
    """
    torch_shape, num_stacked = layout.torch_shape(match.shape), len(layout.stacked_axes)
    stack, one_layer = torch_shape[:num_stacked], torch_shape[num_stacked:]
    is_fused, is_split = len(tensors) > 1, ends is not None
    if {len(tensor.shape) for part in tensors for tensor in part} != {len(one_layer)}:
        return []
    # A leaf of fused tensors cannot share one of them with another leaf.
    if (is_fused and is_split) or ((is_fused or is_split) and axis >= len(one_layer)):
        return []
    slices, start = [], 0
    for part in tensors:
        leaf_shape = list(one_layer)
        part_slice = TensorSlice(match.leaf, "", layout, axis=axis)
        if is_fused:
            leaf_shape[axis] = part[0].shape[axis]
            leaf_range = (start, start + leaf_shape[axis])
            part_slice = part_slice._replace(leaf_range=leaf_range)
            start += leaf_shape[axis]
        for number, tensor in enumerate(part):
            tensor_shape = list(tensor.shape)
            if ends is not None:
                first = ends.get(tensor.name, 0)
                torch_range = (first, first + leaf_shape[axis])
                part_slice = part_slice._replace(torch_range=torch_range)
                # If too little of the tensor remains, the size is smaller than that of
                # the leaf, which is a mismatch.
                tensor_shape[axis] = min(leaf_shape[axis], tensor_shape[axis] - first)
            if leaf_shape != tensor_shape or stack not in ((), (len(part),)):
                return []
            stack_index = (number,) * num_stacked
            slices.append(
                part_slice._replace(torch_name=tensor.name, stack_index=stack_index)
            )
    # Fused tensors must fill the leaf: the rest of it would remain zeros.
    return slices if not is_fused or start == one_layer[axis] else []
