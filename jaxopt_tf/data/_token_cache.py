"""Cached files of tokens, which are reused while their sources are unchanged."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .._io import atomic_write


def write_cached(
    path: Path,
    cache_key: Mapping[str, Any],
    encode: Callable[[], Iterable[np.ndarray]],
    metadata: Mapping[str, Any],
    *,
    counts: Callable[[], Mapping[str, int]] = dict,
) -> dict[str, int]:
    """Writes tokens to a file, unless the file already contains them.

    A second file, with the suffix .json, records a hash of `cache_key` and the SHA-256
    of the tokens.

    Args:
        path: file of the tokens; its folder is created.
        cache_key: values that determine the tokens, serializable as JSON.
        encode: function that yields the tokens, in the dtype of the file.
        metadata: values that are added to the second file.
        counts: function that returns numbers of rows for messages, called after the
            last tokens. They are stored in the second file, because the sources are not
            read when the tokens are reused.

    Returns:
        `counts()` of the call that wrote the file.

    Raises:
        ValueError: if the files cannot be written.
    """
    # A hash keeps the second file small for any number of sources.
    key_hash = hashlib.sha256(json.dumps(cache_key).encode()).hexdigest()
    metadata_path = path.with_suffix(".json")
    stored = _stored_counts(path, metadata_path, key_hash)
    if stored is not None:
        return stored
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sha256 = _replace(path, (tokens.data for tokens in encode()))
        found = dict(counts())
        content = {"made_from": key_hash, "sha256": sha256, **metadata}
        if found:
            content["counts"] = found
        _replace(metadata_path, [json.dumps(content).encode()])
    except OSError as error:
        raise ValueError(
            f"`cache_dir` must be a folder with enough space for the tokens, but "
            f"{str(path)!r} could not be written: {error.strerror}. Free space, or "
            "pass another folder."
        ) from error
    return found


def _stored_counts(
    path: Path, metadata_path: Path, key_hash: str
) -> dict[str, int] | None:
    """Returns the counts, or None unless both files are complete and match."""
    try:
        metadata = json.loads(metadata_path.read_bytes())
        with open(path, "rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        is_same = metadata["made_from"] == key_hash and metadata["sha256"] == sha256
        return dict(metadata.get("counts", {})) if is_same else None
    # The file is missing or truncated, or is another file of that name: the source is
    # tokenized again.
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _replace(path: Path, parts: Iterable[bytes | memoryview]) -> str:
    """Writes a file atomically; returns its SHA-256."""
    digest = hashlib.sha256()
    with atomic_write(path) as temporary, temporary.open("wb") as opened:
        for part in parts:
            opened.write(part)
            digest.update(part)
    return digest.hexdigest()
