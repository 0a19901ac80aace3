"""Losses of one run on 1 to 8 devices and 1 to 8 processes, also after kills.

    python -m benchmarks.one_run_on_many_devices            # 40 minutes on 2 cores
    python -m benchmarks.one_run_on_many_devices --smoke    # a process that never comes

A GPT-2 on text, and a Llama with grouped queries on packed documents, from a folder of
Transformers. The processes are real and have CPU devices. A run is compared with the
one on a single device at each of 50 steps, and a run that was killed with one that was
not.
"""

import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks._processes import ended, losses, run, started, wait_for
from benchmarks._report import Row, main
from benchmarks._small_llama import write_llama

LIMIT = 5e-5  # relative difference of the loss
NUM_SEQUENCES = 8
STEPS = 50
_RUN = (*("--eval_steps", "25", "--max_steps", f"{STEPS}", "--max_grad_norm", "0.5"),)
_GPT2 = ("--n_layer", "2", "--n_head", "4", "--n_embd", "64", "--block_size", "32")


class Place(NamedTuple):
    """Processes, their devices and the mesh of all devices."""

    processes: int
    devices: int  # per process
    mesh: str  # with "!" the state is also sharded along data (ZeRO-1)

    def __str__(self) -> str:
        """Returns the part of a claim that describes the place."""
        mesh = self.mesh.replace("!", ", zero_1")
        return f"{mesh}, {self.processes} process(es)"


class Case(NamedTuple):
    """Model and optimizer, and the places where they are trained."""

    model: str
    optim: str
    learning_rate: str
    places: tuple[Place, ...]
    # A run is killed at the first two, and resumed and completed at the third.
    broken_off: tuple[Place, Place, Place]
    again: Place  # killed and resumed there, with equal results

    def __str__(self) -> str:
        """Returns the start of a claim."""
        return f"{self.model}, {self.optim}"


_GPT2_PLACES = (
    *(Place(1, 2, mesh) for mesh in ("data=2", "data=2!", "fsdp=2")),
    *(Place(1, 4, mesh) for mesh in ("data=2,fsdp=2", "fsdp=2,tensor=2", "data=4!")),
    *(
        Place(1, 8, mesh)
        for mesh in ("data=2,fsdp=4!", "data=2,fsdp=2,tensor=2", "fsdp=8")
    ),
    *(Place(2, 1, "data=2"), Place(2, 2, "data=2,fsdp=2!"), Place(4, 1, "fsdp=4")),
)
# Two heads of keys: `tensor=2` divides them, `tensor=4` repeats each.
_LLAMA_PLACES = (
    *(Place(1, 2, mesh) for mesh in ("data=2", "fsdp=2", "tensor=2")),
    *(Place(1, 4, mesh) for mesh in ("data=4!", "fsdp=2,tensor=2", "tensor=4")),
    *(
        Place(1, 8, mesh)
        for mesh in ("fsdp=8", "data=2,fsdp=2,tensor=2", "fsdp=2,tensor=4")
    ),
    *(Place(2, 2, "data=2,tensor=2"), Place(4, 1, "fsdp=4")),
)
_GPT2_CASE = Case(
    model="GPT-2",
    optim="adamw_torch",
    learning_rate="3e-3",
    places=_GPT2_PLACES,
    broken_off=(Place(4, 1, "data=4"), Place(2, 1, "data=2"), Place(8, 1, "data=8")),
    again=Place(2, 1, "data=2"),
)
_LLAMA_CASE = Case(
    model="Llama",
    optim="adamw_torch",
    learning_rate="3e-3",
    places=_LLAMA_PLACES,
    broken_off=(
        Place(4, 1, "fsdp=4"),
        Place(2, 2, "data=2,tensor=2"),
        Place(1, 8, "fsdp=2,tensor=4"),
    ),
    again=Place(2, 1, "fsdp=2"),
)
CASES = (
    _GPT2_CASE,
    # In GPT-2 the gradient of the bias of keys is 0 except for rounding errors, which
    # Adafactor scales to full steps. If parameters differ by one unit in the last
    # place, the losses of one device differ by 3e-2 at a rate of 3e-3, 1e-5 at 1e-3,
    # 4e-7 at 3e-4.
    _GPT2_CASE._replace(optim="adafactor", learning_rate="3e-4"),
    _LLAMA_CASE,
    _LLAMA_CASE._replace(optim="adafactor"),
)


def rows(smoke: bool) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if not smoke:
            llama = write_llama(
                root / "llama", hidden_size=64, context=32, with_weights=True
            )
            for case in CASES:
                flags = _GPT2 if case.model == "GPT-2" else llama
                yield from _Runs(root, case, flags).rows()
        yield from _no_show(root)


class _Runs:
    """Runs of one case, each in a folder of its own."""

    def __init__(self, root: Path, case: Case, flags: tuple[str, ...]):
        self._root, self._case, self._flags = root, case, flags

    def rows(self) -> Iterator[Row]:
        alone = self._losses("alone", Place(1, 1, "data=1"))
        for place in self._case.places:
            there = self._losses(f"{place.processes}-{place.mesh}", place)
            yield Row(
                claim=f"{self._case} on {place}: loss of {STEPS} steps",
                value=_distance(there, alone),
                unit="of that on one device",
                limit=LIMIT,
            )
        yield from self._broken_off(alone)

    def _broken_off(self, alone: np.ndarray) -> Iterator[Row]:
        """Compares a run that is killed at two places, and completed at a third."""
        first, second, third = self._case.broken_off
        seconds = self._until_killed("broken-off", first, "checkpoint-15")
        yield Row(
            claim=f"{self._case}: one of {first.processes} processes is killed: the "
            "last other one ends",
            value=seconds,
            unit="s later",
            limit=60.0,
        )
        self._until_killed("broken-off", second, "checkpoint-30")
        yield Row(
            claim=f"{self._case}: killed on {first}, on {second}, ended on {third}",
            value=_distance(self._losses("broken-off", third), alone),
            unit="of the loss on one device",
            limit=LIMIT,
        )
        again = self._case.again
        unbroken = self._losses("whole", again)
        self._until_killed("again", again, "checkpoint-15")
        there = self._losses("again", again)
        yield Row(
            claim=f"{self._case}: killed on {again}, ended there: steps with another "
            "loss",
            value=float(np.sum(there != unbroken)),
            unit="",
            limit=0.0,
        )

    def _until_killed(self, name: str, place: Place, checkpoint: str) -> float:
        """Kills the last process at a checkpoint; times the end of all others."""
        args = [*self._args(name, place), "--save_steps", "5"]
        with started(args, num=place.processes, devices=place.devices) as processes:
            wait_for(self._folder(name) / checkpoint, processes[0])
            processes[-1].kill()
            since = time.perf_counter()
            others = ended(processes[:-1])
        for status, said in others:
            if status == 0 or not re.search("another (one has ended|task died)", said):
                raise RuntimeError(f"it ended with {status}: {said}")
        return time.perf_counter() - since

    def _losses(self, name: str, place: Place) -> np.ndarray:
        run(self._args(name, place), num=place.processes, devices=place.devices)
        return losses(self._folder(name))

    def _folder(self, name: str) -> Path:
        return self._root / f"{self._case.model}-{self._case.optim}-{name}"

    def _args(self, name: str, place: Place) -> list[str]:
        case = self._case
        how = ["--optim", case.optim, "--learning_rate", case.learning_rate]
        return [*self._flags, *_RUN, *how, *_where(self._folder(name), place)]


def _no_show(root: Path) -> Iterator[Row]:
    """Tests that a run ends if one process never starts."""
    place = Place(2, 1, "data=2")
    args = [*_GPT2, *_RUN, *_where(root / "nobody", place), "--num_processes", "2"]
    args += ["--coordinator_address", "127.0.0.1:23456", "--process_id", "0"]
    since = time.perf_counter()
    with started(args) as processes:
        ((status, said),) = ended(processes)
    refusal = "`--num_processes` must be .* processes that are started"
    if status != 2 or not re.search(refusal, said):
        raise RuntimeError(f"it ended with {status}: {said}")
    yield Row(
        claim="one of 2 processes never comes: the other one ends, and says so",
        value=time.perf_counter() - since,
        unit="s later",
        limit=60.0,
    )


def _where(folder: Path, place: Place) -> list[str]:
    mesh = place.mesh.rstrip("!")
    axes = dict(axis.split("=") for axis in mesh.split(","))
    parts = place.processes * place.devices // int(axes.get("tensor", 1))
    per_device = ["--per_device_train_batch_size", str(NUM_SEQUENCES // parts)]
    zero_1 = ["--zero_1"] if place.mesh.endswith("!") else []
    return ["--mesh", mesh, *zero_1, *per_device, "--output_dir", str(folder)]


def _distance(there: np.ndarray, alone: np.ndarray) -> float:
    """Returns the largest relative difference; infinite if a step is missing."""
    if there.shape != alone.shape:
        return float("inf")
    return float(np.max(np.abs(there - alone) / alone))


if __name__ == "__main__":
    main("One run on many devices and processes", rows)
