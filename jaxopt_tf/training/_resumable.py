"""A run that goes on where it was, in one `with`."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..checkpoints import find_intact, hold, open_checkpoints
from ._position import Position, restore_position, save_position
from ._signals import stop_on_signals
from ._state import TrainState


class Resumable(NamedTuple):
    """What `train` takes of it."""

    start: Position  # of the newest good checkpoint, or of the state handed in
    step: int  # of `start`: the number of the first batch
    save: Callable[[Position], Any]
    should_stop: Callable[[], bool]


@contextlib.contextmanager
def resumable(
    folder: Path | str, state: TrainState, *, save_total_limit: int | None = None
) -> Iterator[Resumable]:
    """Holds a run's folder, and finds out where the run stands in it.

        with resumable("runs/mine", state, save_total_limit=2) as run:
            train(train_step, run.start, batches(run.step), max_steps=1_000,
                  save=run.save, save_steps=100, should_stop=run.should_stop)

    One job at a time; damaged checkpoints are passed over and named; SIGTERM and Ctrl-C
    end the run after a step, with a checkpoint.

    Args:
        folder: of the run; made where it does not exist.
        state: the state to start from where there is no checkpoint.
        save_total_limit: checkpoints that are kept, the best among them; None for all.

    Raises:
        ValueError: if another job holds the folder, no checkpoint in it is good, or the
            newest good one is of another model or optimizer.
        OSError: if a checkpoint cannot be written.
    """
    with hold(folder) as held, stop_on_signals() as should_stop:
        start = restore_position(find_intact(folder), Position(state))
        with open_checkpoints(held, save_total_limit=save_total_limit) as checkpoints:
            save = functools.partial(save_position, checkpoints)
            yield Resumable(start, int(start.state.step), save, should_stop)
