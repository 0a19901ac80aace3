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
# # Run a Trainer script in JAX
#
# This notebook trains a small BERT classifier with `Trainer` of Transformers, changes
# two lines of the script, and trains the same module in JAX with `jobs.train`. Module,
# arguments, datasets and metric stay the same.
#
# It then compares the losses of both runs, and loads the trained model. The module is
# built from a configuration; nothing is downloaded. torchax runs it in JAX, which is
# experimental: `pip install -e ".[torchax]"`.

# %%
import json
import logging
import tempfile
import warnings
from pathlib import Path

for name in ("IProgress", "install"):  # of notebooks without widgets
    warnings.filterwarnings("ignore", message=name)

import matplotlib.pyplot as plt
import numpy as np
import torch
import transformers

from jaxopt_tf import jobs

logging.getLogger("transformers").setLevel(logging.ERROR)
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)  # fastest for a model of this size
folder = tempfile.TemporaryDirectory()  # deleted in the last cell
runs = Path(folder.name)

# %% [markdown]
# ## The script
#
# A BERT of two layers classifies rows of numbers from 0 to 15 by whether their mean is
# above 7.5. Dropout is 0: torch and JAX draw different random numbers, so that losses
# with dropout cannot be compared step by step.

# %%
config = transformers.BertConfig(
    vocab_size=16,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=12,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
numbers = np.random.default_rng(0).integers(0, 16, (608, 12))
rows = [
    {"input_ids": row.tolist(), "label": int(np.mean(row) > 7.5)} for row in numbers
]
train_rows, eval_rows = rows[:512], rows[512:]


def build_module():
    transformers.set_seed(0)
    return transformers.BertForSequenceClassification(config)


def accuracy(prediction):
    found = prediction.predictions.argmax(-1) == prediction.label_ids
    return {"accuracy": float(found.mean())}


def arguments(name):
    return transformers.TrainingArguments(
        str(runs / name),
        num_train_epochs=4,
        per_device_train_batch_size=32,
        learning_rate=5e-3,
        lr_scheduler_type="cosine",
        warmup_steps=6,
        weight_decay=0.01,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )


data = {
    "train_dataset": train_rows,
    "eval_dataset": eval_rows,
    "compute_metrics": accuracy,
}

# %%
trainer = transformers.Trainer(build_module(), arguments("trainer"), **data)
trainer.remove_callback(transformers.PrinterCallback)
trainer.train()
script = trainer.state.log_history

# %% [markdown]
# ## The lines that change
#
# The constructor and `trainer.train()` become one call. `Trainer` trains its module in
# place; `jobs.train` does not change it, and returns the final parameters.

# %%
result = jobs.train(build_module(), arguments("jax"), **data)

# %% [markdown]
# ## The two runs
#
# The order of the examples and the number of items of an update are those of Trainer,
# so that every loss has an equivalent. Both runs compute in float32; a difference of
# 1e-6 is about eight units in the last place of a loss of 1. Equal losses are drawn at
# 1e-9.

# %%
log = [json.loads(line) for line in (runs / "jax/metrics.jsonl").open()]


def by_step(entries, name):
    found = {entry["step"]: entry[name] for entry in entries if name in entry}
    found.pop(0, None)  # `jobs.train` also evaluates before the first step
    return np.array(list(found)), np.array(list(found.values()))


figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
steps, theirs = by_step(script, "loss")
_, ours = by_step(log, "loss")
left.plot(steps, theirs, color="0.75", lw=6, label="Trainer, in PyTorch")
left.plot(steps, ours, "k--", label="jobs.train, in JAX")
left.set(xlabel="step", ylabel="training loss")
left.legend(loc="lower left")
right.semilogy(steps, np.abs(ours / theirs - 1) + 1e-9, "kx")
right.set(xlabel="step", ylabel="relative difference of the loss", ylim=(1e-9, 1e-4))
plt.show()

# %%
for name in ("loss", "eval_loss", "eval_accuracy"):
    (steps, theirs), (_, ours) = by_step(script, name), by_step(log, name)
    difference = np.max(np.abs(ours - theirs) / np.abs(theirs))
    print(
        f"{name}: largest relative difference of {len(steps)} values {difference:.1e}"
    )
print(f"accuracy of the best model: {result.metrics['accuracy']:.3f}")
assert np.allclose(by_step(log, "loss")[1], by_step(script, "loss")[1], rtol=1e-5)

# %% [markdown]
# ## The trained model
#
# The folder of the run contains the model as `save_pretrained` writes it, besides
# checkpoints, settings and figures.

# %%
print(sorted(path.name for path in result.folder.iterdir()))
trained = transformers.BertForSequenceClassification.from_pretrained(result.folder)
with torch.no_grad():
    logits = trained(torch.tensor([row["input_ids"] for row in eval_rows])).logits
labels = np.array([row["label"] for row in eval_rows])
print(f"accuracy in PyTorch: {np.mean(logits.argmax(-1).numpy() == labels):.3f}")
folder.cleanup()

# %% [markdown]
# The same call of `jobs.train` resumes an interrupted run.
# `resume_from_checkpoint` may name a checkpoint of Trainer, from which a new run
# starts, and `jobs.export_run` writes a checkpoint from which Trainer resumes. The page
# [Bring your own model](../docs/bring_your_own_model.md) shows both, and lists the
# equivalents of the arguments of `Trainer`.
