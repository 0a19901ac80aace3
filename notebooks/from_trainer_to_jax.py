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
# # From a Trainer script to a train step in JAX
#
# On one side a script as it is usually written: a model of Transformers, a
# `TrainingArguments`, a `Trainer`. On the other the same run in JAX, one line after the
# other: the numbers, the parameters, the loss, the optimizer with its schedule, the
# step.
#
# You will see two loss curves on top of each other, how far they are apart, and beside
# that how far the script is from itself when torch takes another attention kernel.

# %%
import argparse
import logging
import tempfile
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", message="IProgress")  # of notebooks without widgets

import matplotlib.pyplot as plt
import numpy as np
import torch
import transformers
from flax import nnx

from jaxopt_tf import build_optimizer, init_train_state, interop, make_train_step
from jaxopt_tf.models import GPT2, GPT2Config
from jaxopt_tf.training import cross_entropy

logging.getLogger("transformers").setLevel(logging.ERROR)
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)  # so small a model is fastest on one
folder = tempfile.TemporaryDirectory()  # deleted in the last cell
work = Path(folder.name)

# %% [markdown]
# ## The script
#
# A GPT-2 of two layers reads a text, byte by byte: the source of Python's `argparse`,
# 100 kB. An update is of two micro-batches of eight rows of 33 bytes. Rows are taken in
# their order, and nothing is dropped out: torch and JAX draw different random numbers,
# and we want to compare all the rest.

# %%
num_steps, micro_batches, batch_size, length = 60, 2, 8, 33
shape = (num_steps, micro_batches, batch_size, length)
text = np.frombuffer(Path(argparse.__file__).read_bytes(), np.uint8)
starts = np.random.default_rng(0).integers(0, len(text) - length, np.prod(shape[:-1]))
windows = text[starts[:, None] + np.arange(length)]
rows = [{"input_ids": row, "labels": row} for row in windows.astype(np.int64)]

sizes = {"n_layer": 2, "n_head": 2, "n_embd": 64, "vocab_size": 256}
dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
tokens = {"bos_token_id": 0, "eos_token_id": 0}

arguments = transformers.TrainingArguments(
    output_dir=str(work / "trainer"),
    max_steps=num_steps,
    per_device_train_batch_size=batch_size,
    gradient_accumulation_steps=micro_batches,
    optim="adamw_torch",
    learning_rate=1e-3,
    lr_scheduler_type="cosine",
    warmup_steps=0.1,
    weight_decay=0.1,
    adam_beta2=0.99,
    max_grad_norm=2.0,
    train_sampling_strategy="sequential",
    logging_steps=1,
    save_strategy="no",
    report_to=[],
    disable_tqdm=True,
    use_cpu=True,
)


# %%
def model_with(attention):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_positions=length, attn_implementation=attention, **sizes, **dropout, **tokens
    )
    return transformers.GPT2LMHeadModel(config)


def run_script(attention):
    trainer = transformers.Trainer(model_with(attention), arguments, train_dataset=rows)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


script = run_script("sdpa")  # what Transformers takes
script_again = run_script("eager")  # the same formula, summed in another order

# %% [markdown]
# ## `TrainingArguments` becomes a `Recipe`
#
# It keeps what decides an update. The rest is listed by what becomes of it: what the
# loop must see to itself, and what changes no number. What would change the numbers and
# cannot be kept is refused with a sentence.

# %%
translated = interop.recipe_from_transformers(arguments)
recipe = translated.recipe
print(recipe)
print("left to the loop:", ", ".join(translated.non_optimizer))
print("changes no number:", ", ".join(translated.ignored))

# %% [markdown]
# ## The parameters
#
# The script's model, as it was before its first step, becomes parameters of a Flax
# model, of which shapes alone are needed. `match_names` finds the tensor of each leaf
# by name and shape, and would list whatever is left over on either side.

# %%
begin = model_with("sdpa")
begin.save_pretrained(work / "begin")
flax_config = GPT2Config(block_size=length, **sizes)
model = nnx.eval_shape(lambda: GPT2(flax_config, rngs=nnx.Rngs(0)))
graph, shapes = nnx.split(model, nnx.Param)
shapes = nnx.to_pure_dict(shapes)
names = interop.match_names(shapes, interop.torch_model_from_module(begin))
params = interop.read_params(work / "begin", shapes, names)
for found in names.slices[:4]:
    print(f"{found.torch_name:35} -> {found.leaf}")

# %% [markdown]
# ## The loss
#
# A loss function gives a sum and what it is a sum over; only after the last
# micro-batch is one divided by the other. Trainer divides a GPT-2's loss by all labels,
# the first of each row included, which nothing predicts. So do we here, to have the
# same numbers; otherwise pass on the count that `cross_entropy` gives.


# %%
def loss_fn(params, batch):
    logits = nnx.merge(graph, params)(batch[:, :-1])
    total, _ = cross_entropy(logits, batch[:, 1:])
    return total, batch.size


# %% [markdown]
# ## The optimizer and its schedule
#
# Both come from the recipe: `clip`, then `adamw_tf` with a cosine that begins with a
# climb. Trainer does not decay the weights of layer norms, which it knows by their type
# in torch; `names.layer_norms` has kept that.

# %%
optimizer = build_optimizer(recipe, layer_norms=names.layer_norms)

# %% [markdown]
# ## The step
#
# A batch has an axis of micro-batches in front.

# %%
train_step = make_train_step(
    loss_fn,
    optimizer,
    gradient_accumulation_steps=recipe.gradient_accumulation_steps,
)
state = init_train_state(params, optimizer)
here = []
for batch in windows.reshape(shape):
    state, metrics = train_step(state, batch)
    here.append(metrics)

# %% [markdown]
# ## The two runs
#
# Trainer logs the loss, the gradients' norm before clipping, and the rate: three
# numbers a step to compare. A float32 is a multiple of about 1e-7 of itself, so the
# differences on the right are the last one or two units of the loss.

# %%
steps = np.arange(1, num_steps + 1)
ours = {
    "loss": np.array([float(m.loss) for m in here]),
    "grad_norm": np.array([float(m.norms.grads) for m in here]),
    "learning_rate": np.array([float(m.learning_rate) for m in here]),
}
theirs, again = (
    {name: np.array([entry[name] for entry in log]) for name in ours}
    for log in (script, script_again)
)
apart = {name: np.abs(ours[name] / theirs[name] - 1) for name in ("loss", "grad_norm")}
noise = {name: np.abs(again[name] / theirs[name] - 1) for name in apart}

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
left.plot(steps, theirs["loss"], color="0.75", lw=6, label="the script, in PyTorch")
left.plot(steps, ours["loss"], "k--", label="the same in JAX")
left.set(xlabel="step", ylabel="loss (nats per byte, as Trainer counts)")
left.legend()
right.plot(steps, noise["loss"], "o", color="0.7", label="the script, other kernel")
right.plot(steps, apart["loss"], "kx", label="the same in JAX")
right.set(xlabel="step", ylabel="relative difference from the script's loss")
right.legend()
plt.show()

# %%
for name, what in (("loss", "loss"), ("grad_norm", "gradient norm")):
    print(
        f"{what}: largest relative difference {apart[name].max():.1e}; "
        f"the script from itself {noise[name].max():.1e}"
    )
rate_apart = np.abs(ours["learning_rate"] - theirs["learning_rate"]).max()
print(f"rate: largest difference {rate_apart / recipe.learning_rate:.1e} of the peak")
print(f"steps in which gradients were clipped: {sum(m.is_clipped for m in here)}")
folder.cleanup()

# %% [markdown]
# ## Line by line
#
# | in the script | here |
# |---|---|
# | `TrainingArguments(...)` | `recipe = recipe_from_transformers(arguments).recipe` |
# | `GPT2LMHeadModel(config)` | any Flax model; `match_names`, `read_params` |
# | the loss inside the model | `loss_fn`: a sum, and what it is a sum over |
# | `optim`, `weight_decay`, `max_grad_norm` | `build_optimizer(recipe)` |
# | `lr_scheduler_type`, `warmup_steps` | in it; alone, `build_schedule(recipe)` |
# | `gradient_accumulation_steps` | the same, of `make_train_step` |
# | `Trainer(...).train()` | a loop over batches, or `jaxopt_tf.training.train` |
#
# `train` is the loop with what the rest of a script is about: evaluation, early
# stopping, checkpoints, logs; `examples/` has it in 60 lines.
#
# Read next: [continue_a_torch_run.ipynb](continue_a_torch_run.ipynb), where a run that
# Trainer began goes on here with its moments, and back;
# [what_a_plan_does.ipynb](what_a_plan_does.ipynb) on `explain` and `doctor`.
