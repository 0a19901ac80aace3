"""Parameters in safetensors files, one tensor in memory at a time."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from .._whole_file import whole_file

_INDEX = "model.safetensors.index.json"
_ALIGNED = 64

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


class Place(NamedTuple):
    """Where a tensor lies."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int  # bytes from the beginning of the file
    num_bytes: int


def model_tensors(folder: Path) -> dict[str, Place] | None:
    """Where each tensor of the folder's model lies; None without a safetensors file.

    Raises:
        ValueError: if a file is no safetensors file, is cut short, or is missing.
    """
    index, whole = folder / _INDEX, folder / "model.safetensors"
    if whole.is_file():
        return _places(whole)
    if not index.is_file():
        return None
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {str(file) for file in weight_map.values()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"`folder` must hold a readable {_INDEX}, got {str(index)!r}: {error!r}."
        ) from error
    outside = sorted(file for file in files if Path(file).name != file)
    if outside:
        raise ValueError(
            f"`folder` must hold what {_INDEX} names, got {outside[0]!r} outside it."
        )
    places: dict[str, Place] = {}
    for file in sorted(files):
        places |= _places(folder / file)
    return places


def read_tensor(place: Place) -> np.ndarray:
    """One tensor, read into memory that JAX can take as it is."""
    room = np.empty(place.num_bytes + _ALIGNED, np.uint8)
    first = -room.ctypes.data % _ALIGNED
    own = room[first : first + place.num_bytes]
    with place.path.open("rb") as file:
        file.seek(place.start)
        file.readinto(own.data)
    return own.view(place.dtype).reshape(place.shape)


def _places(path: Path) -> dict[str, Place]:
    try:
        # It checks that all lies within the file, and nothing twice.
        with safe_open(str(path), framework="numpy"):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"`path` must be a whole safetensors file, got {str(path)!r}: {error}."
        ) from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    unknown = {entry["dtype"] for entry in header.values()} - set(_TYPES.values())
    if unknown:
        raise ValueError(
            f"`path` must hold numbers of {sorted(_TYPES)}, got {sorted(unknown)} in "
            f"{str(path)!r}."
        )
    types = {short: jnp.dtype(name) for name, short in _TYPES.items()}
    places = {}
    for name, entry in header.items():
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        shape = tuple(entry["shape"])
        places[name] = Place(path, types[entry["dtype"]], shape, start, end - start)
    return places


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
