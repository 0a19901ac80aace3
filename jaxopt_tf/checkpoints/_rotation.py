"""Names of checkpoint folders, and which of them stay.

Nothing is ever half there under a checkpoint's name: what is being written, replaced or
deleted has another name until it is done.
"""

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

_NAME = re.compile(r"checkpoint-(\d+)")
_TEMPORARY = ".orbax-checkpoint-tmp"  # orbax adds it to the name while it writes
_DELETED, _REPLACED = "deleted-", "replaced-"


def is_name(name: str) -> bool:
    """Whether it is `checkpoint-<step>`."""
    return _NAME.fullmatch(name) is not None


def step_of(path: Path) -> int:
    """The step in the name."""
    return int(path.name.removeprefix("checkpoint-"))


def temporary(path: Path) -> Path:
    """The folder that becomes the checkpoint `path`."""
    return path.with_name(path.name + _TEMPORARY)


def print_to_stderr(line: str) -> None:
    """Says it where it does not mix with what the program prints."""
    print(line, file=sys.stderr, flush=True)


def find_checkpoints(folder: Path | str) -> list[Path]:
    """All folders with a checkpoint's name, damaged ones too, the oldest first."""
    found = [path for path in Path(folder).glob("checkpoint-*") if path.is_dir()]
    return sorted((path for path in found if is_name(path.name)), key=step_of)


def half_written(folder: Path) -> list[Path]:
    """What saves that were broken off have left behind."""
    return sorted(folder.glob(f"checkpoint-*{_TEMPORARY}"))


def put_in_place(complete: Path, path: Path) -> None:
    """Gives a complete folder its name; a checkpoint that has it already is deleted."""
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
        best_step: step of the best checkpoint, None where there is none.

    Source: transformers 5.23 `trainer_utils.py`, `rotate_checkpoints`.
    Differs: `newest` is kept even if others have a higher step: they are damaged, or of
        a run that was taken up again further back.
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
    """Ends what a kill left half done: saves, replacements and deletions."""
    for path in half_written(folder):
        report(f"{path.name} is half-written: its save was broken off. It is deleted.")
        shutil.rmtree(path)
    for replaced in folder.glob(f"{_REPLACED}checkpoint-*"):
        path = replaced.with_name(replaced.name.removeprefix(_REPLACED))
        if path.exists():
            delete(replaced)
        else:  # killed between the two names
            replaced.rename(path)
    for path in folder.glob(f"{_DELETED}*checkpoint-*"):
        shutil.rmtree(path)


def delete(path: Path) -> None:
    """Deletes a checkpoint, if it is there, under another name than a checkpoint's."""
    if not path.exists():
        return
    deleted = path.with_name(_DELETED + path.name)
    path.rename(deleted)
    shutil.rmtree(deleted)
