"""Measured in several fresh processes, and the middle one counts.

Where a process has its pages and which neighbours it meets is the same for all of its
rounds, and another in the next process.
"""

import concurrent.futures
import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")

# glibc gives large blocks back to the system and takes new ones, whose pages the system
# clears, which takes longer than the step that fills them. With all three it keeps them;
# with fewer, or for a thread with a heap of its own, it does not.
KEEPS_FREED_PAGES = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}


def in_fresh_processes(
    num: int,
    measure: Callable[..., T],
    *args: Any,
    environment: Mapping[str, str] | None = None,
) -> list[T]:
    """What `measure(*args)` returns in each, one process after the other."""
    spawn = multiprocessing.get_context("spawn")
    results = []
    with _environment(environment or {}):
        for _ in range(num):
            with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
                results.append(pool.submit(measure, *args).result())
    return results


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)  # a spawned process starts with them
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def median_ratios(
    runs: Sequence[Mapping[str, np.ndarray]], ours: str, theirs: str
) -> np.ndarray:
    """Of each process the median of its rounds' ratios, in order of size."""
    return np.sort([np.median(run[ours] / run[theirs]) for run in runs])


def median_of(runs: Sequence[Mapping[str, np.ndarray]], name: str) -> float:
    """The median of all rounds of all processes."""
    return float(np.median([run[name] for run in runs]))
