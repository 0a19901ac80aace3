"""Selection of rounds in which both cores share one link to the memory.

A processor of chiplets has one memory link and one cache per chiplet. Two cores of the
same chiplet have the bandwidth of one core. Two cores of different chiplets have twice
as much, but data that one core wrote has to be transferred to the other: the training
step of a small model takes 1.3 times as long. The host of a virtual machine changes the
assignment of cores every few seconds, or not for an hour. This changes the ratio of two
steps with different requirements. Only matrix products take the same time in both
cases.
"""

import sys
import time
from collections.abc import Callable

import numpy as np

from benchmarks import _optimizer_steps as steps

SHARED = 1.4  # relative to one core; observed are 0.8 to 1.3, and 1.6 to 2.3
PATIENCE = 120.0  # seconds, for the rounds of one process
PROBED = 2**25  # number of float32: four times the caches, 3 ms


class SharedLink:
    """Decides which rounds count; after `patience` seconds all do, with a note."""

    def __init__(self, patience: float = PATIENCE):
        self._gain = _probe()
        self._deadline = time.monotonic() + patience

    def wait(self) -> None:
        """Waits until a round may begin, which is at once after one that counts."""
        while time.monotonic() < self._deadline and self._gain() > SHARED:
            time.sleep(1.0)  # the host may reassign idle cores

    def kept(self) -> bool:
        """Returns whether the last round counts."""
        if self._gain() <= SHARED:
            return True
        if time.monotonic() < self._deadline:
            return False
        print("a round on several links counts", file=sys.stderr)
        return True


def seconds_in_turn(
    sides: dict[str, steps.Step], num_rounds: int
) -> dict[str, np.ndarray]:
    """Times as `steps.seconds_in_turn`, in rounds with a shared link throughout."""
    link = SharedLink()
    steps.seconds_of_a_round(sides)
    steps.seconds_of_a_round(sides)  # warmup of both
    rounds: list[dict[str, float]] = []
    link.wait()
    while len(rounds) < num_rounds:
        seconds = steps.seconds_of_a_round(sides)
        if link.kept():
            rounds.append(seconds)
        else:
            link.wait()
    return {name: np.array([seconds[name] for seconds in rounds]) for name in sides}


def _probe() -> Callable[[], float]:
    """Returns a function that measures the bandwidth of both cores relative to one."""
    import torch

    x = torch.ones(PROBED)
    threads = torch.get_num_threads()

    def seconds(num_threads):
        torch.set_num_threads(num_threads)
        each = []
        for _ in range(5):
            start = time.perf_counter()
            x.mul_(1.0000001)
            each.append(time.perf_counter() - start)
        return np.median(each)

    def gain() -> float:
        one = seconds(1)
        return float(one / seconds(threads))

    return gain
