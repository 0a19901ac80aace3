"""Log of a run with one JSON object per line, and its reader."""

import json
import math
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .. import _checks
from .._io import atomic_write, check_parent_folder
from ..training import Evaluation, Metrics, Monitor, Norms, Window, metric_values

# Name in a line -> field of `Norms`.
_NORMS = {"grad_norm": "grads", "update_norm": "updates", "param_norm": "params"}
# Required keys in the line of a step.
_NUMBERS = ("loss", "learning_rate", *_NORMS, "num_items")
_FLAGS = ("is_clipped", "is_skipped")
_step_values = operator.itemgetter(*_NUMBERS, *_FLAGS)
_NUMBER_TYPES = {float, int, bool, type(None)}

# Length of the windows of `read_history`, equal to that of the training loop.
_STEPS_IN_A_WINDOW = 10


def json_lines(path: Path, *, first_step: int = 0) -> Monitor:
    """Writes one JSON object per line: one for each step, one for each evaluation.

        {"step": 0, "eval_loss": 5.55}
        {"step": 1, "loss": 5.56, "learning_rate": 0.0, "grad_norm": 2.1,
         "update_norm": 0.0, "param_norm": 61.3, "num_items": 1024.0,
         "is_clipped": true, "is_skipped": false}

    A step also has `"layers": {name: {"grad_norm": ..., ...}}` if norms per layer are
    computed. A value that Trainer's log contains, too, has the name in that log. A
    number that is not finite is null. The file contains no times: the log of a run that
    was killed and resumed is bitwise equal to that of an uninterrupted run.

    When the monitor's function returns, the operating system has received the line, so
    that it is not lost if the process is killed. Lines are not flushed to the disk: a
    power failure can lose the last seconds.

    Args:
        path: the file; its folder must exist.
        first_step: step from which the run resumes. Lines after this step, which an
            earlier start has written, and an incomplete last line are removed; with 0,
            all lines are removed.

    Raises:
        ValueError: if the file cannot be written; or if it cannot be truncated, because
            a line other than the last cannot be read, or a step up to `first_step` is
            missing or repeated. The file is then left unchanged.
    """
    path = Path(path)
    first_step = _checks.step_count("first_step", first_step)
    check_parent_folder(path)
    try:
        if path.exists():
            _truncate(path, first_step)
        # Unbuffered: the operating system receives lines as soon as they are written.
        # After an error (disk full), closing does not try to write the rest again.
        file = path.open("ab", buffering=0)
    except OSError as error:
        raise ValueError(
            f"`path` must be a writable file, got {str(path)!r}: {error.strerror}. "
            "Pass another path, or free space."
        ) from error

    def write(lines: list[dict[str, Any]]) -> None:
        rest = "".join(json.dumps(line) + "\n" for line in lines).encode()
        try:
            # An unbuffered file may write less than it is given, without an error.
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
    """Reads a file of `json_lines`, to replay the run to other monitors.

    Metrics have exactly the values with which they were written. null is read as NaN;
    `seconds` is NaN and `is_stopped` is False. An incomplete last line is ignored.
    Reading a million steps takes about 20 seconds.

    Args:
        path: a file of `json_lines`.

    Raises:
        ValueError: if the file does not exist; if a line cannot be read, or a step is
            missing or repeated. The message contains the number of the line.
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
    """Removes the lines after `first_step`; all lines if it is 0, a new run."""
    last_kept = None
    # A new file replaces the old one atomically, and only if no error is raised.
    with atomic_write(path) as new_path, new_path.open("wb") as file:
        for line, record in _records(path):
            if first_step == 0 or record["step"] > first_step:
                continue
            file.write(line)
            if "loss" in record:
                last_kept = record["step"]
        # A run that resumes from a checkpoint of another folder has no earlier lines.
        if last_kept not in (None, first_step):
            raise ValueError(
                f"{str(path)!r} must contain every step up to {first_step}, from which "
                f"the run resumes, but ends at {last_kept}. Resume from an earlier "
                "checkpoint, or move the file to start a new one."
            )


def _records(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yields each line and its object; ignores an incomplete last line."""
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
                    f"`json_lines`, got {line[:80]!r}. Repair it, or move the file to "
                    "start a new one."
                )
            if "loss" in record:
                if last_step is not None and record["step"] != last_step + 1:
                    raise ValueError(
                        f"line {number} of {str(path)!r} must be step {last_step + 1}, "
                        f"got step {record['step']}. Repair the file, or move it to "
                        "start a new one."
                    )
                last_step = record["step"]
            yield line if is_whole else line + b"\n", record


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Returns the object of a line; None if it is not a step or an evaluation."""
    try:
        record = json.loads(line)
        if type(record["step"]) is not int:
            return None
        numbers = _step_values(record) if "loss" in record else ()
    except (ValueError, TypeError, KeyError):
        return None
    # A set comparison of types is faster than `isinstance` for each number. This
    # matters, since a resumed run reads the whole log.
    return record if _NUMBER_TYPES.issuperset(map(type, numbers)) else None


def _goes_with(record: dict[str, Any], steps: list[dict[str, Any]]) -> bool:
    same_layers = record.get("layers", {}).keys() == steps[0].get("layers", {}).keys()
    return len(steps) < _STEPS_IN_A_WINDOW and same_layers


def _window(steps: list[dict[str, Any]]) -> Window:
    numbers = {name: _column(steps, name) for name in ("learning_rate", "num_items")}
    flags: Any = {name: np.array([s[name] for s in steps], bool) for name in _FLAGS}
    # A step that has stopped a run is after every checkpoint, so that its line is
    # removed when the run resumes.
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
    # float32 if it represents all values exactly; else the run was in float64.
    with np.errstate(over="ignore"):
        narrow = column.astype(np.float32)
    return narrow if np.array_equal(narrow, column, equal_nan=True) else column


def _rows(columns: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns columns as one dictionary for each step."""
    # `tolist` converts to Python floats. They represent every float32 exactly, and
    # `json` writes them with as many digits as are required to read them back exactly.
    lists = [map(_or_null, np.asarray(column).tolist()) for column in columns.values()]
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)
    ]


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None
