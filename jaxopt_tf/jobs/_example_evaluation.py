"""Evaluation on examples, with the mean loss and the metrics of Trainer."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from .. import training
from .._typing import PyTree
from ..models import make_predict
from ._run_core import block_on_cpu_collectives
from ._setup import Setup

PADDING = -100  # value that pads predictions and labels of different lengths


class EvalPrediction(NamedTuple):
    """Predictions and labels of an evaluation, like Trainer's `EvalPrediction`."""

    predictions: Any  # NumPy array [N, ...] or a tuple of them
    label_ids: Any  # the same for labels


MetricsFn = Callable[[EvalPrediction], Mapping[str, Any]]
# (params, batch) -> predictions, a tree of arrays [B, ...]
PredictFn = Callable[[PyTree, Any], Any]


def make_example_evaluate(
    setup: Setup,
    batches: Callable[[], Iterable[Mapping[str, np.ndarray]]],
    place: Callable[[Mapping[str, np.ndarray]], PyTree],
    *,
    compute_metrics: MetricsFn | None,
    label_names: Sequence[str],
    compute_dtype: Any,
    matmul_precision: str | None,
    predict: PredictFn | None = None,
) -> Callable[[PyTree], dict[str, float]]:
    """Returns a function params -> {"loss": ..., further metrics}.

    The loss is the mean over all examples of the mean losses of their batches, as in
    Trainer. Batches without a label have no loss, and are left out of the mean.

    Args:
        setup: setup of the run.
        batches: function that returns the batches of an evaluation.
        place: function that transfers a batch to the devices.
        compute_metrics: function from predictions and labels to metrics by name; None
            to compute the loss only.
        label_names: names of the labels in a batch.
        compute_dtype: dtype to which parameters are cast; None for no cast.
        matmul_precision: precision of matrix products.
        predict: function that computes the predictions; None for those of Trainer.

    Source: transformers 5.23 `trainer.py`, `evaluation_loop`.
    Differs: a loss that is not finite is not left out of the mean.
    """
    step = setup.eval_step
    if compute_metrics is not None:
        predict = predict or make_predict(
            setup.model, mesh=setup.mesh, matmul_precision=matmul_precision
        )
        step = _step_with_predictions(setup, compute_dtype, predict)
    step = block_on_cpu_collectives(step, setup.mesh)

    def evaluate(params: PyTree) -> dict[str, float]:
        total, num_rows, found = 0.0, 0, _Collected()
        for arrays in batches():
            loss, number, *predictions = fetch(step(params, place(arrays)))
            rows = next(iter(arrays.values())).shape[0]
            if number > 0:
                total, num_rows = total + rows * float(loss / number), num_rows + rows
            if compute_metrics is not None:
                labels = [arrays[name] for name in label_names if name in arrays]
                found.add(predictions[0], labels)
        if not num_rows:
            raise ValueError(
                "`eval_dataset` must contain labels, got none that is not -100."
            )
        metrics = {"loss": total / num_rows}
        if compute_metrics is None or not found.has_labels:
            return metrics
        computed = compute_metrics(found.prediction())
        if not isinstance(computed, Mapping):
            raise TypeError(
                "`compute_metrics` must return a dict of numbers, got "
                f"{type(computed).__name__}."
            )
        named = {n.removeprefix("eval_"): x for n, x in computed.items()}
        return {**training.metric_values(named), **metrics}

    return evaluate


def make_predict_step(
    setup: Setup, predict: PredictFn, *, compute_dtype: Any
) -> Callable[[PyTree, PyTree], Any]:
    """Compiles a function (params, batch) -> predictions for the parameters of a run.

    Args:
        setup: setup of the run.
        predict: the function, of all parameters.
        compute_dtype: dtype to which parameters are cast; None for no cast.
    """

    def step(params: PyTree, batch: PyTree, *, frozen: PyTree | None = None) -> Any:
        return predict(_cast(_merged(params, frozen), compute_dtype), batch)

    return block_on_cpu_collectives(_compiled(step, setup), setup.mesh)


def _step_with_predictions(
    setup: Setup, compute_dtype: Any, predict: PredictFn
) -> Callable[..., Any]:
    """Compiles loss and predictions as one program: XLA shares the forward pass."""
    loss_step = training.make_eval_step(setup.loss_fn, compute_dtype=compute_dtype)

    def step(
        params: PyTree, batch: PyTree, *, frozen: PyTree | None = None
    ) -> tuple[Any, ...]:
        merged = _merged(params, frozen)
        return *loss_step(merged, batch), predict(_cast(merged, compute_dtype), batch)

    return _compiled(step, setup)


def _compiled(step: Callable[..., Any], setup: Setup) -> Callable[..., Any]:
    compiled, frozen = jax.jit(step), setup.frozen
    return training.FrozenStep(compiled, frozen) if frozen else compiled


def _merged(params: PyTree, frozen: PyTree | None) -> PyTree:
    return params if frozen is None else training.merge_params(params, frozen)


def _cast(params: PyTree, dtype: Any) -> PyTree:
    def cast(leaf: jax.Array) -> jax.Array:
        is_cast = dtype is not None and jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(dtype) if is_cast else leaf

    return jax.tree.map(cast, params)


def fetch(results: Any) -> Any:
    """Returns results as NumPy arrays; those of all processes are gathered."""

    def fetched(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            x = multihost_utils.process_allgather(x, tiled=True)
        x = np.asarray(x)
        return x.astype(np.float32) if x.dtype == jnp.bfloat16 else x

    return jax.tree.map(fetched, results)


class _Collected:
    """Predictions and labels of the batches so far."""

    def __init__(self) -> None:
        self._predictions: list[Any] = []
        self._labels: list[list[np.ndarray]] = []

    def add(self, predictions: Any, labels: list[np.ndarray]) -> None:
        self._predictions.append(predictions)
        self._labels.append(labels)

    @property
    def has_labels(self) -> bool:
        return bool(self._labels) and all(self._labels)

    def prediction(self) -> EvalPrediction:
        """Returns all predictions and labels, padded by -100 to one length."""
        predictions = jax.tree.map(concatenated, *self._predictions)
        labels = [concatenated(*column) for column in zip(*self._labels, strict=True)]
        return EvalPrediction(
            predictions, labels[0] if len(labels) == 1 else tuple(labels)
        )


def concatenated(*arrays: np.ndarray) -> np.ndarray:
    """Concatenates arrays along axis 0; axis 1 is padded by -100 at its end."""
    if arrays[0].ndim < 2:
        return np.concatenate([np.atleast_1d(x) for x in arrays])
    length = max(x.shape[1] for x in arrays)

    def padded(x: np.ndarray) -> np.ndarray:
        width = [(0, 0), (0, length - x.shape[1]), *[(0, 0)] * (x.ndim - 2)]
        return np.pad(x, width, constant_values=PADDING)

    return np.concatenate([padded(x) for x in arrays])
