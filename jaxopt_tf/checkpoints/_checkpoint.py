"""Checkpoints: `checkpoint-<step>` folders that are complete, or are not there.

A save copies the arrays and returns; orbax writes them in the background into a folder
with a name of its own. When all is written, the digest of every file is added, all is
flushed to the disk, and the folder gets its name in one step. A kill at any moment
leaves that folder under its own name, which no restore takes for a checkpoint.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from .. import _checks
from .._io import done_by_first
from .._typing import PyTree
from . import _digest, _rotation
from ._folder_lock import Held
from ._rotation import print_to_stderr


class Checkpoints(NamedTuple):
    """Saves, in the background.

    `save(step, arrays, notes, best_step=None, replaces=None)` returns the path that the
    checkpoint will have, once the arrays are copied to the host; they can be donated
    then.
    `wait()` returns when everything is on disk. Both raise `OSError` if an earlier save
    went wrong: it names the folder and the cause, and earlier checkpoints are whole.
    """

    save: Callable[..., Path]
    wait: Callable[[], None]


@contextlib.contextmanager
def open_checkpoints(
    held: Held,
    *,
    save_total_limit: int | None = None,
    report: Callable[[str], None] = print_to_stderr,
) -> Iterator[Checkpoints]:
    """Opens a folder for saving, and clears away what a killed job left half done.

    `Checkpoints.save` takes the `step` of the name; `arrays`, any tree of JAX or NumPy
    arrays (typed keys too, on one device or many); `notes`, a dict that JSON can hold;
    `best_step`, the step of the best checkpoint so far, which is never deleted; and
    `replaces`, the step of a checkpoint that is deleted once this one is complete. A
    checkpoint that has the step already is replaced.

    Args:
        held: from `hold`: nobody else writes there.
        save_total_limit: how many checkpoints are kept; older ones are deleted once a
            newer one is complete. None, or 0 as in Transformers, keeps all.
        report: is told what was cleared away, one line each.

    Yields:
        The functions that save. At the end of the `with` the last save is waited for.

    Raises:
        OSError: at the end, if the last save went wrong.

    Source: transformers 5.23 `trainer_utils.py`, `rotate_checkpoints`.
    Differs: the checkpoint that was just saved is kept even if others have a higher
        step: they are damaged, or of a run that was taken up again further back.
    """
    from . import _orbax  # loads orbax: only who saves has to wait for that

    if save_total_limit is not None:
        _checks.step_count("save_total_limit", save_total_limit)
    folder = held.folder.absolute()
    done_by_first(lambda: _rotation.clear(folder, report))
    after: dict[Path, tuple[int | None, int | None]] = {}
    last: list[Path] = []

    def finish(temporary: Path, path: Path) -> None:
        _digest.seal(temporary)
        _rotation.put_in_place(temporary, path)
        _digest.flush(folder)
        best_step, replaces = after.pop(path)
        if replaces is not None:
            _rotation.delete(folder / f"checkpoint-{replaces}")
        _rotation.rotate(path, save_total_limit, best_step)

    with _orbax.open_writer(finish) as writer:

        def wait() -> None:
            try:
                writer.wait()
            except Exception as error:
                raise _failed(last[0], error) from error

        def save(
            step: int,
            arrays: PyTree,
            notes: dict,
            best_step: int | None = None,
            replaces: int | None = None,
        ) -> Path:
            path = folder / f"checkpoint-{_checks.step_count('step', step)}"
            notes = _as_json(notes)
            wait()  # for the one before, and for what went wrong with it
            after[path] = best_step, replaces
            last[:] = [path]
            try:
                writer.save(path, arrays, notes)
            except OSError as error:
                raise _failed(path, error) from error
            return path

        try:
            yield Checkpoints(save, wait)
        finally:
            wait()


def _as_json(notes: dict) -> dict:
    try:
        return json.loads(json.dumps(notes))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`notes` must be what JSON can hold, but {error}. Arrays belong into "
            "`arrays`, a path is written as a string."
        ) from error


def _failed(path: Path, error: Exception) -> OSError:
    unfinished = _rotation.temporary(path)
    if path.exists() and not unfinished.exists():
        return OSError(
            f"The checkpoint {str(path)!r} is complete, but older ones could not be "
            f"deleted: {error}. Look what else is in the folder, and start again."
        )
    # What was written so far takes room on a disk that may be full.
    shutil.rmtree(unfinished, ignore_errors=True)
    return OSError(
        f"The checkpoint {str(path)!r} could not be written: {error}. Earlier ones are "
        "whole. Make room, or make the folder writable, and start again."
    )
