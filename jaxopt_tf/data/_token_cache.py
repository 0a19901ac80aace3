"""Files of tokens that are written once and used again while nothing has changed."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .._io import atomic_write


def write_once(
    path: Path,
    made_from: Mapping[str, Any],
    encode: Callable[[], Iterable[np.ndarray]],
    about: Mapping[str, Any],
    *,
    counts: Callable[[], Mapping[str, int]] = dict,
) -> dict[str, int]:
    """Writes tokens to a file, unless it contains the same ones already.

    A second file, with the suffix .json, records a hash of `made_from` and the SHA-256
    of the tokens.

    Args:
        path: file of the tokens; its folder is created.
        made_from: all that determines the tokens, as JSON.
        encode: function that yields the tokens, in the dtype of the file.
        about: further values for the second file.
        counts: function that returns numbers of rows for messages, called after the
            last tokens. They are stored, because a file that is used again does not
            have its source read.

    Returns:
        `counts()` of the call that wrote the file.

    Raises:
        ValueError: if the files cannot be written.
    """
    # Hashed, so that the second file has the same size for any number of sources.
    wanted = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()
    note = path.with_suffix(".json")
    stored = _stored_counts(path, note, wanted)
    if stored is not None:
        return stored
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sha256 = _replace(path, (tokens.data for tokens in encode()))
        found = dict(counts())
        content = {"made_from": wanted, "sha256": sha256, **about}
        if found:
            content["counts"] = found
        _replace(note, [json.dumps(content).encode()])
    except OSError as error:
        raise ValueError(
            f"`cache_dir` must be a folder with enough space for the tokens, but "
            f"{str(path)!r} could not be written: {error.strerror}. Free space, or "
            "name another folder."
        ) from error
    return found


def _stored_counts(path: Path, note: Path, made_from: str) -> dict[str, int] | None:
    """Returns the counts, or None unless both files are complete and match."""
    try:
        about = json.loads(note.read_bytes())
        with open(path, "rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        is_same = about["made_from"] == made_from and about["sha256"] == sha256
        return dict(about.get("counts", {})) if is_same else None
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
