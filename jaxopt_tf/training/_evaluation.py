"""Evaluations: means over evaluation data, the best one so far, and patience."""

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

    step: int  # batches taken so far
    metrics: Mapping[str, float]  # means over all items: "loss" and possibly others


class Progress(NamedTuple):
    """Result of the evaluations so far; Python numbers, stored in checkpoints."""

    best_metric: float | None = None  # None before the first, infinite after only NaN
    best_step: int | None = None  # its step
    num_worse_in_a_row: int = 0  # evaluations up to now without an improvement


class Selection(NamedTuple):
    """Comparison of evaluations, under the names of `TrainingArguments`.

    Attributes:
        metric_for_best_model: key of `Evaluation.metrics`.
        greater_is_better: None for True unless the name ends with "loss".
        early_stopping_patience: evaluations in a row without an improvement after which
            training ends; None to train for all steps.
        early_stopping_threshold: an improvement must be greater than this to count for
            the patience.
    """

    metric_for_best_model: str = "loss"
    greater_is_better: bool | None = None
    early_stopping_patience: int | None = None
    early_stopping_threshold: float = 0.0


def make_evaluate(
    eval_step: EvalStep, batches: Sequence[Batch]
) -> Callable[[PyTree], dict[str, float]]:
    """Returns a function from params to means over all items of `batches`.

    Args:
        eval_step: from `make_eval_step`; or any (params, batch) -> (sums, number of
            items), where sums is one number, the loss, or a dict of several:
            {"loss": ..., "accuracy": number of right answers}.
        batches: the evaluation data, the same at every evaluation; at least one batch.

    Returns:
        params -> {"loss": mean, ...}.

    Raises:
        ValueError: if there is no batch, or, when called, no item in any.
        TypeError: when called, if a sum or a number of items is not a real number.
    """
    if not batches:
        raise ValueError(
            "`batches` must hold at least one batch to evaluate on, got none. Hold out "
            "more of the data, or take smaller batches."
        )

    def evaluate(params: PyTree) -> dict[str, float]:
        results = jax.device_get([eval_step(params, batch) for batch in batches])
        named = [_checked_sums(sums, number) for sums, number in results]
        # Summed in the host's doubles, in which the order of batches leaves no trace.
        num_items = sum(float(number) for _, number in results)
        if not num_items:
            raise ValueError(
                "`batches` must hold items to take a mean over, got none in any of "
                f"{len(batches)}. Are all labels ignored?"
            )
        return {
            name: sum(float(sums[name]) for sums in named) / num_items
            for name in named[0]
        }

    return evaluate


def check_selection(selection: Selection) -> None:
    """Raises unless patience is at least 1 and the threshold at least 0."""
    if selection.early_stopping_patience is not None:
        _checks.step_count(
            "early_stopping_patience", selection.early_stopping_patience, least=1
        )
    _checks.non_negative("early_stopping_threshold", selection.early_stopping_threshold)


def after_evaluation(
    progress: Progress, selection: Selection, evaluation: Evaluation
) -> Progress:
    """Counts an evaluation, in the order of the Trainer.

    The patience is counted against the best metric before this one, with the threshold;
    then the best metric is replaced, by however small an improvement. A metric that
    improves by less than the threshold each time therefore uses the patience up. NaN is
    never an improvement.

    Raises:
        ValueError: if the evaluation has no such metric.

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
        # Any number is better, but NaN is not: it stays infinite then.
        best = -math.inf if is_greater_better else math.inf
    if is_better(metric, best):
        best, best_step = metric, evaluation.step
    return Progress(best, best_step, num_worse)


def has_run_out_of_patience(progress: Progress, selection: Selection) -> bool:
    """Returns whether too many evaluations in a row were no improvement."""
    patience = selection.early_stopping_patience
    return patience is not None and progress.num_worse_in_a_row >= patience


def metric_values(metrics: Any) -> dict[str, float]:
    """Returns the metrics of an evaluation as floats.

    Raises:
        TypeError: if they are not a mapping, or one is not a real number.
    """
    if not isinstance(metrics, Mapping):
        raise TypeError(
            "`evaluation.metrics` must be a mapping from names to numbers, got "
            f'{metrics!r}. Return {{"loss": loss}}, for one, from `evaluate`.'
        )
    for name, value in metrics.items():
        _checks.real_number(f"evaluation.metrics[{name!r}]", value)
    return {name: float(value) for name, value in metrics.items()}


def selected_metric(selection: Selection, evaluation: Evaluation) -> float:
    """Returns the metric that evaluations are compared by; raises if it is missing."""
    name = selection.metric_for_best_model.removeprefix("eval_")
    if name not in evaluation.metrics:
        raise ValueError(
            "`metric_for_best_model` must be one that the evaluation gives, "
            f"{sorted(evaluation.metrics)}, got {name!r}."
        )
    return evaluation.metrics[name]


def _checked_sums(sums: Any, number: Any) -> Mapping[str, Any]:
    """Returns the sums of a batch by name; raises unless all are real numbers."""
    _checks.real_number("eval_step(params, batch)[1]", number)
    if not isinstance(sums, Mapping):
        _checks.real_number("eval_step(params, batch)[0]", sums)
        return {"loss": sums}
    for name, value in sums.items():
        _checks.real_number(f"eval_step(params, batch)[0][{name!r}]", value)
    return sums
