"""Losses of one run on 1 to 8 devices and 1 to 8 processes, also after kills.

    python -m benchmarks.one_run_on_many_devices            # 20 minutes on 2 cores
    python -m benchmarks.one_run_on_many_devices --smoke    # a process that never comes

The processes are real and have CPU devices. A run is compared with the one on a single
device at each of 50 steps, and a run that was killed with one that was not.
"""

import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks._processes import ended, losses, run, started, wait_for
from benchmarks._report import Row, main

LIMIT = 5e-5  # relative difference of the loss
NUM_SEQUENCES = 8
STEPS = 50
MODEL = (
    *("--n_layer", "2", "--n_head", "4", "--n_embd", "64", "--block_size", "32"),
    *("--eval_steps", "25", "--max_steps", f"{STEPS}", "--max_grad_norm", "0.5"),
)
# In GPT-2 the gradient of the bias of keys is 0 except for rounding errors, which
# Adafactor scales to full steps. If parameters differ by one unit in the last place,
# the losses of one device differ by 3e-2 at a rate of 3e-3, 1e-5 at 1e-3, 4e-7 at 3e-4.
LEARNING_RATES = {"adamw_torch": "3e-3", "adafactor": "3e-4"}
# By number of devices; with "!" the state is also sharded along data (ZeRO-1).
MESHES = {
    2: ("data=2", "data=2!", "fsdp=2"),
    4: ("data=2,fsdp=2", "fsdp=2,tensor=2", "data=4!"),
    8: ("data=2,fsdp=4!", "data=2,fsdp=2,tensor=2", "fsdp=8"),
}
# Number of processes, devices per process, mesh.
PROCESSES = ((2, 1, "data=2"), (2, 2, "data=2,fsdp=2!"), (4, 1, "fsdp=4"))


def rows(smoke: bool) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        if not smoke:
            yield from _together(Path(folder))
        yield from _no_show(Path(folder))


def _together(root: Path) -> Iterator[Row]:
    for optim in LEARNING_RATES:
        alone = _losses(root / f"{optim}-alone", optim, "data=1", 1, 1)
        places = [(1, n, mesh) for n, meshes in MESHES.items() for mesh in meshes]
        places = [*places, *PROCESSES]
        for num, devices, mesh in places:
            folder = root / f"{optim}-{num}-{mesh}"
            there = _losses(folder, optim, mesh, num, devices)
            yield Row(
                claim=f"{optim} on {mesh.replace('!', ', zero_1')}, {num} process(es): "
                f"loss of {STEPS} steps",
                value=_distance(there, alone),
                unit="of that on one device",
                limit=LIMIT,
            )
        yield from _broken_off(root, optim, alone)


def _broken_off(root: Path, optim: str, alone: np.ndarray) -> Iterator[Row]:
    """Compares a run that is killed on 4 processes, then on 2, and completed on 8."""
    first, second, third = 4, 2, 8
    folder = root / f"{optim}-broken-off"
    seconds = _until_killed(folder, optim, first, "checkpoint-15")
    yield Row(
        claim=f"{optim}: one of {first} processes is killed: the last other one ends",
        value=seconds,
        unit="s later",
        limit=60.0,
    )
    _until_killed(folder, optim, second, "checkpoint-30")
    there = _losses(folder, optim, f"data={third}", third, 1)
    yield Row(
        claim=f"{optim}: killed on {first} processes, on {second}, ended on {third}",
        value=_distance(there, alone),
        unit="of the loss on one device",
        limit=LIMIT,
    )
    unbroken = _losses(root / f"{optim}-whole", optim, "data=2", 2, 1)
    folder = root / f"{optim}-again"
    _until_killed(folder, optim, 2, "checkpoint-15")
    there = _losses(folder, optim, "data=2", 2, 1)
    yield Row(
        claim=f"{optim}: killed on 2 processes, ended on 2: steps with another loss",
        value=float(np.sum(there != unbroken)),
        unit="",
        limit=0.0,
    )


def _no_show(root: Path) -> Iterator[Row]:
    """Tests that a run ends if one process never starts."""
    args = [*_args(root / "nobody", "adamw_torch", "data=2", 2), "--num_processes", "2"]
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


def _until_killed(folder: Path, optim: str, num: int, checkpoint: str) -> float:
    """Kills the last process at a checkpoint; times the end of all others."""
    args = [*_args(folder, optim, f"data={num}", num), "--save_steps", "5"]
    with started(args, num=num) as processes:
        wait_for(folder / checkpoint, processes[0])
        processes[-1].kill()
        since = time.perf_counter()
        others = ended(processes[:-1])
    for status, said in others:
        if status == 0 or not re.search("another (one has ended|task died)", said):
            raise RuntimeError(f"it ended with {status}: {said}")
    return time.perf_counter() - since


def _losses(folder: Path, optim: str, mesh: str, num: int, devices: int) -> np.ndarray:
    run(_args(folder, optim, mesh, num * devices), num=num, devices=devices)
    return losses(folder)


def _args(folder: Path, optim: str, mesh: str, num_devices: int) -> list[str]:
    axes = dict(axis.split("=") for axis in mesh.rstrip("!").split(","))
    parts = num_devices // int(axes.get("tensor", 1))
    per_device = ["--per_device_train_batch_size", str(NUM_SEQUENCES // parts)]
    zero_1 = ["--zero_1"] if mesh.endswith("!") else []
    where = ["--mesh", mesh.rstrip("!"), *zero_1, "--output_dir", str(folder)]
    how = ["--optim", optim, "--learning_rate", LEARNING_RATES[optim]]
    return [*MODEL, *how, *per_device, *where]


def _distance(there: np.ndarray, alone: np.ndarray) -> float:
    """Returns the largest relative difference; infinite if a step is missing."""
    if there.shape != alone.shape:
        return float("inf")
    return float(np.max(np.abs(there - alone) / alone))


if __name__ == "__main__":
    main("One run on many devices and processes", rows)
