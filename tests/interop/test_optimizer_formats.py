"""Formats of optimizer states: conversion, or an error with the name."""

import jax
import numpy as np
import pytest
import torch

from jaxopt_tf.interop import (
    match_names,
    opt_state_from_torch,
    torch_model_from_module,
)
from jaxopt_tf.optimizers import adafactor_tf, adamw_tf
from tests.interop import optimizer_files
from tests.references import torch_models


class Run:
    """One linear layer, and what an optimizer of torch keeps for it."""

    def __init__(self):
        self.module = torch.nn.Sequential(torch.nn.Linear(3, 2, bias=False))
        leaves = torch_models.flax_leaves(self.module)
        self.params = torch_models.flax_tree(leaves)
        self.names = match_names(self.params, torch_model_from_module(self.module))

    def state_dict(self, kind=torch.optim.AdamW, num_steps=2, **options):
        optimizer = kind(self.module.parameters(), lr=1e-3, **options)
        for seed in range(num_steps):
            torch_models.set_gradients(self.module, seed)
            if kind is torch.optim.SparseAdam:
                for p in self.module.parameters():
                    p.grad = p.grad.to_sparse()
            optimizer.step()
        return optimizer.state_dict()

    def read(self, state_dict, optimizer=None):
        opt_state = (optimizer or adamw_tf(1e-3)).init(self.params)
        return opt_state_from_torch(opt_state, self.params, state_dict, self.names)


@pytest.fixture(scope="module")
def run():
    return Run()


@pytest.mark.parametrize("name", optimizer_files.FILES)
def test_files_of_other_optimizers_are_refused_by_name(run, name):
    whose = optimizer_files.FILES[name][0]
    with pytest.raises(ValueError, match=f"must be that of torch.*{whose}"):
        run.read(optimizer_files.state_dict(name))


OTHERS = "ASGD Adadelta Adafactor Adamax Muon NAdam RAdam Rprop"


@pytest.mark.parametrize("name", [*OTHERS.split(), "SparseAdam"])
@pytest.mark.parametrize("num_steps", [0, 1], ids=["fresh", "updated"])
def test_torchs_other_optimizers_are_refused_by_name(run, name, num_steps):
    # RAdam and SparseAdam have AdamW's moments, and those that are fresh have none.
    state_dict = run.state_dict(getattr(torch.optim, name), num_steps)
    is_named = num_steps or name not in ("Adamax",)
    says = f"the state of torch's {name}" if is_named else "got an unknown format"
    with pytest.raises(ValueError, match=says):
        run.read(state_dict)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_torchs_adam_is_read(run, name):
    state_dict = run.state_dict(getattr(torch.optim, name))
    assert int(run.read(state_dict).count) == 2
    assert int(run.read(run.state_dict(getattr(torch.optim, name), 0)).count) == 0


@pytest.mark.parametrize(
    ("removed", "added"),
    [
        ("maximize foreach capturable differentiable fused decoupled_weight_decay", {}),
        (
            "amsgrad maximize foreach capturable differentiable fused",
            {"correct_bias": 1},
        ),
        (
            "amsgrad maximize foreach capturable differentiable fused",
            {"bias_correction": 1},
        ),
    ],
    ids=["torch 1.4", "transformers 4", "apex"],
)
def test_adamw_of_older_versions_is_read(run, removed, added):
    state_dict = run.state_dict()
    (group,) = state_dict["param_groups"]
    group.pop("decoupled_weight_decay")
    for key in removed.split():
        group.pop(key, None)
    group |= {key: bool(value) for key, value in added.items()}
    assert int(run.read(state_dict).count) == 2
    for key in added:
        group[key] = False
        with pytest.raises(ValueError, match=f"`{key}` must be True in every group"):
            run.read(state_dict)


def test_amsgrad_is_refused_before_its_first_update_too(run):
    with pytest.raises(ValueError, match="`amsgrad` must be False in every group"):
        run.read(run.state_dict(num_steps=0, amsgrad=True))


def test_amsgrad_of_apex_is_refused(run):
    state_dict = run.state_dict()
    group = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
    group |= {"bias_correction": True, "amsgrad": True, "params": [0]}
    with pytest.raises(ValueError, match="`amsgrad` must be False in every group"):
        run.read(state_dict | {"param_groups": [group]})


def test_a_fresh_state_is_of_its_own_optimizer(run):
    with pytest.raises(ValueError, match="for the file's optimizer, AdamW, got"):
        run.read(run.state_dict(num_steps=0), adafactor_tf())


def test_a_tensor_of_a_class_of_its_own_is_refused(run):
    class LowBit(torch.Tensor):
        pass

    state_dict = run.state_dict()
    moment = state_dict["state"][0]["exp_avg"]
    state_dict["state"][0]["exp_avg"] = moment.as_subclass(LowBit)
    with pytest.raises(ValueError, match=r"`exp_avg` of '0.weight' .* got LowBit"):
        run.read(state_dict)


def test_a_state_of_torchao_in_fp8_is_refused_by_name(run):
    class OptimStateFp8(torch.Tensor):
        pass

    state_dict = run.state_dict()
    moment = state_dict["state"][0]["exp_avg"]
    state_dict["state"][0]["exp_avg"] = moment.as_subclass(OptimStateFp8)
    with pytest.raises(ValueError, match=r"got OptimStateFp8 of torchao.*`without`"):
        run.read(state_dict)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("lr", float("nan"), "finite and at least 0, got nan"),
        ("lr", -1e-3, "finite and at least 0, got -0.001"),
        ("initial_lr", float("inf"), "finite and at least 0, got inf"),
        ("betas", (0.9, float("nan")), "from 0 to 1"),
        ("betas", (1.5, 0.9), "from 0 to 1"),
        ("eps", torch.tensor(float("nan")), "finite and at least 0"),
        ("weight_decay", float("nan"), "finite and at least 0"),
    ],
)
def test_settings_of_groups_must_be_numbers_that_torch_takes(run, key, value, says):
    state_dict = run.state_dict()
    state_dict["param_groups"][0][key] = value
    with pytest.raises(ValueError, match=f"`{key}` of group 0 must be {says}"):
        run.read(state_dict)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("exp_avg", float("nan")),
        ("exp_avg", -float("inf")),
        ("exp_avg_sq", float("inf")),
        ("exp_avg_sq", -1e-4),
    ],
)
def test_moments_must_be_finite_and_second_ones_not_negative(run, key, value, dtype):
    entry = (state_dict := run.state_dict())["state"][0]
    entry[key] = entry[key].to(dtype, copy=True)
    entry["exp_avg"][0, 0] = -1.0  # a first moment may be
    entry[key][1, 2] = value
    with pytest.raises(
        ValueError, match=f"`{key}` of '0.weight' must be finite.* at 5"
    ):
        run.read(state_dict)


@pytest.mark.parametrize("key", ["exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_sq"])
def test_adafactors_means_must_be_finite_and_not_negative(run, key):
    from transformers.optimization import Adafactor

    module = torch.nn.Sequential(torch.nn.Linear(3, 2))
    params = torch_models.flax_tree(torch_models.flax_leaves(module))
    names = match_names(params, torch_model_from_module(module))
    optimizer = Adafactor(module.parameters())
    torch_models.set_gradients(module, 0)
    optimizer.step()
    number = int(key == "exp_avg_sq")
    (saved := optimizer.state_dict())["state"][number][key][0] = -1.0
    with pytest.raises(ValueError, match=f"`{key}` of '0.*' must be finite and at lea"):
        opt_state_from_torch(adafactor_tf().init(params), params, saved, names)


def test_a_parameter_of_two_groups_is_refused(run):
    state_dict = run.state_dict()
    state_dict["param_groups"] *= 2
    with pytest.raises(ValueError, match=r"the numbers \[0\] twice"):
        run.read(state_dict)


def test_names_of_groups_must_be_as_many_as_their_parameters(run):
    state_dict = run.state_dict()
    state_dict["param_groups"][0]["param_names"] = ["0.weight", "0.weight"]
    with pytest.raises(ValueError, match=r"got \[2\] `param_names` for \[1\] `params`"):
        run.read(state_dict)


def test_a_name_may_be_that_of_a_tied_tensor():
    module = torch.nn.ModuleDict(
        {"a": torch.nn.Linear(2, 2, False), "b": torch.nn.Linear(2, 2, False)}
    )
    module["b"].weight = module["a"].weight
    params = {"a": {"kernel": np.zeros((2, 2), np.float32)}}
    names = match_names(params, torch_model_from_module(module))
    optimizer = torch.optim.AdamW([("b.weight", module["b"].weight)], lr=1e-3)
    torch_models.set_gradients(module, 0)
    optimizer.step()
    state = adamw_tf(1e-3).init(params)
    state = opt_state_from_torch(state, params, optimizer.state_dict(), names)
    moment = optimizer.state[module["a"].weight]["exp_avg"]
    np.testing.assert_array_equal(state.mu["a"]["kernel"], moment.T)


def test_a_state_dict_in_another_dict_is_found(run):
    with pytest.raises(ValueError, match=r"Pass `state_dict\['optimizer'\]`"):
        run.read({"model": {}, "optimizer": run.state_dict()})


@pytest.mark.parametrize(
    "state", [None, 3, {0: None}, {0: [1, 2]}], ids=["None", "3", "entry None", "list"]
)
def test_a_state_that_is_no_dict_is_refused(run, state):
    state_dict = run.state_dict() | {"state": state}
    with pytest.raises(ValueError, match="must have a dict for"):
        run.read(state_dict)


def test_an_entry_may_be_empty_and_groups_may_not(run):
    state_dict = run.state_dict()
    assert int(run.read(state_dict | {"state": {0: {}}}).count) == 0
    with pytest.raises(ValueError, match=r"groups, each with `params`, got \[\]"):
        run.read(state_dict | {"param_groups": []})


@pytest.mark.parametrize("params", [3, None, [[0]], [0.5]], ids=str)
def test_groups_must_list_numbers(run, params):
    state_dict = run.state_dict()
    state_dict["param_groups"][0]["params"] = params
    with pytest.raises(ValueError, match="each with `params`|must identify parameters"):
        run.read(state_dict)


def test_a_capturable_state_is_read(run):
    state_dict = run.state_dict()
    state_dict["param_groups"][0]["lr"] = torch.tensor(2e-3)
    state = run.read(state_dict)
    np.testing.assert_allclose(jax.device_get(state.learning_rate), 2e-3, rtol=1e-6)
