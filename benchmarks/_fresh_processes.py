"""Measurements in several new processes, of which the median counts.

The placement of a process's memory pages, and the load of other processes, are the same
in all of its rounds, but differ between processes.
"""

import concurrent.futures
import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")

# glibc returns large blocks to the system and allocates new ones, whose pages the
# system clears. This takes longer than the step that fills them. Depending on the
# layout of the heap, glibc also reallocates blocks of less than 32 MiB, or keeps them:
# a step of Transformers' Adafactor has 150,000 new pages in one process and 379,000 in
# another. With the first of these settings each process has the smaller number. With
# the second, glibc keeps every block: torch needs the last two lines for that, JAX's
# threads all.
FRESH_LARGE_BLOCKS = {
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}
ALL_BLOCKS_KEPT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}
# As `jaxopt-tf train` sets it. glibc returns large blocks to the system as by default,
# and new ones have pages of 2 MiB: a step of BERT under torchax has 400 new pages
# instead of 109,000.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def provide_memory(num_gib: float) -> None:
    """Allocates and frees memory, so that the next process allocates it quickly.

    The host of some virtual machines takes their free memory back after 2 s. To
    allocate a GiB of it again takes 0.7 to 2.5 s. Without this function, one process
    would spend this time, and the process after it would reuse the memory.

    Args:
        num_gib: size of the memory in GiB.
    """
    np.ones(int(num_gib * 2**30), np.uint8)


def in_fresh_process(
    measure: Callable[..., T], *args: Any, malloc: Mapping[str, str] | None = None
) -> T:
    """Returns the result of `measure(*args)`, called in a new process.

    Args:
        measure: a function that can be imported, as can its arguments.
        malloc: environment variables of glibc's allocator, read at the start.
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
    os.environ.update(variables)  # inherited by spawned processes
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def median_ratios(
    runs: Sequence[Mapping[str, np.ndarray]], ours: str, theirs: str
) -> np.ndarray:
    """Returns the median of the rounds' ratios for each process, sorted."""
    return np.sort([np.median(run[ours] / run[theirs]) for run in runs])


def median_of(runs: Sequence[Mapping[str, np.ndarray]], name: str) -> float:
    """Returns the median over all rounds of all processes."""
    return float(np.median([run[name] for run in runs]))
