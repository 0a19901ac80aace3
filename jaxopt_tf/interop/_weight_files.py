"""Weight files in a folder: shapes of their tensors, one tensor read at a time."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ._hf_folder import check_folder_has_weights
from ._safetensors import Place, read_tensor, same_bytes, tensor_places
from ._torch_files import as_numpy, check_tensor, load_torch

# In the order in which Transformers looks for them.
_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_OLD_WHOLE, _OLD_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


class WeightFiles:
    """The tensors of a folder's weight files, by name.

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
        names = (_WHOLE, _INDEX, _OLD_WHOLE, _OLD_INDEX)
        self.path = next(folder / n for n in names if (folder / n).is_file())
        self._places: dict[str, Place] = {}
        self._tensors: dict[str, Any] = {}
        self._files: dict[str, Path] = {}
        is_index = self.path.name in (_INDEX, _OLD_INDEX)
        shards = _shards(self.path) if is_index else {self.path.name: None}
        for file, wanted in shards.items():
            path = folder / file
            found: Mapping[str, Any]
            if self.path.name in (_WHOLE, _INDEX):
                found = _only(tensor_places(path), wanted, path)
                self._places |= found
            else:
                found = _only(_tensors(path), wanted, path)
                self._tensors |= found
            self._files |= dict.fromkeys(found, path)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor."""
        found = {**self._places, **self._tensors}
        return {name: tuple(value.shape) for name, value in found.items()}

    def file_of(self, name: str) -> Path:
        """Returns the file that holds a tensor."""
        return self._files[name]

    def read(self, name: str) -> np.ndarray:
        """Reads a tensor; of a file of torch it is a view of the mapped file."""
        if name in self._places:
            return read_tensor(self._places[name])
        return as_numpy(self._tensors[name])

    def are_equal(self, name: str, other: str) -> bool:
        """Returns whether two tensors have equal shapes and values."""
        if name in self._places:
            first, second = self._places[name], self._places[other]
            if (first.dtype, first.shape) == (second.dtype, second.shape):
                return same_bytes(first, second)
        else:
            tensor, second = self._tensors[name], self._tensors[other]
            # torch.save writes the storage of tied tensors once.
            if tensor.shape == second.shape and tensor.is_set_to(second):
                return True
        return np.array_equal(self.read(name), self.read(other))


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
    outside = sorted(str(file) for file in shards if Path(str(file)).name != file)
    if outside:
        raise ValueError(
            f"`folder` must hold what {index.name} names, got {outside[0]!r} outside "
            "it. Copy it again."
        )
    return {file: shards[file] for file in sorted(shards)}


def _only(
    found: Mapping[str, Any], names: set[str] | None, path: Path
) -> Mapping[str, Any]:
    if names is None:
        return found
    missing = sorted(names - set(found))
    if missing:
        raise ValueError(
            f"`folder` must hold the tensors that its index names, got {str(path)!r} "
            f"without {missing[0]!r} and {len(missing) - 1} more. Copy it again."
        )
    return {name: found[name] for name in names}


def _tensors(path: Path) -> Mapping[str, Any]:
    found = load_torch(path)
    if not isinstance(found, Mapping):
        raise ValueError(
            f"`folder` must hold tensors by name in {path.name}, got "
            f"{type(found).__name__} in {str(path)!r}."
        )
    for name, tensor in found.items():
        if not isinstance(name, str):
            raise ValueError(
                f"`folder` must hold tensors by name in {path.name}, got the key "
                f"{name!r} in {str(path)!r}."
            )
        if isinstance(tensor, Mapping) and name in ("state_dict", "model", "module"):
            raise ValueError(
                f"`folder` must hold tensors by name in {path.name}, got a dict under "
                f"{name!r} in {str(path)!r}. Write that dict alone with `torch.save`."
            )
        check_tensor(tensor, f"{name!r} of {str(path)!r}")
    return found
