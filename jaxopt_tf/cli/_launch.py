"""Many processes made one program, and what ends them together."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import jax

from .. import _checks

# Within a minute every process has ended after one did not come, or has gone.
_COMES_WITHIN = 45  # seconds
_IS_GONE_AFTER = 30  # seconds without a sign of life

_SAYS_ITSELF = (ValueError, TypeError, FloatingPointError, OSError)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How a process finds the others; all left out: it runs alone.

    Attributes:
        distributed: whether the launcher says who the processes are: Slurm, Open MPI,
            Kubernetes, the runtime of a TPU pod.
        coordinator_address: where there is none, host:port of process 0, the same in
            all; its port must be free.
        num_processes: how many there are.
        process_id: which of them this one is, from 0.

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
        if missing and len(missing) < len(names):
            given = [name for name in names if name not in missing]
            raise ValueError(
                f"`{missing[0]}` must be given with `{given[0]}`: the three of "
                f"{', '.join(names)} go together. Give all, or `distributed` under a "
                "launcher that knows them."
            )
        if missing:
            return
        host, _, port = str(self.coordinator_address).rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(
                "`coordinator_address` must be host:port, got "
                f"{self.coordinator_address!r}."
            )
        number = _checks.whole_number("num_processes", self.num_processes, least=1)
        _checks.whole_number("process_id", self.process_id, least=0, most=number - 1)


@contextlib.contextmanager
def launched(launch: Launch) -> Iterator[None]:
    """Inside, the processes are one program; an error ends all of them.

    What goes wrong is said on stderr, and the process is left at once, with status 2:
    in an orderly end it would wait for the others, who wait for it in the middle of a
    step. They see that it is gone, and end as well.

    Args:
        launch: how they find each other.

    Raises:
        Whatever the inside does, where there is one process.
    """
    if not launch.distributed and launch.coordinator_address is None:
        yield
        return
    _meet(launch)
    try:
        yield
    except (*_SAYS_ITSELF, jax.errors.JaxRuntimeError) as error:
        sentence = _sentence(error)
        if jax.process_index() == 0:
            time.sleep(2)  # its end ends the others, who may have as much to say
        _leave(sentence)
    jax.distributed.shutdown()


def _meet(launch: Launch) -> None:
    # Its own way to end when somebody does not come is to abort, with a stack trace.
    late = threading.Timer(_COMES_WITHIN, _leave, [_who_is_late(launch)])
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            launch.coordinator_address,
            launch.num_processes,
            launch.process_id,
            initialization_timeout=_COMES_WITHIN + 10,
            heartbeat_timeout_seconds=_IS_GONE_AFTER,
        )
        jax.devices()  # here all of them meet a second time
    except (ValueError, RuntimeError) as error:
        _leave(
            f"the processes could not meet: {error} Without a launcher that JAX knows, "
            "give `coordinator_address`, `num_processes` and `process_id`."
        )
    finally:
        late.cancel()


def _who_is_late(launch: Launch) -> str:
    where = "" if launch.process_id is None else f" in process {launch.process_id}"
    return (
        f"`num_processes` must be the number of those that come, but{where} not all of "
        f"{launch.num_processes or 'them'} had come after {_COMES_WITHIN} s to "
        f"{launch.coordinator_address or 'the place that the launcher names'}. Look "
        "at what the others say, and start all of them again."
    )


def _sentence(error: Exception) -> str:
    """What to say of an error in one of many processes."""
    me, number = jax.process_index(), jax.process_count()
    said = str(error)
    # What a collective says when the other side is gone.
    is_from_below = isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in said
    if not is_from_below or "RESOURCE_EXHAUSTED" in said:
        return f"process {me} of {number}: {said}"
    return (
        f"process {me} of {number} cannot go on: another one has ended or cannot be "
        "reached. Look at what it says; checkpoints are whole, and the same command in "
        f"all processes goes on from the newest. ({said.splitlines()[0]})"
    )


def _leave(sentence: str) -> None:
    print(f"jaxopt-tf: {sentence}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(2)
