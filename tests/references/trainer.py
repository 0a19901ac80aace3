"""Optimizer and schedule that Trainer builds, and the results of their runs.

Also TrainingArguments drawn at random from all that a recipe takes.
"""

import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_tf.optimizers import set_learning_rate
from jaxopt_tf.recipes import Recipe, build_optimizer, build_schedule

# Normalization layers of the model by type. The name `mixing` does not show it.
LAYER_NORMS = ("layernorm", "mixing")
SHAPES = {
    "tokens.weight": (12, 8),
    "inner.weight": (10, 8),
    "inner.bias": (10,),
    "layernorm.weight": (10,),
    "layernorm.bias": (10,),
    "outer.weight": (4, 10),
    "outer.bias": (4,),
    "mixing.weight": (4,),
    "mixing.bias": (4,),
}
NUM_STEPS = 20
# The loop passes a metric to the schedules that are driven by one.
EVAL_STEPS = 4

_ADAMW = ("adamw_torch", "adamw_torch_fused")


class Drawn(NamedTuple):
    """Settings of a run."""

    arguments: dict[str, Any]  # arguments of `TrainingArguments`
    num_examples: int
    max_steps: int  # the number that Trainer derives from its dataloader
    scale: float  # scale of the gradients


def draw(rng: np.random.Generator) -> Drawn:
    """Draws TrainingArguments with random values of all fields that recipes use."""

    def one_of(*choices):
        return choices[rng.integers(len(choices))]

    optim = one_of(*_ADAMW, "adafactor", "sgd", "adagrad", "rmsprop")
    arguments = {
        "optim": optim,
        "optim_args": _optim_args(optim, rng),
        "learning_rate": float(10 ** rng.uniform(-5, -2)),
        "weight_decay": one_of(0.0, 0.01, float(rng.uniform(0, 0.5))),
        "adam_beta1": one_of(0.9, float(rng.uniform(0, 0.99))),
        "adam_beta2": one_of(0.999, float(rng.uniform(0.5, 0.9999))),
        "adam_epsilon": float(one_of(1e-8, 1e-6, 1e-3)),
        "max_grad_norm": float(one_of(0.0, 0.1, 1.0, 1e3)),
        "label_smoothing_factor": one_of(0.0, 0.1),
        "seed": int(rng.integers(2**31)),
        "per_device_train_batch_size": int(rng.integers(1, 9)),
        "gradient_accumulation_steps": int(rng.integers(1, 5)),
        "num_train_epochs": float(one_of(3.0, rng.uniform(0.5, 4))),
        "dataloader_drop_last": one_of(False, True),
    }
    num_examples = int(rng.integers(600, 1200))
    if rng.integers(2):
        arguments["max_steps"] = int(rng.integers(40, 90))
    max_steps = _max_steps(arguments, num_examples)
    name, kwargs = _schedule(rng, arguments["learning_rate"], max_steps)
    arguments |= {"lr_scheduler_type": name, "lr_scheduler_kwargs": kwargs}
    if name in ("reduce_lr_on_plateau", "greedy"):
        arguments |= {"eval_strategy": "steps", "eval_steps": EVAL_STEPS}
    elif name != "constant":
        warm_up = one_of(0, int(rng.integers(1, 15)), float(rng.uniform(0.01, 0.3)))
        arguments["warmup_steps"] = warm_up
    return Drawn(arguments, num_examples, max_steps, float(10 ** rng.uniform(-3, 1)))


def trainer_run(
    drawn: Drawn,
    params: dict[str, np.ndarray],
    grads: dict[str, np.ndarray],
    metrics: list[float],
    *,
    dtype: str,
    folder: str,
) -> dict[str, np.ndarray]:
    """Returns the parameters after `NUM_STEPS` updates by Trainer's optimizer, float64.

    Args:
        drawn: of which the TrainingArguments are taken.
        params: by torch's names, as `SHAPES` has them.
        grads: for each of them one gradient per step.
        metrics: one for each evaluation.
        dtype: of torch's parameters and gradients.
        folder: that Trainer wants, and leaves empty.
    """
    import torch
    from transformers import Trainer, TrainingArguments

    kind = getattr(torch, dtype)
    model = _model().to(kind)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.tensor(params[name]))
    arguments = TrainingArguments(
        folder, use_cpu=True, report_to=[], disable_tqdm=True, **drawn.arguments
    )
    trainer = Trainer(model, arguments, eval_dataset=[0])
    trainer.create_optimizer_and_scheduler(drawn.max_steps)
    optimizer, schedule = trainer.optimizer, trainer.lr_scheduler
    for step in range(NUM_STEPS):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.tensor(grads[name][step]).to(kind)
        if arguments.max_grad_norm > 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), arguments.max_grad_norm)
        optimizer.step()
        if "eval_steps" not in drawn.arguments:
            schedule.step()
        elif (step + 1) % EVAL_STEPS == 0:
            schedule.step(metrics[step // EVAL_STEPS])
    return {n: p.detach().double().numpy() for n, p in model.named_parameters()}


def our_run(
    recipe: Recipe,
    params: dict[str, np.ndarray],
    grads: dict[str, np.ndarray],
    metrics: list[float],
) -> dict[str, np.ndarray]:
    """Returns the parameters after as many updates by the recipe's optimizer."""
    optimizer = build_optimizer(recipe, layer_norms=LAYER_NORMS)
    schedule = build_schedule(recipe)
    params = jax.tree.map(jnp.asarray, params)
    state = optimizer.init(params)
    driven = None if callable(schedule) else schedule.init()

    @jax.jit
    def update(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for step in range(NUM_STEPS):
        now = {name: g[step] for name, g in grads.items()}
        params, state = update(params, state, now)
        if driven is not None and (step + 1) % EVAL_STEPS == 0:
            driven = schedule.update(driven, metrics[step // EVAL_STEPS])
            state = set_learning_rate(state, driven.learning_rate)
    return {name: np.asarray(p, np.float64) for name, p in params.items()}


def arguments_of(drawn: Drawn, folder: str) -> Any:
    """Returns the `TrainingArguments`."""
    from transformers import TrainingArguments

    return TrainingArguments(
        folder, use_cpu=True, report_to=[], disable_tqdm=True, **drawn.arguments
    )


def random_run(
    rng: np.random.Generator, scale: float
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], list[float]]:
    """Draws parameters, gradients for `NUM_STEPS` steps, and metrics that stall."""
    params, grads = {}, {}
    sizes = scale * np.exp(rng.normal(size=NUM_STEPS))
    for name, shape in SHAPES.items():
        params[name] = (0.1 * rng.normal(size=shape)).astype(np.float32)
        noise = rng.normal(size=(*shape, NUM_STEPS)) * sizes
        grads[name] = np.moveaxis(noise, -1, 0).astype(np.float32)
    return params, grads, [float(m) for m in 1 + 0.01 * rng.normal(size=NUM_STEPS)]


def _model():
    import torch

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            # Trainer reads it if labels are smoothed.
            self.config = types.SimpleNamespace(problem_type=None)
            self.tokens = torch.nn.Embedding(12, 8)
            self.inner = torch.nn.Linear(8, 10)
            self.layernorm = torch.nn.LayerNorm(10)
            self.outer = torch.nn.Linear(10, 4)
            self.mixing = torch.nn.LayerNorm(4)

    return Model()


def _max_steps(arguments: dict[str, Any], num_examples: int) -> int:
    """Calls Trainer's method with a loader that only has a length."""
    from torch.utils.data import DataLoader
    from transformers import Trainer

    loader = DataLoader(
        range(num_examples),
        batch_size=arguments["per_device_train_batch_size"],
        drop_last=arguments["dataloader_drop_last"],
    )
    args = types.SimpleNamespace(**{"max_steps": -1, **arguments})
    trainer = types.SimpleNamespace(
        get_total_train_batch_size=lambda args: 1,
        get_sp_size=lambda: 1,
        num_examples=lambda loader: num_examples,
    )
    return Trainer.set_initial_training_values(trainer, args, loader)[-1]


def _optim_args(optim: str, rng: np.random.Generator) -> str | None:
    drawn = {
        "sgd": ["momentum=0.9,nesterov=True", "momentum=0.5,dampening=0.3"],
        "adagrad": ["lr_decay=0.05,eps=1e-8", "lr_decay=0.01"],
        "rmsprop": ["alpha=0.9,momentum=0.8", "centered=True,eps=1e-6", "eps=1e-3"],
    }
    choices = [None, *drawn.get(optim, [])]
    return choices[rng.integers(len(choices))]


def _schedule(
    rng: np.random.Generator, learning_rate: float, max_steps: int
) -> tuple[str, dict[str, Any]]:
    choices: list[tuple[str, dict[str, Any]]] = [
        ("linear", {}),
        ("cosine", {"num_cycles": float(rng.uniform(0.3, 2))}),
        ("cosine_with_restarts", {"num_cycles": int(rng.integers(1, 4))}),
        ("polynomial", {"power": float(rng.uniform(0.5, 3)), "lr_end": 1e-7}),
        ("constant", {}),
        ("constant_with_warmup", {}),
        ("inverse_sqrt", {"timescale": int(rng.integers(20, 200))}),
        ("cosine_with_min_lr", {"min_lr": learning_rate * float(rng.uniform(0, 0.5))}),
        ("cosine_warmup_with_min_lr", {"min_lr_rate": float(rng.uniform(0, 0.5))}),
        ("warmup_stable_decay", {"num_decay_steps": max_steps // 2}),
        ("reduce_lr_on_plateau", {"patience": 0, "factor": 0.5}),
        ("greedy", {"patience": 0, "factor": 0.9, "min_lr": learning_rate / 10}),
    ]
    return choices[rng.integers(len(choices))]
