"""Metrics of a run, downsampled to a bounded number of points."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..monitors import read_history
from ..training import Evaluation, Window, metric_values

_METRICS, _STATE = "metrics.jsonl", "trainer_state.json"
_CHECKPOINT = re.compile(r"checkpoint-\d+")
# Minimum number of points of a run with more steps; the maximum is twice as many. A
# figure is 800 pixels wide.
_NUM_POINTS = 2_000
# Number of entries of a Trainer's log that are added at a time.
_NUM_ENTRIES = 500


class Steps(NamedTuple):
    """Metrics of a run, [n] float64 each; a point is one step or several merged steps.

    Fields are means over the steps of a point, if not stated otherwise.
    """

    step: np.ndarray
    loss: np.ndarray  # training loss; NaN for skipped steps
    lowest: np.ndarray  # lowest training loss
    highest: np.ndarray  # highest training loss
    rate: np.ndarray  # learning rate of the last step
    grads: np.ndarray  # gradient norm
    updates: np.ndarray  # update norm
    params: np.ndarray  # parameter norm
    skipped: np.ndarray  # number of skipped steps

    @property
    def update_ratio(self) -> np.ndarray:
        """Update norm divided by parameter norm; NaN if one of them is missing."""
        return self.updates / np.where(self.params > 0, self.params, np.nan)


class RunLog(NamedTuple):
    """Metrics of a run."""

    name: str  # name of the run's folder
    steps: Steps
    evaluations: list[tuple[int, float]]  # step and evaluation loss


class Downsampler:
    """Rows of numbers, one for each step, merged into a bounded number of points.

    When there are twice `num_points` points, each two neighbours are merged, and the
    number of steps per point doubles.

    Args:
        num_columns: number of columns of a row.
        merge: function that merges neighbours: [n, size, columns] -> [n, columns].
        num_points: minimum number of points of a run with more steps; the maximum is
            twice as many.
    """

    def __init__(
        self,
        num_columns: int,
        merge: Callable[[np.ndarray], np.ndarray],
        num_points: int = _NUM_POINTS,
    ) -> None:
        """Creates a downsampler without rows."""
        self.stride = 1  # number of steps per point
        self.points = np.empty((0, num_columns))  # [n, columns], float64
        self.rest = self.points  # last steps, fewer than `stride`: not a point yet
        self._merge, self._num_points = merge, num_points

    def add(self, steps: np.ndarray) -> None:
        """Adds further steps, [n, columns]."""
        steps = np.concatenate([self.rest, steps])
        num_whole = len(steps) // self.stride * self.stride
        self.rest = steps[num_whole:]
        if num_whole == 0:  # the usual case in a long run: avoids copying all points
            return
        new = self._merged(steps[:num_whole], self.stride)
        self.points = np.concatenate([self.points, new])
        # An odd number of points cannot be merged in pairs: merging is deferred until
        # there is one more.
        if len(self.points) >= 2 * self._num_points and len(self.points) % 2 == 0:
            self.points, self.stride = self._merged(self.points, 2), 2 * self.stride

    def add_columns(self, num_columns: int) -> None:
        """Adds columns, which are NaN in all rows so far."""
        wider = ((0, 0), (0, num_columns))
        self.points, self.rest = (
            np.pad(part, wider, constant_values=np.nan)
            for part in (self.points, self.rest)
        )

    def rows(self) -> np.ndarray:
        """Returns all points, [n, columns]; the last point may have fewer steps."""
        last = self._merged(self.rest, len(self.rest))
        return np.concatenate([self.points, last])

    def _merged(self, rows: np.ndarray, size: int) -> np.ndarray:
        if len(rows) == 0:
            return rows
        return self._merge(rows.reshape(-1, size, rows.shape[1]))


class RunRecorder:
    """Recorder of the events that a monitor receives."""

    def __init__(self) -> None:
        """Creates a recorder without steps."""
        self.points = Downsampler(len(Steps._fields), _merge_steps)
        self.evaluations: list[tuple[int, float]] = []

    def window(self, window: Window) -> None:
        """Adds the steps of a window."""
        self.points.add(_rows_of(window))

    def evaluation(self, evaluation: Evaluation) -> None:
        """Adds an evaluation; one without a loss is ignored."""
        metrics = metric_values(evaluation.metrics)
        loss = metrics.get("loss", metrics.get("eval_loss"))
        if loss is not None:
            self.evaluations.append((evaluation.step, loss))

    def log(self, name: str = "") -> RunLog:
        """Returns the recorded metrics."""
        return RunLog(name, Steps(*self.points.rows().T), self.evaluations)


def read_run_log(folder: Path | str) -> RunLog:
    """Reads the metrics of a run from its folder or its log.

    Raises:
        ValueError: if the folder contains no run, or its log cannot be read or contains
            no steps.
    """
    file, recorder = log_file(folder), RunRecorder()
    if is_metrics_log(file):
        for event in read_history(file):
            if isinstance(event, Window):
                recorder.window(event)
            else:
                recorder.evaluation(event)
    else:
        _read_trainer_state(file, recorder)
    log = recorder.log(_run_name(file))
    if len(log.steps.step) == 0:
        raise ValueError(
            f"`folder` must be of a run that has logged a step, got {str(folder)!r}, "
            f"whose {file.name} contains none. Wait for the first step, or name "
            "another folder."
        )
    return log


def log_file(folder: Path | str) -> Path:
    """Returns the file that contains the metrics of a run.

    Raises:
        ValueError: if there is no such file. The message names a folder nearby that
            contains one, if any.
    """
    folder = Path(folder)
    if not folder.exists():
        raise ValueError(
            f"`folder` must be the folder of a run, got {str(folder)!r}, which does "
            "not exist. `jaxopt-tf train --output_dir` creates one."
        )
    found = _log_in(folder)
    if found is None:
        nearby = [folder.parent, *sorted(folder.glob("*/"))]
        nearby_logs = [str(other) for other in nearby if _log_in(other)]
        hint = f" Did you mean {nearby_logs[0]!r}?" if nearby_logs else ""
        raise ValueError(
            f"`folder` must contain {_METRICS}, or {_STATE} of a Trainer (which it "
            f"writes to each checkpoint), got {str(folder)!r}, which has neither."
            f"{hint}"
        )
    return found


def is_metrics_log(file: Path) -> bool:
    """Returns True if a log was written by `json_lines`, and not by a Trainer."""
    return file.suffix != ".json"


def finite_mean(groups: np.ndarray) -> np.ndarray:
    """Returns the mean of the finite numbers over axis 1; NaN if there are none."""
    is_finite = np.isfinite(groups)
    total = np.where(is_finite, groups, 0.0).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return total / is_finite.sum(axis=1)


def _rows_of(window: Window) -> np.ndarray:
    """Returns the steps of a window as rows."""
    metrics: Any = window.metrics  # of numpy arrays
    loss = np.where(metrics.is_skipped, np.nan, metrics.loss)
    updates = np.where(metrics.is_skipped, np.nan, metrics.norms.updates)
    norms = (metrics.norms.grads, updates, metrics.norms.params)
    steps = window.first_step + np.arange(len(loss))
    columns = (steps, *3 * [loss], metrics.learning_rate, *norms, metrics.is_skipped)
    return np.stack(columns, axis=1).astype(np.float64)


def _merge_steps(groups: np.ndarray) -> np.ndarray:
    """Merges neighbouring rows, [n, size, 9] -> [n, 9].

    Columns are averaged, except for the range of the loss, the rate and skipped steps.
    """
    steps = Steps(*np.moveaxis(groups, 2, 0))  # [n, size] each
    merged = Steps(*finite_mean(groups).T)._replace(
        lowest=np.fmin.reduce(steps.lowest, axis=1),
        highest=np.fmax.reduce(steps.highest, axis=1),
        rate=steps.rate[:, -1],
        skipped=steps.skipped.sum(axis=1),
    )
    return np.stack(merged, axis=1)


def _log_in(folder: Path) -> Path | None:
    if folder.is_file():
        return folder
    if (folder / _METRICS).is_file():
        return folder / _METRICS
    states = [folder / _STATE] if (folder / _STATE).is_file() else []
    checkpoints = [
        state
        for state in folder.glob(f"checkpoint-*/{_STATE}")
        if _CHECKPOINT.fullmatch(state.parent.name)
    ]
    states += sorted(checkpoints, key=lambda x: int(x.parent.name[11:]))[-1:]
    if len(states) < 2:
        return states[0] if states else None
    # A Trainer writes the state of the folder itself only at the end of a run, and the
    # run may have been resumed since. `max` returns the first of equal elements, which
    # is the state of the folder.
    return max(states, key=lambda state: _read_state(state).get("global_step", 0))


def _run_name(file: Path) -> str:
    folder = file.absolute().parent
    return (folder.parent if _CHECKPOINT.fullmatch(folder.name) else folder).name


def _read_trainer_state(file: Path, recorder: RunRecorder) -> None:
    rows = []
    for entry in _read_state(file)["log_history"]:
        if "loss" in entry:
            norms = (entry.get("grad_norm"), None, None)
            rate = entry.get("learning_rate")
            rows.append((entry["step"], *3 * [entry["loss"]], rate, *norms, 0))
        elif "eval_loss" in entry:
            loss = entry["eval_loss"]
            loss = math.nan if loss is None else float(loss)
            recorder.evaluations.append((entry["step"], loss))
    for begin in range(0, len(rows), _NUM_ENTRIES):
        # NumPy converts None to NaN for a float dtype.
        recorder.points.add(np.array(rows[begin : begin + _NUM_ENTRIES], np.float64))


def _read_state(file: Path) -> dict[str, Any]:
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        if all("step" in entry for entry in state["log_history"]):
            return state
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    raise ValueError(
        f"`folder` must contain {_STATE} with the `log_history` of a Trainer, but "
        f"{str(file)!r} cannot be read as such. Copy it again, or pass another "
        "checkpoint."
    )
