"""Conversion of moments of 8 bits between bitsandbytes and an optimizer state.

bitsandbytes stores codes in the shape of the torch parameter, the largest magnitude of
each block of 256 elements in the flattened order, and a table of the 256 levels that
codes denote. Like float32 moments, codes are transposed, reshaped and stacked to those
of a `QuantizedMoment`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import _checks
from ..optimizers import QuantizedMoment, TorchaoMoment, TorchLayout, dynamic_map
from ._arrays import as_numpy, as_tensor, check_finite, device_put_like
from ._extras import import_extra
from ._state_dict import FlatEntries, TorchState
from ._state_keys import BITSANDBYTES_KEYS, BITSANDBYTES_NESTED
from ._tensor_slices import TensorSlice, leaf_from_tensors

_BLOCK_SIZE = 256


def check_quantized(
    leaf: str,
    shape: Sequence[int],
    moment: QuantizedMoment,
    layout: TorchLayout,
    slices: Sequence[TensorSlice],
) -> None:
    """Raises unless the blocks of a leaf are those of its torch tensors.

    Args:
        leaf: name of the leaf.
        shape: shape of the leaf.
        moment: a moment of the leaf.
        layout: the layout that the optimizer has for the leaf.
        slices: slices of the leaf.
    """
    if isinstance(moment, TorchaoMoment):
        num_bits = 8 if tuple(moment.codes.shape) == tuple(shape) else 4
        raise ValueError(
            f"`opt_state` must have moments of bitsandbytes, or float32, but those of "
            f"{leaf!r} have {num_bits} bits of torchao: states of torchao are not "
            "converted. Convert the parameters only, and start with new moments."
        )
    for found in slices:
        if not found.is_whole:
            raise ValueError(
                f"`opt_state` must have float32 moments for {leaf!r}, which is not the "
                f"whole of torch's {found.torch_name!r} or contains other tensors too, "
                "got moments of 8 bits, whose blocks cannot be split or concatenated. "
                "Convert the parameters only, and start with new moments. Moments of "
                "an optimizer with a `keep_float32` that is True for this leaf can be "
                "converted."
            )
        if layout.stacked_axes != found.layout.stacked_axes:
            reason = "the stacked axes differ"
        elif _flat_axes(layout, shape) != _flat_axes(found.layout, shape):
            reason = "the blocks would contain other elements than torch's"
        else:
            continue
        raise ValueError(
            f"`layouts` must give {leaf!r}, whose moments have 8 bits, the layout that "
            f"it has in torch, {found.layout!r} for {found.torch_name!r}, got "
            f"{layout!r}: {reason}. Pass torch's layout to the optimizer and to this "
            "function."
        )


def check_same_bits(
    leaf: str, is_quantized: bool, tensors: Sequence[str], state: TorchState
) -> None:
    """Raises if a leaf is quantized here and float32 in the file, or in reverse.

    Args:
        leaf: name of the leaf.
        is_quantized: whether the moments of the leaf are quantized here.
        tensors: names of the torch tensors of the leaf.
        state: torch's state dict.
    """
    for name in tensors:
        entry = state.entry(name)
        if not entry or ("qmap1" in entry) == is_quantized:
            continue
        theirs, ours = ("float32", "8-bit") if is_quantized else ("8-bit", "float32")
        raise _checks.ArgumentError(
            "keep_float32",
            f"`opt_state` must have {theirs} moments for {leaf!r}, because the file "
            f"has {theirs} moments for {name!r}, got {ours} moments.",
            f"Build the optimizer with a `keep_float32` that is {is_quantized} for "
            "this leaf, as for the file.",
        )


def quantized_from_torch(
    key: str,
    like: QuantizedMoment,
    layout: TorchLayout,
    slices: Sequence[TensorSlice],
    state: TorchState,
) -> QuantizedMoment:
    """Returns a moment of a leaf, on the devices of `like`.

    Args:
        key: name of the moment, a key of `BITSANDBYTES_KEYS`.
        like: the moment in the state, for its shapes and devices.
        layout: the layout that the optimizer has for the leaf.
        slices: slices of the leaf, as `check_quantized` requires them.
        state: torch's state dict.

    Raises:
        ValueError: if the file has another map, another block size, or a scale that is
            not finite and at least 0.
    """
    shape = like.codes.shape
    flat = np.zeros(_torch_scales_shape(shape, layout), np.float32)
    for found in slices:
        scales = _checked_scales(found.torch_name, key, state)
        if scales is not None:
            flat[found.stack_index] = scales
    codes = leaf_from_tensors(
        slices, lambda name: state.moment(name, key, np.uint8), shape, np.uint8
    )
    scales = flat
    if _block_axis(shape, layout) is not None:
        torch_scales = flat.reshape(layout.torch_shape(like.scales.shape))
        scales = layout.from_torch(torch_scales, like.scales.shape)
    return QuantizedMoment(
        device_put_like(codes, like.codes), device_put_like(scales, like.scales)
    )


def quantized_to_torch(
    key: str, moment: QuantizedMoment, layout: TorchLayout, found: TensorSlice
) -> dict[str, Any]:
    """Returns bitsandbytes' arrays for a moment of one torch tensor, by their names."""
    codes, scales = (np.asarray(array) for array in moment)
    if _block_axis(codes.shape, layout) is not None:
        scales = layout.to_torch(scales)
    return {
        "state": as_tensor(found.layout.to_torch(codes)[found.stack_index]),
        "absmax": as_tensor(scales[found.stack_index].reshape(-1)),
        "qmap": as_tensor(dynamic_map(signed=key != "exp_avg_sq")),
    }


def bitsandbytes_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an entry of bitsandbytes, whose arrays are nested in a dict.

    Args:
        entry: `step`, and for each moment its array, or the result of
            `quantized_to_torch`.
    """
    torch = import_extra("torch")

    arrays: dict[str, Any] = {}
    for key, value in entry.items():
        if key == "step":
            continue
        number, index = BITSANDBYTES_KEYS[key]
        named = value if isinstance(value, dict) else {"state": value}
        for name, array in named.items():
            array_key = f"{name}{number}"
            # The slow mean of AdEMAMix follows the fast one.
            if index == 1 and name != "qmap":
                array = torch.stack([arrays[array_key], array])
            arrays[array_key] = array
    return {"step": int(entry["step"]), BITSANDBYTES_NESTED: arrays}


def like_bitsandbytes(state_dict: dict[str, Any], like: Any) -> dict[str, Any]:
    """Returns a state dict of bitsandbytes whose entries are nested as those of `like`.

    Args:
        state_dict: a state dict. Only entries of `bitsandbytes_entry` are changed.
        like: state dict of a file. bitsandbytes nests arrays from version 0.49.2 on.
    """
    if not any("state1" in entry for entry in like["state"].values()):
        return state_dict
    return {**state_dict, "state": dict(FlatEntries(state_dict["state"]))}


def _checked_scales(name: str, key: str, state: TorchState) -> np.ndarray | None:
    """Returns the scales of a tensor's blocks in order; None without an entry."""
    entry, (number, index) = state.entry(name), BITSANDBYTES_KEYS[key]
    if not entry:
        return None
    map_key, scales_key = f"qmap{number}", f"absmax{number}"
    levels = as_numpy(entry[map_key])
    expected = dynamic_map(signed=key != "exp_avg_sq")
    # The levels span seven decades, so that only a relative limit tests small ones.
    if levels.shape != expected.shape or not np.allclose(levels, expected, 1e-6, 0.0):
        raise ValueError(
            f"`{map_key}` of {name!r} must be the dynamic map of bitsandbytes, got "
            f"{levels.size} other levels, the first {levels.flat[0]:.6g}. Only "
            "states with the default map are converted: start with new moments."
        )
    scales, size = as_numpy(entry[scales_key]), entry[f"state{number}"].numel()
    if index is not None:
        scales, size = scales[index], size // 2
    num_blocks = -(-size // _BLOCK_SIZE)
    if scales.shape != (num_blocks,) or scales.dtype != np.float32:
        raise ValueError(
            f"`{scales_key}` of {name!r} must be float32 and have {num_blocks} "
            f"elements, one for each block of {_BLOCK_SIZE} of the {size} codes, got "
            f"{scales.dtype} of shape {list(scales.shape)}. Other block sizes are not "
            "converted: start with new moments."
        )
    check_finite(scales, f"`{scales_key}` of {name!r}", non_negative=True)
    return scales


def _flat_axes(layout: TorchLayout, shape: Sequence[int]) -> list[int]:
    """Returns the axes of a leaf in torch's flattened order."""
    return [axis for group in layout.groups(len(shape)) for axis in group]


def _block_axis(shape: Sequence[int], layout: TorchLayout) -> int | None:
    """Returns the axis whose parts have a scale each; see `QuantizedMoment`."""
    groups = layout.groups(len(shape))
    if not groups or len(groups[-1]) != 1:
        return None
    (axis,) = groups[-1]
    return axis if shape[axis] % _BLOCK_SIZE == 0 and shape[axis] else None


def _torch_scales_shape(shape: tuple[int, ...], layout: TorchLayout) -> tuple[int, ...]:
    """Returns the sizes of the stacked axes, and the number of blocks of a tensor."""
    viewed, num_stacked = layout.torch_shape(shape), len(layout.stacked_axes)
    size = int(np.prod(viewed[num_stacked:]))
    return (*viewed[:num_stacked], -(-size // _BLOCK_SIZE))
