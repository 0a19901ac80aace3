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
# A learning rate and a weight decay are found by trying: many short runs, which differ
# in a number. Here they are trained side by side in one compiled program. You will see
# a small convolutional network for handwritten digits, eight learning rates tried at
# once, and a path over weight decay with cross-validation that suggests one.

# %%
import dataclasses

import flax.linen as nn
import jax
import numpy as np
from sklearn.datasets import load_digits

from jaxopt_tf.recipes import Recipe
from jaxopt_tf.training import cross_entropy
from jaxopt_tf.tuning import Task, decay_path, train_many

# %% [markdown]
# ## The task
#
# Digits of 8 by 8 pixels. With few of them to learn from a network overfits, so that
# decay has something to do: 120 rows are for training and choosing, the others are
# kept for a last look.

# %%
pixels, labels = load_digits(return_X_y=True)
images = np.float32(pixels.reshape(-1, 8, 8, 1) / 16)
order = np.random.default_rng(0).permutation(len(images))
few, others = order[:120], order[120:]
examples = {"x": images[few], "y": np.int32(labels[few])}
unseen = {"x": images[others], "y": np.int32(labels[others])}


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
# rates that are too high the runs come to nothing, and stop no other.


# %%
def batches(recipe):
    rng = np.random.default_rng(recipe.seed)
    while True:
        rows = rng.integers(0, len(few), recipe.per_device_train_batch_size)
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
# training; with `Task(held_out=...)` it is that of held-out batches.

# %%
recipe = runs.best_recipe
print(f"learning rate {recipe.learning_rate:.3g}")

# %% [markdown]
# ## The range test: a rate from a single run

# %% [markdown]
# ## A path over weight decay
#
# The rows are dealt out to five folds. For each decay and fold one run is trained on
# the rows of the other folds: here 35 runs in one program. What a fold's own rows say
# of its run, which has not seen them, has a mean over the folds and a standard error.

# %%
path = decay_path(loss_fn, init, examples, recipe, [0, 0.01, 0.03, 0.1, 0.3, 1, 3])
path.picture()

# %% [markdown]
# The stronger the decay, the higher the training loss. The held-out loss falls first.
# Where it is lowest is uncertain by about its standard error, and of decays that the
# data cannot tell apart the strongest is the most cautious: it is suggested.

# %%
print(path.reason)
path.table()

# %% [markdown]
# `path.recipe` is the recipe with that decay. On the digits that had no part in the
# choice, beside the same recipe without decay:

# %%
chosen = [dataclasses.replace(recipe, weight_decay=0.0), path.recipe]
last_look = train_many(dataclasses.replace(task, held_out=[unseen]), chosen)
last_look.table()

# %% [markdown]
# With `warm_starts=True` each run starts from where the one with the next stronger
# decay ended, as paths of linear models are computed. It needs fewer steps for each
# decay, and says something else: later runs have been trained for longer.

# %% [markdown]
# ## A sweep over several numbers

# %% [markdown]
# ## Read next
#
# - `jaxopt_tf.tuning`: what else is in this room.
# - `jaxopt_tf.recipes`: `Recipe`, and `doctor`, which looks at a plan before a run.
# - [`schedules.ipynb`](schedules.ipynb): schedules by name and by composition.
