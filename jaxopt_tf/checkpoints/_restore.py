"""Restoration of checkpoints, after verification of their checksums.

Orbax does not verify arrays: a bit that flips on the disk silently changes a number.
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
    is_checkpoint_name,
    print_to_stderr,
    step_of,
)


class Restored(NamedTuple):
    """Content of a checkpoint."""

    step: int  # from the name of the folder
    arrays: PyTree  # with the structure of `like`
    metadata: dict[str, Any]  # metadata from JSON: tuples are lists, keys are strings
    path: Path  # folder of the checkpoint


def latest_valid(
    folder: Path | str, *, report: Callable[[str], None] = print_to_stderr
) -> Path | None:
    """Returns the newest checkpoint whose checksums are correct.

    Args:
        folder: folder of the run.
        report: function that receives a line for each newer checkpoint that is skipped,
            with the reason.

    Returns:
        The path of the checkpoint; None if there is no checkpoint.

    Raises:
        ValueError: if all checkpoints are damaged; the message lists them.
    """
    # Only process 0 reads and verifies the files; the others receive the path.
    found = run_on_process_0(lambda: _newest_valid(folder, report))
    return None if found is None else Path(found)


def _newest_valid(folder: Path | str, report: Callable[[str], None]) -> str | None:
    for path in incomplete_checkpoints(Path(folder)):
        report(f"{path.name} is incomplete: its save was interrupted.")
    reasons = []
    for path in reversed(find_checkpoints(folder)):
        reason = find_damage(path)
        if reason is None:
            return str(path)
        reasons.append(f"{path.name} is damaged: {reason}")
        report(f"{reasons[-1]}. The previous checkpoint is used.")
    if reasons:
        raise ValueError(
            f"`folder` must contain a valid checkpoint, but {str(folder)!r} has none: "
            f"{'; '.join(reasons)}. Restore a copy of a checkpoint, or delete these "
            "folders to start a new run."
        )
    return None


def find_damage(path: Path | str) -> str | None:
    """Returns a description of the damage of a checkpoint; None if it is valid."""
    reason = _digest.find_damage(Path(path))
    if reason is not None:
        return reason
    try:
        read_record(Path(path))
    except (OSError, ValueError) as error:
        return f"it has no record ({error})"
    return None


def read_metadata(path: Path | str) -> dict[str, Any]:
    """Reads the metadata of a checkpoint, without its arrays.

    Args:
        path: a folder `checkpoint-<step>`.

    Raises:
        ValueError: if the file with the metadata is damaged; other files are not
            verified.
    """
    try:
        if _digest.checksum_matches(Path(path), RECORD_FILE):
            return read_record(Path(path)).metadata
        reason = f"{RECORD_FILE} does not match its checksum"
    except (OSError, ValueError) as error:
        reason = str(error)
    raise _not_valid(path, reason)


def restore(
    path: Path | str, like: PyTree, *, is_partial: bool = False, verify: bool = True
) -> Restored:
    """Restores a checkpoint after verifying its checksums.

    In a multi-process job, process 0 verifies the checkpoint, and each process reads
    the shards of its devices.

    Args:
        path: a folder `checkpoint-<step>`.
        like: a tree of arrays or of `jax.ShapeDtypeStruct`, with the names, shapes and
            dtypes of the checkpoint. Each restored array has the sharding of the array
            in `like`, and is committed to its devices if that array is. A step that is
            compiled for the initial state is therefore not recompiled.
        is_partial: whether the checkpoint may have further arrays, which are not read.
        verify: False if the checkpoint is the result of `latest_valid`.

    Raises:
        ValueError: if `path` is not a checkpoint, is damaged, or is not compatible with
            `like`.
    """
    path = Path(path)
    if not is_checkpoint_name(path.name):
        raise ValueError(
            f"`path` must be a folder checkpoint-<step>, got {str(path)!r}."
        )
    if verify:
        reason = run_on_process_0(
            lambda: find_damage(path) if path.is_dir() else "there is no such folder"
        )
        if reason is not None:
            raise _not_valid(path, reason)
    return _read(path, like, is_partial=is_partial)


def restore_latest(
    folder: Path | str,
    like: PyTree,
    *,
    report: Callable[[str], None] = print_to_stderr,
) -> Restored | None:
    """Restores the newest valid checkpoint.

    Args:
        folder: folder of the run.
        like: see `restore`.
        report: function that receives a line for each newer checkpoint that is skipped,
            with the reason.

    Returns:
        The content of the checkpoint; None if there is no checkpoint.

    Raises:
        ValueError: if all checkpoints are damaged, or if the newest valid checkpoint is
            not compatible with `like`. Older ones are not tried in this case.
    """
    path = latest_valid(folder, report=report)
    return None if path is None else _read(path, like)


def _read(path: Path, like: PyTree, *, is_partial: bool = False) -> Restored:
    # Imported here, so that `latest_valid` does not load orbax.
    from . import _orbax

    arrays = _orbax.read_arrays(path.absolute(), like, is_partial=is_partial)
    return Restored(step_of(path), arrays, read_record(path).metadata, path)


def _not_valid(path: Path | str, reason: str) -> ValueError:
    return ValueError(
        f"`path` must be a valid checkpoint, but {str(path)!r} is not: {reason}. "
        "Pass another one."
    )
