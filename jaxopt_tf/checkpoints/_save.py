"""Atomic saving of checkpoints to folders `checkpoint-<step>`.

A save copies the arrays and returns. Orbax writes them in the background to a folder
with a temporary name. Afterwards, the checksums of all files are added, all files are
flushed to the disk, and the folder is renamed. If the process is killed before, the
folder has its temporary name, and is not recognized as a checkpoint. A folder that is
replaced or deleted is renamed first, so that it is not recognized as a checkpoint if
the process is killed.
"""

import contextlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import _checks
from .._io import run_on_process_0
from .._typing import PyTree
from . import _digest
from ._folder_lock import FolderLock

if TYPE_CHECKING:
    from ._orbax import Writer

_NAME = re.compile(r"checkpoint-(\d+)")
_TEMPORARY = ".orbax-checkpoint-tmp"  # orbax's suffix of a temporary folder
_DELETED, _REPLACED = "deleted-", "replaced-"  # prefixes; no checkpoint has them


def print_to_stderr(line: str) -> None:
    """Prints a line to stderr, which keeps it separate from the program's output."""
    print(line, file=sys.stderr, flush=True)


class Checkpoints:
    """Saves checkpoints in the background; created by `open_checkpoints`.

    `save` and `wait` raise an `OSError` with the folder and the cause if an earlier
    save has failed. Earlier checkpoints remain complete.
    """

    def __init__(self, folder: Path, save_total_limit: int | None) -> None:
        """Stores the folder of the run and the number of checkpoints to keep."""
        self._folder, self._limit = folder, save_total_limit
        self._writer: Writer  # set by `open_checkpoints`
        # Arguments of the last save, which the background thread reads in `_finish`.
        # They are not overwritten meanwhile: `save` waits for the previous save.
        self._path = folder
        self._best_step: int | None = None
        self._replaces: int | None = None

    def reserve(self, arrays: PyTree) -> None:
        """Allocates the memory for the copies of `save` in a background thread.

        Without it, the first save allocates the memory, which takes longer than the
        copy. Arrays on accelerators need none.

        Args:
            arrays: a tree with the shapes, dtypes and shardings of the arrays that
                will be saved. They are not read, and can be donated meanwhile.
        """
        self._writer.reserve(arrays)

    def save(
        self,
        step: int,
        arrays: PyTree,
        metadata: dict[str, Any],
        best_step: int | None = None,
        replaces: int | None = None,
    ) -> Path:
        """Starts a save; the arrays can be donated when it returns.

        Args:
            step: number in the name of the folder; an existing checkpoint with this
                step is replaced.
            arrays: any tree of JAX or NumPy arrays (including typed keys and sharded
                arrays) and Python numbers.
            metadata: further values, a dict that can be serialized as JSON.
            best_step: step of the best checkpoint so far, which is never deleted.
            replaces: step of a checkpoint that is deleted when this one is complete.

        Returns:
            The final path of the checkpoint.
        """
        path = self._folder / f"checkpoint-{_checks.step_count('step', step)}"
        metadata = _as_json(metadata)
        self.wait()
        self._path, self._best_step, self._replaces = path, best_step, replaces
        try:
            self._writer.save(path, arrays, metadata)
        except OSError as error:
            raise _save_error(path, error) from error
        return path

    def wait(self) -> None:
        """Blocks until the last save is complete."""
        try:
            self._writer.wait()
        except Exception as error:
            raise _save_error(self._path, error) from error

    def _finish(self, temporary: Path, path: Path) -> None:
        """Completes a save, in a background thread of process 0."""
        # The order matters: older checkpoints are deleted only after the new one is
        # complete, renamed, and its name is flushed to the disk.
        _digest.write_checksums(temporary)
        commit(temporary, path)
        _digest.flush(self._folder)
        if self._replaces is not None:
            delete(self._folder / f"checkpoint-{self._replaces}")
        rotate(path, self._limit, self._best_step)


@contextlib.contextmanager
def open_checkpoints(
    lock: FolderLock,
    *,
    save_total_limit: int | None = None,
    report: Callable[[str], None] = print_to_stderr,
) -> Iterator[Checkpoints]:
    """Opens a folder for saving; removes incomplete checkpoints of a killed process.

    Args:
        lock: from `lock_folder`, so that no other process writes to the folder.
        save_total_limit: number of checkpoints to keep; older ones are deleted when a
            newer one is complete. None, or 0 as in Transformers, keeps all.
        report: function that receives a line for each folder that is removed.

    Yields:
        `Checkpoints`. The end of the `with` block waits for the last save.

    Raises:
        OSError: at the end, if the last save has failed.

    Source: transformers 5.23 `trainer_utils.py`, `rotate_checkpoints`.
    Differs: the checkpoint that was just saved is kept even if others have a higher
        step: they are damaged, or belong to a run that was resumed from an earlier
        step.
    """
    # Imported here, so that finding checkpoints does not load orbax.
    from . import _orbax

    if save_total_limit is not None:
        _checks.step_count("save_total_limit", save_total_limit)
    folder = lock.folder.absolute()
    run_on_process_0(lambda: remove_incomplete(folder, report))
    checkpoints = Checkpoints(folder, save_total_limit)
    with _orbax.open_writer(checkpoints._finish) as checkpoints._writer:
        try:
            yield checkpoints
        finally:
            checkpoints.wait()


def is_checkpoint_name(name: str) -> bool:
    """Returns whether `name` is `checkpoint-<step>`."""
    return _NAME.fullmatch(name) is not None


def step_of(path: Path) -> int:
    """Returns the step in the name of a checkpoint's folder."""
    return int(path.name.removeprefix("checkpoint-"))


def find_checkpoints(folder: Path | str) -> list[Path]:
    """Returns all checkpoints of a folder, including damaged ones, by step."""
    found = [path for path in Path(folder).glob("checkpoint-*") if path.is_dir()]
    return sorted(
        (path for path in found if is_checkpoint_name(path.name)), key=step_of
    )


def incomplete_checkpoints(folder: Path) -> list[Path]:
    """Returns the temporary folders of interrupted saves."""
    return sorted(folder.glob(f"checkpoint-*{_TEMPORARY}"))


def commit(complete: Path, path: Path) -> None:
    """Renames a complete folder to `path`; deletes an existing checkpoint there."""
    # `rename` cannot replace a folder that is not empty (POSIX). The old checkpoint is
    # renamed first, and renamed back by `remove_incomplete` if the process is killed in
    # between.
    replaced = path.with_name(_REPLACED + path.name)
    if path.exists():
        path.rename(replaced)
    complete.rename(path)
    if replaced.exists():
        delete(replaced)


def rotate(newest: Path, save_total_limit: int | None, best_step: int | None) -> None:
    """Deletes the oldest checkpoints, but neither the newest nor the best.

    Args:
        newest: the checkpoint that was just completed.
        save_total_limit: number of checkpoints to keep; None or 0 for all.
        best_step: step of the best checkpoint; None if there is none.

    Source: see `open_checkpoints`.
    """
    if not save_total_limit:
        return
    kept = {newest}
    best = newest.with_name(f"checkpoint-{best_step}")
    if best.is_dir():  # not every evaluated step is saved
        kept.add(best)
    checkpoints = find_checkpoints(newest.parent)
    num_too_many = len(checkpoints) - max(save_total_limit, len(kept))
    old = [path for path in checkpoints if path not in kept]
    for path in old[: max(num_too_many, 0)]:
        delete(path)


def remove_incomplete(folder: Path, report: Callable[[str], None]) -> None:
    """Removes incomplete saves; completes interrupted replacements and deletions."""
    for path in incomplete_checkpoints(folder):
        report(f"{path.name} is incomplete: its save was interrupted. It is deleted.")
        shutil.rmtree(path)
    for replaced in folder.glob(f"{_REPLACED}checkpoint-*"):
        path = replaced.with_name(replaced.name.removeprefix(_REPLACED))
        if path.exists():
            delete(replaced)
        else:  # killed between the two renames of `commit`
            replaced.rename(path)
    for path in folder.glob(f"{_DELETED}*checkpoint-*"):
        shutil.rmtree(path)


def delete(path: Path) -> None:
    """Deletes a checkpoint if it exists."""
    if not path.exists():
        return
    # The checkpoint is renamed first: if it were deleted in place and only some files
    # were gone, it would look like a damaged one.
    deleted = path.with_name(_DELETED + path.name)
    path.rename(deleted)
    shutil.rmtree(deleted)


def _as_json(metadata: dict[str, Any]) -> dict[str, Any]:
    try:
        as_read: dict[str, Any] = json.loads(json.dumps(metadata))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`metadata` must be serializable as JSON, but {error}. Pass arrays in "
            "`arrays`, and convert paths to strings."
        ) from error
    return as_read


def _save_error(path: Path, error: Exception) -> OSError:
    incomplete = path.with_name(path.name + _TEMPORARY)
    if path.exists() and not incomplete.exists():
        return OSError(
            f"The checkpoint {str(path)!r} is complete, but older ones could not be "
            f"deleted: {error}. Check the other files in the folder, and start again."
        )
    # The incomplete checkpoint is deleted, since the disk may be full.
    shutil.rmtree(incomplete, ignore_errors=True)
    return OSError(
        f"The checkpoint {str(path)!r} could not be written: {error}. Earlier ones are "
        "valid. Free space, or make the folder writable, and start again."
    )
