"""The lines of a run's log, and the events that they were written for."""

import json
import math
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..training import Evaluation, Metrics, Norms, Window

# Name in a line, and in `Norms`.
NORM_NAMES = {"grad_norm": "grads", "update_norm": "updates", "param_norm": "params"}

# What the line of a step has at least.
_NUMBERS = ("loss", "learning_rate", *NORM_NAMES, "num_items")
_FLAGS = ("is_clipped", "is_skipped")
_of_step = operator.itemgetter(*_NUMBERS, *_FLAGS)
_NUMBER_TYPES = {float, int, bool, type(None)}

# As many steps as the loop tells of at once.
_STEPS_IN_A_WINDOW = 10


def read_history(path: Path) -> Iterator[Window | Evaluation]:
    """Gives back what `json_lines` was told, in order, to be told to others.

    Metrics have their values of then, exactly; null is NaN, `seconds` is NaN, and
    `is_stopped` False. A half-written last line is passed over. A million steps take
    some 20 seconds.

    Args:
        path: a file of `json_lines`.

    Raises:
        ValueError: if there is no such file; naming the line that cannot be read, and
            where a step is missing or there twice.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"`path` must be a file of `json_lines`, got {str(path)!r}.")
    steps: list[dict[str, Any]] = []
    for _, record in records(path):
        is_step = "loss" in record
        if steps and not (is_step and _goes_with(record, steps)):
            yield _window(steps)
            steps = []
        if is_step:
            steps.append(record)
        else:
            yield _evaluation(record)
    if steps:
        yield _window(steps)


def records(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Each line with what it says; a last one that was not finished is left out."""
    last_step = None
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            is_whole = line.endswith(b"\n")
            record = _parsed(line)
            if record is None and not is_whole:
                return
            if record is None:
                raise ValueError(
                    f"line {number} of {str(path)!r} must be a JSON object of "
                    f"`json_lines`, got {line[:80]!r}. Repair it, or move the file "
                    "away to begin another."
                )
            if "loss" in record:
                if last_step is not None and record["step"] != last_step + 1:
                    raise ValueError(
                        f"line {number} of {str(path)!r} must be step {last_step + 1}, "
                        f"got {record['step']}. Repair the file, or move it away to "
                        "begin another."
                    )
                last_step = record["step"]
            yield line if is_whole else line + b"\n", record


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The line's object; None unless it is that of a step or of an evaluation."""
    try:
        record = json.loads(line)
        if type(record["step"]) is not int:
            return None
        numbers = _of_step(record) if "loss" in record else ()
    except (ValueError, TypeError, KeyError):
        return None
    # By type, not one by one: a long log is read at every resume.
    return record if _NUMBER_TYPES.issuperset(map(type, numbers)) else None


def _goes_with(record: dict[str, Any], steps: list[dict[str, Any]]) -> bool:
    same_layers = record.get("layers", {}).keys() == steps[0].get("layers", {}).keys()
    return len(steps) < _STEPS_IN_A_WINDOW and same_layers


def _window(steps: list[dict[str, Any]]) -> Window:
    # The step that stopped a run is after every checkpoint: none is told again.
    steps = [step | {"is_stopped": False} for step in steps]
    metrics = Metrics(
        loss=_column(steps, "loss"),
        learning_rate=_column(steps, "learning_rate"),
        norms=_read_norms(steps),
        num_items=_column(steps, "num_items"),
        is_clipped=_column(steps, "is_clipped", bool),
        is_skipped=_column(steps, "is_skipped", bool),
        is_stopped=_column(steps, "is_stopped", bool),
        layers={
            name: _read_norms([step["layers"][name] for step in steps])
            for name in steps[0].get("layers", {})
        },
    )
    return Window(steps[0]["step"], metrics, math.nan)


def _read_norms(steps: list[dict[str, Any]]) -> Norms:
    return Norms(**{field: _column(steps, name) for name, field in NORM_NAMES.items()})


def _column(steps: list[dict[str, Any]], name: str, dtype: Any = np.float64) -> Any:
    # None becomes NaN.
    column = np.array([step[name] for step in steps], dtype)
    if dtype is not np.float64:
        return column
    # float32, as most runs have it, unless that loses digits of a float64 run.
    with np.errstate(over="ignore"):
        narrow = column.astype(np.float32)
    return narrow if np.array_equal(narrow, column, equal_nan=True) else column


def _evaluation(record: dict[str, Any]) -> Evaluation:
    metrics = {
        name.removeprefix("eval_"): math.nan if value is None else value
        for name, value in record.items()
        if name != "step"
    }
    return Evaluation(record["step"], metrics)
