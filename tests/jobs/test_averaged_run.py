"""Runs whose parameters are averaged: evaluation, resumption, final model."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from jaxopt_tf import interop
from jaxopt_tf.checkpoints import find_checkpoints
from jaxopt_tf.jobs import Job, RunConfig, build_setup, plan, pretrain
from jaxopt_tf.jobs._pretrain import _make_evaluate
from jaxopt_tf.jobs._run_folder import open_run
from jaxopt_tf.jobs._run_io import read_params, read_run
from jaxopt_tf.models import GPT2Config
from jaxopt_tf.optimizers import averaging_states
from jaxopt_tf.recipes import Recipe
from jaxopt_tf.sharding import make_mesh
from jaxopt_tf.training import evaluation_params

pytestmark = [
    pytest.mark.promotion_of_others,  # flax's layers
    pytest.mark.usefixtures("compiled_quickly", "compiled_once"),
]

RECIPE = Recipe(
    max_steps=6,
    learning_rate=0.3,
    lr_scheduler_type="constant",
    per_device_train_batch_size=8,
    optim="sgd",
)
MEAN = dataclasses.replace(RECIPE, ema_decay=0.8)
FREE = dataclasses.replace(RECIPE, optim="schedule_free_sgd", warmup_steps=2)
TINY = GPT2Config(n_layer=1, n_head=2, n_embd=8, block_size=8)
TEXT = "the quick brown fox jumps over the lazy dog\n" * 40


def config_in(folder, recipe, **settings):
    folder.mkdir(exist_ok=True)
    (folder / "text.txt").write_text(TEXT)
    job = Job(
        text=(folder / "text.txt",),
        output_dir=folder / "run",
        **{"eval_steps": 2, "save_steps": 2, **settings},
    )
    return RunConfig(recipe=recipe, model=TINY, job=job)


def whole_run(folder, recipe):
    config = config_in(folder, recipe)
    with jax.numpy_dtype_promotion("standard"):
        return config, pretrain(config)


@pytest.fixture(scope="module")
def mean(tmp_path_factory, compiled_quickly, compiled_once):
    return whole_run(tmp_path_factory.mktemp("mean"), MEAN)


@pytest.fixture(scope="module")
def free(tmp_path_factory, compiled_quickly, compiled_once):
    return whole_run(tmp_path_factory.mktemp("free"), FREE)


@pytest.fixture(params=["mean", "free"])
def whole(request):
    return request.getfixturevalue(request.param)


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_the_average_is_evaluated_returned_and_written(whole):
    config, result = whole
    state = read_run(result.folder).run_state.state
    average = evaluation_params(state.params, state.opt_state)
    difference = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()), average, state.params
    )
    assert max(jax.tree.leaves(difference)) > 1e-3
    assert_equal(result.params, average)
    assert_equal(read_params(result.folder).params, average)
    with open_run(dataclasses.replace(config)) as run:
        setup = build_setup(config, make_mesh("data=1", jax.devices()[:1]))
        evaluate = _make_evaluate(setup, run, config.job, TINY.block_size)
        assert evaluate(average)["loss"] == result.last_loss
        assert evaluate(state.params)["loss"] != result.last_loss
    model = setup.model
    written = interop.read_params(result.folder, model.shapes, model.names)
    assert_equal(written, average)


def test_a_resumed_run_has_equal_averages_bit_for_bit(whole, tmp_path):
    config, result = whole
    again = config_in(tmp_path, config.recipe)
    shutil.copytree(result.folder, again.job.output_dir)
    for name in ("model.safetensors", "config.json"):
        (again.job.output_dir / name).unlink()
    for path in find_checkpoints(again.job.output_dir):
        if path.name != "checkpoint-2":
            shutil.rmtree(path)
    resumed = pretrain(again)
    assert_equal(resumed.params, result.params)
    states = [read_run(r.folder).run_state.state for r in (result, resumed)]
    assert_equal(states[0].opt_state, states[1].opt_state)
    assert resumed.last_loss == result.last_loss


def test_the_best_model_is_an_average(free, tmp_path):
    config, result = free
    best = config_in(tmp_path, config.recipe, load_best_model_at_end=True)
    found = pretrain(best)
    assert_equal(found.params, read_params(best.job.output_dir).params)
    assert found.last_loss <= result.last_loss


def test_a_mesh_has_the_averages_of_one_device(free, tmp_path):
    # With ZeRO-1, z is sharded and the parameters are replicated.
    config, result = free
    recipe = dataclasses.replace(config.recipe, per_device_train_batch_size=1)
    sharded = config_in(tmp_path, recipe, mesh="data=8", zero_1=True)
    found = pretrain(sharded)
    for ours, theirs in zip(
        jax.tree.leaves(found.params), jax.tree.leaves(result.params), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_plan_counts_the_averages(tmp_path):
    sizes = {}
    for name, recipe in {"plain": RECIPE, "ema": MEAN, "free": FREE}.items():
        config = config_in(tmp_path, recipe)
        found = plan(config, devices="v5e:1x1", shapes_only=True)
        sizes |= {f"{name} {part.name}": part.on_device for part in found.parts}
    params = sizes["plain parameters"]
    for name in ("ema", "free"):
        added = sizes[f"{name} optimizer state"] - sizes["plain optimizer state"]
        assert 0 <= added - params < 64


def test_the_state_of_a_setup_has_the_shardings_of_its_parameters():
    config = RunConfig(recipe=MEAN, model=TINY, job=Job(text=("unused.npy",)))
    setup = build_setup(config, make_mesh("fsdp=2", jax.devices()[:2]))
    (state,) = averaging_states(setup.run_state.state.opt_state)
    for average, p in zip(
        jax.tree.leaves(state.ema),
        jax.tree.leaves(setup.run_state.state.params),
        strict=True,
    ):
        assert average.sharding == p.sharding
