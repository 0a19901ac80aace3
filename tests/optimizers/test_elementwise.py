"""`sgd_tf`, `adagrad_tf` and `rmsprop_tf` against torch, `lion_tf` against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_tf.optimizers import (
    adagrad_tf,
    get_learning_rate,
    lion_tf,
    rmsprop_tf,
    set_learning_rate,
    sgd_tf,
)
from tests import references
from tests.references import adafactor
from tests.references import elementwise as reference

NUM_STEPS = 20
LIMIT = 1e-6  # relative to the distance that a parameter moved

CASES = [
    (sgd_tf, "SGD", {}),
    (sgd_tf, "SGD", {"momentum": 0.9, "weight_decay": 0.1}),
    (sgd_tf, "SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (sgd_tf, "SGD", {"momentum": 0.5, "dampening": 0.3, "weight_decay": 0.1}),
    (adagrad_tf, "Adagrad", {}),
    (adagrad_tf, "Adagrad", {"lr_decay": 0.1, "eps": 1e-3, "weight_decay": 0.1}),
    (rmsprop_tf, "RMSprop", {}),
    (rmsprop_tf, "RMSprop", {"alpha": 0.9, "eps": 1e-2, "weight_decay": 0.1}),
    (rmsprop_tf, "RMSprop", {"momentum": 0.9, "weight_decay": 0.1}),
    (rmsprop_tf, "RMSprop", {"centered": True, "momentum": 0.5, "weight_decay": 0.1}),
]


@pytest.fixture
def work(rng):
    params = {"kernel": rng.normal(size=(20, 10)), "bias": rng.normal(size=10)}
    grads = {n: rng.normal(size=(NUM_STEPS, *p.shape)) for n, p in params.items()}
    rates = [1e-2 * (1 - step / 40) for step in range(NUM_STEPS)]
    return *(
        {name: x.astype(np.float32) for name, x in tree.items()}
        for tree in (params, grads)
    ), rates


def run(optimizer, params, grads):
    @jax.jit
    def update(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, params)
    state = optimizer.init(params)
    for step in range(NUM_STEPS):
        now = {name: g[step] for name, g in grads.items()}
        params, state = update(params, state, now)
    return params, state


def following(rates):
    table = jnp.asarray(rates, jnp.float32)
    return lambda step: table[step]


@references.needs_torch
@pytest.mark.parametrize(
    ("optimizer", "name", "options"),
    CASES,
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_follows_torch(work, optimizer, name, options):
    params, grads, rates = work
    theirs, exact = (
        reference.torch_run(name, params, grads, rates, dtype=dtype, **options)
        for dtype in ("float32", "float64")
    )
    ours, state = run(optimizer(following(rates), **options), params, grads)
    found = adafactor.distances(ours, theirs, exact, params)
    assert {n: d for n, d in found.items() if not d.reaches(LIMIT)} == {}
    assert int(state.count) == NUM_STEPS
    assert float(get_learning_rate(state)) == np.float32(rates[-1])


def test_lion_follows_its_formula(work):
    params, grads, rates = work
    options = {"betas": (0.9, 0.95), "weight_decay": 0.5}
    exact = reference.lion_in_float64(params, grads, rates, **options)
    ours, _ = run(lion_tf(following(rates), **options), params, grads)
    for name in params:
        # Half a unit in the last place for each step; a step of Lion is 1e-2.
        limit = NUM_STEPS * 2.0**-24 * np.max(np.abs(exact[name]))
        assert np.max(np.abs(ours[name] - exact[name])) <= limit


@pytest.mark.promotion_of_others
def test_rmsprop_takes_arrays_as_injected(work):
    params, grads, _ = work
    injected, _ = run(optax.inject_hyperparams(rmsprop_tf)(1e-2), params, grads)
    plain, _ = run(rmsprop_tf(1e-2), params, grads)
    for name in params:
        # 1 - float32(alpha) differs from float32(1 - alpha).
        np.testing.assert_allclose(injected[name], plain[name], atol=2e-5)


@pytest.mark.parametrize("make", [sgd_tf, adagrad_tf, rmsprop_tf, lion_tf])
def test_a_constant_rate_is_set_in_the_state(work, make):
    params, grads, _ = work
    optimizer = make(1e-2)
    state = set_learning_rate(optimizer.init(params), 0.0)
    first = jax.tree.map(lambda g: g[0], grads)
    updates, state = optimizer.update(first, state, params)
    assert not np.any(updates["kernel"])
    assert float(get_learning_rate(state)) == 0.0


@pytest.mark.parametrize(
    ("make", "options", "error", "match"),
    [
        (sgd_tf, {"momentum": -0.1}, ValueError, "`momentum`.*at least 0"),
        (sgd_tf, {"dampening": float("nan")}, ValueError, "`dampening`.*finite"),
        (sgd_tf, {"nesterov": True}, ValueError, "`nesterov` requires a `momentum`"),
        (
            sgd_tf,
            {"nesterov": True, "momentum": 0.9, "dampening": 0.1},
            ValueError,
            "a `dampening` of 0",
        ),
        (sgd_tf, {"nesterov": "yes"}, TypeError, "`nesterov` must be True or False"),
        (adagrad_tf, {"lr_decay": -1.0}, ValueError, "`lr_decay`.*at least 0"),
        (adagrad_tf, {"eps": -1.0}, ValueError, "`eps`.*at least 0"),
        (rmsprop_tf, {"alpha": 1.0}, ValueError, "`alpha`.*less than 1"),
        (rmsprop_tf, {"eps": -1.0}, ValueError, "`eps`.*at least 0"),
        (rmsprop_tf, {"momentum": -1.0}, ValueError, "`momentum`.*at least 0"),
        (rmsprop_tf, {"centered": 1}, TypeError, "`centered` must be True or False"),
        (lion_tf, {"betas": (0.9, 1.0)}, ValueError, r"`betas\[1\]`.*less than 1"),
        (lion_tf, {"betas": 0.9}, TypeError, "`betas` must be a pair"),
        (lion_tf, {"weight_decay": -1.0}, ValueError, "`weight_decay`.*at least 0"),
        (sgd_tf, {"learning_rate": -1.0}, ValueError, "`learning_rate`"),
    ],
)
def test_refuses_options_out_of_range(make, options, error, match):
    with pytest.raises(error, match=match):
        make(**{"learning_rate": 1e-3, **options})
