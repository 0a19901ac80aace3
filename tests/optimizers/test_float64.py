"""float64 leaves against torch's float64, and what they leave unchanged beside them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_tf.optimizers import (
    adafactor_tf,
    adafactor_trainer,
    adagrad_tf,
    adamw_hf_v4,
    adamw_tf,
    clip,
    get_learning_rate,
    lion_tf,
    rmsprop_tf,
    set_learning_rate,
    sgd_tf,
)
from tests import twins
from tests.twins import adafactor, adamw, by_element

NUM_STEPS = 1_000
LIMIT = 1e-12  # of the distance moved
RATE, DECAY = 1e-3, 0.1


@pytest.fixture(autouse=True)
def _doubles():
    with jax.enable_x64(True):
        yield


@functools.cache
def work():
    """Parameters, the gradients of all steps, and a rate for each step."""
    rng = np.random.default_rng(0)
    params = {"kernel": 0.02 * rng.normal(size=(12, 5)), "bias": rng.normal(size=5)}
    grads = {n: rng.normal(size=(NUM_STEPS, *p.shape)) for n, p in params.items()}
    rates = [RATE * (1 - step / (2 * NUM_STEPS)) for step in range(NUM_STEPS)]
    return params, grads, rates


def following(rates):
    table = np.asarray(rates, np.float64)
    return lambda step: jnp.asarray(table)[step]


def run(optimizer, params, grads):
    """All steps as one program."""

    def step(carry, grads):
        params, state = carry
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def steps(params, grads):
        return jax.lax.scan(step, (params, optimizer.init(params)), grads)[0]

    return steps(*jax.tree.map(jnp.asarray, (params, grads)))


def distance(ours, theirs, start):
    """The largest distance over leaves, in the distance that a leaf moved."""
    return max(
        np.max(np.abs(np.asarray(ours[n]) - theirs[n])) / np.max(np.abs(theirs[n] - p))
        for n, p in start.items()
    )


def by_torch(name, **options):
    return lambda params, grads, rates: by_element.torch_run(
        name, params, grads, rates, dtype="float64", **options
    )


def adamw_by_torch(params, grads, rates):
    steps = [{n: g[i] for n, g in grads.items()} for i in range(len(rates))]
    options = {"lrs": rates, "weight_decay": DECAY, "exempt": ["bias"]}
    return adamw.torch_adamw(params, steps, dtype="float64", **options)[0]


def old_adamw(params, grads, rates):
    steps = [{n: g[i] for n, g in grads.items()} for i in range(len(rates))]
    return adamw.transformers_v4_adamw(
        params,
        steps,
        lr=rates[0],
        betas=(0.9, 0.999),
        eps=1e-6,
        weight_decay=0.0,
        correct_bias=True,
        dtype="float64",
    )


def by_transformers(**options):
    def end(params, grads, rates):
        rates = rates if options.get("relative_step") is False else None
        return adafactor.transformers_adafactor(
            params, grads, dtype="float64", rates=rates, undecayed=["bias"], **options
        )[0]

    return end


BY_TRANSFORMERS = {"scale_parameter": False, "relative_step": False}
LION = {"betas": (0.9, 0.95), "weight_decay": 0.5}
CASES = {
    "adamw_tf": (
        lambda rates: adamw_tf(following(rates), weight_decay=DECAY),
        adamw_by_torch,
    ),
    "adamw_tf exact": (
        lambda rates: adamw_tf(following(rates), weight_decay=DECAY, decay="exact"),
        adamw_by_torch,
    ),
    "adamw_hf_v4": (lambda rates: adamw_hf_v4(rates[0]), old_adamw),
    "adafactor_tf": (
        lambda _: adafactor_tf(beta1=0.9, weight_decay=DECAY),
        by_transformers(beta1=0.9, weight_decay=DECAY),
    ),
    "adafactor_tf warmup": (
        lambda _: adafactor_tf(warmup_init=True, decay_rate=-0.7),
        by_transformers(warmup_init=True, decay_rate=-0.7),
    ),
    "adafactor_trainer": (
        lambda rates: adafactor_trainer(following(rates), weight_decay=DECAY),
        by_transformers(weight_decay=DECAY, **BY_TRANSFORMERS),
    ),
    "sgd_tf": (
        lambda rates: sgd_tf(
            following(rates), momentum=0.9, dampening=0.3, weight_decay=DECAY
        ),
        by_torch("SGD", momentum=0.9, dampening=0.3, weight_decay=DECAY),
    ),
    "adagrad_tf": (
        lambda rates: adagrad_tf(following(rates), lr_decay=0.1, weight_decay=DECAY),
        by_torch("Adagrad", lr_decay=0.1, weight_decay=DECAY),
    ),
    "rmsprop_tf": (
        lambda rates: rmsprop_tf(
            following(rates), centered=True, momentum=0.5, weight_decay=DECAY
        ),
        by_torch("RMSprop", centered=True, momentum=0.5, weight_decay=DECAY),
    ),
    "lion_tf": (
        lambda rates: lion_tf(following(rates), **LION),
        lambda *work: by_element.lion_in_float64(*work, **LION),
    ),
}


@twins.needs_transformers
@pytest.mark.parametrize("name", CASES)
def test_follows_torch_in_float64(name):
    params, grads, rates = work()
    make, twin = CASES[name]
    ours, state = run(make(rates), params, grads)
    found = distance(ours, twin(params, grads, rates), params)
    assert found <= LIMIT
    floating = [x.dtype for x in jax.tree.leaves(state) if x.dtype != jnp.int32]
    assert set(floating) == {jnp.dtype(jnp.float64)}
