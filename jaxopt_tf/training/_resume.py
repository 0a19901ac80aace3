"""State of a run in its folder: saved, restored, and resumed in one `with`."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..checkpoints import (
    Checkpoints,
    latest_valid,
    lock_folder,
    open_checkpoints,
    restore,
)
from ..schedules import MetricDrivenSchedule
from ._evaluation import Progress
from ._signals import stop_on_signals
from ._state import TrainState


class RunState(NamedTuple):
    """Everything that a run is resumed from; its data are a function of the step."""

    state: TrainState  # after the last step
    progress: Progress = Progress()  # of the evaluations
    schedule_state: Any = None  # of a schedule that a metric drives; else None


def save_position(
    checkpoints: Checkpoints,
    position: RunState,
    notes: Mapping[str, Any] | None = None,
    *,
    replaces: int | None = None,
) -> Path:
    """Saves, in the background: `train(..., save=partial(save_position, checkpoints))`.

    Args:
        checkpoints: from `open_checkpoints`.
        position: its arrays can be donated when this returns.
        notes: a dict that JSON can hold, for `read_notes`: the settings of a run.
        replaces: step of a checkpoint that is deleted when this one is complete.

    Returns:
        The path that the checkpoint will have when it is complete.

    Raises:
        OSError: if it, or the one before, cannot be written.
    """
    # `int` waits until the step is computed.
    return checkpoints.save(
        int(position.state.step),
        {"state": position.state, "schedule_state": position.schedule_state},
        {**(notes or {}), "progress": position.progress._asdict()},
        best_step=position.progress.best_step,
        replaces=replaces,
    )


def restore_position(checkpoint: Path | str | None, like: RunState) -> RunState:
    """Reads a checkpoint of `save_position`, after every byte of it was verified.

    Args:
        checkpoint: its folder, from `latest_valid`; None if there is none.
        like: a position at the start; its shapes and dtypes must be the checkpoint's.

    Returns:
        The position; `like` itself if `checkpoint` is None.

    Raises:
        ValueError: if the checkpoint is damaged, or is not like `like`.
    """
    if checkpoint is None:
        return like
    arrays = {"state": like.state, "schedule_state": like.schedule_state}
    restored = restore(checkpoint, arrays)
    return RunState(
        restored.arrays["state"],
        Progress(**restored.notes.get("progress", {})),
        restored.arrays["schedule_state"],
    )


class Resumable(NamedTuple):
    """Arguments of `train` for a run that `resumable` opened."""

    start: RunState  # of the newest valid checkpoint, or of the state that was passed
    step: int  # of `start`: the number of the first batch
    save: Callable[[RunState], Any]
    should_stop: Callable[[], bool]


@contextlib.contextmanager
def resumable(
    folder: Path | str,
    state: TrainState,
    *,
    save_total_limit: int | None = None,
    metric_schedule: MetricDrivenSchedule | None = None,
) -> Iterator[Resumable]:
    """Locks a run's folder, and restores its newest valid checkpoint if it has one.

        with resumable("runs/mine", state, save_total_limit=2) as run:
            train(train_step, run.start, batches(run.step), max_steps=1_000,
                  save=run.save, save_steps=100, should_stop=run.should_stop)

    One job at a time; damaged checkpoints are skipped and named; SIGTERM and Ctrl-C
    end the run after a step, with a checkpoint.

    Args:
        folder: of the run; created if it does not exist.
        state: the state to start from if there is no checkpoint.
        save_total_limit: checkpoints that are kept, the best among them; None for all.
        metric_schedule: the one that `train` receives; None if it receives none.

    Raises:
        ValueError: if another job holds the folder, no checkpoint in it is valid, or
            the newest valid one is of another model, optimizer or schedule.
        OSError: if a checkpoint cannot be written.
    """
    schedule_state = None if metric_schedule is None else metric_schedule.init()
    with lock_folder(folder) as held, stop_on_signals() as should_stop:
        like = RunState(state, schedule_state=schedule_state)
        start = restore_position(latest_valid(folder), like)
        with open_checkpoints(held, save_total_limit=save_total_limit) as checkpoints:
            save = functools.partial(save_position, checkpoints)
            yield Resumable(start, int(start.state.step), save, should_stop)
