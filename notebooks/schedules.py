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
# # Schedules, composed and compared
#
# A schedule is a function: a step comes in, a learning rate goes out. You will see
# Transformers' schedules by name, others composed from phases, all of them drawn; what
# float32 does to the end of a long run, and what is done against it; and the same
# curves in a terminal.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_tf import get_scheduler
from jaxopt_tf.cli import main
from jaxopt_tf.plots import plot_schedule
from jaxopt_tf.schedules import (
    constant,
    cosine,
    decay,
    hard_restarts,
    join,
    linear,
    one_minus_sqrt,
    warmup,
)

# %% [markdown]
# ## By name
#
# `get_scheduler` takes Transformers' names and numbers, with the learning rate in place
# of the optimizer. Further arguments of a schedule are passed as a dict.

# %%
peak, num_warmup_steps, num_steps = 3e-4, 500, 10_000
names = ["linear", "cosine", "inverse_sqrt", "constant_with_warmup"]
named = {name: get_scheduler(name, peak, num_warmup_steps, num_steps) for name in names}
named["cosine_with_min_lr"] = get_scheduler(
    "cosine_with_min_lr", peak, num_warmup_steps, num_steps, {"min_lr_rate": 0.1}
)
plot_schedule(named, num_steps)

# %% [markdown]
# ## By composition
#
# Underneath are phases. A warmup reads a curve from its start, a decay reads it from
# its end, and `join` lays phases end to end. A curve climbs from 0 to 1 as `x`
# does, which comes as two float32, `high` and the little that it leaves; one of your
# own is a line.


# %%
def squared(x):
    return x.high**2


composed = {
    "warm up, hold, decay": join(
        peak,
        warmup(linear, 500),
        constant(7_500),
        decay(one_minus_sqrt, 2_000),
    ),
    "down to a tenth": join(peak, warmup(cosine, 500), decay(cosine, 6_500, floor=0.1)),
    "restarts": join(
        peak, warmup(linear, 500), hard_restarts(cosine, 9_500, num_cycles=3)
    ),
    "a curve of one's own": join(peak, warmup(squared, 2_000), decay(squared, 8_000)),
}
plot_schedule(composed, num_steps)

# %% [markdown]
# They are ordinary functions of JAX: under `jax.jit`, `jax.vmap` and `jax.lax.scan` as
# well as with a Python number, and wherever optax takes a schedule.

# %%
schedule = composed["warm up, hold, decay"]
print("one step  ", schedule(9_000))
print("many steps", jax.vmap(schedule)(jnp.array([0, 250, 500, 9_000, 9_999])))

# %% [markdown]
# ## The end of a long run
#
# In float32, `1 - step / num_steps` is a difference of two numbers of almost one size:
# near the end few digits are left of it. Here steps are subtracted first, as integers,
# which is exact, and divided once. Both beside the same formula in double, over the
# last hundred of a million steps:

# %%
num_steps = 1_000_000
steps = np.arange(num_steps - 100, num_steps)
left = (num_steps - steps) / num_steps
in_double = {"linear": left, "cosine": np.sin(0.5 * np.pi * left) ** 2}
ours = {
    "linear": get_scheduler("linear", 1.0, 0, num_steps),
    "cosine": get_scheduler("cosine", 1.0, 0, num_steps),
}
theirs = {
    "linear": optax.linear_schedule(1.0, 0.0, num_steps),
    "cosine": optax.cosine_decay_schedule(1.0, num_steps),
}
for name, exact in in_double.items():
    for who, one in (("optax", theirs[name]), ("jaxopt_tf", ours[name])):
        rates = np.asarray(jax.vmap(one)(jnp.asarray(steps)), np.float64)
        off = np.max(np.abs(rates - exact) / exact)
        print(f"{name}, {who:9}: off by {off:.1e} at most, {np.sum(rates == 0)} are 0")

# %% [markdown]
# The last 600 steps of the cosine, counted from there, in units of the peak:

# %%
first = num_steps - 600
end = {
    "optax": lambda step: theirs["cosine"](step + first),
    "jaxopt_tf": lambda step: ours["cosine"](step + first),
}
plot_schedule(end, 600)

# %% [markdown]
# ## In a terminal
#
# `jaxopt-tf schedule cosine` is all that it takes; `--output` writes the picture from
# above. Several names have one scale.

# %%
args = "schedule linear cosine inverse_sqrt --num_training_steps 10000"
_ = main(args.split())
# %% [markdown]
# A schedule that a metric drives has no curve before the run, and says so:

# %%
_ = main(["schedule", "reduce_lr_on_plateau"])

# %% [markdown]
# ## Read next
#
# - `jaxopt_tf.plots`: `plot_run`, `plot_runs` and `plot_layers` draw the folders of
#   runs, ours and a Trainer's.
# - `jaxopt_tf.schedules`: every schedule of Transformers, and what phases there are.
# - [`first_steps.ipynb`](first_steps.ipynb): a schedule in an optimizer in a train
#   step.
