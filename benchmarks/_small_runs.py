"""Models and data for runs of one second, and a run with a health monitor."""

import argparse
import contextlib
import inspect
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_tf.monitors import health_monitor
from jaxopt_tf.training import (
    Monitor,
    Trained,
    init_train_state,
    make_eval_step,
    make_evaluate,
    make_train_step,
    train,
)

NUM_INPUTS, NUM_CLASSES, CONTEXT = 16, 10, 8


class Run(NamedTuple):
    """Arguments of `train`."""

    name: str
    loss_fn: Callable
    params: Any
    optimizer: optax.GradientTransformation
    batches: Iterator
    max_steps: int
    eval_batch: Any = None  # evaluation batch
    eval_steps: int = 50
    per_layer: bool = False
    on_non_finite: str = "stop"
    rng: int | None = None


def listen(run: Run) -> list[str]:
    """Trains, and returns the findings of the health monitor."""
    sentences: list[str] = []
    (param_dtype,) = {leaf.dtype.name for leaf in jax.tree.leaves(run.params)}
    with contextlib.suppress(
        FloatingPointError
    ):  # the health monitor has reported the reason
        _train(run, [health_monitor(sentences.append, param_dtype=param_dtype)])
    return sentences


def trained(run: Run) -> Any:
    """Trains, and returns the parameters."""
    return _train(run, []).state.params


def _train(run: Run, monitors: list[Monitor]) -> Trained:
    evaluate = None
    if run.eval_batch is not None:
        evaluate = make_evaluate(make_eval_step(run.loss_fn), [run.eval_batch])
    step = make_train_step(
        run.loss_fn,
        run.optimizer,
        per_layer=run.per_layer,
        on_non_finite=run.on_non_finite,
    )
    return train(
        step,
        # A copy, because the first step donates the buffers.
        init_train_state(
            jax.tree.map(jnp.copy, run.params), run.optimizer, rng=run.rng
        ),
        run.batches,
        max_steps=run.max_steps,
        monitors=monitors,
        evaluate=evaluate,
        eval_steps=run.eval_steps,
    )


def dense(
    sizes: tuple[int, ...], seed: int = 0, gain: float = 1.0, dtype=jnp.float32
) -> dict[str, dict[str, jax.Array]]:
    """Returns layers with weights of variance gain^2 / number of inputs."""
    rng = np.random.default_rng(seed)
    return {
        f"layer_{i}": {
            "kernel": jnp.asarray(
                rng.normal(size=(m, n)) * gain / math.sqrt(m), jnp.float32
            ).astype(dtype),
            "bias": jnp.zeros(n, dtype),
        }
        for i, (m, n) in enumerate(itertools.pairwise(sizes))
    }


def outputs(params, x, activation=jax.nn.relu, rng=None):
    """Applies all layers, with dropout of 0.5 if a key is given."""
    for i in range(len(params)):
        layer = params[f"layer_{i}"]
        x = x @ layer["kernel"] + layer["bias"]
        if i < len(params) - 1:
            x = activation(x)
            if rng is not None:
                keep = jax.random.bernoulli(jax.random.fold_in(rng, i), 0.5, x.shape)
                x = jnp.where(keep, 2.0 * x, 0.0)
    return x


def classifier_loss(activation=jax.nn.relu) -> Callable:
    """Returns the cross-entropy of a classifier for (inputs, labels)."""

    def loss_fn(params, batch):
        x, labels = batch
        return _cross_entropy(outputs(params, x, activation), labels)

    return loss_fn


def dropout_loss(params, batch, rng=None):
    """Returns the cross-entropy with dropout."""
    x, labels = batch
    return _cross_entropy(outputs(params, x, rng=rng), labels)


def squared_loss(params, batch):
    """Returns half the squared error of one output."""
    x, y = batch
    return 0.5 * jnp.sum((outputs(params, x)[:, 0] - y) ** 2), len(y)


def labelled(
    seed: int, size: int, num_examples: int | None = None, noise: float = 0.0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields batches of points with labels from a random linear map."""
    rng = np.random.default_rng(seed)
    teacher = np.random.default_rng(99).normal(size=(NUM_INPUTS, NUM_CLASSES))
    teacher /= np.linalg.norm(teacher, axis=0)  # about equal classes

    def draw(count):
        x = rng.normal(size=(count, NUM_INPUTS)).astype(np.float32)
        labels = np.argmax(x @ teacher, axis=1)
        is_wrong = rng.random(count) < noise
        wrong = rng.integers(0, NUM_CLASSES, count)
        return x, np.where(is_wrong, wrong, labels).astype(np.int32)

    if num_examples is None:
        while True:
            yield draw(size)
    x, labels = draw(num_examples)
    while True:
        chosen = rng.integers(0, num_examples, size)
        yield x[chosen], labels[chosen]


def measured(seed: int, size: int, noise: float) -> Iterator:
    """Yields batches for a regression with one output."""
    rng = np.random.default_rng(seed)
    weights = np.random.default_rng(98).normal(size=NUM_INPUTS) / 4
    while True:
        x = rng.normal(size=(size, NUM_INPUTS)).astype(np.float32)
        y = np.tanh(x @ weights) + noise * rng.normal(size=size)
        yield x, y.astype(np.float32)


def text() -> np.ndarray:
    """Returns about 100,000 characters of Python code."""
    return np.frombuffer(inspect.getsource(argparse).encode(), np.uint8)


def characters(seed: int, size: int, source: np.ndarray) -> Iterator[np.ndarray]:
    """Yields batches of characters at random positions, [size, CONTEXT + 1]."""
    rng = np.random.default_rng(seed)
    while True:
        at = rng.integers(0, len(source) - CONTEXT, size)
        yield source[at[:, None] + np.arange(CONTEXT + 1)].astype(np.int32)


def character_model(width: int = 64, seed: int = 0, dtype=jnp.float32):
    """Returns parameters of a model that predicts a character from preceding ones."""
    rng = np.random.default_rng(seed)
    embedding = jnp.asarray(rng.normal(size=(128, 16)), jnp.float32).astype(dtype)
    layers = dense((CONTEXT * 16, width, 128), seed, dtype=dtype)
    return {"embedding": embedding, "layers": layers}


def character_loss(params, batch):
    """Returns the cross-entropy of the last character of each row."""
    x = params["embedding"][batch[:, :-1]].reshape(len(batch), -1)
    return _cross_entropy(outputs(params["layers"], x, jnp.tanh), batch[:, -1])


def recurrence_loss(params, batch):
    """Returns the loss of a recurrence over 50 steps without normalization."""
    x, labels = batch

    def cell(h, _):
        return jnp.tanh(h @ params["recurrent"] + x @ params["input"]), None

    h, _ = jax.lax.scan(cell, jnp.zeros((len(x), 64)), length=50)
    return _cross_entropy(h @ params["output"], labels)


def recurrence(gain: float, seed: int = 0):
    """Returns its parameters; with a gain above 1 gradients grow with each step."""
    rng = np.random.default_rng(seed)

    def weights(m, n, gain):
        return jnp.asarray(rng.normal(size=(m, n)) * gain / math.sqrt(m), jnp.float32)

    return {
        "input": weights(NUM_INPUTS, 64, 0.1),
        "recurrent": weights(64, 64, gain),
        "output": weights(64, NUM_CLASSES, 1.0),
    }


def _cross_entropy(logits, labels):
    logits = logits.astype(jnp.float32)
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.sum(losses), len(labels)


def spoilt(batches, every: int):
    """Yields `batches`, with a NaN at regular intervals."""
    for i in itertools.count(1):
        x, labels = next(batches)
        yield (x * np.float32(np.nan) if i % every == 0 else x), labels
