"""`TorchLayout` against the views of torch, written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_tf._pytrees._torch_layout import resolve_layouts
from jaxopt_tf.optimizers import TorchLayout
from tests.references.adafactor import LEAVES

every_leaf = pytest.mark.parametrize("name", LEAVES)
# Adafactor views arrays of JAX, `interop` those of files.
of_jax_and_numpy = pytest.mark.parametrize("as_array", [jnp.asarray, np.asarray])


def _leaf(*shape):
    return np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)


@of_jax_and_numpy
@every_leaf
def test_shows_what_torch_holds(name, as_array):
    leaf = LEAVES[name]
    layout = resolve_layouts(None, {name: _leaf(*leaf.shape)})[name]
    layout = leaf.layout or layout
    theirs = np.asarray(leaf.view(_leaf(*leaf.shape)))
    array = as_array(_leaf(*leaf.shape))
    viewed = layout.to_torch(array)
    assert isinstance(viewed, np.ndarray) == isinstance(array, np.ndarray)
    np.testing.assert_array_equal(viewed, theirs)
    assert layout.torch_shape(leaf.shape) == theirs.shape


@of_jax_and_numpy
@every_leaf
def test_comes_back_from_torch(name, as_array):
    layout = LEAVES[name].layout or TorchLayout()
    array = as_array(_leaf(*LEAVES[name].shape))
    back = layout.from_torch(layout.to_torch(array), array.shape)
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize(
    ("layout", "shape", "torch_shape"),
    [
        (TorchLayout.conv(3), (1, 2, 3, 4, 5), (5, 4, 1, 2, 3)),
        (TorchLayout.conv(2).stacked(), (9, 1, 2, 3, 4), (9, 4, 3, 1, 2)),
        (TorchLayout.dense().stacked(1), (3, 9, 4), (9, 4, 3)),
        (TorchLayout.dense().stacked(0, 1), (8, 9, 3, 4), (8, 9, 4, 3)),
        (TorchLayout(axes=((), (0,))), (4,), (1, 4)),
        (TorchLayout.dense(), (0, 3), (3, 0)),
        (TorchLayout(), (), ()),
    ],
)
def test_knows_every_rank_and_stack(layout, shape, torch_shape):
    assert layout.torch_shape(shape) == torch_shape
    for array in (_leaf(*shape), jnp.asarray(_leaf(*shape))):
        viewed = layout.to_torch(array)
        assert viewed.shape == torch_shape
        np.testing.assert_array_equal(layout.from_torch(viewed, shape), array)


def test_is_hashable_and_compared_by_value():
    assert TorchLayout.dense() == TorchLayout(axes=((1,), (0,)))
    assert len({TorchLayout.dense(), TorchLayout.dense_general(1, 1)}) == 1


def test_takes_a_rank_4_kernel_for_a_convolution_and_nothing_else():
    params = {
        "conv": {"kernel": _leaf(3, 3, 2, 4), "bias": _leaf(4)},
        "other": _leaf(3, 3, 2, 4),
        "dense": {"kernel": _leaf(3, 4)},
        "conv1d": {"kernel": _leaf(3, 2, 4)},
    }
    layouts = resolve_layouts(None, params)
    assert layouts["conv"]["kernel"] == TorchLayout.conv(2)
    del layouts["conv"]["kernel"]
    assert set(jax.tree.leaves(layouts)) == {TorchLayout()}


def test_a_declared_layout_goes_before_the_convolution():
    params = {"conv": {"kernel": _leaf(3, 3, 2, 4)}}
    layouts = resolve_layouts({r"conv\.kernel": TorchLayout()}, params)
    assert layouts["conv"]["kernel"] == TorchLayout()


def test_finds_leaves_by_their_whole_name():
    params = {"h": [{"kernel": _leaf(3, 4)}, {"kernel": _leaf(3, 4)}], "wte": None}
    layouts = resolve_layouts({r"h\.\d+\.kernel": TorchLayout.dense()}, params)
    assert jax.tree.leaves(layouts) == [TorchLayout.dense()] * 2
    with pytest.raises(ValueError, match=r"nearest leaf is 'h\.\d\.kernel'"):
        resolve_layouts({"kernel": TorchLayout.dense()}, params)


def test_a_pattern_for_a_masked_leaf_is_no_mistake():
    params = {"a": _leaf(3, 4), "b": optax.MaskedNode()}
    layouts = resolve_layouts({"b": TorchLayout.dense()}, params)
    assert layouts["a"] == TorchLayout()


def test_two_patterns_may_agree():
    params = {"a": _leaf(3, 4)}
    layouts = {"a": TorchLayout.dense(), ".": TorchLayout.dense()}
    assert resolve_layouts(layouts, params)["a"] == TorchLayout.dense()


@pytest.mark.parametrize(
    ("layouts", "error", "message"),
    [
        ({"b": TorchLayout()}, ValueError, "`layouts` must match .* 'b', .* 'a'"),
        ({"(": TorchLayout()}, ValueError, "`layouts` must have regular .* '\\('"),
        (
            {"a": TorchLayout.conv(2)},
            ValueError,
            r"`layouts` must fit .* 'a' has the shape \[3, 4\] .* requires 4 axes",
        ),
        (
            {"a": TorchLayout().stacked(2)},
            ValueError,
            r"`layouts` must fit .* 'a' has the shape \[3, 4\] .* stacked axes \[2\]",
        ),
        (
            {"a": TorchLayout(), ".": TorchLayout.dense()},
            ValueError,
            "`layouts` must assign to 'a' one layout",
        ),
        ({"a": "dense"}, TypeError, "`layouts` must map strings to TorchLayout"),
        ([TorchLayout()], TypeError, "`layouts` must be a mapping"),
    ],
)
def test_refuses_layouts_that_do_not_fit(layouts, error, message):
    with pytest.raises(error, match=message):
        resolve_layouts(layouts, {"a": _leaf(3, 4)})


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"axes": ((0,), (0,))}, ValueError, "`axes` must contain each axis"),
        ({"axes": ((0,), (2,))}, ValueError, "`axes` must contain each axis"),
        ({"axes": (1, 0)}, TypeError, "`axes` must be a tuple of tuples"),
        ({"axes": ((0.5,),)}, TypeError, "`axes` must hold whole numbers"),
        ({"stacked_axes": (0, 0)}, ValueError, "`stacked_axes` must be different"),
        ({"stacked_axes": (-1,)}, ValueError, "`stacked_axes` must be different"),
        ({"stacked_axes": 0}, TypeError, "`stacked_axes` must be a tuple"),
    ],
)
def test_refuses_axes_that_make_no_sense(fields, error, message):
    with pytest.raises(error, match=message):
        TorchLayout(**fields)
