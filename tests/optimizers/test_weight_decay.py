"""`decay_mask` against the choice of Trainer, and on every kind of tree."""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxopt_tf._pytrees import _tree
from jaxopt_tf.optimizers import adamw_tf, decay_mask
from tests import references
from tests.references import decay_names as reference


def decayed(mask):
    return {name for name, is_decayed in _tree.named_leaves(mask) if is_decayed}


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4, name="fc")(x)
        x = nn.LayerNorm(name="post")(x)
        x = nn.BatchNorm(use_running_average=True)(x)
        x = nn.RMSNorm(name="q")(x)
        return nn.Embed(4, 4, name="wte").attend(x)


class NNXBlock(nnx.Module):
    def __init__(self, rngs):
        self.fc = nnx.Linear(4, 4, rngs=rngs)
        self.post = nnx.LayerNorm(4, rngs=rngs)
        self.batch = nnx.BatchNorm(4, rngs=rngs)
        self.layers = nnx.List([nnx.Conv(4, 4, 3, rngs=rngs)])


class EquinoxBlock(eqx.Module):
    fc: eqx.nn.Linear
    post: eqx.nn.LayerNorm

    def __init__(self, key):
        self.fc = eqx.nn.Linear(4, 4, key=key)
        self.post = eqx.nn.LayerNorm(4)


@references.needs_transformers
@pytest.mark.parametrize("name", sorted(reference.ARCHITECTURES))
def test_equals_trainer_on_its_own_models(name):
    names, layer_norms, theirs = reference.trainer_decay_names(name)
    params = {n: np.zeros(()) for n in names}
    mask = decay_mask(params, rule="transformers_v5", layer_norms=layer_norms)
    assert decayed(mask) == theirs
    assert 0 < len(theirs) < len(names)


@pytest.mark.promotion_of_others
@pytest.mark.parametrize("freeze", [lambda tree: tree, flax.core.freeze])
def test_linen_decays_kernels_and_embeddings_only(freeze):
    variables = LinenBlock().init(jax.random.key(0), jnp.ones((2, 4)))
    params = freeze(variables["params"])
    mask = decay_mask(params)
    assert decayed(mask) == {"fc.kernel", "wte.embedding"}
    assert jax.tree.structure(mask) == jax.tree.structure(params)


@pytest.mark.promotion_of_others
def test_nnx_is_read_by_type_from_the_module_and_by_name_from_its_state():
    model = NNXBlock(nnx.Rngs(0))
    expected = {"fc.kernel", "layers.0.kernel"}
    assert decayed(decay_mask(model)) == expected
    assert decayed(decay_mask(nnx.state(model, nnx.Param))) == expected
    assert decayed(decay_mask(nnx.as_pure(nnx.state(model, nnx.Param)))) == expected
    # By type only: the patterns of Transformers 5 do not match a norm named `post`.
    by_type = decay_mask(model, rule="transformers_v5")
    assert decayed(by_type) == {*expected, "batch.scale"}


@pytest.mark.promotion_of_others
def test_a_mask_built_from_the_module_serves_an_nnx_optimizer():
    # Paths end in `.value` at init, but not in an update.
    model = NNXBlock(nnx.Rngs(0))
    before = jax.tree.map(jnp.copy, nnx.as_pure(nnx.state(model, nnx.Param)))
    transformation = adamw_tf(0.1, weight_decay=1.0, decay_mask=decay_mask(model))
    optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)
    optimizer.update(model, jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param)))
    after = nnx.as_pure(nnx.state(model, nnx.Param))
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before, after)
    assert decayed(changed) == {"fc.kernel", "layers.0.kernel"}


def test_equinox_modules_are_read_by_type():
    model = EquinoxBlock(jax.random.key(0))
    assert decayed(decay_mask(eqx.filter(model, eqx.is_array))) == {"fc.weight"}
    assert decayed(decay_mask(eqx.nn.LayerNorm(4))) == set()


@pytest.mark.parametrize(
    "build",
    [EquinoxBlock, lambda key: eqx.nn.MLP(4, 4, 4, 1, key=key)],
    ids=["block", "MLP"],
)
def test_a_mask_of_an_equinox_module_serves_an_optimizer(build):
    # A module of bools is callable, and contains functions that are not parameters.
    model = build(jax.random.key(0))
    params = eqx.filter(model, eqx.is_inexact_array)
    for mask in [decay_mask(model), decay_mask(params)]:
        optimizer = adamw_tf(0.1, weight_decay=1.0, decay_mask=mask)
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        changed = jax.tree.map(lambda u: bool(jnp.any(u != 0)), updates)
        assert decayed(changed) == decayed(mask) != set()


class Pair(NamedTuple):
    value: Any
    raw_value: Any


def test_leaves_called_value_are_leaves_like_others():
    attention = {"query": {"kernel": 1}, "value": {"kernel": 2}}
    assert _tree.leaf_names(attention) == ["query.kernel", "value.kernel"]
    params = Pair(jnp.ones((2, 2)), jnp.ones((2, 2)))
    optimizer = adamw_tf(0.1, weight_decay=1.0, decay_mask=Pair(True, False))
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    assert np.all(np.asarray(updates.value) < 0)
    assert not np.any(updates.raw_value)


@pytest.mark.promotion_of_others
def test_what_a_norm_wraps_is_decayed():
    class PreNorm(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.LayerNorm(4, rngs=rngs)
            self.fn = nnx.Linear(4, 4, rngs=rngs)

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.block = PreNorm(rngs)

    model = Model(nnx.Rngs(0))
    assert decayed(decay_mask(model)) == {"block.fn.kernel"}
    named = {"PreNorm_0": {"Dense_0": {"kernel": np.ones((2, 2))}}}
    assert decayed(decay_mask(named)) == {"PreNorm_0.Dense_0.kernel"}


@pytest.mark.promotion_of_others
def test_a_pattern_for_another_group_is_no_mistake():
    params = {"a": {"bias": jnp.ones(2)}, "b": {"kernel": jnp.ones((2, 2))}}
    rule = functools.partial(decay_mask, rule=["bias"])
    optimizer = optax.multi_transform(
        {"x": adamw_tf(0.1, decay_mask=rule), "y": adamw_tf(0.1, decay_mask=rule)},
        {"a": "x", "b": "y"},
    )
    assert optimizer.init(params)


def test_scanned_stacks_are_judged_by_name_and_not_by_rank():
    params = {"h": {"ln_1": {"scale": jnp.ones((3, 4)), "bias": jnp.ones((3, 4))}}}
    assert decayed(decay_mask(params)) == set()


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("default", {"wte", "h.norm1x.weight"}),
        ("transformers_v5", {"wte", "h.norm1.weight", "ln_f.weight"}
         | {"h.norm1x.weight"}),
        ("transformers_v4", {"wte", "h.layer_norm.weight", "h.norm1.weight"}
         | {"ln_f.weight", "h.LayerNorm.weight", "h.norm1x.weight", "h.norm.weight"}),
        ("examples", {"wte", "h.layer_norm.weight", "h.norm1.weight", "ln_f.weight"}
         | {"h.norm1x.weight", "h.norm.weight"}),
        (["wte", r"\.weight$"], {"rel_bias.w", "h.fc.bias"}),
        (lambda name, leaf: leaf.ndim > 1, {"wte", "h.norm1x.weight"}),
    ],
    ids=["default", "v5", "v4", "examples", "patterns", "callable"],
)  # fmt: skip
def test_rules_differ_where_they_should(rule, expected):
    names = ["rel_bias.w", "h.fc.bias", "h.layer_norm.weight", "h.LayerNorm.weight"]
    names += ["h.norm.weight", "h.norm1.weight", "ln_f.weight"]
    params = {name: np.zeros(3) for name in names}
    params |= {"wte": np.zeros((3, 3)), "h.norm1x.weight": np.zeros((3, 3))}
    assert decayed(decay_mask(params, rule=rule)) == expected


def test_by_default_both_optimizers_leave_out_biases_and_norms():
    params = {"fc": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    params["ln"] = {"scale": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    optimizer = adamw_tf(0.1, weight_decay=1.0)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(updates["fc"]["kernel"], -0.1, rtol=1e-6)
    assert not np.any(updates["fc"]["bias"])
    assert not np.any(updates["ln"]["scale"])


@pytest.mark.promotion_of_others
def test_a_mask_for_the_whole_tree_serves_a_part_of_it():
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2))}
    mask = {"a": True, "b": False}
    optimizer = optax.multi_transform(
        {"x": adamw_tf(0.1, weight_decay=1.0, decay_mask=mask), "y": optax.sgd(0.1)},
        {"a": "x", "b": "y"},
    )
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(updates["a"], -0.1, rtol=1e-6)


@pytest.mark.parametrize(
    ("mask", "error", "match"),
    [
        ({"a": True}, ValueError, "`decay_mask`.*1 parameters are not in it.*'b'"),
        ({"a": True, "b": True, "c": True}, ValueError, "1 of its leaves.*'c'"),
        ({"a": True, "b": 1.0}, TypeError, "`decay_mask` must contain a bool.*1.0"),
    ],
    ids=["missing", "odd", "kind"],
)
def test_refuses_a_mask_of_the_wrong_structure(mask, error, match):
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    with pytest.raises(error, match=match):
        adamw_tf(1e-3, weight_decay=0.1, decay_mask=mask).init(params)


def test_refuses_what_matches_nothing():
    params = {"fc": {"kernel": jnp.ones((2, 2))}}
    with pytest.raises(ValueError, match="`rule` must match.*'layernrom'.*'fc.kernel'"):
        decay_mask(params, rule=["layernrom"])
    with pytest.raises(ValueError, match="`layer_norms` must match.*'post'"):
        decay_mask(params, layer_norms=["post"])
    with pytest.raises(ValueError, match="`rule` must be one of.*'transformers_v5'"):
        decay_mask(params, rule="transformer_v5")
    with pytest.raises(ValueError, match="`rule` must contain regular expressions"):
        decay_mask(params, rule=["("])
    with pytest.raises(TypeError, match="`rule` must be a list of strings, got None"):
        decay_mask(params, rule=None)
    with pytest.raises(TypeError, match="`layer_norms` must be a list of strings"):
        decay_mask(params, layer_norms="post")


def test_may_be_handed_over_as_a_callable():
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2))}
    rule = functools.partial(decay_mask, rule=["b"])
    optimizer = adamw_tf(0.1, weight_decay=1.0, decay_mask=rule)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    assert np.all(np.asarray(updates["a"]) < 0)
    assert not np.any(updates["b"])
