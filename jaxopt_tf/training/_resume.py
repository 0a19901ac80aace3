"""State of a run: saving, restoring, and the context manager `resumable`."""

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
    """State from which a run is resumed. The data are a function of the step."""

    state: TrainState  # after the last step
    progress: Progress = Progress()  # result of the evaluations so far
    schedule_state: Any = None  # state of a metric-driven schedule; else None


def save_run_state(
    checkpoints: Checkpoints,
    run_state: RunState,
    metadata: Mapping[str, Any] | None = None,
    *,
    replaces: int | None = None,
) -> Path:
    """Saves the state of a run in the background, as the argument `save` of `train`.

        train(..., save=functools.partial(save_run_state, checkpoints))

    Args:
        checkpoints: from `open_checkpoints`.
        run_state: the state. Its arrays can be donated when the function returns.
        metadata: metadata, a dict that can be serialized as JSON, such as the settings
            of the run; `read_metadata` reads it.
        replaces: step of a checkpoint that is deleted when this one is complete.

    Returns:
        The final path of the checkpoint.

    Raises:
        OSError: if this or the previous checkpoint cannot be written.
    """
    # `int` blocks until the step is computed.
    return checkpoints.save(
        int(run_state.state.step),
        {"state": run_state.state, "schedule_state": run_state.schedule_state},
        {**(metadata or {}), "progress": run_state.progress._asdict()},
        best_step=run_state.progress.best_step,
        replaces=replaces,
    )


def restore_run_state(
    checkpoint: Path | str | None, like: RunState, *, verify: bool = True
) -> RunState:
    """Restores a checkpoint of `save_run_state` after verifying its checksums.

    Args:
        checkpoint: path of the checkpoint; None for a new run.
        like: initial state of the run, with the shapes, dtypes and shardings to use.
        verify: False if the checkpoint is the result of `latest_valid`, which has
            verified it.

    Returns:
        The restored state; `like` itself if `checkpoint` is None.

    Raises:
        ValueError: if the checkpoint is damaged, or is not compatible with `like`.
    """
    if checkpoint is None:
        return like
    arrays = {"state": like.state, "schedule_state": like.schedule_state}
    restored = restore(checkpoint, arrays, verify=verify)
    return RunState(
        restored.arrays["state"],
        Progress(**restored.metadata.get("progress", {})),
        restored.arrays["schedule_state"],
    )


class Resumable(NamedTuple):
    """Arguments of `train`, from `resumable`."""

    start: RunState  # from the newest valid checkpoint; else the initial state
    step: int  # step of `start`, the index of the next batch
    save: Callable[[RunState], Any]  # saves a checkpoint in the folder
    should_stop: Callable[[], bool]  # True after SIGINT or SIGTERM


@contextlib.contextmanager
def resumable(
    folder: Path | str,
    state: TrainState,
    *,
    save_total_limit: int | None = None,
    metric_schedule: MetricDrivenSchedule | None = None,
) -> Iterator[Resumable]:
    """Locks the folder of a run and restores its newest valid checkpoint, if any.

        with resumable("runs/mine", state, save_total_limit=2) as run:
            train(train_step, run.start, batches(run.step), max_steps=1_000,
                  save=run.save, save_steps=100, should_stop=run.should_stop)

    Only one job can hold the lock. Damaged checkpoints are skipped and reported.
    SIGTERM and Ctrl-C stop the run after the current step, with a checkpoint.

    Args:
        folder: folder of the run; created if it does not exist.
        state: initial state, used if there is no checkpoint.
        save_total_limit: number of checkpoints to keep, including the best one; None
            for all.
        metric_schedule: the argument `metric_schedule` of `train`; None without one.

    Raises:
        ValueError: if another job holds the lock, all checkpoints are damaged, or the
            newest valid one belongs to another model, optimizer or schedule.
        OSError: if a checkpoint cannot be written.
    """
    schedule_state = None if metric_schedule is None else metric_schedule.init()
    with lock_folder(folder) as lock, stop_on_signals() as should_stop:
        like = RunState(state, schedule_state=schedule_state)
        # The state is restored after the lock is acquired, so that no other job can
        # rotate the checkpoints meanwhile.
        start = restore_run_state(latest_valid(folder), like, verify=False)
        with open_checkpoints(lock, save_total_limit=save_total_limit) as checkpoints:
            checkpoints.reserve(start.state)
            save = functools.partial(save_run_state, checkpoints)
            yield Resumable(start, int(start.state.step), save, should_stop)
