"""Training loop: training steps, monitors, evaluations and checkpoints."""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import _checks
from .._typing import PyTree
from ..schedules import MetricDrivenSchedule
from . import _evaluation
from ._evaluation import Evaluation, Selection
from ._gradients import Batch
from ._resume import RunState
from ._state import (
    Metrics,
    TrainState,
    device_put_like,
    evaluation_params,
    with_learning_rate,
)
from ._step import TrainStep

# Number of steps whose metrics are stacked on the device and fetched together.
_WINDOW = 10

_LOWEST_LOSS = Selection()


class Window(NamedTuple):
    """Metrics of consecutive steps, on the host."""

    first_step: int  # number of the first step; the first step of a run is 1
    metrics: Metrics  # [n] each, numpy: one entry per step
    # Wall time since the last window, evaluation or save, whichever was last. It is the
    # time of these steps, without evaluations and saves; NaN if not measured.
    seconds: float


class Monitor(NamedTuple):
    """Functions that receive the metrics of a run; unused ones are `lambda _: None`.

    A monitor that writes a file must have passed its output to the operating system
    when `window` or `evaluation` returns: a checkpoint may be saved next, and a resumed
    run expects that the file contains all earlier steps.
    """

    window: Callable[[Window], None]
    evaluation: Callable[[Evaluation], None]
    close: Callable[[], None]  # called once, also if the run is interrupted


class Trained(NamedTuple):
    """Result of `train`."""

    run_state: RunState  # state after the last step
    stop_reason: str  # "max_steps", "early_stopping" or "should_stop"

    @property
    def state(self) -> TrainState:
        """Train state after the last step."""
        return self.run_state.state


def train(
    train_step: TrainStep,
    start: TrainState | RunState,
    batches: Iterable[Batch],
    *,
    max_steps: int,
    monitors: Sequence[Monitor] = (),
    evaluate: Callable[[PyTree], Mapping[str, float]] | None = None,
    eval_steps: int | None = None,
    selection: Selection = _LOWEST_LOSS,
    metric_schedule: MetricDrivenSchedule | None = None,
    save: Callable[[RunState], Any] | None = None,
    save_steps: int | None = None,
    save_best: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> Trained:
    """Trains until step `max_steps`, which includes the steps made before `start`.

    The host does not wait for the device at every step: it dispatches steps, and
    fetches the metrics of a window of steps while the next window is computed. If
    evaluation and saving are due at the same step, evaluation comes first. Monitors
    have then received all steps up to this one.

    Args:
        train_step: from `make_train_step`.
        start: initial state, or the state of an interrupted run; its buffers are
            donated to the first step.
        batches: batches from the step of `start` on. No more batches are consumed than
            steps are made.
        max_steps: number of steps of the whole run; at least 1.
        monitors: receive every window of steps and every evaluation; closed at the end,
            also if the run is interrupted.
        evaluate: function from params to evaluation metrics, see `make_evaluate`;
            called before step 1 (this result goes to monitors, not to `selection` or
            `metric_schedule`), every `eval_steps` and after the last step. If the
            optimizer averages the parameters, `evaluate` receives the average, see
            `evaluation_params`.
        eval_steps: steps between evaluations; None to evaluate only at start and end.
        selection: settings of model selection and early stopping.
        metric_schedule: sets the rate after every evaluation except the one before step
            1. The optimizer must be built with a float as its rate.
        save: function that saves a `RunState`, see `save_run_state`; called every
            `save_steps`, when the run ends, and when it is stopped.
        save_steps: steps between saves; None to save only at the end.
        save_best: whether to save after every evaluation that is the best so far.
        should_stop: called before the first step and after every step; training ends if
            it returns True.

    Returns:
        The state after the last step, and the reason for the end.

    Raises:
        ValueError: if a number of steps is below 1, or there are too few batches.
        FloatingPointError: if a step has stopped the run because a loss or gradient was
            not finite. It is raised when the metrics of the step's window are fetched,
            and its message contains the step.

    Source: transformers 5.23 `trainer.py`, `_maybe_log_save_evaluate`.
    """
    max_steps = _checks.step_count("max_steps", max_steps, minimum=1)
    for name, steps in (("eval_steps", eval_steps), ("save_steps", save_steps)):
        if steps is not None:
            _checks.step_count(name, steps, minimum=1)
    _evaluation.check_selection(selection)
    if isinstance(start, TrainState):
        start = RunState(start)
    if metric_schedule is not None and start.schedule_state is None:
        start = start._replace(schedule_state=metric_schedule.init())
    run = _Run(start, monitors, evaluate, selection, metric_schedule, save)
    try:
        # The evaluation before step 1 is not repeated when a run is resumed.
        if run.step == 0:
            run.evaluate()
        reason = run.reason_to_stop(should_stop)
        remaining = 0 if reason else max(0, max_steps - run.step)
        # `islice` does not consume a batch after the last step, as `zip` would.
        for batch in itertools.islice(batches, remaining):
            run.take_step(train_step, batch)
            is_last = run.step == max_steps
            is_save_due = is_last or _is_due(run.step, save_steps)
            if is_last or _is_due(run.step, eval_steps):
                is_best = run.evaluate_and_adapt()
                is_save_due = is_save_due or (save_best and is_best)
            reason = run.reason_to_stop(should_stop)
            if is_save_due or reason:
                run.save()
            if reason:
                break
        run.report()
        if run.step < max_steps and not reason:
            if run.step > run.start_step:
                run.save()
            raise ValueError(
                f"`batches` must contain a batch for every step up to `max_steps` = "
                f"{max_steps}, but ended after step {run.step}. Repeat the data, or "
                "reduce `max_steps`."
            )
    # `BaseException` includes KeyboardInterrupt, after which files of monitors must be
    # closed, too.
    except BaseException as error:
        if isinstance(error, FloatingPointError):
            run.save_last_finite_state()
        for monitor in monitors:
            with contextlib.suppress(Exception):  # would replace `error`
                monitor.close()
        raise
    for monitor in monitors:
        monitor.close()
    stop_reason = reason if reason and run.step < max_steps else "max_steps"
    return Trained(run.run_state, stop_reason)


@dataclasses.dataclass
class _Run:
    """A run in progress, and the metrics that monitors have not received yet."""

    run_state: RunState
    monitors: Sequence[Monitor]
    eval_function: Callable[[PyTree], Mapping[str, float]] | None
    selection: Selection
    metric_schedule: MetricDrivenSchedule | None
    save_function: Callable[[RunState], Any] | None

    def __post_init__(self) -> None:
        # Number of steps so far, and before this call of `train`.
        self.step = self.start_step = int(self.run_state.state.step)
        self.reported_step = self.step  # the last one that monitors have received
        # Metrics on the device: [_WINDOW] each, and () each for the steps after them.
        self.windows: list[Metrics] = []
        self.pending: list[Metrics] = []
        self.time = time.perf_counter()  # time of the last report, evaluation or save

    def take_step(self, train_step: TrainStep, batch: Batch) -> None:
        """Dispatches a step; reports a window once the next one is dispatched."""
        state, metrics = train_step(self.run_state.state, batch)
        self.run_state = self.run_state._replace(state=state)
        self.step += 1
        self.pending.append(metrics)
        if len(self.pending) == _WINDOW:
            # Dispatched before the next steps, so that the device need not finish them
            # first: the host waits only for the steps of the older window.
            self.windows.append(_stack(self.pending))
            self.pending = []
            if len(self.windows) == 2:
                self._report([self.windows.pop(0)])

    def report(self) -> None:
        """Reports the metrics of all steps so far to monitors.

        Raises:
            FloatingPointError: if a step has stopped the run; raised after this step is
                reported.
        """
        metrics = [*self.windows, *self.pending]
        self.windows, self.pending = [], []
        if metrics:
            self._report(metrics)

    def _report(self, metrics: list[Metrics]) -> None:
        columns = jax.tree.map(lambda *x: np.hstack(x), *jax.device_get(metrics))
        # Steps that were dispatched after the one that stopped the run have left the
        # state unchanged. They are not reported.
        is_stopped = bool(columns.is_stopped.any())
        if is_stopped:
            num_taken = int(np.argmax(columns.is_stopped)) + 1
            columns = jax.tree.map(lambda x: x[:num_taken], columns)
        now = time.perf_counter()
        window = Window(self.reported_step + 1, columns, now - self.time)
        self.time = now
        self.reported_step += len(columns.loss)
        for monitor in self.monitors:
            monitor.window(window)
        if is_stopped:
            raise FloatingPointError(_why_stopped(window))

    def evaluate(self) -> Evaluation | None:
        """Reports all steps, then evaluates; returns None without `eval_function`."""
        self.report()
        if self.eval_function is None:
            return None
        state = self.run_state.state
        params = evaluation_params(state.params, state.opt_state)
        metrics = _evaluation.metric_values(self.eval_function(params))
        evaluation = Evaluation(self.step, metrics)
        # Called only for its check: it raises for a missing metric, here at the first
        # evaluation, before any step is taken.
        _evaluation.selected_metric(self.selection, evaluation)
        for monitor in self.monitors:
            monitor.evaluation(evaluation)
        self.time = time.perf_counter()
        return evaluation

    def evaluate_and_adapt(self) -> bool:
        """Evaluates the model, and updates `progress` and the learning rate.

        Returns:
            True if this evaluation is the best so far.
        """
        evaluation = self.evaluate()
        if evaluation is None:
            return False
        state, progress, schedule_state = self.run_state
        progress = _evaluation.after_evaluation(progress, self.selection, evaluation)
        if self.metric_schedule is not None:
            metric = _evaluation.selected_metric(self.selection, evaluation)
            schedule_state = self.metric_schedule.update(schedule_state, metric)
            state = with_learning_rate(state, schedule_state.learning_rate)
        self.run_state = RunState(state, progress, schedule_state)
        return progress.best_step == self.step

    def reason_to_stop(self, should_stop: Callable[[], bool]) -> str | None:
        """Returns `Trained.stop_reason` if the run ends here, else None."""
        if _evaluation.is_patience_exhausted(self.run_state.progress, self.selection):
            return "early_stopping"
        return "should_stop" if should_stop() else None

    def save(self) -> None:
        """Reports all steps, then saves the state."""
        if self.save_function is not None:
            self.report()
            self.save_function(self.run_state)
            self.time = time.perf_counter()

    def save_last_finite_state(self) -> None:
        """Saves the state before the step that stopped the run.

        This step and all later ones have left parameters and optimizer unchanged.
        `num_bad_in_a_row` is reset to 0, so that a run that is resumed from the
        checkpoint is not stopped immediately.
        """
        state = self.run_state.state
        if self.save_function is not None and int(state.step) > self.start_step:
            zero = device_put_like(jnp.int32(0), state.num_bad_in_a_row)
            state = dataclasses.replace(state, num_bad_in_a_row=zero)
            self.save_function(self.run_state._replace(state=state))


@jax.jit
def _stack(metrics: list[Metrics]) -> Metrics:
    stacked: Metrics = jax.tree.map(lambda *x: jnp.stack(x), *metrics)
    return stacked


def _is_due(step: int, interval: int | None) -> bool:
    return interval is not None and step % interval == 0


def _why_stopped(window: Window) -> str:
    metrics = window.metrics
    step = window.first_step + len(metrics.loss) - 1
    loss, norm = float(metrics.loss[-1]), float(metrics.norms.grads[-1])
    return (
        f"`loss` and its gradient must be finite, got a loss of {loss!r} and a "
        f"gradient norm of {norm!r} at step {step}. The state before this step is "
        "kept. Lower `learning_rate` or `max_grad_norm`, increase `warmup_steps`, or "
        "check the batch; `on_non_finite` and `max_skipped_in_a_row` can skip steps."
    )
