"""Checkpoints of optimizer states that lack fields which states have now.

A state with a constant learning rate had no `step`, and no state had `rate_source`.
Both follow from the rest of the state.
"""

import functools
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

_NEW, _STEP, _COUNT = "rate_source", "step", "count"


def lacking(saved: Collection[str], wanted: Collection[str]) -> set[str]:
    """Returns the names of leaves in `wanted` that an older state did not have."""
    new = [name for name in wanted if _is(name, _NEW) and name not in saved]
    steps = {_sibling(name, _STEP) for name in new}
    return {*new, *(steps.intersection(wanted).difference(saved))}


def filled(lacked: Collection[str], arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the values of `lacked` for the arrays of a checkpoint, by their names."""
    values = {}
    for name in lacked:
        counter, step = _sibling(name, _COUNT), _sibling(name, _STEP)
        # One count for all parameters, or one for each.
        counts = [
            np.asarray(array)
            for other, array in arrays.items()
            if other == counter or other.startswith(f"{counter}.")
        ]
        largest = functools.reduce(np.maximum, counts)
        # A state with a `step` had a schedule: `SCHEDULE` in the optimizers is 1.
        source = np.full_like(largest, step in arrays)
        values[name] = largest if name == step else source
    return values


def _is(name: str, field: str) -> bool:
    return name.rpartition(".")[2] == field


def _sibling(name: str, field: str) -> str:
    prefix, dot, _ = name.rpartition(".")
    return f"{prefix}{dot}{field}"
