"""Asked to stop: finish the step and save; asked twice: exit at once."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """What the signals have said so far; as a function, whether to stop."""

    signal: int | None = None  # number of the first one

    def __call__(self) -> bool:
        """Whether a signal has come."""
        return self.signal is not None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Inside, SIGTERM and SIGINT (Ctrl-C) ask for an end instead of making one.

        with stop_on_signals() as should_stop:
            train(..., should_stop=should_stop)

    The first is noted, so that the step under way is finished and saved. The second
    ends the process at once, with status 128 + its number: a checkpoint is complete or
    not there at all, so that nothing that was saved is lost. Handlers can be set in a
    process's main thread only; elsewhere nothing is changed. Both say so on stderr.
    """
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        name = signal.Signals(number).name
        if request.signal is not None:
            _say(f"{name} again: leaving at once.")
            os._exit(128 + number)
        request.signal = number
        _say(f"{name}: finishing the step and saving; once more leaves at once.")

    try:
        before = [signal.signal(number, handle) for number in _SIGNALS]
    except ValueError:  # not the main thread
        yield request
        return
    try:
        yield request
    finally:
        for number, handler in zip(_SIGNALS, before, strict=True):
            signal.signal(number, handler)


def _say(sentence: str) -> None:
    # Not `print`: it may be what the signal came in the middle of.
    os.write(2, f"\n{sentence}\n".encode())
