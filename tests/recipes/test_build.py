"""From a recipe to its schedule and optimizer: nothing is lost on the way."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_tf.optimizers import adafactor_trainer, adamw_tf, clip, get_learning_rate
from jaxopt_tf.recipes import Recipe, build_optimizer, build_schedule
from jaxopt_tf.schedules import get_cosine_schedule_with_warmup

pytestmark = pytest.mark.promotion_of_others  # optax.apply_updates

# Nothing at its default, so that a number left out is seen.
RECIPE = Recipe(
    max_steps=20,
    learning_rate=0.1,
    lr_scheduler_type="cosine",
    lr_scheduler_kwargs={"num_cycles": 1.5},
    warmup_steps=5,
    weight_decay=0.2,
    adam_beta1=0.8,
    adam_beta2=0.9,
    adam_epsilon=1e-3,
    max_grad_norm=0.5,
)


def schedule_by_hand():
    return get_cosine_schedule_with_warmup(0.1, 5, 20, num_cycles=1.5)


def last_params(optimizer, rng):
    """Parameters after ten random updates."""

    def draw():
        return {
            "kernel": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32),
            "bias": jnp.asarray(rng.normal(size=3), jnp.float32),
        }

    params = draw()
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for _ in range(10):
        updates, state = update(draw(), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def assert_same_run(ours, by_hand):
    params, _ = last_params(ours, np.random.default_rng(0))
    expected, _ = last_params(by_hand, np.random.default_rng(0))
    for name in expected:
        np.testing.assert_array_equal(params[name], expected[name], err_msg=name)


def test_schedule_is_the_one_written_by_hand():
    steps = jnp.arange(21)
    ours, by_hand = jax.vmap(build_schedule(RECIPE)), jax.vmap(schedule_by_hand())
    np.testing.assert_array_equal(ours(steps), by_hand(steps))


def test_adamw_is_the_chain_written_by_hand():
    by_hand = optax.chain(
        clip(0.5),
        adamw_tf(schedule_by_hand(), betas=(0.8, 0.9), eps=1e-3, weight_decay=0.2),
    )
    assert_same_run(build_optimizer(RECIPE), by_hand)


def test_adafactor_is_the_chain_written_by_hand():
    recipe = dataclasses.replace(RECIPE, optim="adafactor")
    by_hand = optax.chain(
        clip(0.5), adafactor_trainer(schedule_by_hand(), weight_decay=0.2)
    )
    assert_same_run(build_optimizer(recipe), by_hand)


def test_does_not_clip_with_a_limit_of_0():
    recipe = dataclasses.replace(RECIPE, max_grad_norm=0)
    by_hand = adamw_tf(schedule_by_hand(), betas=(0.8, 0.9), eps=1e-3, weight_decay=0.2)
    assert_same_run(build_optimizer(recipe), by_hand)


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor"])
def test_state_tells_rate_and_norm(optim, rng):
    recipe = dataclasses.replace(RECIPE, optim=optim)
    _, state = last_params(build_optimizer(recipe), rng)
    assert float(get_learning_rate(state)) == float(schedule_by_hand()(9))
    assert float(optax.tree.get(state, "grad_norm")) > 0.5
