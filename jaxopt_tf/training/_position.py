"""Where a run stands: all that it needs to go on, into a checkpoint and back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..checkpoints import Checkpoints, restore
from ._progress import Progress
from ._state import TrainState


class Position(NamedTuple):
    """All that a run needs to go on; its data are a function of the step."""

    state: TrainState  # after the last step
    progress: Progress = Progress()  # of the evaluations
    schedule_state: Any = None  # of a schedule that a metric drives; else None


def save_position(
    checkpoints: Checkpoints,
    position: Position,
    notes: Mapping[str, Any] | None = None,
    *,
    replaces: int | None = None,
) -> Path:
    """Saves, in the background: `train(..., save=partial(save_position, checkpoints))`.

    Args:
        checkpoints: from `open_checkpoints`.
        position: its arrays can be donated when this returns.
        notes: what JSON can hold, for `read_notes`: the settings of the run, say.
        replaces: step of a checkpoint that is deleted once this one is complete.

    Returns:
        The path that the checkpoint is going to have.

    Raises:
        OSError: if it, or the one before, cannot be written.
    """
    return checkpoints.save(
        int(position.state.step),
        {"state": position.state, "schedule_state": position.schedule_state},
        {**(notes or {}), "progress": position.progress._asdict()},
        best_step=position.progress.best_step,
        replaces=replaces,
    )


def restore_position(checkpoint: Path | str | None, like: Position) -> Position:
    """Reads a checkpoint of `save_position`, every byte of it verified.

    Args:
        checkpoint: its folder, from `find_intact`, say; None where there is none.
        like: a position at the start; its shapes and dtypes must be the checkpoint's.

    Returns:
        The position; `like` itself where `checkpoint` is None.

    Raises:
        ValueError: if the checkpoint is damaged, or is not like `like`.
    """
    if checkpoint is None:
        return like
    arrays = {"state": like.state, "schedule_state": like.schedule_state}
    restored = restore(checkpoint, arrays)
    return Position(
        restored.arrays["state"],
        Progress(**restored.notes.get("progress", {})),
        restored.arrays["schedule_state"],
    )
