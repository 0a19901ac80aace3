"""Conversion of torch's optimizer states, and the update that follows."""

import functools

import jax
import numpy as np
import optax
import pytest
import torch
from transformers.optimization import Adafactor

from jaxopt_tf._pytrees import named_leaves
from jaxopt_tf.interop import (
    match_names,
    opt_state_from_torch,
    torch_from_opt_state,
    torch_model_from_module,
)
from jaxopt_tf.optimizers import (
    adafactor_tf,
    adamw_tf,
    clip,
    decay_mask,
    get_learning_rate,
)
from tests.references import torch_models

# Layers are alike: where each compiles a program, one says what two would.
OF_ONE_LAYER = {
    "gpt2": functools.partial(torch_models.gpt2, 1),
    "bert": functools.partial(torch_models.bert, 1),
    "conv": torch_models.convolutional,
}
every_model = pytest.mark.parametrize("model", torch_models.MODELS)
every_optimizer = pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "beta1"])

RATE, DECAY = 1e-2, 0.1


def torch_optimizer(kind, module):
    groups = torch_models.trainer_groups(module, DECAY)
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=RATE)
    options = {"scale_parameter": False, "relative_step": False}
    beta1 = 0.9 if kind == "beta1" else None
    return Adafactor(groups, lr=RATE, beta1=beta1, **options)


def our_optimizer(kind, mask, layouts):
    options = {"weight_decay": DECAY, "decay_mask": mask}
    if kind == "adamw":
        return optax.chain(clip(1e9), adamw_tf(RATE, **options))
    options |= {"scale_parameter": False, "relative_step": False, "layouts": layouts}
    return adafactor_tf(RATE, beta1=0.9 if kind == "beta1" else None, **options)


def layouts_of(names):
    return {found.leaf.replace(".", r"\."): found.layout for found in names.slices}


def trained(kind, module, num_steps=3):
    optimizer = torch_optimizer(kind, module)
    for seed in range(num_steps):
        torch_models.set_gradients(module, seed)
        optimizer.step()
    return optimizer


def mask_of(params, module):
    # The decay of Trainer, which knows the layers' types.
    groups = torch_models.trainer_groups(module)
    not_decayed = {id(p) for p in groups[1]["params"]}
    names = torch_models.flax_leaves(module)
    is_decayed = {
        leaf: id(p) not in not_decayed
        for leaf, (_, p) in zip(names, module.named_parameters(), strict=True)
    }
    return decay_mask(params, rule=lambda name, _: is_decayed[name])


def assert_same_content(ours, theirs):
    assert ours["state"].keys() == theirs["state"].keys()
    for number, entry in theirs["state"].items():
        assert ours["state"][number].keys() == entry.keys()
        for key, value in entry.items():
            if key == "RMS":  # of the parameter before the update; computed anew
                continue
            found = ours["state"][number][key]
            assert type(found) is type(value), key
            if torch.is_tensor(value):
                assert found.dtype == value.dtype
                assert torch.equal(found, value), key
            else:
                assert found == value
    for group, their_group in zip(
        ours["param_groups"], theirs["param_groups"], strict=True
    ):
        assert {k: v for k, v in group.items() if k != "param_names"} == their_group


@every_model
@every_optimizer
def test_optimizer_state_round_trips_bit_for_bit(model, optimizer):
    module = torch_models.MODELS[model]()
    theirs = trained(optimizer, module)
    params = torch_models.flax_tree(torch_models.flax_leaves(module))
    names = match_names(params, torch_model_from_module(module))
    layouts = layouts_of(names)
    ours = our_optimizer(optimizer, mask_of(params, module), layouts)
    # Of the state before, shapes and dtypes alone matter.
    like = jax.eval_shape(ours.init, params)
    state = opt_state_from_torch(
        like, params, theirs.state_dict(), names, layouts=layouts
    )
    assert_moments_are_torchs(state, names, module, theirs)
    state_dict = torch_from_opt_state(
        state, params, names, theirs.state_dict()["param_groups"], layouts=layouts
    )
    assert_same_content(state_dict, theirs.state_dict())


def assert_moments_are_torchs(state, names, module, optimizer):
    """Bit for bit; the layouts of the tests are torch's, and no leaf is a stack."""
    by_name = dict(module.named_parameters())
    flat = {
        field: dict(named_leaves(optax.tree.get(state, field)))
        for field in ("mu", "nu", "nu_row", "nu_col")
        if any(optax.tree.get_all_with_path(state, field))
    }
    for found in names.slices:
        leaf, entry = found.leaf, optimizer.state[by_name[found.torch_name]]
        # As the test's own conversion of parameters has it, which is not ours.
        as_leaf = {
            key: torch_models.as_flax(module, {found.torch_name: entry[key]})[leaf]
            for key in ("exp_avg", "exp_avg_sq")
            if key in entry
        }
        means = ("nu_row", "exp_avg_sq_row"), ("nu_col", "exp_avg_sq_col")
        wanted = {field: entry[key] for field, key in means if key in entry}
        wanted |= {"mu": as_leaf["exp_avg"]} if "exp_avg" in as_leaf else {}
        if "exp_avg_sq" in entry:
            is_adamw = "nu_row" not in flat
            wanted["nu"] = as_leaf["exp_avg_sq"] if is_adamw else entry["exp_avg_sq"]
        for field, value in wanted.items():
            np.testing.assert_array_equal(flat[field][leaf], value, f"{field} {leaf}")


# Moments are compared bit for bit above; here the counts, the rate and the decay, too.
@pytest.mark.parametrize(
    ("model", "optimizer"),
    [("gpt2", "adamw"), ("conv", "adamw"), ("bert", "beta1"), ("conv", "beta1")],
)
def test_the_next_update_is_torchs(model, optimizer):
    module = OF_ONE_LAYER[model]()
    theirs = trained(optimizer, module)
    before = torch_models.flax_leaves(module)
    before = {name: array.copy() for name, array in before.items()}
    params = torch_models.flax_tree(before)
    names = match_names(params, torch_model_from_module(module))
    layouts = layouts_of(names)
    ours = our_optimizer(optimizer, mask_of(params, module), layouts)
    state = opt_state_from_torch(
        ours.init(params), params, theirs.state_dict(), names, layouts=layouts
    )
    np.testing.assert_allclose(get_learning_rate(state), RATE, rtol=1e-7)

    grads = torch_models.flax_tree(torch_models.set_gradients(module, 99))
    theirs.step()
    updates, _ = jax.jit(ours.update)(grads, state, params)
    after = torch_models.flax_tree(torch_models.flax_leaves(module))
    new_params = jax.tree.map(np.add, params, updates)
    assert distance(new_params, after) <= 1e-6 * distance(after, params)


def distance(tree, other):
    leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return np.sqrt(sum(np.sum(np.square(np.subtract(*pair))) for pair in leaves))


@pytest.mark.parametrize("optimizer", ["adamw", "beta1"])
def test_a_float64_run_keeps_its_digits(optimizer):
    module = torch_models.convolutional().double()
    theirs = trained(optimizer, module)
    with jax.enable_x64(True):
        before = {n: x.copy() for n, x in torch_models.flax_leaves(module).items()}
        params = torch_models.flax_tree(before)
        names = match_names(params, torch_model_from_module(module))
        layouts = layouts_of(names)
        ours = our_optimizer(optimizer, mask_of(params, module), layouts)
        saved = theirs.state_dict()
        state = opt_state_from_torch(
            ours.init(params), params, saved, names, layouts=layouts
        )
        assert get_learning_rate(state) == RATE
        written = torch_from_opt_state(
            state, params, names, saved["param_groups"], layouts=layouts
        )
        assert_same_content(written, saved)
        assert all(
            entry["RMS"].dtype == torch.float64
            for entry in written["state"].values()
            if "RMS" in entry
        )
        grads = torch_models.flax_tree(torch_models.set_gradients(module, 99))
        theirs.step()
        updates, _ = jax.jit(ours.update)(grads, state, params)
        after = torch_models.flax_tree(torch_models.flax_leaves(module))
        new_params = jax.tree.map(np.add, params, updates)
        assert distance(new_params, after) <= 1e-12 * distance(after, params)
