"""Batches through the step, monitors told."""

import itertools
import time
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np

from .. import _check
from .._typing import PyTree
from ._monitors import Evaluation, Monitor, Window
from ._state import Metrics, TrainState
from ._step import Batch, EvalStep

# Steps whose metrics are fetched from the device together.
_WINDOW = 10


def train(
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    state: TrainState,
    batches: Iterable[Batch],
    *,
    num_steps: int,
    monitors: Sequence[Monitor] = (),
    evaluate: Callable[[PyTree], float] | None = None,
    eval_steps: int | None = None,
) -> TrainState:
    """Takes `num_steps` steps.

    The host does not wait for the device at every step: it hands steps over, and
    fetches the metrics of the window before the one under way in one go.

    Args:
        train_step: from `make_train_step`.
        state: where to start; its buffers are taken over by the first step.
        batches: at least `num_steps` of them; no more are taken.
        num_steps: number of steps; at least 1.
        monitors: told of every window of steps and of every evaluation, and closed at
            the end, also if the run is broken off.
        evaluate: from params to a held-out loss; called before the first step, every
            `eval_steps` steps and after the last one.
        eval_steps: None to evaluate only at both ends.

    Returns:
        The state after the last step.

    Raises:
        ValueError: if a number of steps is below 1, or there are fewer batches.
        FloatingPointError: if a loss is not finite; names the window of steps. It is
            noticed when the window is fetched.
    """

    def tell_evaluation() -> None:
        if evaluate is not None:
            event = Evaluation(int(state.step), evaluate(state.params))
            for monitor in monitors:
                monitor.evaluation(event)

    try:
        num_steps = _check.step_count("num_steps", num_steps, least=1)
        if eval_steps is not None:
            eval_steps = _check.step_count("eval_steps", eval_steps, least=1)
        fetch = _make_fetch(int(state.step), monitors)
        under_way: list[Metrics] = []
        tell_evaluation()
        taken = 0
        for batch in itertools.islice(batches, num_steps):
            state, metrics = train_step(state, batch)
            taken += 1
            under_way.append(metrics)
            if len(under_way) == 2 * _WINDOW:
                fetch(under_way[:_WINDOW])
                del under_way[:_WINDOW]
            if eval_steps and taken % eval_steps == 0 and taken < num_steps:
                fetch(under_way)
                under_way.clear()
                tell_evaluation()
        fetch(under_way)
        if taken < num_steps:
            raise ValueError(
                f"`batches` must hold at least `num_steps` = {num_steps} batches, got "
                f"{taken}. Repeat them, or take fewer steps."
            )
        tell_evaluation()
    finally:
        for monitor in monitors:
            monitor.close()
    return state


def make_evaluate(
    eval_step: EvalStep, batches: Sequence[Batch]
) -> Callable[[PyTree], float]:
    """A function from params to the mean loss over all items of `batches`.

    Args:
        eval_step: from `make_eval_step`.
        batches: the held-out batches, the same at every evaluation.
    """

    def evaluate(params: PyTree) -> float:
        results = jax.device_get([eval_step(params, batch) for batch in batches])
        # Summed in the host's doubles: the order of batches leaves no trace.
        total = sum(float(total) for total, _ in results)
        return total / sum(float(num_items) for _, num_items in results)

    return evaluate


def _make_fetch(
    first_step: int, monitors: Sequence[Monitor]
) -> Callable[[list[Metrics]], None]:
    """A function that brings metrics to the host, checks them and tells monitors."""
    next_step, since = first_step + 1, time.perf_counter()

    def fetch(metrics: list[Metrics]) -> None:
        nonlocal next_step, since
        if not metrics:
            return
        columns = jax.tree.map(lambda *x: np.asarray(x), *jax.device_get(metrics))
        now = time.perf_counter()
        window = Window(next_step, columns, now - since)
        next_step, since = next_step + len(metrics), now
        for monitor in monitors:
            monitor.window(window)
        _check_finite(window)

    return fetch


def _check_finite(window: Window) -> None:
    losses = window.metrics.loss
    if not np.all(np.isfinite(losses)):
        last_step = window.first_step + len(losses) - 1
        bad = int(np.argmin(np.isfinite(losses)))
        raise FloatingPointError(
            f"`loss` must be finite, got {float(losses[bad])!r} at step "
            f"{window.first_step + bad}, within steps [{window.first_step}, "
            f"{last_step}]. Lower `learning_rate`, lengthen `warmup_steps`, or clip "
            "with a smaller `max_grad_norm`."
        )
