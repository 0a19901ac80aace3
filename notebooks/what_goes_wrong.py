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
# # What goes wrong, and what helps
#
# Four troubles that most runs meet sooner or later: the loss swings, it climbs, it does
# not move, or the model learns its text by heart. Each is brought about in a small run,
# looked at, named and cured.
#
# You will see two curves for each, the sick run and the cured one, and what
# `health_monitor` says of both. It listens to a run as it goes and says a sentence when
# something is wrong; in doubt it is silent.

# %%
import argparse
import contextlib
import functools
import textwrap
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from jaxopt_tf import adamw_tf, clip, get_scheduler
from jaxopt_tf.monitors import health_monitor
from jaxopt_tf.training import (
    Monitor,
    Selection,
    cross_entropy,
    init_train_state,
    make_eval_step,
    make_evaluate,
    make_train_step,
    train,
)

# %% [markdown]
# ## A small run
#
# A text, the source of Python's `argparse`, and a model that guesses a character from
# the eight before it: an embedding and two layers. The last tenth of the text is held
# out.

# %%
text = np.frombuffer(Path(argparse.__file__).read_bytes(), np.uint8)
split = len(text) * 9 // 10


def rows_at(starts):
    return text[starts[:, None] + np.arange(9)]


eval_batch = rows_at(np.arange(split, len(text) - 9, 9))


def batches(size=64, end=split):
    rng = np.random.default_rng(0)
    while True:
        yield rows_at(rng.integers(0, end - 9, size))


def new_params(width=64):
    keys = iter(jax.random.split(jax.random.key(0), 3))
    return {
        "embedding": jax.random.normal(next(keys), (128, 16)),
        "hidden": jax.random.normal(next(keys), (8 * 16, width)) / 128**0.5,
        "out": jax.random.normal(next(keys), (width, 128)) / width**0.5,
    }


def loss_fn(params, batch):
    seen = params["embedding"][batch[:, :-1]].reshape(len(batch), -1)
    logits = jnp.tanh(seen @ params["hidden"]) @ params["out"]
    return cross_entropy(logits, batch[:, -1])


# %% [markdown]
# `train` takes it through a step, and tells monitors: the health monitor, and one of
# our own that keeps what we want to draw.


# %%
class Seen(NamedTuple):
    losses: list  # at every step
    ratios: list  # of the updates' norm to the parameters', at every step
    eval_loss: dict  # loss by the step
    said: list  # by the health monitor

    def window(self, window):
        self.losses.extend(window.metrics.loss)
        self.ratios.extend(window.metrics.norms.update_ratio)

    def evaluation(self, evaluation):
        self.eval_loss[evaluation.step] = float(evaluation.metrics["loss"])


evaluate = make_evaluate(make_eval_step(loss_fn), [eval_batch])
# Compiled once for each optimizer.
step_of = functools.cache(lambda optimizer: make_train_step(loss_fn, optimizer))


def run(optimizer, data, max_steps, *, width=64, **options):
    seen = Seen([], [], {}, [])
    monitors = [
        health_monitor(seen.said.append),
        Monitor(seen.window, seen.evaluation, list),
    ]
    start = init_train_state(new_params(width), optimizer)
    options = {"evaluate": evaluate, "eval_steps": 50, "monitors": monitors, **options}
    with contextlib.suppress(FloatingPointError):  # the monitor has reported why
        train(step_of(optimizer), start, data, max_steps=max_steps, **options)
    return seen


# %% [markdown]
# Two curves beside each other, with what the health monitor said below.


# %%
def smooth(losses):
    """The mean of ten steps; of the first nine, of those there are."""
    sums = np.cumsum([0.0, *losses])
    last = np.arange(1, len(sums))
    first = np.maximum(last - 10, 0)
    return (sums[last] - sums[first]) / (last - first)


def draw(axes, seen, style, label):
    axes.plot(np.arange(1, len(seen.losses) + 1), seen.losses, style, label=label)
    axes.set(xlabel="step", ylabel="training loss (nats per character)")


def tell(**runs):
    for name, seen in runs.items():
        print(f"{name}: updates are {np.median(seen.ratios):.0e} of the parameters")
        for sentence in seen.said or ["(no problem is reported)"]:
            print(textwrap.indent(textwrap.fill(sentence, 80), "    "))


def beside(sick, cured, title):
    axes = plt.figure(figsize=(8, 4), layout="constrained").subplots()
    draw(axes, sick, "0.6", title)
    draw(axes, cured, "k", "cured")
    axes.legend()
    return axes


# %% [markdown]
# ## The loss swings
#
# A rate that is too high, but not so high that all is lost: every step goes past the
# bottom of the valley and comes up on its other side. The loss goes up and down and
# stays where it is.
#
# Batches that differ much look the same, so the health monitor looks at the steps as
# well. How large are updates beside the parameters: about 1e-3 in a run that goes well,
# 1e-2 or more here. And the gradient's norm times the update's: by so much a step would
# change the loss if the gradient held along it. Here that is about as much as there is
# of the loss, and yet it stays. The health monitor says so after 400 steps.
#
# The cure is a lower rate that falls to 0. It steps into the valley as well.

# %%
swinging = run(adamw_tf(0.1), batches(), 420)
falling = get_scheduler("linear", 1e-2, 20, 420)
settled = run(adamw_tf(falling), batches(), 420)
beside(swinging, settled, "rate 0.1")
plt.show()
tell(swinging=swinging, settled=settled)

# %% [markdown]
# ## The loss climbs
#
# A warmup that does not stop in time: the rate rises until the loss does. The health
# monitor says in which steps, and at which step the loss was at its best: what was the
# rate there?
#
# The cure is the same warmup to a lower rate, with gradients clipped.

# %%
climbing = run(
    adamw_tf(get_scheduler("constant_with_warmup", 2.0, 300)), batches(), 300
)
warmed_up = get_scheduler("constant_with_warmup", 1e-2, 100)
steady = run(optax.chain(clip(1.0), adamw_tf(warmed_up)), batches(), 300)
axes = beside(climbing, steady, "rate that rises to 2")
axes.set(yscale="log", yticks=(ticks := [2, 5, 10, 20, 50]), yticklabels=ticks)
axes.minorticks_off()
plt.show()
tell(climbing=climbing, steady=steady)

# %% [markdown]
# ## The loss does not move
#
# A rate that is thousands of times too low. From the curve alone this looks like a
# model that cannot learn; the size of the updates tells them apart. The health monitor
# waits for 500 steps, so that a slow warmup is not mistaken for it.

# %%
stuck = run(adamw_tf(1e-7), batches(128), 540)
falling = get_scheduler("linear", 1e-2, 20, 540)
moving = run(adamw_tf(falling), batches(128), 540)
beside(stuck, moving, "rate 1e-7")
plt.show()
tell(stuck=stuck, moving=moving)

# %% [markdown]
# ## The model learns its text by heart
#
# Two thousand characters, a page, and a model four times as wide. The training loss
# looks better than ever. The evaluation loss, on other text, rises.
#
# The cure is more text. Where there is none, the best checkpoint: `Selection` ends a
# run whose evaluation loss has not improved for that number of evaluations.

# %%
optimizer = adamw_tf(2e-3)
by_heart = run(optimizer, batches(end=2000), 400, width=256)
more_text = run(optimizer, batches(), 400, width=256)
patient = Selection(early_stopping_patience=3)
ended = run(optimizer, batches(end=2000), 400, width=256, selection=patient)

figure, axes = plt.subplots(1, 2, sharey=True, figsize=(11, 4), layout="constrained")
for axis, seen, title in (
    (axes[0], by_heart, "2,000 characters"),
    (axes[1], more_text, f"{split:,} characters"),
):
    axis.plot(np.arange(1, 401), smooth(seen.losses), "0.6", label="training")
    axis.plot(
        *zip(*seen.eval_loss.items(), strict=True), "ko-", ms=4, label="evaluation"
    )
    axis.set(xlabel="step", title=title)
axes[0].axvline(max(ended.eval_loss), color="k", ls=":", label="patience ends here")
axes[0].set(ylabel="loss (nats per character)")
axes[0].legend()
axes[1].legend()
plt.show()
tell(by_heart=by_heart, more_text=more_text)
print(
    f"with patience: ended at step {max(ended.eval_loss)}, best evaluation loss "
    f"{min(ended.eval_loss.values()):.3f}"
)

# %% [markdown]
# | what one sees | what else to look at | what to try |
# |---|---|---|
# | the loss swings and stays | updates are 1e-2 of parameters | a lower rate, falling |
# | the loss climbs | the rate where it began | a lower rate, a warmup, clipping |
# | the loss does not move | updates are below 1e-5 of parameters | a higher rate |
# | only the training loss falls | the evaluation loss | more text, an early end |
#
# The health monitor knows more: gradients that explode or vanish, updates that bfloat16
# rounds away, batches with a NaN. `python -m benchmarks.watcher_says_what_is_wrong` has
# 27 runs in trouble, and 41 healthy ones of which nothing is said.
#
# Read next: [what_a_plan_does.ipynb](what_a_plan_does.ipynb), for what can be known to
# be wrong before the first step; [first_steps.ipynb](first_steps.ipynb) on schedules.
