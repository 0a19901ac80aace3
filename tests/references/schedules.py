"""Transformers' and torch's schedules, run by Transformers and torch; in doubles.

`transformers_factor` asks the real schedule, a Python function that takes one step at
a time. `factor` is the same in numpy for a million steps at once, with a bound on what
the doubles themselves lose; it is held against the real one in the tests.
"""

from typing import NamedTuple

import numpy as np


class Factor(NamedTuple):
    """Factor of the base rate in Transformers, in doubles."""

    value: np.ndarray  # (steps,), float64
    noise: np.ndarray  # (steps,), float64: bound of the double's rounding error


def transformers_factor(name, steps, learning_rate=1.0, **settings):
    """Returns the factors of Transformers' schedule at `steps`."""
    import torch
    import transformers

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=learning_rate)
    counts = {
        count: settings.pop(count, None)
        for count in ("num_warmup_steps", "num_training_steps")
    }
    scheduler = transformers.get_scheduler(
        name, optimizer, **counts, scheduler_specific_kwargs=settings
    )
    (factor,) = scheduler.lr_lambdas
    return np.asarray([factor(int(step)) for step in steps], dtype=np.float64)


def plateau(metrics, learning_rate, **options):
    """Returns the rates after each metric, computed by torch."""
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **options)
    return _followed(schedule, optimizer, metrics)


def greedy(metrics, learning_rate, **options):
    """Returns the rates after each metric, computed by Transformers."""
    import torch
    from transformers.optimization import GreedyLR

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=learning_rate)
    return _followed(GreedyLR(optimizer, **options), optimizer, metrics)


def factor(name, steps, learning_rate=1.0, **settings):
    """Returns Transformers' formula at `steps` in NumPy, and its rounding error."""
    t = np.asarray(steps, dtype=np.float64)
    with np.errstate(all="ignore"):
        value, noise = _FORMULAS[name](t, learning_rate, **settings)
    value = np.broadcast_to(value, t.shape)
    return Factor(value, np.broadcast_to(noise, t.shape) + 4 * _ULP * np.abs(value))


_ULP = 2.0**-53


def _followed(schedule, optimizer, metrics):
    rates = []
    for metric in metrics:
        schedule.step(float(metric))
        rates.append(float(optimizer.param_groups[0]["lr"]))
    return np.asarray(rates)


def _constant(t, _, num_warmup_steps=None, num_training_steps=None):
    return np.ones_like(t), 0.0


def _warmed(t, num_warmup_steps, value, noise):
    climbs = t < num_warmup_steps
    up = t / max(1, num_warmup_steps)
    return np.where(climbs, up, value), np.where(climbs, 0.0, noise)


def _constant_with_warmup(t, _, num_warmup_steps, num_training_steps=None):
    return _warmed(t, num_warmup_steps, 1.0, 0.0)


def _linear(t, _, num_warmup_steps, num_training_steps):
    W, T = num_warmup_steps, num_training_steps
    return _warmed(t, W, np.maximum(0.0, (T - t) / max(1, T - W)), 0.0)


def _wave(progress, num_cycles):
    phase = np.pi * float(num_cycles) * 2.0 * progress
    value = 0.5 * (1.0 + np.cos(phase))
    # The phase is rounded four times, pi itself included, and the cosine twice.
    slope = 0.5 * np.minimum(np.abs(np.sin(phase)) + 4 * _ULP * phase, 1.0)
    return value, 4 * _ULP * phase * slope + 2 * _ULP


def _cosine(t, _, num_warmup_steps, num_training_steps, num_cycles=0.5):
    W, T = num_warmup_steps, num_training_steps
    value, noise = _wave((t - W) / max(1, T - W), num_cycles)
    return _warmed(t, W, np.maximum(0.0, value), noise)


def _restarts(t, _, num_warmup_steps, num_training_steps, num_cycles=1):
    W, T = num_warmup_steps, num_training_steps
    progress = (t - W) / max(1, T - W)
    turns = float(num_cycles) * progress
    phase = np.pi * (turns % 1.0)
    value = np.maximum(0.0, 0.5 * (1.0 + np.cos(phase)))
    # The fraction inherits the rounding error of the number of cycles before it.
    error = np.pi * 2 * _ULP * turns + 2 * _ULP * phase
    slope = 0.5 * np.minimum(np.abs(np.sin(phase)) + error, 1.0)
    noise = error * slope + 2 * _ULP
    over = progress >= 1.0
    return _warmed(t, W, np.where(over, 0.0, value), np.where(over, 0.0, noise))


def _polynomial(t, lr, num_warmup_steps, num_training_steps, lr_end=1e-7, power=1.0):
    W, T = num_warmup_steps, num_training_steps
    left = 1 - (t - W) / (T - W)
    curve = np.maximum(left, 0.0) ** power
    value = ((lr - lr_end) * curve + lr_end) / lr
    relative = np.where(left > 0, power * 2 * _ULP / left, 0.0)
    return _warmed(
        t,
        W,
        np.where(t > T, lr_end / lr, value),
        np.where(t > T, 0.0, curve * (relative + 2 * _ULP)),
    )


def _inverse_sqrt(t, _, num_warmup_steps, num_training_steps=None, timescale=None):
    W = num_warmup_steps
    timescale = timescale or W or 10_000
    return _warmed(t, W, 1.0 / np.sqrt((t + timescale - W) / timescale), 0.0)


def _floored(value, noise, rate):
    return value * (1 - rate) + rate, noise * (1 - rate)


def _rate(lr, min_lr, min_lr_rate):
    return min_lr_rate if min_lr is None else min_lr / lr


def _cosine_with_min_lr(
    t,
    lr,
    num_warmup_steps,
    num_training_steps,
    num_cycles=0.5,
    min_lr=None,
    min_lr_rate=None,
):
    W, T = num_warmup_steps, num_training_steps
    wave = _wave((t - W) / max(1, T - W), num_cycles)
    return _warmed(t, W, *_floored(*wave, _rate(lr, min_lr, min_lr_rate)))


def _cosine_warmup_with_min_lr(
    t,
    lr,
    num_warmup_steps,
    num_training_steps,
    num_cycles=0.5,
    min_lr=None,
    min_lr_rate=None,
    warmup_lr_rate=None,
):
    W, T = num_warmup_steps, num_training_steps
    wave = _wave((t - W + 1.0) / max(1, T - W), num_cycles)
    value, noise = _floored(*wave, _rate(lr, min_lr, min_lr_rate))
    if warmup_lr_rate is None:
        climb = (t + 1.0) / max(1, W)
    else:
        climb = warmup_lr_rate + (1.0 - warmup_lr_rate) * t / max(1, W - 1)
    return np.where(t < W, climb, value), np.where(t < W, 0.0, noise)


def _wsd(
    t,
    _,
    num_warmup_steps,
    num_decay_steps,
    num_training_steps=None,
    num_stable_steps=None,
    warmup_type="linear",
    decay_type="cosine",
    min_lr_ratio=0.0,
    num_cycles=0.5,
):
    W, S, D = num_warmup_steps, num_stable_steps, num_decay_steps
    if S is None:
        S = num_training_steps - W - D
    x = t / max(1, W)
    root = np.sqrt(np.maximum(1.0 - x, 0.0))
    up = {
        "linear": (x, 0.0),
        "cosine": (0.5 * (1.0 - np.cos(np.pi * x)), 2 * _ULP * (1 + 4 * x * x)),
        # The root of 1 - x has the error of the subtraction, divided by the root.
        "1-sqrt": (1.0 - root, 2 * _ULP / np.maximum(root, 1e-30) + 2 * _ULP),
    }[warmup_type]
    x = (t - W - S) / max(1, D)
    down = {
        "linear": (1.0 - x, 2 * _ULP),
        "cosine": _wave(x, num_cycles),
        "1-sqrt": (1.0 - np.sqrt(np.maximum(x, 0.0)), 4 * _ULP),
    }[decay_type]
    choices = [
        (t < W, _floored(*up, min_lr_ratio)),
        (t < W + S, (np.ones_like(t), 0.0)),
        (t < W + S + D, _floored(*down, min_lr_ratio)),
    ]
    value, noise = np.full_like(t, min_lr_ratio), np.zeros_like(t)
    for chosen, (v, n) in reversed(choices):
        value, noise = np.where(chosen, v, value), np.where(chosen, n, noise)
    return value, noise


_FORMULAS = {
    "constant": _constant,
    "constant_with_warmup": _constant_with_warmup,
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _restarts,
    "polynomial": _polynomial,
    "inverse_sqrt": _inverse_sqrt,
    "cosine_with_min_lr": _cosine_with_min_lr,
    "cosine_warmup_with_min_lr": _cosine_warmup_with_min_lr,
    "warmup_stable_decay": _wsd,
}

NAMES = tuple(_FORMULAS)


def random_settings(name, rng, most_steps):
    """Draws a learning rate and settings of the schedule `name`, of all sizes."""

    def steps(most=most_steps):
        return int(np.exp(rng.uniform(0.0, np.log(most))))

    learning_rate = float(10.0 ** rng.uniform(-6.0, 0.0))
    T = steps()
    W = int(rng.choice([0, 1, int(T * rng.uniform(0.0, 0.3)), steps()]))
    num_cycles = float(rng.choice([0.5, 1.0, 2.7, 3.0, 7.0, rng.uniform(0.1, 20.0)]))
    share = float(rng.choice([0.0, 0.1, rng.uniform()]))
    settings = {}
    if name != "constant":
        settings["num_warmup_steps"] = W
    if name not in ("constant", "constant_with_warmup", "inverse_sqrt"):
        settings["num_training_steps"] = T
    if name in ("cosine", "cosine_with_restarts"):
        settings["num_cycles"] = num_cycles
    elif name == "polynomial":
        settings["num_warmup_steps"] = min(W, T - 1) if W == T else W
        settings["lr_end"] = float(learning_rate * rng.choice([0.0, 1e-3, 0.9]))
        settings["power"] = float(rng.choice([0.5, 1, 2, 10, rng.uniform(0.1, 30)]))
    elif name == "inverse_sqrt" and rng.random() < 0.5:
        settings["timescale"] = steps()
    elif name.endswith("with_min_lr"):
        settings["num_cycles"] = num_cycles
        if rng.random() < 0.5:
            settings["min_lr"] = learning_rate * share
        else:
            settings["min_lr_rate"] = share
        if name == "cosine_warmup_with_min_lr" and rng.random() < 0.5:
            settings["warmup_lr_rate"] = float(rng.uniform())
    elif name == "warmup_stable_decay":
        settings["num_decay_steps"] = steps(T + 1)
        if rng.random() < 0.5:
            settings["num_stable_steps"] = steps()
            del settings["num_training_steps"]
        settings["warmup_type"] = str(rng.choice(["linear", "cosine", "1-sqrt"]))
        settings["decay_type"] = str(rng.choice(["linear", "cosine", "1-sqrt"]))
        settings["min_lr_ratio"] = share
        settings["num_cycles"] = num_cycles
    return learning_rate, settings


def last_step(settings):
    """Returns approximately the step at which the last phase of the formula begins."""
    W, T = settings.get("num_warmup_steps", 0), settings.get("num_training_steps", 0)
    S, D = settings.get("num_stable_steps", 0), settings.get("num_decay_steps", 0)
    return max(W, T, W + S + D, 1)


def telling_steps(rng, settings, count=200):
    """Returns steps around phase boundaries, random steps, and steps past the end."""
    W = settings.get("num_warmup_steps", 0)
    last = last_step(settings)
    joints = [0, W, W + settings.get("num_stable_steps", 0), last]
    joints.append(last - settings.get("num_decay_steps", 0))
    near = np.concatenate([np.arange(joint - 4, joint + 5) for joint in joints])
    anywhere = rng.integers(0, last + 1, size=count)
    past = np.exp(rng.uniform(0.0, np.log(2**31), size=count)).astype(np.int64)
    steps = np.concatenate([near, anywhere, past, [2**31 - 3, 2**31 - 1]])
    # The number is constant, so that one compilation is enough for all settings.
    return steps.clip(0, 2**31 - 1)


def random_stream(rng, length=300):
    """Draws float32 metrics that drift, with ties, NaN and infinities."""
    metrics = np.cumsum(rng.normal(size=length) * 10 ** rng.uniform(-3.0, 0.0))
    metrics = (metrics + rng.uniform(-2.0, 5.0)) * 10 ** rng.uniform(-2.0, 2.0)
    if rng.random() < 0.5:
        metrics = np.round(metrics, 1)
    metrics = metrics.astype(np.float32)
    unexpected = rng.random(length) < rng.choice([0.0, 0.02, 0.1])
    metrics[unexpected] = rng.choice([np.nan, np.inf, -np.inf], size=unexpected.sum())
    return metrics


def random_options(rng, which, like=None):
    """Draws options of `plateau` or `greedy`; `like` has those that are static.

    The numbers are float32 values, so that a traced one is the same number.
    """
    rate = 10 ** rng.uniform(-5.0, 0.0)
    options = {
        "learning_rate": rate,
        "factor": rng.choice([0.1, 0.5, 0.9, rng.uniform(0.1, 0.99)]),
        "threshold": rng.choice([0.0, 1e-4, 0.1, rng.uniform(0.0, 0.5)]),
        # A rate of 1e-40 is 0 in float32, so at least one of the two bounds is set.
        "min_lr": rate * rng.choice([1e-9, 0.125, rng.uniform()]),
        "eps": rng.choice([0.0, 1e-8, rate * 0.01]),
    }
    if which == "greedy":
        options["max_lr"] = rate * rng.choice([1.0, 2.0, 100.0])
    options = {name: float(np.float32(value)) for name, value in options.items()}
    shape = like or {
        "mode": str(rng.choice(["min", "max"])),
        "threshold_mode": str(rng.choice(["rel", "abs"])),
        "patience": int(rng.integers(0, 6)),
        "cooldown": int(rng.integers(0, 4)),
    }
    if which == "greedy" and like is None:
        shape["warmup"] = int(rng.integers(0, 4))
        shape["smooth"] = bool(rng.random() < 0.5)
        shape["window_size"] = int(rng.integers(1, 20))
        shape["reset_start"] = int(rng.integers(0, 8))
    return options, shape
