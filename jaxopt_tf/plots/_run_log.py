"""The numbers of a run, from its folder: ours, or a Trainer's."""

import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._points import all_rows, no_points, with_steps
from .._run_rows import (
    GRADS,
    LEAST,
    LOSS,
    MOST,
    NUM_COLUMNS,
    RATE,
    SKIPPED,
    STEP,
    merge_steps,
    steps_as_rows,
)
from ..monitors import read_history
from ..training import Evaluation

METRICS, STATE = "metrics.jsonl", "trainer_state.json"
# Entries that are put together at a time.
_NUM_ENTRIES = 500


class RunLog(NamedTuple):
    """What a run wrote down."""

    name: str  # of its folder
    rows: np.ndarray  # [n, 9], float64: columns of `_run_rows`
    evaluations: list[tuple[int, float]]  # step and held-out loss


def read_run_log(folder: Path | str) -> RunLog:
    """The numbers of a run in a bounded number of points.

    Raises:
        ValueError: if there is no run, its log cannot be read or has no step in it.
    """
    file = log_file(folder)
    rows, evaluations = _ours(file) if is_ours(file) else _trainers(file)
    if len(rows) == 0:
        raise ValueError(
            f"`folder` must be of a run that has logged a step, got {str(folder)!r}, "
            f"whose {file.name} has none yet. Wait for the first, or name another."
        )
    return RunLog(_name(file), rows, evaluations)


def log_file(folder: Path | str) -> Path:
    """The file that a run's numbers are in.

    Raises:
        ValueError: if there is none; with the folder nearby that has one.
    """
    folder = Path(folder)
    if not folder.exists():
        raise ValueError(
            f"`folder` must be the folder of a run, got {str(folder)!r}, which does "
            "not exist. `jaxopt-tf train --output_dir` makes one."
        )
    found = _log_in(folder)
    if found is None:
        nearby = [folder.parent, *sorted(folder.glob("*/"))]
        near = [str(other) for other in nearby if _log_in(other)]
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"`folder` must hold {METRICS}, or {STATE} as a Trainer writes it (with "
            f"each of its checkpoints, too), got {str(folder)!r}, which has neither."
            f"{hint}"
        )
    return found


def is_ours(file: Path) -> bool:
    """Whether it is a file of `json_lines`, not a Trainer's."""
    return file.suffix != ".json"


def _log_in(folder: Path) -> Path | None:
    if folder.is_file():
        return folder
    if (folder / METRICS).is_file():
        return folder / METRICS
    states = [folder / STATE] if (folder / STATE).is_file() else []
    numbered = {
        int(match[1]): state
        for state in folder.glob(f"checkpoint-*/{STATE}")
        if (match := re.fullmatch(r"checkpoint-(\d+)", state.parent.name))
    }
    if numbered:
        states.append(numbered[max(numbered)])
    # The folder's own is written at the end only: a run may have gone on from it.
    is_choice = len(states) == 2
    if is_choice and _global_step(states[0]) < _global_step(states[1]):
        return states[1]
    return states[0] if states else None


def _name(file: Path) -> str:
    folder = file.absolute().parent
    is_checkpoint = re.fullmatch(r"checkpoint-\d+", folder.name) is not None
    return folder.parent.name if is_checkpoint else folder.name


def _ours(file: Path) -> tuple[np.ndarray, list[tuple[int, float]]]:
    points, evaluations = no_points(NUM_COLUMNS), []
    for event in read_history(file):
        if isinstance(event, Evaluation):
            loss = event.metrics.get("loss")
            if loss is not None:
                evaluations.append((event.step, float(loss)))
        else:
            steps = steps_as_rows(event.first_step, event.metrics)
            points = with_steps(points, steps, merge_steps)
    return all_rows(points, merge_steps), evaluations


def _trainers(file: Path) -> tuple[np.ndarray, list[tuple[int, float]]]:
    entries = _state(file)["log_history"]
    rows = np.full((len(entries), NUM_COLUMNS), np.nan)
    is_training, evaluations = np.zeros(len(entries), bool), []
    for row, entry, k in zip(rows, entries, range(len(entries)), strict=True):
        if "loss" in entry:
            is_training[k] = True
            row[STEP], row[SKIPPED] = entry["step"], 0
            row[[LOSS, LEAST, MOST]] = _number(entry["loss"])
            row[RATE] = _number(entry.get("learning_rate"))
            row[GRADS] = _number(entry.get("grad_norm"))
        elif "eval_loss" in entry:
            evaluations.append((entry["step"], _number(entry["eval_loss"])))
    rows, points = rows[is_training], no_points(NUM_COLUMNS)
    for begin in range(0, len(rows), _NUM_ENTRIES):
        some = rows[begin : begin + _NUM_ENTRIES]
        points = with_steps(points, some, merge_steps)
    return all_rows(points, merge_steps), evaluations


def _global_step(file: Path) -> int:
    return _state(file).get("global_step", 0)


def _state(file: Path) -> dict[str, Any]:
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        if all("step" in entry for entry in state["log_history"]):
            return state
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    raise ValueError(
        f"`folder` must hold {STATE} with the `log_history` of a Trainer, but "
        f"{str(file)!r} cannot be read as such. Copy it anew, or name another "
        "checkpoint."
    )


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
