"""float64 leaves against torch's float64, and float32 leaves beside them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_tf.optimizers import (
    adamw_tf,
    clip,
    get_learning_rate,
    set_learning_rate,
    sgd_tf,
)
from jaxopt_tf.optimizers._adamw import bias_correction
from tests import references
from tests.references import adamw
from tests.references import float64 as reference


@pytest.fixture(autouse=True)
def _doubles():
    with jax.enable_x64(True):
        yield


@references.needs_transformers
@pytest.mark.parametrize(
    "name",
    [
        "adamw_tf, cosine of get_scheduler",
        "clip and adamw_tf",
        "adamw_hf_v4",
        "adafactor_tf",
        "adafactor_trainer",
        "sgd_tf",
        "adagrad_tf",
        "rmsprop_tf",
        "lion_tf, against its formula",
    ],
)
def test_follows_torch_in_float64(name):
    work = reference.random_work(num_rows=12)
    case = reference.CASES[name]
    ours, state = reference.run(case.ours(work.rates), work)
    assert reference.distance(ours, case.torch(*work), work.params) <= reference.LIMIT
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(state)}
    assert dtypes == {jnp.dtype(jnp.float64), jnp.dtype(jnp.int32)}


@references.needs_torch
@pytest.mark.parametrize("max_norm", [1e-6, 1.0, 1e3], ids="max_norm={:g}".format)
def test_clip_matches_torch_in_float64(rng, max_norm):
    # Leaves below and above the size up to which leaves are summed together.
    shapes = {"kernel": (90, 60), "bias": (20,), "scalar": ()}
    grads = {n: 1e-3 * rng.normal(size=shape) for n, shape in shapes.items()}
    state = clip(max_norm).init(grads)
    ours, new = jax.jit(clip(max_norm).update)(grads, state)
    theirs, norm = adamw.torch_clip(grads, max_norm, dtype="float64")
    np.testing.assert_allclose(new.grad_norm, norm, rtol=1e-14)
    for name in grads:
        assert ours[name].dtype == jnp.float64
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-14)


def test_clip_sums_the_norm_of_a_mixed_tree_in_float64(rng):
    grads = {
        "wide": jnp.asarray(rng.normal(size=(90, 60))),
        "narrow": jnp.asarray(rng.normal(size=(90, 60)), jnp.float32),
        "half": jnp.asarray(rng.normal(size=7), jnp.bfloat16),
    }
    state = clip(1.0).init(grads)
    clipped, new = jax.jit(clip(1.0).update)(grads, state)
    exact = np.sqrt(sum(np.sum(np.float64(g) ** 2) for g in grads.values()))
    np.testing.assert_allclose(new.grad_norm, exact, rtol=1e-15)
    factor = 1.0 / (exact + 1e-6)
    np.testing.assert_allclose(clipped["wide"], factor * grads["wide"], rtol=1e-15)
    for name in ("narrow", "half"):
        expected = np.float32(factor) * np.asarray(grads[name], np.float32)
        expected = expected.astype(grads[name].dtype)
        np.testing.assert_array_equal(clipped[name], expected)


def test_clip_keeps_the_dtypes_of_its_state_for_wider_gradients():
    params, grads = {"w": jnp.ones(3, jnp.float32)}, {"w": jnp.ones(3)}
    clipped, state = clip(1.0).update(grads, clip(1.0).init(params), params)
    assert (state.grad_norm.dtype, clipped["w"].dtype) == (jnp.float32, jnp.float64)
    np.testing.assert_allclose(clipped["w"], 1 / (np.sqrt(3.0) + 1e-6), rtol=1e-15)


def test_schedules_are_evaluated_in_float64_for_float64_leaves_only():
    def schedule(step):
        seen.append(step.dtype)
        is_wide = step.dtype == jnp.int64
        return jnp.asarray(0.1 if is_wide else 0.2, jnp.float64)

    narrow, wide = {"a": jnp.ones(3, jnp.float32)}, {"b": jnp.ones(3)}
    for params, dtypes in [
        (narrow, {"int32"}),
        (wide, {"int64"}),
        (narrow | wide, {"int32", "int64"}),
    ]:
        seen = []
        tx = sgd_tf(schedule)
        updates, state = tx.update(params, tx.init(params), params)
        assert {str(dtype) for dtype in seen} == dtypes
        assert state.step.dtype == jnp.int32
        if "a" in params:
            np.testing.assert_allclose(updates["a"], np.float32(-0.2), rtol=1e-6)
        if "b" in params:
            np.testing.assert_allclose(updates["b"], -0.1, rtol=1e-15)
            assert get_learning_rate(state) == 0.1


def test_a_constant_rate_keeps_its_digits():
    params = {"narrow": jnp.ones(3, jnp.float32), "wide": jnp.ones(3)}
    tx = sgd_tf(0.1)
    state = tx.init(params)
    assert get_learning_rate(state) == 0.1
    state = set_learning_rate(state, 0.3)
    assert get_learning_rate(state) == 0.3
    updates, state = tx.update(params, state, params)
    assert get_learning_rate(state) == 0.3
    np.testing.assert_allclose(updates["wide"], -0.3, rtol=1e-15)
    assert get_learning_rate(tx.init({"narrow": params["narrow"]})) == np.float32(0.1)


@pytest.mark.promotion_of_others
def test_arrays_are_taken_as_float64(rng):
    # `optax.inject_hyperparams` converts values to the dtype of the parameters.
    params = {"w": jnp.asarray(rng.normal(size=(4, 3)))}
    tx = optax.inject_hyperparams(adamw_tf)(0.1, weight_decay=0.3)
    plain = adamw_tf(0.1, weight_decay=0.3)
    injected, _ = jax.jit(tx.update)(params, tx.init(params), params)
    updates, _ = jax.jit(plain.update)(params, plain.init(params), params)
    np.testing.assert_allclose(injected["w"], updates["w"], rtol=1e-13)


@pytest.mark.parametrize(
    ("moment_dtype", "wide", "narrow"),
    [
        ("float32", "float64", "float32"),
        (jnp.float32, "float64", "float32"),
        (None, "float64", "bfloat16"),
        ("bfloat16", "bfloat16", "bfloat16"),
    ],
)
def test_moment_dtype(moment_dtype, wide, narrow):
    params = {"narrow": jnp.ones(3, jnp.bfloat16), "wide": jnp.ones(3)}
    tx = adamw_tf(1e-3, moment_dtype=moment_dtype)
    state = jax.eval_shape(tx.init, params)
    _, state = jax.eval_shape(tx.update, params, state, params)
    for tree in (state.mu, state.nu):
        assert (tree["wide"].dtype, tree["narrow"].dtype) == (wide, narrow)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999, 0.9999])
def test_bias_correction_is_that_of_doubles(beta):
    steps = np.r_[1:100, 1_000, 1_000_000, 2**31 - 1]
    correction = functools.partial(bias_correction, dtype=jnp.float64)
    ours = jax.jit(jax.vmap(functools.partial(correction, beta)))(np.int32(steps))
    np.testing.assert_allclose(ours, [1 - beta ** int(t) for t in steps], rtol=1e-12)
