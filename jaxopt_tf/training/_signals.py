"""Signal handling: a graceful stop at the first signal, an exit at the second."""

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
    """Request to stop, set by a signal; calling it returns whether to stop."""

    def __init__(self, *, is_shared: bool = False):
        """Creates a request that is not set.

        Args:
            is_shared: whether a signal to any process of a multi-process job stops all
                processes, after the same number of calls.
        """
        self.signal: int | None = None  # number of the first signal
        self._is_shared = is_shared
        self._calls = itertools.count()
        self._is_handled = False  # whether this process has received a signal

    def __call__(self) -> bool:
        """Returns whether a signal has been received."""
        # All processes must make the same number of steps, since a step communicates.
        # JAX's preemption service chooses a step that no process has reached yet; it
        # must be called at every step.
        if self._is_shared and multihost_utils.reached_preemption_sync_point(
            next(self._calls)
        ):
            self.signal = signal.SIGTERM
        return self.signal is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Stores the first signal; exits the process at the second."""
        del frame
        name = signal.Signals(number).name
        if self._is_handled:
            _write_to_stderr(f"{name} again: exiting immediately.")
            # Not `sys.exit`: it raises an exception, whose handlers wait for saves.
            os._exit(128 + number)
        self._is_handled = True
        # SIGTERM to itself starts JAX's preemption protocol, which stops all processes.
        if self._is_shared:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self.signal = number
        _write_to_stderr(
            f"{name}: stopping after this step, then saving; repeat to exit now."
        )


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Handles SIGTERM and SIGINT (Ctrl-C) as requests to stop, within a `with` block.

        with stop_on_signals() as should_stop:
            train(..., should_stop=should_stop)

    After the first signal, the current step is completed and saved. The second signal
    exits the process immediately with status 128 + its number. Checkpoints are written
    atomically, so that no saved checkpoint is lost. A message on stderr reports each
    signal. Handlers can be set in the main thread only; in other threads the context
    manager has no effect.

    In a multi-process job (`jax.distributed.initialize`), a signal to any process stops
    all processes after the same step. JAX then handles SIGTERM itself; Ctrl-C is
    forwarded as SIGTERM.
    """
    is_shared = jax.process_count() > 1
    request = StopRequest(is_shared=is_shared)
    previous_handlers = {}
    # `signal.signal` raises a ValueError outside of the main thread.
    with contextlib.suppress(ValueError):
        for number in (signal.SIGINT,) if is_shared else _SIGNALS:
            previous_handlers[number] = signal.signal(number, request.handle)
    try:
        yield request
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)


def _write_to_stderr(message: str) -> None:
    # `print` is not reentrant: it raises an error if the signal has interrupted a
    # `print` to the same stream.
    os.write(2, f"\n{message}\n".encode())
