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
# # Adafactor's memory beside AdamW's
#
# AdamW keeps two numbers for each parameter. Adafactor, as the Trainer sets it up,
# keeps one for each row and each column of a matrix, and no first moment at all.
#
# You will see the bytes of both for a GPT-2 of 124 million parameters, from shapes and
# from the compiled step, without allocating it; the same really allocated for a smaller
# one; what is factored and what is not; and what it costs in loss in a short training.

# %%
import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from jaxopt_tf import Recipe, adamw_tf, build_optimizer, build_schedule, clip
from jaxopt_tf.models import GPT2Config, gpt2_preset, make_loss_fn
from jaxopt_tf.optimizers import adafactor_trainer
from jaxopt_tf.planning import named_slice, plan_step
from jaxopt_tf.recipes import explain

# %% [markdown]
# ## What is factored
#
# `explain` needs shapes alone. Of one layer of the GPT-2: matrices are factored along
# both of their axes; biases and the gains of norms have no second axis and keep their
# squares whole, which are few.


# %%
def shapes_of(config):
    return jax.eval_shape(lambda: make_loss_fn(config, 0)[0])


recipes = {
    name: Recipe(max_steps=1_000, optim=name, weight_decay=0.1, max_grad_norm=0)
    for name in ("adamw_torch", "adafactor")
}
print(explain(recipes["adafactor"], shapes_of(gpt2_preset("gpt2", n_layer=1))))

# %% [markdown]
# All twelve layers, in both:

# %%
gpt2 = shapes_of(gpt2_preset("gpt2"))
for name, recipe in recipes.items():
    told = explain(recipe, gpt2)
    size = told.state_bytes / told.num_params
    print(f"{name:12}{told.state_bytes:15,} bytes of state, {size:.4f} a parameter")

# %% [markdown]
# ## What the compiled step needs
#
# Bytes of state are a promise that the program has to keep: an optimizer may have next
# to no state and still write an array of the size of the gradients on the way. So the
# step is compiled for these shapes, parameters and state given away (donated), and the
# compiler is asked, here that of this machine's CPU. Nothing is run, and nothing of
# that size allocated. Clipping is left out: before Adafactor a CPU keeps one more array
# of the gradients' size for it.


# %%
def planned(recipe):
    optimizer = build_optimizer(recipe)

    def step(params, opt_state, grads):
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    state = jax.eval_shape(optimizer.init, gpt2)
    step = jax.jit(step, donate_argnums=(0, 1))
    return plan_step(step, gpt2, state, gpt2, slice_=named_slice("cpu:1"))


plans = {name: planned(recipe) for name, recipe in recipes.items()}
print(f"{'MB':14}{'arguments':>11}{'donated':>11}{'temporary':>11}")
for name, plan in plans.items():
    numbers = (plan.cost.arguments, plan.cost.aliased, plan.cost.temporary)
    print(f"{name:14}" + "".join(f"{number / 1e6:11,.1f}" for number in numbers))

# %%
figure, axes = plt.subplots(figsize=(8, 2.6), layout="constrained")
left = np.zeros(2)
for part, (what, gray, hatch) in enumerate(
    [
        ("parameters", "0.85", ""),
        ("optimizer state", "0.4", ""),
        ("gradients", "1", "//"),
    ]
):
    size = np.array([plan.parts[part].on_device / 1e6 for plan in plans.values()])
    axes.barh(list(plans), size, left=left, color=gray, ec="k", hatch=hatch, label=what)
    left += size
temporary = [plan.cost.temporary / 1e6 for plan in plans.values()]
axes.barh(list(plans), temporary, left=left, color="k", label="temporary")
axes.set(xlabel="memory of the update of a GPT-2, 124M parameters (MB)", xlim=(0, 2100))
axes.invert_yaxis()
axes.legend(ncols=2, loc="lower right")
plt.show()

# %% [markdown]
# Half of AdamW's bar is gone. In training activations come on top, the same for both,
# and with long rows they are the larger part: `jaxopt-tf plan` compiles the whole step.
#
# ## Really allocated
#
# The same for a model of 10.8 million parameters, with arrays. How many bytes are alive
# is asked of JAX before and after.


# %%
def bytes_alive():
    return sum(array.nbytes for array in jax.live_arrays())


mini = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes_of(gpt2_preset("mini")))
for name, recipe in recipes.items():
    before = bytes_alive()
    state = build_optimizer(recipe).init(mini)
    print(f"{name:14}{(bytes_alive() - before) / 1e6:8.2f} MB allocated")
    assert bytes_alive() - before == explain(recipe, mini).state_bytes
    del state

# %% [markdown]
# ## What it costs in loss
#
# A small GPT-2 reads the source of Python's `argparse`; the last tenth is for
# evaluation. Both optimizers get the same batches, the same number of steps and the
# same four peak rates, which are tried at once: the whole training is one compiled
# function of the rate, under `vmap`.

# %%
num_steps, length = 80, 33
text = np.frombuffer(Path(argparse.__file__).read_bytes(), np.uint8)
split = len(text) * 9 // 10
starts = np.random.default_rng(0).integers(0, split - length, (num_steps, 8))
batches = jnp.asarray(text[starts[..., None] + np.arange(length)])
ends = np.arange(split, len(text) - length, length)
eval_batch = jnp.asarray(text[ends[:, None] + np.arange(length)])

config = GPT2Config(n_layer=1, n_head=2, n_embd=32, block_size=32)
params, loss_fn = make_loss_fn(config, 0)
shape = build_schedule(
    Recipe(
        max_steps=num_steps,
        learning_rate=1.0,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
    )
)


def mean_loss(params, batch):
    total, count = loss_fn(params, batch)
    return total / count


# %%
def one_step(optimizer, carried, batch):
    params, opt_state = carried
    loss, grads = jax.value_and_grad(mean_loss)(params, batch)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), loss


def trained(make, rate):
    whole = make(lambda step: rate * shape(step), weight_decay=0.1)
    optimizer = optax.chain(clip(1.0), whole)
    step = jax.tree_util.Partial(one_step, optimizer)
    start = (params, optimizer.init(params))
    (ended, _), losses = jax.lax.scan(step, start, batches)
    return losses, mean_loss(ended, eval_batch)


rates = jnp.array([5e-3, 1e-2, 2e-2, 5e-2])
runs = {}
for name, make in (("AdamW", adamw_tf), ("Adafactor", adafactor_trainer)):
    runs[name] = jax.jit(jax.vmap(lambda rate, make=make: trained(make, rate)))(rates)
    best = int(jnp.argmin(runs[name][1]))
    losses = ", ".join(f"{loss:.3f}" for loss in runs[name][1])
    print(f"{name:10} evaluation loss {losses}; best at {rates[best]:g}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
styles = {"AdamW": {"color": "0.65", "lw": 3}, "Adafactor": {"color": "k", "lw": 1}}
for name, (losses, after) in runs.items():
    best = int(jnp.argmin(after))
    label = f"{name}, rate {rates[best]:g}"
    left.plot(np.arange(1, num_steps + 1), losses[best], label=label, **styles[name])
    right.semilogx(rates, after, "o-", label=name, **styles[name])
left.set(xlabel="step", ylabel="training loss (nats per byte)")
right.set(xlabel="peak learning rate", ylabel="evaluation loss (nats per byte)")
right.set_xticks(rates, [f"{rate:g}" for rate in rates])
right.minorticks_off()
left.legend()
right.legend()
plt.show()

# %% [markdown]
# In this run the best of Adafactor is ahead of the best of AdamW. One seed, one small
# model and eighty steps prove no more than that the saving need not cost anything.
# `beta1=0.9` gives Adafactor a first moment, and takes four bytes a parameter for it.
#
# Read next: [plan_a_slice.ipynb](plan_a_slice.ipynb), where a model is laid on many
# devices with either optimizer; `benchmarks/optimizer_step_at_memory_speed.py` for the
# bytes that an update moves, and the time that it takes.
