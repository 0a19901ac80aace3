"""Tasks with runs of seconds: digits, text, and a quadratic of known curvature."""

import dataclasses
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from jaxopt_tf import training
from jaxopt_tf.data import Batches, evaluation_batches, standard_library
from jaxopt_tf.models import GPT2Config, make_loss_fn
from jaxopt_tf.recipes import Recipe
from jaxopt_tf.tuning import Task

RECIPE = Recipe(max_steps=400, warmup_steps=0.1, weight_decay=0.01)
# Curvatures of 20 directions. The steepest one is stable for rates up to 2 / 100.
_CURVATURE = np.geomspace(1.0, 100.0, 20).astype(np.float32)


class Perceptron(nn.Module):
    """Returns a task with two hidden layers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of images."""
        x = x.reshape(len(x), -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(64)(x))
        return nn.Dense(10)(x)


class Convolutions(nn.Module):
    """Returns a task with two convolutions."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of images."""
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        x = nn.relu(nn.Conv(16, (3, 3), strides=2)(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


def digits(model: nn.Module) -> Task:
    """Returns the 1,797 digits of scikit-learn; the last 397 are for evaluation."""
    x, y = load_digits(return_X_y=True)
    x, y = np.float32(x / 16).reshape(-1, 8, 8, 1), np.int32(y)

    def batches(recipe: Recipe) -> Iterator:
        rng = np.random.default_rng(recipe.seed)
        while True:
            rows = rng.integers(0, 1400, 4 * recipe.per_device_train_batch_size)
            yield {"x": x[rows], "y": y[rows]}

    return Task(
        loss_fn=lambda params, batch: training.cross_entropy(
            model.apply(params, batch["x"]), batch["y"]
        ),
        init=lambda seed: model.init(jax.random.key(seed), x[:1]),
        batches=batches,
        eval_batches=[{"x": x[1400:], "y": y[1400:]}],
    )


def text() -> Task:
    """Returns a task of a one-layer GPT-2 on sources of Python's standard library."""
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 32}
    config = GPT2Config(vocab_size=256, **sizes)
    corpus = standard_library()
    return Task(
        loss_fn=make_loss_fn(config, 0)[1],
        init=lambda seed: make_loss_fn(config, seed)[0],
        batches=lambda recipe: Batches(
            corpus,
            block_size=config.block_size,
            batch_size=recipe.per_device_train_batch_size,
            seed=recipe.seed,
        ).iter_from(0),
        eval_batches=evaluation_batches(
            corpus, block_size=config.block_size, batch_size=64, num_tokens=2**14
        ),
    )


def quadratic() -> Task:
    """Returns a task with the loss x' H x / 2 around a minimum per example."""

    def loss_fn(params, batch):
        x = params["x"][None] - batch
        return 0.5 * jnp.sum(jnp.asarray(_CURVATURE)[None] * x**2), len(batch)

    def batches(recipe: Recipe) -> Iterator:
        rng = np.random.default_rng(recipe.seed)
        while True:
            yield 0.3 * rng.normal(size=(8, 20)).astype(np.float32)

    def init(seed: int):
        return {"x": np.random.default_rng(seed).normal(size=20).astype(np.float32)}

    return Task(loss_fn=loss_fn, init=init, batches=batches)


def gradient_descent() -> Recipe:
    """Returns a recipe that contains only a learning rate."""
    return dataclasses.replace(
        RECIPE,
        optim="sgd",
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=0.0,
    )
