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
# # A TPU slice, planned on a laptop
#
# A slice is rented by the hour, and whether a run fits on it can be known before. What
# is placed on each device follows from shapes; the work and traffic of a step follow
# from the compiled program, and the TPU's compiler needs no TPU.
#
# You will see what a GPT-2 needs on a slice of sixteen devices, how a Llama of eight
# billion parameters fits onto it or not, with AdamW and with Adafactor, with ZeRO-1 and
# without, on three meshes. Nothing is allocated on the way.

# %%
import warnings

warnings.filterwarnings("ignore", message="IProgress")  # of notebooks without widgets

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import rich.console
import torch
import transformers
from jax.sharding import PartitionSpec

from jaxopt_tf import Recipe, build_optimizer
from jaxopt_tf.cli import main
from jaxopt_tf.planning import (
    is_compiler_installed,
    named_slice,
    plan_shapes,
    plan_step,
    print_comparison,
    slice_devices,
)
from jaxopt_tf.sharding import (
    abstract_mesh,
    make_mesh,
    param_shardings,
    state_shardings,
)

# %% [markdown]
# ## A slice by its name
#
# A name stands for devices, their number and what their maker says of them.

# %%
slice_ = named_slice("v5e:4x4")
has_compiler = is_compiler_installed(slice_)
chip, size = slice_.chip, slice_.chip.memory / 1e9
print(f"{slice_.name}: {slice_.num_devices} x {chip.name} of {size:.0f} GB")
print("planned with its compiler" if has_compiler else "from shapes alone: no libtpu")

# %% [markdown]
# ## A GPT-2, by one command
#
# `jaxopt-tf plan` takes the flags of `jaxopt-tf train`; here it is called as a
# function. Parameters are divided by `fsdp`, the batch by both axes. With
# `--shapes_only` the whole step is not compiled, which takes a minute or two and adds
# activations, traffic and an estimate of the time.

# %%
flags = "--model gpt2 --devices v5e:4x4 --mesh data=4,fsdp=4 --shapes_only true"
_ = main(["plan", *flags.split()])

# %% [markdown]
# ## Any other tree: a Llama
#
# `plan` knows GPT-2; the functions under it know trees of arrays, or of shapes. These
# are the shapes of Llama 3.1 with 8 billion parameters, from its configuration on
# torch's meta device, under torch's names.

# %%
sizes = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


def llama_of(num_layers):
    config = transformers.LlamaConfig(num_hidden_layers=num_layers, **sizes)
    with torch.device("meta"):
        named = transformers.LlamaForCausalLM(config).named_parameters()
    return {n: jax.ShapeDtypeStruct(tuple(p.shape), jnp.float32) for n, p in named}


llama = llama_of(32)
num_params = sum(p.size for p in llama.values())
print(
    f"{num_params:,} parameters in {len(llama)} arrays, {4 * num_params / 1e9:.0f} GB"
)

# %% [markdown]
# One rule for all: the first axis of each array is sharded by `fsdp`, and the optimizer
# state is sharded like its parameters. With `zero_axis="data"`, which is ZeRO-1, it is
# also sharded along `data`, along which parameters are replicated.


# %%
def mesh_of(axes):
    if has_compiler:
        return make_mesh(axes, slice_devices(slice_))
    return abstract_mesh(axes, slice_.num_devices)


def placed(tree, shardings):
    def leaf(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(leaf, tree, shardings)


def lying(params, optimizer, axes, zero_axis=None):
    over = param_shardings(params, mesh_of(axes), {".*": PartitionSpec("fsdp")})
    state = jax.eval_shape(optimizer.init, params)
    there = state_shardings(state, params, over, zero_axis=zero_axis)
    return placed(params, over), placed(state, there)


optimizers = {
    optim: build_optimizer(Recipe(max_steps=1_000, optim=optim))
    for optim in ("adamw_torch", "adafactor")
}


def plan_of(optim, axes, zero_axis=None):
    params, state = lying(llama, optimizers[optim], axes, zero_axis)
    parts = {"parameters": params, "optimizer state": state, "gradients": params}
    return plan_shapes(parts, slice_)


# %%
plans = {}
for axes in ("fsdp=16", "data=2,fsdp=8", "data=4,fsdp=4"):
    for optim in optimizers:
        plans[f"{optim}, {axes}"] = plan_of(optim, axes)
        if axes.startswith("data"):
            plans[f"{optim}, {axes}, ZeRO-1"] = plan_of(optim, axes, "data")
wide = rich.console.Console(width=120, force_jupyter=False, color_system=None)
print_comparison(plans, console=wide)

# %%
figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
left = np.zeros(len(plans))
for part, (what, gray, hatch) in enumerate(
    [
        ("parameters", "0.85", ""),
        ("optimizer state", "0.4", ""),
        ("gradients", "1", "//"),
    ]
):
    size = np.array([plan.parts[part].on_device / 1e9 for plan in plans.values()])
    axes.barh(list(plans), size, left=left, color=gray, ec="k", hatch=hatch, label=what)
    left += size
axes.axvline(chip.memory / 1e9, color="k", ls="--", label=f"memory of a {chip.name}")
axes.set(xlabel="GB on each device, before any activations")
axes.invert_yaxis()
axes.legend()
plt.show()

# %% [markdown]
# What lies between a bar and the dashed line is all that activations may take. On
# `data=2,fsdp=8`, where arrays are gathered among fewer devices, AdamW needs ZeRO-1 to
# stay below it, and Adafactor needs nothing. On `data=4,fsdp=4` parameters and
# gradients fill the device by themselves. ZeRO-1 saves AdamW much and Adafactor next to
# nothing, as its state is next to nothing already.
#
# ## The update, compiled
#
# With the compiler installed, the plan has more: the memory that the update keeps
# beside its arguments, moves to and from memory, and sends. For a Llama of two layers,
# clipping included; the time is the least that published peaks allow, no promise.

# %%
small = llama_of(2)


def compiled_of(optimizer, axes):
    def step(params, opt_state, grads):
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    params, state = lying(small, optimizer, axes)
    step = jax.jit(step, donate_argnums=(0, 1))
    return plan_step(step, params, state, params, slice_=slice_)


for name, optimizer in optimizers.items() if has_compiler else ():
    plan = compiled_of(optimizer, "fsdp=16")
    cost, sent = plan.cost, sum(each.sent for each in plan.cost.collectives)
    print(
        f"{name:12} arguments {cost.arguments / 1e6:,.0f} MB, temporary "
        f"{cost.temporary / 1e6:.1f} MB, moves {cost.hbm_bytes / 1e6:,.0f} MB, sends "
        f"{sent / 1e3:.1f} kB, takes {plan.estimate.seconds * 1e3:.2f} ms at least"
    )
if not has_compiler:
    print("Not compiled: there is no libtpu here.")

# %% [markdown]
# An update is bound by memory, not by arithmetic and not by the network: what devices
# send each other are norms, and Adafactor's rows and columns.
#
# Read next: "What it will need" in the README, for a plan line by line;
# [adafactor_memory.ipynb](adafactor_memory.ipynb) on what Adafactor costs in loss;
# `benchmarks/scales_to_a_pod.py` for a Llama of 70 billion parameters on 512 chips.
