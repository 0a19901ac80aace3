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
# # A weight decay by cross-validation
#
# How much decay? Too little and a network learns its examples by heart, too much and it
# learns nothing. You will see seven decays tried on five folds of a few handwritten
# digits, all 35 runs side by side in one compiled program, the decay that
# `decay_path` suggests, and what it comes to on digits that had no part in the choice.

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
# ## Few examples
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
# ## The path
#
# The rows are dealt out to five folds. For each decay and fold one run is trained on
# the rows of the other folds. The loss of a fold's own rows in its run, which has not
# seen them, has a mean over the folds and a standard error.

# %%
recipe = Recipe(
    max_steps=100, learning_rate=0.01, warmup_steps=0.1, per_device_train_batch_size=16
)
path = decay_path(loss_fn, init, examples, recipe, [0, 0.01, 0.03, 0.1, 0.3, 1, 3])
path.picture()

# %% [markdown]
# The stronger the decay, the higher the training loss. The evaluation loss falls first.
# Where it is lowest is uncertain by about its standard error, and of decays that the
# data cannot tell apart the strongest is the most cautious: it is suggested.

# %%
print(path.reason)
path.table()

# %% [markdown]
# `path.recipe` is the recipe with that decay. On the digits that had no part in the
# choice, beside the same recipe without decay:


# %%
def batches(recipe):
    rng = np.random.default_rng(recipe.seed)
    while True:
        rows = rng.integers(0, len(few), recipe.per_device_train_batch_size)
        yield {"x": examples["x"][rows], "y": examples["y"][rows]}


chosen = [dataclasses.replace(recipe, weight_decay=0.0), path.recipe]
task = Task(loss_fn=loss_fn, init=init, batches=batches, eval_batches=[unseen])
train_many(task, chosen).table()

# %% [markdown]
# With `warm_starts=True` each run starts from where the one with the next stronger
# decay ended, as paths of linear models are computed. It needs fewer steps for each
# decay, and says something else: later runs have been trained for longer.

# %% [markdown]
# ## Read next
#
# - [`finding_the_numbers.ipynb`](finding_the_numbers.ipynb): learning rates, and sweeps
#   over any numbers.
# - `jaxopt_tf.tuning`: all of this sub-package.
