"""Work of process 0 for all processes, and checks that all of them agree.

`jax.distributed.initialize` makes several processes one program: all of them must run
the same computations in the same order. Files are written by process 0 alone.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

# Errors with a sentence for the user; they are raised in all processes.
_TOLD = (ValueError, TypeError, OSError)
_ANOTHER = "another one was not: its message names them."


def is_primary_process() -> bool:
    """Returns True in the process that writes and prints; true if there is one."""
    return jax.process_index() == 0


def run_on_process_0(function: Callable[[], Any]) -> Any:
    """Calls a function in the first process, and returns its result in all of them.

    All processes must call it; those that come early wait.

    Args:
        function: its result must be what JSON can hold.

    Raises:
        ValueError, TypeError, OSError: in all processes, if it does in the first one.
    """
    if jax.process_count() == 1:
        return function()
    error, told = None, {}
    if is_primary_process():
        try:
            told = {"result": function()}
        except _TOLD as raised:
            error = raised
            kind = next(kind for kind in _TOLD if isinstance(raised, kind))
            told = {"kind": _TOLD.index(kind), "message": str(raised)}
    told = broadcast_from_process_0(told)
    if error is not None:
        raise error
    if "kind" in told:
        raise _TOLD[told["kind"]](told["message"])
    return told["result"]


def broadcast_from_process_0(value: Any) -> Any:
    """Returns the value of process 0 in all of them; JSON must be able to hold it."""
    if jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    # A broadcast array must have one shape everywhere: the length goes first.
    (length,) = multihost_utils.broadcast_one_to_all(np.array([text.size], np.int32))
    sent = text if is_primary_process() else np.zeros(int(length), np.uint8)
    received = np.asarray(multihost_utils.broadcast_one_to_all(sent))
    return json.loads(received.tobytes())


def all_processes_agree(condition: bool) -> bool:
    """Returns True in all processes if the condition is true in each."""
    if jax.process_count() == 1:
        return condition
    return bool(np.all(multihost_utils.process_allgather(np.array([condition]))))


def check_equal_across_processes(settings: Mapping[str, Any]) -> None:
    """Raises in all processes unless they have equal settings; all must call it.

    Args:
        settings: by name; JSON must be able to hold them.

    Raises:
        ValueError: with every setting that differs from process 0's, in the processes
            that have it; without names in the others.
    """
    first, mine = (
        broadcast_from_process_0(dict(settings)),
        json.loads(json.dumps(dict(settings))),
    )
    names = [name for name in {**first, **mine} if first.get(name) != mine.get(name)]
    if all_processes_agree(not names):
        return
    me = jax.process_index()
    differences = [
        f"`{n}`: {first.get(n)!r} in process 0, {mine.get(n)!r} in process {me}"
        for n in names
    ]
    raise ValueError(
        "every process must be started with the same settings and versions, but "
        + "\n  ".join(["these differ:", *differences] if names else [_ANOTHER])
        + "\nStart all of them alike."
    )
