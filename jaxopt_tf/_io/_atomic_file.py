"""Atomic writes, and a check of the output folder before a long run."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path, whose file replaces `path` when the body ends.

    A reader finds either the old file or the complete new one, even if the process is
    killed. If the body raises an error, the old file is kept.
    """
    # The name is fixed and not random, so that the next run overwrites the temporary
    # file of a killed one. It is in the same folder, because `replace` is atomic only
    # within one file system.
    temporary = path.with_name(f".{path.name}.new")
    try:
        yield temporary
        # Without `fsync` a power failure may leave an empty file at `path`.
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_parent_folder(path: Path) -> None:
    """Raises unless the folder of `path` exists and is writable.

    The check runs at the start, so that a run does not fail when it writes its results.
    """
    if not path.parent.is_dir():
        raise ValueError(
            f"`path` must be in a folder that exists, got {str(path)!r}. Create "
            f"{str(path.parent)!r} first."
        )
    if not os.access(path.parent, os.W_OK):
        raise ValueError(
            f"`path` must be in a writable folder, got {str(path)!r}. Change its "
            "permissions, or pass another path."
        )
