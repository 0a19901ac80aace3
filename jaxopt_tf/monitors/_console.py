"""Progress bar with remaining time, loss, learning rate, gradient norm and speed."""

import math
import time
from collections import deque
from typing import Any

import jax
import numpy as np

from .. import _checks
from ..planning import peak_flops
from ..training import Evaluation, Monitor, Window, metric_values

# Number of windows over which the speed is averaged.
_NUM_RECENT = 10


def console(
    max_steps: int,
    *,
    first_step: int = 0,
    unit: str = "tokens",
    flops_per_item: float | None = None,
) -> Monitor:
    """Shows a progress bar with remaining time, loss, rate, gradient norm and speed.

        step 640/1000 ━━━━━─── 0:00:21 loss 1.734 rate 9.1e-04 norm 0.42
        31,204 bytes/s

    on one line. Evaluations and skipped steps are printed above the bar, as is any
    other output. The bar appears with the first event. Loss and norm are means over the
    steps of the last window that were not skipped. Speed and remaining time are
    measured after the first window, which contains the compilation. The speed excludes
    evaluations and saves; the remaining time includes them.

    Args:
        max_steps: number of steps of the whole run.
        first_step: step from which the run resumes.
        unit: unit of `Metrics.num_items`.
        flops_per_item: floating-point operations of the forward and backward pass per
            item: 6 times the number of parameters for a token of a language model. If
            given, the bar shows the utilization, relative to the published bfloat16
            peak of the devices. The peak of CPUs is not known.

    Raises:
        ValueError, TypeError: if a number of steps is out of range, or `flops_per_item`
            is not greater than 0.
    """
    max_steps = _checks.step_count("max_steps", max_steps, minimum=1)
    first_step = _checks.step_count("first_step", first_step)
    if flops_per_item is not None:
        _checks.positive("flops_per_item", flops_per_item)
    bar = _Bar(max_steps, first_step, unit, flops_per_item)
    return Monitor(bar.window, bar.evaluation, bar.progress.stop)


class _Bar:
    """Progress bar, with the measurements from which its numbers are computed."""

    def __init__(
        self, max_steps: int, first_step: int, unit: str, flops_per_item: float | None
    ) -> None:
        """Creates the bar, which is shown at the first event."""
        # Imported here, so that training without a console does not load it.
        from rich.progress import BarColumn, Progress, TextColumn

        self.progress = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=8),
            TextColumn("{task.fields[numbers]}", markup=False),
            # The default of rich, 10 per second, uses 1 % of a CPU core.
            refresh_per_second=2,
        )
        self._task = self.progress.add_task(
            "train", total=max_steps, completed=first_step, numbers="compiling"
        )
        self._max_steps, self._unit = max_steps, unit
        peak = peak_flops(jax.devices()[0].device_kind)
        # Time of one item if all devices reached their peak.
        self._peak_seconds_per_item: float | None = None
        if flops_per_item is not None and peak is not None:
            self._peak_seconds_per_item = flops_per_item / (peak * jax.device_count())
        # Step and time at the end of the first window, from which the remaining time is
        # measured. The first window includes the compilation.
        self._measured_from: tuple[int, float] | None = None
        self._recent: deque[tuple[float, float]] = deque(maxlen=_NUM_RECENT)
        self._num_skipped = 0

    def window(self, window: Window) -> None:
        """Updates the bar, and prints skipped steps."""
        self.progress.start()  # no effect if it has started
        metrics: Any = window.metrics  # numpy arrays
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
            if self._peak_seconds_per_item is not None:
                numbers.append(
                    f"{items / seconds * self._peak_seconds_per_item:.0%} of peak"
                )
        self.progress.update(self._task, completed=step, numbers=" ".join(numbers))
        # The training loop raises an error for the step that has stopped the run.
        skipped = np.flatnonzero(~is_taken & ~np.asarray(metrics.is_stopped))
        if len(skipped):
            self._num_skipped += len(skipped)
            listed = ", ".join(map(str, window.first_step + skipped))
            steps = "step" if len(skipped) == 1 else "steps"
            self._print(
                f"skipped {steps} {listed} (not finite), {self._num_skipped} in total"
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
        step_then, time_then = self._measured_from
        seconds_per_step = (time.perf_counter() - time_then) / (step - step_then)
        minutes, seconds = divmod(
            round(seconds_per_step * (self._max_steps - step)), 60
        )
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02d}:{seconds:02d}"

    def _print(self, line: str) -> None:
        self.progress.print(line, highlight=False, markup=False)


def _mean(column: np.ndarray) -> float:
    return float(np.mean(column)) if len(column) else math.nan
