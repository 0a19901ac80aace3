"""Connection of the processes of a distributed run, and their common exit."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import jax

from .. import _checks
from ._flags import USER_ERRORS, with_flag_names

# Timeouts. If a process does not connect, or is lost, all others exit within a minute.
_CONNECT_TIMEOUT = 45  # seconds until all processes must have connected
_HEARTBEAT_TIMEOUT = 30  # seconds without a heartbeat


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Settings by which the processes of a run connect; by default there is one.

    Attributes:
        distributed: read the other settings from the launcher: Slurm, Open MPI,
            Kubernetes or the runtime of a TPU pod.
        coordinator_address: host:port of process 0, equal in all processes, if there is
            no such launcher. The port must be free.
        num_processes: number of processes.
        process_id: index of this process, from 0.

    Raises:
        ValueError: if a value is out of range, or some of the last three settings are
            missing.
        TypeError: if a value has the wrong type.

    Source: JAX 0.10.2, `jax.distributed.initialize`.
    """

    distributed: bool = False
    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    def __post_init__(self) -> None:
        """Checks every field."""
        if not isinstance(self.distributed, bool):
            raise TypeError(
                f"`distributed` must be True or False, got {self.distributed!r}."
            )
        names = ("coordinator_address", "num_processes", "process_id")
        missing = [name for name in names if getattr(self, name) is None]
        if len(missing) == len(names):
            return
        if missing:
            given = next(name for name in names if name not in missing)
            raise ValueError(
                f"`{missing[0]}` must be given with `{given}`: `coordinator_address`, "
                "`num_processes` and `process_id` go together. Give all three, or "
                "`distributed` under a launcher that sets them."
            )
        host, _, port = str(self.coordinator_address).rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(
                "`coordinator_address` must be host:port, got "
                f"{self.coordinator_address!r}."
            )
        num_processes = _checks.whole_number(
            "num_processes", self.num_processes, minimum=1
        )
        _checks.whole_number(
            "process_id", self.process_id, minimum=0, maximum=num_processes - 1
        )


@contextlib.contextmanager
def connected_processes(launch: Launch, flags: Collection[str] = ()) -> Iterator[None]:
    """Connects the processes during a context; an error in one ends all processes.

    The error is printed on stderr, and the process exits immediately with status 2. A
    regular exit would wait for the other processes, which wait for this process in the
    middle of a step. The other processes detect that this process is lost, and exit as
    well.

    Args:
        launch: settings of the connection.
        flags: names of the command's flags, for error messages.

    Raises:
        Exception: any error in the context, if there is only one process.
    """
    if not launch.distributed and launch.coordinator_address is None:
        yield
        return
    _connect(launch, flags)
    try:
        yield
    except (*USER_ERRORS, jax.errors.JaxRuntimeError) as error:
        message = with_flag_names(_error_message(error), flags)
        if jax.process_index() == 0:
            # The exit of process 0, the coordinator, ends the other processes. They may
            # have failed as well, and need time to print their errors.
            time.sleep(2)
        _exit(message)
    jax.distributed.shutdown()


def _connect(launch: Launch, flags: Collection[str]) -> None:
    process = "" if launch.process_id is None else f" in process {launch.process_id}"
    timeout_message = with_flag_names(
        "`num_processes` must be the number of processes that are started, but after "
        f"{_CONNECT_TIMEOUT} s{process} not all of {launch.num_processes or 'them'} "
        f"had connected to {launch.coordinator_address or 'the coordinator'}. "
        "Read the messages of the others, and start all of them again.",
        flags,
    )
    # If a process is missing, the C++ client of JAX aborts the process with a stack
    # trace and raises no exception. The timer exits earlier, with a message.
    timer = threading.Timer(_CONNECT_TIMEOUT, _exit, [timeout_message])
    timer.daemon = True  # does not keep the process alive
    timer.start()
    try:
        jax.distributed.initialize(
            launch.coordinator_address,
            launch.num_processes,
            launch.process_id,
            initialization_timeout=_CONNECT_TIMEOUT + 10,
            heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT,
        )
        # Initializes the backend, which waits for all processes a second time.
        jax.devices()
    except (ValueError, RuntimeError) as error:
        names = "`coordinator_address`, `num_processes` and `process_id`"
        _exit(
            f"the processes could not connect: {error} Without a launcher that JAX "
            f"knows, give {with_flag_names(names, flags)}."
        )
    finally:
        timer.cancel()


def _error_message(error: Exception) -> str:
    """Returns the message that is printed for an error in one of several processes."""
    process = f"process {jax.process_index()} of {jax.process_count()}"
    text = str(error)
    # If another process is lost, collectives raise `JaxRuntimeError`, or on CPUs an
    # error of Gloo, the library that transports them.
    is_collective = isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in text
    # Running out of memory is also a `JaxRuntimeError`, but an error of this process.
    if not is_collective or "RESOURCE_EXHAUSTED" in text:
        return f"{process}: {text}"
    return (
        f"{process} cannot continue: another one has ended or cannot be reached. Read "
        "its messages. The checkpoints are complete: the same command in all processes "
        f"resumes from the newest one. ({text.splitlines()[0]})"
    )


def _exit(message: str) -> None:
    print(f"jaxopt-tf: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    # Not `sys.exit`: it would run JAX's exit handlers, which wait for other processes.
    os._exit(2)
