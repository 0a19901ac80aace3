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
# # First steps
#
# One line carries Transformers' optimization stack into a train step in JAX:
#
# ```python
# optimizer = optax.chain(clip(1.0), adamw_tf(schedule, weight_decay=0.01))
# ```
#
# You will see that line at work in a Flax Linen step and in a Flax NNX step, which
# parameters it decays and which not, and schedules composed from phases and drawn.

# %%
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from flax.training.train_state import TrainState

from jaxopt_tf import adamw_tf, clip, decay_mask, get_learning_rate, get_scheduler
from jaxopt_tf.schedules import constant, cosine, decay, join, linear, warmup

# %% [markdown]
# ## A schedule, by name or by composition
#
# `get_scheduler` takes Transformers' names and numbers, with the learning rate in place
# of the optimizer. Underneath are phases that can be laid end to end freely. Both give
# a function from a step to a learning rate, exact to the last steps.

# %%
num_steps = 200
schedules = {
    "linear": get_scheduler("linear", 3e-2, 20, num_steps),
    "cosine": get_scheduler("cosine", 3e-2, 20, num_steps),
    "warm up, hold, decay": join(
        3e-2, warmup(linear, 20), constant(120), decay(cosine, 60, floor=0.1)
    ),
}
steps = jnp.arange(num_steps)
for name, schedule in schedules.items():
    plt.plot(steps, jax.vmap(schedule)(steps), label=name)
plt.xlabel("step")
plt.ylabel("learning rate")
plt.legend()
plt.show()

# %% [markdown]
# ## The line
#
# Clipping stands before the optimizer: the optimizer computes the new parameter itself,
# and nothing may rescale what comes out of it.

# %%
schedule = schedules["warm up, hold, decay"]
optimizer = optax.chain(clip(1.0), adamw_tf(schedule, weight_decay=0.01))

# %% [markdown]
# A small task for both models: which side of a spiral is a point on?

# %%
angles = np.linspace(0.5, 3.0 * np.pi, 256)
arm = np.stack([angles * np.cos(angles), angles * np.sin(angles)], axis=1) / 8.0
points = jnp.asarray(np.concatenate([arm, -arm]), jnp.float32)
labels = jnp.repeat(jnp.arange(2), 256)


def cross_entropy(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


# %% [markdown]
# ## In a Linen train step


# %%
class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(64, name="up")(x))
        x = nn.LayerNorm(name="post")(x)
        return nn.Dense(2, name="down")(nn.relu(nn.Dense(64, name="middle")(x)))


linen_model = LinenModel()
linen_params = linen_model.init(jax.random.key(0), points)["params"]
state = TrainState.create(apply_fn=linen_model.apply, params=linen_params, tx=optimizer)


@jax.jit
def linen_step(state):
    def loss_fn(params):
        return cross_entropy(state.apply_fn({"params": params}, points))

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), loss


linen_losses = []
for _ in range(num_steps):
    state, loss = linen_step(state)
    linen_losses.append(float(loss))
print(f"loss {linen_losses[0]:.3f} -> {linen_losses[-1]:.4f}")

# %% [markdown]
# The state remembers the rate that the last update used, and the norm of the gradients
# before they were clipped:

# %%
print("learning rate", get_learning_rate(state.opt_state))
print("gradient norm", optax.tree.get(state.opt_state, "grad_norm"))

# %% [markdown]
# ## What is decayed
#
# Without a mask of yours, biases and normalisation layers are left out, as Trainer
# does. The LayerNorm above is called `post`, which no pattern of names would find.

# %%
for path, is_decayed in jax.tree_util.tree_leaves_with_path(decay_mask(linen_params)):
    print(f"{jax.tree_util.keystr(path):24s}", "decayed" if is_decayed else "left out")

# %% [markdown]
# Other rules are a name or a list of patterns away; a pattern that matches nothing is
# an error, not a surprise at the end of the run.

# %%
decay_mask(linen_params, rule=["bias", "scale", "down"])

# %% [markdown]
# ## In an NNX train step


# %%
class NNXModel(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(2, 64, rngs=rngs)
        self.post = nnx.LayerNorm(64, rngs=rngs)
        self.middle = nnx.Linear(64, 64, rngs=rngs)
        self.down = nnx.Linear(64, 2, rngs=rngs)

    def __call__(self, x):
        x = self.post(nnx.relu(self.up(x)))
        return self.down(nnx.relu(self.middle(x)))


nnx_model = NNXModel(nnx.Rngs(0))
nnx_optimizer = nnx.Optimizer(nnx_model, optimizer, wrt=nnx.Param)


@nnx.jit
def nnx_step(model, optimizer):
    loss, grads = nnx.value_and_grad(lambda m: cross_entropy(m(points)))(model)
    optimizer.update(model, grads)
    return loss


nnx_losses = [float(nnx_step(nnx_model, nnx_optimizer)) for _ in range(num_steps)]
print(f"loss {nnx_losses[0]:.3f} -> {nnx_losses[-1]:.4f}")
print("learning rate", get_learning_rate(nnx_optimizer.opt_state))

# %%
plt.semilogy(linen_losses, label="Linen")
plt.semilogy(nnx_losses, label="NNX")
plt.xlabel("step")
plt.ylabel("loss")
plt.legend()
plt.show()

# %% [markdown]
# ## Read next
#
# - `jaxopt_tf.schedules`: every schedule of Transformers, and phases to compose others.
# - `jaxopt_tf.optimizers`: `adafactor_tf`, and `set_learning_rate` for a rate that is
#   changed between steps without compiling again.
# - `jaxopt-tf train --help`: the same line in a whole pretraining run.
