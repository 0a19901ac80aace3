"""Runs of float64 parameters by our optimizers and by torch's, in float64.

A run is 1,000 steps with a learning rate for each; leaves named "bias" are not decayed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_tf.optimizers import (
    adafactor_tf,
    adafactor_trainer,
    adagrad_tf,
    adamw_hf_v4,
    adamw_tf,
    clip,
    lion_tf,
    rmsprop_tf,
    sgd_tf,
)
from jaxopt_tf.schedules import get_scheduler

from . import adafactor, adamw, elementwise, schedules

NUM_STEPS = 1_000
LIMIT = 1e-12  # relative to the distance that a parameter moved
DECAY = 0.1

Arrays = Mapping[str, np.ndarray]


class Work(NamedTuple):
    """Parameters, and the gradients and learning rates of all steps."""

    params: Arrays
    grads: Arrays
    rates: Sequence[float]


class Case(NamedTuple):
    """Optimizer of this package, with its counterpart in torch."""

    ours: Callable[[Sequence[float]], optax.GradientTransformation]
    torch: Callable[..., Arrays]  # function of a `Work`


def random_work(num_rows: int, num_steps: int = NUM_STEPS) -> Work:
    """Draws a kernel and a bias, with a learning rate that is halved."""
    rng = np.random.default_rng(0)
    params = {
        "kernel": 0.02 * rng.normal(size=(num_rows, 5)),
        "bias": rng.normal(size=5),
    }
    grads = {n: rng.normal(size=(num_steps, *p.shape)) for n, p in params.items()}
    rates = [1e-3 * (1 - step / (2 * num_steps)) for step in range(num_steps)]
    return Work(params, grads, rates)


def run(optimizer: optax.GradientTransformation, work: Work) -> tuple[Any, Any]:
    """Returns the parameters and the state after all steps, as one program."""

    def step(carry, grads):
        params, state = carry
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def steps(params, grads):
        return jax.lax.scan(step, (params, optimizer.init(params)), grads)[0]

    return steps(*jax.tree.map(jnp.asarray, (dict(work.params), dict(work.grads))))


def distance(ours: Arrays, theirs: Arrays, start: Arrays) -> float:
    """Returns the largest distance of a leaf, relative to the distance it moved."""
    return max(
        float(
            np.max(np.abs(np.asarray(ours[n]) - theirs[n]))
            / np.max(np.abs(theirs[n] - p))
        )
        for n, p in start.items()
    )


def _following(rates: Sequence[float]) -> Callable[[jax.Array], jax.Array]:
    table = np.asarray(rates, np.float64)
    return lambda step: jnp.asarray(table)[step]


def _steps(grads: Arrays, num_steps: int) -> list[Arrays]:
    return [{n: g[i] for n, g in grads.items()} for i in range(num_steps)]


def _adamw(params: Arrays, grads: Arrays, rates: Sequence[float], **options) -> Arrays:
    steps = _steps(grads, len(rates))
    options = {"weight_decay": DECAY, "exempt": ["bias"], **options}
    return adamw.torch_adamw(params, steps, dtype="float64", lrs=rates, **options)[0]


def _constant_adamw(params: Arrays, grads: Arrays, rates: Sequence[float]) -> Arrays:
    return _adamw(params, grads, [rates[0]] * len(rates), weight_decay=0.0)


def _scheduled_adamw(params: Arrays, grads: Arrays, rates: Sequence[float]) -> Arrays:
    counts = {"num_warmup_steps": len(rates) // 10, "num_training_steps": len(rates)}
    factors = schedules.transformers_factor(
        "cosine", np.arange(len(rates)), rates[0], **counts
    )
    return _adamw(params, grads, [rates[0] * float(factor) for factor in factors])


def _clipped_adamw(params: Arrays, grads: Arrays, rates: Sequence[float]) -> Arrays:
    steps = _steps(grads, len(rates))
    clipped = [adamw.torch_clip(step, 1.0, dtype="float64")[0] for step in steps]
    grads = {name: np.stack([step[name] for step in clipped]) for name in grads}
    return _adamw(params, grads, rates)


def _adamw_of_v4(params: Arrays, grads: Arrays, rates: Sequence[float]) -> Arrays:
    ends = {}
    for name in params:  # one by one, because weight decay applies to all or none
        ends |= adamw.transformers_v4_adamw(
            {name: params[name]},
            _steps({name: grads[name]}, len(rates)),
            lr=rates[0],
            betas=(0.9, 0.999),
            eps=1e-6,
            weight_decay=0.0 if name == "bias" else DECAY,
            correct_bias=True,
            dtype="float64",
        )
    return ends


def _by_torch(name: str, **options: Any) -> Callable[..., Arrays]:
    def end(params: Arrays, grads: Arrays, rates: Sequence[float]) -> Arrays:
        return elementwise.torch_run(
            name, params, grads, rates, dtype="float64", weight_decay=DECAY, **options
        )

    return end


def _by_transformers(**options: Any) -> Callable[..., Arrays]:
    def end(params: Arrays, grads: Arrays, rates: Sequence[float]) -> Arrays:
        is_given = options.get("relative_step") is False
        return adafactor.transformers_adafactor(
            params,
            grads,
            dtype="float64",
            rates=rates if is_given else None,
            undecayed=["bias"],
            weight_decay=DECAY,
            **options,
        )[0]

    return end


_LION = {"betas": (0.9, 0.95), "weight_decay": 0.5}
_MOMENTUM = {"momentum": 0.9, "dampening": 0.3}
_CENTERED = {"centered": True, "momentum": 0.5}

CASES = {
    "adamw_tf": Case(
        lambda rates: adamw_tf(_following(rates), weight_decay=DECAY), _adamw
    ),
    "adamw_tf, decay='exact'": Case(
        lambda rates: adamw_tf(_following(rates), weight_decay=DECAY, decay="exact"),
        _adamw,
    ),
    "adamw_tf, a constant rate": Case(
        lambda rates: adamw_tf(rates[0]), _constant_adamw
    ),
    "adamw_tf, cosine of get_scheduler": Case(
        lambda rates: adamw_tf(
            get_scheduler("cosine", rates[0], len(rates) // 10, len(rates)),
            weight_decay=DECAY,
        ),
        _scheduled_adamw,
    ),
    "clip and adamw_tf": Case(
        lambda rates: optax.chain(
            clip(1.0), adamw_tf(_following(rates), weight_decay=DECAY)
        ),
        _clipped_adamw,
    ),
    "adamw_hf_v4": Case(
        lambda rates: adamw_hf_v4(rates[0], weight_decay=DECAY), _adamw_of_v4
    ),
    "adafactor_tf": Case(
        lambda _: adafactor_tf(beta1=0.9, weight_decay=DECAY),
        _by_transformers(beta1=0.9),
    ),
    "adafactor_tf, warmup_init": Case(
        lambda _: adafactor_tf(warmup_init=True, decay_rate=-0.7, weight_decay=DECAY),
        _by_transformers(warmup_init=True, decay_rate=-0.7),
    ),
    "adafactor_trainer": Case(
        lambda rates: adafactor_trainer(_following(rates), weight_decay=DECAY),
        _by_transformers(scale_parameter=False, relative_step=False),
    ),
    "sgd_tf": Case(
        lambda rates: sgd_tf(_following(rates), weight_decay=DECAY, **_MOMENTUM),
        _by_torch("SGD", **_MOMENTUM),
    ),
    "adagrad_tf": Case(
        lambda rates: adagrad_tf(_following(rates), lr_decay=0.1, weight_decay=DECAY),
        _by_torch("Adagrad", lr_decay=0.1),
    ),
    "rmsprop_tf": Case(
        lambda rates: rmsprop_tf(_following(rates), weight_decay=DECAY, **_CENTERED),
        _by_torch("RMSprop", **_CENTERED),
    ),
    "lion_tf, against its formula": Case(
        lambda rates: lion_tf(_following(rates), **_LION),
        lambda params, grads, rates: elementwise.lion_in_float64(
            params, grads, rates, **_LION
        ),
    ),
}
