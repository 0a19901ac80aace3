"""Signals: the first one ends a run after the step, the second one at once."""

import contextlib
import itertools
import os
import signal
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Signals so far; as a function, returns whether to stop."""

    def __init__(self, *, is_shared: bool = False):
        """Creates a request without a signal.

        Args:
            is_shared: whether a signal to any of many processes counts, in all of them
                at the same call.
        """
        self.signal: int | None = None  # number of the first one
        self._is_shared = is_shared
        self._calls = itertools.count()
        self._is_handled = False  # this process received a signal

    def __call__(self) -> bool:
        """Returns whether a signal has been received."""
        # All must take the same steps: JAX finds the first that none has passed yet.
        if self._is_shared and multihost_utils.reached_preemption_sync_point(
            next(self._calls)
        ):
            self.signal = signal.SIGTERM
        return self.signal is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Notes the first signal; ends the process at the second."""
        del frame
        name = signal.Signals(number).name
        if self._is_handled:
            _say(f"{name} again: leaving at once.")
            os._exit(128 + number)
        self._is_handled = True
        if self._is_shared:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self.signal = number
        _say(f"{name}: finishing the step and saving; once more leaves at once.")


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Makes SIGTERM and SIGINT (Ctrl-C) requests to stop while it is open.

        with stop_on_signals() as should_stop:
            train(..., should_stop=should_stop)

    The first is noted, so that the step under way is finished and saved. The second
    ends the process at once, with status 128 + its number: a checkpoint is complete or
    not there at all, so that nothing that was saved is lost. Handlers can be set in a
    process's main thread only; elsewhere nothing is changed. Both say so on stderr.

    Of the processes of `jax.distributed.initialize` any one may be asked, and all end
    after the same step. SIGTERM is then JAX's own to catch, and Ctrl-C is one.
    """
    is_shared = jax.process_count() > 1
    request = StopRequest(is_shared=is_shared)
    before = {}
    with contextlib.suppress(ValueError):  # not the main thread
        for number in (signal.SIGINT,) if is_shared else _SIGNALS:
            before[number] = signal.signal(number, request.handle)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(sentence: str) -> None:
    # Not `print`: it may be what the signal came in the middle of.
    os.write(2, f"\n{sentence}\n".encode())
