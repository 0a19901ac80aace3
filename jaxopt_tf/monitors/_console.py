"""The progress bar: time left, loss, learning rate, gradient norm and speed."""

import math
import time
from collections import deque
from typing import Any

import jax
import numpy as np

from .. import _checks
from ..planning import peak_flops
from ..training import Evaluation, Monitor, Window, metric_values

# Windows that the speed is the mean over.
_NUM_RECENT = 10


def console(
    max_steps: int,
    *,
    first_step: int = 0,
    unit: str = "tokens",
    flops_per_item: float | None = None,
) -> Monitor:
    """Shows a progress bar: time left, loss, learning rate, gradient norm, speed.

        step 640/1000 ━━━━━─── 0:00:21 loss 1.734 rate 9.1e-04 norm 0.42
        31,204 bytes/s

    on one line. Evaluations, and steps that were skipped, are printed above it, and so
    is what anything else prints. It appears with the first event. Loss and norm are
    means over the last few steps without those skipped. The first window of a start
    contains the compilation: speed and time left are those of the steps after it. The
    speed is that of training alone; the time left is computed from all time, pauses for
    evaluations and saves included.

    Args:
        max_steps: the length of the bar.
        first_step: the step from which the run resumes.
        unit: what `Metrics.num_items` counts.
        flops_per_item: floating-point operations of forward and backward pass for one
            item: 6 times the number of parameters for a language model's token. With
            it, the share of the devices' published bfloat16 peak is shown, where that
            is known; on CPUs it is not.

    Raises:
        ValueError, TypeError: if a number of steps is out of range, or `flops_per_item`
            not greater than 0.
    """
    max_steps = _checks.step_count("max_steps", max_steps, least=1)
    first_step = _checks.step_count("first_step", first_step)
    if flops_per_item is not None:
        _checks.positive("flops_per_item", flops_per_item)
    bar = _Bar(max_steps, first_step, unit, flops_per_item)
    return Monitor(bar.window, bar.evaluation, bar.progress.stop)


class _Bar:
    """The progress bar, and what it has to remember."""

    def __init__(
        self, max_steps: int, first_step: int, unit: str, flops_per_item: float | None
    ) -> None:
        """Draws nothing before the first event."""
        # Imported here, so that training without a console does not load it.
        from rich.progress import BarColumn, Progress, TextColumn

        self.progress = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=8),
            TextColumn("{task.fields[numbers]}", markup=False),
            # The default of rich, ten times, takes a percent of a core.
            refresh_per_second=2,
        )
        self._task = self.progress.add_task(
            "train", total=max_steps, completed=first_step, numbers="compiling"
        )
        self._max_steps, self._unit = max_steps, unit
        peak = peak_flops(jax.devices()[0].device_kind)
        self._share_of_item: float | None = None  # of what all devices do in a second
        if flops_per_item is not None and peak is not None:
            self._share_of_item = flops_per_item / (peak * jax.device_count())
        # Step and time of the end of the first window, which waits for the compiler:
        # time and speed are measured from there.
        self._measured_from: tuple[int, float] | None = None
        self._recent: deque[tuple[float, float]] = deque(maxlen=_NUM_RECENT)
        self._num_skipped = 0

    def window(self, window: Window) -> None:
        """Moves the bar, and prints which steps were skipped."""
        self.progress.start()  # once; later calls do nothing
        metrics: Any = window.metrics  # of numpy arrays
        step = window.first_step + len(metrics.loss) - 1
        is_taken = ~np.asarray(metrics.is_skipped)
        numbers = [
            self._time_left(step),
            f"loss {_mean(metrics.loss[is_taken]):.3f}",
            f"rate {metrics.learning_rate[-1]:.1e}",
            f"norm {_mean(metrics.norms.grads[is_taken]):.2f}",
        ]
        if self._measured_from is None:
            self._measured_from = (step, time.perf_counter())
        elif window.seconds > 0:
            self._recent.append((float(metrics.num_items.sum()), window.seconds))
        if self._recent:
            items, seconds = np.sum(self._recent, axis=0)
            numbers.append(f"{items / seconds:,.0f} {self._unit}/s")
            if self._share_of_item is not None:
                numbers.append(f"{items / seconds * self._share_of_item:.0%} of peak")
        self.progress.update(self._task, completed=step, numbers=" ".join(numbers))
        # The step that stopped the run is reported by the training loop.
        skipped = np.flatnonzero(~is_taken & ~np.asarray(metrics.is_stopped))
        if len(skipped):
            self._num_skipped += len(skipped)
            listed = ", ".join(map(str, window.first_step + skipped))
            steps = "step" if len(skipped) == 1 else "steps"
            self._print(
                f"skipped {steps} {listed}, not finite: {self._num_skipped} so far"
            )

    def evaluation(self, evaluation: Evaluation) -> None:
        """Prints an evaluation above the bar."""
        self.progress.start()
        listed = "  ".join(
            f"{name.removeprefix('eval_')} {value:.4f}"
            for name, value in metric_values(evaluation.metrics).items()
        )
        self._print(f"step {evaluation.step:5d}  evaluation {listed}")

    def _time_left(self, step: int) -> str:
        if step >= self._max_steps:
            return "0:00:00"
        if self._measured_from is None:
            return "-:--:--"
        step_then, then = self._measured_from
        of_a_step = (time.perf_counter() - then) / (step - step_then)
        minutes, seconds = divmod(round(of_a_step * (self._max_steps - step)), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02d}:{seconds:02d}"

    def _print(self, line: str) -> None:
        self.progress.print(line, highlight=False, markup=False)


def _mean(column: np.ndarray) -> float:
    return float(np.mean(column)) if len(column) else math.nan
