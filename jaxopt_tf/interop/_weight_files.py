"""Weight files of a folder, safetensors or torch's, read tensor by tensor."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from .._io import whole_file
from ._arrays import as_numpy, check_tensor
from ._torch_files import load_torch
from ._trainer_folder import MODEL_FILES, check_folder_has_weights

_ALIGNED = 64  # bytes; JAX uses memory with this alignment without a copy

# Names in safetensors of the dtypes of NumPy and ml_dtypes.
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


class WeightFiles:
    """Tensors of a folder's weight files, by name.

    Attributes:
        path: the file, or the index of its shards.
    """

    def __init__(self, folder: Path):
        """Opens the files of `folder`; no tensor is read.

        Raises:
            ValueError: if there are none, or if one is damaged, missing or of another
                kind.

        Source: transformers 5.23 `modeling_utils.py`, `_get_resolved_checkpoint_files`.
        """
        check_folder_has_weights(folder)
        # In the order in which Transformers looks for them.
        self.path = next(folder / n for n in MODEL_FILES if (folder / n).is_file())
        self._tensors: dict[str, Any] = {}  # a `_Place`, or a mapped tensor of torch
        self._files: dict[str, Path] = {}
        is_index = self.path.suffix == ".json"
        shards = _shards(self.path) if is_index else {self.path.name: None}
        open_file = _places if "safetensors" in self.path.name else _torch_tensors
        for file, wanted in shards.items():
            found = _selected(open_file(folder / file), wanted, folder / file)
            self._tensors |= found
            self._files |= dict.fromkeys(found, folder / file)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor."""
        return {name: tuple(value.shape) for name, value in self._tensors.items()}

    def file_of(self, name: str) -> Path:
        """Returns the file that contains a tensor."""
        return self._files[name]

    def read(self, name: str) -> np.ndarray:
        """Reads a tensor; from a file of torch it is a view of the mapped file."""
        value = self._tensors[name]
        return value.read() if isinstance(value, _Place) else as_numpy(value)

    def are_equal(self, name: str, other: str) -> bool:
        """Returns whether two tensors have equal shapes and values.

        NaN equals NaN: tensors that are not finite are refused when they are read.
        """
        return np.array_equal(self.read(name), self.read(other), equal_nan=True)


def write_safetensors(
    path: Path,
    specs: Mapping[str, tuple[tuple[int, ...], Any]],
    tensor: Callable[[str], np.ndarray],
) -> None:
    """Writes one tensor after the other, as Transformers' `save_pretrained` does.

    Args:
        path: the file, which is written atomically.
        specs: shape and dtype of each tensor.
        tensor: returns the tensor of a name.

    Source: safetensors 0.8, "Format": eight bytes of length, JSON, the numbers.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    # The widest first and each by name, which keeps all of them aligned.
    names = sorted(specs, key=lambda name: (-np.dtype(specs[name][1]).itemsize, name))
    end = 0
    for name in names:
        shape, dtype = specs[name]
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
            array = np.ascontiguousarray(tensor(name))
            file.write(array.reshape(-1).view(np.uint8).data)


class _Place(NamedTuple):
    """Place of a tensor in a safetensors file."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int  # bytes from the beginning of the file
    num_bytes: int

    def read(self) -> np.ndarray:
        """Reads the tensor into memory that JAX can use without a copy."""
        # JAX copies memory of another alignment, which NumPy's own may have.
        room = np.empty(self.num_bytes + _ALIGNED, np.uint8)
        first = -room.ctypes.data % _ALIGNED
        content = room[first : first + self.num_bytes]
        with self.path.open("rb") as file:
            file.seek(self.start)
            num_read = file.readinto(content.data)
        if num_read != self.num_bytes:
            raise ValueError(
                f"`path` must be a whole safetensors file, got {str(self.path)!r}, "
                "which ends before its last tensor. Copy it again."
            )
        return content.view(self.dtype).reshape(self.shape)


def _places(path: Path) -> dict[str, _Place]:
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
    # Offsets are relative to the end of the header.
    for name, entry in header.items():
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
        places[name] = _Place(path, dtype, shape, start, end - start)
    return places


def _torch_tensors(path: Path) -> Mapping[str, Any]:
    found = load_torch(path)
    where = f"in {str(path)!r}"
    if not isinstance(found, Mapping):
        raise _not_tensors(path, f"{type(found).__name__} {where}.")
    for name, tensor in found.items():
        if not isinstance(name, str):
            raise _not_tensors(path, f"the key {name!r} {where}.")
        # A checkpoint of a script, with the weights in it.
        if isinstance(tensor, Mapping) and name in ("state_dict", "model", "module"):
            cure = "Write that dict alone with `torch.save`."
            raise _not_tensors(path, f"a dict under {name!r} {where}. {cure}")
        check_tensor(tensor, f"{name!r} of {str(path)!r}")
    return found


def _not_tensors(path: Path, what: str) -> ValueError:
    return ValueError(f"`folder` must hold tensors by name in {path.name}, got {what}")


def _shards(index: Path) -> Mapping[str, set[str] | None]:
    """Returns the names of tensors in each file that an index lists."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards: dict[str, set[str]] = {}
        for name, file in weight_map.items():
            shards.setdefault(file, set()).add(name)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"`folder` must hold a readable {index.name}, got {str(index)!r}: "
            f"{error!r}. Copy it again."
        ) from error
    # An index must not make the reader open files of other folders.
    outside = sorted(str(file) for file in shards if Path(str(file)).name != file)
    if outside:
        raise ValueError(
            f"`folder` must hold what {index.name} names, got {outside[0]!r} outside "
            "it. Copy it again."
        )
    return {file: shards[file] for file in sorted(shards)}


def _selected(
    found: Mapping[str, Any], names: set[str] | None, path: Path
) -> Mapping[str, Any]:
    """Returns the tensors of a shard that the index names; all without an index."""
    if names is None:
        return found
    missing = sorted(names - set(found))
    if missing:
        raise ValueError(
            f"`folder` must hold the tensors that its index names, got {str(path)!r} "
            f"without {missing[0]!r} and {len(missing) - 1} more. Copy it again."
        )
    return {name: found[name] for name in names}
