"""Metrics of labelled tasks, as GLUE and the examples of Transformers have them."""

import functools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .. import _checks
from ..data import TASKS
from ..interop import import_extra
from ._example_evaluation import PADDING, EvalPrediction

# Metrics of the tasks of GLUE.
GLUE_TASKS: Mapping[str, tuple[str, ...]] = {
    "cola": ("matthews_correlation",),
    "sst2": ("accuracy",),
    "mrpc": ("accuracy", "f1"),
    "qqp": ("accuracy", "f1"),
    "stsb": ("pearson", "spearmanr"),
    "mnli": ("accuracy",),
    "qnli": ("accuracy",),
    "rte": ("accuracy",),
    "wnli": ("accuracy",),
}
_CLASSES = ("accuracy", "f1", "matthews_correlation")
_REGRESSION = ("mse", "pearson", "spearmanr")
_TEXTS = ("rouge1", "rouge2", "rougeL", "rougeLsum", "chrf")
_ENTITIES = ("precision", "recall", "f1", "accuracy")

MetricsFn = Callable[[EvalPrediction], dict[str, float]]


def metric_names(
    task: str, names: Sequence[str] | None, *, glue_task: str | None = None
) -> tuple[str, ...]:
    """Returns the names of the metrics of a task, in the order of `task_metrics`.

    Args:
        task: one of `data.TASKS`.
        names: names of the classes; None for a regression.
        glue_task: task of GLUE whose metrics are computed; None for the default ones.

    Raises:
        ValueError: if the task is unknown, or `glue_task` does not fit the labels.
    """
    _checks.one_of("task", task, TASKS)
    if glue_task is not None:
        _checks.one_of("glue_task", glue_task, GLUE_TASKS)
        found = GLUE_TASKS[glue_task]
        if task != "sequence-classification" or (names is None) != (
            glue_task == "stsb"
        ):
            kind = "numbers" if glue_task == "stsb" else "classes"
            raise ValueError(
                f"`glue_task` {glue_task!r} must be used with sequence-classification "
                f"and labels that are {kind}, got the task {task!r} with "
                f"{'numbers' if names is None else 'classes'}. Give the label column "
                "of the task."
            )
        return (*found, "combined_score") if len(found) > 1 else found
    if task == "seq2seq":
        return _TEXTS
    if task == "masked-lm":
        return ("accuracy", "perplexity")
    if task == "token-classification":
        return _ENTITIES if _has_entities(names or ()) else ("accuracy", "f1")
    return _REGRESSION if names is None else _CLASSES


def check_metric(
    name: str, task: str, names: Sequence[str] | None, *, glue_task: str | None = None
) -> None:
    """Raises a ValueError unless a task has the metric `name`, or it is the loss."""
    known = ("loss", *metric_names(task, names, glue_task=glue_task))
    if name.removeprefix("eval_") not in known:
        raise ValueError(
            f"`metric_for_best_model` must be a metric of {task}, one of "
            f"{', '.join(known)}, got {name!r}."
            f"{_checks.suggest(name, known) or ' Give one of these.'}"
        )


def task_metrics(
    task: str, names: Sequence[str] | None, *, glue_task: str | None = None
) -> MetricsFn:
    """Returns the function of predictions and labels that computes the metrics.

    They are computed from all predictions at once and thus exact for batches of
    different sizes. Labels of -100 are ignored.

    The function takes an `EvalPrediction`. Its predictions are logits [N, C] for
    classes, values [N] or [N, 1] for a regression, logits [N, T, C] or classes [N, T]
    for tokens. If predictions are a tuple, the first is used. With masked-lm, classes
    give no perplexity.

    Args:
        task: one of `data.TASKS` except seq2seq, whose predictions are texts: see
            `text_metrics`.
        names: names of the classes; None for a regression.
        glue_task: task of GLUE whose metrics are computed; None for the default ones:
            accuracy, F1 (of class 1 of two, otherwise the mean over classes) and the
            correlation of Matthews; or mean squared error and the correlations of
            Pearson and Spearman.

    Raises:
        ValueError: if the task is unknown or has no such metrics.
        ModuleNotFoundError: if scikit-learn or SciPy is needed and not installed, when
            the function is called.

    Source: transformers 5.23 `examples/pytorch/text-classification/run_glue.py`,
        `token-classification/run_ner.py`, `language-modeling/run_mlm.py`; evaluate 0.4
        `metrics/glue/glue.py`.
    """
    wanted = metric_names(task, names, glue_task=glue_task)
    if task == "seq2seq":
        raise ValueError(
            "`task` must be one whose predictions are numbers, got 'seq2seq'. Use "
            "`text_metrics` on generated texts."
        )
    if task == "masked-lm":
        return _masked_lm_metrics
    if task == "token-classification":
        return functools.partial(_token_metrics, names=tuple(names or ()))

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        scores, labels = _arrays(prediction)
        if names is None:
            found = _regression_metrics(scores, labels)
        else:
            classes = np.argmax(scores, axis=-1)
            found = _class_metrics(classes, labels, wanted, len(names))
        if "combined_score" in wanted:
            found["combined_score"] = float(np.mean([found[n] for n in wanted[:-1]]))
        return {name: found[name] for name in wanted}

    return compute


def text_metrics(
    predictions: Sequence[str], references: Sequence[str]
) -> dict[str, float]:
    """Returns ROUGE and chrF of texts, from 0 to 100.

    ROUGE is the mean of the F-measures with stemming. For ROUGE-Lsum, lines of a text
    are sentences. chrF is that of the whole corpus.

    Args:
        predictions: N generated texts.
        references: N texts to compare them with.

    Raises:
        ModuleNotFoundError: if rouge-score or sacrebleu is not installed.
        ValueError: if the numbers of texts differ, or there are none.

    Source: transformers 5.23 `examples/pytorch/summarization/run_summarization.py`.
    Differs: sentences are divided by ". ", "! " and "? " instead of NLTK's model, which
        must be downloaded, and ROUGE is a plain mean instead of the median of bootstrap
        samples.
    """
    if len(predictions) != len(references) or not predictions:
        raise ValueError(
            "`predictions` and `references` must have the same number of texts, at "
            f"least 1, got {len(predictions)} and {len(references)}."
        )
    rouge_scorer = _import("rouge_score.rouge_scorer")
    sacrebleu = _import("sacrebleu")
    scorer = rouge_scorer.RougeScorer(list(_TEXTS[:-1]), use_stemmer=True)
    scores = [
        scorer.score(_by_sentence(reference), _by_sentence(prediction))
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    found = {
        name: 100 * float(np.mean([score[name].fmeasure for score in scores]))
        for name in _TEXTS[:-1]
    }
    chrf = sacrebleu.corpus_chrf(list(predictions), [list(references)])
    return {**found, "chrf": float(chrf.score)}


def _arrays(prediction: EvalPrediction) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = prediction.predictions, prediction.label_ids
    scores = scores[0] if isinstance(scores, tuple | list) else scores
    labels = labels[0] if isinstance(labels, tuple | list) else labels
    return np.asarray(scores), np.asarray(labels)


def _class_metrics(
    classes: np.ndarray, labels: np.ndarray, wanted: Sequence[str], num_classes: int
) -> dict[str, float]:
    used = labels != PADDING
    classes, labels = classes[used], labels[used]
    found = {"accuracy": _mean(classes == labels)}
    if "f1" in wanted:
        found["f1"] = _f1(classes, labels, num_classes)
    if "matthews_correlation" in wanted:
        metrics = _import("sklearn.metrics")
        with warnings.catch_warnings():
            # A single class in labels and predictions.
            warnings.simplefilter("ignore")
            found["matthews_correlation"] = float(
                metrics.matthews_corrcoef(labels, classes)
            )
    return found


def _f1(classes: np.ndarray, labels: np.ndarray, num_classes: int) -> float:
    """Returns F1 of class 1 of two classes, or the mean over more classes."""
    average = "binary" if num_classes == 2 else "macro"
    metrics = _import("sklearn.metrics")
    return float(metrics.f1_score(labels, classes, average=average, zero_division=0))


def _regression_metrics(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    scores = scores.reshape(labels.shape).astype(np.float64)
    labels = labels.astype(np.float64)
    stats = _import("scipy.stats")
    with warnings.catch_warnings():
        # Constant predictions have no correlation: NaN, as in Trainer.
        warnings.simplefilter("ignore")
        pearson = stats.pearsonr(scores, labels)[0] if len(labels) > 1 else math.nan
        spearman = stats.spearmanr(scores, labels)[0] if len(labels) > 1 else math.nan
    return {
        "mse": _mean((scores - labels) ** 2),
        "pearson": float(pearson),
        "spearmanr": float(spearman),
    }


def _masked_lm_metrics(prediction: EvalPrediction) -> dict[str, float]:
    scores, labels = _arrays(prediction)
    used = labels != PADDING
    if scores.ndim == labels.ndim:  # classes instead of logits
        return {"accuracy": _mean(scores[used] == labels[used])}
    logits, targets = scores[used].astype(np.float64), labels[used]
    largest = logits.max(axis=-1)
    log_sum = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=-1))
    chosen = np.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return {
        "accuracy": _mean(np.argmax(logits, axis=-1) == targets),
        "perplexity": perplexity(_mean(log_sum - chosen)),
    }


def perplexity(loss: float) -> float:
    """Returns the exponential of a loss; infinity if it is too large."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _token_metrics(
    prediction: EvalPrediction, *, names: tuple[str, ...]
) -> dict[str, float]:
    scores, labels = _arrays(prediction)
    classes = scores if scores.ndim == labels.ndim else np.argmax(scores, axis=-1)
    used = labels != PADDING
    accuracy = _mean(classes[used] == labels[used])
    if not _has_entities(names):
        f1 = _f1(classes[used], labels[used], len(names))
        return {"accuracy": accuracy, "f1": f1}
    found: set[tuple[int, str, int, int]] = set()
    expected: set[tuple[int, str, int, int]] = set()
    for row, mask in enumerate(used):
        for entities, numbers in ((found, classes), (expected, labels)):
            tags = [names[number] for number in numbers[row][mask]]
            entities |= {(row, *entity) for entity in entities_of(tags)}
    num_right = len(found & expected)
    precision = num_right / len(found) if found else 0.0
    recall = num_right / len(expected) if expected else 0.0
    total = precision + recall
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / total if total else 0.0,
        "accuracy": accuracy,
    }


def entities_of(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Returns type, first and last token of the entities of tags such as B-PER, I-PER.

    An entity starts at a tag B, and at a tag I after another type or after no entity.

    Source: seqeval 1.2 `metrics/sequence_labeling.py`, `get_entities`.
    """
    entities: list[tuple[str, int, int]] = []
    first, kind = 0, ""
    for i, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        is_start = prefix == "B" or (prefix == "I" and name != kind)
        if kind and (is_start or prefix == "O"):
            entities.append((kind, first, i - 1))
            kind = ""
        if is_start:
            first, kind = i, name
    return entities


def _has_entities(names: Sequence[str]) -> bool:
    """Returns whether names are those of tags such as O, B-PER and I-PER."""
    return any(name.startswith(("B-", "I-")) for name in names) and all(
        name == "O" or name.startswith(("B-", "I-")) for name in names
    )


def _by_sentence(text: str) -> str:
    for end in ".!?":
        text = text.replace(f"{end} ", f"{end}\n")
    return text.strip()


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if values.size else math.nan


def _import(name: str) -> Any:
    return import_extra(name, extra="tasks", purpose="to compute metrics of tasks")
