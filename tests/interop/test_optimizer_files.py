"""Files of bitsandbytes', torchao's and torch-optimi's optimizers, read and written.

The files are those of tests/files/record_optimizer_files.py.
"""

import copy
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxopt_tf.interop import (
    load_torch,
    match_names,
    opt_state_from_torch,
    torch_from_opt_state,
    torch_model_from_module,
)
from jaxopt_tf.interop._param_groups import (
    check_param_groups,
    param_groups_from_recipe,
)
from jaxopt_tf.optimizers import (
    QuantizedMoment,
    TorchLayout,
    adamw_4bit_tf,
    adamw_8bit_tf,
    adamw_tf,
    ademamix_8bit_tf,
    ademamix_tf,
    lion_8bit_tf,
    lion_tf,
    rmsprop_8bit_tf,
    rmsprop_tf,
    stable_adamw_tf,
)
from jaxopt_tf.recipes import Recipe
from tests.files.record_optimizer_files import module

FILES = pathlib.Path(__file__).parents[1] / "files" / "optimizer_files"
NESTED = "__bnb_optimizer_quant_state__"
LAYOUTS = {"0.kernel": TorchLayout.dense()}
SCHEDULES = {"t_alpha": 5, "t_beta3": 6}
OPTIMIZERS = {
    "ademamix": functools.partial(ademamix_tf, **SCHEDULES),
    "ademamix_8bit": functools.partial(ademamix_8bit_tf, layouts=LAYOUTS, **SCHEDULES),
    "lion_8bit": functools.partial(lion_8bit_tf, layouts=LAYOUTS),
    "lion_32bit": lion_tf,
    "rmsprop_bnb": rmsprop_tf,
    "rmsprop_bnb_8bit": functools.partial(rmsprop_8bit_tf, layouts=LAYOUTS),
    "stable_adamw": stable_adamw_tf,
    "adamw_torch_8bit": functools.partial(
        adamw_8bit_tf, library="torchao", layouts=LAYOUTS
    ),
    "adamw_torch_4bit": functools.partial(adamw_4bit_tf, layouts=LAYOUTS),
    # Moments have the dtype of the parameter, as in the file.
    "stable_adamw_bfloat16": functools.partial(stable_adamw_tf, moment_dtype=None),
}


class Run:
    """The layer of the files, and the state of one of its optimizers."""

    def __init__(self, name, build=None):
        dtype = jnp.bfloat16 if name.endswith("bfloat16") else jnp.float32
        self.saved = load_torch(FILES / f"{name}.pt")
        self.params = {
            "0": {"kernel": jnp.zeros((128, 32), dtype), "bias": jnp.zeros(32, dtype)}
        }
        self.names = match_names(self.params, torch_model_from_module(module()))
        self.empty = jax.eval_shape((build or OPTIMIZERS[name])(1e-3).init, self.params)

    def read(self, state_dict=None):
        state_dict = self.saved if state_dict is None else state_dict
        groups = [["0.weight"], ["0.bias"]]
        return opt_state_from_torch(
            self.empty, self.params, state_dict, self.names,
            groups=groups, layouts=LAYOUTS,
        )  # fmt: skip

    def written(self, state, groups):
        named = [["0.weight"], ["0.bias"]]
        return torch_from_opt_state(
            state, self.params, self.names, groups, groups=named, layouts=LAYOUTS
        )


def recipe(name):
    args = SCHEDULES if "ademamix" in name else {}
    return Recipe(
        max_steps=10, optim=name.removesuffix("_bfloat16"), learning_rate=1e-3,
        lr_scheduler_type="constant", weight_decay=0.1, optim_args=args,
    )  # fmt: skip


def assert_equal(ours, theirs, path=()):
    if hasattr(theirs, "codes"):  # of torchao
        assert type(ours) is type(theirs), path
        assert_equal(vars(ours), vars(theirs), path)
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), path
    elif isinstance(theirs, torch.Tensor):
        assert ours.dtype == theirs.dtype, path
        assert torch.equal(ours, theirs), path
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), path
        for key, value in theirs.items():
            assert_equal(ours[key], value, (*path, key))
    elif isinstance(theirs, list) and theirs and isinstance(theirs[0], dict):
        for i, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(*pair, (*path, i))
    else:
        assert ours == theirs, path
        assert type(ours) is type(theirs), path


def without(groups, *keys):
    return [{k: v for k, v in group.items() if k not in keys} for group in groups]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_file_is_read_and_written_bit_for_bit(name):
    run = Run(name)
    state = run.read()
    assert int(state.count) == 3
    assert float(state.learning_rate) == np.float32(1e-3)
    written = run.written(state, run.saved["param_groups"])
    assert_equal(written["state"], run.saved["state"])
    groups = without(written["param_groups"], "param_names")
    assert_equal(groups, run.saved["param_groups"])
    again = run.read(written)
    jax.tree.map(np.testing.assert_array_equal, again, state)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_groups_of_a_recipe_are_those_of_the_file(name):
    run = Run(name)
    check_param_groups(run.saved["param_groups"], recipe(name))
    groups = param_groups_from_recipe(recipe(name), 1e-3)
    written = run.written(run.read(), without(groups, "initial_lr"))
    groups = without(written["param_groups"], "param_names")
    expected = run.saved["param_groups"]
    if name == "stable_adamw_bfloat16":
        # torch-optimi compensates only if this is True after the file is loaded.
        assert [group["kahan_sum"] for group in groups] == [True, True]
    assert_equal(groups, expected)


@pytest.mark.parametrize("name", ["ademamix_8bit", "lion_8bit", "rmsprop_bnb_8bit"])
def test_files_before_0_49_2_are_read(name):
    run = Run(name)
    entries = {
        number: {"step": entry["step"], **entry[NESTED]}
        for number, entry in run.saved["state"].items()
    }
    state = run.read(run.saved | {"state": entries})
    jax.tree.map(np.testing.assert_array_equal, state, run.read())
    moments = jax.tree.leaves(
        state, is_leaf=lambda node: isinstance(node, QuantizedMoment)
    )
    assert any(isinstance(moment, QuantizedMoment) for moment in moments)


def test_the_slow_mean_is_the_second_one():
    run = Run("ademamix")
    arrays, state = run.saved["state"][0][NESTED], run.read()
    for field, i in (("mu", 0), ("mu_slow", 1)):
        found = getattr(state, field)["0"]["kernel"]
        np.testing.assert_array_equal(found, arrays["state1"][i].T)


@pytest.mark.parametrize(
    ("name", "build", "says"),
    [
        ("ademamix", adamw_tf, "for the file's optimizer, AdEMAMix, got .*AdamW"),
        ("lion_8bit", rmsprop_8bit_tf, "the file's optimizer, Lion, got"),
        ("rmsprop_bnb", lion_tf, "the file's optimizer, RMSprop, got"),
        ("stable_adamw", adamw_tf, "the file's optimizer, StableAdamW, got"),
        ("lion_8bit", lion_tf, "must have 8-bit moments of bitsandbytes for '0.k"),
        (
            "rmsprop_bnb",
            functools.partial(rmsprop_tf, momentum=0.9),
            "`opt_state` must have no `momentum`",
        ),
    ],
)
def test_a_file_of_another_optimizer_is_refused(name, build, says):
    with pytest.raises(ValueError, match=says):
        Run(name, build).read()


def test_other_settings_than_the_recipe_s_are_refused():
    groups = copy.deepcopy(Run("ademamix").saved["param_groups"])
    groups[0]["t_alpha"] = 7
    with pytest.raises(
        ValueError, match="`t_alpha` of group 0 is 7 and the recipe's 5"
    ):
        check_param_groups(groups, recipe("ademamix"))
    groups = copy.deepcopy(Run("stable_adamw").saved["param_groups"])
    groups[1]["decouple_lr"] = True
    with pytest.raises(ValueError, match="`decouple_lr` of group 1 is True"):
        check_param_groups(groups, recipe("stable_adamw"))


def test_a_compensation_is_not_dropped():
    run = Run("stable_adamw")
    saved = load_torch(FILES / "stable_adamw_bfloat16.pt")
    with pytest.raises(
        ValueError, match="must have a compensation for '0.(bias|kernel)"
    ):
        run.read(saved)


def test_groups_of_bitsandbytes_are_refused_for_moments_of_torchao():
    # Their codes could be written as those of bitsandbytes, which rounds otherwise.
    run = Run("adamw_torch_8bit")
    groups = Run("ademamix").saved["param_groups"]
    with pytest.raises(ValueError, match="must be those of torchao for its moments"):
        run.written(run.read(), groups)


def test_rates_of_torchao_are_tensors():
    run = Run("adamw_torch_4bit")
    groups = [{**g, "lr": 2e-3, "initial_lr": 1} for g in run.saved["param_groups"]]
    for group in without(groups, "amsgrad"):
        (written, _) = run.written(run.read(), [group, group])["param_groups"]
        assert_equal(written["lr"], torch.tensor(2e-3))
        assert_equal(written["initial_lr"], torch.tensor(1.0))
        assert written["amsgrad"] is False


def test_parameters_of_a_group_have_one_count_in_stable_adamw():
    run = Run("stable_adamw")
    state = run.read()
    counts = {"0": {"kernel": jnp.int32(3), "bias": jnp.int32(2)}}
    groups = [run.saved["param_groups"][0]]
    with pytest.raises(ValueError, match=r"one number of updates .* got \[2, 3\]"):
        torch_from_opt_state(
            state._replace(count=counts), run.params, run.names, groups,
            groups=[["0.weight", "0.bias"]],
        )  # fmt: skip
