"""Restoring: the newest checkpoint of which every byte is as it was written.

Orbax does not verify the data: it reads a flipped bit as another number.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from .._io import run_on_process_0
from .._typing import PyTree
from . import _digest
from ._record import RECORD_FILE, read_record
from ._save import (
    find_checkpoints,
    incomplete_checkpoints,
    is_name,
    print_to_stderr,
    step_of,
)


class Restored(NamedTuple):
    """Content of a checkpoint."""

    step: int  # from its name
    arrays: PyTree  # in the structure of `like`
    notes: dict[str, Any]  # as JSON has them: tuples are lists, keys are strings
    path: Path


def latest_valid(
    folder: Path | str, *, report: Callable[[str], None] = print_to_stderr
) -> Path | None:
    """Finds the newest checkpoint of which every byte is as it was written.

    Args:
        folder: the run's folder.
        report: receives a line for each newer one that was skipped, with the reason.

    Returns:
        Its path; None if there is no checkpoint at all.

    Raises:
        ValueError: if there are checkpoints but none is good; all are listed.
    """
    found = run_on_process_0(lambda: _newest_valid(folder, report))
    return None if found is None else Path(found)


def _newest_valid(folder: Path | str, report: Callable[[str], None]) -> str | None:
    for path in incomplete_checkpoints(Path(folder)):
        report(f"{path.name} is half-written: its save was broken off.")
    reasons = []
    for path in reversed(find_checkpoints(folder)):
        reason = damage(path)
        if reason is None:
            return str(path)
        reasons.append(f"{path.name} is damaged: {reason}")
        report(f"{reasons[-1]}. The one before it is used.")
    if reasons:
        raise ValueError(
            f"`folder` must hold a good checkpoint, but in {str(folder)!r} none is: "
            f"{'; '.join(reasons)}. Put a copy back, or delete these folders to start "
            "again."
        )
    return None


def damage(path: Path | str) -> str | None:
    """Describes the damage of a checkpoint; None if there is none. Reads every byte."""
    reason = _digest.damage(Path(path))
    if reason is not None:
        return reason
    try:
        read_record(Path(path))
    except (OSError, ValueError) as error:
        return f"it holds no record ({error})"
    return None


def read_notes(path: Path | str) -> dict[str, Any]:
    """Reads the notes of a checkpoint, without its arrays.

    Args:
        path: a folder `checkpoint-<step>`.

    Raises:
        ValueError: if the file that holds them is damaged; no other is looked at.
    """
    try:
        if _digest.checksum_matches(Path(path), RECORD_FILE):
            return read_record(Path(path)).notes
        reason = f"{RECORD_FILE} has other bytes than its digest says"
    except (OSError, ValueError) as error:
        reason = str(error)
    raise _not_valid(path, reason)


def restore(path: Path | str, like: PyTree) -> Restored:
    """Reads one checkpoint, after every byte of it was verified.

    Of many processes the first one verifies it, and each reads what its devices need.

    Args:
        path: a folder `checkpoint-<step>`.
        like: a tree of arrays or of `jax.ShapeDtypeStruct`: names, shapes and dtypes
            must be those of the checkpoint. Each array comes back as the one in `like`
            is: on the same devices, bound to them or not, so that a step that was
            compiled for a fresh state is not compiled again.

    Raises:
        ValueError: if the checkpoint is damaged or is not one, or is not like `like`.
    """
    path = Path(path)
    if not is_name(path.name):
        raise ValueError(
            f"`path` must be a folder checkpoint-<step>, got {str(path)!r}."
        )
    reason = run_on_process_0(
        lambda: damage(path) if path.is_dir() else "there is no such folder"
    )
    if reason is not None:
        raise _not_valid(path, reason)
    return _read(path, like)


def restore_latest(
    folder: Path | str,
    like: PyTree,
    *,
    report: Callable[[str], None] = print_to_stderr,
) -> Restored | None:
    """Reads the newest checkpoint that is not damaged.

    Args:
        folder: the run's folder.
        like: as in `restore`.
        report: receives a line for each newer one that was skipped, with the reason.

    Returns:
        Its content; None if there is no checkpoint at all.

    Raises:
        ValueError: if there are checkpoints but none is valid; or if the newest valid
            one is not like `like`, which older ones would not be either.
    """
    path = latest_valid(folder, report=report)
    return None if path is None else _read(path, like)


def _read(path: Path, like: PyTree) -> Restored:
    from . import _orbax  # loads orbax, which finding a checkpoint can do without

    arrays = _orbax.read_arrays(path.absolute(), like)
    return Restored(step_of(path), arrays, read_record(path).notes, path)


def _not_valid(path: Path | str, reason: str) -> ValueError:
    return ValueError(
        f"`path` must be a good checkpoint, but {str(path)!r} is not: {reason}. "
        "Name another one."
    )
