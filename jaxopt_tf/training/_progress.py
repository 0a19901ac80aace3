"""The best evaluation so far, and when to stop waiting for a better one."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from .. import _checks
from ._events import Evaluation


class Progress(NamedTuple):
    """What the evaluations have come to; Python numbers, kept in checkpoints."""

    best_metric: float | None = None  # None before the first, infinite after only NaN
    best_step: int | None = None  # its step
    num_worse_in_a_row: int = 0  # evaluations up to now without an improvement


class Selection(NamedTuple):
    """How evaluations are compared, under the names of `TrainingArguments`.

    Attributes:
        metric_for_best_model: key of `Evaluation.metrics`.
        greater_is_better: None for True unless the name ends with "loss".
        early_stopping_patience: evaluations in a row without an improvement after which
            training ends; None to go on whatever happens.
        early_stopping_threshold: an improvement must be greater than this to count for
            the patience.
    """

    metric_for_best_model: str = "loss"
    greater_is_better: bool | None = None
    early_stopping_patience: int | None = None
    early_stopping_threshold: float = 0.0


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
    """Counts the evaluation, in the order of the Trainer.

    The patience is counted against the best metric before this one, with the threshold;
    then the best metric moves, by however little. So a metric that creeps by less than
    the threshold each time uses the patience up. NaN is never an improvement.

    Raises:
        ValueError: if the evaluation has no such metric.

    Source: transformers 5.23 `trainer_callback.py`, `EarlyStoppingCallback`;
        `trainer.py`, `_determine_best_metric`.
    """
    metric = selected_metric(selection, evaluation)
    is_greater_better = selection.greater_is_better
    if is_greater_better is None:
        is_greater_better = not selection.metric_for_best_model.endswith("loss")

    def is_better(than: float) -> bool:
        return metric > than if is_greater_better else metric < than

    best = progress.best_metric
    improves = best is None or (
        is_better(best) and abs(metric - best) > selection.early_stopping_threshold
    )
    num_worse = 0 if improves else progress.num_worse_in_a_row + 1
    if best is None:
        best = -math.inf if is_greater_better else math.inf
    if is_better(best):
        return Progress(metric, evaluation.step, num_worse)
    return Progress(best, progress.best_step, num_worse)


def has_run_out_of_patience(progress: Progress, selection: Selection) -> bool:
    """Whether the last evaluation was one too many without an improvement."""
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
    """The metric that evaluations are compared by; raises if it is not there."""
    name = selection.metric_for_best_model.removeprefix("eval_")
    if name not in evaluation.metrics:
        raise ValueError(
            "`metric_for_best_model` must be one that the evaluation gives, "
            f"{sorted(evaluation.metrics)}, got {name!r}."
        )
    return evaluation.metrics[name]
