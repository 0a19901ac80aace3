"""The log of a run: a line of JSON for each step and each evaluation; its reader."""

import json
import math
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .. import _checks
from .._io import atomic_write, check_folder
from ..training import Evaluation, Metrics, Monitor, Norms, Window, metric_values

# Name in a line -> field of `Norms`.
_NORMS = {"grad_norm": "grads", "update_norm": "updates", "param_norm": "params"}
# What the line of a step has at least.
_NUMBERS = ("loss", "learning_rate", *_NORMS, "num_items")
_FLAGS = ("is_clipped", "is_skipped")
_of_step = operator.itemgetter(*_NUMBERS, *_FLAGS)
_NUMBER_TYPES = {float, int, bool, type(None)}

# `read_history` returns windows as long as those of the training loop.
_STEPS_IN_A_WINDOW = 10


def json_lines(path: Path, *, first_step: int = 0) -> Monitor:
    """Writes one JSON object per line: one for each step, one for each evaluation.

        {"step": 0, "eval_loss": 5.55}
        {"step": 1, "loss": 5.56, "learning_rate": 0.0, "grad_norm": 2.1,
         "update_norm": 0.0, "param_norm": 61.3, "num_items": 1024.0,
         "is_clipped": true, "is_skipped": false}

    and `"layers": {name: {"grad_norm": ..., ...}}` where there are any. The names are
    those of the Trainer's log where it has them. A number that is not finite is null.
    Nothing in it depends on the clock: the file of a run that was killed and resumed is
    that of an unbroken one, byte for byte.

    A line is in the file when the monitor returns, and outlives the process; it is not
    forced to the disk at every step, so a power cut can cost the last seconds.

    Args:
        path: the file; its folder must exist.
        first_step: the step from which the run resumes. Lines of an earlier start after
            this step are cut off first, and a half-written last line; with 0, all.

    Raises:
        ValueError: if the file cannot be written; or if it cannot be cut back, since a
            line that is not the last cannot be read, or a step up to `first_step` is
            missing or repeated. The file is left unchanged then.
    """
    path = Path(path)
    first_step = _checks.step_count("first_step", first_step)
    check_folder(path)
    try:
        if path.exists():
            _truncate(path, first_step)
        # Unbuffered: the system has lines as soon as they are written, and closing
        # does not try to write the rest once more to a full disk.
        file = path.open("ab", buffering=0)
    except OSError as error:
        raise ValueError(
            f"`path` must be a file that can be written, got {str(path)!r}: "
            f"{error.strerror}. Name another, or free space."
        ) from error

    def write(lines: list[dict[str, Any]]) -> None:
        rest = "".join(json.dumps(line) + "\n" for line in lines).encode()
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as error:
            raise OSError(
                f"The log {str(path)!r} could not be written: {error.strerror}. Free "
                "space, and start again: an incomplete line is removed."
            ) from error

    def window(window: Window) -> None:
        metrics = window.metrics
        lines = _rows(
            {
                "step": window.first_step + np.arange(len(metrics.loss)),
                "loss": metrics.loss,
                "learning_rate": metrics.learning_rate,
                **_norm_columns(metrics.norms),
                "num_items": metrics.num_items,
                "is_clipped": metrics.is_clipped,
                "is_skipped": metrics.is_skipped,
            }
        )
        layers = {
            name: _rows(_norm_columns(norms)) for name, norms in metrics.layers.items()
        }
        for i, line in enumerate(lines):
            if layers:
                line["layers"] = {name: rows[i] for name, rows in layers.items()}
        write(lines)

    def evaluation(evaluation: Evaluation) -> None:
        line: dict[str, Any] = {"step": evaluation.step}
        for name, value in metric_values(evaluation.metrics).items():
            line[f"eval_{name.removeprefix('eval_')}"] = _or_null(value)
        write([line])

    return Monitor(window, evaluation, file.close)


def read_history(path: Path) -> Iterator[Window | Evaluation]:
    """Reads what `json_lines` has written, in order, to report it to other monitors.

    Metrics have the values that they had, exactly; null is NaN, `seconds` is NaN, and
    `is_stopped` False. A half-written last line is left out. A million steps take about
    20 seconds.

    Args:
        path: a file of `json_lines`.

    Raises:
        ValueError: if there is no such file; naming the line that cannot be read, or
            at which a step is missing or repeated.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"`path` must be a file of `json_lines`, got {str(path)!r}.")
    steps: list[dict[str, Any]] = []
    for _, record in _records(path):
        is_step = "loss" in record
        if steps and not (is_step and _goes_with(record, steps)):
            yield _window(steps)
            steps = []
        if is_step:
            steps.append(record)
        else:
            metrics = {
                name.removeprefix("eval_"): math.nan if value is None else value
                for name, value in record.items()
                if name != "step"
            }
            yield Evaluation(record["step"], metrics)
    if steps:
        yield _window(steps)


def _truncate(path: Path, first_step: int) -> None:
    """Removes what comes after `first_step`; everything if it is 0, for a new run."""
    last_kept = None
    with atomic_write(path) as new_path, new_path.open("wb") as file:
        for line, record in _records(path):
            if first_step == 0 or record["step"] > first_step:
                continue
            file.write(line)
            if "loss" in record:
                last_kept = record["step"]
        # A run that resumes from another folder has no steps up to its first.
        if last_kept not in (None, first_step):
            raise ValueError(
                f"{str(path)!r} must hold every step up to {first_step}, from which "
                f"the run resumes, but ends at {last_kept}. Resume from an earlier "
                "checkpoint, or move the file away to begin another."
            )


def _records(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Returns each line and its object; leaves out a last line that is not finished."""
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
    """Returns the object of a step or an evaluation; None if the line has none."""
    try:
        record = json.loads(line)
        if type(record["step"]) is not int:
            return None
        numbers = _of_step(record) if "loss" in record else ()
    except (ValueError, TypeError, KeyError):
        return None
    # By type, which is faster than one by one: long logs are read at every resume.
    return record if _NUMBER_TYPES.issuperset(map(type, numbers)) else None


def _goes_with(record: dict[str, Any], steps: list[dict[str, Any]]) -> bool:
    same_layers = record.get("layers", {}).keys() == steps[0].get("layers", {}).keys()
    return len(steps) < _STEPS_IN_A_WINDOW and same_layers


def _window(steps: list[dict[str, Any]]) -> Window:
    numbers = {name: _column(steps, name) for name in ("learning_rate", "num_items")}
    flags: Any = {name: np.array([s[name] for s in steps], bool) for name in _FLAGS}
    # The step that stopped a run is after every checkpoint, and is never read.
    flags["is_stopped"] = np.zeros(len(steps), bool)
    metrics = Metrics(
        loss=_column(steps, "loss"),
        norms=_read_norms(steps),
        **numbers,
        **flags,
        layers={
            name: _read_norms([step["layers"][name] for step in steps])
            for name in steps[0].get("layers", {})
        },
    )
    return Window(steps[0]["step"], metrics, math.nan)


def _read_norms(steps: list[dict[str, Any]]) -> Norms:
    return Norms(**{field: _column(steps, name) for name, field in _NORMS.items()})


def _norm_columns(norms: Norms) -> dict[str, Any]:
    return {name: getattr(norms, field) for name, field in _NORMS.items()}


def _column(steps: list[dict[str, Any]], name: str) -> Any:
    column = np.array([step[name] for step in steps], np.float64)  # None becomes NaN
    # float32, as in most runs, unless that loses digits of a float64 run.
    with np.errstate(over="ignore"):
        narrow = column.astype(np.float32)
    return narrow if np.array_equal(narrow, column, equal_nan=True) else column


def _rows(columns: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns columns as one dictionary for each step."""
    # As Python's doubles, which hold every float32: they are read back unchanged.
    lists = [map(_or_null, np.asarray(column).tolist()) for column in columns.values()]
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)
    ]


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None
