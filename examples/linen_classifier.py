"""A Linen classifier of digits: `python examples/linen_classifier.py FOLDER`."""

import pathlib
import sys

import flax.linen as nn
import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

from jaxopt_tf import adamw_tf, clip, get_scheduler, monitors, training


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, x, is_training):
        x = nn.relu(nn.Dense(64)(nn.LayerNorm()(x)))
        return nn.Dense(10)(nn.Dropout(0.1, deterministic=not is_training)(x))


def loss_fn(params, batch, rng=None):
    dropout = None if rng is None else {"dropout": rng}
    logits = model.apply(params, batch["x"], rng is not None, rngs=dropout)
    return training.cross_entropy(logits, batch["y"])


@jax.jit
def eval_step(params, batch):
    is_right = model.apply(params, batch["x"], False).argmax(-1) == batch["y"]
    loss, num_items = loss_fn(params, batch)
    return {"loss": loss, "accuracy": is_right.sum()}, num_items


def batches(step):  # batch n is a function of n: 4 micro-batches of 16 digits
    while True:
        rows = np.random.default_rng(step).integers(0, 1500, (4, 16))
        yield {"x": x[rows], "y": y[rows]}
        step += 1


x, y = load_digits(return_X_y=True)
x, y, folder = np.float32(x / 16), np.int32(y), pathlib.Path(sys.argv[1])
schedule = get_scheduler("linear", 3e-3, num_warmup_steps=20, num_training_steps=300)
model = Classifier()
optimizer = optax.chain(clip(1.0), adamw_tf(schedule, weight_decay=0.01))
params = model.init(jax.random.key(0), x[:1], False)
state = training.init_train_state(params, optimizer, rng=0)
step = training.make_train_step(loss_fn, optimizer, gradient_accumulation_steps=4)
evaluate = training.make_evaluate(eval_step, [{"x": x[1500:], "y": y[1500:]}])
selection = training.Selection("accuracy", early_stopping_patience=5)
with training.resumable(folder, state, save_total_limit=2) as run:
    log = monitors.json_lines(folder / "metrics.jsonl", first_step=run.step)
    trained = training.train(
        step, run.start, batches(run.step), max_steps=300, monitors=[log],
        evaluate=evaluate, eval_steps=50, selection=selection,
        save=run.save, save_steps=50, should_stop=run.should_stop,
    )  # fmt: skip
print(f"step {trained.state.step}: accuracy {trained.run_state.progress.best_metric}")
