"""Atomic writes, and a check of the folder before a long run."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a path to write to; its file replaces `path` when the body ends.

    A reader finds the old file or the new one, also after a kill. If the body raises,
    the old one stays.
    """
    # One fixed name: the next start overwrites what a kill has left.
    temporary = path.with_name(f".{path.name}.new")
    try:
        yield temporary
        # Without the sync a power cut may leave the new name with an empty file.
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_folder(path: Path) -> None:
    """Raises unless the folder of `path` exists and is writable.

    Called at the start, so that a run does not fail when it writes its results.
    """
    if not path.parent.is_dir():
        raise ValueError(
            f"`path` must be in a folder that exists, got {str(path)!r}. Make "
            f"{str(path.parent)!r} first."
        )
    if not os.access(path.parent, os.W_OK):
        raise ValueError(
            f"`path` must be in a folder that can be written to, got {str(path)!r}. "
            "Change its permissions, or name another."
        )
