"""Runs on meshes of the tests' eight devices."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest

from jaxopt_tf.jobs import Job, RunConfig, build_setup, pretrain
from jaxopt_tf.models import GPT2Config, gpt2_rules
from jaxopt_tf.recipes import Recipe
from jaxopt_tf.sharding import abstract_mesh, make_mesh

pytestmark = [
    pytest.mark.promotion_of_others,  # flax's layers
    pytest.mark.usefixtures("compiled_quickly", "compiled_once"),
]

TINY = GPT2Config(n_layer=1, n_head=2, n_embd=32, block_size=16)
SCANNED = dataclasses.replace(TINY, scan_layers=True)
RECIPE = Recipe(
    max_steps=4,
    learning_rate=1e-2,
    per_device_train_batch_size=8,
    gradient_accumulation_steps=2,
)


def trained(folder, mesh=None, *, recipe=RECIPE, zero_1=False):
    folder.mkdir(exist_ok=True)
    (folder / "text.txt").write_text("so say the bells of Saint Clement's, " * 99)
    job = Job(
        text=(folder / "text.txt",),
        output_dir=folder,
        eval_steps=2,
        save_steps=2,
        mesh=mesh,
        zero_1=zero_1,
    )
    pretrain(RunConfig(recipe=recipe, model=TINY, job=job))
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return np.array([line["loss"] for line in lines if "loss" in line])


def setup_on(axes, model=TINY, *, zero_1=False, **changes):
    recipe = dataclasses.replace(RECIPE, per_device_train_batch_size=1, **changes)
    job = Job(mesh=axes, zero_1=zero_1)
    config = RunConfig(recipe=recipe, model=model, job=job)
    return build_setup(config, make_mesh(axes))


@pytest.mark.parametrize("model", [TINY, SCANNED], ids=["layers", "scanned"])
def test_divides_matrices_moments_and_sequences(model):
    setup = setup_on("data=2,fsdp=2,tensor=2", model)
    h = setup.run_state.state.params["transformer"]["h"]
    kernel = (h if model.scan_layers else h[0])["attn"]["c_attn"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape)[-2:] == (16, 48)
    for leaf in jax.tree.leaves(setup.run_state.state.opt_state):
        if leaf.ndim >= 2 and leaf.size > 512:
            part = leaf.sharding.shard_shape(leaf.shape)
            assert np.prod(part) <= leaf.size // 2
    assert setup.batch.shape == (2, 4, 17)
    assert setup.batch.sharding.shard_shape(setup.batch.shape) == (2, 1, 17)


def test_muon_gathers_no_stack_on_a_mesh():
    # With the shardings of the setup; the compiler would gather stacks of two layers.
    model = dataclasses.replace(SCANNED, n_layer=2)
    setup = setup_on("fsdp=8", model, optim="muon")
    state = setup.run_state.state
    update = jax.jit(setup.optimizer.update)
    program = update.lower(state.params, state.opt_state, state.params).compile()
    muon = state.opt_state[1].momentum
    kernel = muon["transformer"]["h"]["mlp"]["c_fc"]["kernel"]
    assert np.prod(kernel.sharding.shard_shape(kernel.shape)) == kernel.size // 8
    assert not re.findall(r"\[2,\d+,\d+\]\S* all-gather", program.as_text())


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor", "muon"])
def test_nothing_is_allocated_on_a_mesh_without_devices(optim):
    recipe = dataclasses.replace(RECIPE, per_device_train_batch_size=1, optim=optim)
    config = RunConfig(recipe=recipe, model=TINY, job=Job(zero_1=True))
    before = jax.live_arrays()
    abstract = build_setup(config, abstract_mesh("data=2,fsdp=4", 8))
    assert {*map(id, jax.live_arrays())} <= {*map(id, before)}
    setup = build_setup(config, make_mesh("data=2,fsdp=4"))
    for ours, owned in zip(
        jax.tree.leaves((abstract.run_state.state, abstract.batch)),
        jax.tree.leaves((setup.run_state.state, setup.batch)),
        strict=True,
    ):
        assert (ours.shape, ours.dtype) == (owned.shape, owned.dtype)
        assert ours.sharding.spec == owned.sharding.spec


def test_rules_cover_every_parameter_on_every_mesh():
    for axes in ("data=8", "fsdp=8", "tensor=8", "data=4,tensor=2"):
        for model in (TINY, SCANNED):
            setup_on(axes, model)  # raises where one is not covered
            assert set(gpt2_rules(model, make_mesh(axes)))


def compiled(axes, **changes):
    setup = setup_on(axes, **changes)
    return setup.train_step.lower(setup.run_state.state, setup.batch).compile(), setup


CHECKPOINTED = dataclasses.replace(SCANNED, gradient_checkpointing=True)


@pytest.mark.parametrize(
    ("settings", "precision"),
    [
        ({}, "HIGHEST"),
        ({"tf32": True}, "HIGH"),
        ({"bf16": True, "tf32": True}, "DEFAULT"),
    ],
    ids=["float32", "tf32", "bf16"],
)
@pytest.mark.parametrize("model", [TINY, CHECKPOINTED], ids=["layers", "scanned"])
def test_matmul_precision_applies_to_forward_and_backward(model, settings, precision):
    recipe = dataclasses.replace(RECIPE, gradient_accumulation_steps=1)
    config = RunConfig(recipe=recipe, model=model, job=Job(**settings))
    setup = build_setup(config, make_mesh("data=1", jax.devices()[:1]))
    state, batch = setup.run_state.state, setup.batch
    # The model has 7 products; the gradient of each 2 more.
    for lowered, minimum in (
        (setup.train_step.lower(state, batch), 21),
        (setup.eval_step.lower(state.params, batch), 7),
    ):
        lines = lowered.as_text().splitlines()
        products = [line for line in lines if "dot_general" in line]
        assert len(products) >= minimum
        asked = {re.search(r"precision = \[(\w+), \1\]", line) for line in products}
        assert {match[1] if match else "DEFAULT" for match in asked} == {precision}


def test_adds_gradients_up_in_parts():
    program, setup = compiled("fsdp=8", gradient_accumulation_steps=4)
    # What the loop over micro-batches carries, before the tokens that it reads: sums of
    # the [32, 128] kernel in eighths.
    (carried,) = re.findall(r"= \((.*?)u8\[4,1,17\].*\) while\(", program.as_text())
    assert "f32[4,128]" in carried
    assert "f32[32,128]" not in carried
    leaves = jax.tree.leaves(setup.run_state.state)
    sharded = jax.tree.leaves(program.output_shardings[0])
    for leaf, sharding in zip(leaves, sharded, strict=True):
        assert sharding.is_equivalent_to(leaf.sharding, leaf.ndim)


def test_sends_all_gradients_at_once_with_a_divided_state():
    program, _ = compiled("data=8", zero_1=True, gradient_accumulation_steps=1)
    # Of the gradients, of the loss and its number of tokens, of the norms.
    assert len(re.findall(r" all-reduce(-start)?\(", program.as_text())) <= 4


def test_resumes_on_another_mesh_with_the_same_batch(tmp_path):
    # Compiles in half the time, and has a state.
    momentum = {"optim": "sgd", "optim_args": "momentum=0.9", "learning_rate": 0.1}
    recipe = dataclasses.replace(RECIPE, gradient_accumulation_steps=1, **momentum)
    alone = trained(tmp_path / "alone", recipe=recipe)
    folder = tmp_path / "moved"
    one_each = dataclasses.replace(recipe, per_device_train_batch_size=1)
    trained(folder, "data=2,fsdp=4", recipe=one_each, zero_1=True)
    shutil.rmtree(folder / "checkpoint-4")
    # Eight sequences: the same flag on one device would be a batch of one.
    there = trained(folder, recipe=one_each)
    np.testing.assert_allclose(there, alone, rtol=5e-5)


def test_refuses_a_mesh_that_does_not_divide_the_batch():
    config = RunConfig(recipe=RECIPE, model=TINY, job=Job())
    with pytest.raises(ValueError, match=r"`mesh` must divide the 4 sequences") as e:
        build_setup(config, make_mesh("data=2,fsdp=4"), num_sequences=4)
    assert "data=2, fsdp=4, 8 parts" in str(e.value)
    assert "product of data and fsdp may be 1, 2, 4" in str(e.value)
    with pytest.raises(ValueError, match=r"The size of fsdp may be 1, 2, 4; assign"):
        build_setup(config, make_mesh("fsdp=8"), num_sequences=4)


def test_refuses_zero_1_without_data():
    with pytest.raises(ValueError, match="`zero_1` must be left out unless `mesh`"):
        RunConfig(recipe=RECIPE, model=TINY, job=Job(mesh="fsdp=8", zero_1=True))


@pytest.mark.parametrize(
    ("mesh", "sentence"),
    [
        ("data=8,pipe=1", "`mesh` must be one of"),
        ("data:8", "`axes` must be names and sizes"),
        (8, "`mesh` must be a string"),
    ],
)
def test_refuses_what_is_no_mesh(mesh, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        Job(mesh=mesh)
