"""`explain` against the behavior of the optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_tf.optimizers import TorchLayout
from jaxopt_tf.recipes import Recipe, build_optimizer, explain

pytestmark = pytest.mark.usefixtures("compiled_quickly")

PARAMS = {
    "h": {
        "attn": {"kernel": jnp.ones((3, 8, 4)), "bias": jnp.ones((3, 4))},
        "ln_1": {"scale": jnp.ones((3, 8))},
    },
    "head": {"kernel": jnp.ones((8, 5), jnp.bfloat16)},
    "table": jnp.arange(3),
}
STACKED = {r"h\..+": TorchLayout().stacked()}


def rows(*args, **options):
    return {leaf.path: leaf for leaf in explain(*args, **options).leaves}


def test_a_leaf_is_said_to_be_decayed_where_it_is():
    # So much that bfloat16 shows it.
    recipe = Recipe(max_steps=10, learning_rate=0.1, weight_decay=0.5)
    optimizer = build_optimizer(recipe)
    params = {name: x for name, x in PARAMS.items() if name != "table"}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates = jax.jit(
        lambda zeros: optimizer.update(zeros, optimizer.init(params), params)[0]
    )(zeros)
    said = rows(recipe, params)
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        leaf = said[".".join(key.key for key in path)]
        assert leaf.is_decayed == bool(np.any(update)), leaf


def test_reports_why_a_leaf_is_not_decayed():
    said = rows(Recipe(max_steps=10, weight_decay=0.1), PARAMS)
    assert said["h.attn.kernel"].why_not_decayed == ""
    assert said["h.attn.bias"].why_not_decayed == "'bias' in its name"
    assert said["h.ln_1.scale"].why_not_decayed == "'ln_1.scale' in its name"
    assert rows(Recipe(max_steps=10), PARAMS)["h.attn.kernel"].why_not_decayed == (
        "`weight_decay` is 0"
    )


def test_bytes_are_those_of_the_state():
    for optim in ("adamw_torch", "adafactor", "sgd"):
        recipe = Recipe(max_steps=10, optim=optim)
        optimizer = build_optimizer(recipe, layouts=STACKED)
        state = optimizer.init(PARAMS)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        assert explain(recipe, PARAMS, layouts=STACKED).state_bytes == size


def test_each_leaf_owns_its_moments():
    said = rows(Recipe(max_steps=10), PARAMS)
    assert said["h.attn.kernel"].state_bytes == 2 * 4 * 3 * 8 * 4
    assert said["head.kernel"].state_bytes == 2 * 4 * 8 * 5  # float32 moments
    assert "table" not in said


def test_a_name_that_ends_another_owns_its_own():
    params = {"kernel": jnp.ones(3), "a": {"kernel": jnp.ones(5)}}
    said = rows(Recipe(max_steps=10), params)
    assert said["kernel"].state_bytes == 2 * 4 * 3
    assert said["a.kernel"].state_bytes == 2 * 4 * 5


def test_a_parameter_called_as_a_moment_owns_no_moment_of_another():
    params = {"w": jnp.ones(3), "mu": {"w": jnp.ones(5)}}
    said = rows(Recipe(max_steps=10), params)
    assert said["w"].state_bytes == 2 * 4 * 3
    assert said["mu.w"].state_bytes == 2 * 4 * 5


def test_adafactor_says_what_it_factors():
    recipe = Recipe(max_steps=10, optim="adafactor")
    layout = {"head.kernel": TorchLayout.dense(), **STACKED}
    said = rows(recipe, PARAMS, layouts=layout)
    assert said["head.kernel"].factored_shape == (5, 8)
    assert said["h.attn.kernel"].factored_shape == (3, 8, 4)
    assert said["h.attn.bias"].factored_shape is None


def test_a_group_is_named_by_its_pattern():
    recipe = Recipe(max_steps=10, rate_groups=[{"pattern": "head", "factor": 0.1}])
    said = rows(recipe, PARAMS)
    assert said["head.kernel"].rate_group == "head"
    assert said["h.attn.kernel"].rate_group == "rest"
    assert said["h.attn.kernel"].state_bytes == 2 * 4 * 3 * 8 * 4


def test_is_a_table_with_totals_and_torch_names():
    shapes = jax.eval_shape(lambda: PARAMS)
    names = {"head.kernel": "lm_head.weight"}
    recipe = Recipe(max_steps=10, weight_decay=0.1)
    lines = str(explain(recipe, shapes, torch_names=names)).splitlines()
    assert lines[0].split() == (
        ["parameter", "in", "torch", "shape", "dtype", "decayed", "state,", "bytes"]
    )
    row = next(line for line in lines if line.startswith("head.kernel"))
    assert row.split() == [
        "head.kernel",
        "lm_head.weight",
        "8",
        "x",
        "5",
        "bfloat16",
        "yes",
        "320",
    ]
    assert lines[-1].startswith("172 parameters, 136 of them decayed; ")
