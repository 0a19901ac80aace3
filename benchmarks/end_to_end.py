"""Waiting times of a user: start, steps, evaluation, save, stop and restart.

    python -m benchmarks.end_to_end                # 35 minutes, on a quiet machine
    python -m benchmarks.end_to_end --model gpt2   # or llama, bert
    python -m benchmarks.end_to_end --smoke        # gpt2, two short rounds

Four sides run each of three jobs (`_whole_jobs.py`), each in processes of its own:
`jaxopt-tf train`, Trainer, Trainer with `torch_compile=True`, and a loop over optax's
optimizer with the same model, without monitors, evaluations and checkpoints. All have
huge pages for large blocks, as `jaxopt-tf train` sets them.

A cold start has an empty cache of compiled programs, and a warm one the programs of the
cold one. Steps are timed in rounds: of the processes of the four sides one trains at a
time, and the others wait. Each round starts with another side, and each turn with a
step that is not timed. Before a turn, and before a save, the host of a virtual machine
is made to return the memory that it took back (`provide_memory`). After the rounds,
each side makes a step after which it evaluates, one after which it saves, and one at
which it receives SIGTERM; Trainer saves there because of `enable_jit_checkpoint`. At
last it is started again from its checkpoint. Our first evaluation is the best so far,
so that a checkpoint is saved after it. The products of matrices of a step are measured
alone: they show what tokens per second these cores allow.
"""

import argparse
import collections
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from benchmarks import _whole_jobs as jobs
from benchmarks._fresh_processes import HUGE_PAGES, in_fresh_process, provide_memory
from benchmarks._matrix_products import Shape, seconds_of
from benchmarks._memory_link import PATIENCE, SharedLink
from benchmarks._report import Row, main
from benchmarks._whole_job_sides import SIDES, Places
from benchmarks._whole_jobs import Job

NUM_WARM = 3  # steps before the rounds
# Steps after the rounds: with an evaluation, with a save, with SIGTERM. The save of the
# best model after the evaluation is complete before the next one.
EVALUATED, SAVED, STOPPED = 3, 9, 12
LEAST_OF_PLAIN = 0.98  # tokens per second


class Running:
    """Process of a side, and the times at which its steps ended, in seconds."""

    def __init__(self, side: str, job: Job, work: Path, *, rounds: int, run: str):
        """Starts the process.

        Args:
            side: key of `SIDES`.
            job: the job.
            work: folder of the job's model, of the runs and of caches.
            rounds: number of rounds.
            run: name of the run, whose folder may have checkpoints.
        """
        of_round = 1 + job.num_steps
        self.last = NUM_WARM + rounds * of_round  # step that ends the rounds
        pauses = list(range(NUM_WARM, self.last + 1, of_round))
        steps_fd, child_steps_fd = os.pipe()
        child_go_fd, self._go_fd = os.pipe()
        places = Places(
            folder=str(work / "model"),
            output_dir=str(self.output_dir(work, side, run)),
            pauses=[1, *pauses, self.last + SAVED, self.last + STOPPED],
            timed=[pause + 1 for pause in pauses[:-1]],
            first_timed=self.last,
            eval_steps=self.last + EVALUATED,
            save_steps=self.last + SAVED,
            steps_fd=child_steps_fd,
            go_fd=child_go_fd,
        )
        command = [sys.executable, "-m", "benchmarks._whole_job_sides", side, job.name]
        self._log = (work / f"{side}-{run}.log").open("w")
        self.begin = time.monotonic()
        self._process = subprocess.Popen(
            [*command, json.dumps(places._asdict())],
            env=_environment(work, side),
            pass_fds=(child_steps_fd, child_go_fd),
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        os.close(child_steps_fd)
        os.close(child_go_fd)
        self._lines: IO[str] = os.fdopen(steps_fd)
        # By step, since the start of the clock. Only our side has beginnings.
        self.ends: dict[int, float] = {}
        self.begins: dict[int, float] = {}

    @staticmethod
    def output_dir(work: Path, side: str, run: str) -> Path:
        """Returns the folder of a run."""
        return work / f"{run}-of-{side}"

    def next_step(self) -> int:
        """Waits for the next timed step, and returns its number."""
        line = self._lines.readline()
        if not line:
            log = Path(self._log.name).read_text()
            raise RuntimeError(f"{self._process.args} has ended:\n{log}")
        step, *times = line.split()
        self.ends[int(step)], self.begins[int(step)] = map(float, times)
        return int(step)

    def go(self) -> None:
        """Ends a pause, whose time is not part of the next step."""
        self.ends[max(self.ends)] = time.monotonic()
        os.write(self._go_fd, b"g")

    def first_step(self) -> float:
        """Returns the seconds from the start of the process to its first step."""
        return self.ends[self.next_step()] - self.begin

    def until(self, step: int) -> None:
        """Ends the pause, and waits until `step` has ended."""
        self.go()
        while self.next_step() < step:
            pass

    def round(self, num_steps: int) -> float:
        """Makes a step, and returns the seconds of the next ones."""
        first = max(self.ends) + 1
        self.until(first + num_steps)
        return self.ends[first + num_steps] - self.ends[first]

    def stop(self) -> float:
        """Sends SIGTERM, and returns the seconds until the process has ended."""
        begin = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        self.go()
        self._lines.read()  # Trainer makes further steps
        self._process.wait()
        return time.monotonic() - begin

    def close(self) -> None:
        """Kills the process, if it has not ended."""
        self._process.kill()
        self._process.wait()
        self._lines.close()
        os.close(self._go_fd)
        self._log.close()

    def after(self, step: int) -> float:
        """Returns the seconds between the ends of a step and of the next one."""
        return self.ends[self.last + step + 1] - self.ends[self.last + step]

    def blocked_after(self, step: int) -> float:
        """Returns the seconds from the end of a step to the start of the next one."""
        return self.begins[self.last + step + 1] - self.ends[self.last + step]


def _environment(work: Path, side: str) -> dict[str, str]:
    """Returns the environment of a side, with caches of compiled programs in `work`."""
    found = {key: x for key, x in os.environ.items() if not key.startswith("JAX_")}
    return found | {
        **HUGE_PAGES,
        "XDG_CACHE_HOME": str(work / "caches" / side),
        "TORCHINDUCTOR_CACHE_DIR": str(work / "caches" / side / "inductor"),
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": str(work.parent / "pycache"),
    }


def rows(smoke: bool) -> Iterator[Row]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=jobs.JOBS)
    parser.add_argument("--smoke", action="store_true")
    chosen = parser.parse_args().model
    names = [chosen] if chosen else ["gpt2"] if smoke else list(jobs.JOBS)
    with tempfile.TemporaryDirectory() as folder:
        if not smoke:
            _warm_up(Path(folder) / "warmup")
        for name in names:
            job, work = jobs.JOBS[name], Path(folder) / name
            products = jobs.write(job, work / "model")
            measured = _measure(job, work, 2 if smoke else job.num_rounds, smoke)
            shutil.rmtree(work)
            yield from _rows(job, measured, smoke)
            if not smoke:
                yield _row_of_products(job, measured["rounds"], products)


def _warm_up(work: Path) -> None:
    """Starts each side once, which compiles Python's modules and reads all files."""
    job = jobs.JOBS["gpt2"]
    jobs.write(job, work / "model")
    for side in SIDES:
        with _running(side, job, work, rounds=1, run="warmup") as process:
            process.first_step()


def _measure(job: Job, work: Path, num_rounds: int, smoke: bool) -> dict[str, Any]:
    """Returns seconds by quantity and side."""
    sides = ["ours", "plain"] if smoke else list(SIDES)
    found: dict[str, Any] = collections.defaultdict(dict)
    for side in sides:
        with _running(side, job, work, rounds=num_rounds, run="cold") as process:
            found["cold"][side] = process.first_step()
    with contextlib.ExitStack() as stack:
        processes: dict[str, Running] = {}
        for side in sides:
            process = Running(side, job, work, rounds=num_rounds, run="warm")
            processes[side] = process
            stack.callback(process.close)
            found["warm"][side] = process.first_step()
            process.until(NUM_WARM)
        found["rounds"] = _rounds(job, processes, num_rounds, smoke)
        saving = {side: x for side, x in processes.items() if side != "plain"}
        for side, process in saving.items():
            process.until(process.last + SAVED)
            provide_memory(job.num_gib)
            process.until(process.last + STOPPED)
            usual = [process.after(step) for step in (0, 1, SAVED + 1)]
            found["step"][side] = statistics.median(usual)
            found["evaluation"][side] = process.after(EVALUATED)
            found["save"][side] = process.after(SAVED)
            if side == "ours":
                found["blocked"] = process.blocked_after(SAVED)
            found["stop"][side] = process.stop()
    for side in saving:
        found["bytes"][side] = _bytes_of_checkpoint(work, side)
        with _running(side, job, work, rounds=num_rounds, run="warm") as process:
            found["restart"][side] = process.first_step()
            assert min(process.ends) > process.last, side  # of the checkpoint
    found["write"] = _seconds_of_write(work / "file", found["bytes"]["ours"])
    return found


def _seconds_of_write(path: Path, num_bytes: int) -> float:
    """Returns the seconds in which a new file is written, without a flush."""
    content = memoryview(bytes(num_bytes))
    begin = time.monotonic()
    path.write_bytes(content)
    return time.monotonic() - begin


@contextlib.contextmanager
def _running(side: str, job: Job, work: Path, **arguments: Any) -> Iterator[Running]:
    process = Running(side, job, work, **arguments)
    try:
        yield process
    finally:
        process.close()


def _rounds(
    job: Job, processes: dict[str, Running], num_rounds: int, smoke: bool
) -> list[dict[str, float]]:
    """Returns the seconds of each side in each round."""
    # Most of a step of a large model is products, which do not depend on the link.
    patience = PATIENCE if job.name == "gpt2" and not smoke else 0.0
    link, found = SharedLink(patience), []
    order = collections.deque(processes.items())
    for _ in range(num_rounds):
        link.wait()
        seconds = {}
        for side, process in order:
            provide_memory(job.num_gib)
            seconds[side] = process.round(job.num_steps)
        order.rotate(1)
        if link.kept():
            found.append(seconds)
    return found


def _bytes_of_checkpoint(work: Path, side: str) -> int:
    """Returns the size of the last checkpoint of a run."""
    folders = Running.output_dir(work, side, "warm").glob("checkpoint-*")
    last = max(folders, key=lambda path: int(path.name.partition("-")[2]))
    return sum(file.stat().st_size for file in last.rglob("*"))


def _rows(job: Job, found: dict[str, Any], smoke: bool) -> Iterator[Row]:
    tokens = job.num_steps * jobs.NUM_ROWS * job.block_size
    rates = {
        side: tokens / statistics.median(seconds[side] for seconds in found["rounds"])
        for side in found["rounds"][0]
    }
    limits = {"trainer": job.limit, "compiled": 1.0, "plain": LEAST_OF_PLAIN}
    for side, limit in limits.items():
        if side not in rates:
            continue
        ratios = [seconds[side] / seconds["ours"] for seconds in found["rounds"]]
        yield Row(
            claim=f"{job.title}: tokens per second, of {_TITLES[side]}",
            value=statistics.median(ratios),
            unit="times",
            limit=0.0 if smoke else limit,
            at_least=True,
            detail=f"{rates['ours']:.0f} and {rates[side]:.0f}, {len(ratios)} rounds",
        )
    yield from _rows_of_starts(job, found, smoke)
    yield from _rows_of_saves(job, found, smoke)


def _row_of_products(
    job: Job, rounds: list[dict[str, float]], products: list[Shape]
) -> Row:
    """Returns the most that a step without all else than its products could reach."""
    least = in_fresh_process(seconds_of, products, malloc=HUGE_PAGES)
    times = {
        side: statistics.median(seconds[side] for seconds in rounds) / job.num_steps
        for side in rounds[0]
    }
    return Row(
        claim=f"{job.title}: products of matrices alone, of a step of Trainer",
        value=times["trainer"] / least,
        unit="times",
        limit=job.limit,
        at_least=True,
        detail=f"{least:.3g} s; a step takes {_listed(times)}",
    )


def _rows_of_starts(job: Job, found: dict[str, Any], smoke: bool) -> Iterator[Row]:
    cold, warm = found["cold"], found["warm"]
    if not smoke:
        yield Row(
            claim=f"{job.title}: first step, cold, of Trainer's with torch_compile",
            value=cold["ours"] / cold["compiled"],
            unit="times",
            limit=1.5,
            detail=_listed(cold),
        )
    yield Row(
        claim=f"{job.title}: first step, warm, of cold",
        value=warm["ours"] / cold["ours"],
        unit="times",
        limit=1.0 if smoke else 0.5,
        detail=_listed(warm),
    )
    size = found["bytes"]["ours"] / 1e9
    yield Row(
        claim=f"{job.title}: first step after a stop, beyond that of a warm start",
        value=found["restart"]["ours"] - warm["ours"],
        unit="s",
        limit=60.0 if smoke else 2.0 * size,
        detail=f"{_listed(found['restart'])}; {size:.3g} GB",
    )


def _rows_of_saves(job: Job, found: dict[str, Any], smoke: bool) -> Iterator[Row]:
    delays = {side: x - found["step"][side] for side, x in found["save"].items()}
    size = found["bytes"]["ours"] / 1e9
    limit = 60.0 if smoke else 0.4 * max(1.0, size / 1.5)
    yield Row(
        claim=f"{job.title}: delay of the step in which a save starts",
        value=delays["ours"],
        unit="s",
        limit=limit,
        detail=f"{_listed(delays)}; a step takes {_listed(found['step'])}; a plain "
        f"write of {size:.3g} GB {found['write']:.3g} s",
    )
    yield Row(
        claim=f"{job.title}: of this, until the step begins",
        value=found["blocked"],
        unit="s",
        limit=limit,
    )
    for name, title in (
        ("evaluation", "a step and its evaluation"),
        ("stop", "SIGTERM to exit"),
    ):
        seconds = found[name]
        yield Row(
            claim=f"{job.title}: {title}",
            value=seconds["ours"] / seconds.get("trainer", 1.0),
            unit="of Trainer's",
            limit=60.0 if smoke else 1.0,
            detail=_listed(seconds),
        )


_TITLES = {
    "ours": "ours",
    "plain": "the plain optax loop",
    "trainer": "Trainer",
    "compiled": "Trainer with torch_compile",
}


def _listed(seconds: dict[str, float]) -> str:
    return ", ".join(f"{_TITLES[side]} {x:.3g} s" for side, x in seconds.items())


if __name__ == "__main__":
    main("From start to restart", rows)
