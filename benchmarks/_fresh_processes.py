"""Measured in several fresh processes, and the middle one counts.

Where a process has its pages and which neighbours it meets is the same for all of its
rounds, and another in the next process.
"""

import concurrent.futures
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


def in_fresh_processes(num: int, measure: Callable[..., T], *args: Any) -> list[T]:
    """What `measure(*args)` returns in each, one process after the other."""
    spawn = multiprocessing.get_context("spawn")
    results = []
    for _ in range(num):
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
            results.append(pool.submit(measure, *args).result())
    return results


def median_ratios(
    runs: Sequence[Mapping[str, np.ndarray]], ours: str, theirs: str
) -> np.ndarray:
    """Of each process the median of its rounds' ratios, in order of size."""
    return np.sort([np.median(run[ours] / run[theirs]) for run in runs])


def median_of(runs: Sequence[Mapping[str, np.ndarray]], name: str) -> float:
    """The median of all rounds of all processes."""
    return float(np.median([run[name] for run in runs]))
