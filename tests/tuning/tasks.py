"""A small classification task of digits, whose runs take a second."""

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


def perceptron(seed: int):
    """Parameters, drawn by numpy: an init that JAX cannot trace."""
    kernel = np.random.default_rng(seed).normal(size=(64, 10)) / 8
    return {"kernel": np.float32(kernel), "bias": np.zeros(10, np.float32)}


def loss_fn(params, batch):
    logits = batch["x"] @ params["kernel"] + params["bias"][None]
    return training.cross_entropy(logits, batch["y"])


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
    eval_batches = [{"x": x[1500:], "y": y[1500:]}]
    task = Task(
        loss_fn=loss_fn, init=perceptron, batches=batches, eval_batches=eval_batches
    )
    return dataclasses.replace(task, **changes)


def alone(task: Task, recipe: Recipe) -> tuple[np.ndarray, float]:
    """Losses of the run trained by itself, and its evaluation loss at the end."""
    rng = recipe.seed if task.takes_key else None
    optimizer = build_optimizer(recipe)
    step = training.make_train_step(
        task.loss_fn,
        optimizer,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
    )
    state = training.init_train_state(task.init(recipe.seed), optimizer, rng=rng)
    losses = []
    for _, batch in zip(range(recipe.max_steps), task.batches(recipe), strict=False):
        state, metrics = step(state, batch)
        losses.append(float(metrics.loss))
    (batch,) = task.eval_batches
    params = training.evaluation_params(state.params, state.opt_state)
    total, num_items = jax.jit(task.loss_fn)(params, batch)
    return np.array(losses), float(total / num_items)
