"""Many runs in one program against individual runs."""

import dataclasses
import itertools
import re

import jax
import numpy as np
import pytest

from jaxopt_tf import tuning
from jaxopt_tf.recipes import Recipe
from jaxopt_tf.tuning import Runs, Task
from jaxopt_tf.tuning._program import make_program

from . import tasks

pytestmark = pytest.mark.usefixtures("compiled_once", "compiled_quickly")

ONE = jax.devices()[:1]

# Gradient descent, which compiles in a third of the time.
BASE = Recipe(
    max_steps=40,
    learning_rate=3e-3,
    warmup_steps=5,
    weight_decay=0.1,
    seed=1,
    optim="sgd",
)


def train_many(task, recipes, **limits):
    return tuning.train_many(task, recipes, devices=ONE, **limits)


def recipes_of(*changes, base=BASE):
    return [dataclasses.replace(base, **change) for change in changes]


def assert_as_alone(task, recipes, runs):
    for i, recipe in enumerate(recipes):
        losses, eval_loss = tasks.alone(task, recipe)
        ours = runs.losses[i, : recipe.max_steps]
        np.testing.assert_allclose(ours, losses, rtol=1e-5, err_msg=str(i))
        np.testing.assert_allclose(runs.eval_loss[i], eval_loss, rtol=1e-5)
        assert np.isnan(runs.losses[i, recipe.max_steps :]).all()


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor"])
def test_each_run_is_what_it_is_alone(optim):
    recipes = recipes_of(
        {"learning_rate": 1e-3, "weight_decay": 0.0, "max_grad_norm": 0.1, "seed": 7},
        {"lr_scheduler_type": "cosine", "max_steps": 25, "max_grad_norm": 0.0},
        base=dataclasses.replace(BASE, optim=optim, learning_rate=2e-3),
    )
    if optim == "adamw_torch":  # Adafactor has no betas
        changes = {"adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-2}
        recipes[1] = dataclasses.replace(recipes[1], **changes)
    task = tasks.digits_task()
    assert_as_alone(task, recipes, train_many(task, recipes))


def test_averages_are_evaluated():
    free = {"optim": "schedule_free_sgd", "warmup_steps": 8}
    recipes = recipes_of({"ema_decay": 0.9}, free, free | {"learning_rate": 1e-2})
    task = tasks.digits_task()
    assert_as_alone(task, recipes, train_many(task, recipes))


def test_other_optimizers_and_batches_are_programs_of_their_own():
    two_halves = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    recipes = recipes_of({"optim": "lion_32bit", "learning_rate": 1e-3}, two_halves)
    task = tasks.digits_task()
    assert_as_alone(task, recipes, train_many(task, recipes))


def test_rate_groups_have_tables_of_their_own():
    group = {"pattern": "kernel", "factor": 0.1, "lr_scheduler_type": "constant"}
    base = dataclasses.replace(BASE, rate_groups=[group])
    recipes = recipes_of({}, {"learning_rate": 1e-2}, base=base)
    task = tasks.digits_task()
    assert_as_alone(task, recipes, train_many(task, recipes))


def test_dropout_has_the_keys_of_each_runs_seed():
    def loss_fn(params, batch, rng=None):
        if rng is not None:
            is_kept = jax.random.bernoulli(rng, 0.8, batch["x"].shape)
            batch = {**batch, "x": batch["x"] * is_kept.astype("float32")}
        return tasks.loss_fn(params, batch)

    task = tasks.digits_task(loss_fn=loss_fn, takes_key=True)
    recipes = recipes_of({}, {"seed": 7})
    assert_as_alone(task, recipes, train_many(task, recipes))


def test_several_devices_share_the_runs():
    rates = [{"learning_rate": 1e-4}, {}, {"learning_rate": 1e-2}]
    task = tasks.digits_task()
    runs = tuning.train_many(task, recipes_of(*rates), devices=jax.devices()[:2])
    on_one = train_many(task, recipes_of(*rates))
    np.testing.assert_allclose(runs.losses, on_one.losses, rtol=1e-5)
    np.testing.assert_allclose(runs.eval_loss, on_one.eval_loss, rtol=1e-5)


def test_a_limit_of_memory_makes_groups_of_runs():
    recipes = recipes_of(*({"learning_rate": rate} for rate in (1e-4, 1e-3, 1e-2)))
    passes = []

    def counted(recipe):
        passes.append(recipe)
        return tasks.batches(recipe)

    task = tasks.digits_task(batches=counted, eval_batches=())
    with pytest.raises(ValueError, match="`memory_limit` must be at least") as refusal:
        train_many(task, recipes, memory_limit=1_000)
    of_one = int(
        re.search(r"at least ([\d,]+)", str(refusal.value))[1].replace(",", "")
    )
    passes.clear()
    runs = train_many(task, recipes, memory_limit=2.1 * of_one)
    assert len(passes) == 3  # one to measure, and two groups
    assert runs.eval_loss is None
    without = train_many(task, recipes)
    np.testing.assert_allclose(runs.losses, without.losses, rtol=1e-5)
    # Runs are evaluated within the limit, too.
    large = [{"x": np.zeros((200_000, 64), "f"), "y": np.zeros(200_000, "i")}]
    with pytest.raises(ValueError, match="`memory_limit` must be at least"):
        train_many(tasks.digits_task(eval_batches=large), recipes, memory_limit=1e6)


def test_one_that_diverges_stays_as_it_was_and_stops_nobody():
    longer = dataclasses.replace(BASE, max_steps=70)  # the host looks after 64 steps
    changes = {}, {"learning_rate": 1e38, "warmup_steps": 0}
    recipes = recipes_of(*changes, base=longer)
    runs = train_many(tasks.digits_task(), recipes)
    assert list(runs.diverged) == [False, True]
    assert np.isnan(runs.losses[1, -1])
    assert np.isinf(runs.final[1])
    losses, _ = tasks.alone(tasks.digits_task(), recipes[0])
    np.testing.assert_allclose(runs.losses[0], losses, rtol=1e-5)
    assert list(runs.table().columns[-1].cells)[1] == "diverged"


def without_a_gradient(params, batch):
    """A loss of 0 for each item, whose gradient is not finite."""
    total, num_items = tasks.loss_fn(params, batch)
    nothing = jax.numpy.sum(params["bias"] - params["bias"])
    return 0.0 * total + jax.numpy.sqrt(nothing), num_items


def test_a_gradient_that_is_not_finite_is_a_run_that_diverged():
    runs = train_many(tasks.digits_task(loss_fn=without_a_gradient), [BASE])
    assert list(runs.diverged) == [True]
    assert np.isnan(runs.losses[0, 1:]).all()


def test_streams_may_end_with_the_longest_run_of_their_seed():
    def batches(recipe):
        return itertools.islice(tasks.batches(recipe), recipe.max_steps)

    lengths = [{"max_steps": 5}, {}, {"max_steps": 7, "seed": 2}]
    runs = train_many(tasks.digits_task(batches=batches), recipes_of(*lengths))
    endless = train_many(tasks.digits_task(), recipes_of(*lengths))
    np.testing.assert_array_equal(runs.losses, endless.losses)


def test_one_device_may_be_any():
    third = jax.devices()[2]
    program = make_program(tasks.digits_task(), BASE, [third])
    assert program.run_sharding.device_set == {third}
    runs = tuning.train_many(tasks.digits_task(), [BASE], devices=[third])
    on_first = train_many(tasks.digits_task(), [BASE])
    np.testing.assert_allclose(runs.losses, on_first.losses, rtol=1e-5)
    with pytest.raises(ValueError, match="`devices` must contain at least one device"):
        tuning.train_many(tasks.digits_task(), [BASE], devices=[])


def runs_of(recipes, eval_loss=None):
    """Runs with losses that fall, the first one from the lowest loss."""
    rng = np.random.default_rng(0)
    start = 3.0 + np.arange(len(recipes))[:, None]
    losses = start - np.linspace(0, 1, 40) + 0.1 * rng.normal(size=(len(recipes), 40))
    return Runs(tuple(recipes), np.float32(losses), eval_loss)


def test_the_best_is_the_one_with_the_lowest_evaluation_loss():
    recipes = recipes_of({"learning_rate": 1e-6}, {"learning_rate": 1e-2})
    runs = runs_of(recipes, np.array([2.5, 2.4]))
    assert runs.best_recipe == recipes[1]
    assert runs.table(max_rows=1).row_count == 1


def test_without_evaluation_batches_the_last_tenth_of_the_losses_counts():
    runs = runs_of(recipes_of({"learning_rate": 1e-6}, {"max_steps": 30}))
    assert runs.best == 0
    np.testing.assert_allclose(runs.final[0], runs.losses[0, 36:].mean(), rtol=1e-6)
    np.testing.assert_allclose(runs.final[1], runs.losses[1, 27:30].mean(), rtol=1e-6)


def test_names_the_smallest_rate_where_all_diverge():
    recipes = recipes_of({"learning_rate": 1e38}, {"learning_rate": 2e38})
    runs = runs_of(recipes, np.array([np.inf, np.nan]))
    with pytest.raises(ValueError, match=r"all 2 diverged; the smallest.* was 1e\+38"):
        _ = runs.best_recipe


def test_refuses_a_memory_limit_that_is_none():
    with pytest.raises(ValueError, match="`memory_limit` must be finite and greater"):
        train_many(tasks.digits_task(), [BASE], memory_limit=0)


def test_refuses_batches_that_end_too_early():
    task = tasks.digits_task(batches=lambda r: itertools.islice(tasks.batches(r), 7))
    with pytest.raises(ValueError, match="`batches` must return .* ended after 7"):
        train_many(task, [BASE])


def test_refuses_no_recipes_and_what_is_none():
    with pytest.raises(ValueError, match="`recipes` must contain at least one"):
        train_many(tasks.digits_task(), [])
    with pytest.raises(TypeError, match="`recipes` must contain `Recipe`s, got 3"):
        train_many(tasks.digits_task(), [3])


def test_refuses_a_schedule_that_a_metric_drives():
    recipe = Recipe(max_steps=10, lr_scheduler_type="greedy")
    with pytest.raises(ValueError, match="`lr_scheduler_type` must be a function of"):
        train_many(tasks.digits_task(), [recipe])


def test_refuses_evaluation_batches_without_items():
    x, y = tasks.digits()
    with pytest.raises(TypeError, match="`eval_batches` must be a list of batches"):
        tasks.digits_task(eval_batches={"x": x, "y": y})
    ignored = [{"x": x[:8], "y": np.full(8, -100, np.int32)}]
    with pytest.raises(ValueError, match="`eval_batches` must have items"):
        train_many(tasks.digits_task(eval_batches=ignored), [BASE])


@pytest.mark.parametrize("name", ["loss_fn", "init", "batches"])
def test_refuses_a_task_without_its_functions(name):
    given = {
        "loss_fn": tasks.loss_fn,
        "init": tasks.perceptron,
        "batches": tasks.batches,
    }
    with pytest.raises(TypeError, match=f"`{name}` must be a function"):
        Task(**{**given, name: 3})
