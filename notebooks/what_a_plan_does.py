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
# # What a plan does, and what is wrong with it
#
# A recipe that decays the wrong leaves trains without a word, and is found out a day
# later. `explain` says what becomes of each parameter; `doctor` tries an optimizer out
# and says what would run and yet not do what was meant. Neither trains anything.
#
# You will see a GPT-2 and a T5 explained, and ten sick plans beside a healthy one.

# %%
import textwrap
import warnings

warnings.filterwarnings("ignore", message="IProgress")  # of notebooks without widgets

import jax
import optax
import torch
import transformers

from jaxopt_tf import adamw_tf, clip, decay_mask
from jaxopt_tf.models import GPT2Config, make_loss_fn
from jaxopt_tf.recipes import Recipe, build_schedule, doctor, explain

# %% [markdown]
# ## A GPT-2 with AdamW
#
# Only shapes are needed. The last line counts.

# %%
gpt2 = jax.eval_shape(lambda: make_loss_fn(GPT2Config(n_layer=1), 0)[0])
recipe = Recipe(
    max_steps=1_000,
    learning_rate=1e-3,
    lr_scheduler_type="cosine",
    warmup_steps=20,
    weight_decay=0.1,
)
print(explain(recipe, gpt2))

# %% [markdown]
# ## A T5 with Adafactor
#
# By torch's own names, from torch's meta device, under the rule of Trainer. Look at
# `relative_attention_bias`: an embedding, but its name holds `bias`.

# %%
sizes = {"num_layers": 1, "d_model": 64, "d_ff": 128, "num_heads": 4, "d_kv": 16}
with torch.device("meta"):
    model = transformers.T5Model(transformers.T5Config(vocab_size=1_000, **sizes))
t5 = {
    name: jax.ShapeDtypeStruct(tuple(p.shape), "float32")
    for name, p in model.named_parameters()
}
theirs = Recipe(
    max_steps=1_000,
    optim="adafactor",
    weight_decay=0.01,
    decay_rule="transformers_v5",
    rate_groups=[{"pattern": r"^shared", "factor": 0.1}],
)
print(explain(theirs, t5))

# %% [markdown]
# ## Ten sick plans, and a healthy one

# %%
rate = build_schedule(recipe)
adamw = adamw_tf(rate, weight_decay=0.1)


def everything(params):
    return jax.tree.map(lambda _: True, params)


def by_rank(params):
    return jax.tree.map(lambda p: "matrix" if len(p.shape) > 1 else "vector", params)


each = {"matrix": optax.chain(clip(1.0), adamw), "vector": adamw}
all_of_it = adamw_tf(rate, weight_decay=0.1, decay_mask=everything)
low = adamw_tf(rate, weight_decay=0.1, moment_dtype="bfloat16")
too_fast = adamw_tf(lambda step: rate(4 * step), weight_decay=0.1)
plans = {
    "healthy": optax.chain(clip(1.0), adamw),
    "clipping behind the optimizer": optax.chain(adamw, clip(1.0)),
    "optax.clip": optax.chain(optax.clip(1.0), adamw),
    "clipping inside": optax.multi_transform(each, by_rank),
    "decay in the gradient": optax.chain(
        clip(1.0), optax.add_decayed_weights(0.1, decay_mask), adamw
    ),
    "decay twice": optax.chain(
        clip(1.0),
        optax.scale_by_adam(),
        optax.add_decayed_weights(0.1, decay_mask),
        optax.add_decayed_weights(0.1, decay_mask),
        optax.scale_by_learning_rate(rate),
    ),
    "decay forgotten": optax.chain(clip(1.0), adamw_tf(rate)),
    "decay of all": optax.chain(clip(1.0), all_of_it),
    "bfloat16 moments": optax.chain(clip(1.0), low),
    "another schedule": optax.chain(clip(1.0), too_fast),
}
for name, optimizer in plans.items():
    print(f"{name}:")
    for finding in doctor(recipe, optimizer, gpt2) or ["nothing found"]:
        print(textwrap.indent(textwrap.fill(str(finding), 84), "    "))

# %% [markdown]
# The tenth has no optimizer at all: the numbers alone give it away.

# %%
late = Recipe(max_steps=1_000, learning_rate=1e-7, warmup_steps=900, weight_decay=0.1)
for finding in doctor(late):
    print(textwrap.fill(str(finding), 88))

# %% [markdown]
# What `Recipe` can refuse outright, it does, with a sentence. `jaxopt-tf doctor` and
# `jaxopt-tf explain` take the flags of `jaxopt-tf train`. Next:
# [continue_a_torch_run.ipynb](continue_a_torch_run.ipynb).
