"""Slices that leaves and torch tensors share: found by name and shape, copied bitwise.

A range of a torch tensor equals a range of a leaf, in the axes that torch sees of the
leaf (`TorchLayout`), at one index of its stacked axes. Transposed, reshaped, stacked,
fused and split parameters are all cases of this.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..optimizers import TorchLayout
from ._torch_model import TorchParam

CONVENTIONS = ("linear", "conv1d", "former_flax_gpt2")

# None: an axis of any length, along which a tensor is split into several leaves.
_Shape = Sequence[int | None]
_Range = tuple[int, int]
_MISFIT = "the shapes do not fit"


class TensorSlice(NamedTuple):
    """Range of a leaf that equals a range of a torch tensor."""

    leaf: str
    torch_name: str
    layout: TorchLayout  # of the whole leaf
    place: tuple[int, ...] = ()  # index along the stacked axes of the leaf
    axis: int = 0  # torch axis of the two ranges
    leaf_range: _Range | None = None  # None: all of it; a part if tensors are fused
    torch_range: _Range | None = None  # None: all of it; a part if the tensor is split

    @property
    def is_whole(self) -> bool:
        """True if one torch tensor is one parameter of the leaf."""
        return self.leaf_range is None and self.torch_range is None


class NameMatch(NamedTuple):
    """Leaf and the names of its torch tensors."""

    leaf: str
    shape: tuple[int, ...]
    parts: tuple[tuple[str, ...], ...]  # fused tensors; for each the layers of a stack
    is_stacked: bool


def leaf_from_tensors(
    slices: Sequence[TensorSlice],
    tensor: Callable[[str], np.ndarray | None],
    shape: Sequence[int],
    dtype: Any,
) -> np.ndarray:
    """Returns a leaf from the tensors of its slices; zeros for None.

    The result is a view of the tensor where possible.
    """
    first, shape = slices[0], tuple(shape)
    # A tensor that is not stacked, fused or split is not copied: it stays a view of
    # the mapped file until it is copied to a device.
    if len(slices) == 1 and first.is_whole and not first.place:
        whole = tensor(first.torch_name)
        if whole is None:
            return np.zeros(shape, dtype)
        return first.layout.from_torch(whole, shape).astype(dtype, copy=False)
    # All slices of a leaf have its layout, so they are written to one array in torch's
    # axes, which is transposed once.
    viewed = np.zeros(first.layout.torch_shape(shape), dtype)
    for part in slices:
        source = tensor(part.torch_name)
        if source is not None:
            target = _part(viewed[part.place], part.axis, part.leaf_range)
            target[...] = _part(source, part.axis, part.torch_range)
    return first.layout.from_torch(viewed, shape)


def tensor_from_leaves(
    slices: Sequence[TensorSlice], leaf: Callable[[str], np.ndarray]
) -> np.ndarray:
    """Returns a torch tensor from the leaves of its slices."""
    parts = []
    for part in slices:
        viewed = part.layout.to_torch(leaf(part.leaf))[part.place]
        parts.append(_part(viewed, part.axis, part.leaf_range))
    return parts[0] if len(parts) == 1 else np.concatenate(parts, slices[0].axis)


def by_leaf(slices: Sequence[TensorSlice]) -> dict[str, list[TensorSlice]]:
    """Returns the slices of every leaf."""
    groups: dict[str, list[TensorSlice]] = {}
    for part in slices:
        groups.setdefault(part.leaf, []).append(part)
    return groups


def by_tensor(slices: Sequence[TensorSlice]) -> dict[str, list[TensorSlice]]:
    """Returns the slices of every torch tensor."""
    groups: dict[str, list[TensorSlice]] = {}
    for part in slices:
        groups.setdefault(part.torch_name, []).append(part)
    return groups


def resolve_slices(
    matches: Sequence[NameMatch],
    torch_params: Mapping[str, TorchParam],
    layouts: Mapping[str, TorchLayout],
    convention: str,
) -> tuple[list[TensorSlice], list[str]]:
    """Finds the slices of all leaves.

    Args:
        matches: the leaves and their torch names.
        torch_params: the torch parameters by name.
        layouts: declared layouts by pattern; others are inferred.
        convention: orientation of kernels, as `match_names` takes it.

    Returns:
        The slices, and a description of each leaf and each tensor that does not fit.
    """
    users = Counter(name for m in matches for part in m.parts for name in part)
    ends: Counter[str] = Counter()  # of each split tensor, the end of its last slice
    slices: list[TensorSlice] = []
    problems: list[str] = []
    for match in matches:
        tensors = [torch_params[part[0]] for part in match.parts]
        is_split = users[tensors[0].name] > 1
        axis = _output_axis(match.leaf, tensors[0], convention)
        wanted = _shape_of_parts([t.shape for t in tensors], axis, is_split)
        layout: TorchLayout | str = _MISFIT
        if wanted is not None:
            layout = _layout(match, wanted, tensors[0].layer, layouts, convention)
        if isinstance(layout, str):
            problems.append(_described(match, tensors, layout))
            continue
        found = list(
            _slices(match, layout, axis, torch_params, ends if is_split else None)
        )
        if all(_is_consistent(s, match.shape, torch_params) for s in found):
            slices += found
        else:
            problems.append(_described(match, tensors, _MISFIT))
    # Parts of a split tensor that no leaf has would be lost when it is written.
    groups = by_tensor(slices)
    for name in [name for name in ends if name in groups]:
        shape, leaves = torch_params[name].shape, [s.leaf for s in groups[name]]
        if ends[name] != shape[groups[name][0].axis]:
            problems.append(
                f"torch's {name!r} {list(shape)}: its leaves {leaves} make up "
                f"{ends[name]} of it"
            )
    return slices, problems


def _part(array: np.ndarray, axis: int, part: _Range | None) -> np.ndarray:
    if part is None:
        return array
    return array[(slice(None),) * axis + (slice(*part),)]


def _is_in_out(layer: str, convention: str) -> bool:
    """Returns whether torch's weight of a kernel is [in, out] and not [out, in]."""
    return layer == "Conv1D" or (layer == "" and convention != "linear")


def _output_axis(leaf: str, tensor: TorchParam, convention: str) -> int:
    """Returns the torch axis of outputs, along which tensors are fused or split."""
    # torch fuses layers that have the same input (queries, keys and values) by
    # concatenating their outputs: axis 0 of [out, in], axis 1 of Conv1D's [in, out].
    is_matrix = leaf.rpartition(".")[2] == "kernel" and len(tensor.shape) == 2
    return int(is_matrix and _is_in_out(tensor.layer, convention))


def _shape_of_parts(
    shapes: Sequence[tuple[int, ...]], axis: int, is_split: bool
) -> _Shape | None:
    """Returns the torch shape of the leaf's fused parts; None if they do not fit."""
    wanted: list[int | None] = list(shapes[0])
    if not is_split and len(shapes) == 1:
        return wanted
    if any(len(shape) <= axis for shape in shapes):
        return None
    # The length of a leaf's share of a split tensor is known from the leaf alone.
    wanted[axis] = None if is_split else sum(shape[axis] for shape in shapes)
    return wanted


def _layout(
    match: NameMatch,
    wanted: _Shape,
    layer: str,
    layouts: Mapping[str, TorchLayout],
    convention: str,
) -> TorchLayout | str:
    """Returns the declared or inferred layout of a leaf; or the reason for none."""
    num_stacked = int(match.is_stacked)
    for pattern, layout in layouts.items():
        if re.fullmatch(pattern, match.leaf):
            is_stack = len(layout.stacked_axes) == num_stacked
            if not (is_stack and layout.fits(match.shape)):
                return f"`layouts` has {layout!r}, which does not fit"
            viewed = layout.torch_shape(match.shape)[num_stacked:]
            return layout if _is_shape(viewed, wanted) else _MISFIT
    # Flax flips the kernel in space.
    if layer.startswith("ConvTranspose"):
        return f"torch's {layer} is no transposition of a leaf"
    shape = match.shape[num_stacked:]
    found = {
        layout
        for layout in _candidates(match.leaf, len(shape), wanted, layer, convention)
        if layout.fits(shape) and _is_shape(layout.torch_shape(shape), wanted)
    }
    if not found:
        return _MISFIT
    if len(found) > 1:
        return "the shapes fit in more than one way, declare it in `layouts`"
    (one,) = found
    return one.stacked() if match.is_stacked else one


def _candidates(
    leaf: str, num_axes: int, wanted: _Shape, layer: str, convention: str
) -> list[TorchLayout]:
    """Returns the layouts that the name of a leaf and the type of a layer leave open.

    The shape chooses among them. A square shape does not show whether a kernel is
    transposed, so the shape alone does not decide.
    """
    is_kernel = leaf.rpartition(".")[2] == "kernel"
    # Kernels of convolutions: [*spatial, in, out] for torch's [out, in, *spatial].
    if is_kernel and len(wanted) >= 3 and num_axes == len(wanted):
        return [TorchLayout.conv(num_axes - 2)]
    if is_kernel and len(wanted) == 2 and num_axes >= 2:
        # Attention may have an axis of heads among the inputs or the outputs: any cut
        # between the two that fits torch's matrix is possible.
        if not _is_in_out(layer, convention):
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
    if num_axes == len(wanted):
        return [TorchLayout()]
    # A bias [heads, k], for torch's vector.
    return [TorchLayout.flat(num_axes)] if len(wanted) == 1 else []


def _is_shape(viewed: tuple[int, ...], wanted: _Shape) -> bool:
    return len(viewed) == len(wanted) and all(
        length in (have, None) for have, length in zip(viewed, wanted, strict=True)
    )


def _slices(
    match: NameMatch,
    layout: TorchLayout,
    axis: int,
    torch_params: Mapping[str, TorchParam],
    ends: Counter[str] | None,
) -> Iterator[TensorSlice]:
    """Yields the slices of a leaf; `ends` counts what is used of split tensors."""
    viewed = layout.torch_shape(match.shape)[len(layout.stacked_axes) :]
    start = 0
    for part in match.parts:
        shapes = [torch_params[name].shape for name in part]
        end = start + shapes[0][axis] if len(match.parts) > 1 else start
        for number, name in enumerate(part):
            place = (number,) if match.is_stacked else ()
            found = TensorSlice(match.leaf, name, layout, place, axis)
            if ends is not None:
                torch_range = ends[name], ends[name] + viewed[axis]
                found = found._replace(torch_range=torch_range)
                ends[name] += viewed[axis]
            elif len(match.parts) > 1:
                found = found._replace(leaf_range=(start, end))
            yield found
        start = end


def _is_consistent(
    found: TensorSlice, shape: tuple[int, ...], torch_params: Mapping[str, TorchParam]
) -> bool:
    """Returns whether both ranges exist and have the same shape."""
    num_stacked = len(found.layout.stacked_axes)
    viewed = found.layout.torch_shape(shape)
    stack, ours = viewed[:num_stacked], list(viewed[num_stacked:])
    theirs = list(torch_params[found.torch_name].shape)
    for lengths, part in ((ours, found.leaf_range), (theirs, found.torch_range)):
        if part is not None:
            if found.axis >= len(lengths) or part[1] > lengths[found.axis]:
                return False
            lengths[found.axis] = part[1] - part[0]
    return ours == theirs and all(
        i < length for i, length in zip(found.place, stack, strict=True)
    )


def _described(match: NameMatch, tensors: Sequence[TorchParam], why: str) -> str:
    listed = ", ".join(f"{t.name!r} {list(t.shape)}" for t in tensors)
    rest = " (and so on)" if match.is_stacked else ""
    return f"{match.leaf!r} {list(match.shape)} for torch's {listed}{rest}: {why}"
