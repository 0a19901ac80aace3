"""Checkpoints: `checkpoint-<step>` folders that are complete, or do not exist.

A save copies the arrays and returns; orbax writes them in the background into a folder
with a temporary name. When all is written, the checksum of every file is added, all is
flushed to the disk, and the folder is renamed. A process that is killed at any moment
leaves the folder under its temporary name, which no restore takes for a checkpoint. The
same holds for folders that are replaced or deleted: they are renamed first.
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
_TEMPORARY = ".orbax-checkpoint-tmp"  # orbax adds it to the name while it writes
_DELETED, _REPLACED = "deleted-", "replaced-"


def print_to_stderr(line: str) -> None:
    """Prints a line where it does not mix with the output of the program."""
    print(line, file=sys.stderr, flush=True)


class Checkpoints:
    """Saves checkpoints in the background; `open_checkpoints` makes it.

    Both methods raise `OSError` if an earlier save failed: it names the folder and the
    cause. Earlier checkpoints are complete.
    """

    def __init__(self, folder: Path, save_total_limit: int | None) -> None:
        """Takes the folder of the run and the number of checkpoints that are kept."""
        self._folder, self._limit = folder, save_total_limit
        self._writer: Writer  # set by `open_checkpoints`
        # Of the last save; there is never more than one under way.
        self._path = folder
        self._best_step: int | None = None
        self._replaces: int | None = None

    def save(
        self,
        step: int,
        arrays: PyTree,
        notes: dict[str, Any],
        best_step: int | None = None,
        replaces: int | None = None,
    ) -> Path:
        """Starts a save; the arrays can be donated when it returns.

        Args:
            step: number in the folder's name; a checkpoint that has it is replaced.
            arrays: any tree of JAX or NumPy arrays (typed keys too, on one device or
                many) and Python numbers.
            notes: a dict that JSON can hold.
            best_step: step of the best checkpoint so far, which is never deleted.
            replaces: step of a checkpoint that is deleted when this one is complete.

        Returns:
            The path that the checkpoint will have when it is complete.
        """
        path = self._folder / f"checkpoint-{_checks.step_count('step', step)}"
        notes = _as_json(notes)
        self.wait()
        self._path, self._best_step, self._replaces = path, best_step, replaces
        try:
            self._writer.save(path, arrays, notes)
        except OSError as error:
            raise _save_error(path, error) from error
        return path

    def wait(self) -> None:
        """Returns when everything is on disk."""
        try:
            self._writer.wait()
        except Exception as error:
            raise _save_error(self._path, error) from error

    def _finish(self, temporary: Path, path: Path) -> None:
        """Completes a save, in the background and on the first process only."""
        _digest.seal(temporary)
        commit(temporary, path)
        _digest.flush(self._folder)
        if self._replaces is not None:
            delete(self._folder / f"checkpoint-{self._replaces}")
        rotate(path, self._limit, self._best_step)


@contextlib.contextmanager
def open_checkpoints(
    held: FolderLock,
    *,
    save_total_limit: int | None = None,
    report: Callable[[str], None] = print_to_stderr,
) -> Iterator[Checkpoints]:
    """Opens a folder for saving; removes what a killed process left incomplete.

    Args:
        held: from `lock_folder`: no other process writes there.
        save_total_limit: number of checkpoints that are kept; older ones are deleted
            when a newer one is complete. None, or 0 as in Transformers, keeps all.
        report: receives a line for each folder that was removed.

    Yields:
        `Checkpoints`. At the end of the `with` the last save is waited for.

    Raises:
        OSError: at the end, if the last save failed.

    Source: transformers 5.23 `trainer_utils.py`, `rotate_checkpoints`.
    Differs: the checkpoint that was just saved is kept even if others have a higher
        step: they are damaged, or of a run that was resumed from an earlier step.
    """
    from . import _orbax  # loads orbax, which only saving and reading arrays need

    if save_total_limit is not None:
        _checks.step_count("save_total_limit", save_total_limit)
    folder = held.folder.absolute()
    run_on_process_0(lambda: clear(folder, report))
    checkpoints = Checkpoints(folder, save_total_limit)
    with _orbax.open_writer(checkpoints._finish) as checkpoints._writer:
        try:
            yield checkpoints
        finally:
            checkpoints.wait()


def is_name(name: str) -> bool:
    """Returns whether `name` is `checkpoint-<step>`."""
    return _NAME.fullmatch(name) is not None


def step_of(path: Path) -> int:
    """Returns the step in the name of a checkpoint's folder."""
    return int(path.name.removeprefix("checkpoint-"))


def find_checkpoints(folder: Path | str) -> list[Path]:
    """Lists folders with a checkpoint's name, damaged ones too, the oldest first."""
    found = [path for path in Path(folder).glob("checkpoint-*") if path.is_dir()]
    return sorted((path for path in found if is_name(path.name)), key=step_of)


def incomplete_checkpoints(folder: Path) -> list[Path]:
    """Lists the folders that interrupted saves have left."""
    return sorted(folder.glob(f"checkpoint-*{_TEMPORARY}"))


def commit(complete: Path, path: Path) -> None:
    """Renames a complete folder; a checkpoint that has the name already is deleted."""
    replaced = path.with_name(_REPLACED + path.name)
    if path.exists():
        path.rename(replaced)
    complete.rename(path)
    if replaced.exists():
        delete(replaced)


def rotate(newest: Path, save_total_limit: int | None, best_step: int | None) -> None:
    """Deletes the oldest until `save_total_limit` are left, never the newest or best.

    Args:
        newest: the checkpoint that was just completed.
        save_total_limit: None or 0 for no limit.
        best_step: step of the best checkpoint; None if there is none.

    Source: see `open_checkpoints`.
    """
    if not save_total_limit:
        return
    kept = {newest}
    best = newest.with_name(f"checkpoint-{best_step}")
    if best.is_dir():  # not every evaluation is saved
        kept.add(best)
    checkpoints = find_checkpoints(newest.parent)
    num_too_many = len(checkpoints) - max(save_total_limit, len(kept))
    old = [path for path in checkpoints if path not in kept]
    for path in old[: max(num_too_many, 0)]:
        delete(path)


def clear(folder: Path, report: Callable[[str], None]) -> None:
    """Completes saves, replacements and deletions that were interrupted."""
    for path in incomplete_checkpoints(folder):
        report(f"{path.name} is half-written: its save was broken off. It is deleted.")
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
    """Deletes a checkpoint if it exists, under another name than a checkpoint's."""
    if not path.exists():
        return
    deleted = path.with_name(_DELETED + path.name)
    path.rename(deleted)
    shutil.rmtree(deleted)


def _as_json(notes: dict[str, Any]) -> dict[str, Any]:
    try:
        as_read: dict[str, Any] = json.loads(json.dumps(notes))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`notes` must be what JSON can hold, but {error}. Arrays belong into "
            "`arrays`, a path is written as a string."
        ) from error
    return as_read


def _save_error(path: Path, error: Exception) -> OSError:
    incomplete = path.with_name(path.name + _TEMPORARY)
    if path.exists() and not incomplete.exists():
        return OSError(
            f"The checkpoint {str(path)!r} is complete, but older ones could not be "
            f"deleted: {error}. Look what else is in the folder, and start again."
        )
    # An incomplete checkpoint uses space on a disk that may be full.
    shutil.rmtree(incomplete, ignore_errors=True)
    return OSError(
        f"The checkpoint {str(path)!r} could not be written: {error}. Earlier ones are "
        "valid. Free space, or make the folder writable, and start again."
    )
