"""Incomplete and invalid state dicts of torch's optimizers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jaxopt_tf.interop import (
    match_names,
    opt_state_from_torch,
    torch_from_opt_state,
    torch_model_from_module,
    torch_model_from_shapes,
)
from jaxopt_tf.optimizers import adafactor_tf, adamw_tf
from tests.references import torch_models


@pytest.fixture
def run():
    """A module, its tree and names, and the optimizer after two updates."""
    return run_of(torch_models.convolutional())


def run_of(module):
    params = torch_models.flax_tree(torch_models.flax_leaves(module))
    names = match_names(params, torch_model_from_module(module))
    optimizer = torch.optim.AdamW(torch_models.trainer_groups(module), lr=1e-3)
    for seed in range(2):
        torch_models.set_gradients(module, seed)
        optimizer.step()
    return module, params, names, optimizer


def imported(run, state_dict, **options):
    _, params, names, _ = run
    opt_state = adamw_tf(1e-3).init(params)
    return opt_state_from_torch(opt_state, params, state_dict, names, **options)


def edited(run, edit):
    state_dict = run[3].state_dict()
    state = {i: dict(entry) for i, entry in state_dict["state"].items()}
    groups = [dict(group) for group in state_dict["param_groups"]]
    edit(state, groups)
    return {"state": state, "param_groups": groups}


def test_a_missing_entry_is_zeros_and_the_count_0(run):
    state_dict = edited(run, lambda state, _: state.pop(0))
    state = imported(run, state_dict)
    assert int(state.count["0"]["kernel"]) == 0
    assert int(state.count["5"]["kernel"]) == 2
    assert not np.any(state.mu["0"]["kernel"])
    _, params, names, _ = run
    back = torch_from_opt_state(state, params, names, state_dict["param_groups"])
    assert back["state"].keys() == state_dict["state"].keys()


def test_the_update_after_counts_that_differ_is_torchs():
    # Of two shapes only: each operation is compiled for each.
    layers = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3)))
    module, _, names, optimizer = run_of(layers)
    # One without a gradient: torch does not count the update for it.
    torch_models.set_gradients(module, 5)
    module[1].weight.grad = None
    optimizer.step()
    params = torch_models.flax_tree(torch_models.flax_leaves(module))
    ours = adamw_tf(1e-3)
    state = opt_state_from_torch(
        ours.init(params), params, optimizer.state_dict(), names
    )
    assert int(state.count["1"]["kernel"]) == 2
    assert int(state.count["1"]["bias"]) == 3
    grads = torch_models.flax_tree(torch_models.set_gradients(module, 6))
    optimizer.step()
    updates, _ = jax.jit(ours.update)(grads, state, params)
    after = torch_models.flax_tree(torch_models.flax_leaves(module))
    for u, p, new in zip(*map(jax.tree.leaves, (updates, params, after)), strict=True):
        error = np.linalg.norm(np.subtract(np.add(p, u), new))
        assert error <= 1e-6 * np.linalg.norm(np.subtract(new, p)) + 1e-8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_moments_are_widened_exactly(run, dtype):
    def edit(state, _):
        for entry in state.values():
            for key in ("exp_avg", "exp_avg_sq"):
                entry[key] = entry[key].to(dtype)

    state_dict = edited(run, edit)
    state = imported(run, state_dict)
    wide = state_dict["state"][2]["exp_avg"].float().numpy().transpose(2, 1, 0)
    assert state.mu["3"]["kernel"].dtype == jnp.float32
    np.testing.assert_array_equal(state.mu["3"]["kernel"], wide)


def test_moments_that_do_not_fit_are_not_rounded(run):
    _, params, names, optimizer = run
    opt_state = adamw_tf(1e-3, moment_dtype="bfloat16").init(params)
    with pytest.raises(ValueError, match="fit into the tree's bfloat16, got float32"):
        opt_state_from_torch(opt_state, params, optimizer.state_dict(), names)


@pytest.mark.parametrize("step", [2, torch.tensor(2), torch.tensor(2.0)])
def test_a_step_may_be_any_kind_of_number(run, step):
    def edit(state, _):
        for entry in state.values():
            entry["step"] = step

    assert int(imported(run, edited(run, edit)).count) == 2


@pytest.mark.parametrize("step", [-3, torch.tensor(float("nan")), 1.5])
def test_a_step_that_counts_nothing_is_refused(run, step):
    state_dict = edited(run, lambda state, _: state[0].update(step=step))
    with pytest.raises((TypeError, ValueError), match="`step` of `0.weight` must be"):
        imported(run, state_dict)


def test_moments_without_a_step_are_refused(run):
    def edit(state, _):
        del state[0]["step"], state[4]["step"]

    with pytest.raises(
        ValueError, match=r"got 2 entries without one, such as '0.weight'"
    ):
        imported(run, edited(run, edit))


def test_a_step_may_stand_in_the_group(run):
    # As apex's FusedAdam has it.
    def edit(state, groups):
        for entry in state.values():
            del entry["step"]
        for group in groups:
            group["step"] = 2
        del state[0]

    count = imported(run, edited(run, edit)).count
    assert int(count["0"]["kernel"]) == 0
    assert int(count["5"]["kernel"]) == 2


def test_entries_of_no_group_are_refused(run):
    def edit(state, _):
        state[11], state[9] = dict(state[0]), dict(state[1])

    with pytest.raises(ValueError, match=r"its groups, got \[9, 11\] in none"):
        imported(run, edited(run, edit))


def test_learning_rate_is_read_from_the_file(run):
    def edit(_, groups):
        for group in groups:
            group["lr"] = 0.25

    assert float(imported(run, edited(run, edit)).learning_rate) == 0.25


def test_the_schedules_step_is_given_or_the_largest_count(run):
    _, params, names, optimizer = run
    opt_state = adamw_tf(lambda step: 1e-3 * jnp.ones(())).init(params)
    saved = optimizer.state_dict()
    state = opt_state_from_torch(opt_state, params, saved, names)
    assert int(state.step) == 2
    state = opt_state_from_torch(opt_state, params, saved, names, step=7)
    assert int(state.step) == 7


def test_the_files_own_names_tell_the_order(run):
    module, _, _, _ = run
    named = list(module.named_parameters())[::-1]
    optimizer = torch.optim.AdamW(named, lr=1e-3)
    torch_models.set_gradients(module, 0)
    optimizer.step()
    state = imported(run, optimizer.state_dict())
    np.testing.assert_array_equal(
        state.mu["0"]["bias"], optimizer.state[module[0].bias]["exp_avg"]
    )


def test_one_group_is_in_the_order_of_named_parameters(run):
    module, _, _, _ = run
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    torch_models.set_gradients(module, 0)
    optimizer.step()
    state = imported(run, optimizer.state_dict())
    np.testing.assert_array_equal(
        state.mu["0"]["bias"], optimizer.state[module[0].bias]["exp_avg"]
    )


def test_another_order_is_seen_by_its_shapes_and_all_are_listed(run):
    def edit(state, _):
        state[0], state[2] = state[2], state[0]

    with pytest.raises(ValueError, match=r"(?s)4 tensors.*'0.weight'.*'3.weight'"):
        imported(run, edited(run, edit))


def swapped(a, b):
    def edit(state, _):
        state[a], state[b] = state[b], state[a]

    return edit


def test_a_decayed_and_another_parameter_in_each_others_place_are_seen(run):
    # The first of either group, as if torch had been given the groups otherwise.
    with pytest.raises(ValueError, match=r"(?s)4 tensors.*'0.weight'.*'0.bias'"):
        imported(run, edited(run, swapped(0, 4)))


# Both [4]: `0.bias` and `1.bias`; `1.weight`, which Trainer decays, and `1.bias`.
@pytest.mark.parametrize(("a", "b"), [(4, 5), (1, 5)])
def test_another_order_of_equal_shapes_is_told_by_names_alone(run, a, b):
    state_dict = edited(run, swapped(a, b))
    moved, saved = imported(run, state_dict).mu, run[3].state_dict()["state"]
    np.testing.assert_array_equal(moved["1"]["bias"], saved[a]["exp_avg"])

    names = [name for group in run[2].model.groups for name in group]
    names[a], names[b] = names[b], names[a]
    for group in state_dict["param_groups"]:
        group["param_names"] = [names[number] for number in group["params"]]
    jax.tree.map(
        np.testing.assert_array_equal,
        imported(run, state_dict),
        imported(run, run[3].state_dict()),
    )


def test_other_groups_are_seen_by_their_lengths(run):
    def edit(_, groups):
        groups[0]["params"].append(groups[1]["params"].pop())

    with pytest.raises(ValueError, match=r"groups of \[4, 4\] .*got \[5, 3\]"):
        imported(run, edited(run, edit))
    with pytest.raises(ValueError, match="names of 1 groups, got 2"):
        imported(run, edited(run, lambda _, g: g.pop()), groups=[["a"], ["b"]])


def test_without_an_order_groups_must_be_given(run):
    _, params, _, optimizer = run
    model = torch_model_from_module(run[0])
    shapes = {p.name: p.shape for p in model.parameters}
    names = match_names(params, torch_model_from_shapes(shapes))
    saved, opt_state = optimizer.state_dict(), adamw_tf(1e-3).init(params)
    with pytest.raises(ValueError, match="`groups` must be given, got None"):
        opt_state_from_torch(opt_state, params, saved, names)
    state = opt_state_from_torch(opt_state, params, saved, names, groups=model.groups)
    jax.tree.map(np.testing.assert_array_equal, state, imported(run, saved))


def test_groups_must_name_every_parameter_once(run):
    groups = [["0.weight"] * 4, ["0.bias"] * 4]
    with pytest.raises(ValueError, match="missing .*'1.bias'"):
        imported(run, run[3].state_dict(), groups=groups)


OTHERS = {
    "DeepSpeed's ZeRO": {"base_optimizer_state": {}, "zero_stage": 2},
    "FSDP": {"state": {"a.weight": {"step": 1}}, "param_groups": [{"params": [0]}]},
    "bitsandbytes": {
        "state": {0: {"state1": 1, "absmax1": 1, "qmap1": 1}},
        "param_groups": [{"params": [0]}],
    },
    "must have `state` and `param_groups`": {"model": {}},
    "got list": [1, 2],
    "must have a list of groups": {"state": {}, "param_groups": [{"lr": 1}]},
    "with `params`, got {'params'": {"state": {}, "param_groups": {"params": [0]}},
    r"with `params`, got \[3\]": {"state": {}, "param_groups": [3]},
    "of torch's AdamW with `amsgrad`": {
        "state": {0: {"exp_avg": 1, "exp_avg_sq": 1, "max_exp_avg_sq": 1}},
        "param_groups": [{"params": [0]}],
    },
    "must be that of torch's AdamW, SGD, Adagrad or RMSprop, Transformers'": {
        "state": {0: {"momentum_buffer": 1}},
        "param_groups": [{"params": [0]}],
    },
}


@pytest.mark.parametrize("says", OTHERS)
def test_other_formats_are_refused_by_name(run, says):
    with pytest.raises(ValueError, match=says):
        imported(run, OTHERS[says])


def test_optimizer_must_match_the_file(run):
    _, params, names, optimizer = run
    adafactor = adafactor_tf().init(params)
    with pytest.raises(ValueError, match="for the file's optimizer, AdamW, got"):
        opt_state_from_torch(adafactor, params, optimizer.state_dict(), names)
    other = optax.sgd(0.1).init(params)
    with pytest.raises(ValueError, match="must contain a state of `adamw_tf` or"):
        opt_state_from_torch(other, params, optimizer.state_dict(), names)


def test_adafactors_first_moment_must_have_a_place():
    from transformers.optimization import Adafactor

    module = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 4)})
    params = torch_models.flax_tree(torch_models.flax_leaves(module))
    names = match_names(params, torch_model_from_module(module))
    optimizer = Adafactor(module.parameters(), beta1=0.9)
    torch_models.set_gradients(module, 0)
    optimizer.step()
    saved = optimizer.state_dict()
    without, with_one = (adafactor_tf(beta1=b).init(params) for b in (None, 0.9))
    with pytest.raises(ValueError, match="must have `exp_avg` for .*, got none"):
        opt_state_from_torch(without, params, saved, names)
    for entry in saved["state"].values():
        del entry["exp_avg"]
    with pytest.raises(ValueError, match="must have `exp_avg` for 'a"):
        opt_state_from_torch(with_one, params, saved, names)


def test_layers_of_a_stack_must_have_seen_as_many_updates():
    layers = [torch.nn.Linear(3, 4, bias=False) for _ in range(2)]
    module = torch.nn.ModuleDict({"h": torch.nn.ModuleList(layers)})
    params = {"h": {"kernel": jnp.zeros((2, 3, 4))}}
    names = match_names(params, torch_model_from_module(module))
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    torch_models.set_gradients(module, 0)
    layers[0].weight.grad = None
    optimizer.step()
    with pytest.raises(ValueError, match="one `step` for all parameters of the leaf"):
        opt_state_from_torch(
            adamw_tf(1e-3).init(params), params, optimizer.state_dict(), names
        )
