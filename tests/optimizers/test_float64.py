"""float64 leaves against torch's float64, and what they leave unchanged beside them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_tf.optimizers import (
    _adamw,
    adafactor_tf,
    adafactor_trainer,
    adagrad_tf,
    adamw_hf_v4,
    adamw_tf,
    clip,
    get_learning_rate,
    lion_tf,
    rmsprop_tf,
    set_learning_rate,
    sgd_tf,
)
from jaxopt_tf.optimizers._exact import arithmetic
from tests import twins
from tests.twins import adafactor, adamw, by_element

NUM_STEPS = 1_000
LIMIT = 1e-12  # of the distance moved
RATE, DECAY = 1e-3, 0.1


@pytest.fixture(autouse=True)
def _doubles():
    with jax.enable_x64(True):
        yield


@functools.cache
def work():
    """Parameters, the gradients of all steps, and a rate for each step."""
    rng = np.random.default_rng(0)
    params = {"kernel": 0.02 * rng.normal(size=(12, 5)), "bias": rng.normal(size=5)}
    grads = {n: rng.normal(size=(NUM_STEPS, *p.shape)) for n, p in params.items()}
    rates = [RATE * (1 - step / (2 * NUM_STEPS)) for step in range(NUM_STEPS)]
    return params, grads, rates


def following(rates):
    table = np.asarray(rates, np.float64)
    return lambda step: jnp.asarray(table)[step]


def run(optimizer, params, grads):
    """All steps as one program."""

    def step(carry, grads):
        params, state = carry
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def steps(params, grads):
        return jax.lax.scan(step, (params, optimizer.init(params)), grads)[0]

    return steps(*jax.tree.map(jnp.asarray, (params, grads)))


def distance(ours, theirs, start):
    """The largest distance over leaves, in the distance that a leaf moved."""
    return max(
        np.max(np.abs(np.asarray(ours[n]) - theirs[n])) / np.max(np.abs(theirs[n] - p))
        for n, p in start.items()
    )


def by_torch(name, **options):
    return lambda params, grads, rates: by_element.torch_run(
        name, params, grads, rates, dtype="float64", **options
    )


def adamw_by_torch(params, grads, rates):
    steps = [{n: g[i] for n, g in grads.items()} for i in range(len(rates))]
    options = {"lrs": rates, "weight_decay": DECAY, "exempt": ["bias"]}
    return adamw.torch_adamw(params, steps, dtype="float64", **options)[0]


def old_adamw(params, grads, rates):
    steps = [{n: g[i] for n, g in grads.items()} for i in range(len(rates))]
    return adamw.transformers_v4_adamw(
        params,
        steps,
        lr=rates[0],
        betas=(0.9, 0.999),
        eps=1e-6,
        weight_decay=0.0,
        correct_bias=True,
        dtype="float64",
    )


def by_transformers(**options):
    def end(params, grads, rates):
        rates = rates if options.get("relative_step") is False else None
        return adafactor.transformers_adafactor(
            params, grads, dtype="float64", rates=rates, undecayed=["bias"], **options
        )[0]

    return end


BY_TRANSFORMERS = {"scale_parameter": False, "relative_step": False}
LION = {"betas": (0.9, 0.95), "weight_decay": 0.5}
CASES = {
    "adamw_tf": (
        lambda rates: adamw_tf(following(rates), weight_decay=DECAY),
        adamw_by_torch,
    ),
    "adamw_tf exact": (
        lambda rates: adamw_tf(following(rates), weight_decay=DECAY, decay="exact"),
        adamw_by_torch,
    ),
    "adamw_hf_v4": (lambda rates: adamw_hf_v4(rates[0]), old_adamw),
    "adafactor_tf": (
        lambda _: adafactor_tf(beta1=0.9, weight_decay=DECAY),
        by_transformers(beta1=0.9, weight_decay=DECAY),
    ),
    "adafactor_tf warmup": (
        lambda _: adafactor_tf(warmup_init=True, decay_rate=-0.7),
        by_transformers(warmup_init=True, decay_rate=-0.7),
    ),
    "adafactor_trainer": (
        lambda rates: adafactor_trainer(following(rates), weight_decay=DECAY),
        by_transformers(weight_decay=DECAY, **BY_TRANSFORMERS),
    ),
    "sgd_tf": (
        lambda rates: sgd_tf(
            following(rates), momentum=0.9, dampening=0.3, weight_decay=DECAY
        ),
        by_torch("SGD", momentum=0.9, dampening=0.3, weight_decay=DECAY),
    ),
    "adagrad_tf": (
        lambda rates: adagrad_tf(following(rates), lr_decay=0.1, weight_decay=DECAY),
        by_torch("Adagrad", lr_decay=0.1, weight_decay=DECAY),
    ),
    "rmsprop_tf": (
        lambda rates: rmsprop_tf(
            following(rates), centered=True, momentum=0.5, weight_decay=DECAY
        ),
        by_torch("RMSprop", centered=True, momentum=0.5, weight_decay=DECAY),
    ),
    "lion_tf": (
        lambda rates: lion_tf(following(rates), **LION),
        lambda *work: by_element.lion_in_float64(*work, **LION),
    ),
}


@twins.needs_transformers
@pytest.mark.parametrize("name", CASES)
def test_follows_torch_in_float64(name):
    params, grads, rates = work()
    make, twin = CASES[name]
    ours, state = run(make(rates), params, grads)
    found = distance(ours, twin(params, grads, rates), params)
    assert found <= LIMIT
    floating = [x.dtype for x in jax.tree.leaves(state) if x.dtype != jnp.int32]
    assert set(floating) == {jnp.dtype(jnp.float64)}


@twins.needs_torch
@pytest.mark.parametrize("max_norm", [1e-6, 1.0, 1e3], ids="max_norm={:g}".format)
def test_clip_matches_torch_in_float64(rng, max_norm):
    # Leaves on both sides of the limit up to which small ones are summed together.
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
    # `optax.inject_hyperparams` makes arrays of the dtype of the parameters.
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
    correction = functools.partial(_adamw._bias_correction, arithmetic(jnp.float64))
    ours = jax.jit(jax.vmap(functools.partial(correction, beta)))(np.int32(steps))
    np.testing.assert_allclose(ours, [1 - beta ** int(t) for t in steps], rtol=1e-12)
