"""Parameters in safetensors files, one tensor in memory at a time."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from .._io import whole_file

_ALIGNED = 64
_CHUNK = 2**22

# Of numpy's and ml_dtypes' types.
_TYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
_DTYPES = {short: jnp.dtype(name) for name, short in _TYPES.items()}


class Place(NamedTuple):
    """Place of a tensor in a file."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int  # bytes from the beginning of the file
    num_bytes: int


def tensor_places(path: Path) -> dict[str, Place]:
    """Returns the place of each tensor in a safetensors file.

    Raises:
        ValueError: if it is missing, cut short, damaged, or no safetensors file, or if
            it has a dtype that NumPy and ml_dtypes do not have.
    """
    try:
        # It checks that every tensor is within the file, and that none overlap.
        with safe_open(str(path), framework="numpy"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"`path` must be a whole safetensors file, got {str(path)!r}: {error}. "
            "Copy it again."
        ) from error
    header.pop("__metadata__", None)
    unknown = [(n, e["dtype"]) for n, e in header.items() if e["dtype"] not in _DTYPES]
    if unknown:
        name, dtype = unknown[0]
        raise ValueError(
            f"`path` must hold numbers of {sorted(_TYPES)}, got {dtype} for {name!r} "
            f"and {len(unknown) - 1} more in {str(path)!r}. Is the model quantized? "
            "Save `model.dequantize()`."
        )
    places = {}
    for name, entry in header.items():
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
        places[name] = Place(path, dtype, shape, start, end - start)
    return places


def same_bytes(place: Place, other: Place) -> bool:
    """Returns whether two tensors have equal bytes, read in small parts."""
    if place.num_bytes != other.num_bytes:
        return False
    with place.path.open("rb") as file, other.path.open("rb") as other_file:
        file.seek(place.start)
        other_file.seek(other.start)
        left = place.num_bytes
        while left:
            size = min(left, _CHUNK)
            if file.read(size) != other_file.read(size):
                return False
            left -= size
    return True


def read_tensor(place: Place) -> np.ndarray:
    """Reads a tensor into memory that JAX can use without a copy.

    Raises:
        ValueError: if the file has become shorter since it was opened.
    """
    room = np.empty(place.num_bytes + _ALIGNED, np.uint8)
    first = -room.ctypes.data % _ALIGNED
    own = room[first : first + place.num_bytes]
    with place.path.open("rb") as file:
        file.seek(place.start)
        num_read = file.readinto(own.data)
    if num_read != place.num_bytes:
        raise ValueError(
            f"`path` must be a whole safetensors file, got {str(place.path)!r}, which "
            "ends before its last tensor. Copy it again."
        )
    return own.view(place.dtype).reshape(place.shape)


def write_tensors(
    path: Path,
    shapes: Mapping[str, tuple[tuple[int, ...], Any]],
    tensor: Callable[[str], np.ndarray],
) -> None:
    """Writes one tensor after the other, as Transformers' `save_pretrained` does.

    Args:
        path: the file, which is there whole or not at all.
        shapes: the shape and dtype of each tensor.
        tensor: gives the tensor of a name, contiguous.

    Source: safetensors 0.8, "Format": eight bytes of length, JSON, the numbers.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    # The widest first and each by name, which keeps all of them aligned.
    names = sorted(shapes, key=lambda name: (-np.dtype(shapes[name][1]).itemsize, name))
    end = 0
    for name in names:
        shape, dtype = shapes[name]
        start, end = end, end + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        header[name] = {
            "dtype": _TYPES[np.dtype(dtype).name],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with whole_file(path) as new_path, new_path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in names:
            file.write(_bytes_of(tensor(name)))


def _bytes_of(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
