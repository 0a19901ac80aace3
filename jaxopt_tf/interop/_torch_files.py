"""Files of torch, read without running anything in them."""

import contextlib
import os
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._io import whole_file
from ._extras import import_extra
from ._torch_archive import check_archive

# Bytes that are read through a map before its pages are released.
_WINDOW = 64 * 2**20

# Beginnings of names in pickles, and the formats that they belong to.
_OTHERS = {
    "torchao": "a low-bit state of torchao (adamw_torch_8bit or adamw_torch_4bit)",
    "bitsandbytes": "a low-bit state of bitsandbytes",
    "galore_torch": "a state of GaLore",
    "apollo_torch": "a state of APOLLO",
    "deepspeed": "a checkpoint of DeepSpeed",
    "torch.distributed": "a shard of FSDP",
}


def load_torch(path: str | os.PathLike[str]) -> Any:
    """Reads a file that `torch.save` wrote; tensors are mapped where it allows that.

    Only tensors, numbers, strings and containers of them are loaded: a pickle that
    names a function or a class is refused before anything of it runs. Every record of
    the file is compared with its CRC first, which torch does not do. Files have none if
    they were written before torch 1.6 or under `set_crc32_options(False)`.

    Raises:
        ValueError: if there is no such file, or if it is empty, cut short, damaged, not
            written by torch, or holds anything else; with the file's name, the reason
            and, for a damaged record, the tensor.
        TypeError: if `path` is no path.

    Source: torch 2.13 `serialization.py`, `load` with `weights_only=True`.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"`path` must be a path, got {type(path).__name__}.")
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"`path` must be a file of torch, got {str(path)!r}: no file.")
    if path.stat().st_size == 0:
        raise ValueError(_unreadable(path, "it is empty"))
    damage = check_archive(path)
    if damage:
        raise ValueError(_unreadable(path, damage))
    return map_torch(path)


def map_torch(path: Path) -> Any:
    """Maps a file as `load_torch`, without reading its records for their CRC."""
    torch = import_extra("torch")

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about files that are refused below
            mmap = zipfile.is_zipfile(path)
            return torch.load(path, weights_only=True, map_location="cpu", mmap=mmap)
    except pickle.UnpicklingError as error:
        name = _global_in_message(str(error)) or _global_in_pickle(path)
        raise ValueError(_unreadable(path, _reason(name))) from None
    # torch's unpickler ends in as many ways as there are opcodes, RecursionError and
    # MemoryError among them.
    except Exception as error:
        first = (str(error).splitlines() or [""])[0] or type(error).__name__
        reason = f"it is cut short or not torch's: {first}"
        raise ValueError(_unreadable(path, reason)) from None


def save_torch(value: Any, path: Path) -> None:
    """Writes `value` atomically, for `torch.load(weights_only=True)`."""
    torch = import_extra("torch")

    with whole_file(path) as new_path:
        torch.save(value, new_path)


@contextlib.contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """Adds `path` to errors about the content of a file.

    Used as a decorator as well. An exception that is no `ValueError` or `TypeError`
    means that the file holds something else than was expected.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        if str(path) in str(error):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{path}: {error}") from error
    except (LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(
            f"{path} must hold what Transformers writes there, but reading it ended in "
            f"{error!r}. Copy the file again, or take an earlier checkpoint."
        ) from error


class MappedState:
    """Entries of a large state, with few pages of its file in memory at a time.

    A mapped page stays in memory once it was read. So the file is mapped again after
    every `_WINDOW` bytes.
    """

    def __init__(self, path: Path, state: Mapping[Any, Any]):
        """Takes `state`, the value of "state" in `path`."""
        self._path, self._state, self._num_bytes = path, state, 0

    def __contains__(self, index: Any) -> bool:
        return index in self._state

    def __iter__(self) -> Iterator[Any]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)

    def get(self, index: Any, default: Any = None) -> Any:
        """Returns the entry of a parameter, else `default`."""
        if index not in self._state:
            return default
        return self[index]

    def __getitem__(self, index: Any) -> Any:
        """Returns the entry of a parameter."""
        if self._num_bytes > _WINDOW:
            self._state, self._num_bytes = map_torch(self._path)["state"], 0
        entry = self._state[index]
        if isinstance(entry, Mapping):
            sizes = [getattr(value, "nbytes", 0) for value in entry.values()]
            self._num_bytes += sum(sizes)
        return entry


def check_tensor(value: Any, what: str) -> None:
    """Raises unless `value` is a plain, dense tensor of numbers that NumPy has."""
    torch = import_extra("torch")

    dtypes = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool}
    dtypes |= {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}
    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        raise ValueError(
            f"{what} must be a tensor, got {type(value).__name__}. Write it with plain "
            "torch."
        )
    if value.layout != torch.strided or value.dtype not in dtypes or value.is_meta:
        raise ValueError(
            f"{what} must be a dense tensor of integers or floats, got "
            f"{value.dtype} in {value.layout} on {value.device}. Convert it with torch."
        )


def as_numpy(tensor: Any) -> np.ndarray:
    """Returns a torch tensor's data, without a copy where that is possible."""
    torch = import_extra("torch")

    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(jnp.bfloat16)
    return tensor.numpy()


def as_tensor(array: np.ndarray) -> Any:
    """Returns a torch tensor with a copy of the array's data."""
    torch = import_extra("torch")

    own = np.array(array, order="C", copy=True)
    if own.dtype == jnp.bfloat16:
        return torch.from_numpy(own.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(own)


def _unreadable(path: Path, reason: str) -> str:
    return (
        f"`path` must be a file of tensors that `torch.save` wrote, got {str(path)!r}: "
        f"{reason}. Nothing of it was run."
    )


def _global_in_message(message: str) -> str:
    found = re.search(r"GLOBAL ([\w.]+)", message)
    return found.group(1) if found else ""


def _global_in_pickle(path: Path) -> str:
    """Returns the first name that a bare pickle asks for; it is read, not run."""
    strings: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(path.read_bytes()):
            if opcode.name == "GLOBAL":
                return str(argument).replace(" ", ".")
            if opcode.name == "STACK_GLOBAL":
                return ".".join(strings[-2:])
            if isinstance(argument, str):
                strings.append(argument)
    except Exception:  # a damaged pickle, or none
        pass
    return ""


def _reason(name: str) -> str:
    for start, whose in _OTHERS.items():
        if name.startswith(start):
            return f"it is {whose} (it asks for {name}), which is another format"
    if name:
        return f"it asks to run {name}, which a file of tensors does not need"
    return "its pickle is damaged or not torch's"
