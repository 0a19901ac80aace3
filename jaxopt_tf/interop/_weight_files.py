"""Reading of weight files, safetensors or torch's, one tensor at a time."""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from ._arrays import as_numpy, check_tensor
from ._torch_files import load_torch
from ._trainer_folder import MODEL_FILES, check_folder_has_weights

# Keys that scripts use for the weights in a dict with further contents.
_NESTED = ("state_dict", "model", "module")
# Names in safetensors of the dtypes that NumPy and ml_dtypes have.
_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")


class _Tensor(NamedTuple):
    """Tensor of a weight file."""

    file: Path
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]  # copies or memory-maps the data


class WeightFiles:
    """Tensors of a folder's weight files, by name.

    Attributes:
        path: the weight file, or the index of its shards.
    """

    def __init__(self, folder: Path):
        """Opens the files of `folder` without reading tensors.

        Raises:
            ValueError: if there are no weight files, or if one is damaged, missing or
                of another format.

        Source: transformers 5.23 `modeling_utils.py`, `_get_resolved_checkpoint_files`.
        """
        check_folder_has_weights(folder)
        # Transformers uses the first of these that exists.
        self.path = next(folder / n for n in MODEL_FILES if (folder / n).is_file())
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

    def file_of(self, name: str) -> Path:
        """Returns the file that contains a tensor."""
        return self._tensors[name].file

    def read(self, name: str) -> np.ndarray:
        """Reads a tensor; of a torch file the result is a view of the mapped file."""
        return self._tensors[name].read()

    def are_equal(self, name: str, other: str) -> bool:
        """Returns True if two tensors have equal shapes and values.

        NaN counts as equal to NaN. Tensors that are not finite are refused later, with
        another message.
        """
        return np.array_equal(self.read(name), self.read(other), equal_nan=True)


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
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {n: (s.get_dtype(), tuple(s.get_shape())) for n, s in slices.items()}

    found = with_file(specs)
    unknown = [(n, dtype) for n, (dtype, _) in found.items() if dtype not in _DTYPES]
    if unknown:
        name, dtype = unknown[0]
        raise ValueError(
            f"`path` must have tensors of {sorted(_DTYPES)}, got {dtype} for {name!r} "
            f"and {len(unknown) - 1} more in {str(path)!r}. If the model is quantized, "
            "save `model.dequantize()`."
        )
    for name, (_, shape) in found.items():
        read = partial(with_file, methodcaller("get_tensor", name))
        yield name, _Tensor(path, shape, read)


def _torch_tensors(path: Path) -> Iterator[tuple[str, _Tensor]]:
    """Yields the tensors of a torch file by name.

    Raises:
        ValueError: if the file does not contain a dict of tensors by name.
    """
    found, what = load_torch(path), ""
    if not isinstance(found, Mapping):
        what = type(found).__name__
    elif unexpected := [name for name in found if not isinstance(name, str)]:
        what = f"the key {unexpected[0]!r}"
    elif nested := [n for n in _NESTED if isinstance(found.get(n), Mapping)]:
        what = f"a dict under {nested[0]!r}: save only that dict with `torch.save`"
    if what:
        raise ValueError(
            f"`folder` must contain tensors by name in {path.name}, got {what} in "
            f"{str(path)!r}."
        )
    for name, tensor in found.items():
        check_tensor(tensor, f"{name!r} in {str(path)!r}")
        yield name, _Tensor(path, tuple(tensor.shape), partial(as_numpy, tensor))


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
    outside = sorted(str(file) for file in shards if Path(str(file)).name != file)
    if outside:
        raise ValueError(
            f"`folder` must contain all files of {index.name}, got {outside[0]!r} "
            "outside it. Copy it again."
        )
    return shards
