"""Files of torch and safetensors, read without running what is in them."""

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

from .._whole_file import whole_file

# How much of a mapped file is looked at before its pages are given back.
_WINDOW = 64 * 2**20

# What a pickle asks for, and whose it then is.
_OTHERS = {
    "torchao": "a low-bit state of torchao",
    "bitsandbytes": "a low-bit state of bitsandbytes",
    "deepspeed": "a checkpoint of DeepSpeed",
    "torch.distributed": "a shard of FSDP",
}


def load_torch(path: Path) -> Any:
    """What `torch.save` wrote, mapped and not read where the file allows it.

    Only tensors, numbers, strings and containers of them are loaded: a pickle that
    names a function or a class is refused before anything of it runs.

    Raises:
        ValueError: if there is no such file, or if it is empty, cut short, not one of
            torch's, or holds anything else; with the file's name and the reason.

    Source: torch 2.13 `serialization.py`, `load` with `weights_only=True`.
    """
    import torch

    if not path.is_file():
        raise ValueError(f"`path` must be a file of torch, got {str(path)!r}: no file.")
    if path.stat().st_size == 0:
        raise ValueError(_unreadable(path, "it is empty"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files that the next line refuses
            mmap = zipfile.is_zipfile(path)
            return torch.load(path, weights_only=True, map_location="cpu", mmap=mmap)
    except pickle.UnpicklingError as error:
        asked = _asked_for(str(error)) or _asked_by_pickle(path)
        raise ValueError(_unreadable(path, _reason(asked))) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        reason = f"it is cut short or not torch's: {first}"
        raise ValueError(_unreadable(path, reason)) from None


def save_torch(value: Any, path: Path) -> None:
    """Writes `value` so that `torch.load(weights_only=True)` takes it; whole or not."""
    import torch

    with whole_file(path) as new_path:
        torch.save(value, new_path)


class MappedState:
    """The entries of a large state, with little of its file in memory at a time.

    A mapped page stays in memory once it was looked at. So the file is mapped anew
    whenever enough of it has been handed out.
    """

    def __init__(self, path: Path, state: Mapping[Any, Any]):
        """Takes `state`, what `path` holds under "state"."""
        self._path, self._state, self._num_bytes = path, state, 0

    def __contains__(self, index: Any) -> bool:
        return index in self._state

    def __iter__(self) -> Iterator[Any]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)

    def get(self, index: Any, default: Any) -> Any:
        """The entry of a parameter, else `default`."""
        if index not in self._state:
            return default
        return self[index]

    def __getitem__(self, index: Any) -> Any:
        """The entry of a parameter."""
        if self._num_bytes > _WINDOW:
            self._state, self._num_bytes = load_torch(self._path)["state"], 0
        entry = self._state[index]
        self._num_bytes += sum(getattr(value, "nbytes", 0) for value in entry.values())
        return entry


def as_numpy(tensor: Any) -> np.ndarray:
    """A torch tensor's data, not copied where it need not be."""
    import torch

    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(jnp.bfloat16)
    return tensor.numpy()


def as_tensor(array: np.ndarray) -> Any:
    """A torch tensor with a copy of the array's data."""
    import torch

    own = np.array(array, order="C", copy=True)
    if own.dtype == jnp.bfloat16:
        return torch.from_numpy(own.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(own)


def _unreadable(path: Path, reason: str) -> str:
    return (
        f"`path` must be a file of tensors that `torch.save` wrote, got {str(path)!r}: "
        f"{reason}. Nothing of it was run."
    )


def _asked_for(message: str) -> str:
    found = re.search(r"GLOBAL ([\w.]+)", message)
    return found.group(1) if found else ""


def _asked_by_pickle(path: Path) -> str:
    """The first name that a bare pickle asks for; it is read, not run."""
    strings: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(path.read_bytes()):
            if opcode.name == "GLOBAL":
                return str(argument).replace(" ", ".")
            if opcode.name == "STACK_GLOBAL":
                return ".".join(strings[-2:])
            if isinstance(argument, str):
                strings.append(argument)
    except ValueError:  # not a pickle at all
        pass
    return ""


def _reason(name: str) -> str:
    for start, whose in _OTHERS.items():
        if name.startswith(start):
            return f"it is {whose} (it asks for {name}), which is another format"
    if name:
        return f"it asks to run {name}, which a file of tensors does not need"
    return "its pickle is damaged or not torch's"
