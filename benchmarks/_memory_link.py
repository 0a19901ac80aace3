"""Rounds in which the two cores share one way to the memory, and no others.

A processor of chiplets has a link to the memory and a cache for each of them. Two cores
of one chiplet move together what one moves alone; of two chiplets, twice as much, but
what one wrote the other fetches from afar: the training step of a small model takes 1.3
times as long there. The host of a virtual machine moves its cores from one to the
other, every few seconds or not for an hour, and with them every ratio of two steps that
do not want the same. Matrix products alone take the same time in both places.
"""

import sys
import time
from collections.abc import Callable

import numpy as np

from benchmarks import _optimizer_steps as steps

SHARED = 1.4  # times the speed of one core; seen are 0.8 to 1.3, and 1.6 to 2.3
PATIENCE = 120.0  # seconds for the rounds of one process
PROBED = 2**25  # float32: four times the caches, and 3 ms


class SharedLink:
    """Says which rounds count: after `patience` seconds all, with a word on stderr."""

    def __init__(self, patience: float = PATIENCE):
        self._gain = _probe()
        self._deadline = time.monotonic() + patience

    def wait(self) -> None:
        """Returns when a round may begin; behind one that counts it may at once."""
        while time.monotonic() < self._deadline and self._gain() > SHARED:
            time.sleep(1.0)  # idle cores are assigned again

    def kept(self) -> bool:
        """Whether the round that has just ended counts."""
        if self._gain() <= SHARED:
            return True
        if time.monotonic() < self._deadline:
            return False
        print("a round on several links counts", file=sys.stderr)
        return True


def seconds_in_turn(
    sides: dict[str, steps.Step], num_rounds: int
) -> dict[str, np.ndarray]:
    """As `steps.seconds_in_turn`, of rounds that begin and end with a shared link."""
    link = SharedLink()
    steps.seconds_of_a_round(sides)
    steps.seconds_of_a_round(sides)  # both warm up
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
    """A function that returns how much more both cores move at the moment than one."""
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
