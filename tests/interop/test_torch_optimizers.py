"""Files of torch's SGD, Adagrad and RMSprop, read and written again."""

import functools

import jax
import numpy as np
import pytest
import torch

from jaxopt_tf.interop import (
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
    TorchLayout,
    adagrad_tf,
    adamw_tf,
    rmsprop_8bit_tf,
    rmsprop_tf,
    sgd_tf,
)
from jaxopt_tf.recipes import Recipe
from tests.references import torch_models

RATE = 1e-2
# Optimizer of torch, the function here, and their arguments.
CASES = {
    "sgd": (torch.optim.SGD, sgd_tf, {}),
    "sgd with momentum": (
        torch.optim.SGD,
        sgd_tf,
        {"momentum": 0.9, "dampening": 0.25},
    ),
    "adagrad": (torch.optim.Adagrad, adagrad_tf, {"lr_decay": 0.1}),
    "rmsprop": (torch.optim.RMSprop, rmsprop_tf, {"alpha": 0.9}),
    "rmsprop with momentum": (torch.optim.RMSprop, rmsprop_tf, {"momentum": 0.9}),
    "rmsprop with all": (
        torch.optim.RMSprop,
        rmsprop_tf,
        {"momentum": 0.9, "centered": True},
    ),
}
KEYS = {"momentum": "momentum_buffer", "nu": "square_avg", "mu": "grad_avg"}
every_case = pytest.mark.parametrize("name", CASES)


class Run:
    """A model of convolutions with an optimizer of torch, and the same here."""

    def __init__(self, name, **options):
        kind, build, args = CASES[name]
        self.args = {**args, **options}
        self.module = torch_models.convolutional()
        self.torch = kind(self.module.parameters(), lr=RATE, **self.args)
        self.names = match_names(self.params(), torch_model_from_module(self.module))
        self.ours = build(RATE, **self.args)

    def params(self):
        leaves = torch_models.flax_leaves(self.module)
        return torch_models.flax_tree({n: x.copy() for n, x in leaves.items()})

    def step(self, num_steps):
        for seed in range(num_steps):
            torch_models.set_gradients(self.module, seed)
            self.torch.step()
        return self

    def read(self, optimizer=None, saved=None, **options):
        saved = self.torch.state_dict() if saved is None else saved
        like = (optimizer or self.ours).init(self.params())
        return opt_state_from_torch(like, self.params(), saved, self.names, **options)

    def written(self, state, groups=None, **options):
        groups = self.torch.state_dict()["param_groups"] if groups is None else groups
        return torch_from_opt_state(state, self.params(), self.names, groups, **options)


def assert_equal(ours, theirs):
    assert ours["state"].keys() == theirs["state"].keys()
    for number, entry in theirs["state"].items():
        assert ours["state"][number].keys() == entry.keys()
        for key, value in entry.items():
            assert ours["state"][number][key].dtype == value.dtype
            assert torch.equal(ours["state"][number][key], value), (number, key)
    for group, their_group in zip(
        ours["param_groups"], theirs["param_groups"], strict=True
    ):
        assert {k: v for k, v in group.items() if k != "param_names"} == their_group


@every_case
@pytest.mark.parametrize("num_steps", [0, 3], ids=["fresh", "updated"])
def test_a_file_is_read_and_written_bit_for_bit(name, num_steps):
    run = Run(name).step(num_steps)
    state = run.read(step=num_steps)
    assert int(state.count) == int(state.step) == num_steps
    assert float(state.learning_rate) == np.float32(RATE)
    written = run.written(state)
    assert_equal(written, run.torch.state_dict())
    again = run.read(saved=written, step=num_steps)
    jax.tree.map(np.testing.assert_array_equal, again, state)
    # torch takes it: Adagrad has entries before its first update, and needs them.
    run.torch.load_state_dict(written)
    run.step(1)


@every_case
def test_moments_are_those_of_the_file(name):
    run = Run(name).step(3)
    state = run.read()
    weight = dict(run.module.named_parameters())["5.weight"]
    keys = {"nu": "sum"} if name == "adagrad" else KEYS
    for field, key in keys.items():
        tree = getattr(state, field, None)
        if jax.tree.leaves(tree):
            array = run.torch.state[weight][key]
            np.testing.assert_array_equal(tree["5"]["kernel"], array.T)
        else:
            assert key not in run.torch.state[weight]


@every_case
def test_the_next_update_is_torchs(name):
    run = Run(name).step(3)
    before, state = run.params(), run.read()
    grads = torch_models.flax_tree(torch_models.set_gradients(run.module, 99))
    run.torch.step()
    updates, _ = jax.jit(run.ours.update)(grads, state, before)
    after = run.params()
    moved = max(np.abs(a - b).max() for a, b in _pairs(after, before))
    new_params = jax.tree.map(np.add, before, updates)
    assert max(np.abs(a - b).max() for a, b in _pairs(new_params, after)) < 1e-5 * moved


def _pairs(tree, other):
    return zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)


def test_sgd_counts_by_the_schedule():
    # Its files have no count. 1 or more: the next update has dampening.
    run = Run("sgd with momentum").step(3)
    assert int(run.read().count) == 1
    assert int(run.read(step=7).count) == 7
    assert int(run.read(step=0).count) == 1
    assert int(run.read(saved=Run("sgd with momentum").torch.state_dict()).count) == 0
    assert int(Run("sgd").step(3).read(step=5).count) == 5


def test_parameters_without_a_gradient_have_no_buffer():
    run = Run("sgd with momentum")
    torch_models.set_gradients(run.module, 0)
    run.module[5].bias.grad = None
    run.torch.step()
    state = run.read(step=1)
    assert int(state.count["5"]["bias"]) == 0
    assert int(state.count["5"]["kernel"]) == 1
    assert_equal(run.written(state), run.torch.state_dict())


def test_buffers_of_none_are_read():
    # torch before 2.1 wrote them for SGD without momentum.
    run = Run("sgd")
    saved = run.torch.state_dict()
    numbers = saved["param_groups"][0]["params"]
    saved["state"] = {number: {"momentum_buffer": None} for number in numbers}
    assert int(run.read(saved=saved, step=4).count) == 4


OPTIM_ARGS = {
    "sgd": "momentum=0.9,nesterov=true",
    "adagrad": "lr_decay=0.1,eps=1e-9",
    "rmsprop": "momentum=0.9,alpha=0.95,eps=1e-9,centered=true",
}


@pytest.mark.parametrize("optim_args", [None, OPTIM_ARGS], ids=["defaults", "given"])
@pytest.mark.parametrize("optim", OPTIM_ARGS)
def test_groups_of_a_recipe_are_those_of_trainer(optim, optim_args, tmp_path):
    from transformers import Trainer, TrainingArguments

    given = optim_args and optim_args[optim]
    recipe = Recipe(
        max_steps=10, optim=optim, optim_args=given or (), learning_rate=RATE,
        lr_scheduler_type="constant", weight_decay=0.1,
    )  # fmt: skip
    arguments = TrainingArguments(
        str(tmp_path), optim=optim, optim_args=given, learning_rate=RATE, use_cpu=True
    )
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    module = torch.nn.Linear(2, 2)
    groups = [
        {"params": [module.weight], "weight_decay": 0.1},
        {"params": [module.bias], "weight_decay": 0.0},
    ]
    theirs = kind(groups, **options).state_dict()["param_groups"]
    check_param_groups(theirs, recipe)
    ours = param_groups_from_recipe(recipe, RATE)
    for group, their_group in zip(ours, theirs, strict=True):
        new = {k: v for k, v in group.items() if k != "initial_lr"}
        assert new == {k: v for k, v in their_group.items() if k != "params"}


def test_other_settings_than_the_recipe_s_are_refused():
    groups = Run("rmsprop").torch.state_dict()["param_groups"]
    for optim, says in (
        ("rmsprop", "`alpha` of group 0 is 0.9 and the recipe's 0.99"),
        ("sgd", "`dampening` of group 0 is None and"),
        ("adagrad", "`lr_decay` of group 0 is None and"),
    ):
        recipe = Recipe(max_steps=10, optim=optim, learning_rate=RATE)
        with pytest.raises(ValueError, match=says):
            check_param_groups(groups, recipe)


@pytest.mark.parametrize(
    ("name", "build", "says"),
    [
        ("sgd", adamw_tf, "for the file's optimizer, SGD, got .*AdamW"),
        ("adagrad", sgd_tf, "for the file's optimizer, Adagrad, got .*SGD"),
        ("rmsprop", adagrad_tf, "for the file's optimizer, RMSprop, got .*Adagrad"),
        ("sgd with momentum", sgd_tf, "must have `momentum_buffer` .* the `momentum` "),
        ("rmsprop with momentum", rmsprop_tf, "must have `momentum_buffer` for"),
        (
            "rmsprop with all",
            functools.partial(rmsprop_tf, momentum=0.9),
            "must have `grad_avg` for .* the `centered` of the file",
        ),
        (
            "rmsprop",
            functools.partial(rmsprop_tf, centered=True),
            "`state_dict` must have `grad_avg` for",
        ),
    ],
)
def test_a_file_of_another_optimizer_is_refused(name, build, says):
    with pytest.raises(ValueError, match=says):
        Run(name).step(1).read(build(RATE))


def test_rmsprop_of_bitsandbytes_has_one_moment():
    run = Run("rmsprop with all").step(1)
    groups = [{"lr": RATE, "betas": (0.99, 0), "eps": 1e-8, "weight_decay": 0.0}]
    says = "`opt_state` must have no `momentum` and no centered mean"
    with pytest.raises(ValueError, match=says):
        run.written(run.read(), groups)


def test_moments_of_8_bits_are_no_state_of_torchs_rmsprop():
    module = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False))
    params = {"0": {"kernel": np.zeros((64, 64), np.float32)}}
    names = match_names(params, torch_model_from_module(module))
    layouts = {".*": TorchLayout.dense()}
    state = jax.eval_shape(rmsprop_8bit_tf(RATE, layouts=layouts).init, params)
    groups = torch.optim.RMSprop(module.parameters()).state_dict()["param_groups"]
    with pytest.raises(ValueError, match="must be those of bitsandbytes for moments"):
        torch_from_opt_state(state, params, names, groups, layouts=layouts)


@every_case
def test_maximizing_is_refused(name):
    run = Run(name).step(1)
    saved = run.torch.state_dict()
    saved["param_groups"][0]["maximize"] = True
    with pytest.raises(
        ValueError, match="`maximize` must be False .*`maximize=False`, or"
    ):
        run.read(saved=saved)


@pytest.mark.parametrize(
    ("name", "key"), [("adagrad", "sum"), ("rmsprop", "square_avg")]
)
def test_sums_of_squares_must_not_be_negative(name, key):
    run = Run(name).step(1)
    saved = run.torch.state_dict()
    saved["state"][0][key] = -saved["state"][0][key]
    with pytest.raises(ValueError, match=f"`{key}` of '0.weight' must be finite and"):
        run.read(saved=saved)


def test_unknown_settings_are_refused():
    run = Run("sgd").step(1)
    saved = run.torch.state_dict()
    saved["param_groups"][0]["trust_coefficient"] = 0.001
    with pytest.raises(ValueError, match="If .*trust_coefficient.* do not change"):
        run.read(saved=saved)
