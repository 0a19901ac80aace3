"""Measured in fresh processes, of several of which the middle one counts.

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
# clears: that takes longer than the step that fills them. Depending on the
# layout of its heap it keeps blocks of less than 32 MiB or allocates those again, too:
# a step of Transformers' Adafactor has 150,000 new pages in one process, 379,000 in the
# next. The first of these settings gives each process the fewer. With the second it
# keeps every block: torch needs the last two lines for that, JAX's threads all three.
LARGE_BLOCKS_ANEW = {
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}
ALL_BLOCKS_KEPT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}


def in_fresh_process(
    measure: Callable[..., T], *args: Any, malloc: Mapping[str, str] | None = None
) -> T:
    """What `measure(*args)` returns in a process of its own.

    Args:
        measure: importable, as are its arguments.
        malloc: variables that glibc's allocator reads when a process starts.
    """
    spawn = multiprocessing.get_context("spawn")
    with (
        _environment(malloc or {}),
        concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool,
    ):
        return pool.submit(measure, *args).result()


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
