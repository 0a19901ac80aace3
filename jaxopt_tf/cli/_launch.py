"""Several processes that run one command as one program, and end together."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import jax

from .. import _checks
from ._flags import REFUSALS, in_flags

# If a process does not come, or is lost, all others end within a minute.
_COMES_WITHIN = 45  # seconds
_IS_LOST_AFTER = 30  # seconds without a heartbeat


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Addresses by which the processes of a run connect; by default there is one.

    Attributes:
        distributed: the launcher knows the processes: Slurm, Open MPI, Kubernetes, the
            runtime of a TPU pod.
        coordinator_address: without such a launcher, host:port of process 0, the same
            in all processes; the port must be free.
        num_processes: number of processes.
        process_id: number of this process, from 0.

    Raises:
        ValueError, TypeError: if a value is out of range, or some of the last three are
            missing.

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
                f"`{missing[0]}` must be given with `{given}`: "
                "`coordinator_address`, `num_processes` and `process_id` go together. "
                "Give all, or `distributed` under a launcher that knows them."
            )
        host, _, port = str(self.coordinator_address).rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(
                "`coordinator_address` must be host:port, got "
                f"{self.coordinator_address!r}."
            )
        number = _checks.whole_number("num_processes", self.num_processes, least=1)
        _checks.whole_number("process_id", self.process_id, least=0, most=number - 1)


@contextlib.contextmanager
def launched(launch: Launch, flags: Collection[str] = ()) -> Iterator[None]:
    """Connects the processes for the time of a context; an error ends all of them.

    The error is printed on stderr, and the process exits at once, with status 2: an
    orderly exit would wait for the other processes, which wait for this one in the
    middle of a step. They notice that it is lost, and exit as well.

    Args:
        launch: how they find each other.
        flags: names of the command's flags, for the sentences of errors.

    Raises:
        Exception: any error in the context, if there is one process.
    """
    if not launch.distributed and launch.coordinator_address is None:
        yield
        return
    _connect(launch, flags)
    try:
        yield
    except (*REFUSALS, jax.errors.JaxRuntimeError) as error:
        sentence = in_flags(_sentence(error), flags)
        if jax.process_index() == 0:
            # Its exit ends the other processes, which may have errors to print too.
            time.sleep(2)
        _exit(sentence)
    jax.distributed.shutdown()


def _connect(launch: Launch, flags: Collection[str]) -> None:
    process = "" if launch.process_id is None else f" in process {launch.process_id}"
    late = in_flags(
        f"`num_processes` must be the number of processes that are started, but"
        f"{process} not all of {launch.num_processes or 'them'} had come after "
        f"{_COMES_WITHIN} s to {launch.coordinator_address or 'the coordinator'}. Read "
        "the messages of the others, and start all of them again.",
        flags,
    )
    # If a process is missing, JAX itself aborts with a stack trace.
    timer = threading.Timer(_COMES_WITHIN, _exit, [late])
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            launch.coordinator_address,
            launch.num_processes,
            launch.process_id,
            initialization_timeout=_COMES_WITHIN + 10,
            heartbeat_timeout_seconds=_IS_LOST_AFTER,
        )
        jax.devices()  # here all processes wait for each other a second time
    except (ValueError, RuntimeError) as error:
        names = "`coordinator_address`, `num_processes` and `process_id`"
        _exit(
            f"the processes could not connect: {error} Without a launcher that JAX "
            f"knows, give {in_flags(names, flags)}."
        )
    finally:
        timer.cancel()


def _sentence(error: Exception) -> str:
    """Returns what is printed about an error in one of several processes."""
    process = f"process {jax.process_index()} of {jax.process_count()}"
    text = str(error)
    # Errors of collectives, if another process is lost.
    is_collective = isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in text
    if not is_collective or "RESOURCE_EXHAUSTED" in text:
        return f"{process}: {text}"
    return (
        f"{process} cannot continue: another one has ended or cannot be reached. Read "
        "its messages; checkpoints are complete, and the same command in all processes "
        f"resumes from the newest. ({text.splitlines()[0]})"
    )


def _exit(sentence: str) -> None:
    print(f"jaxopt-tf: {sentence}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(2)
