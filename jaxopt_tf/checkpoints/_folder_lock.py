"""Lock of a folder, which only one job at a time can hold."""

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
    """Folder that is locked until the `with` block of `lock_folder` ends."""

    folder: Path


@contextlib.contextmanager
def lock_folder(folder: Path | str) -> Iterator[FolderLock]:
    """Locks a folder for this job; creates it if it does not exist.

    In a multi-process job, process 0 holds the lock for all processes.

    The lock is a lock of the kernel (`flock` on the file `run.lock`). The kernel
    releases it when the process ends for any reason; the remaining file has no effect.
    A forked process that outlives this one keeps the lock.

    Args:
        folder: the folder to lock.

    Yields:
        The locked folder, an argument of `open_checkpoints`.

    Raises:
        ValueError: if another job holds the lock (the message has the id of its
            process), or if the folder cannot be created or written to.
    """
    with contextlib.ExitStack() as stack:
        run_on_process_0(lambda: stack.enter_context(_locked(Path(folder))))
        yield FolderLock(Path(folder))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    # Imported here: Windows has no `fcntl`, but the rest of the package works there.
    import fcntl

    path = folder / LOCK_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # O_CLOEXEC: a program that this process executes does not inherit the lock.
        # No O_TRUNC: the file names the holder until the lock is acquired.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ValueError(
            f"`folder` must be a writable folder, got {str(folder)!r}: "
            f"{error.strerror}. Pass another folder, or change its permissions."
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"`folder` must be used by one job at a time, but {str(folder)!r} is "
                f"locked by {_holder(descriptor)}. Wait for its end, stop it, or pass "
                "another folder."
            ) from error
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        }
        # Overwritten in one call and then truncated, so that another process never
        # reads an empty file.
        text = json.dumps(holder).encode() + b"\n"
        os.pwrite(descriptor, text, 0)
        os.ftruncate(descriptor, len(text))
        yield
    finally:
        os.close(descriptor)  # releases the lock


def _holder(descriptor: int) -> str:
    # The text is incomplete if the other process has not written it yet.
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {holder['pid']} on {holder['host']} since {holder['started']}"
    except (ValueError, KeyError, TypeError):
        return "a process that is starting"
