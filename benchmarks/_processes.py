"""Runs of `jaxopt-tf train` in separate processes, with several CPU devices each."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

_RUNS = "from jaxopt_tf.cli import main; raise SystemExit(main())"


class Ended(NamedTuple):
    """Result of a process."""

    status: int
    said: str


@contextlib.contextmanager
def started(
    args: Sequence[str],
    *,
    num: int = 1,
    devices: int = 1,
    of: Callable[[int], Sequence[str]] = lambda _: (),
) -> Iterator[list[subprocess.Popen]]:
    """Starts processes, and kills the remaining ones at the end of the context.

    Args:
        args: arguments of `jaxopt-tf train`.
        num: number of processes.
        devices: number of devices per process.
        of: additional arguments of a process, by its number.
    """
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    coordinator = f"127.0.0.1:{_free_port()}"

    def of_process(index: int) -> list[str]:
        if num == 1:
            return []
        ours = ["--coordinator_address", coordinator, "--num_processes", str(num)]
        return [*ours, "--process_id", str(index)]

    command = [sys.executable, "-c", _RUNS, "train", *args]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    processes = [
        subprocess.Popen(
            [*command, *of_process(i), *of(i)], env=env, text=True, **pipes
        )
        for i in range(num)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def ended(processes: Sequence[subprocess.Popen]) -> list[Ended]:
    """Waits for all processes."""
    said = [process.communicate(timeout=600)[0] for process in processes]
    return [
        Ended(process.returncode, text)
        for process, text in zip(processes, said, strict=True)
    ]


def run(args: Sequence[str], *, num: int = 1, devices: int = 1) -> None:
    """Runs processes, and raises an error unless all of them succeed."""
    with started(args, num=num, devices=devices) as processes:
        for status, said in ended(processes):
            if status != 0:
                raise RuntimeError(f"{args} ended with {status}: {said}")


def wait_for(path: Path, process: subprocess.Popen) -> None:
    """Waits until the file or folder exists."""
    while not path.exists():
        if process.poll() is not None:
            raise RuntimeError(f"it ended: {process.communicate()[0]}")
        time.sleep(0.02)


def losses(folder: Path) -> np.ndarray:
    """Returns the loss of every step, from the log of a run."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return np.array([line["loss"] for line in lines if "loss" in line])


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]
