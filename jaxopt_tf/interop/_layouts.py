"""Which transformation lies between a leaf and its torch tensor.

A square shape does not tell which way round a kernel stands, so shapes only choose
among what the name of the leaf and the type of torch's layer leave open.
"""

from collections.abc import Sequence

from ..optimizers import TorchLayout

# Layers whose weight is [in, out], as Flax's kernels are.
_IN_OUT = frozenset({"Conv1D"})
# For which no transposition alone is right: Flax turns the kernel round in space.
_TURNED = "ConvTranspose"

CONVENTIONS = ("linear", "conv1d", "former_flax_gpt2")

# None: an axis that a split tensor shares out, of any length.
Shape = Sequence[int | None]


def is_in_out(layer: str, convention: str) -> bool:
    """Whether torch's weight of a kernel is [in, out] and not [out, in]."""
    return layer in _IN_OUT or (layer == "" and convention != "linear")


def fused_axis(leaf: str, layer: str, convention: str, num_axes: int) -> int:
    """The axis of outputs, along which torch fuses what is multiplied at once."""
    is_kernel = leaf.rpartition(".")[2] == "kernel"
    in_out = is_kernel and num_axes == 2 and is_in_out(layer, convention)
    return 1 if in_out else 0


def layout_between(
    leaf: str, own: Sequence[int], wanted: Shape, layer: str, convention: str
) -> TorchLayout | str:
    """How torch sees a leaf of the shape `own`; or why that cannot be told."""
    if layer.startswith(_TURNED):
        return f"torch's {layer} is no transposition of a leaf"
    candidates = [
        layout
        for layout in _candidates(leaf, own, wanted, layer, convention)
        if _fits(layout, own, wanted)
    ]
    if not candidates:
        return "the shapes do not fit"
    if len(set(candidates)) > 1:
        return "the shapes fit in more than one way, declare it in `layouts`"
    return candidates[0]


def _candidates(
    leaf: str, own: Sequence[int], wanted: Shape, layer: str, convention: str
) -> list[TorchLayout]:
    num_axes, is_kernel = len(own), leaf.rpartition(".")[2] == "kernel"
    if is_kernel and len(wanted) >= 3 and num_axes == len(wanted):
        return [TorchLayout.conv(num_axes - 2)]
    if is_kernel and len(wanted) == 2 and num_axes >= 2:
        in_out = is_in_out(layer, convention)
        if in_out and convention == "former_flax_gpt2":
            return [TorchLayout.dense()]
        splits = range(1, num_axes)
        return [_dense(in_out, n, num_axes) for n in splits]
    if num_axes == len(wanted):
        return [TorchLayout()]
    if len(wanted) == 1:
        return [TorchLayout.flat(num_axes)]
    return []


def _dense(in_out: bool, num_in: int, num_axes: int) -> TorchLayout:
    if not in_out:
        return TorchLayout.dense_general(num_in, num_axes - num_in)
    if num_axes == 2:
        return TorchLayout()
    ins, outs = tuple(range(num_in)), tuple(range(num_in, num_axes))
    return TorchLayout(axes=(ins, outs))


def _fits(layout: TorchLayout, own: Sequence[int], wanted: Shape) -> bool:
    if not layout.fits(tuple(own)):
        return False
    seen = layout.torch_shape(tuple(own))
    if len(seen) != len(wanted):
        return False
    return all(a == b for a, b in zip(seen, wanted, strict=True) if b is not None)
