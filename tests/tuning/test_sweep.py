"""Sweeps: runs, successive halving, resumption and reuse."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from jaxopt_tf import tuning
from jaxopt_tf.recipes import Recipe
from jaxopt_tf.tuning import Sweep, Trial, Uniform
from jaxopt_tf.tuning._program import unstacked

from . import tasks

pytestmark = pytest.mark.usefixtures("compiled_once", "compiled_quickly")

ONE = jax.devices()[:1]
# Gradient descent, which compiles in a third of the time.
BASE = Recipe(max_steps=40, learning_rate=3e-3, seed=1, optim="sgd")
RATES = [1e-4, 1e-3, 1e-2, 3e-2]


def sweep(over, task=None, **options):
    task = tasks.digits_task() if task is None else task
    return tuning.sweep(task, BASE, over, devices=ONE, **options)


class KilledError(Exception):
    pass


def killed_after(num_groups):
    """Returns a `report` that raises after a number of calls, in place of SIGKILL."""
    told = []

    def report(line):
        told.append(line)
        if len(told) == num_groups:
            raise KilledError

    return report


def counting(task):
    """The task, and the list of all steps whose batch was read."""
    read = []

    def batches(recipe):
        for step, batch in enumerate(task.batches(recipe)):
            read.append(step)
            yield batch

    return dataclasses.replace(task, batches=batches), read


def spoilt_before(step, task):
    """The task; of its batches those before a step, the first one not, are spoilt."""

    def batches(recipe):
        for i, batch in enumerate(task.batches(recipe)):
            yield {**batch, "x": batch["x"] * np.nan} if 0 < i < step else batch

    return dataclasses.replace(task, batches=batches)


def test_a_grid_is_every_combination_and_a_run_is_what_train_many_makes_of_it():
    found = sweep({"learning_rate": [1e-4, 1e-2], "weight_decay": [0.0, 0.1]})
    tried = [(r.learning_rate, r.weight_decay) for r in found.recipes]
    assert tried == [(1e-4, 0.0), (1e-4, 0.1), (1e-2, 0.0), (1e-2, 0.1)]
    assert found.best_recipe.learning_rate == 1e-2
    assert [trial.step for trial in found.final_trials] == [40] * 4
    assert found.table(max_rows=3).row_count == 3
    runs = tuning.train_many(tasks.digits_task(), found.recipes, devices=ONE)
    eval_loss = [trial.eval_loss for trial in found.final_trials]
    np.testing.assert_allclose(eval_loss, runs.eval_loss, rtol=1e-6)


def test_random_search_stays_between_the_bounds_and_repeats():
    over = {
        "learning_rate": Uniform(1e-4, 1e-2),
        "weight_decay": Uniform(0, 1, scale="linear"),
        "per_device_train_batch_size": Uniform(4, 9),
        "adam_beta2": [0.95, 0.999],
        "seed": Uniform(12346, 12349),
        "warmup_steps": Uniform(1, 5),
    }
    drawn = tuning.random_search(BASE, over, 50, 3)
    assert drawn == tuning.random_search(BASE, over, 50, 3)
    assert drawn != tuning.random_search(BASE, over, 50, 4)
    for recipe in drawn:
        assert 1e-4 <= recipe.learning_rate <= 1e-2
        assert 0 < recipe.weight_decay < 1
        assert recipe.per_device_train_batch_size in range(4, 10)
        assert recipe.seed in range(12346, 12350)
        assert recipe.warmup_steps in range(1, 6)
    assert {recipe.adam_beta2 for recipe in drawn} == {0.95, 0.999}
    # Evenly on a scale of logarithms: half of them are below the middle decade.
    assert 15 < sum(recipe.learning_rate < 1e-3 for recipe in drawn) < 35


def test_a_random_search_trains_what_was_drawn():
    over = {"learning_rate": Uniform(1e-4, 1e-2)}
    found = sweep(over, num_samples=2, seed=3)
    assert found.recipes == tuning.random_search(BASE, over, 2, 3)
    assert [trial.step for trial in found.final_trials] == [40, 40]


def test_halving_trains_on_the_better_half_only_and_compiles_each_size_once(caplog):
    with jax.log_compiles():
        found = sweep({"learning_rate": RATES}, reduction_factor=2)
    compiled = [m for m in caplog.messages if m.startswith("Compiling jit(step)")]
    assert len(compiled) == 3  # of four runs, of two and of the last one
    steps = [[t.step for t in found.trials if t.run == run] for run in range(4)]
    assert sorted(steps) == [[10], [10], [10, 20], [10, 20, 40]]
    whole = sweep({"learning_rate": RATES})
    (end,) = [trial for trial in found.final_trials if trial.step == 40]
    assert end.run == 3  # the rate that learns most here
    # The one that was looked at on its way is the one that nobody stopped.
    np.testing.assert_allclose(
        end.eval_loss, whole.final_trials[end.run].eval_loss, rtol=1e-6
    )
    assert found.best_recipe == found.recipes[end.run]


def test_runs_that_go_on_are_fed_by_their_own_seed():
    over = {"learning_rate": [1e-6, 0.3], "seed": [5, 6, 4]}
    found = sweep(over, reduction_factor=3)
    assert [t.run for t in found.trials if t.step == 14] == [4, 5]  # not of seed 5
    (halved,) = [t for t in found.final_trials if t.step == 40]
    whole = sweep(over).final_trials[halved.run]
    assert halved.run == 4
    np.testing.assert_allclose(halved.eval_loss, whole.eval_loss, rtol=1e-6)


def test_killed_and_started_again_repeats_nothing(tmp_path):
    over = {"learning_rate": RATES[1:3], "optim": ["lion_32bit", "sgd"]}
    unbroken = sweep(over, reduction_factor=2)
    for _ in range(2):
        with pytest.raises(KilledError):
            sweep(over, reduction_factor=2, folder=tmp_path, report=killed_after(1))
    lines = (tmp_path / "sweep.jsonl").read_text().splitlines()
    # All have come to step 10; no batch before it is trained on again.
    task = spoilt_before(10, tasks.digits_task())
    ended = sweep(over, task, reduction_factor=2, folder=tmp_path)
    assert len(ended.trials) > len(lines)
    assert [t[:2] for t in ended.trials] == [t[:2] for t in unbroken.trials]
    for ours, theirs in zip(ended.trials, unbroken.trials, strict=True):
        np.testing.assert_allclose(ours.eval_loss, theirs.eval_loss, rtol=1e-6)
    # All is done: nothing is trained any more.
    again, read = counting(tasks.digits_task())
    assert (
        sweep(over, again, reduction_factor=2, folder=tmp_path).trials == ended.trials
    )
    assert max(read) == 0  # the first batch, for its fingerprint


FINISHED = {"learning_rate": [1e-3, 1e38]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep of two runs that is finished: its folder, and what it found."""
    folder = tmp_path_factory.mktemp("finished") / "sweep"
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        return folder, sweep(FINISHED, folder=folder)


def test_writes_a_line_for_each_trial(finished):
    folder, found = finished
    lines = (folder / "sweep.jsonl").read_text().splitlines()
    first, second = map(json.loads, lines)
    assert first["learning_rate"] == 1e-3
    assert first["held_out_loss"] == found.final_trials[0].eval_loss
    assert (second["run"], second["step"], second["loss"]) == (1, 40, None)
    assert (first["has_diverged"], second["has_diverged"]) == (False, True)


def test_a_kill_between_checkpoint_and_lines_loses_no_line(finished, tmp_path):
    folder, found = finished
    copied = shutil.copytree(folder, tmp_path / "copied")
    (copied / "sweep.jsonl").unlink()
    assert sweep(FINISHED, folder=copied).trials == found.trials
    lines = (copied / "sweep.jsonl").read_text()
    assert lines == (folder / "sweep.jsonl").read_text()


def test_dropout_goes_on_on_fewer_devices(tmp_path):
    def loss_fn(params, batch, rng=None):
        if rng is not None:
            is_kept = jax.random.bernoulli(rng, 0.8, batch["x"].shape)
            batch = {**batch, "x": batch["x"] * is_kept.astype("float32")}
        return tasks.loss_fn(params, batch)

    task = tasks.digits_task(loss_fn=loss_fn, takes_key=True)
    over = {"learning_rate": RATES[:3]}
    with pytest.raises(KilledError):
        tuning.sweep(
            task, BASE, over, reduction_factor=3, devices=jax.devices()[:3],
            folder=tmp_path, report=killed_after(1),
        )  # fmt: skip
    found = tuning.sweep(
        task, BASE, over, reduction_factor=3, devices=jax.devices()[:3], folder=tmp_path
    )
    assert found.final_trials[2].step == 40


def test_a_run_that_waits_is_bound_to_no_device():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("runs",))
    run_sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("runs"))
    keys = jax.random.split(jax.random.key(0), 2)
    waiting = unstacked(jax.device_put(keys, run_sharding), 2)
    assert waiting == list(keys)
    assert not any(key.committed for key in waiting)


def test_the_best_is_finite_where_the_last_one_left_diverges():
    trials = (
        Trial(0, 10, 2.0, 1.5, 1.5),
        Trial(1, 10, 2.0, 1.4, 1.4),
        Trial(1, 40, 2.0, np.inf, np.inf),
    )
    recipes = tuning.grid(BASE, {"learning_rate": [1e-3, 1e-2]})
    assert Sweep(recipes, ("learning_rate",), trials).best_recipe == recipes[0]


def test_refuses_the_folder_of_another_sweep(finished):
    folder, _ = finished
    with pytest.raises(ValueError, match="`folder` must .* has other recipes"):
        sweep({"learning_rate": [1e-2]}, folder=folder)
    x, y = tasks.digits()
    other = tasks.digits_task(eval_batches=[{"x": x[1600:], "y": y[1600:]}])
    with pytest.raises(ValueError, match="`folder` must .* has other data"):
        sweep(FINISHED, other, folder=folder)
    elsewhere = tasks.digits_task(init=lambda seed: tasks.perceptron(seed + 1))
    with pytest.raises(ValueError, match="`folder` must .* has other data"):
        sweep(FINISHED, elsewhere, folder=folder)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ([1e38, 2e38], r"all 2 diverged; the smallest.* was 1e\+38"),
        ([1e38], r"the only one diverged; the smallest.* was 1e\+38"),
    ],
)
def test_names_the_smallest_rate_where_all_diverge(rates, message):
    trials = [Trial(i, 40, 2.0, np.inf, np.inf) for i in range(len(rates))]
    recipes = tuning.grid(BASE, {"learning_rate": rates})
    with pytest.raises(ValueError, match=message):
        _ = Sweep(recipes, ("learning_rate",), tuple(trials)).best_recipe


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (
            {"learning_rat": [1]},
            "`over` must name fields.*Did you mean 'learning_rate'",
        ),
        ({}, "`over` must name at least one field"),
        ({"learning_rate": []}, "at least one value"),
        ({"learning_rate": Uniform(1e-4, 1e-2)}, "in a grid, got a range"),
        ({"learning_rate": [-1.0]}, "`over` with .*`learning_rate` must be finite"),
        ({"label_smoothing_factor": [0.1]}, "it changes the loss"),
    ],
)
def test_refuses_what_cannot_be_tried(over, message):
    with pytest.raises(ValueError, match=message):
        sweep(over)


def test_refuses_values_that_are_no_list():
    with pytest.raises(TypeError, match="`over` must have a list of values"):
        sweep({"learning_rate": 1e-3})
    with pytest.raises(TypeError, match="`over` must have a list of values"):
        sweep({"optim": "sgd"})


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ((1e-2, 1e-4), "`high` must be greater than `low`"),
        ((0.0, 1.0), "`low` must be greater than 0 if `scale` is 'log'"),
        ((0.1, float("nan")), "`high` must be finite"),
        ((0.1, 1.0, "cubic"), "`scale` must be one of"),
    ],
)
def test_refuses_bounds_that_are_none(bounds, message):
    with pytest.raises(ValueError, match=message):
        Uniform(*bounds)


def test_refuses_to_halve_runs_of_several_lengths():
    with pytest.raises(
        ValueError, match="`reduction_factor` must be used with runs of equal length"
    ):
        sweep({"max_steps": [10, 20]}, reduction_factor=2)
    with pytest.raises(ValueError, match="`reduction_factor` must be from 2"):
        sweep({"learning_rate": RATES}, reduction_factor=1)
