"""An NNX classifier of digits: `python examples/nnx_classifier.py FOLDER`."""

import pathlib
import sys

import jax
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from jaxopt_tf import adamw_tf, clip, get_scheduler, monitors, training


class Classifier(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(64, rngs=rngs)
        self.hidden, self.out = (nnx.Linear(64, n, rngs=rngs) for n in (64, 10))
        self.dropout = nnx.Dropout(0.1)

    def __call__(self, x, rng):
        x = nnx.relu(self.hidden(self.norm(x)))
        return self.out(self.dropout(x, deterministic=rng is None, rngs=rng))


def loss_fn(params, batch, rng=None):
    return training.cross_entropy(nnx.merge(graph, params)(batch["x"], rng), batch["y"])


@jax.jit
def eval_step(params, batch):
    is_right = nnx.merge(graph, params)(batch["x"], None).argmax(-1) == batch["y"]
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
optimizer = optax.chain(clip(1.0), adamw_tf(schedule, weight_decay=0.01))
graph, params = nnx.split(Classifier(nnx.Rngs(0)), nnx.Param)
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
