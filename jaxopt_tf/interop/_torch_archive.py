"""Checksums of the records in torch's zip archives."""

import io
import os
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ._safe_pickle import Storage, load_storage_keys

_CHUNK = 2**20
_NUM_THREADS = min(8, os.cpu_count() or 1)


def check_archive(path: Path) -> str:
    """Returns what is damaged in an archive; "" if nothing is, or if it is no archive.

    Every record is read through a buffer, so that no page of the file stays mapped, and
    compared with its CRC.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":  # which is how torch tells them apart
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
                damage = next((reason for reason in found if reason), "")
            return damage
    # `zipfile` raises struct.error, OverflowError and others on damaged directories.
    except Exception as error:
        return f"its archive is cut short or damaged: {error}"


def _damage(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> str:
    """Returns what is wrong with a record; "" if nothing is."""
    if record.compress_type != zipfile.ZIP_STORED:
        return _described(archive, record, "is compressed, which torch never does")
    try:
        with archive.open(record) as stream:
            while stream.read(_CHUNK):
                pass
    except Exception as error:  # BadZipFile, EOFError, ...
        return _described(archive, record, f"is damaged: {error}")
    return ""


def _described(archive: zipfile.ZipFile, record: zipfile.ZipInfo, reason: str) -> str:
    name = record.filename
    tensor = _tensor_in(archive, name.rpartition("/")[2]) if "/data/" in name else ""
    of = f", tensor {tensor!r}," if tensor else ""
    return f"its record {name!r}{of} {reason}"


def _tensor_in(archive: zipfile.ZipFile, key: str) -> str:
    """Returns the path, in the saved object, of the first tensor of a record."""
    try:
        (name,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
        saved = load_storage_keys(io.BytesIO(archive.read(name)))
        return next((path for path, found in _leaves(saved, "") if found == key), "")
    except Exception:  # the pickle is damaged, too
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
