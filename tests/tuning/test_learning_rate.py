"""Search for a learning rate, with and without an answer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_tf.recipes import Recipe
from jaxopt_tf.tuning import Task, find_learning_rate, range_test
from jaxopt_tf.tuning._learning_rate import short_version

from . import tasks

pytestmark = pytest.mark.usefixtures("compiled_quickly")

ONE = jax.devices()[:1]
SGD = Recipe(
    max_steps=400, optim="sgd", lr_scheduler_type="constant", max_grad_norm=0.0
)
CURVATURE = np.geomspace(1.0, 100.0, 20).astype(np.float32)


def quadratic(**changes) -> Task:
    """Half of x' H x around noisy minima: steps above 2 / 100 diverge."""

    def loss_fn(params, batch):
        x = params["x"][None] - batch
        return 0.5 * jnp.sum(jnp.asarray(CURVATURE)[None] * x**2), len(batch)

    def batches(recipe):
        rng = np.random.default_rng(recipe.seed)
        while True:
            yield 0.3 * rng.normal(size=(8, 20)).astype(np.float32)

    def init(seed):
        return {"x": np.random.default_rng(seed).normal(size=20).astype(np.float32)}

    task = Task(loss_fn=loss_fn, init=init, batches=batches)
    return dataclasses.replace(task, **changes)


def test_suggests_a_stable_rate_near_the_inverse_curvature():
    found = find_learning_rate(quadratic(), SGD, devices=ONE)
    # Gradient descent is stable below 2 / 100, fastest for all directions near it.
    assert 0.2 / 100 < found.suggestion < 2 / 100
    assert np.isinf(found.losses[found.rates > 2.5 / 100]).all()
    assert found.suggested_recipe.learning_rate == found.suggestion
    assert "after 100 steps" in found.reason
    cells = list(found.table().columns[-1].cells)
    assert cells.count("suggested") == 1


def test_tries_the_whole_schedule_in_fewer_steps():
    recipe = dataclasses.replace(
        SGD, lr_scheduler_type="linear", warmup_steps=40, max_steps=400
    )
    found = find_learning_rate(
        quadratic(), recipe, num_rates=3, min_rate=1e-4, num_steps=50, devices=ONE
    )
    short = dataclasses.replace(
        recipe, max_steps=50, warmup_steps=5, learning_rate=float(found.rates[0])
    )
    task = quadratic(eval_batches=[np.zeros((1, 20), np.float32)])
    losses, _ = tasks.alone(task, short)
    np.testing.assert_allclose(found.losses[0], losses[45:].mean(), rtol=1e-5)


def test_every_part_of_a_schedule_keeps_its_share():
    recipe = Recipe(
        max_steps=4_000,
        warmup_steps=400,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": 2_000},
        rate_groups=[{"pattern": "x", "factor": 0.5, "warmup_steps": 100}],
    )
    short = short_version(recipe, 400)
    assert (short.max_steps, short.warmup_steps) == (400, 40)
    assert dict(short.lr_scheduler_kwargs)["num_decay_steps"] == 200
    assert short.rate_groups[0].overrides["warmup_steps"] == 10
    all_warmup = short_version(Recipe(max_steps=100, warmup_steps=100), 50)
    assert all_warmup.warmup_steps == 50


def test_a_range_test_suggests_a_stable_rate_too():
    found = range_test(quadratic(), SGD)
    assert 0.2 / 100 < found.suggestion < 2 / 100
    assert len(found.rates) == 100
    assert np.isinf(found.losses[-1])
    np.testing.assert_allclose(found.rates[[0, -1]], [1e-6, 1.0])


def test_a_range_test_keeps_the_shares_of_rate_groups():
    frozen = [{"pattern": "x", "factor": 0.0}]
    recipe = dataclasses.replace(SGD, rate_groups=frozen)
    losses = range_test(quadratic(), recipe, num_steps=30).losses
    assert losses.max() < 1.2 * losses.min()  # nothing moves, nothing diverges


@pytest.mark.parametrize(
    ("bounds", "reason"),
    [
        ((1e-8, 1e-7), "the lowest rate tried, 1e-08, is within 5 % of it"),
        ((1e-5, 1e-3), "is the highest tried: try higher ones"),
    ],
)
def test_reports_that_it_cannot_tell(bounds, reason):
    low, high = bounds
    found = find_learning_rate(
        quadratic(), SGD, min_rate=low, max_rate=high, num_rates=3, devices=ONE
    )
    assert found.suggestion is None
    assert reason in found.reason
    with pytest.raises(ValueError, match="`suggestion` must be a rate, got None"):
        _ = found.suggested_recipe


def test_a_range_test_says_that_it_cannot_tell():
    found = range_test(quadratic(), SGD, max_rate=1e-3)
    assert found.suggestion is None
    assert "at the last rate, 0.001: try a wider range" in found.reason


def test_names_the_smallest_rate_where_all_diverge():
    with pytest.raises(ValueError, match=r"all 3 diverged; the smallest .* was 1\."):
        find_learning_rate(
            quadratic(), SGD, min_rate=1.0, max_rate=9.0, num_rates=3, devices=ONE
        )


def test_a_range_test_refuses_a_loss_that_is_not_finite_at_first():
    def batches(recipe):
        while True:
            yield np.full((8, 20), np.nan, np.float32)

    with pytest.raises(
        ValueError, match=r"finite initial loss, got .*nan.* 1e-06, the sma"
    ):
        range_test(quadratic(batches=batches), SGD, num_steps=5)


@pytest.mark.parametrize("function", [find_learning_rate, range_test])
def test_refuses_bounds_that_are_none(function):
    with pytest.raises(ValueError, match="`max_rate` must be greater than `min_rate`"):
        function(quadratic(), SGD, min_rate=1e-2, max_rate=1e-4)
    with pytest.raises(ValueError, match="`min_rate` must be finite and greater"):
        function(quadratic(), SGD, min_rate=0.0)
    with pytest.raises(ValueError, match="`num_steps` must be from 3"):
        function(quadratic(), SGD, num_steps=2)


def test_refuses_too_few_rates():
    with pytest.raises(ValueError, match="`num_rates` must be from 3"):
        find_learning_rate(quadratic(), SGD, num_rates=2)
