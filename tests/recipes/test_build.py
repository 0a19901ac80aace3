"""Schedule and optimizer of a recipe."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_tf.optimizers import (
    TorchLayout,
    adafactor_trainer,
    adagrad_tf,
    adamw_hf_v4,
    adamw_tf,
    clip,
    decay_mask,
    get_learning_rate,
    lion_tf,
    rmsprop_tf,
    set_learning_rate,
    sgd_tf,
)
from jaxopt_tf.recipes import Recipe, build_optimizer, build_schedule
from jaxopt_tf.schedules import (
    MetricDrivenSchedule,
    get_cosine_schedule_with_warmup,
    get_wsd_schedule,
    reduce_lr_on_plateau,
)

pytestmark = [
    pytest.mark.promotion_of_others,  # optax.apply_updates
    pytest.mark.usefixtures("compiled_quickly"),
]

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


@pytest.mark.parametrize(
    ("optim", "args", "by_hand"),
    [
        ("adamw_torch_fused", {},
         lambda rate: adamw_tf(rate, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.2)),
        ("adamw_hf", {},
         lambda rate: adamw_hf_v4(rate, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.2)),
        ("lion_32bit", {},
         lambda rate: lion_tf(rate, betas=(0.8, 0.9), weight_decay=0.2)),
        ("sgd", {"momentum": 0.5},
         lambda rate: sgd_tf(rate, momentum=0.5, weight_decay=0.2)),
        ("adagrad", {"eps": 0.1},
         lambda rate: adagrad_tf(rate, eps=0.1, weight_decay=0.2)),
        ("rmsprop", {"alpha": 0.5},
         lambda rate: rmsprop_tf(rate, alpha=0.5, weight_decay=0.2)),
    ],
)  # fmt: skip
def test_every_name_is_the_chain_written_by_hand(optim, args, by_hand):
    recipe = dataclasses.replace(RECIPE, optim=optim, optim_args=args)
    chain = optax.chain(clip(0.5), by_hand(schedule_by_hand()))
    assert_same_run(build_optimizer(recipe), chain)


@pytest.mark.parametrize("rule", ["examples", "transformers_v4", "transformers_v5"])
def test_the_rule_of_decay_and_named_layers_reach_the_optimizer(rule):
    params = {"mixing": {"weight": jnp.ones(3), "bias": jnp.ones(3)}, "w": jnp.ones(3)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    recipe = dataclasses.replace(RECIPE, decay_rule=rule, warmup_steps=0)
    for layer_norms in ([], ["mixing"]):
        optimizer = build_optimizer(recipe, layer_norms=layer_norms)
        updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        is_decayed = jax.tree.map(lambda u: bool(jnp.any(u != 0)), updates)
        expected = decay_mask(params, rule=rule, layer_norms=layer_norms)
        assert is_decayed == expected


def test_does_not_clip_with_a_limit_of_0():
    recipe = dataclasses.replace(RECIPE, max_grad_norm=0)
    by_hand = adamw_tf(schedule_by_hand(), betas=(0.8, 0.9), eps=1e-3, weight_decay=0.2)
    assert_same_run(build_optimizer(recipe), by_hand)


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor"])
def test_state_contains_rate_and_norm(optim, rng):
    recipe = dataclasses.replace(RECIPE, optim=optim)
    _, state = last_params(build_optimizer(recipe), rng)
    assert float(get_learning_rate(state)) == float(schedule_by_hand()(9))
    assert float(optax.tree.get(state, "grad_norm")) > 0.5


def test_a_share_of_warmup_reaches_the_schedule():
    recipe = dataclasses.replace(RECIPE, warmup_steps=0.22)  # 4.4 of 20
    steps = jnp.arange(21)
    ours, by_hand = jax.vmap(build_schedule(recipe)), jax.vmap(schedule_by_hand())
    np.testing.assert_array_equal(ours(steps), by_hand(steps))


def test_a_stable_stretch_that_is_given_ends_before_training_does():
    recipe = Recipe(
        max_steps=10,
        learning_rate=0.1,
        warmup_steps=2,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_stable_steps": 3, "num_decay_steps": 2},
    )
    steps = jnp.arange(11)
    by_hand = get_wsd_schedule(0.1, 2, 2, num_stable_steps=3)
    ours = jax.vmap(build_schedule(recipe))(steps)
    np.testing.assert_array_equal(ours, jax.vmap(by_hand)(steps))
    assert not ours[7:].any()


@pytest.mark.parametrize(
    ("name", "optim"),
    [("reduce_lr_on_plateau", "adafactor"), ("greedy", "adamw_torch")],
)
def test_a_metric_drives_the_rate_of_the_optimizer(name, optim, rng):
    recipe = Recipe(
        max_steps=10,
        learning_rate=0.1,
        lr_scheduler_type=name,
        lr_scheduler_kwargs={"patience": 0, "factor": 0.5},
        optim=optim,
    )
    schedule, optimizer = build_schedule(recipe), build_optimizer(recipe)
    assert isinstance(schedule, MetricDrivenSchedule)
    driven = schedule.init()
    params, state = last_params(optimizer, rng)
    assert get_learning_rate(state) == np.float32(driven.learning_rate)
    for metric in (1.0, 2.0, 3.0):
        driven = schedule.update(driven, metric)
    share = float(driven.learning_rate) / 0.1
    assert share < 1
    changed = set_learning_rate(state, driven.learning_rate)
    update = jax.jit(optimizer.update)
    before, _ = update(params, state, params)
    after, _ = update(params, changed, params)
    np.testing.assert_allclose(after["bias"], share * before["bias"], rtol=1e-4)


def test_the_options_of_a_metric_driven_schedule_reach_it():
    options = {"patience": 1, "factor": 0.3, "mode": "max", "min_lr": 1e-3}
    ours = build_schedule(
        Recipe(
            max_steps=10,
            learning_rate=0.1,
            lr_scheduler_type="reduce_lr_on_plateau",
            lr_scheduler_kwargs=options,
        )
    )
    by_hand = reduce_lr_on_plateau(0.1, **options)
    state, expected = ours.init(), by_hand.init()
    for metric in (1.0, 0.9, 0.8, 0.7, 0.6, 1.1, 0.5, 0.4, 0.3):
        state, expected = ours.update(state, metric), by_hand.update(expected, metric)
        assert float(state.learning_rate) == float(expected.learning_rate)


def test_a_layout_reaches_adafactor():
    recipe = dataclasses.replace(RECIPE, optim="adafactor")
    params = {"kernel": jax.ShapeDtypeStruct((4, 3), jnp.float32)}
    # A stack of vectors: nothing to factor.
    stack = build_optimizer(recipe, layouts={"kernel": TorchLayout().stacked()})
    stacked = jax.eval_shape(stack.init, params)
    assert optax.tree.get(stacked, "nu")["kernel"].shape == (4, 3)
    plain = jax.eval_shape(build_optimizer(recipe).init, params)
    assert optax.tree.get(plain, "nu_row")["kernel"].shape == (4,)
