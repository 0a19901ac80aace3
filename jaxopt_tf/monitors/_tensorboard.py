"""Monitor that writes event files for TensorBoard."""

import contextlib
import functools
import importlib.util
import struct
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .. import _checks
from ..training import Evaluation, Metrics, Monitor, Norms, Window, metric_values

# A point contains the last learning rate, the number of skipped steps, and means of all
# other tags.
_RATE, _SKIPPED = "train/learning_rate", "train/num_skipped"


def tensorboard(
    folder: Path,
    *,
    first_step: int = 0,
    every: int = 10,
    logging_first_step: bool = False,
) -> Monitor:
    """Writes scalars for `tensorboard --logdir`.

        train/   loss, learning_rate, share_clipped, num_skipped
        norms/   gradient, update, parameter, update_ratio (update over parameter)
        eval/    loss, and the other metrics of an evaluation
        layers/  NAME/gradient, NAME/update, NAME/parameter, if computed

    A point is written at each step that is a multiple of `every`. It contains means of
    the finite values since the previous point (or since the run was resumed), the last
    learning rate, and the number of skipped steps. When the monitor's function returns,
    the operating system has received the point.

    The cost is 0.02 ms per step on one core, 0.2 ms with 50 layers, for `every=10`.

    Args:
        folder: folder of the event files; created if it does not exist. Each start of a
            run writes one file.
        first_step: the last step that previous starts completed, after which the run
            resumes; 0 for a new run. Points after `first_step` that previous starts
            wrote are hidden. If it is 0, all points of previous starts are hidden.
        every: steps between points; at least 1.
        logging_first_step: whether there is a point at step 1, too.

    Raises:
        ValueError: if `every` is below 1, or the folder is not writable.
    """
    every = _checks.step_count("every", every, minimum=1)
    first_step = _checks.step_count("first_step", first_step)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files in the order of their names. The name contains the
        # step to order two starts in the same second. If their steps are equal, too,
        # this start overwrites the file of the earlier start. This loses nothing,
        # because this start hides all points of that file.
        name = f"events.out.tfevents.{int(time.time()):010d}.{first_step:010d}"
        file = _EventFile(folder / name)
    except OSError as error:
        raise ValueError(
            f"`folder` must be a writable folder, got {str(folder)!r}: "
            f"{error.strerror}. Pass another folder, or free space."
        ) from error
    # `first_step` is the last completed step of previous starts: their points after it
    # are hidden. A new run (`first_step` 0) also hides their evaluation at step 0.
    file.hide_from(first_step + 1 if first_step else 0)
    pending: list[np.ndarray] = []  # [tags, n] each: steps since the last point

    def window(window: Window) -> None:
        tags, columns = _columns(window.metrics)
        begin, size = 0, len(window.metrics.loss)
        while begin < size:
            # A slice ends at the next multiple of `every`, where a point is written, or
            # at the end of the window, where it stays pending.
            end = min(size, begin + every - (window.first_step + begin - 1) % every)
            if logging_first_step and window.first_step + begin == 1:
                end = begin + 1
            pending.append(columns[:, begin:end])
            begin, step = end, window.first_step + end - 1
            if step % every == 0 or (logging_first_step and step == 1):
                values = _point(tags, np.concatenate(pending, axis=1))
                file.write_point(step, dict(zip(tags, values.tolist(), strict=True)))
                pending.clear()

    def evaluation(evaluation: Evaluation) -> None:
        values = {
            f"eval/{name.removeprefix('eval_')}": value
            for name, value in metric_values(evaluation.metrics).items()
        }
        file.write_point(evaluation.step, values)

    return Monitor(window, evaluation, file.close)


class _EventFile:
    """Event file of TensorBoard.

    `SummaryWriter` of tensorboardX is not used, because it writes events in a thread.
    If the process were killed, events from before the last checkpoint would be lost,
    and the resumed run would not write them again. After an error of the thread (disk
    full), the next call would block forever. Only the message types and the checksum of
    tensorboardX are used.
    """

    def __init__(self, path: Path) -> None:
        """Opens a new file, unbuffered."""
        self._file = path.open("wb", buffering=0)
        self.close = self._file.close
        self._write(file_version="brain.Event:2")

    def hide_from(self, step: int) -> None:
        """Hides the points of earlier files at this step and later steps."""
        # TensorBoard discards ("purges") these points when it reads a session start in
        # a file of version 2.
        log = _tensorboardx().session_log
        self._write(step=step, session_log=log(status=log.START))

    def write_point(self, step: int, values: dict[str, float]) -> None:
        """Writes values by tag."""
        summary = _tensorboardx().summary
        summaries = [summary.Value(tag=t, simple_value=v) for t, v in values.items()]
        self._write(step=step, summary=summary(value=summaries))

    def _write(self, **fields: Any) -> None:
        library = _tensorboardx()
        # A record in the TFRecord format: length as uint64, CRC of the length as
        # uint32, content, CRC of the content as uint32; all little-endian.
        content = library.event(wall_time=time.time(), **fields).SerializeToString()
        record = b""
        for part in (struct.pack("<Q", len(content)), content):
            record += part + struct.pack("<I", library.masked_crc32c(part))
        unwritten = record
        while unwritten:
            unwritten = unwritten[self._file.write(unwritten) :]


@functools.cache
def _tensorboardx() -> types.SimpleNamespace:
    """Imports the parts of tensorboardX that write an event.

    The function is called when a file is opened, so that training without TensorBoard
    imports nothing.
    """
    with _without_init("tensorboardX"):
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.record_writer import masked_crc32c
    return types.SimpleNamespace(
        event=Event,
        session_log=SessionLog,
        summary=Summary,
        masked_crc32c=masked_crc32c,
    )


@contextlib.contextmanager
def _without_init(package: str) -> Iterator[None]:
    """Context in which imports of a package's modules do not run its `__init__`.

    The `__init__` of tensorboardX imports torch if torch is installed, which takes
    seconds before the first step of each start.
    """
    spec = None if package in sys.modules else importlib.util.find_spec(package)
    if spec is None:  # imported already, or not installed
        yield
        return
    # Python does not run `__init__` if `sys.modules` has an entry for the package.
    sys.modules[package] = importlib.util.module_from_spec(spec)
    try:
        yield
    finally:
        # A later import by the user finds no such entry, and runs `__init__`.
        for name in [n for n in sys.modules if n.split(".")[0] == package]:
            del sys.modules[name]


def _columns(metrics: Metrics) -> tuple[list[str], np.ndarray]:
    """Returns the tags, and an array [tags, n], float64, with a row for each tag."""
    # The parameter norm is 0 if all parameters are 0.
    with np.errstate(divide="ignore", invalid="ignore"):
        update_ratio = metrics.norms.update_ratio
    columns = {
        "train/loss": metrics.loss,
        _RATE: metrics.learning_rate,
        "train/share_clipped": metrics.is_clipped,
        _SKIPPED: metrics.is_skipped,
        **_norms("norms", metrics.norms),
        "norms/update_ratio": update_ratio,
    }
    for name, norms in metrics.layers.items():
        columns |= _norms(f"layers/{name}", norms)
    return list(columns), np.array(list(columns.values()), np.float64)


def _norms(group: str, norms: Norms) -> dict[str, Any]:
    return {
        f"{group}/gradient": norms.grads,
        f"{group}/update": norms.updates,
        f"{group}/parameter": norms.params,
    }


def _point(tags: list[str], columns: np.ndarray) -> np.ndarray:
    is_finite = np.isfinite(columns)
    # Without any finite value, the mean is 0 / 0 = NaN.
    with np.errstate(invalid="ignore"):
        values = np.where(is_finite, columns, 0.0).sum(axis=1) / is_finite.sum(axis=1)
    values[tags.index(_RATE)] = columns[tags.index(_RATE), -1]
    values[tags.index(_SKIPPED)] = columns[tags.index(_SKIPPED)].sum()
    return values
