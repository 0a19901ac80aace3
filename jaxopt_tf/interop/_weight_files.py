"""Reading of weight files, safetensors or torch's, one tensor at a time."""

import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from ._arrays import as_numpy, check_tensor
from ._torch_files import load_torch, map_torch
from ._trainer_folder import ADAPTER_FILES, MODEL_FILES, check_has_weights

# Keys that scripts use for the weights in a dict with further contents.
_NESTED = ("state_dict", "model", "module")
# Dtypes that NumPy and ml_dtypes have, by their names in safetensors.
SAFETENSORS_DTYPES: Mapping[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
# Bytes of a tensor that are read at a time. While they are read, the pages of the
# file and two copies of its bytes are in memory.
_BLOCK = 2**23

Index = tuple[slice, ...]
WHOLE: Index = ()  # index of a whole tensor


class _Tensor(NamedTuple):
    """Tensor of a weight file."""

    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Index], np.ndarray]  # copies or memory-maps the data

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class WeightFiles:
    """Tensors of a folder's weight files, by name.

    Attributes:
        path: the weight file, or the index of its shards.
    """

    def __init__(self, folder: Path, *, is_adapter: bool = False):
        """Opens the files of `folder` without reading tensors.

        Args:
            folder: the folder.
            is_adapter: whether the file is that of an adapter of PEFT.

        Raises:
            ValueError: if there are no weight files, or if one is damaged, missing or
                of another format.

        Source: transformers 5.23 `modeling_utils.py`, `_get_resolved_checkpoint_files`.
        """
        check_has_weights(folder, is_adapter=is_adapter)
        file_names: tuple[str, ...] = ADAPTER_FILES if is_adapter else MODEL_FILES
        # Transformers uses the first of these that exists.
        self.path = next(folder / n for n in file_names if (folder / n).is_file())
        open_file = _safetensors if "safetensors" in self.path.name else _torch_tensors
        if self.path.suffix != ".json":
            self._tensors = dict(open_file(self.path))
            return
        self._tensors = {}
        for file, names in _shards(self.path).items():
            found = dict(open_file(folder / file))
            missing = sorted(names - set(found))
            if missing:
                raise ValueError(
                    "`folder` must contain the tensors that its index lists, got "
                    f"{str(folder / file)!r} without {missing[0]!r} and "
                    f"{len(missing) - 1} more. Copy it again."
                )
            self._tensors |= {name: found[name] for name in names}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor."""
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    @property
    def largest(self) -> int:
        """Number of bytes of the largest tensor; 0 if there are none."""
        return max((tensor.nbytes for tensor in self._tensors.values()), default=0)

    def file_of(self, name: str) -> Path:
        """Returns the file that contains a tensor."""
        return self._tensors[name].file

    def dtype_of(self, name: str) -> np.dtype:
        """Returns the dtype of a tensor."""
        return self._tensors[name].dtype

    def read(self, name: str, index: Index = WHOLE) -> np.ndarray:
        """Reads a tensor, or only a part of it.

        Args:
            name: name of the tensor.
            index: slices with a start and a stop for each axis; `WHOLE` for all of it.

        Returns:
            The numbers; from a torch file as a view of the mapped file.
        """
        return self._tensors[name].read(index)

    def are_equal(self, name: str, other: str) -> bool:
        """Returns True if two tensors have equal shapes and values.

        NaN counts as equal to NaN. Tensors that are not finite are refused later, with
        another message.
        """
        first, second = self._tensors[name], self._tensors[other]
        itemsize = max(first.dtype.itemsize, second.dtype.itemsize)
        return first.shape == second.shape and all(
            np.array_equal(first.read(index), second.read(index), equal_nan=True)
            for index in blocks([(0, size) for size in first.shape], itemsize)
        )


def blocks(ranges: Sequence[tuple[int, int]], itemsize: int) -> Iterator[Index]:
    """Yields the indices of blocks of rows that a tensor is read in.

    Args:
        ranges: start and stop of the range of each axis that is read.
        itemsize: number of bytes of an element.
    """
    if not ranges:
        yield WHOLE
        return
    (first, stop), *rest = ranges
    columns = tuple(slice(*part) for part in rest)
    num_bytes = itemsize * math.prod(part.stop - part.start for part in columns)
    step = max(1, _BLOCK // max(1, num_bytes))
    for start in range(first, stop, step):
        yield (slice(start, min(start + step, stop)), *columns)


def _safetensors(path: Path) -> Iterator[tuple[str, _Tensor]]:
    """Yields the tensors of a safetensors file by name.

    Raises:
        ValueError: if the file is missing, truncated, damaged or of another format, or
            if it has a dtype that NumPy and ml_dtypes do not have.
    """

    def with_file(use: Callable[[Any], Any]) -> Any:
        # The file is opened again for each tensor, because the pages of an open memory
        # map remain in memory. `safe_open` checks the header: the tensors must cover
        # the file exactly.
        try:
            with safe_open(path, framework="numpy") as file:
                return use(file)
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"`path` must be a complete safetensors file, got {str(path)!r}: "
                f"{error}. Copy it again."
            ) from error

    def specs(file: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
        # A `safe_open` file is no mapping and cannot be iterated over.
        names = file.keys()
        slices = {name: file.get_slice(name) for name in names}
        return {n: (s.get_dtype(), tuple(s.get_shape())) for n, s in slices.items()}

    found = with_file(specs)
    known = SAFETENSORS_DTYPES
    unknown = [(n, dtype) for n, (dtype, _) in found.items() if dtype not in known]
    if unknown:
        name, dtype = unknown[0]
        raise ValueError(
            f"`path` must have tensors of {sorted(known)}, got {dtype} for {name!r} "
            f"and {len(unknown) - 1} more in {str(path)!r}. If the model is quantized, "
            "save `model.dequantize()`."
        )

    def read(name: str, index: Index) -> np.ndarray:
        def slices(file: Any) -> np.ndarray:
            return file.get_slice(name)[index] if index else file.get_tensor(name)

        return with_file(slices)

    for name, (dtype, shape) in found.items():
        tensor_dtype = np.dtype(known[dtype])
        yield name, _Tensor(path, shape, tensor_dtype, partial(read, name))


def _torch_tensors(path: Path) -> Iterator[tuple[str, _Tensor]]:
    """Yields the tensors of a torch file by name.

    Raises:
        ValueError: if the file does not contain a dict of tensors by name.
    """
    found, problem = load_torch(path), ""
    if not isinstance(found, Mapping):
        problem = type(found).__name__
    elif unexpected := [name for name in found if not isinstance(name, str)]:
        problem = f"the key {unexpected[0]!r}"
    elif nested := [n for n in _NESTED if isinstance(found.get(n), Mapping)]:
        problem = f"a dict under {nested[0]!r}: save only that dict with `torch.save`"
    if problem:
        raise ValueError(
            f"`folder` must contain tensors by name in {path.name}, got {problem} in "
            f"{str(path)!r}."
        )
    # The file is mapped again for each tensor, so that its pages do not remain in
    # memory. A file of the format before torch 1.6 cannot be mapped, and stays in
    # memory.
    loaded = None if zipfile.is_zipfile(path) else found

    def read(name: str, index: Index) -> np.ndarray:
        array = as_numpy((map_torch(path) if loaded is None else loaded)[name])
        return array[index] if index else array

    described = {}
    for name, tensor in found.items():
        check_tensor(tensor, f"{name!r} in {str(path)!r}")
        dtype = jnp.dtype(str(tensor.dtype).removeprefix("torch."))
        described[name] = (tuple(tensor.shape), dtype)
    del found, tensor
    for name, (shape, dtype) in described.items():
        yield name, _Tensor(path, shape, dtype, partial(read, name))


def _shards(index: Path) -> dict[str, set[str]]:
    """Returns the names of the tensors in each file that an index lists."""
    shards: dict[str, set[str]] = {}
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        for name, file in sorted(weight_map.items(), key=lambda item: item[1]):
            shards.setdefault(file, set()).add(name)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"`folder` must contain a readable {index.name}, got {str(index)!r}: "
            f"{error!r}. Copy it again."
        ) from error
    # A path in the index, such as "../other.bin", must not lead to another folder.
    outside_folder = sorted(
        str(file) for file in shards if Path(str(file)).name != file
    )
    if outside_folder:
        raise ValueError(
            f"`folder` must contain all files of {index.name}, got "
            f"{outside_folder[0]!r} outside it. Copy it again."
        )
    return shards
