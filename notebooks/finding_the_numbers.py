# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Finding the numbers
#
# Learning rates and the like are found by trying: many short runs, which differ in a
# number. Here they are trained side by side in one compiled program. You will see
# a small convolutional network for handwritten digits: eight learning rates tried at
# once, a range test, and a sweep over two numbers. At the end, the learning rate of a
# small GPT-2 on text.

# %%
import dataclasses

import flax.linen as nn
import jax
import numpy as np
from sklearn.datasets import load_digits

from jaxopt_tf import data, models
from jaxopt_tf.recipes import Recipe
from jaxopt_tf.training import cross_entropy
from jaxopt_tf.tuning import (
    Task,
    find_learning_rate,
    plot_rates,
    plot_sweep,
    range_test,
    sweep,
    train_many,
)

# %% [markdown]
# ## The task
#
# Digits of 8 by 8 pixels, 1,400 for training; the others are for evaluation.

# %%
pixels, labels = load_digits(return_X_y=True)
images = np.float32(pixels.reshape(-1, 8, 8, 1) / 16)
order = np.random.default_rng(0).permutation(len(images))
chosen, others = order[:1400], order[1400:]
examples = {"x": images[chosen], "y": np.int32(labels[chosen])}
eval_batch = {"x": images[others], "y": np.int32(labels[others])}


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), strides=2)(x))
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(10)(nn.relu(nn.Dense(32)(x)))


model = Model()


def init(seed):
    return model.init(jax.random.key(seed), examples["x"][:1])["params"]


def loss_fn(params, batch):  # the summed loss, and what it is a sum over
    return cross_entropy(model.apply({"params": params}, batch["x"]), batch["y"])


# %% [markdown]
# ## Rates side by side
#
# A `Task` is what is trained and on which data; a `Recipe` has every number of a run.
# `train_many` compiles one step for all of the recipes and hands it their numbers. Of
# rates that are too high runs diverge, without stopping the others.


# %%
def batches(recipe):
    rng = np.random.default_rng(recipe.seed)
    while True:
        rows = rng.integers(0, len(chosen), recipe.per_device_train_batch_size)
        yield {"x": examples["x"][rows], "y": examples["y"][rows]}


recipe = Recipe(max_steps=100, warmup_steps=0.1, per_device_train_batch_size=16)
task = Task(loss_fn=loss_fn, init=init, batches=batches)
rates = np.geomspace(1e-4, 1, 8)
runs = train_many(
    task, [dataclasses.replace(recipe, learning_rate=float(rate)) for rate in rates]
)
runs.table()

# %% [markdown]
# The loss at the end, by which runs are compared, is here that of the last tenth of
# training; with `Task(eval_batches=...)` it is that of evaluation batches.

# %%
recipe = runs.best_recipe
print(f"learning rate {recipe.learning_rate:.3g}")

# %% [markdown]
# ## The range test: a rate from a single run
#
# The cheapest look: one run whose rate rises from step to step, until it diverges.

# %%
found = range_test(task, recipe)
print(found.reason)
plot_rates(found)

# %% [markdown]
# Each rate starts there from what the rates before it have learnt. `find_learning_rate`
# gives every rate a start of its own, as `train_many` did above, in fewer steps than a
# run has, and suggests one. It is used for text, below.

# %% [markdown]
# ## A sweep over several numbers
#
# Any fields of a recipe, on a grid or at random. With `reduction_factor=2` only the
# better half continues after each round; with `folder=` a killed sweep resumes.

# %%
swept = sweep(
    dataclasses.replace(task, eval_batches=[eval_batch]),
    recipe,
    {"learning_rate": [1e-3, 3e-3, 1e-2, 3e-2], "adam_beta2": [0.9, 0.99, 0.999]},
)
best = swept.best_recipe
print(f"learning_rate {best.learning_rate:.3g}, adam_beta2 {best.adam_beta2:.3g}")
plot_sweep(swept)

# %% [markdown]
# ## The same on text
#
# A GPT-2 of one layer on the sources of Python's standard library. The lowest of the
# rates that are about as good as the best is suggested, because a longer run favours
# lower ones. On the command line: `jaxopt-tf find-lr`, with the flags of `train`.

# %%
sizes = {"n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 32}
config = models.GPT2Config(vocab_size=256, **sizes)
corpus = data.standard_library()
text = Task(
    loss_fn=models.make_loss_fn(config, 0)[1],
    init=lambda seed: models.make_loss_fn(config, seed)[0],
    batches=lambda recipe: data.Batches(
        corpus, block_size=32, batch_size=8, seed=recipe.seed
    ).iter_from(0),
)
found = find_learning_rate(
    text, Recipe(max_steps=400, warmup_steps=0.1), min_rate=1e-4, num_rates=8
)
print(found.reason)
plot_rates(found)

# %% [markdown]
# ## Read next
#
# - [`weight_decay.ipynb`](weight_decay.ipynb): a weight decay by cross-validation.
# - `jaxopt_tf.recipes`: `Recipe`, and `doctor`, which looks at a plan before a run.
# - [`schedules.ipynb`](schedules.ipynb): schedules by name and by composition.
