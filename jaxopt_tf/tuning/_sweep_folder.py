"""The folder of a sweep: what is finished, so that none of it is done again."""

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
from . import _cohort
from ._groups import at_start
from ._program import Carried
from ._task import Task
from ._trials import Trial, differing

RESULTS = "sweep.jsonl"


class Kept(NamedTuple):
    """What an earlier start of the sweep has left, and where more is kept."""

    trials: tuple[Trial, ...]
    states: Mapping[int, Carried]  # of runs that are to go on, by their numbers
    keep: Callable[[Sequence[Trial], Mapping[int, Carried]], None]


def forgotten() -> Kept:
    """Of a sweep that keeps nothing."""
    return Kept((), {}, lambda trials, states: None)


@contextlib.contextmanager
def kept_in(
    folder: Path | str, task: Task, recipes: Sequence[Recipe], steps: Sequence[int]
) -> Iterator[Kept]:
    """Opens the folder of a sweep.

    Trials and the states that belong to them are one checkpoint: both are there or
    neither is.

    Args:
        folder: a new one, or one that holds this sweep.
        task: what is trained.
        recipes: of all runs.
        steps: at which runs are compared.

    Raises:
        ValueError: if it holds another sweep, or is in use.
    """
    settings = {
        "recipes": [recipe_settings(recipe) for recipe in recipes],
        "steps": list(steps),
        "data": _fingerprint(task, recipes[0]),
    }
    settings = json.loads(json.dumps(settings))  # as it comes back
    with (
        checkpoints.hold(folder) as held,
        checkpoints.open_checkpoints(held, save_total_limit=2) as saving,
    ):

        def keep(trials: Sequence[Trial], states: Mapping[int, Carried]) -> None:
            by_name = {str(i): state for i, state in states.items()}
            saving.save(
                len(trials),
                {"num_trials": np.int32(len(trials)), "states": by_name},
                {
                    "sweep": settings,
                    "trials": [_as_list(trial) for trial in trials],
                    "runs_to_go_on": sorted(states),
                },
            )
            saving.wait()
            write(trials)

        def write(trials: Sequence[Trial]) -> None:
            with whole_file(held.folder / RESULTS) as temporary:
                temporary.write_text(_lines(recipes, trials), encoding="utf-8")

        newest = checkpoints.find_intact(held.folder)
        if newest is None:
            yield Kept((), {}, keep)
            return
        notes = checkpoints.read_notes(newest)
        _check_same(newest, notes.get("sweep"), settings)
        trials = tuple(_from_list(values) for values in notes["trials"])
        write(trials)  # a kill may have come between the checkpoint and this file
        yield Kept(trials, _states(newest, notes, task, recipes), keep)


def _states(
    path: Path, notes: Mapping[str, Any], task: Task, recipes: Sequence[Recipe]
) -> dict[int, Carried]:
    """The states in a checkpoint, which are like those of runs that start."""
    start = at_start(task, recipes, notes["runs_to_go_on"])
    like = {str(i): state for i, state in start.items()}
    arrays = {"num_trials": np.int32(0), "states": like}
    restored = checkpoints.restore(path, arrays).arrays["states"]
    return {int(name): state for name, state in restored.items()}


def _check_same(path: Path, saved: Any, now: Mapping[str, Any]) -> None:
    if saved == now:
        return
    different = [name for name in now if saved is None or saved.get(name) != now[name]]
    raise ValueError(
        f"`folder` must be a new one or hold this sweep, but in {str(path)!r} other "
        f"{' and '.join(different)} were taken. Name another folder."
    )


def _fingerprint(task: Task, recipe: Recipe) -> str:
    """Of the first batch, those that are held out, and the parameters at the start."""
    first = _cohort.next_batch(iter(task.batches(recipe)), 0)
    settings = (task.takes_key, str(task.compute_dtype))
    found = hashlib.sha256(repr(settings).encode())
    seen = (first, list(task.held_out), task.init(recipe.seed))
    for path, leaf in jax.tree_util.tree_leaves_with_path(seen):
        array = np.ascontiguousarray(leaf)
        found.update(f"{path} {array.shape} {array.dtype}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def _lines(recipes: Sequence[Recipe], trials: Sequence[Trial]) -> str:
    """A line of JSON for each trial: what differs between runs, and what it came to."""
    names = differing(recipes)
    lines = []
    for trial in trials:
        settings = recipe_settings(recipes[trial.run])
        own = {name: settings[name] for name in names}
        values = {
            "run": trial.run,
            "step": trial.step,
            "loss": _or_null(trial.loss),
            "held_out_loss": _or_null(trial.held_out),
            "has_diverged": math.isinf(trial.compared),
        }
        lines.append(json.dumps(own | values) + "\n")
    return "".join(lines)


def _or_null(loss: float | None) -> float | None:
    return loss if loss is not None and math.isfinite(loss) else None


def _as_list(trial: Trial) -> list:
    # JSON has no infinity: a string stands for it.
    return [str(x) if isinstance(x, float) else x for x in trial]


def _from_list(values: Sequence[Any]) -> Trial:
    run, step, first_loss, loss, held_out = values
    held_out = None if held_out is None else float(held_out)
    return Trial(run, step, float(first_loss), float(loss), held_out)
