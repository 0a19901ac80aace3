"""What one of many processes does for all of them.

`jax.distributed.initialize` makes several processes one program: all of them must ask
the devices for the same things in the same order. What is done to files is done once.
"""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

# What says on its own what is wrong and what to do; it is raised in all processes.
_TOLD = (ValueError, TypeError, OSError)


def is_first() -> bool:
    """Whether this is the process that writes and prints; true where there is one."""
    return jax.process_index() == 0


def done_by_first(function: Callable[[], Any]) -> Any:
    """Calls a function in the first process, and returns its result in all of them.

    All processes must come here; those that come early wait.

    Args:
        function: its result must be what JSON can hold.

    Raises:
        ValueError, TypeError, OSError: in all processes, if it does in the first one.
    """
    if jax.process_count() == 1:
        return function()
    error, told = None, {}
    if is_first():
        try:
            told = {"result": function()}
        except _TOLD as raised:
            error = raised
            kind = next(kind for kind in _TOLD if isinstance(raised, kind))
            told = {"kind": _TOLD.index(kind), "message": str(raised)}
    told = told_by_first(told)
    if error is not None:
        raise error
    if "kind" in told:
        raise _TOLD[told["kind"]](told["message"])
    return told["result"]


def told_by_first(value: Any) -> Any:
    """The first process's value, in all of them; JSON must be able to hold it."""
    if jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    # Arrays that are sent must have one shape everywhere: the length goes first.
    (length,) = multihost_utils.broadcast_one_to_all(np.array([text.size], np.int32))
    sent = text if is_first() else np.zeros(int(length), np.uint8)
    received = np.asarray(multihost_utils.broadcast_one_to_all(sent))
    return json.loads(received.tobytes())


def is_true_in_all(condition: bool) -> bool:
    """Whether it is true in every process."""
    if jax.process_count() == 1:
        return condition
    return bool(np.all(multihost_utils.process_allgather(np.array([condition]))))
