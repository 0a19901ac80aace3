"""Runs of a weight decay path against individual runs."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxopt_tf import training, tuning
from jaxopt_tf.recipes import Recipe, build_optimizer
from jaxopt_tf.tuning._folds import Folds

from . import tasks

pytestmark = pytest.mark.usefixtures("compiled_once", "compiled_quickly")

# Gradient descent, which compiles in a third of the time; with a state.
BASE = Recipe(
    max_steps=15,
    learning_rate=0.1,
    warmup_steps=3,
    seed=1,
    optim="sgd",
    optim_args={"momentum": 0.9},
    max_grad_norm=0.0,
)


def few_digits(num_rows, seed=0):
    x, y = tasks.digits()
    rows = np.random.default_rng(seed).permutation(len(x))[:num_rows]
    return {"x": x[rows], "y": y[rows]}


def decay_path(examples, recipe, decays, *, loss_fn=tasks.loss_fn, **options):
    options = {"devices": jax.devices()[:1], "num_folds": 3, **options}
    return tuning.decay_path(
        loss_fn, tasks.perceptron, examples, recipe, decays, **options
    )


def assert_as_alone(path, examples, *, warm_starts=False, loss_fn=tasks.loss_fn):
    """Trains each run with `make_train_step`, from the strongest decay on."""
    rows = jax.tree.map(lambda leaf: leaf[:, None], examples)  # each a batch of one
    losses_of_rows = jax.jit(jax.vmap(tasks.loss_fn, in_axes=(None, 0)))
    num_decays, num_folds = path.eval_loss.shape
    takes_key = loss_fn is not tasks.loss_fn
    ends = [tasks.perceptron(path.base.seed)] * num_folds
    for d in reversed(range(num_decays)):
        recipe = dataclasses.replace(path.base, weight_decay=float(path.decays[d]))
        optimizer = build_optimizer(recipe)
        step = training.make_train_step(
            loss_fn,
            optimizer,
            gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        )
        for f in range(num_folds):
            start = ends[f] if warm_starts else tasks.perceptron(recipe.seed)
            state = training.init_train_state(
                jax.tree.map(np.array, start),
                optimizer,
                rng=recipe.seed if takes_key else None,
            )
            batches = Folds(examples, path.fold_of_row, recipe).training_batches(f)
            for _, batch in zip(range(recipe.max_steps), batches, strict=False):
                state, _ = step(state, batch)
            ends[f] = state.params
            losses = np.array(losses_of_rows(state.params, rows)[0])
            for ours, which in (
                (path.eval_loss, path.fold_of_row == f),
                (path.training, path.fold_of_row != f),
            ):
                np.testing.assert_allclose(
                    ours[d, f], losses[which].mean(), rtol=1e-5, err_msg=f"{d}, {f}"
                )


@pytest.mark.parametrize("warm_starts", [False, True], ids=["scratch", "warm"])
def test_each_run_is_what_it_is_alone(warm_starts):
    examples = few_digits(40)  # not a multiple of the folds
    path = decay_path(examples, BASE, [1.0, 0.0], warm_starts=warm_starts)
    assert list(path.decays) == [0.0, 1.0]
    assert_as_alone(path, examples, warm_starts=warm_starts)


def test_accumulation_and_dropout_are_those_of_a_run_alone():
    def loss_fn(params, batch, rng=None):
        if rng is not None:
            is_kept = jax.random.bernoulli(rng, 0.8, batch["x"].shape)
            batch = {**batch, "x": batch["x"] * is_kept.astype("float32")}
        return tasks.loss_fn(params, batch)

    recipe = dataclasses.replace(
        BASE, per_device_train_batch_size=4, gradient_accumulation_steps=2
    )
    examples = few_digits(40)
    path = decay_path(
        examples, recipe, [0.1], loss_fn=loss_fn, num_folds=2, takes_key=True
    )
    assert_as_alone(path, examples, loss_fn=loss_fn)


def test_finds_the_decay_that_helps_where_digits_are_few():
    recipe = Recipe(
        max_steps=150, learning_rate=0.3, per_device_train_batch_size=16, seed=1
    )
    decays = [0, 0.03, 0.1, 0.3, 1]
    path = decay_path(few_digits(60), recipe, decays, num_folds=5)
    assert 0 < path.best < 1
    assert path.suggestion >= path.best
    assert path.mean.min() < 0.9 * path.mean[0]
    assert path.mean.min() < 0.9 * path.mean[-1]
    # The stronger the decay, the less is learnt of the rows that are trained on.
    assert (np.diff(path.training.mean(axis=1)) > 0).all()


def test_a_limit_of_memory_and_several_devices_change_nothing():
    inits = []

    def init(seed):
        inits.append(seed)
        return tasks.perceptron(seed)

    recipe = dataclasses.replace(BASE, max_steps=4)
    given = (tasks.loss_fn, init, few_digits(40), recipe, [0.1, 1.0])
    options = {"num_folds": 3, "warm_starts": True}
    whole = tuning.decay_path(*given, **options, devices=jax.devices()[:1])
    inits.clear()
    options |= {"devices": jax.devices()[:2], "memory_limit": 25_000}
    path = tuning.decay_path(*given, **options)
    assert len(inits) >= 3  # one to measure, and of each group
    np.testing.assert_allclose(path.eval_loss, whole.eval_loss, rtol=1e-5)
    np.testing.assert_allclose(path.training, whole.training, rtol=1e-5)


def test_a_decay_that_diverges_stops_no_other():
    # Each step takes rate * decay = 100 times the parameters off them.
    recipe = dataclasses.replace(BASE, optim_args=(), max_steps=40)
    examples = few_digits(40)
    beside = decay_path(examples, recipe, [0.1, 1.0])
    assert np.isfinite(beside.mean).all()
    for warm_starts in (False, True):
        path = decay_path(examples, recipe, [0.1, 1e3], warm_starts=warm_starts)
        assert list(np.isfinite(path.mean)) == [True, False]
        assert np.isinf(path.training[1]).all()
        # Warm starts are from where the one that diverged began: from scratch, here.
        np.testing.assert_allclose(path.eval_loss[0], beside.eval_loss[0], rtol=1e-5)


def test_reports_so_where_all_diverge():
    recipe = dataclasses.replace(BASE, learning_rate=1e38, warmup_steps=0)
    with pytest.raises(ValueError, match=r"each of 2 diverged; .* 0\.1, .* 1e\+38"):
        decay_path(few_digits(40), recipe, [0.1, 1.0])


@pytest.mark.parametrize(
    ("decays", "message"),
    [
        ([], "must contain at least one weight decay, got none"),
        ([0.1, -1.0], "must be finite and at least 0, got -1"),
        ([np.inf], "must be finite and at least 0, got inf"),
        ([np.nan], "must be finite and at least 0, got nan"),
    ],
    ids=["none", "negative", "infinite", "not a number"],
)
def test_refuses_decays_that_are_none(decays, message):
    with pytest.raises(ValueError, match=f"`decays` {message}"):
        decay_path(few_digits(40), BASE, decays)


def test_refuses_what_cannot_be_folded():
    examples = few_digits(40)
    with pytest.raises(ValueError, match="`num_folds` must be at most"):
        decay_path(examples, BASE, [0.1], num_folds=41)
    with pytest.raises(ValueError, match="`num_folds` must be from 2"):
        decay_path(examples, BASE, [0.1], num_folds=1)
    with pytest.raises(ValueError, match="`examples` must have a first axis"):
        decay_path({**examples, "y": examples["y"][1:]}, BASE, [0.1])
    with pytest.raises(ValueError, match="`per_device_train_batch_size` times"):
        decay_path(few_digits(11), BASE, [0.1])


def test_refuses_a_fold_without_items():
    examples = few_digits(40)
    examples["y"] = np.full_like(examples["y"], -100)  # ignored by the loss
    with pytest.raises(ValueError, match="`examples` must have items .* every fold"):
        decay_path(examples, BASE, [0.0, 1.0])
