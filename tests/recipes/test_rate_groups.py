"""Parameter groups with learning rates of their own, and joint clipping."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxopt_tf.optimizers import get_learning_rate
from jaxopt_tf.recipes import (
    ParamGroup,
    Recipe,
    build_optimizer,
    build_schedule,
    doctor,
    explain,
    layer_wise_decay,
    recipe_settings,
)
from tests import references

pytestmark = pytest.mark.promotion_of_others  # optax.multi_transform

SHAPES = {"wte": (6, 4), "h.0.kernel": (4, 4), "h.1.kernel": (4, 4), "head.bias": (4,)}


def draw(rng, size=1.0):
    return {
        name: jnp.asarray(size * rng.normal(size=shape), jnp.float32)
        for name, shape in SHAPES.items()
    }


def recipe(groups, **changes):
    plan = {"max_steps": 20, "learning_rate": 1e-2, "weight_decay": 0.1}
    return Recipe(**{**plan, "max_grad_norm": 0.5, "rate_groups": groups, **changes})


def run(optimizer, num_steps=10):
    rng = np.random.default_rng(0)
    params = draw(rng)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for _ in range(num_steps):
        updates, state = update(draw(rng), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@references.needs_torch
def test_follows_torch_with_a_rate_per_group_and_one_clipping():
    import torch

    factors = {"wte": 0.1, "h.0.kernel": 0.5, "h.1.kernel": 1.0, "head.bias": 1.0}
    groups = [ParamGroup(pattern="wte", factor=0.1), {"pattern": "h.0", "factor": 0.5}]
    ours, state = run(build_optimizer(recipe(groups)))

    rng = np.random.default_rng(0)
    tensors = {
        n: torch.nn.Parameter(torch.tensor(np.asarray(p))) for n, p in draw(rng).items()
    }
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [t],
                "lr": 1e-2 * factors[n],
                "weight_decay": 0.1 * (n != "head.bias"),
            }
            for n, t in tensors.items()
        ],
        eps=1e-8,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 20)
    for _ in range(10):
        for name, g in draw(rng).items():
            tensors[name].grad = torch.tensor(np.asarray(g))
        torch.nn.utils.clip_grad_norm_(list(tensors.values()), 0.5)
        optimizer.step()
        schedule.step()
    for name, tensor in tensors.items():
        np.testing.assert_allclose(ours[name], tensor.detach(), atol=2e-7, err_msg=name)
    rates = get_learning_rate(state)
    assert set(rates) == {"wte", "h.0", "rest"}
    np.testing.assert_allclose(rates["h.0"], 0.5 * rates["rest"], rtol=1e-6)


def test_a_group_of_factor_1_is_no_group():
    alone, _ = run(build_optimizer(recipe([])))
    apart, _ = run(build_optimizer(recipe([ParamGroup(pattern="wte")])))
    for name in alone:
        np.testing.assert_array_equal(alone[name], apart[name], err_msg=name)


# --- not to the bit: compiled sooner


@pytest.mark.usefixtures("compiled_quickly")
def test_a_group_may_have_a_schedule_of_its_own():
    group = ParamGroup(
        pattern="h",
        learning_rate=1e-3,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=0.5,
        factor=2.0,
    )
    plan = recipe([group])
    _, state = run(build_optimizer(plan), num_steps=6)
    rates = get_learning_rate(state)
    np.testing.assert_allclose(rates["h"], 2.0 * 1e-3 * 5 / 10, rtol=1e-6)
    np.testing.assert_allclose(rates["rest"], build_schedule(plan)(5), rtol=1e-6)


@pytest.mark.usefixtures("compiled_quickly")
def test_layer_wise_decay_shrinks_rates_towards_the_input():
    groups = layer_wise_decay(0.5, ["wte", r"^h\.0\.", r"^h\.1\."])
    _, state = run(build_optimizer(recipe(groups, lr_scheduler_type="constant")), 1)
    rates = {
        name: float(rate) / 1e-2 for name, rate in get_learning_rate(state).items()
    }
    expected = {"wte": 0.125, r"^h\.0\.": 0.25, r"^h\.1\.": 0.5, "rest": 1.0}
    assert rates == pytest.approx(expected, rel=1e-6)


@pytest.mark.usefixtures("compiled_quickly")
def test_groups_train_an_nnx_model():
    class Model(nnx.Module):
        def __init__(self):
            self.wte = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
            self.head = nnx.Linear(3, 1, rngs=nnx.Rngs(1))

    model = Model()
    before = jax.tree.map(jnp.copy, nnx.state(model))
    groups = [ParamGroup(pattern="^wte", factor=0.0)]
    plan = recipe(groups, lr_scheduler_type="constant")
    optimizer = nnx.Optimizer(model, build_optimizer(plan), wrt=nnx.Param)
    grads = nnx.grad(lambda m: jnp.sum(m.head(m.wte(jnp.ones((2, 3))))))(model)
    optimizer.update(model, grads)
    after = nnx.state(model)
    np.testing.assert_array_equal(
        after["wte"]["kernel"][...], before["wte"]["kernel"][...]
    )
    assert np.any(after["head"]["kernel"][...] != before["head"]["kernel"][...])


def test_a_recipe_with_groups_comes_back_from_json():
    group = ParamGroup(
        pattern="wte",
        lr_scheduler_type="polynomial",
        lr_scheduler_kwargs={"power": 2.0},
    )
    plan = recipe(
        [group, *layer_wise_decay(0.9, ["h"])], optim="sgd", optim_args="momentum=0.9"
    )
    settings = recipe_settings(plan)
    assert json.loads(json.dumps(settings)) == settings
    assert Recipe(**settings) == plan
    assert hash(Recipe(**settings)) == hash(plan)


# --- groups with their own optimizer

DECAYED = {"optim": "sgd", "optim_args": "momentum=0.9", "weight_decay": 0.5}


@references.needs_torch
def test_groups_of_two_optimizers_follow_torch_with_one_clipping():
    import torch

    sgd = {"optim": "sgd", "optim_args": "momentum=0.9", "weight_decay": 0.0}
    adamw = {"pattern": "h.1", "adam_beta1": 0.8, "adam_epsilon": 1e-6}
    plan = recipe(
        [{"pattern": "wte", "learning_rate": 1e-1, **sgd}, adamw],
        lr_scheduler_type="constant",
    )
    ours, state = run(build_optimizer(plan))

    rng = np.random.default_rng(0)
    tensors = {
        n: torch.nn.Parameter(torch.tensor(np.asarray(p))) for n, p in draw(rng).items()
    }
    wte, h0, h1, bias = (tensors[n] for n in SHAPES)
    by_adamw = [
        {"params": [h0], "weight_decay": 0.1},
        {"params": [h1], "weight_decay": 0.1, "betas": (0.8, 0.999), "eps": 1e-6},
        {"params": [bias], "weight_decay": 0.0},
    ]
    optimizers = [
        torch.optim.SGD([wte], lr=1e-1, momentum=0.9),
        torch.optim.AdamW(by_adamw, lr=1e-2),
    ]
    for _ in range(10):
        for name, g in draw(rng).items():
            tensors[name].grad = torch.tensor(np.asarray(g))
        torch.nn.utils.clip_grad_norm_(list(tensors.values()), 0.5)
        for optimizer in optimizers:
            optimizer.step()
    for name, tensor in tensors.items():
        np.testing.assert_allclose(ours[name], tensor.detach(), atol=2e-7, err_msg=name)
    rates = {name: float(rate) for name, rate in get_learning_rate(state).items()}
    assert rates == pytest.approx({"wte": 0.1, "h.1": 0.01, "rest": 0.01}, rel=1e-6)


@pytest.mark.usefixtures("compiled_quickly")
def test_muon_as_a_group_equals_muon_with_adamw_for_the_rest():
    muon = {"optim": "muon", "optim_args": {"ns_dtype": "float32", "ns_steps": 3}}
    alone, _ = run(build_optimizer(recipe([], **muon)))
    apart, state = run(build_optimizer(recipe([{"pattern": "kernel$", **muon}])))
    for name in alone:
        np.testing.assert_array_equal(alone[name], apart[name], err_msg=name)
    assert set(get_learning_rate(state)) == {"kernel$", "rest"}


def test_the_optimizer_of_each_parameter_is_explained():
    params = jax.tree.map(jnp.zeros, SHAPES, is_leaf=lambda x: isinstance(x, tuple))
    plan = recipe([{"pattern": "h.0", "optim": "sgd"}], optim="muon")
    found = {leaf.path: leaf.optimizer for leaf in explain(plan, params).leaves}
    assert found == {
        "wte": "adamw_torch: 'wte' in its name",
        "h.0.kernel": "sgd",
        "h.1.kernel": "muon",
        "head.bias": "adamw_torch: 1 axes in torch",
    }
    assert "optimizer" in str(explain(plan, params))
    assert "optimizer" not in str(explain(recipe([]), params))
    undecayed = recipe([{"pattern": "h", "weight_decay": 0.0}])
    rows = {leaf.path: leaf for leaf in explain(undecayed, params).leaves}
    assert [n for n, leaf in rows.items() if leaf.is_decayed] == ["wte"]
    assert rows["h.0.kernel"].why_not_decayed == "`weight_decay` is 0"
    for groups in ([{"pattern": "h.0", "optim": "sgd"}], [{"pattern": "h"} | DECAYED]):
        judged = doctor(recipe(groups), build_optimizer(recipe(groups)), params)
        assert not list(judged)
        assert "groups with their own optimizer" in judged.closing_line


def test_a_group_with_another_optimizer_has_none_of_the_recipe_s_arguments():
    momentum = {"optim": "sgd", "optim_args": "momentum=0.9"}
    group = ParamGroup(pattern="wte", optim="adamw_torch")
    plan = recipe(
        [group, {"pattern": "h", "optim_args": {"momentum": "0.5"}}], **momentum
    )
    settings = recipe_settings(plan)
    assert Recipe(**json.loads(json.dumps(settings))) == plan
    _, state = run(build_optimizer(plan), 1)
    nodes = state[1].inner_states
    assert nodes["wte"].inner_state.mu["wte"].shape == (6, 4)


def test_arguments_of_muon_are_parsed_by_their_types():
    args = "matrices=h.1|wte,ns_steps=4,nesterov=False,momentum=0.9"
    plan = recipe([], optim="muon", optim_args=args)
    expected = {"matrices": "h.1|wte", "ns_steps": 4, "nesterov": False}
    assert dict(plan.optim_args) == {**expected, "momentum": 0.9}
    state = build_optimizer(plan).init(draw(np.random.default_rng(0)))
    assert [m.shape for m in jax.tree.leaves(state[1].momentum)] == [(4, 4), (6, 4)]
    with pytest.raises(TypeError, match="must have a string for `matrices`, got 3"):
        recipe([], optim="muon", optim_args={"matrices": 3})
    with pytest.raises(TypeError, match="a whole number for `ns_steps`, got 4.5"):
        recipe([], optim="muon", optim_args={"ns_steps": 4.5})


@pytest.mark.parametrize("pattern", ["wte", "bias"])
def test_a_group_of_muon_without_a_matrix_is_refused(pattern):
    plan = recipe([{"pattern": pattern, "optim": "muon"}])
    with pytest.raises(ValueError, match="must have a matrix for the `optim` 'muon'"):
        run(build_optimizer(plan))
    inherits = recipe([{"pattern": pattern, "factor": 0.5}], optim="muon")
    build_optimizer(inherits).init(draw(np.random.default_rng(0)))


@pytest.mark.parametrize("pattern", ["nothing", r"h\.0\.kernel"])
def test_a_pattern_that_is_left_without_a_parameter_is_refused(pattern):
    groups = [ParamGroup(pattern="h"), ParamGroup(pattern=pattern)]
    with pytest.raises(ValueError, match="must each select a parameter") as refused:
        run(build_optimizer(recipe(groups)))
    assert repr(pattern) in str(refused.value)


@pytest.mark.parametrize(
    ("groups", "error", "match"),
    [
        ("wte", TypeError, "`rate_groups` must be a list"),
        ([1], TypeError, "`rate_groups` must be a list"),
        (ParamGroup(pattern="a"), TypeError, "`rate_groups` must be a list"),
        (
            [{"patern": "a"}],
            TypeError,
            "in each group.*Did you mean 'pattern'",
        ),
        (
            [{"factor": 2.0}],
            TypeError,
            "must have a `pattern` in each group",
        ),
        ([{"pattern": "("}], ValueError, "must be a regular expression, got '\\('"),
        ([{"pattern": ""}], TypeError, "must be a regular expression, got ''"),
        ([{"pattern": "a", "factor": -1}], ValueError, "`factor` must be"),
        ([{"pattern": "a"}, {"pattern": "a"}], ValueError, "a different pattern"),
        ([{"pattern": "rest"}], ValueError, "none may be 'rest'"),
        (
            [{"pattern": "a", "lr_scheduler_type": "cosin"}],
            ValueError,
            "`rate_groups` 'a': `lr_scheduler_type` must be one of",
        ),
        (
            [{"pattern": "a", "lr_scheduler_type": "greedy"}],
            ValueError,
            "`rate_groups` must be empty with 'greedy'",
        ),
        (
            [{"pattern": "a", "optim": "adamv"}],
            ValueError,
            "`rate_groups` 'a': `optim` must be one of .*'muon', got 'adamv'",
        ),
        (
            [{"pattern": "a", "optim": "sgd", "optim_args": "alpha=1"}],
            ValueError,
            "`rate_groups` 'a': `optim_args` must contain only arguments of 'sgd'",
        ),
        (
            [{"pattern": "a", "optim": "muon", "optim_args": "adjust_lr_fn=rms"}],
            TypeError,
            "'original' or 'match_rms_adamw' for `adjust_lr_fn`, got 'rms'",
        ),
        (
            [{"pattern": "a", "optim": "schedule_free_sgd"}],
            ValueError,
            "'schedule_free_sgd' must be that of all parameters, got .*'adamw_torch'",
        ),
        (
            [{"pattern": "a", "optim": "lomo"}],
            ValueError,
            "`rate_groups` 'a': `optim` .*'lomo'",
        ),
        (
            [{"pattern": "a", "optim": "sgd", "optim_args": 3}],
            TypeError,
            "`optim_args` must be a mapping",
        ),
        (
            [{"pattern": "a", "lr_scheduler_kwargs": 3}],
            TypeError,
            "`lr_scheduler_kwargs` must be a mapping",
        ),
    ],
)
def test_refuses_groups_that_are_none(groups, error, match):
    with pytest.raises(error, match=match):
        recipe(groups)


def test_refuses_layers_that_are_no_list():
    with pytest.raises(TypeError, match="`patterns` must be a list"):
        layer_wise_decay(0.9, "wte")
    with pytest.raises(ValueError, match="`factor` must be"):
        layer_wise_decay(0.0, ["wte"])


def test_a_metric_drives_no_groups():
    with pytest.raises(ValueError, match="`rate_groups` must be empty"):
        recipe([ParamGroup(pattern="a")], lr_scheduler_type="reduce_lr_on_plateau")
