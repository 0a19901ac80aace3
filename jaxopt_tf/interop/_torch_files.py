"""Reading of files of `torch.save` with CRC checks and without running code."""

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
from ._torchao_tensors import pickle_module, safe_globals

# Bytes that are read through a memory map before it is replaced, which frees its pages.
_WINDOW = 64 * 2**20
# Bytes of a record that are read at a time to compute its CRC.
_CHUNK = 2**20
_NUM_THREADS = min(8, os.cpu_count() or 1)

# Formats of other libraries, by the prefix of a name in their pickles.
_OTHER_FRAMEWORKS = {
    "torchao": "a state of torchao, but not of 8 or 4 bits as in its version 0.18",
    "bitsandbytes": "a low-bit state of bitsandbytes",
    "galore_torch": "a state of GaLore",
    "apollo_torch": "a state of APOLLO",
    "deepspeed": "a checkpoint of DeepSpeed",
    "torch.distributed": "a shard of FSDP",
}


def load_torch(path: str | os.PathLike[str]) -> Any:
    """Reads a file that `torch.save` wrote, without running code from it.

    Tensors are memory-mapped if the format of the file allows it. The file may contain
    only tensors, numbers, strings and containers of them. Tensors of torchao with 8 or
    4 bits are read without torchao; they are instances of its classes if it is
    imported, else only their arrays can be used. A pickle that refers to
    another function or class is refused before any code runs. Every record is compared
    with its CRC, which torch does not do. Files written before torch 1.6, or with
    `set_crc32_options(False)`, have no CRC.

    Args:
        path: the file.

    Raises:
        ValueError: if the file does not exist, is empty, truncated, damaged, not
            written by torch, or has other content. The message contains the path, the
            reason and, for a damaged record, the tensor.
        TypeError: if `path` is not a path.

    Source: torch 2.13 `serialization.py`, `load` with `weights_only=True`.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"`path` must be a path, got {type(path).__name__}.")
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"`path` must be an existing file, got {str(path)!r}.")
    damage = "it is empty" if path.stat().st_size == 0 else _damage_of_archive(path)
    if damage:
        raise _unreadable(path, damage)
    return map_torch(path)


def map_torch(path: Path) -> Any:
    """Loads a file as `load_torch`, without comparing its records with their CRC."""
    torch = import_extra("torch")

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about files that are refused below
            # torch raises if `mmap` is set for the format before 1.6, which is not zip.
            mmap = zipfile.is_zipfile(path)
            with torch.serialization.safe_globals(safe_globals()):
                return torch.load(
                    path, weights_only=True, map_location="cpu", mmap=mmap
                )
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        name = found.group(1) if found else first_global(path)
        raise _unreadable(path, _refusal_reason(name)) from None
    # On damaged files torch's unpickler raises exceptions of many types, among them
    # RecursionError and MemoryError.
    except Exception as error:
        first = (str(error).splitlines() or [""])[0] or type(error).__name__
        reason = f"it is truncated or was not written by torch: {first}"
        raise _unreadable(path, reason) from None


def save_torch(value: Any, path: Path) -> None:
    """Writes `value` atomically, in the format of `torch.save`."""
    torch = import_extra("torch")

    with atomic_write(path) as new_path:
        torch.save(value, new_path, pickle_module=pickle_module(value))


@contextlib.contextmanager
def errors_with_path(path: Path) -> Iterator[None]:
    """Adds `path` to errors about the content of a file.

    Exceptions such as KeyError and AttributeError mean that the content is not what
    Transformers writes. They are raised as ValueError.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        if str(path) in str(error):
            raise
        if isinstance(error, _checks.ArgumentError):
            error.problem = f"{path}: {error.problem}"
            raise
        error_type = TypeError if isinstance(error, TypeError) else ValueError
        raise error_type(f"{path}: {error}") from error
    except (LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(
            f"{path} must have the content that Transformers writes, but reading it "
            f"failed with {error!r}. Copy the file again, or use an earlier checkpoint."
        ) from error


class MappedState(UserDict[Any, Any]):
    """Entries of a large optimizer state, with few pages of its file in memory.

    The operating system counts a mapped page as memory of the process once it was read.
    The file is therefore mapped again after every `_WINDOW` bytes.
    """

    def __init__(self, path: Path, state: dict[Any, Any]):
        """Stores `state`, the value of "state" in `path`, without reading entries."""
        self.data = state  # `UserDict.__init__` would copy it entry by entry
        self._path, self._num_bytes = path, 0

    def __getitem__(self, index: Any) -> Any:
        """Returns the entry of a parameter."""
        if self._num_bytes > _WINDOW:
            self.data, self._num_bytes = map_torch(self._path)["state"], 0
        entry = self.data[index]
        self._num_bytes += _num_bytes(entry)
        return entry


def _num_bytes(node: Any) -> int:
    """Returns the size of a tensor, or of the tensors in nested dicts."""
    if isinstance(node, Mapping):
        return sum(map(_num_bytes, node.values()))
    return int(getattr(node, "nbytes", 0))


def _unreadable(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"`path` must be a file of tensors that `torch.save` wrote, got {str(path)!r}: "
        f"{reason}. No code in it was run."
    )


def _damage_of_archive(path: Path) -> str:
    """Describes the damage of an archive; "" for none and for files of other formats.

    Every record is compared with its CRC. Records are read through a buffer, not
    through the memory map, whose pages would stay in memory.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":  # torch's own test for an archive
            return ""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            if not any(record.CRC for record in records):
                return ""  # written with torch.serialization.set_crc32_options(False)
            # The largest records are read first, so that no thread starts a large one
            # last.
            records.sort(key=lambda record: -record.file_size)
            # Threads suffice: `zlib.crc32` releases the GIL for large buffers.
            with ThreadPoolExecutor(_NUM_THREADS) as pool:
                found = pool.map(lambda record: _damage(archive, record), records)
                return next((reason for reason in found if reason), "")
    # For a damaged directory `zipfile` raises struct.error, OverflowError and others.
    except Exception as error:
        return f"its archive is truncated or damaged: {error}"


def _damage(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> str:
    """Describes the damage of a record, with its tensor if it is known; "" for none."""
    try:
        if record.compress_type != zipfile.ZIP_STORED:
            raise zipfile.BadZipFile("it is compressed, which torch never does")
        # `zipfile` compares the CRC when the end of the record is read.
        with archive.open(record) as stream:
            while stream.read(_CHUNK):
                pass
    except Exception as error:  # BadZipFile, EOFError, ...
        folder, _, key = record.filename.rpartition("/")
        tensor = ""
        # The pickle contains the names of the tensors. It may be damaged, too.
        with contextlib.suppress(Exception):
            if folder.endswith("/data"):
                pickled = archive.read(folder.removesuffix("data") + "data.pkl")
                saved = load_storage_keys(io.BytesIO(pickled))
                name = next(path for path, found in _leaves(saved, "") if found == key)
                tensor = f", tensor {name!r},"
        return f"its record {record.filename!r}{tensor} is damaged: {error}"
    return ""


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yields the dotted path and the record of every tensor in nested containers."""
    items: Any = ()
    if isinstance(node, Storage):
        yield path, node.key
    elif isinstance(node, Mapping):
        items = node.items()
    elif isinstance(node, list | tuple):
        items = enumerate(node)
    for name, value in items:
        yield from _leaves(value, f"{path}.{name}" if path else str(name))


def _refusal_reason(name: str) -> str:
    """Returns the reason for which a pickle that refers to `name` is refused."""
    for start, framework in _OTHER_FRAMEWORKS.items():
        if name.startswith(start):
            return f"it is {framework} (it refers to {name}), which is another format"
    if name:
        return f"it refers to {name}, which a file of tensors does not need"
    return "its pickle is damaged or was not written by torch"
