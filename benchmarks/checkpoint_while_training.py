"""Time that a step waits for a checkpoint of gpt2 during training.

    python -m benchmarks.checkpoint_while_training

The floor is a plain write and flush of the same bytes to the same disk, in the same
run. Before either, the host of a virtual machine is made to provide memory for the file
(`provide_memory`). All files are written into a temporary folder (see `TMPDIR`) and
deleted.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax

from benchmarks._fresh_processes import provide_memory
from benchmarks._report import Row, main
from jaxopt_tf import adamw_tf, clip, init_train_state, make_train_step
from jaxopt_tf.checkpoints import latest_valid, lock_folder, open_checkpoints, restore
from jaxopt_tf.models import gpt2_preset, make_loss_fn


class Save(NamedTuple):
    """Times of one save during training, in seconds."""

    blocked: float  # until `save` returns
    first_step: float  # `save` and the following step
    later_steps: list[float]  # until the checkpoint exists
    complete: float  # until it has its final name, during training


def rows(smoke: bool) -> Iterator[Row]:
    preset = "nano" if smoke else "gpt2"
    run, num_saves = _Training(preset), 1 if smoke else 3
    with tempfile.TemporaryDirectory() as folder:
        usual = run.usual_step(5)
        with (
            lock_folder(folder) as lock,
            open_checkpoints(lock, save_total_limit=1) as saves,
        ):
            saves.reserve(run.state)
            done = [_save(run, saves, i) for i in range(num_saves)]
        path = latest_valid(folder)
        stored = sum(file.stat().st_size for file in path.rglob("*"))
        num_files = sum(file.is_file() for file in path.rglob("*"))
        floor = statistics.median(_plain_write(run, folder) for _ in done)
        verified, restored = (
            _seconds(lambda: latest_valid(folder)),
            _restored(path, run),
        )
    size = f"{preset} with AdamW, {run.num_bytes / 1e9:.3g} GB"
    plain = f"a plain write and flush of the same bytes takes {floor:.2f} s"
    delays = [save.first_step - usual for save in done]
    meanwhile = [seconds for save in done for seconds in save.later_steps]
    slowed = (
        f", {statistics.median(meanwhile):.2f} s while it lasts" if meanwhile else ""
    )
    yield Row(
        claim=f"{size}: delay of the step in which a save starts, the median of "
        f"{num_saves} (at worst {max(delays):.2f} s; a step takes {usual:.2f} s"
        f"{slowed}; {plain})",
        value=statistics.median(delays),
        unit="s",
        limit=0.4,
    )
    yield Row(
        claim=f"{size}: time until `save` returns, the worst of {num_saves}",
        value=max(save.blocked for save in done),
        unit="s",
        limit=1.5,
    )
    complete = statistics.median(save.complete for save in done)
    yield Row(
        claim=f"{size}: time until a checkpoint is complete on disk with its digest, "
        f"{complete:.2f} s beside training, over the floor ({plain})",
        value=complete / floor,
        unit="times",
        limit=1e3 if smoke else 10.0,  # small ones consist of overhead
    )
    yield Row(
        claim=f"{size}: time to verify every byte of {num_files} files on "
        f"{os.cpu_count()} cores (to read them and put them in place: "
        f"{restored:.2f} s more)",
        value=verified,
        unit="s",
        limit=3.0,
    )
    yield Row(
        claim=f"{size}: bytes on disk over bytes of the arrays",
        value=stored / run.num_bytes,
        unit="times",
        limit=1.1 if smoke else 1.001,
    )


class _Training:
    """Returns a model that trains on one batch of few tokens, with short steps."""

    def __init__(self, preset: str):
        params, loss_fn = make_loss_fn(gpt2_preset(preset), 0)
        optimizer = optax.chain(clip(1.0), adamw_tf(1e-4))
        self.batch = np.arange(65, dtype=np.int32)[None]
        self.train_step = make_train_step(loss_fn, optimizer)
        self.state = init_train_state(params, optimizer)
        self.num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self.state))
        self.step()  # compiles

    def step(self) -> None:
        self.state, metrics = self.train_step(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))

    def usual_step(self, num_steps: int) -> float:
        return statistics.median(_seconds(self.step) for _ in range(num_steps))


def _save(run: _Training, checkpoints, step: int) -> Save:
    provide_memory(2 * run.num_bytes / 2**30)
    start = time.perf_counter()
    path = checkpoints.save(step, run.state, {})
    blocked = time.perf_counter() - start
    run.step()
    first_step = time.perf_counter() - start
    later_steps = []
    while not path.exists():
        later_steps.append(_seconds(run.step))
    complete = time.perf_counter() - start
    checkpoints.wait()  # until the previous one is deleted
    return Save(blocked, first_step, later_steps, complete)


def _plain_write(run: _Training, folder: str) -> float:
    path = Path(folder) / "plain"

    def write() -> None:
        with open(path, "wb", buffering=0) as file:
            for leaf in jax.tree.leaves(run.state):
                file.write(np.asarray(leaf).tobytes())
            os.fsync(file.fileno())

    provide_memory(2 * run.num_bytes / 2**30)
    seconds = _seconds(write)
    path.unlink()
    return seconds


def _restored(path: Path, run: _Training) -> float:
    """Returns the seconds of a restore without verification; compare a plain read."""
    like = jax.eval_shape(lambda state: state, run.state)
    total = _seconds(lambda: jax.block_until_ready(restore(path, like).arrays))
    return total - _seconds(lambda: latest_valid(path.parent))


def _seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


if __name__ == "__main__":
    main("Checkpoint while training", rows)
