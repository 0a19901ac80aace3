"""Schedules evaluated with 64-bit steps, against the doubles of Transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_tf.optimizers import adamw_tf, get_learning_rate
from jaxopt_tf.recipes import ParamGroup, Recipe, build_schedule
from jaxopt_tf.recipes._build import RunHyperparams, rates_of, stack_recipes
from jaxopt_tf.schedules import (
    constant,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_scheduler,
    greedy,
    hard_restarts,
    join,
    linear,
    reduce_lr_on_plateau,
    warmup,
)
from jaxopt_tf.training import Metrics, Norms, TrainState, train
from tests import references
from tests.references import schedules as theirs

# A few units in the last place of float64, relative to the base rate.
TOLERANCE = 1e-15


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def by_name(name, learning_rate, settings):
    settings = dict(settings)
    counts = [
        settings.pop(key, None) for key in ("num_warmup_steps", "num_training_steps")
    ]
    return get_scheduler(name, learning_rate, *counts, settings)


@references.needs_transformers
@pytest.mark.parametrize("name", theirs.NAMES)
def test_equals_transformers_in_doubles(rng, name, x64):
    for most_steps in (40, 40, 40, 1_000_000, 1_000_000, 2**31 - 3):
        lr, settings = theirs.random_settings(name, rng, most_steps)
        steps = theirs.telling_steps(rng, settings, count=60)
        real = theirs.transformers_factor(name, steps, lr, **settings)
        ours = jax.jit(by_name(name, lr, settings))(jnp.asarray(steps, jnp.int64))
        assert ours.dtype == jnp.float64
        apart = np.abs(np.asarray(ours) - lr * real) / lr
        assert apart.max() <= TOLERANCE, (lr, settings, steps[apart.argmax()])


@references.needs_transformers
def test_restarts_where_the_double_does(x64):
    step = jnp.arange(200, dtype=jnp.int64)
    for size in (49, 98, 103, 107, 161, 187):
        settings = {
            "num_warmup_steps": 0,
            "num_training_steps": size,
            "num_cycles": size,
        }
        real = theirs.transformers_factor("cosine_with_restarts", step, **settings)
        assert np.any(real[:size] < 0.5)
        ours = jax.jit(by_name("cosine_with_restarts", 1.0, settings))(step)
        np.testing.assert_allclose(ours, real, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", theirs.NAMES)
def test_a_32_bit_step_gives_the_same_float32_with_x64(rng, name):
    lr, settings = theirs.random_settings(name, rng, 1_000)
    steps = theirs.telling_steps(rng, settings, count=20).astype(np.int32)
    one = int(steps[4])

    def rates():
        schedule = jax.jit(by_name(name, lr, settings))
        # `jit` converts a Python int to an array, but it counts as a Python int.
        return [np.asarray(schedule(step)) for step in (jnp.asarray(steps), one)]

    before = rates()
    with jax.enable_x64(True):
        after = rates()
    for old, new in zip(before, after, strict=True):
        assert new.dtype == np.float32
        np.testing.assert_array_equal(new, old)


def test_kinds_of_64_bit_steps(x64):
    schedule = join(0.1, warmup(linear, 3), constant(0))
    for step in (np.int64(1), np.asarray(1), np.asarray([1]), jnp.uint64(1)):
        value = schedule(step)
        assert value.dtype == jnp.float64
        assert value.shape == np.shape(step)
        np.testing.assert_array_equal(value, 0.1 * (1 / 3))
    assert schedule(1).dtype == jnp.float32


def test_without_x64_a_numpy_int64_gives_float32():
    assert join(0.1, constant(0))(np.int64(1)).dtype == jnp.float32


def test_a_recipe_and_its_rate_groups(x64):
    recipe = Recipe(
        learning_rate=0.1,
        max_steps=10,
        warmup_steps=3,
        rate_groups=(ParamGroup(pattern="wte", factor=0.3),),
    )
    step = jnp.int64(1)
    assert build_schedule(recipe)(step) == 0.1 * (1 / 3)
    rates = rates_of(recipe, RunHyperparams({}, {}))
    assert rates["wte"](step).dtype == jnp.float64
    np.testing.assert_allclose(rates["wte"](step), 0.1 / 3 * 0.3, rtol=TOLERANCE)
    assert rates["wte"](jnp.int32(1)).dtype == jnp.float32


def test_a_table_of_rates_stays_float32_in_its_digits(x64):
    recipes = [
        Recipe(learning_rate=rate, max_steps=10, warmup_steps=0) for rate in (0.1, 0.2)
    ]
    tables = stack_recipes(recipes).rates["rest"]
    assert tables.dtype == jnp.float32
    rate = rates_of(recipes[0], RunHyperparams({"rest": tables[0]}, {}))["rest"]
    assert rate(jnp.int32(4)).dtype == jnp.float32
    assert rate(jnp.int64(4)).dtype == jnp.float64


def test_a_traced_float64_rate_keeps_its_digits(x64):
    def rate(peak, floor):
        schedule = get_cosine_with_min_lr_schedule_with_warmup(
            peak, 2, 10, min_lr=floor
        )
        return schedule(jnp.int64(10))

    np.testing.assert_allclose(
        jax.jit(rate, static_argnums=1)(0.1, 0.01), 0.01, rtol=TOLERANCE
    )


def test_phases_with_a_float32_floor(x64):
    schedule = join(1.0, hard_restarts(linear, 4, 2, floor=jnp.float32(0.25)))
    values = schedule(jnp.arange(6, dtype=jnp.int64))
    np.testing.assert_array_equal(values, [1, 0.625, 1, 0.625, 0.25, 0.25])


@references.needs_transformers
@pytest.mark.parametrize("make", [reduce_lr_on_plateau, greedy])
def test_a_rate_that_follows_a_metric(rng, make, x64):
    reference = {reduce_lr_on_plateau: theirs.plateau, greedy: theirs.greedy}[make]
    # Metrics that are equal in float32, as floats and as float64 arrays.
    metrics = 1.0 + np.cumsum(rng.normal(size=40)) * 1e-9
    options = {"threshold": 0.0, "patience": 1, "min_lr": 1e-5, "eps": 0.0}
    real = reference(metrics, 0.1, **options)
    assert len(set(real)) > 3
    schedule = make(0.1, **options)
    for kind in (float, jnp.float64):
        state, rates = schedule.init(), []
        for metric in metrics:
            state = schedule.update(state, kind(metric))
            rates.append(state.learning_rate)
        np.testing.assert_array_equal(rates, real)


def test_the_training_loop_sets_a_float64_rate_unrounded(x64):
    schedule = reduce_lr_on_plateau(0.1, factor=0.3, patience=0, threshold=0.0)
    opt_state = adamw_tf(0.1).init({"w": jnp.ones(2, jnp.float32)})
    opt_state = opt_state._replace(learning_rate=jnp.float64(0.1))

    def step(state, batch):
        one, no = jnp.ones((), jnp.float32), jnp.asarray(False)
        metrics = Metrics(one, one, Norms(one, one, one), one, no, no, no, {})
        return state.replace(step=state.step + 1), metrics

    trained = train(
        step,
        TrainState(jnp.zeros((), jnp.int32), None, opt_state, None, None),
        range(2),
        max_steps=2,
        evaluate=lambda params: {"loss": 1.0},
        eval_steps=1,
        metric_schedule=schedule,
    )
    assert get_learning_rate(trained.state.opt_state) == 0.1 * 0.3
