"""The folder of a sweep: finished trials, and the states of runs that continue."""

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from .. import checkpoints
from .._io import whole_file
from ..recipes import Recipe, recipe_settings
from ._groups import initial_states
from ._program import VmapState, next_batch
from ._runs import Trial, differing
from ._task import Task

_RESULTS = "sweep.jsonl"


class SweepStore(NamedTuple):
    """Results of earlier starts of a sweep, and a function that saves more."""

    trials: tuple[Trial, ...]
    states: Mapping[int, VmapState]  # of runs that continue, by their numbers
    save: Callable[[Sequence[Trial], Mapping[int, VmapState]], None]


@contextlib.contextmanager
def open_store(
    folder: Path | str | None,
    task: Task,
    recipes: Sequence[Recipe],
    steps: Sequence[int],
) -> Iterator[SweepStore]:
    """Opens the folder of a sweep.

    Trials and the states that belong to them are one checkpoint, which is written whole
    or not at all.

    Args:
        folder: a new one, or one that contains this sweep; None to save nothing.
        task: what is trained.
        recipes: of all runs.
        steps: at which runs are compared.

    Raises:
        ValueError: if it contains another sweep, or is in use.
    """
    if folder is None:
        yield SweepStore((), {}, lambda trials, states: None)
        return
    settings = {
        "recipes": [recipe_settings(recipe) for recipe in recipes],
        "steps": list(steps),
        "data": _fingerprint(task, recipes[0]),
    }
    settings = json.loads(json.dumps(settings))  # as it is read back
    with (
        checkpoints.hold(folder) as held,
        checkpoints.open_checkpoints(held, save_total_limit=2) as saving,
    ):

        def save(trials: Sequence[Trial], states: Mapping[int, VmapState]) -> None:
            by_name = {str(i): state for i, state in states.items()}
            saving.save(
                len(trials),
                {"num_trials": np.int32(len(trials)), "states": by_name},
                {
                    "sweep": settings,
                    # JSON has no infinity: floats are written as strings.
                    "trials": [
                        [str(x) if isinstance(x, float) else x for x in trial]
                        for trial in trials
                    ],
                    "runs_to_go_on": sorted(states),
                },
            )
            saving.wait()
            write_results(trials)

        def write_results(trials: Sequence[Trial]) -> None:
            with whole_file(held.folder / _RESULTS) as temporary:
                temporary.write_text(_lines(recipes, trials), encoding="utf-8")

        newest = checkpoints.find_intact(held.folder)
        if newest is None:
            yield SweepStore((), {}, save)
            return
        notes = checkpoints.read_notes(newest)
        _check_same(newest, notes.get("sweep"), settings)
        trials = tuple(_read_trial(values) for values in notes["trials"])
        write_results(trials)  # the sweep may have been killed just before it
        yield SweepStore(trials, _read_states(newest, notes, task, recipes), save)


def _read_states(
    path: Path, notes: Mapping[str, Any], task: Task, recipes: Sequence[Recipe]
) -> dict[int, VmapState]:
    start = initial_states(task, recipes, notes["runs_to_go_on"])
    like = {str(i): state for i, state in start.items()}
    arrays = {"num_trials": np.int32(0), "states": like}
    restored = checkpoints.restore(path, arrays).arrays["states"]
    return {int(name): state for name, state in restored.items()}


def _read_trial(values: Sequence[Any]) -> Trial:
    run, step, first_loss, loss, held_out = values
    held_out = None if held_out is None else float(held_out)
    return Trial(run, step, float(first_loss), float(loss), held_out)


def _check_same(path: Path, saved: Any, now: Mapping[str, Any]) -> None:
    if saved == now:
        return
    different = [name for name in now if saved is None or saved.get(name) != now[name]]
    raise ValueError(
        f"`folder` must be a new one or hold this sweep, but in {str(path)!r} other "
        f"{' and '.join(different)} were taken. Name another folder."
    )


def _fingerprint(task: Task, recipe: Recipe) -> str:
    """Returns a hash of the first batch, held-out batches and initial parameters."""
    first = next_batch(iter(task.batches(recipe)), 0)
    settings = (task.takes_key, str(task.compute_dtype))
    found = hashlib.sha256(repr(settings).encode())
    seen = (first, list(task.held_out), task.init(recipe.seed))
    for path, leaf in jax.tree_util.tree_leaves_with_path(seen):
        array = np.ascontiguousarray(leaf)
        found.update(f"{path} {array.shape} {array.dtype}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def _lines(recipes: Sequence[Recipe], trials: Sequence[Trial]) -> str:
    """Returns a line of JSON for each trial: settings that differ, and losses."""
    names = differing(recipes)
    lines = []
    for trial in trials:
        settings = recipe_settings(recipes[trial.run])
        values = {
            "run": trial.run,
            "step": trial.step,
            "loss": _or_null(trial.loss),
            "held_out_loss": _or_null(trial.held_out),
            "has_diverged": math.isinf(trial.compared),
        }
        lines.append(json.dumps({n: settings[n] for n in names} | values) + "\n")
    return "".join(lines)


def _or_null(loss: float | None) -> float | None:
    return loss if loss is not None and math.isfinite(loss) else None
