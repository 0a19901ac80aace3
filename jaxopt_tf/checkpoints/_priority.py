"""Priority of threads that write a checkpoint beside a training step."""

import contextlib
import os
import sys
import threading
from pathlib import Path

# Added to the niceness of these threads. Under full load each of them has a tenth of
# the time of a thread that computes a training step.
_NICER = 10
_WRITERS = "ts_pool"  # prefix of the names of tensorstore's threads
_INTERVALS = 0.01, 1.0  # seconds between two searches for new threads


class WriterPriority:
    """Lowers the priority of the threads of tensorstore while they write files.

    Otherwise they take half of the time of two cores from the next steps: the step
    after a save of 1.3 GB took twice as long. tensorstore starts threads after a save
    has begun, and ends them when they are idle. They are therefore looked for until
    the files are written. Threads that run Python keep their priority: while one of
    them waits for a core it may hold the GIL, for which the training loop would wait.
    """

    def __init__(self) -> None:
        """Lowers nothing yet."""
        self._is_written = threading.Event()

    def start(self) -> None:
        """Looks for threads in the background, until `stop`."""
        self.stop()
        self._is_written = threading.Event()
        arguments = (self._is_written,)
        threading.Thread(target=_watch, args=arguments, daemon=True).start()

    def stop(self) -> None:
        """Lowers the priority of the present threads, and ends the search."""
        self._is_written.set()
        _lower_writers()


def lower_priority(thread: int = 0) -> None:
    """Lowers the priority of a thread on Linux.

    Args:
        thread: its identifier in the operating system; 0 for the calling thread.
    """
    # POSIX defines the niceness of processes. Only on Linux a thread has its own, which
    # threads that it starts inherit.
    if sys.platform == "linux":
        niceness = os.getpriority(os.PRIO_PROCESS, os.getpid()) + _NICER
        os.setpriority(os.PRIO_PROCESS, thread, min(niceness, 19))


def _watch(is_written: threading.Event) -> None:
    interval, longest = _INTERVALS
    while not is_written.wait(interval):
        _lower_writers()
        interval = min(2 * interval, longest)


def _lower_writers() -> None:
    if sys.platform != "linux":
        return
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # the thread has ended
            if (thread / "comm").read_text().startswith(_WRITERS):
                lower_priority(int(thread.name))
