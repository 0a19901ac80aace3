"""Shardings of parameters by rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxopt_tf.sharding import make_mesh, param_shardings, unmet_rules


def leaf(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh("data=2,fsdp=4")


def specs(params, mesh, rules):
    return {k: v.spec for k, v in param_shardings(params, mesh, rules).items()}


def test_shards_leaves_by_name(mesh):
    params = {"up.kernel": leaf(8, 16), "up.bias": leaf(16)}
    rules = {r".*kernel": P("fsdp", "data"), r".*bias": P()}
    assert specs(params, mesh, rules) == {
        "up.kernel": P("fsdp", "data"),
        "up.bias": P(),
    }


def test_an_axis_that_does_not_divide_goes_to_the_largest_that_it_divides(mesh):
    params = {"odd": leaf(50257, 768), "three": leaf(3, 8, 16), "none": leaf(5)}
    rules = {".*": P("fsdp")}
    assert specs(params, mesh, rules) == {
        "odd": P(None, "fsdp"),
        "three": P(None, None, "fsdp"),
        "none": P(),
    }
    assert unmet_rules(params, mesh, rules) == [
        ("none", "fsdp", 0, None),
        ("odd", "fsdp", 0, 1),
        ("three", "fsdp", 0, 2),
    ]


def test_several_axes_may_meet_on_one(mesh):
    params = {"kernel": leaf(64, 3), "scalar": leaf(), "empty": leaf(0, 4)}
    rules = {".*": P("fsdp", "data")}
    assert specs(params, mesh, rules) == {
        "kernel": P(("fsdp", "data")),
        "scalar": P(),
        # Of no elements nothing can be cut; the other axis can, by one of the two.
        "empty": P(None, "fsdp"),
    }


def test_an_axis_is_cut_into_as_many_parts_as_there_can_be(mesh):
    params = {"four": leaf(4), "both": leaf(4, 6), "wanted": leaf(8, 8)}
    rules = {"four": P(("data", "fsdp")), ".*t.*": P("data", "fsdp")}
    assert specs(params, mesh, rules) == {
        "four": P("fsdp"),
        # Neither stays where it was meant to, so that both can cut.
        "both": P("fsdp", "data"),
        "wanted": P("data", "fsdp"),
    }
    assert unmet_rules(params, mesh, rules) == [
        ("both", "data", 0, 1),
        ("both", "fsdp", 1, 0),
        ("four", "data", 0, None),
    ]


def test_arrays_have_the_returned_shardings(mesh, rng):
    params = {"kernel": rng.standard_normal((8, 6)).astype(np.float32)}
    shardings = param_shardings(params, mesh, {"kernel": P("fsdp", "data")})
    placed = jax.device_put(params, shardings)
    assert placed["kernel"].addressable_shards[0].data.shape == (2, 3)
    np.testing.assert_array_equal(placed["kernel"], params["kernel"])


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        ({"a": P()}, ValueError, "`rules` must cover every parameter, but 1 of 2.*'b'"),
        (
            {".*": P("fsdp"), "a": P()},
            ValueError,
            "`rules` must assign to 'a' one rule",
        ),
        ({".*": P("model")}, ValueError, r"`rules` must.*'model'.*\['data'"),
        ({".*": P(P.UNCONSTRAINED)}, ValueError, "`rules` must contain axes of"),
        ({".*": P("data", "data")}, ValueError, "`rules` must contain .* each once"),
        ({".*": P(), "c": P()}, ValueError, "`rules` must match .* 'c'"),
        (
            {".*": P(unreduced={"fsdp"})},
            ValueError,
            "`rules` must divide arrays by mesh axes",
        ),
        (None, TypeError, "`rules` must be a mapping .*, got None"),
        ({"a": "fsdp"}, TypeError, "`rules` must map strings to PartitionSpec"),
    ],
)
def test_refuses_rules_that_do_not_fit(mesh, rules, error, message):
    with pytest.raises(error, match=message):
        param_shardings({"a": leaf(8), "b": leaf(8)}, mesh, rules)


def test_refuses_numbers_for_arrays(mesh):
    with pytest.raises(TypeError, match="`params` must contain only arrays.*for 'w'"):
        param_shardings({"w": 1.0}, mesh, {".*": P()})


def test_empty_tree_has_no_shardings(mesh):
    assert param_shardings({}, mesh, {}) == {}
