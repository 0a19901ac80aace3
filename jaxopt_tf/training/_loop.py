"""Batches through the step: monitors told, evaluations made, checkpoints saved."""

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
from .._numerics import has_float64
from .._typing import PyTree
from ..schedules import MetricDrivenSchedule
from ._events import Evaluation, Monitor, Window
from ._gradients import Batch
from ._position import Position
from ._progress import (
    Selection,
    after_evaluation,
    check_selection,
    has_run_out_of_patience,
    metric_values,
    selected_metric,
)
from ._state import Metrics, TrainState, lying_as, with_rate
from ._step import TrainStep

# Steps whose metrics are fetched from the device together.
_WINDOW = 10

_LOWEST_LOSS = Selection()


class Trained(NamedTuple):
    """What a run has come to."""

    position: Position  # after the last step
    ended: str  # "max_steps", "patience", or "asked" where `should_stop` said so

    @property
    def state(self) -> TrainState:
        """The state after the last step."""
        return self.position.state


def train(
    train_step: TrainStep,
    start: TrainState | Position,
    batches: Iterable[Batch],
    *,
    max_steps: int,
    monitors: Sequence[Monitor] = (),
    evaluate: Callable[[PyTree], Mapping[str, float]] | None = None,
    eval_steps: int | None = None,
    selection: Selection = _LOWEST_LOSS,
    metric_schedule: MetricDrivenSchedule | None = None,
    save: Callable[[Position], Any] | None = None,
    save_steps: int | None = None,
    save_best: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> Trained:
    """Takes steps until there have been `max_steps`, those before `start` included.

    The host does not wait for the device at every step: it hands steps over, and
    fetches the metrics of the window before the one under way in one go. At a step at
    which both are due, evaluation comes before saving, and all steps up to it have been
    told to the monitors before either.

    Args:
        train_step: from `make_train_step`.
        start: the state to start from, or the position where a run was broken off; its
            buffers are taken over by the first step.
        batches: those from the start's step on; no more are taken than needed.
        max_steps: number of steps of the whole run; at least 1.
        monitors: told of every window of steps and of every evaluation, and closed at
            the end, also if the run is broken off.
        evaluate: from params to held-out metrics, from `make_evaluate`; called before
            step 1 (for the monitors only), every `eval_steps` and after the last step.
        eval_steps: None to evaluate only at both ends.
        selection: which evaluation is the best, and how long to wait for a better one.
        metric_schedule: sets the rate after every evaluation but the first; the
            optimizer is built with a float rate.
        save: takes a position, as `save_position` does; called every `save_steps`, when
            the run ends, and when it is asked to stop.
        save_steps: None to save only then.
        save_best: whether to save after every evaluation that is the best so far, too.
        should_stop: asked after every step; True ends the run there.

    Returns:
        The position after the last step, and why it was the last.

    Raises:
        ValueError: if a number of steps is below 1, or there are fewer batches.
        FloatingPointError: if the step itself stopped, since a loss or gradient was not
            finite; names the step. It is noticed when the window is fetched.

    Source: transformers 5.23 `trainer.py`, `_maybe_log_save_evaluate`.
    """
    max_steps = _checks.step_count("max_steps", max_steps, least=1)
    eval_steps = _interval("eval_steps", eval_steps)
    save_steps = _interval("save_steps", save_steps)
    check_selection(selection)
    if isinstance(start, TrainState):
        start = Position(start)
    state, progress, schedule_state = start
    step = first_step = int(state.step)
    fetch, restart_clock = _make_fetch(step, monitors)
    under_way: list[Metrics] = []
    if metric_schedule is not None and schedule_state is None:
        schedule_state = metric_schedule.init()

    def settle() -> None:
        fetch(under_way)
        under_way.clear()

    def tell_evaluation() -> Evaluation | None:
        if evaluate is None:
            return None
        evaluation = Evaluation(step, metric_values(evaluate(state.params)))
        selected_metric(selection, evaluation)  # raises before any step if missing
        for monitor in monitors:
            monitor.evaluation(evaluation)
        restart_clock()
        return evaluation

    def is_over() -> str | None:
        if has_run_out_of_patience(progress, selection):
            return "patience"
        return "asked" if should_stop() else None

    try:
        if step == 0:
            tell_evaluation()
        over = is_over()
        remaining = 0 if over else max(0, max_steps - step)
        for batch in itertools.islice(batches, remaining):
            state, metrics = train_step(state, batch)
            step += 1
            under_way.append(metrics)
            if len(under_way) == 2 * _WINDOW:
                fetch(under_way[:_WINDOW])
                del under_way[:_WINDOW]
            is_due = step == max_steps or (save_steps and step % save_steps == 0)
            if step == max_steps or (eval_steps and step % eval_steps == 0):
                settle()
                evaluation = tell_evaluation()
                if evaluation is not None:
                    progress = after_evaluation(progress, selection, evaluation)
                    is_due = is_due or (save_best and progress.best_step == step)
                if evaluation is not None and metric_schedule is not None:
                    metric = selected_metric(selection, evaluation)
                    schedule_state = metric_schedule.update(schedule_state, metric)
                    state = with_rate(state, _rate(schedule_state))
            over = is_over()
            if save is not None and (is_due or over):
                settle()
                save(Position(state, progress, schedule_state))
                restart_clock()
            if over:
                break
        settle()
        if step < max_steps and not over:
            if save is not None and step > first_step:
                save(Position(state, progress, schedule_state))
            raise ValueError(
                f"`batches` must hold one for every step up to `max_steps` = "
                f"{max_steps}, but ended after step {step}. Repeat them, or take fewer "
                "steps."
            )
    except FloatingPointError:
        # The step has kept what was before: nothing of it is to be lost.
        if save is not None and int(state.step) > first_step:
            none = lying_as(jnp.int32(0), state.num_bad_in_a_row)
            kept = dataclasses.replace(state, num_bad_in_a_row=none)
            save(Position(kept, progress, schedule_state))
        _close(monitors)
        raise
    except BaseException:
        _close(monitors)
        raise
    for monitor in monitors:
        monitor.close()
    ended = over if over and step < max_steps else "max_steps"
    return Trained(Position(state, progress, schedule_state), ended)


def _close(monitors: Sequence[Monitor]) -> None:
    """Closes all, where an error is on its way that theirs must not hide."""
    for monitor in monitors:
        with contextlib.suppress(Exception):
            monitor.close()


def _rate(schedule_state: Any) -> jax.Array:
    """Returns the rate, in float64 under x64; the optimizer's own dtype rounds it."""
    if has_float64() and hasattr(schedule_state, "learning_rate_float64"):
        return schedule_state.learning_rate_float64
    return schedule_state.learning_rate


def _interval(name: str, value: int | None) -> int | None:
    return None if value is None else _checks.step_count(name, value, least=1)


def _make_fetch(
    step: int, monitors: Sequence[Monitor]
) -> tuple[Callable[[list[Metrics]], None], Callable[[], None]]:
    """A function that brings metrics to the host and tells monitors; its clock."""
    next_step, since = step + 1, time.perf_counter()

    def fetch(metrics: list[Metrics]) -> None:
        nonlocal next_step, since
        if not metrics:
            return
        columns = jax.tree.map(lambda *x: np.asarray(x), *jax.device_get(metrics))
        # What comes after the step that stopped has changed nothing: it is not told.
        if columns.is_stopped.any():
            length = int(np.argmax(columns.is_stopped)) + 1
            columns = jax.tree.map(lambda x: x[:length], columns)
        now = time.perf_counter()
        window = Window(next_step, columns, now - since)
        next_step, since = next_step + len(columns.loss), now
        for monitor in monitors:
            monitor.window(window)
        if columns.is_stopped.any():
            raise FloatingPointError(_why_stopped(window))

    def restart_clock() -> None:
        nonlocal since
        since = time.perf_counter()

    return fetch, restart_clock


def _why_stopped(window: Window) -> str:
    metrics = window.metrics
    step = window.first_step + len(metrics.loss) - 1
    loss, norm = float(metrics.loss[-1]), float(metrics.norms.grads[-1])
    return (
        f"`loss` and its gradient must be finite, got a loss of {loss!r} and a "
        f"gradient norm of {norm!r} at step {step}. The state is that before it. Lower "
        "`learning_rate`, lengthen `warmup_steps`, clip with a smaller "
        "`max_grad_norm`, or look at the batch; `on_non_finite` and "
        "`max_skipped_in_a_row` say how many such steps are passed over."
    )
