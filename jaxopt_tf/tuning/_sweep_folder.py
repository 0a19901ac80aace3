"""Folder of a sweep: finished trials, and the states of runs that continue."""

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .. import checkpoints
from .._io import atomic_write
from ..recipes import Recipe, recipe_settings
from ._parallel_runs import ParallelRuns
from ._program import VmapState, next_batch
from ._runs import Trial, differing
from ._task import Task

_RESULTS = "sweep.jsonl"
# Key of the indices of the runs that continue, in the metadata of a checkpoint.
_CONTINUING = "runs_to_go_on"


@dataclass
class SweepStore:
    """Trials of a sweep, and states of the runs that continue.

    Trials and states are saved in one checkpoint, which is written atomically.
    """

    recipes: Sequence[Recipe]  # one recipe per run
    settings: Mapping[str, Any] = field(default_factory=dict)  # identify the sweep
    folder: Path | None = None  # None: nothing is saved
    writer: checkpoints.Checkpoints | None = None  # None without a folder
    trials: list[Trial] = field(default_factory=list)  # results so far
    states: dict[int, VmapState] = field(default_factory=dict)  # by index of the run

    def save(self) -> None:
        """Saves all trials and states if the sweep has a folder."""
        if self.writer is None:
            return
        # JSON has no infinity or NaN: floats are written as strings.
        trials = [
            [str(x) if isinstance(x, float) else x for x in trial]
            for trial in self.trials
        ]
        states = {str(i): state for i, state in self.states.items()}
        arrays = {"num_trials": np.int32(len(trials)), "states": states}
        continuing = sorted(self.states)
        metadata = {"sweep": self.settings, "trials": trials, _CONTINUING: continuing}
        # The step of the checkpoint is the number of trials, which always increases.
        self.writer.save(len(trials), arrays, metadata)
        self.writer.wait()
        self.write_results()

    def resume(self, path: Path, runs: ParallelRuns) -> None:
        """Reads the trials and the states from the result of `latest_valid`.

        Raises:
            ValueError: if the checkpoint belongs to another sweep.
        """
        metadata = checkpoints.read_metadata(path)
        saved = metadata.get("sweep") or {}
        if saved != self.settings:
            changed = [n for n in self.settings if saved.get(n) != self.settings[n]]
            raise ValueError(
                "`folder` must be a new folder or contain this sweep, but the "
                f"checkpoint {str(path)!r} has other {' and '.join(changed)}. Name "
                "another folder."
            )
        for run, step, first_loss, loss, eval_loss in metadata["trials"]:
            eval_loss = None if eval_loss is None else float(eval_loss)
            self.trials.append(
                Trial(run, step, float(first_loss), float(loss), eval_loss)
            )
        # The initial states give the structure, shapes and dtypes for the restore.
        start = runs.initial_states(metadata[_CONTINUING])
        like = {str(i): state for i, state in start.items()}
        arrays = {"num_trials": np.int32(0), "states": like}
        restored = checkpoints.restore(path, arrays, verify=False).arrays["states"]
        self.states = {int(name): state for name, state in restored.items()}
        # The sweep may have been killed between the checkpoint and sweep.jsonl.
        self.write_results()

    def write_results(self) -> None:
        """Writes sweep.jsonl: for each trial, the settings that differ and losses."""
        assert self.folder is not None
        names = differing(self.recipes)
        with (
            atomic_write(self.folder / _RESULTS) as temporary,
            temporary.open("w", encoding="utf-8") as file,
        ):
            for trial in self.trials:
                settings = recipe_settings(self.recipes[trial.run])
                values = {name: settings[name] for name in names} | {
                    "run": trial.run,
                    "step": trial.step,
                    "loss": _or_null(trial.loss),
                    "held_out_loss": _or_null(trial.eval_loss),
                    "has_diverged": math.isinf(trial.objective),
                }
                file.write(json.dumps(values) + "\n")


@contextlib.contextmanager
def open_store(
    folder: Path | str | None, runs: ParallelRuns, steps: Sequence[int]
) -> Iterator[SweepStore]:
    """Opens the folder of a sweep, and reads its newest valid checkpoint if it has one.

    Args:
        folder: a new folder, or one that contains this sweep; None saves nothing.
        runs: all runs of the sweep.
        steps: steps at which runs are compared.

    Raises:
        ValueError: if the folder contains another sweep or is in use.
    """
    if folder is None:
        yield SweepStore(runs.recipes)
        return
    settings = {
        "recipes": [recipe_settings(recipe) for recipe in runs.recipes],
        "steps": list(steps),
        "data": _fingerprint(runs.task, runs.recipes[0]),
    }
    # The settings are converted to JSON and back, so that tuples compare equal to the
    # lists in a file.
    settings = json.loads(json.dumps(settings))
    with (
        checkpoints.lock_folder(folder) as lock,
        checkpoints.open_checkpoints(lock, save_total_limit=2) as writer,
    ):
        store = SweepStore(runs.recipes, settings, lock.folder, writer)
        newest = checkpoints.latest_valid(lock.folder)
        if newest is not None:
            store.resume(newest, runs)
        yield store


def _fingerprint(task: Task, recipe: Recipe) -> str:
    """Returns a hash of the first batch, evaluation batches and parameters."""
    # Later batches are not hashed: they would have to be read for every start.
    first = next_batch(iter(task.batches(recipe)), 0)
    settings = (task.takes_key, str(task.compute_dtype))
    digest = hashlib.sha256(repr(settings).encode())
    arrays = [first, list(task.eval_batches), task.init(recipe.seed)]
    if task.frozen is not None:
        arrays.append(task.frozen)
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{path} {array.shape} {array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _or_null(loss: float | None) -> float | None:
    return loss if loss is not None and math.isfinite(loss) else None
