"""Files of `torch.save`: compared with their CRC, loaded without running code."""

import contextlib
import io
import os
import pickle
import re
import warnings
import zipfile
from collections import UserDict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .. import _checks
from .._io import atomic_write
from ._extras import import_extra
from ._safe_pickle import Storage, first_global, load_storage_keys

# Bytes that are read through a map before its pages are released.
_WINDOW = 64 * 2**20
# Bytes of a record that are read at a time for its CRC.
_CHUNK = 2**20
_NUM_THREADS = min(8, os.cpu_count() or 1)

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
    """Reads a file that `torch.save` wrote, without running code from it.

    Tensors are mapped into memory if the format of the file allows it. Only tensors,
    numbers, strings and containers of them are loaded: a pickle that names a function
    or a class is refused before any of it runs. Every record of the file is compared
    with its CRC first, which torch does not do. Files written before torch 1.6 or under
    `set_crc32_options(False)` have no CRC.

    Raises:
        ValueError: if the file does not exist, is empty, cut short, damaged, not
            written by torch, or contains anything else; with the file's name, the
            reason and, for a damaged record, the tensor.
        TypeError: if `path` is no path.

    Source: torch 2.13 `serialization.py`, `load` with `weights_only=True`.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"`path` must be a path, got {type(path).__name__}.")
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"`path` must be a file of torch, got {str(path)!r}: no file.")
    damage = "it is empty" if path.stat().st_size == 0 else _damage_of_archive(path)
    if damage:
        raise _unreadable(path, damage)
    return map_torch(path)


def map_torch(path: Path) -> Any:
    """Maps a file as `load_torch`, without comparing its records with their CRC."""
    torch = import_extra("torch")

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about files that are refused below
            mmap = zipfile.is_zipfile(path)
            return torch.load(path, weights_only=True, map_location="cpu", mmap=mmap)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        name = found.group(1) if found else first_global(path)
        raise _unreadable(path, _refusal_of(name)) from None
    # torch's unpickler raises as many kinds of errors as there are opcodes,
    # RecursionError and MemoryError among them.
    except Exception as error:
        first = (str(error).splitlines() or [""])[0] or type(error).__name__
        reason = f"it is cut short or not torch's: {first}"
        raise _unreadable(path, reason) from None


def save_torch(value: Any, path: Path) -> None:
    """Writes `value` atomically, for `torch.load(weights_only=True)`."""
    torch = import_extra("torch")

    with atomic_write(path) as new_path:
        torch.save(value, new_path)


@contextlib.contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """Adds `path` to errors about the content of a file.

    An exception that is no `ValueError` or `TypeError` means that the file contains
    something else than expected.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        if str(path) in str(error):
            raise
        if isinstance(error, _checks.ArgumentError):
            error.problem = f"{path}: {error.problem}"
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{path}: {error}") from error
    except (LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(
            f"{path} must hold what Transformers writes there, but reading it ended in "
            f"{error!r}. Copy the file again, or take an earlier checkpoint."
        ) from error


class MappedState(UserDict[Any, Any]):
    """Entries of a large optimizer state, with few pages of its file in memory.

    A mapped page stays in memory once it was read, so the file is mapped again after
    every `_WINDOW` bytes.
    """

    def __init__(self, path: Path, state: dict[Any, Any]):
        """Takes `state`, the value of "state" in `path`."""
        self.data = state  # not copied, which would read the entries
        self._path, self._num_bytes = path, 0

    def __getitem__(self, index: Any) -> Any:
        """Returns the entry of a parameter."""
        if self._num_bytes > _WINDOW:
            self.data, self._num_bytes = map_torch(self._path)["state"], 0
        entry = self.data[index]
        if isinstance(entry, Mapping):
            self._num_bytes += sum(getattr(v, "nbytes", 0) for v in entry.values())
        return entry


def _unreadable(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"`path` must be a file of tensors that `torch.save` wrote, got {str(path)!r}: "
        f"{reason}. Nothing of it was run."
    )


def _damage_of_archive(path: Path) -> str:
    """Returns what is damaged in an archive; "" if nothing is, or if it is no archive.

    Every record is read through a buffer, so that no page of the file stays mapped, and
    compared with its CRC.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":  # torch's own test for an archive
            return ""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            if not any(record.CRC for record in records):
                return ""  # torch.serialization.set_crc32_options(False)
            records.sort(key=lambda record: -record.file_size)
            # `zlib.crc32` releases the GIL.
            with ThreadPoolExecutor(_NUM_THREADS) as pool:
                found = pool.map(lambda record: _damage(archive, record), records)
                return next((reason for reason in found if reason), "")
    # `zipfile` raises struct.error, OverflowError and others on damaged directories.
    except Exception as error:
        return f"its archive is cut short or damaged: {error}"


def _damage(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> str:
    """Returns what is wrong with a record; "" if nothing is."""
    try:
        if record.compress_type != zipfile.ZIP_STORED:
            raise zipfile.BadZipFile("it is compressed, which torch never does")
        with archive.open(record) as stream:
            while stream.read(_CHUNK):
                pass
    except Exception as error:  # BadZipFile, EOFError, ...
        folder, _, key = record.filename.rpartition("/")
        tensor = ""
        # The pickle, which has the names of the tensors, may be damaged, too.
        with contextlib.suppress(Exception):
            if folder.endswith("/data"):
                pickled = archive.read(folder.removesuffix("data") + "data.pkl")
                saved = load_storage_keys(io.BytesIO(pickled))
                name = next(path for path, found in _leaves(saved, "") if found == key)
                tensor = f", tensor {name!r},"
        return f"its record {record.filename!r}{tensor} is damaged: {error}"
    return ""


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    items: Any = ()
    if isinstance(node, Storage):
        yield path, node.key
    elif isinstance(node, Mapping):
        items = node.items()
    elif isinstance(node, list | tuple):
        items = enumerate(node)
    for name, value in items:
        yield from _leaves(value, f"{path}.{name}" if path else str(name))


def _refusal_of(name: str) -> str:
    """Returns the reason for which a pickle that refers to `name` is refused."""
    for start, whose in _OTHERS.items():
        if name.startswith(start):
            return f"it is {whose} (it asks for {name}), which is another format"
    if name:
        return f"it asks to run {name}, which a file of tensors does not need"
    return "its pickle is damaged or not torch's"
