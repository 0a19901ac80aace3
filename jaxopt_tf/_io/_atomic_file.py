"""Atomic writes, and a check of the output folder before a long run."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields the path of a temporary file, which replaces `path` at the end of `with`.

    Other processes find either the old file or the complete new one, even if this
    process is killed. If the `with` block raises an error, the old file is kept.
    """
    # The name is fixed and not random, so that the next run overwrites the temporary
    # file of a killed run. The file is in the folder of `path`, because `replace` is
    # atomic only within one file system.
    temporary = path.with_name(f".{path.name}.new")
    try:
        yield temporary
        # Without `fsync` a power failure may leave an empty file at `path`.
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        # After an error the temporary file still exists.
        temporary.unlink(missing_ok=True)


def check_parent_folder(path: Path) -> None:
    """Raises unless the folder of `path` exists and is writable.

    Called at the start of a run, which would otherwise fail only when it writes its
    results.
    """
    if not path.parent.is_dir():
        raise ValueError(
            f"`path` must be in a folder that exists, got {str(path)!r}. Create "
            f"{str(path.parent)!r} first."
        )
    if not os.access(path.parent, os.W_OK):
        raise ValueError(
            f"`path` must be in a writable folder, got {str(path)!r}. Change the "
            f"permissions of {str(path.parent)!r}, or pass another path."
        )
