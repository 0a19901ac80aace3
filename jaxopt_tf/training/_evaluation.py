"""Evaluation: means over evaluation data, the best evaluation, and early stopping."""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from .. import _checks
from .._typing import PyTree
from ._gradients import Batch
from ._step import EvalStep


class Evaluation(NamedTuple):
    """Metrics of one evaluation."""

    step: int  # training steps so far, including skipped updates
    metrics: Mapping[str, float]  # means over all items: "loss" and possibly others


class Progress(NamedTuple):
    """Result of the evaluations so far: Python numbers, stored in checkpoints."""

    best_metric: float | None = None  # None before the first, infinite if all were NaN
    best_step: int | None = None  # step of the best evaluation
    num_worse_in_a_row: int = 0  # consecutive evaluations without an improvement


class Selection(NamedTuple):
    """Settings of model selection and early stopping, named as in Transformers.

    Attributes:
        metric_for_best_model: key of `Evaluation.metrics`.
        greater_is_better: whether a greater metric is better; None for True unless the
            name ends with "loss".
        early_stopping_patience: number of consecutive evaluations without an
            improvement after which training ends; None to train for all steps.
        early_stopping_threshold: an improvement must exceed this value to reset the
            patience.
    """

    metric_for_best_model: str = "loss"
    greater_is_better: bool | None = None
    early_stopping_patience: int | None = None
    early_stopping_threshold: float = 0.0


def make_evaluate(
    eval_step: EvalStep, batches: Sequence[Batch]
) -> Callable[[PyTree], dict[str, float]]:
    """Returns a function that computes means over all items of `batches`.

    Args:
        eval_step: from `make_eval_step`; or any function (params, batch) -> (sums,
            number of items), where sums is a number, the loss, or a dict of numbers:
            {"loss": ..., "accuracy": number of correct predictions}.
        batches: the evaluation data, used in every evaluation; at least one batch.

    Returns:
        A function params -> {"loss": mean, ...}.

    Raises:
        ValueError: if there is no batch; when called, if there is no item in any batch.
        TypeError: when called, if a sum or a number of items is not a real number.
    """
    if not batches:
        raise ValueError(
            "`batches` must contain at least one batch, got none. Use more data for "
            "evaluation, or smaller batches."
        )

    def evaluate(params: PyTree) -> dict[str, float]:
        # All steps are dispatched before the first result is fetched.
        results = jax.device_get([eval_step(params, batch) for batch in batches])
        named = [_checked_sums(sums, number) for sums, number in results]
        # Sums over batches are computed in double precision on the host, where rounding
        # errors of float32 sums do not accumulate.
        num_items = sum(float(number) for _, number in results)
        if not num_items:
            raise ValueError(
                "`batches` must contain items to take a mean over, but none of the "
                f"{len(batches)} has any. Check whether all labels are ignored."
            )
        return {
            name: sum(float(sums[name]) for sums in named) / num_items
            for name in named[0]
        }

    return evaluate


def check_selection(selection: Selection) -> None:
    """Raises unless the patience is at least 1 and the threshold is at least 0."""
    if selection.early_stopping_patience is not None:
        _checks.step_count(
            "early_stopping_patience", selection.early_stopping_patience, minimum=1
        )
    _checks.non_negative("early_stopping_threshold", selection.early_stopping_threshold)


def after_evaluation(
    progress: Progress, selection: Selection, evaluation: Evaluation
) -> Progress:
    """Updates the progress with an evaluation, in the order of Trainer.

    First, the count for the patience is updated: it is reset if the metric improves on
    the best one so far by more than the threshold. Then any improvement, however small,
    replaces the best metric. A metric that improves by less than the threshold at each
    evaluation therefore exhausts the patience. NaN is never an improvement.

    Raises:
        ValueError: if the evaluation does not contain the metric.

    Source: transformers 5.23 `trainer_callback.py`, `EarlyStoppingCallback`;
        `trainer.py`, `_determine_best_metric`.
    """
    metric = selected_metric(selection, evaluation)
    is_greater_better = selection.greater_is_better
    if is_greater_better is None:
        is_greater_better = not selection.metric_for_best_model.endswith("loss")
    is_better = operator.gt if is_greater_better else operator.lt
    best, best_step, num_worse = progress
    threshold = selection.early_stopping_threshold
    improves = best is None or (
        is_better(metric, best) and abs(metric - best) > threshold
    )
    num_worse = 0 if improves else num_worse + 1
    if best is None:
        # Any finite number replaces an infinite best metric; NaN does not, since
        # comparisons with NaN are False.
        best = -math.inf if is_greater_better else math.inf
    if is_better(metric, best):
        best, best_step = metric, evaluation.step
    return Progress(best, best_step, num_worse)


def is_patience_exhausted(progress: Progress, selection: Selection) -> bool:
    """Returns whether the patience of early stopping is exhausted."""
    patience = selection.early_stopping_patience
    return patience is not None and progress.num_worse_in_a_row >= patience


def metric_values(metrics: Any) -> dict[str, float]:
    """Returns the metrics of an evaluation as floats.

    Raises:
        TypeError: if `metrics` is not a mapping, or a value is not a real number.
    """
    if not isinstance(metrics, Mapping):
        raise TypeError(
            "`evaluation.metrics` must be a mapping from names to numbers, got "
            f'{metrics!r}. Return for example {{"loss": loss}} from `evaluate`.'
        )
    for name, value in metrics.items():
        _checks.real_number(f"evaluation.metrics[{name!r}]", value)
    return {name: float(value) for name, value in metrics.items()}


def selected_metric(selection: Selection, evaluation: Evaluation) -> float:
    """Returns the metric of the selection; raises if the evaluation lacks it."""
    name = selection.metric_for_best_model.removeprefix("eval_")
    if name not in evaluation.metrics:
        raise ValueError(
            "`metric_for_best_model` must be a metric of the evaluation, one of "
            f"{sorted(evaluation.metrics)}, got {name!r}."
        )
    return evaluation.metrics[name]


def _checked_sums(sums: Any, number: Any) -> Mapping[str, Any]:
    """Returns the sums of a batch by name; raises if one is not a real number."""
    _checks.real_number("eval_step(params, batch)[1]", number)
    if not isinstance(sums, Mapping):
        _checks.real_number("eval_step(params, batch)[0]", sums)
        return {"loss": sums}
    for name, value in sums.items():
        _checks.real_number(f"eval_step(params, batch)[0][{name!r}]", value)
    return sums
