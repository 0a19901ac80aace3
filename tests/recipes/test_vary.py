"""Hyperparameters as arguments of a program, against constants."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_tf.recipes import Recipe, build_optimizer, compile_key, stack_recipes

pytestmark = pytest.mark.usefixtures("compiled_quickly")

BASE = Recipe(max_steps=20, learning_rate=1e-3, warmup_steps=3, weight_decay=0.1)
RECIPES = [
    dataclasses.replace(BASE, adam_beta1=0.8, adam_beta2=0.95, max_grad_norm=0.1),
    dataclasses.replace(
        BASE, learning_rate=3e-3, weight_decay=0.0, lr_scheduler_type="cosine"
    ),
    dataclasses.replace(BASE, adam_epsilon=1e-6, max_grad_norm=0.0, adam_beta1=0.7),
]


@pytest.fixture
def params(rng):
    # Small, so that what an update is rounded to is small beside the update.
    return {
        "kernel": 1e-3 * rng.normal(size=(8, 4)).astype(np.float32),
        "bias": 1e-3 * rng.normal(size=4).astype(np.float32),
    }


def trained(recipe, params, varied=None):
    """Twenty updates by gradients that are drawn by the step."""
    optimizer = build_optimizer(recipe, varied=varied)

    def step(carried, key):
        params, state = carried
        grads = jax.tree.map(lambda p: jax.random.normal(key, p.shape), params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    params = jax.tree.map(jnp.asarray, params)
    keys = jax.random.split(jax.random.key(0), 20)
    return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor", "lion_32bit"])
def test_trains_as_constants_do(params, optim):
    recipes = [dataclasses.replace(recipe, optim=optim) for recipe in RECIPES]

    def run(varied):
        return trained(recipes[0], params, varied)

    many = jax.jit(jax.vmap(run))(stack_recipes(recipes))
    for i, recipe in enumerate(recipes):
        alone = jax.jit(lambda recipe=recipe: trained(recipe, params))()
        for name, p in params.items():
            moved = np.abs(alone[name] - p).max()
            np.testing.assert_allclose(many[name][i], alone[name], 0, 5e-7 * moved)


def test_what_all_have_in_common_stays_a_constant():
    varied = stack_recipes([BASE, dataclasses.replace(BASE, adam_beta2=0.9, seed=3)])
    assert varied.rates == {}
    assert list(varied.values) == ["adam_beta2"]


def test_a_shorter_schedule_keeps_its_last_rate():
    varied = stack_recipes([BASE, dataclasses.replace(BASE, max_steps=10)])
    (table,) = varied.rates.values()
    assert table.shape == (2, 20)
    assert (table[1, 10:] == table[1, 9]).all()
    assert table[1, 9] < table[1, 8]


def test_recipes_of_one_program_differ_in_numbers_only():
    assert compile_key(BASE) == compile_key(RECIPES[0])
    other = dataclasses.replace(BASE, optim="adafactor")
    assert compile_key(BASE) != compile_key(other)
    with pytest.raises(ValueError, match="`recipes` must share one compiled program"):
        stack_recipes([BASE, other])


def test_refuses_a_rate_that_a_metric_drives():
    driven = Recipe(max_steps=10, lr_scheduler_type="reduce_lr_on_plateau")
    with pytest.raises(ValueError, match="`lr_scheduler_type` must be a function of"):
        stack_recipes([driven, driven])


def test_refuses_a_beta_that_is_1_as_a_float32():
    betas = [dataclasses.replace(BASE, adam_beta2=b) for b in (0.9, 0.99999999)]
    with pytest.raises(ValueError, match="`adam_beta2` must be less than 1 after"):
        stack_recipes(betas)


def test_the_rule_of_version_4_wants_norms_whichever_run_decays():
    recipes = [
        dataclasses.replace(BASE, decay_rule="transformers_v4", weight_decay=decay)
        for decay in (0.0, 0.1)
    ]
    varied = jax.tree.map(lambda leaf: leaf[0], stack_recipes(recipes))
    with pytest.raises(ValueError, match="`layer_norms` must be given"):
        build_optimizer(recipes[0], varied=varied)
