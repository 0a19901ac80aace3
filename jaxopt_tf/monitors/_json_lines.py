"""Every step and every evaluation as a line of JSON."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from .. import _checks
from .._io import check_folder, whole_file
from ..training import Evaluation, Metrics, Monitor, Norms, Window, metric_values
from ._history import NORM_NAMES, records


def json_lines(path: Path, *, first_step: int = 0) -> Monitor:
    """One JSON object per line: one for each step, one for each evaluation.

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
        first_step: the step that the run goes on from. What an earlier start wrote
            after it is cut off first, and a half-written last line; with 0, all.

    Raises:
        ValueError: if the file cannot be written; or if it cannot be cut back, as a
            line that is not the last cannot be read, or a step up to `first_step` is
            missing or there twice. It is left as it is then.
    """
    path = Path(path)
    first_step = _checks.step_count("first_step", first_step)
    check_folder(path)
    try:
        if path.exists():
            _cut_back(path, first_step)
        # Unbuffered: lines are with the system as soon as they are written, and none is
        # left over that closing would try to write once more to a full disk.
        file = path.open("ab", buffering=0)
    except OSError as error:
        raise ValueError(
            f"`path` must be a file that can be written, got {str(path)!r}: "
            f"{error.strerror}. Name another, or make room."
        ) from error

    def write(lines: str) -> None:
        rest = lines.encode()
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as error:
            raise OSError(
                f"The log {str(path)!r} could not be written: {error.strerror}. Make "
                "room, and start again: a half-written line is cut off."
            ) from error

    def window(window: Window) -> None:
        columns = _columns(window.metrics)
        layers = {name: _norms(norms) for name, norms in window.metrics.layers.items()}
        lines = []
        for i in range(len(window.metrics.loss)):
            line = {"step": window.first_step + i} | _row(columns, i)
            if layers:
                line["layers"] = {
                    name: _row(norms, i) for name, norms in layers.items()
                }
            lines.append(json.dumps(line) + "\n")
        write("".join(lines))

    def evaluation(evaluation: Evaluation) -> None:
        line: dict[str, Any] = {"step": evaluation.step}
        for name, value in metric_values(evaluation.metrics).items():
            line[f"eval_{name.removeprefix('eval_')}"] = _or_null(value)
        write(json.dumps(line) + "\n")

    return Monitor(window, evaluation, file.close)


def _cut_back(path: Path, first_step: int) -> None:
    """Takes off what comes after `first_step`; all of it at 0, where a run is new."""
    last_kept = None
    with whole_file(path) as new_path, new_path.open("wb") as file:
        for line, record in records(path):
            if first_step == 0 or record["step"] > first_step:
                continue
            file.write(line)
            if "loss" in record:
                last_kept = record["step"]
        # A run that went on from elsewhere has none up to its first step.
        if last_kept not in (None, first_step):
            raise ValueError(
                f"{str(path)!r} must hold every step up to {first_step}, from which "
                f"the run goes on, but ends at {last_kept}. Go on from an earlier "
                "checkpoint, or move the file away to begin another."
            )


def _columns(metrics: Metrics) -> dict[str, list]:
    return {
        "loss": _finite(metrics.loss),
        "learning_rate": _finite(metrics.learning_rate),
        **_norms(metrics.norms),
        "num_items": _finite(metrics.num_items),
        "is_clipped": np.asarray(metrics.is_clipped).tolist(),
        "is_skipped": np.asarray(metrics.is_skipped).tolist(),
    }


def _norms(norms: Norms) -> dict[str, list]:
    return {name: _finite(getattr(norms, field)) for name, field in NORM_NAMES.items()}


def _finite(column: Any) -> list[float | None]:
    # As doubles, which hold every float32: they come back as they were.
    return [_or_null(value) for value in np.asarray(column).tolist()]


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _row(columns: dict[str, list], i: int) -> dict[str, Any]:
    return {name: column[i] for name, column in columns.items()}
