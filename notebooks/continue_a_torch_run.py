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
# # A run crosses from PyTorch to JAX, and back
#
# Transformers' `Trainer` begins to train a small GPT-2 and saves. We take the folder
# that it left, go on in JAX, and write a folder of the same kind, from which `Trainer`
# goes on to the end. Below it lies a run that never left PyTorch.
#
# You will see two loss curves that cannot be distinguished.

# %%
import logging
import tempfile
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", message="IProgress")  # of notebooks without widgets

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import torch
import transformers

from jaxopt_tf import build_optimizer, init_train_state, interop, make_train_step
from jaxopt_tf.data import Batches, standard_library
from jaxopt_tf.models import GPT2Config, make_loss_fn

logging.getLogger("transformers").setLevel(logging.ERROR)
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)  # so small a model is fastest on one
folder = tempfile.TemporaryDirectory()  # deleted in the last cell
work = Path(folder.name)

# %% [markdown]
# ## The run in PyTorch
#
# 120 steps of 8 windows of text, in an order that both sides share.

# %%
num_steps, batch_size, length = 120, 8, 33
batches = Batches(standard_library(), block_size=32, batch_size=batch_size, seed=0)
windows = np.stack([batches[n] for n in range(num_steps)]).astype(np.int64)
rows = [{"input_ids": row, "labels": row} for row in windows.reshape(-1, length)]

sizes = {"n_layer": 1, "n_head": 2, "n_embd": 64, "vocab_size": 256}
dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
tokens = {"bos_token_id": 0, "eos_token_id": 0}
config = transformers.GPT2Config(n_positions=length, **sizes, **dropout, **tokens)


def trainer(folder, **arguments):
    torch.manual_seed(0)
    settings = transformers.TrainingArguments(work / folder, **arguments)
    model = transformers.GPT2LMHeadModel(config)
    made = transformers.Trainer(model, settings, train_dataset=rows)
    made.remove_callback(transformers.PrinterCallback)
    return made


numbers = {
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 10,
    "weight_decay": 0.1,
    "max_steps": num_steps,
    "per_device_train_batch_size": batch_size,
    "train_sampling_strategy": "sequential",
    "save_steps": 40,
}
quiet = {"logging_steps": 1, "report_to": [], "disable_tqdm": True, "use_cpu": True}
home = trainer("home", **numbers, **quiet)
_ = home.train()

# %% [markdown]
# ## Over to JAX, at step 40
#
# The recipe comes from `training_args.bin`, a pickle of which nothing is run. Names and
# layer types come from `config.json`. Two habits of Trainer are kept:
#
# - it decays by the *types* of torch's layers, which `names.layer_norms` knows;
# - it divides a GPT-2's loss by all labels, the first of each row included, which
#   nothing predicts. So we divide by `batch.size`.

# %%
begun = work / "home" / "checkpoint-40"
recipe = interop.recipe_from_transformers(begun / "training_args.bin").recipe
params, loss = make_loss_fn(GPT2Config(block_size=length, **sizes), 0)
names = interop.match_names(params, interop.torch_model_from_config(begun))
optimizer = build_optimizer(recipe, layer_norms=names.layer_norms)
read = interop.read_trainer_checkpoint(
    begun, params, names, recipe=recipe, opt_state=optimizer.init(params)
)
state = init_train_state(read.params, optimizer)
state = state.replace(step=jnp.int32(read.step), opt_state=read.opt_state)
print(recipe)

# %%
train_step = make_train_step(
    lambda params, batch: (loss(params, batch)[0], batch.size), optimizer
)
losses = {}
for step in range(40, 80):
    state, metrics = train_step(state, windows[step].astype(np.int32))
    losses[step + 1] = float(metrics.loss)

# %% [markdown]
# ## And back, at step 80

# %%
handed_over = work / "away" / "checkpoint-80"
handed_over.parent.mkdir()
interop.write_trainer_checkpoint(
    handed_over,
    state.params,
    state.opt_state,
    names,
    recipe=recipe,
    step=80,
    trainer_state={"logging_steps": 1},
    like=begun,
)
away = trainer("away", **numbers, **quiet)
_ = away.train(resume_from_checkpoint=str(handed_over))


# %%
def history(made):
    return {e["step"]: e["loss"] for e in made.state.log_history if "loss" in e}


stayed = history(home)
crossed = {**{n: stayed[n] for n in range(1, 41)}, **losses, **history(away)}
steps = sorted(stayed)
plt.figure(figsize=(8, 4.5), layout="constrained")
plt.plot(steps, [stayed[n] for n in steps], color="0.75", lw=6, label="PyTorch alone")
for first, last, style, where in [
    (1, 40, "-", "PyTorch"),
    (40, 80, "--", "then JAX"),
    (80, 120, ":", "then PyTorch again"),
]:
    part = range(first, last + 1)
    plt.plot(part, [crossed[n] for n in part], "k" + style, label=where)
plt.xlabel("step")
plt.ylabel("loss (nats per byte, as Trainer counts)")
plt.legend()
plt.show()

largest = max(abs(crossed[n] / stayed[n] - 1) for n in steps)
print(f"largest difference of a step's loss: {largest:.1e} of it")
folder.cleanup()

# %% [markdown]
# For a GPT-2 the command `jaxopt-tf migrate` does the same, in both directions.
# `python -m benchmarks.continues_a_torch_run` does it for AdamW and Adafactor, three
# schedules and accumulation, beside the noise of torch's own kernels. `interop` has the
# functions for other models: `match_names` takes tables and rules.
