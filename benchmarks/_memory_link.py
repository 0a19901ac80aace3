"""Rounds in which the two cores share one way to the memory, and no others.

A processor of chiplets has a link to the memory for each of them. Two cores of one
chiplet move together what one moves alone; of two chiplets, twice as much. The host of
a virtual machine moves its cores from one to the other, every few seconds or not for an
hour, and with them every ratio of a step that moves bytes to one that computes. Matrix
products take the same time in both places.
"""

import sys
import time
from collections.abc import Callable

import numpy as np

from benchmarks import _optimizer_steps as steps

SHARED = 1.4  # times the speed of one core; seen are 0.8 to 1.3, and 1.6 to 2.3
PATIENCE = 120.0  # seconds for the rounds of one process
PROBED = 2**25  # float32: four times the caches, and 3 ms


def seconds_in_turn(
    sides: dict[str, steps.Step], num_rounds: int
) -> dict[str, np.ndarray]:
    """As `steps.seconds_in_turn`, of rounds before and after which the link is shared.

    After `PATIENCE` other rounds are taken as well, and standard error says how many.
    """
    gain = _probe()
    steps.seconds_of_a_round(sides)
    steps.seconds_of_a_round(sides)  # both warm up
    rounds: list[dict[str, float]] = []
    others = 0
    deadline = time.monotonic() + PATIENCE
    while len(rounds) < num_rounds:
        patient = time.monotonic() < deadline
        if patient and gain() > SHARED:
            time.sleep(1.0)  # idle cores are placed anew
            continue
        seconds = steps.seconds_of_a_round(sides)
        shared = gain() <= SHARED
        if shared or not patient:
            rounds.append(seconds)
            others += not shared
    if others:
        print(f"{others} of {num_rounds} rounds on several links", file=sys.stderr)
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
