"""Work of process 0 on behalf of all processes, and checks that all of them agree.

After `jax.distributed.initialize`, all processes must run the same computations in the
same order. Only process 0 writes files.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

# Errors with a message for the user, which are raised in all processes. The index in
# the tuple is broadcast in place of the class, which JSON cannot represent.
_ERROR_TYPES = (ValueError, TypeError, OSError)
# Replaces the list of differences in a process that has the settings of process 0.
_OTHERS_DIFFER = (
    "The settings of this process equal those of process 0, but another process "
    "differs; its message lists the differences."
)


def is_primary_process() -> bool:
    """Returns whether this is process 0, which writes files and prints."""
    return jax.process_index() == 0


def run_on_process_0(function: Callable[[], Any]) -> Any:
    """Calls a function in process 0, and returns its result in all processes.

    All processes must call it, and wait until process 0 has finished.

    Args:
        function: a function whose result can be represented in JSON.

    Raises:
        ValueError, TypeError, OSError: in all processes, if `function` raises it.
    """
    if jax.process_count() == 1:
        return function()
    error, outcome = None, {}
    if is_primary_process():
        # The error is sent to the other processes and not raised here: they would wait
        # for a broadcast that never comes.
        try:
            outcome = {"result": function()}
        except _ERROR_TYPES as raised:
            error = raised
            index = next(i for i, t in enumerate(_ERROR_TYPES) if isinstance(raised, t))
            outcome = {"error_type": index, "message": str(raised)}
    outcome = broadcast_from_process_0(outcome)
    if error is not None:
        raise error
    if "error_type" in outcome:
        raise _ERROR_TYPES[outcome["error_type"]](outcome["message"])
    return outcome["result"]


def broadcast_from_process_0(value: Any) -> Any:
    """Returns the value of process 0 in all processes; it must be valid in JSON."""
    if jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    # The array must have the same shape in all processes, so its length is sent first.
    (length,) = multihost_utils.broadcast_one_to_all(np.array([text.size], np.int32))
    sent = text if is_primary_process() else np.zeros(int(length), np.uint8)
    received = np.asarray(multihost_utils.broadcast_one_to_all(sent))
    return json.loads(received.tobytes())


def all_processes_agree(condition: bool) -> bool:
    """Returns True in all processes if the condition is True in all, else False."""
    if jax.process_count() == 1:
        return condition
    return bool(np.all(multihost_utils.process_allgather(np.array([condition]))))


def check_equal_across_processes(settings: Mapping[str, Any]) -> None:
    """Raises in all processes unless all have equal settings; all must call it.

    Args:
        settings: settings by name, with values that can be represented in JSON.

    Raises:
        ValueError: in all processes. The message lists the settings of this process
            that differ from those of process 0.
    """
    # The settings of both processes have passed through JSON: tuples have become lists,
    # keys strings.
    settings_of_0, own_settings = (
        broadcast_from_process_0(dict(settings)),
        json.loads(json.dumps(dict(settings))),
    )
    names = [
        name
        for name in {**settings_of_0, **own_settings}
        if settings_of_0.get(name) != own_settings.get(name)
    ]
    if all_processes_agree(not names):
        return
    index = jax.process_index()
    differences = [
        f"`{n}`: {settings_of_0.get(n)!r} in process 0, {own_settings.get(n)!r} in "
        f"process {index}"
        for n in names
    ]
    listed = "\n  ".join(["These differ:", *differences]) if names else _OTHERS_DIFFER
    raise ValueError(
        "every process must be started with the same settings and versions. "
        f"{listed}\nStart all processes with the same settings."
    )
