"""What runs of a sweep were tried with, and what they came to, as it is drawn."""

import itertools
import json
from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np


class Tried(NamedTuple):
    """K runs."""

    values: dict[str, list[float | str]]  # by field, K each: numbers, or names
    losses: np.ndarray  # [K], float64: what they are compared by; infinite: diverged
    steps: np.ndarray  # [K], int: where they were seen last
    is_ended: np.ndarray  # [K], bool: whether that is their end
    label: str  # what the losses are
    best: int | None  # the run of the lowest loss; None: there is no loss


def values_of(settings: Sequence[Any]) -> list[float | str]:
    """Settings as numbers, or, unless all are, as names."""
    if all(isinstance(s, Real) and not isinstance(s, bool) for s in settings):
        return [float(setting) for setting in settings]
    return [s if isinstance(s, str) else json.dumps(s) for s in settings]


def is_grid(tried: Tried) -> bool:
    """Whether every combination of values was tried once."""
    combinations = list(zip(*tried.values.values(), strict=True))
    every = itertools.product(*(dict.fromkeys(v) for v in tried.values.values()))
    return len(combinations) == len(set(combinations)) and set(combinations) == set(
        every
    )
