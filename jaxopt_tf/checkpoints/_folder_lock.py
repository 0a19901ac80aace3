"""Lock of a folder: one job at a time; the error of a second one names the first."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .._io import run_on_process_0

LOCK_FILE = "run.lock"


class FolderLock(NamedTuple):
    """A folder that no other job can lock while the `with` of `lock_folder` is open."""

    folder: Path


@contextlib.contextmanager
def lock_folder(folder: Path | str) -> Iterator[FolderLock]:
    """Locks a folder for this job; creates it if it does not exist.

    The first of many processes holds the lock for all.

    The lock is the kernel's (`flock` on `run.lock`): it ends with the process, however
    that ended, and the content of the file has no meaning then. A process that was
    forked from this one and outlives it keeps the lock.

    Args:
        folder: where one job is to write.

    Yields:
        The folder, as `open_checkpoints` takes it.

    Raises:
        ValueError: if another job holds the folder, which is named; or if the folder
            cannot be made or written to.
    """
    with contextlib.ExitStack() as stack:
        run_on_process_0(lambda: stack.enter_context(_locked(Path(folder))))
        yield FolderLock(Path(folder))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    import fcntl  # not on Windows, where the rest of the package works

    path = folder / LOCK_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ValueError(
            f"`folder` must be a folder that can be written to, got {str(folder)!r}: "
            f"{error.strerror}."
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"`folder` must belong to one job at a time, but {str(folder)!r} is "
                f"held by {_holder(descriptor)}. Wait for it to end, stop it, or name "
                "another folder."
            ) from error
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        }
        # One write over the old text, then the rest cut off: never an empty file.
        text = json.dumps(holder).encode() + b"\n"
        os.pwrite(descriptor, text, 0)
        os.ftruncate(descriptor, len(text))
        yield
    finally:
        os.close(descriptor)  # the kernel gives the lock back with it


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {holder['pid']} on {holder['host']} since {holder['started']}"
    except (ValueError, KeyError, TypeError):
        return "a process that is just starting"
