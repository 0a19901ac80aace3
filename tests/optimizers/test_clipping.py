"""`clip` against `torch.nn.utils.clip_grad_norm_`."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_tf.optimizers import clip
from tests import references
from tests.references import adamw as reference


@pytest.fixture
def grads(rng):
    shapes = {"kernel": (30, 20), "bias": (20,), "scalar": ()}
    return {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}


@references.needs_torch
@pytest.mark.parametrize("max_norm", [1e-6, 1.0, 1e3], ids="max_norm={:g}".format)
@pytest.mark.parametrize("scale", [1e-8, 1e-5, 1.0], ids="scale={:g}".format)
def test_matches_torch(grads, scale, max_norm):
    # At the small scales torch's 1e-6 matters.
    grads = {name: g * np.float32(scale) for name, g in grads.items()}
    transformation = clip(max_norm)
    ours, state = transformation.update(grads, transformation.init(grads))
    theirs, norm = reference.torch_clip(grads, max_norm)
    np.testing.assert_allclose(state.grad_norm, norm, rtol=1e-6)
    for name in grads:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6, err_msg=name)


@references.needs_torch
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("max_norm", [1.0, math.inf])
def test_inf_and_nan_spread_as_in_torch(grads, bad, max_norm):
    grads["bias"][3] = bad
    transformation = clip(max_norm)
    ours, state = transformation.update(grads, transformation.init(grads))
    theirs, norm = reference.torch_clip(grads, max_norm)
    np.testing.assert_array_equal(state.grad_norm, np.float32(norm))
    for name in grads:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_norm_of_bfloat16_gradients_is_summed_in_float32(rng):
    g = jnp.asarray(rng.normal(size=100_000)).astype(jnp.bfloat16)
    transformation = clip(1.0)
    clipped, state = jax.jit(transformation.update)(
        {"w": g}, transformation.init({"w": g})
    )
    exact = np.linalg.norm(np.asarray(g, np.float64))
    np.testing.assert_allclose(state.grad_norm, exact, rtol=1e-6)
    assert clipped["w"].dtype == jnp.bfloat16


def test_is_idempotent_but_for_the_1e_6(grads):
    transformation = clip(0.5)
    once, _ = transformation.update(grads, transformation.init(grads))
    twice, state = transformation.update(once, transformation.init(grads))
    np.testing.assert_allclose(state.grad_norm, 0.5, rtol=3e-6)
    for name in grads:
        exact = np.float64(once[name]) * (0.5 / (0.5 + 1e-6))
        np.testing.assert_allclose(twice[name], exact, rtol=5e-7)


def test_norm_is_read_out_of_a_chain(grads):
    optimizer = optax.chain(clip(1.0), optax.sgd(0.1))
    _, state = optimizer.update(grads, optimizer.init(grads))
    exact = math.sqrt(sum(np.sum(np.float64(g) ** 2) for g in grads.values()))
    np.testing.assert_allclose(optax.tree.get(state, "grad_norm"), exact, rtol=1e-6)


def test_integer_leaves_pass_by(grads):
    grads = {**grads, "table": np.arange(3, dtype=np.int32)}
    transformation = clip(1.0)
    clipped, state = transformation.update(grads, transformation.init(grads))
    np.testing.assert_array_equal(clipped["table"], [0, 1, 2])
    del grads["table"]
    assert state.grad_norm == transformation.update(grads, state)[1].grad_norm


@pytest.mark.parametrize("max_norm", [0.0, -1.0, math.nan])
def test_refuses_a_limit_that_is_not_positive(max_norm):
    with pytest.raises(ValueError, match="`max_norm` must be .*greater than 0"):
        clip(max_norm)


def test_refuses_complex_gradients():
    grads = {"w": jnp.ones(3, jnp.complex64)}
    with pytest.raises(TypeError, match="`updates` must be real.*complex64.*'w'"):
        clip(1.0).update(grads, clip(1.0).init(grads))


def test_refuses_gradients_that_it_would_round_to_zero():
    grads = {"w": jnp.ones(3), "v": jnp.ones(3, jnp.float8_e5m2)}
    with pytest.raises(
        TypeError, match="`updates` must have 16 bits.*float8_e5m2.*'v'"
    ):
        clip(1.0).update(grads, clip(1.0).init(grads))


def test_leaves_of_all_lengths_and_kinds_are_in_the_norm(rng):
    shapes = [(), (1,), (7,), (4096,), (4097,), (3, 5), (2, 0), (2, 3, 4)]
    grads = {str(shape): rng.normal(size=shape).astype(np.float32) for shape in shapes}
    grads["half"] = jnp.asarray(rng.normal(size=9)).astype(jnp.float16)
    squares = [np.sum(np.square(np.float64(g))) for g in grads.values()]
    _, state = clip(1.0).update(grads, clip(1.0).init(grads))
    np.testing.assert_allclose(state.grad_norm, math.sqrt(sum(squares)), rtol=2e-7)


def test_vectors_lie_on_devices_by_name_as_they_will():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    cut = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    with jax.set_mesh(mesh):
        grads = {
            "cut": jax.device_put(jnp.full(8, 3.0), cut),
            "whole": jax.device_put(jnp.full(8, 4.0), whole),
        }
        _, state = jax.jit(clip(1.0).update)(grads, clip(1.0).init(grads))
    np.testing.assert_allclose(state.grad_norm, math.sqrt(8 * 25), rtol=2e-7)
