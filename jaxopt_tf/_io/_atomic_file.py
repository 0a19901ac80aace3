"""Files that are there whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to; what was written takes the place of `path` in one go.

    A reader, and whoever comes after a kill, finds the old file or the new one. If the
    body raises, the old one stays.
    """
    # One name for all times: what a kill leaves is written over by the next start.
    temporary = path.with_name(f".{path.name}.new")
    try:
        yield temporary
        # Else a power cut may leave the new name with nothing behind it.
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_folder(path: Path) -> None:
    """Raises unless the folder that shall hold `path` is one that can be written to.

    Said at the start: a run must not end without what it was to leave.
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
