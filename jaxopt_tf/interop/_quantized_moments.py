"""Conversion of moments of 8 or 4 bits between torch's libraries and optimizer states.

bitsandbytes and torchao store codes in the shape of the torch parameter, the largest
magnitude of each block of 256 elements in the flattened order, and a table of the
levels that codes denote; with 4 bits, pairs of codes in the flattened order. Like
float32 moments, these arrays are transposed, reshaped and stacked to those of a
`QuantizedMoment`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import _checks
from ..optimizers import (
    QuantizedMoment,
    TorchaoMoment,
    TorchLayout,
    dynamic_map,
    four_bit_map,
)
from ._arrays import as_numpy, as_tensor, check_finite, device_put_like
from ._extras import import_extra
from ._state_dict import FlatEntries, TorchState
from ._state_keys import BITSANDBYTES_KEYS, BITSANDBYTES_NESTED
from ._tensor_slices import TensorSlice, leaf_from_tensors
from ._torchao_tensors import (
    BLOCK_SIZE,
    torchao_arrays,
    torchao_bits,
    torchao_tensor,
)

_Arrays = tuple[np.ndarray, np.ndarray]  # codes and scales of a tensor


def check_quantized(
    leaf: str,
    shape: Sequence[int],
    layout: TorchLayout,
    slices: Sequence[TensorSlice],
) -> None:
    """Raises unless the blocks of a leaf are those of its torch tensors.

    Args:
        leaf: name of the leaf.
        shape: shape of the leaf.
        layout: the layout that the optimizer has for the leaf.
        slices: slices of the leaf.
    """
    for found in slices:
        if not found.is_whole:
            raise ValueError(
                f"`opt_state` must have float32 moments for {leaf!r}, which is not the "
                f"whole of torch's {found.torch_name!r} or contains other tensors too, "
                "got quantized moments, whose blocks cannot be split or concatenated. "
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
            f"`layouts` must give {leaf!r}, whose moments are quantized, the layout "
            f"that it has in torch, {found.layout!r} for {found.torch_name!r}, got "
            f"{layout!r}: {reason}. Pass torch's layout to the optimizer and to this "
            "function."
        )


def check_same_bits(
    leaf: str,
    shape: Sequence[int],
    moments: Sequence[Any],
    tensors: Sequence[str],
    state: TorchState,
) -> None:
    """Raises if the moments of a leaf are of another kind here than in the file.

    Kinds are float32, 8 bits of bitsandbytes, and 8 or 4 bits of torchao.

    Args:
        leaf: name of the leaf.
        shape: shape of the leaf.
        moments: moments of the leaf.
        tensors: names of the torch tensors of the leaf.
        state: torch's state dict.
    """
    quantized = [m for m in moments if isinstance(m, QuantizedMoment)]
    ours = _kind(quantized[0], shape) if quantized else "float32 moments"
    for name in tensors:
        entry = state.entry(name)
        theirs = _kind_in_file(entry) if entry else ours
        if theirs == ours:
            continue
        problem = (
            f"`opt_state` must have {theirs} for {leaf!r}, because the file has them "
            f"for {name!r}, got {ours}."
        )
        if "float32 moments" in (theirs, ours):
            raise _checks.ArgumentError(
                "keep_float32",
                problem,
                f"Build the optimizer with a `keep_float32` that is {bool(quantized)} "
                "for this leaf, as for the file.",
            )
        raise ValueError(
            f"{problem} Build the optimizer of the file: `adamw_8bit_tf` with the "
            "`library` of the file, or `adamw_4bit_tf`."
        )


def _kind(moment: QuantizedMoment, shape: Sequence[int]) -> str:
    if not isinstance(moment, TorchaoMoment):
        return "8-bit moments of bitsandbytes"
    num_bits = 8 if tuple(moment.codes.shape) == tuple(shape) else 4
    return f"{num_bits}-bit moments of torchao"


def _kind_in_file(entry: Mapping[str, Any]) -> str:
    if "qmap1" in entry:
        return "8-bit moments of bitsandbytes"
    num_bits = max(map(torchao_bits, entry.values()))
    return f"{num_bits}-bit moments of torchao" if num_bits else "float32 moments"


def quantized_from_torch(
    key: str,
    like: QuantizedMoment,
    shape: tuple[int, ...],
    layout: TorchLayout,
    slices: Sequence[TensorSlice],
    state: TorchState,
) -> QuantizedMoment:
    """Returns a moment of a leaf, on the devices of `like`.

    Args:
        key: name of the moment, a key of `BITSANDBYTES_KEYS`.
        like: the moment in the state, for its shapes and devices.
        shape: shape of the leaf.
        layout: the layout that the optimizer has for the leaf.
        slices: slices of the leaf, as `check_quantized` requires them.
        state: torch's state dict.

    Raises:
        ValueError: if the file has another map, another block size, or a scale that is
            not finite and at least 0.
    """
    read = _bitsandbytes_arrays
    if isinstance(like, TorchaoMoment):
        read = _torchao_arrays
    # Without an entry all codes and scales are 0, as before the first update.
    found = {part.torch_name: read(part.torch_name, key, state) for part in slices}

    def of_blocks(i: int, block_size: int, to: Any) -> np.ndarray:
        """Returns the array of `to`, with one element for each block of a leaf."""
        flat = np.zeros(_torch_blocks_shape(shape, layout, block_size), to.dtype)
        for part in slices:
            arrays = found[part.torch_name]
            if arrays is not None:
                flat[part.stack_index] = arrays[i]
        if _block_axis(shape, layout) is None:
            return flat
        return layout.from_torch(flat.reshape(layout.torch_shape(to.shape)), to.shape)

    def codes_of(name: str) -> np.ndarray | None:
        arrays = found[name]
        return None if arrays is None else arrays[0]

    if tuple(like.codes.shape) == shape:
        codes = leaf_from_tensors(slices, codes_of, shape, np.uint8)
    else:
        codes = of_blocks(0, 2, like.codes)  # pairs of codes of 4 bits
    scales = of_blocks(1, BLOCK_SIZE, like.scales)
    return type(like)(
        device_put_like(codes, like.codes), device_put_like(scales, like.scales)
    )


def quantized_to_torch(
    key: str,
    moment: QuantizedMoment,
    p: Any,
    layout: TorchLayout,
    found: TensorSlice,
) -> Any:
    """Returns a moment of one torch tensor, as its library stores it.

    Args:
        key: name of the moment, a key of `BITSANDBYTES_KEYS`.
        moment: moment of the leaf.
        p: the leaf, for its shape and dtype.
        layout: the layout that the optimizer has for the leaf.
        found: slice of the leaf.

    Returns:
        A tensor of torchao, or bitsandbytes' arrays by their names.
    """
    codes, scales = (np.asarray(array) for array in moment)
    signed, shape = key != "exp_avg_sq", tuple(p.shape)

    def of_blocks(array: np.ndarray) -> np.ndarray:
        if _block_axis(shape, layout) is not None:
            array = layout.to_torch(array)
        return array[found.stack_index].reshape(-1)

    has_8_bits = codes.shape == shape
    if has_8_bits:
        codes = found.layout.to_torch(codes)[found.stack_index]
        qmap = dynamic_map(signed=signed)
    else:
        codes, qmap = of_blocks(codes), four_bit_map(signed=signed)
    if isinstance(moment, TorchaoMoment):
        num_stacked = len(found.layout.stacked_axes)
        torch_shape = found.layout.torch_shape(shape)[num_stacked:]
        return torchao_tensor(
            codes,
            of_blocks(scales),
            qmap,
            signed=signed,
            shape=torch_shape,
            dtype=p.dtype,
        )
    return {
        "state": as_tensor(codes),
        "absmax": as_tensor(of_blocks(scales)),
        "qmap": as_tensor(qmap),
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


def _bitsandbytes_arrays(name: str, key: str, state: TorchState) -> _Arrays | None:
    """Returns the codes and scales of a tensor; None without an entry."""
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
    num_blocks = -(-size // BLOCK_SIZE)
    if scales.shape != (num_blocks,) or scales.dtype != np.float32:
        raise ValueError(
            f"`{scales_key}` of {name!r} must be float32 and have {num_blocks} "
            f"elements, one for each block of {BLOCK_SIZE} of the {size} codes, got "
            f"{scales.dtype} of shape {list(scales.shape)}. Other block sizes are not "
            "converted: start with new moments."
        )
    check_finite(scales, f"`{scales_key}` of {name!r}", non_negative=True)
    codes = state.moment(name, key, np.uint8)
    assert codes is not None  # there is an entry
    return codes, scales


def _torchao_arrays(name: str, key: str, state: TorchState) -> _Arrays | None:
    """Returns the codes, or pairs of them, and scales; None without an entry."""
    entry, location = state.entry(name), f"`{key}` of {name!r}"
    if not entry:
        return None
    num_bits = torchao_bits(entry.get(key))
    if not num_bits:
        raise ValueError(
            f"{location} must be a tensor of torchao as the other moment, got "
            f"{type(entry.get(key)).__name__}. Copy the file again, or use an earlier "
            "checkpoint."
        )
    signed = key != "exp_avg_sq"
    levels = dynamic_map if num_bits == 8 else four_bit_map
    return torchao_arrays(entry[key], location, levels(signed=signed), signed=signed)


def _flat_axes(layout: TorchLayout, shape: Sequence[int]) -> list[int]:
    """Returns the axes of a leaf in torch's flattened order."""
    return [axis for group in layout.groups(len(shape)) for axis in group]


def _block_axis(shape: Sequence[int], layout: TorchLayout) -> int | None:
    """Returns the axis whose parts have a scale each; see `QuantizedMoment`."""
    groups = layout.groups(len(shape))
    if not groups or len(groups[-1]) != 1:
        return None
    (axis,) = groups[-1]
    return axis if shape[axis] % BLOCK_SIZE == 0 and shape[axis] else None


def _torch_blocks_shape(
    shape: tuple[int, ...], layout: TorchLayout, block_size: int
) -> tuple[int, ...]:
    """Returns the sizes of the stacked axes, and the number of blocks of a tensor."""
    viewed, num_stacked = layout.torch_shape(shape), len(layout.stacked_axes)
    size = int(np.prod(viewed[num_stacked:]))
    return (*viewed[:num_stacked], -(-size // block_size))
