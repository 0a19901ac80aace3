"""Metrics of labelled tasks against scikit-learn, SciPy, and known values."""

import math
import sys

import numpy as np
import pytest

from jaxopt_tf.jobs import EvalPrediction, _metrics
from jaxopt_tf.jobs._metrics import (
    GLUE_TASKS,
    check_metric,
    entities_of,
    metric_names,
    perplexity,
    task_metrics,
    text_metrics,
)

CLASSES = "sequence-classification"


def class_scores(rng, num_classes, shape=(41,)):
    labels = rng.integers(0, num_classes, shape)
    logits = rng.normal(size=(*shape, num_classes)).astype(np.float32)
    logits += np.eye(num_classes, dtype=np.float32)[labels]
    return EvalPrediction(logits, labels)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_metrics_of_classes_are_those_of_scikit_learn(rng, num_classes):
    sklearn = pytest.importorskip("sklearn.metrics", reason="it is the reference")
    names = ("a", "b", "c")[:num_classes]
    prediction = class_scores(rng, num_classes)
    labels, classes = prediction.label_ids, prediction.predictions.argmax(-1)
    average = "binary" if num_classes == 2 else "macro"
    expected = {
        "accuracy": sklearn.accuracy_score(labels, classes),
        "f1": sklearn.f1_score(labels, classes, average=average),
        "matthews_correlation": sklearn.matthews_corrcoef(labels, classes),
    }
    found = task_metrics(CLASSES, names)(prediction)
    assert found == pytest.approx(expected, abs=1e-12)
    # -100 is no label, and of several predictions the first is used.
    padded = EvalPrediction(
        (np.concatenate([prediction.predictions] * 2), np.zeros(82)),
        np.concatenate([labels, np.full(41, -100)]),
    )
    assert task_metrics(CLASSES, names)(padded) == found
    assert tuple(found) == metric_names(CLASSES, names)


def test_metrics_of_a_regression_are_those_of_scipy(rng):
    stats = pytest.importorskip("scipy.stats", reason="it is the reference")
    labels = np.round(rng.normal(size=37), 1).astype(np.float32)  # with ties
    scores = (labels + rng.normal(size=37)).astype(np.float32)
    expected = {
        "mse": np.mean((scores.astype(float) - labels) ** 2),
        "pearson": stats.pearsonr(scores.astype(float), labels.astype(float))[0],
        "spearmanr": stats.spearmanr(scores, labels)[0],
    }
    found = task_metrics(CLASSES, None)(EvalPrediction(scores[:, None], labels))
    assert found == pytest.approx(expected, abs=1e-12)
    constant = task_metrics(CLASSES, None)(EvalPrediction(np.ones(37), labels))
    assert math.isnan(constant["pearson"])
    assert math.isnan(constant["spearmanr"])


@pytest.mark.parametrize("glue_task", GLUE_TASKS)
def test_tasks_of_glue_have_their_metrics(rng, glue_task):
    is_regression = glue_task == "stsb"
    names = None if is_regression else ("0", "1")
    prediction = class_scores(rng, 2)
    if is_regression:
        prediction = EvalPrediction(rng.normal(size=(9, 1)), rng.normal(size=9))
    found = task_metrics(CLASSES, names, glue_task=glue_task)(prediction)
    expected = GLUE_TASKS[glue_task]
    mean = np.mean([found[name] for name in expected])
    if len(expected) > 1:
        assert found.pop("combined_score") == pytest.approx(mean)
    assert tuple(found) == expected
    with pytest.raises(ValueError, match=f"`glue_task` '{glue_task}' must be used"):
        metric_names(
            CLASSES, ("0", "1") if is_regression else None, glue_task=glue_task
        )


def test_entities_are_counted_whole():
    # Values of seqeval 1.2.2 for these tags.
    names = ("B-LOC", "B-PER", "I-LOC", "I-PER", "O")
    expected = [["B-PER", "I-PER", "O", "B-LOC"], ["I-LOC", "B-LOC", "O", "I-PER"]]
    found = [["B-PER", "I-PER", "O", "B-PER"], ["I-LOC", "I-LOC", "O", "I-PER"]]
    number = {name: i for i, name in enumerate(names)}
    labels = np.array([[*(number[x] for x in row), -100] for row in expected])
    classes = np.array([[*(number[x] for x in row), 0] for row in found])
    logits = np.eye(5)[classes]
    metrics = task_metrics("token-classification", names)
    for predictions in (classes, logits):
        assert metrics(EvalPrediction(predictions, labels)) == pytest.approx(
            {"precision": 2 / 4, "recall": 2 / 5, "f1": 4 / 9, "accuracy": 6 / 8}
        )
    assert entities_of(["B-A", "I-A", "I-B", "O", "B-B", "B-B"]) == [
        ("A", 0, 1), ("B", 2, 2), ("B", 4, 4), ("B", 5, 5),
    ]  # fmt: skip
    nothing = EvalPrediction(np.full((1, 2), 4), np.full((1, 2), 4))
    assert metrics(nothing) == {
        "precision": 0.0, "recall": 0.0, "f1": 0.0, "accuracy": 1.0,
    }  # fmt: skip


def test_tokens_without_entities_have_f1_of_tokens(rng):
    sklearn = pytest.importorskip("sklearn.metrics", reason="it is the reference")
    prediction = class_scores(rng, 3, (5, 7))
    prediction.label_ids[:, 4:] = -100
    found = task_metrics("token-classification", ("NOUN", "VERB", "X"))(prediction)
    used = prediction.label_ids != -100
    labels = prediction.label_ids[used]
    classes = prediction.predictions.argmax(-1)[used]
    f1 = sklearn.f1_score(labels, classes, average="macro")
    assert found == pytest.approx({"accuracy": np.mean(labels == classes), "f1": f1})


def test_masked_tokens_have_accuracy_and_perplexity(rng):
    torch = pytest.importorskip("torch", reason="it is the reference")
    prediction = class_scores(rng, 11, (4, 6))
    prediction.label_ids[:, ::2] = -100
    loss = torch.nn.functional.cross_entropy(
        torch.from_numpy(prediction.predictions.reshape(-1, 11).astype(np.float64)),
        torch.from_numpy(prediction.label_ids.reshape(-1)),
    )
    found = task_metrics("masked-lm", None)(prediction)
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-12)
    classes = EvalPrediction(prediction.predictions.argmax(-1), prediction.label_ids)
    assert task_metrics("masked-lm", None)(classes) == {"accuracy": found["accuracy"]}
    assert perplexity(1e4) == math.inf


def test_texts_have_rouge_and_chrf():
    scoring = pytest.importorskip("rouge_score.rouge_scorer", reason="the reference")
    sacrebleu = pytest.importorskip("sacrebleu", reason="it is the reference")
    predictions = ["They slept. The cats were sitting!", "a film"]
    references = ["A cat sat. They were sleeping!", "two films about a film"]
    lines = [[x.replace(". ", ".\n") for x in xs] for xs in (references, predictions)]
    names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = scoring.RougeScorer(names, use_stemmer=True)
    scores = [scorer.score(*pair) for pair in zip(*lines, strict=True)]
    expected = {n: 50 * sum(score[n].fmeasure for score in scores) for n in names}
    expected["chrf"] = sacrebleu.CHRF().corpus_score(predictions, [references]).score
    found = text_metrics(predictions, references)
    assert found == pytest.approx(expected, abs=1e-9)
    assert tuple(found) == metric_names("seq2seq", None)
    assert found["rougeLsum"] != found["rougeL"]
    same = text_metrics(references, references)
    assert same == pytest.approx(dict.fromkeys(expected, 100.0))
    with pytest.raises(ValueError, match="same number of texts.*got 1 and 2"):
        text_metrics(["a"], references)


def test_a_metric_that_the_task_does_not_have_is_refused():
    check_metric("eval_f1", CLASSES, ("a", "b"))
    check_metric("loss", "masked-lm", None)
    with pytest.raises(
        ValueError, match="loss, mse, pearson, spearmanr, got 'accuracy'"
    ):
        check_metric("accuracy", CLASSES, None)
    with pytest.raises(ValueError, match="got 'accurracy'. Did you mean 'accuracy'"):
        check_metric("accurracy", CLASSES, ("a", "b"))
    with pytest.raises(ValueError, match="loss, matthews_correlation, got 'f1'"):
        check_metric("f1", CLASSES, ("a", "b"), glue_task="cola")
    with pytest.raises(ValueError, match="`glue_task` must be one of"):
        task_metrics(CLASSES, ("a", "b"), glue_task="squad")
    with pytest.raises(ValueError, match="`text_metrics`"):
        task_metrics("seq2seq", None)


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    prediction = EvalPrediction(np.eye(2), np.array([0, 1]))
    with pytest.raises(ModuleNotFoundError, match=r"sklearn must be .*\.\[tasks\]"):
        _metrics.task_metrics(CLASSES, ("a", "b"))(prediction)
