"""Assignment of leaves to torch's parameters, and errors of unmatched ones."""

import numpy as np
import optax
import pytest
import torch

from jaxopt_tf.interop import (
    match_names,
    opt_state_from_torch,
    torch_from_opt_state,
    torch_model_from_config,
    torch_model_from_module,
    torch_model_from_shapes,
)
from jaxopt_tf.optimizers import TorchLayout, adafactor_tf, adamw_tf, get_learning_rate
from tests.references import torch_models


def shapes(**leaves):
    return torch_models.flax_tree(
        {name.replace("__", "."): np.zeros(shape) for name, shape in leaves.items()}
    )


def state_dict_of(module, steps=2):
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    for seed in range(steps):
        torch_models.set_gradients(module, seed)
        optimizer.step()
    return optimizer.state_dict()


def carried(params, names, state_dict, **options):
    """AdamW's first moments as our tree has them; and that they come back as sent."""
    opt_state = adamw_tf(1e-3).init(params)
    state = opt_state_from_torch(opt_state, params, state_dict, names, **options)
    back = torch_from_opt_state(
        state, params, names, state_dict["param_groups"], **options
    )
    for number, entry in state_dict["state"].items():
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(back["state"][number][key], entry[key])
    return state.mu


@pytest.mark.parametrize("model", ["gpt2", "bert", "t5"])
def test_config_and_module_give_the_same_model(model, tmp_path):
    module = torch_models.MODELS[model]()
    module.save_pretrained(tmp_path)
    assert torch_model_from_config(tmp_path) == torch_model_from_module(module)


@pytest.mark.parametrize("model", torch_models.MODELS)
def test_groups_match_trainer(model):
    module = torch_models.MODELS[model]()
    names = {id(p): name for name, p in module.named_parameters()}
    theirs = tuple(
        tuple(names[id(p)] for p in group["params"])
        for group in torch_models.trainer_groups(module)
    )
    assert torch_model_from_module(module).groups == theirs


def test_frozen_parameters_are_in_no_group():
    module = torch_models.convolutional()
    module[0].weight.requires_grad_(False)
    groups = torch_model_from_module(module).groups
    assert not any("0.weight" in group for group in groups)


def test_a_tensor_is_frozen_as_a_whole():
    model = torch_model_from_shapes({"a.weight": [4, 3], "b.bias": [2]})
    params = shapes(a__top=(2, 3), a__low=(2, 3), b__bias=(2,))
    table = {"a.top": "a.weight", "a.low": "a.weight"}
    names = match_names(
        params, model, table=table, layouts={"a.*": TorchLayout(axes=((0,), (1,)))}
    )
    whole = names.with_frozen(["a.top", "a.low"]).model.parameters
    assert [p.name for p in whole if not p.is_trainable] == ["a.weight"]
    with pytest.raises(ValueError, match=r"`leaves` must .*'a.weight'.*\['a.top'\]"):
        names.with_frozen(["a.top"])


def test_tied_parameters_are_there_once():
    model = torch_model_from_module(torch_models.gpt2())
    assert model.tied == (("lm_head.weight", "transformer.wte.weight"),)
    assert "lm_head.weight" not in [p.name for p in model.parameters]


@pytest.mark.parametrize("prefix", ["", "transformer."], ids=["without", "with"])
def test_a_prefix_may_be_missing_or_too_many(prefix):
    module = torch_models.gpt2()
    leaves = torch_models.flax_leaves(module)
    bare = {name.removeprefix("transformer."): a for name, a in leaves.items()}
    there = module if prefix == "" else module.transformer
    params = torch_models.flax_tree({prefix + name: a for name, a in bare.items()})
    names = match_names(params, torch_model_from_module(there))
    assert len(names.slices) == len(bare)


def test_a_prefix_that_may_be_either_is_not_guessed():
    model = torch_model_from_shapes({"encoder.x.bias": [2], "decoder.x.bias": [2]})
    with pytest.raises(ValueError, match="'x.bias'.*matches all of"):
        match_names(shapes(x__bias=[2]), model)


def test_layers_may_be_stacked():
    module = torch_models.gpt2()
    leaves = torch_models.flax_leaves(module)
    stacked = {}
    for name, array in leaves.items():
        key = name.replace(".h.0.", ".h.").replace(".h.1.", ".h.")
        stacked.setdefault(key, []).append(array)
    params = torch_models.flax_tree(
        {k: np.stack(v) if ".h." in k else v[0] for k, v in stacked.items()}
    )
    names = match_names(params, torch_model_from_module(module))
    state_dict = state_dict_of(module)
    mu = carried(params, names, state_dict)
    index = [n for n, _ in module.named_parameters()].index(
        "transformer.h.1.mlp.c_fc.weight"
    )
    np.testing.assert_array_equal(
        mu["transformer"]["h"]["mlp"]["c_fc"]["kernel"][1],
        state_dict["state"][index]["exp_avg"],
    )


def test_heads_may_have_an_axis_of_their_own():
    module = torch.nn.ModuleDict(
        {"query": torch.nn.Linear(6, 8), "out": torch.nn.Linear(8, 6)}
    )
    params = shapes(
        query__kernel=[6, 2, 4],
        query__bias=[2, 4],
        out__kernel=[2, 4, 6],
        out__bias=[6],
    )
    names = match_names(params, torch_model_from_module(module))
    state_dict = state_dict_of(module)
    mu = carried(params, names, state_dict)
    saved = [state_dict["state"][i]["exp_avg"].numpy() for i in range(4)]
    np.testing.assert_array_equal(
        mu["query"]["kernel"], saved[0].reshape(2, 4, 6).transpose(2, 0, 1)
    )
    np.testing.assert_array_equal(mu["query"]["bias"], saved[1].reshape(2, 4))
    np.testing.assert_array_equal(
        mu["out"]["kernel"], saved[2].reshape(6, 2, 4).transpose(1, 2, 0)
    )


PARTS = ("q", "k", "v")


def test_several_tensors_may_be_fused_in_one_leaf():
    module = torch.nn.ModuleDict({name: torch.nn.Linear(6, 4) for name in PARTS})
    params = shapes(qkv__kernel=[6, 12], qkv__bias=[12])
    rules = [
        (r"qkv\.kernel", [f"{name}.weight" for name in PARTS]),
        (r"qkv\.(bias)", [rf"{name}.\1" for name in PARTS]),
    ]
    names = match_names(params, torch_model_from_module(module), rules=rules)
    state_dict = state_dict_of(module)
    mu = carried(params, names, state_dict)
    weights = [state_dict["state"][i]["exp_avg"].numpy() for i in (0, 2, 4)]
    np.testing.assert_array_equal(mu["qkv"]["kernel"], np.concatenate(weights).T)


def test_one_tensor_may_be_split_into_several_leaves():
    module = torch.nn.ModuleDict({"c_attn": torch.nn.Linear(6, 12)})
    params = shapes(
        **{f"{name}__kernel": [6, 2, 2] for name in PARTS},
        **{f"{name}__bias": [2, 2] for name in PARTS},
    )
    table = {f"{n}.kernel": "c_attn.weight" for n in PARTS}
    table |= {f"{n}.bias": "c_attn.bias" for n in PARTS}
    names = match_names(params, torch_model_from_module(module), table=table)
    state_dict = state_dict_of(module)
    mu = carried(params, names, state_dict)
    saved = state_dict["state"][0]["exp_avg"].numpy()
    np.testing.assert_array_equal(mu["k"]["kernel"], saved[4:8].T.reshape(6, 2, 2))


def test_a_split_that_does_not_add_up_is_an_error():
    module = torch.nn.ModuleDict({"c_attn": torch.nn.Linear(6, 12, bias=False)})
    params = shapes(q__kernel=[6, 4], k__kernel=[6, 4])
    table = {"q.kernel": "c_attn.weight", "k.kernel": "c_attn.weight"}
    with pytest.raises(ValueError, match=r"its leaves \['q.*'k.kernel'\] cover 8"):
        match_names(params, torch_model_from_module(module), table=table)


@pytest.mark.parametrize(
    ("convention", "is_turned"),
    [("linear", True), ("conv1d", False), ("former_flax_gpt2", True)],
)
def test_a_square_kernel_stands_as_the_convention_says(convention, is_turned):
    model = torch_model_from_shapes({"x.weight": [3, 3]})
    names = match_names(shapes(x__kernel=[3, 3]), model, convention=convention)
    turned = names.slices[0].layout.axes == ((1,), (0,))
    assert turned is is_turned


def test_the_former_flax_gpt2_had_its_projections_the_other_way_round():
    module = torch_models.gpt2()
    leaves = torch_models.flax_leaves(module)
    params = torch_models.flax_tree(
        {n: a.T if n.endswith("kernel") else a for n, a in leaves.items()}
    )
    model = torch_model_from_module(module)
    names = match_names(params, model, convention="former_flax_gpt2")
    state_dict = state_dict_of(module)
    carried(params, names, state_dict)
    with pytest.raises(ValueError, match=r"c_attn.kernel' \[24, 8\].*do not fit"):
        match_names(params, model)


def test_unmatched_leaves_and_tensors_are_listed():
    model = torch_model_from_shapes({"a.weight": [2, 3], "b.bias": [4], "c.bias": [5]})
    params = shapes(a__kernel=[2, 3], c__bias=[5], d__bias=[6])
    with pytest.raises(ValueError, match="got 3 differences") as error:
        match_names(params, model)
    for part in ("'d.bias' [6]: torch has no", "'b.bias' [4]: no leaf", "'a.kernel'"):
        assert part in str(error.value)


def test_a_layout_may_be_declared_and_must_fit():
    model = torch_model_from_shapes({"a.weight": [2, 3]})
    params = shapes(a__odd=[3, 2])
    table, layouts = {"a.odd": "a.weight"}, {r"a\.odd": TorchLayout.dense()}
    names = match_names(params, model, table=table, layouts=layouts)
    assert names.slices[0].layout == TorchLayout.dense()
    with pytest.raises(ValueError, match="`layouts` has .*which does not fit"):
        match_names(params, model, table=table, layouts={r"a\.odd": TorchLayout.conv()})


def test_a_declared_layout_must_be_filled_by_the_fused_tensors():
    module = torch.nn.ModuleDict({name: torch.nn.Linear(6, 4) for name in PARTS})
    params = shapes(qkv__kernel=[6, 16], qkv__bias=[12])
    rules = [
        (r"qkv\.kernel", [f"{name}.weight" for name in PARTS]),
        (r"qkv\.(bias)", [rf"{name}.\1" for name in PARTS]),
    ]
    layouts = {r"qkv\.kernel": TorchLayout.dense()}
    with pytest.raises(ValueError, match=r"'qkv.kernel' \[6, 16\].*do not fit"):
        match_names(
            params, torch_model_from_module(module), rules=rules, layouts=layouts
        )


def test_a_leaf_is_not_fused_of_tensors_that_are_split():
    # Both tensors would be read into all of `x`, the second over the first.
    model = torch_model_from_shapes({"a": [4, 3], "b": [2, 3]})
    params = shapes(x__w=[2, 3], y__w=[2, 3])
    table = {"x.w": ["a", "b"], "y.w": "a"}
    with pytest.raises(ValueError, match=r"'x.w' \[2, 3\] .* do not fit"):
        match_names(params, model, table=table)


def test_a_declared_stack_must_have_as_many_layers_as_torch():
    model = torch_model_from_shapes({"h.0.w": [2, 4], "h.1.w": [2, 4]})
    params, layouts = shapes(h__w=[2, 3, 4]), {r"h\.w": TorchLayout().stacked(1)}
    with pytest.raises(ValueError, match=r"'h.w' \[2, 3, 4\] .* do not fit"):
        match_names(params, model, layouts=layouts)


def test_a_single_number_cannot_be_split():
    model = torch_model_from_shapes({"scale": []})
    table = {"a.scale": "scale", "b.scale": "scale"}
    with pytest.raises(ValueError, match=r"(?s)got 2 diff.*'a.scale' .* do not fit"):
        match_names(shapes(a__scale=[], b__scale=[]), model, table=table)


def test_what_is_no_transposition_must_be_declared():
    module = torch.nn.Sequential(torch.nn.ConvTranspose2d(2, 3, 2, bias=False))
    params = torch_models.flax_tree({"0.kernel": np.zeros([2, 2, 2, 3])})
    with pytest.raises(ValueError, match="ConvTranspose2d have reversed spatial axes"):
        match_names(params, torch_model_from_module(module))
    shape = shapes(a__kernel=[4, 2, 2])
    ambiguous = torch_model_from_shapes({"a.weight": [4, 4]})
    names = match_names(shape, ambiguous)
    assert names.slices[0].layout == TorchLayout.dense_general(1, 2)
    ones = torch_model_from_shapes({"a.weight": [4, 4]})
    with pytest.raises(ValueError, match="several layouts match"):
        match_names(shapes(a__kernel=[4, 1, 4]), ones)


def test_bad_arguments_are_named():
    model = torch_model_from_shapes({"a.bias": [1]})
    params = shapes(a__bias=[1])
    with pytest.raises(ValueError, match="`convention` must be one of"):
        match_names(params, model, convention="flax")
    with pytest.raises(ValueError, match=r"`rules` must have regular.*'\('"):
        match_names(params, model, rules=[("(", "x")])
    with pytest.raises(ValueError, match="`table`: 'x' is no leaf"):
        match_names(params, model, table={"x": "a.bias"})
    with pytest.raises(TypeError, match="`module` must be a torch.nn.Module, got dict"):
        torch_model_from_module({})


def test_a_folder_without_a_model_of_transformers_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must contain config.json"):
        torch_model_from_config(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="under `architectures`, got None"):
        torch_model_from_config(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "no such"}')
    with pytest.raises(ValueError, match="the config.json of a model of Transformers"):
        torch_model_from_config(tmp_path)


def adafactor_state(layouts, params):
    options = {"scale_parameter": False, "relative_step": False}
    return adafactor_tf(1e-3, layouts=layouts, **options).init(params)


def adafactor_dict(module):
    from transformers.optimization import Adafactor

    options = {"scale_parameter": False, "relative_step": False}
    optimizer = Adafactor(module.parameters(), lr=1e-3, **options)
    torch_models.set_gradients(module, 0)
    optimizer.step()
    return optimizer.state_dict()


def test_rows_and_columns_swap_where_no_layout_was_declared():
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 4, bias=False)})
    params = shapes(a__kernel=[3, 4])
    names = match_names(params, torch_model_from_module(module))
    saved = adafactor_dict(module)
    state = opt_state_from_torch(adafactor_state(None, params), params, saved, names)
    entry = saved["state"][0]
    np.testing.assert_array_equal(state.nu_row["a"]["kernel"], entry["exp_avg_sq_col"])
    np.testing.assert_array_equal(state.nu_col["a"]["kernel"], entry["exp_avg_sq_row"])
    back = torch_from_opt_state(state, params, names, saved["param_groups"])
    for key in ("exp_avg_sq_row", "exp_avg_sq_col"):
        assert torch.equal(back["state"][0][key], entry[key])


def test_adafactors_means_cannot_be_cut_joined_or_of_other_axes():
    module = torch.nn.ModuleDict({n: torch.nn.Linear(6, 4, bias=False) for n in PARTS})
    params = shapes(qkv__kernel=[6, 12])
    rules = [(r"qkv\.kernel", [f"{name}.weight" for name in PARTS])]
    names = match_names(params, torch_model_from_module(module), rules=rules)
    saved = adafactor_dict(module)
    with pytest.raises(ValueError, match="cannot be split or concatenated"):
        opt_state_from_torch(adafactor_state(None, params), params, saved, names)

    module = torch.nn.ModuleDict({"a": torch.nn.Linear(6, 4, bias=False)})
    params = shapes(a__kernel=[6, 2, 2])
    names = match_names(params, torch_model_from_module(module))
    saved = adafactor_dict(module)
    with pytest.raises(
        ValueError, match="`layouts` must give 'a.kernel' the axes of torch"
    ):
        opt_state_from_torch(adafactor_state(None, params), params, saved, names)


def test_stacked_means_of_adafactor_are_carried_per_layer():
    layers = [torch.nn.Linear(3, 4, bias=False) for _ in range(2)]
    module = torch.nn.ModuleDict({"h": torch.nn.ModuleList(layers)})
    params = shapes(h__kernel=[2, 3, 4])
    names = match_names(params, torch_model_from_module(module))
    saved = adafactor_dict(module)
    layouts = {r"h\.kernel": TorchLayout.dense().stacked()}
    opt_state = adafactor_state(layouts, params)
    state = opt_state_from_torch(opt_state, params, saved, names, layouts=layouts)
    for i in range(2):
        np.testing.assert_array_equal(
            state.nu_row["h"]["kernel"][i], saved["state"][i]["exp_avg_sq_row"]
        )
    with pytest.raises(ValueError, match="the stacked axes differ"):
        opt_state_from_torch(adafactor_state(None, params), params, saved, names)


def test_optimizers_of_groups_each_take_their_own():
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 4)})
    params = shapes(a__kernel=[3, 4], a__bias=[4])
    names = match_names(params, torch_model_from_module(module))
    groups = [["a.weight"], ["a.bias"]]
    optimizer = torch.optim.AdamW(
        [{"params": [module["a"].weight]}, {"params": [module["a"].bias], "lr": 0.5}],
        lr=1e-3,
    )
    torch_models.set_gradients(module, 0)
    optimizer.step()
    saved = optimizer.state_dict()
    labels = {"a": {"kernel": "w", "bias": "b"}}
    ours = optax.multi_transform({"w": adamw_tf(1e-3), "b": adamw_tf(0.5)}, labels)
    state = opt_state_from_torch(ours.init(params), params, saved, names, groups=groups)
    rates = get_learning_rate(state)
    assert rates == {"w": pytest.approx(1e-3), "b": 0.5}
    back = torch_from_opt_state(
        state, params, names, saved["param_groups"], groups=groups
    )
    assert torch.equal(back["state"][1]["exp_avg"], saved["state"][1]["exp_avg"])
    one = adamw_tf(1e-3).init(params)
    with pytest.raises(ValueError, match="one `lr` for all groups of one optimizer"):
        opt_state_from_torch(one, params, saved, names, groups=groups)
