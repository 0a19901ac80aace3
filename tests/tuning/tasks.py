"""A small task whose runs take a second: digits, and a perceptron for them."""

import dataclasses

import jax
import numpy as np
from sklearn.datasets import load_digits

from jaxopt_tf import training
from jaxopt_tf.recipes import Recipe, build_optimizer
from jaxopt_tf.tuning import Task


def digits() -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    return np.float32(x / 16), np.int32(y)


def perceptron(seed: int, width: int = 16):
    """Parameters, drawn by numpy: an init that JAX cannot trace."""
    rng = np.random.default_rng(seed)
    return {
        f"layer_{i}": {
            "kernel": np.float32(rng.normal(size=(m, n)) / np.sqrt(m)),
            "bias": np.zeros(n, np.float32),
        }
        for i, (m, n) in enumerate([(64, width), (width, 10)])
    }


def loss_fn(params, batch):
    x = batch["x"]
    for i in range(2):
        layer = params[f"layer_{i}"]
        x = x @ layer["kernel"] + layer["bias"][None]
        x = jax.nn.relu(x) if i == 0 else x
    return training.cross_entropy(x, batch["y"])


def batches(recipe: Recipe):
    x, y = digits()
    shape = (recipe.per_device_train_batch_size,)
    if recipe.gradient_accumulation_steps > 1:
        shape = (recipe.gradient_accumulation_steps, *shape)
    rng = np.random.default_rng(recipe.seed)
    while True:
        rows = rng.integers(0, 1500, shape)
        yield {"x": x[rows], "y": y[rows]}


def digits_task(**changes) -> Task:
    x, y = digits()
    held_out = [{"x": x[1500:], "y": y[1500:]}]
    task = Task(loss_fn=loss_fn, init=perceptron, batches=batches, held_out=held_out)
    return dataclasses.replace(task, **changes)


def alone(task: Task, recipe: Recipe) -> tuple[np.ndarray, float]:
    """The run by itself, as one trains it: losses, and the held-out loss at the end."""
    rng = recipe.seed if task.takes_key else None
    optimizer = build_optimizer(recipe)
    step = training.make_train_step(
        task.loss_fn,
        optimizer,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
    )
    params = jax.tree.map(jax.numpy.asarray, task.init(recipe.seed))
    state = training.init_train_state(params, optimizer, rng=rng)
    losses = []
    for _, batch in zip(range(recipe.max_steps), task.batches(recipe), strict=False):
        state, metrics = step(state, batch)
        losses.append(float(metrics.loss))
    (batch,) = task.held_out
    total, num_items = task.loss_fn(state.params, batch)
    return np.array(losses), float(total / num_items)
