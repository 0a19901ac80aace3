"""From the names that a leaf was matched with to its pieces."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ..optimizers import TorchLayout
from ._layouts import fused_axis, layout_between
from ._pieces import Piece, by_tensor
from ._torch_model import TorchParam


class Match(NamedTuple):
    """A leaf and the torch names that it was found to stand for."""

    leaf: str
    shape: tuple[int, ...]
    parts: tuple[tuple[str, ...], ...]  # fused parts, of each the members of the stack
    is_stacked: bool


def cut(
    matches: Sequence[Match],
    torch_params: Mapping[str, TorchParam],
    layouts: Mapping[str, TorchLayout],
    convention: str,
) -> tuple[list[Piece], list[str]]:
    """The pieces of all leaves; and of those that do not fit, why."""
    users = Counter(name for m in matches for part in m.parts for name in part)
    taken: Counter[str] = Counter()  # of a split tensor, how much is given out
    pieces: list[Piece] = []
    problems: list[str] = []
    for match in matches:
        first = torch_params[match.parts[0][0]]
        is_split = users[first.name] > 1
        axis = fused_axis(match.leaf, first.layer, convention, len(first.shape))
        wanted = _wanted_shape(match, torch_params, axis, is_split)
        layout = _layout(match, wanted, first.layer, layouts, convention)
        if isinstance(layout, str):
            problems.append(_misfit(match, torch_params, layout))
            continue
        for piece in _pieces(match, layout, torch_params, axis, taken, is_split):
            if not _fits(piece, match.shape, torch_params[piece.torch_name].shape):
                problems.append(_misfit(match, torch_params, "the shapes do not fit"))
                break
            pieces.append(piece)
    for name, group in by_tensor(pieces).items():
        last, shape = group[-1], torch_params[name].shape
        if last.torch_range is not None and last.torch_range[1] != shape[last.axis]:
            leaves = [piece.leaf for piece in group]
            problems.append(
                f"torch's {name!r} {list(shape)}: its leaves {leaves} make up "
                f"{last.torch_range[1]} of it"
            )
    return pieces, problems


def _wanted_shape(
    match: Match, torch_params: Mapping[str, TorchParam], axis: int, is_split: bool
) -> list[int | None]:
    """What torch's shape says of one parameter of the leaf."""
    shapes = [torch_params[part[0]].shape for part in match.parts]
    wanted: list[int | None] = list(shapes[0])
    if is_split and wanted:
        wanted[axis] = None
    elif len(shapes) > 1 and all(len(shape) > axis for shape in shapes):
        wanted[axis] = sum(shape[axis] for shape in shapes)
    return wanted


def _layout(
    match: Match,
    wanted: Sequence[int | None],
    layer: str,
    layouts: Mapping[str, TorchLayout],
    convention: str,
) -> TorchLayout | str:
    """The declared layout, else the one that name and shape tell; or why none."""
    num_stacked = int(match.is_stacked)
    for pattern, layout in layouts.items():
        if re.fullmatch(pattern, match.leaf):
            is_right = len(layout.stacked_axes) == num_stacked
            if is_right and layout.fits(match.shape):
                return layout
            return f"`layouts` has {layout!r}, which does not fit"
    own = match.shape[num_stacked:]
    found = layout_between(match.leaf, own, wanted, layer, convention)
    if isinstance(found, TorchLayout) and match.is_stacked:
        return found.stacked()
    return found


def _pieces(
    match: Match,
    layout: TorchLayout,
    torch_params: Mapping[str, TorchParam],
    axis: int,
    taken: Counter[str],
    is_split: bool,
) -> Iterator[Piece]:
    whole = layout.torch_shape(match.shape)[len(layout.stacked_axes) :]
    start = 0
    for part in match.parts:
        end = start
        for number, name in enumerate(part):
            place = (number,) if match.is_stacked else ()
            piece = Piece(match.leaf, name, layout, place, axis)
            if is_split:
                end_of_split = taken[name] + whole[axis]
                piece = piece._replace(torch_range=(taken[name], end_of_split))
                taken[name] = end_of_split
            elif len(match.parts) > 1:
                end = start + torch_params[name].shape[axis]
                piece = piece._replace(leaf_range=(start, end))
            yield piece
        start = end


def _fits(piece: Piece, leaf: Sequence[int], tensor: Sequence[int]) -> bool:
    num_stacked = len(piece.layout.stacked_axes)
    seen = list(piece.layout.torch_shape(tuple(leaf))[num_stacked:])
    stack = [leaf[axis] for axis in piece.layout.stacked_axes]
    if any(i >= length for i, length in zip(piece.place, stack, strict=True)):
        return False
    if piece.leaf_range is not None:
        seen[piece.axis] = piece.leaf_range[1] - piece.leaf_range[0]
    cut_tensor = list(tensor)
    if piece.torch_range is not None:
        start, end = piece.torch_range
        if end > cut_tensor[piece.axis]:
            return False
        cut_tensor[piece.axis] = end - start
    return seen == cut_tensor


def _misfit(match: Match, torch_params: Mapping[str, TorchParam], why: str) -> str:
    seen = {part[0]: list(torch_params[part[0]].shape) for part in match.parts}
    of_torch = ", ".join(f"{name!r} {shape}" for name, shape in seen.items())
    each = " (and so on)" if match.is_stacked else ""
    return f"{match.leaf!r} {list(match.shape)} for torch's {of_torch}{each}: {why}"
