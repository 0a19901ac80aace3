"""Predictions for the test file of a labelled run.

runs/mine/predictions.jsonl    {"prediction": "positive"} for each row
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .._io import atomic_write, run_on_process_0
from .._typing import PyTree
from ._example_data import ExampleSource, evaluation_batches
from ._example_evaluation import PredictFn, fetch, make_predict_step
from ._labelled_data import TaskExamples, TaskRows
from ._setup import Setup

PREDICTIONS = "predictions.jsonl"


def write_predictions(
    folder: Path,
    rows: TaskRows,
    examples: TaskExamples,
    source: ExampleSource,
    *,
    setup: Setup,
    params: PyTree,
    predict: PredictFn,
    place: Callable[[Mapping[str, np.ndarray]], PyTree],
    batch_size: int,
    seed: int,
    compute_dtype: Any,
) -> Path:
    """Writes the predictions for `test_file` as JSON Lines, one object for each row.

    `prediction` is the name of a class, a list with the name of a class for each word,
    a number, or generated text. All processes must call the function; process 0 writes.

    Args:
        folder: folder of the run.
        rows: rows of all files, and the classes.
        examples: the encoded rows.
        source: the examples of `test_file`.
        setup: setup of the run.
        params: parameters of the run.
        predict: function (params, batch) -> predictions.
        place: function that transfers a batch to the devices.
        batch_size: number of rows in a batch.
        seed: seed of the run.
        compute_dtype: dtype to which parameters are cast; None for no cast.

    Returns:
        The path of predictions.jsonl.
    """
    step = make_predict_step(setup, predict, compute_dtype=compute_dtype)
    # The final parameters of a run include those that are frozen.
    trained = {name: params[name] for name in setup.model.shapes}
    found: list[Any] = []
    for arrays in evaluation_batches(source, batch_size, seed):
        inputs = {name: x for name, x in arrays.items() if name != "labels"}
        found += _in_words(
            fetch(step(trained, place(inputs))), arrays.get("labels"), rows, examples
        )

    def write() -> None:
        lines = (
            json.dumps({"prediction": one}, ensure_ascii=False) + "\n" for one in found
        )
        with atomic_write(folder / PREDICTIONS) as path:
            path.write_text("".join(lines), encoding="utf-8")

    run_on_process_0(write)
    return folder / PREDICTIONS


def _in_words(
    found: Any, labels: np.ndarray | None, rows: TaskRows, examples: TaskExamples
) -> Iterator[Any]:
    """Yields the predictions of a batch as they are written."""
    found = np.asarray(jax.tree.leaves(found)[0])
    names = rows.classes
    if rows.task.name == "seq2seq":
        assert examples.decode is not None
        yield from (examples.decode(tokens).strip() for tokens in found)
    elif rows.task.name == "token-classification":
        assert names is not None
        assert labels is not None
        # Labels that are not -100 mark the first tokens of words.
        for classes, row in zip(found, labels, strict=True):
            yield [names[i] for i in classes[row >= 0]]
    elif names is None:
        yield from found.reshape(len(found), -1)[:, 0].astype(float).tolist()
    else:
        yield from (names[i] for i in found.argmax(-1))
