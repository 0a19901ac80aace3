"""Trees without names, and names of biases and norms in each library."""

import functools
import json
import pathlib
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
import optax
import pytest
from flax import nnx

from jaxopt_tf import optimizers
from jaxopt_tf._pytrees import _tree
from jaxopt_tf.optimizers import adamw_tf, decay_mask
from jaxopt_tf.recipes import Recipe, build_optimizer, doctor, explain

pytestmark = pytest.mark.usefixtures("compiled_quickly")

# Written by record_library_names.py, with the versions in the file.
RECORDED = pathlib.Path(__file__).parents[1] / "files" / "library_names.json"
LIBRARIES = json.loads(RECORDED.read_text())

DECAYING = {
    "adafactor_tf": functools.partial(optimizers.adafactor_tf, relative_step=False)
} | {
    name: getattr(optimizers, name)
    for name in (
        "adamw_tf",
        "adamw_hf_v4",
        "adafactor_trainer",
        "adagrad_tf",
        "lion_tf",
        "rmsprop_tf",
        "sgd_tf",
    )
}
PAIR = (np.ones((2, 2), np.float32), np.ones(2, np.float32))


class Layer(NamedTuple):
    kernel: Any
    bias: Any


def decayed(mask):
    return {name for name, is_decayed in _tree.named_leaves(mask) if is_decayed}


def zeros(shape):
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize("name", DECAYING)
@pytest.mark.parametrize(
    "params",
    [list(PAIR), PAIR, PAIR[0], [PAIR, PAIR], {0: PAIR[0], 1: PAIR[1]}],
    ids=["list", "tuple", "array", "stax", "ints"],
)
def test_refuses_to_decay_leaves_without_names(name, params):
    optimizer = DECAYING[name](0.1, weight_decay=0.5)
    message = r"`params` must have names .* at weight_decay=0.5, the first being"
    with pytest.raises(ValueError, match=message):
        optimizer.init(params)
    state = DECAYING[name](0.1).init(params)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(optimizer.update, params, state, params)
    # Without decay, or with a given mask, names are not needed.
    mask = jax.tree.map(lambda p: p.ndim > 1, params)
    for fine in (
        DECAYING[name](0.1),
        DECAYING[name](0.1, weight_decay=0.5, decay_mask=mask),
        DECAYING[name](
            0.1,
            weight_decay=0.5,
            decay_mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ),
    ):
        jax.eval_shape(fine.update, params, fine.init(params), params)


@pytest.mark.parametrize("params", [PAIR[0], list(PAIR), nnx.Param(PAIR[0])])
def test_decay_mask_refuses_leaves_without_names(params):
    for rule in ("default", "transformers_v5", "transformers_v4", "examples"):
        with pytest.raises(ValueError, match="`params` must have names"):
            decay_mask(params, rule=rule)
    assert any(jax.tree.leaves(decay_mask(params, rule=lambda name, leaf: True)))
    assert jax.tree.leaves(decay_mask([*PAIR], rule=["^1$"])) == [True, False]


def test_one_leaf_without_a_name_is_enough():
    params = [{"kernel": PAIR[0]}, PAIR[1]]
    with pytest.raises(ValueError, match=r"1 of 2 leaves .*`params\[1\]` of shape"):
        adamw_tf(0.1, weight_decay=0.1).init(params)
    # Integers are not decayed.
    adamw_tf(0.1, weight_decay=0.1).init([{"kernel": PAIR[0]}, np.arange(3)])


@pytest.mark.parametrize(
    "params",
    [
        {"layers": [*PAIR]},
        ({"kernel": PAIR[0], "bias": PAIR[1]}, {"kernel": PAIR[0]}),
        [{"kernel": PAIR[0]}, {"kernel": PAIR[0]}],
        Layer(*PAIR),
        [],
        None,
    ],
    ids=["dict of lists", "tuple of dicts", "list of dicts", "fields", "none", "None"],
)
def test_a_string_in_the_path_is_a_name(params):
    decay_mask(params)
    if params is not None:
        adamw_tf(0.1, weight_decay=0.1).init(params)


@pytest.mark.promotion_of_others
def test_parts_of_a_tree_without_names():
    params = [*PAIR]
    for wrapped in (
        optax.masked(adamw_tf(0.1, weight_decay=0.1), [True, False]),
        optax.multi_transform(
            {"a": adamw_tf(0.1, weight_decay=0.1), "b": optax.sgd(0.1)}, ["a", "b"]
        ),
        optax.flatten(adamw_tf(0.1, weight_decay=0.1)),
    ):
        with pytest.raises(ValueError, match="`params` must have names"):
            wrapped.init(params)
    optax.masked(adamw_tf(0.1), [True, False]).init(params)


@pytest.mark.promotion_of_others
def test_inject_hyperparams_with_its_default_decay():
    params = [*PAIR]
    optimizer = optax.inject_hyperparams(adamw_tf)(0.1)
    state = optimizer.init(params)
    jax.jit(optimizer.update)(params, state, params)
    optimizer.update(params, state, params)
    with pytest.raises(
        ValueError, match="`params` must have names .* at weight_decay=0.1"
    ):
        optax.inject_hyperparams(adamw_tf)(0.1, weight_decay=0.1).init(params)


def test_a_recipe_refuses_to_decay_leaves_without_names():
    params, recipe = [*PAIR], Recipe(max_steps=2, weight_decay=0.1)
    for call in (build_optimizer(recipe).init, lambda params: explain(recipe, params)):
        with pytest.raises(ValueError, match="`params` must have names"):
            call(params)
    plain = Recipe(max_steps=2, weight_decay=0.0)
    build_optimizer(plain).init(params)
    assert explain(plain, params).num_decayed == 0
    # An optimizer with a given mask can be inspected.
    own = adamw_tf(0.1, weight_decay=0.1, decay_mask=[True, False])
    doctor(recipe, own, params)


def test_names_of_keras_for_its_list():
    variables = LIBRARIES["keras"]["trainable"]
    paths, params = [v[0] for v in variables], [zeros(v[1]) for v in variables]
    mask = decay_mask(params, names=paths)
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    weights = ("kernel", "embeddings", "alpha")
    assert mask == [path.endswith(weights) for path in paths]
    assert 0 < sum(mask) < len(mask)
    # The same names in a dict, and those of variables that are not trained.
    assert decayed(decay_mask(dict(zip(paths, params, strict=True)))) == {
        path for path in paths if path.endswith(weights)
    }
    others = dict(LIBRARIES["keras"]["non_trainable"])
    moving = {k: zeros(v) for k, v in others.items() if "moving" in k}
    assert len(moving) == 6
    assert decayed(decay_mask(moving)) == set()
    adamw_tf(0.1, weight_decay=0.1, decay_mask=mask).init(params)


def test_haiku():
    params = jax.tree.map(
        zeros, LIBRARIES["haiku"], is_leaf=lambda x: isinstance(x, list)
    )
    names = _tree.leaf_names(params)
    weights = {n for n in names if n.rpartition(".")[2] in ("w", "w_i", "w_h")}
    assert decayed(decay_mask(params)) == weights | {"embed.embeddings"}
    assert "post.offset" in names
    assert "mlp/~/linear_0.b" in names


class NamedArray(NamedTuple):
    data_array: Any


def labelled(label, value):
    return ParameterValue(NamedArray(value), label)


class ParameterValue:
    """Imitates `penzai.core.variables.ParameterValue`: its label is not a child."""

    def __init__(self, value, label):
        self.value, self.label = value, label


ParameterValue.__module__ = "penzai.core.variables"
jax.tree_util.register_pytree_with_keys(
    ParameterValue,
    lambda p: (((jax.tree_util.GetAttrKey("value"), p.value),), p.label),
    lambda label, children: ParameterValue(children[0], label),
)


def test_penzai_by_its_labels():
    params = tuple(labelled(name, zeros(shape)) for name, shape in LIBRARIES["penzai"])
    mask = jax.tree.leaves(decay_mask(params))
    names = [name for name, _ in LIBRARIES["penzai"]]
    undecayed = ("bias", "scale.weights")
    assert mask == [not name.endswith(undecayed) for name in names]
    adamw_tf(0.1, weight_decay=0.1).init(params)
    with pytest.raises(ValueError, match="`params` must have names"):
        decay_mask((NamedArray(zeros(3)),))


@pytest.mark.promotion_of_others
def test_equinox():
    class Model(eqx.Module):
        layers: list
        table: eqx.nn.Embedding
        cell: eqx.nn.GRUCell
        attention: eqx.nn.MultiheadAttention

        def __init__(self, key):
            self.layers = [
                eqx.nn.Linear(4, 4, key=key),
                eqx.nn.LayerNorm(4),
                eqx.nn.RMSNorm(4),
                eqx.nn.GroupNorm(2, 4),
                eqx.nn.Conv1d(4, 4, 3, key=key),
                eqx.nn.Sequential([eqx.nn.LayerNorm(4)]),
            ]
            self.table = eqx.nn.Embedding(3, 4, key=key)
            self.cell = eqx.nn.GRUCell(4, 4, key=key)
            self.attention = eqx.nn.MultiheadAttention(2, 4, key=key)

    model = eqx.filter(Model(jax.random.key(0)), eqx.is_inexact_array)
    names = ("query", "key", "value", "output")
    assert decayed(decay_mask(model)) == {
        "layers.0.weight",
        "layers.4.weight",
        "table.weight",
        "cell.weight_ih",
        "cell.weight_hh",
        *(f"attention.{name}_proj.weight" for name in names),
    }


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        # Not a bias: it has no sibling `w`, or as many axes as `w`.
        ({"lora": {"a": (4, 2), "b": (2, 4)}}, {"lora.a", "lora.b"}),
        ({"bilinear": {"w": (4, 4), "b": (4, 4)}}, {"bilinear.w", "bilinear.b"}),
        ({"x": {"b": (4,)}}, {"x.b"}),
        # Stacked layers have one more axis each.
        ({"h": {"w": (3, 4, 4), "b": (3, 4)}}, {"h.w"}),
        ({"w": (4, 4), "b": (4,)}, {"w"}),
        # Parameters of a layer scale and of a temperature.
        ({"layer_scale": {"gamma": (4,)}}, {"layer_scale.gamma"}),
        ({"softmax": {"beta": ()}}, {"softmax.beta"}),
        ({"post": {"gamma": (4,), "beta": (4,)}}, set()),
        ({"post": {"offset": (4,)}}, {"post.offset"}),
        # flax.traverse_util.flatten_dict(sep="/")
        ({"h/ln_1/scale": (4,), "h/fc/kernel": (4, 4)}, {"h/fc/kernel"}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_names_that_mean_different_things(params, expected):
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    params = jax.tree.map(zeros, params, is_leaf=is_shape)
    assert decayed(decay_mask(params)) == expected
    # Rules of Trainer do not match these names.
    for rule in ("transformers_v5", "transformers_v4", "examples"):
        assert decayed(decay_mask(params, rule=rule)) == set(_tree.leaf_names(params))


@pytest.mark.promotion_of_others
def test_a_bias_is_known_where_its_weight_is_in_another_part():
    params = {"linear": {"w": zeros((4, 4)), "b": zeros(4)}}
    part = {"linear": {"w": optax.MaskedNode(), "b": params["linear"]["b"]}}
    assert jax.tree.leaves(decay_mask(part)) == [False]


@pytest.mark.parametrize(
    ("names", "error", "match"),
    [
        (["kernel"], ValueError, "`names` must contain one name for each of the 2"),
        ("kernel", TypeError, "`names` must be a list of strings, got 'kernel'"),
        ([1, 2], TypeError, "`names` must be a list of strings"),
    ],
)
def test_refuses_names_that_do_not_fit(names, error, match):
    with pytest.raises(error, match=match):
        decay_mask([*PAIR], names=names)


def test_the_message_shows_what_can_be_typed():
    with pytest.raises(ValueError, match="`params` must have names") as caught:
        adamw_tf(0.1, weight_decay=0.1).init([*PAIR])
    code = "lambda params: jax.tree.map(lambda p: p.ndim > 1, params)"
    assert f"`{code}`" in str(caught.value)
    assert eval(code, {"jax": jax})([*PAIR]) == [True, False]
