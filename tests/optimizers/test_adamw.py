"""`adamw_tf` against torch, and `adamw_hf_v4` against `transformers.AdamW` 4.44."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_tf.optimizers import adamw_hf_v4, adamw_tf, clip, set_learning_rate
from jaxopt_tf.optimizers._adamw import bias_correction
from tests import references
from tests.references import adamw as reference


def make_run(num_steps, size=2_000, scale=1.0):
    rng = np.random.default_rng(0)
    params = {
        "kernel": (rng.normal(size=(size // 20, 20)) * 0.02).astype(np.float32),
        "bias": (rng.normal(size=20) * 0.02).astype(np.float32),
    }
    grads = [
        {
            name: (rng.normal(size=p.shape) * scale).astype(np.float32)
            for name, p in params.items()
        }
        for _ in range(num_steps)
    ]
    return params, grads


def run_ours(optimizer, params, grads_per_step, dtype=jnp.float32):
    params = jax.tree.map(lambda p: jnp.asarray(p, dtype), params)
    stacked = jax.tree.map(lambda *gs: np.stack(gs), *grads_per_step)
    stacked = jax.tree.map(lambda gs: jnp.asarray(gs, dtype), stacked)

    def step(carry, grads):
        params, state = carry
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    carry = (params, optimizer.init(params))
    (params, state), _ = jax.jit(lambda c, g: jax.lax.scan(step, c, g))(carry, stacked)
    return params, state


def distance(a, b):
    return max(
        np.abs(np.asarray(a[k], np.float64) - np.asarray(b[k], np.float64)).max()
        for k in b
    )


@references.needs_torch
@pytest.mark.parametrize(
    ("betas", "weight_decay", "num_steps", "limit"),
    [
        ((0.9, 0.999), 0.1, 1_000, 0.15),
        ((0.9, 0.999), 0.0, 300, 0.3),
        ((0.3, 0.95), 0.1, 300, 0.3),
        ((0.0, 0.0), 0.1, 300, 0.3),
    ],
    ids=str,
)
def test_matches_torch_within_a_fraction_of_its_own_rounding(
    betas, weight_decay, num_steps, limit
):
    params, grads = make_run(num_steps)
    options = {"lr": 1e-3, "betas": betas, "eps": 1e-8, "weight_decay": weight_decay}
    theirs, mu, nu = reference.torch_adamw(params, grads, exempt=["bias"], **options)
    exact, *_ = reference.torch_adamw(
        params, grads, exempt=["bias"], dtype="float64", **options
    )
    ours, state = run_ours(
        adamw_tf(1e-3, betas=betas, weight_decay=weight_decay), params, grads
    )
    assert distance(ours, theirs) <= limit * distance(theirs, exact)
    for name in params:
        np.testing.assert_array_equal(state.mu[name], mu[name])
        np.testing.assert_array_max_ulp(np.asarray(state.nu[name]), nu[name], 2)


@references.needs_torch
def test_most_parameters_equal_torch_bit_for_bit_after_one_step():
    params, grads = make_run(1, size=100_000)
    theirs, *_ = reference.torch_adamw(params, grads, lr=1e-3, weight_decay=0.1)
    ours, _ = run_ours(adamw_tf(1e-3, weight_decay=0.1), params, grads)
    assert np.mean(np.asarray(ours["kernel"]) == theirs["kernel"]) >= 0.9


@references.needs_torch
def test_follows_a_schedule_as_torch_follows_changed_rates():
    # The decay uses the rate of the same step; the first rate is 0.
    rates = [1e-3 * t / 10 for t in range(10)]
    params, grads = make_run(10)
    theirs, *_ = reference.torch_adamw(
        params, grads, lr=0.0, lrs=rates, weight_decay=0.1, exempt=["bias"]
    )
    table = jnp.asarray(rates, jnp.float32)
    ours, state = run_ours(
        adamw_tf(lambda step: table[step], weight_decay=0.1), params, grads
    )
    # Half a unit in the last place of the parameters per step, for ten steps.
    assert distance(ours, theirs) <= 10 * 2.0**-28
    assert (int(state.count), int(state.step)) == (10, 10)
    assert float(state.learning_rate) == np.float32(rates[9])


@references.needs_torch
def test_decay_stands_before_the_update():
    # Large rates, at which p * (1 - a) + u and (p + u) * (1 - a) differ strongly.
    params, grads = make_run(3)
    options = {"lr": 0.1, "weight_decay": 1.0}
    theirs, *_ = reference.torch_adamw(params, grads, exempt=["bias"], **options)
    ours, _ = run_ours(adamw_tf(0.1, weight_decay=1.0), params, grads)
    assert distance(ours, theirs) <= 1e-6


@references.needs_torch
@pytest.mark.parametrize("scale", [1e-9, 1e-4, 1.0, 1e4], ids="scale={:g}".format)
def test_eps_stands_outside_the_corrected_root(scale):
    params, grads = make_run(5, scale=scale)
    theirs, *_ = reference.torch_adamw(params, grads, lr=1e-3, weight_decay=0.0)
    ours, _ = run_ours(adamw_tf(1e-3), params, grads)
    assert distance(ours, theirs) <= 3e-8


@references.needs_torch
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_leaves_match_torch_fused(dtype):
    # moment_dtype=None stores moments in torch's dtype; fused computes in float32.
    params, grads = make_run(30, size=20_000)
    options = {"lr": 1e-2, "weight_decay": 0.1, "eps": 1e-4}
    theirs, mu, nu = reference.torch_adamw(
        params, grads, dtype=dtype, fused=True, exempt=["bias"], **options
    )
    ours, state = run_ours(
        adamw_tf(1e-2, weight_decay=0.1, eps=1e-4, moment_dtype=None),
        params,
        grads,
        jnp.dtype(dtype),
    )
    for name in params:
        assert state.mu[name].dtype == dtype
        for a, b in [(state.mu, mu), (state.nu, nu)]:
            assert np.mean(np.asarray(a[name], np.float32) == b[name]) >= 0.999
        # A parameter that crosses 0 has a finer resolution than its update.
        equal = np.asarray(ours[name], np.float32) == theirs[name]
        assert np.mean(equal) >= (0.9 if equal.size > 100 else 0.5)
        # Half a unit in the last place for each of the thirty steps of 1e-2.
        eps = float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(
            np.asarray(ours[name], np.float32),
            theirs[name],
            rtol=eps,
            atol=30 * 1e-2 * eps / 2,
        )


def test_bfloat16_second_moment_decays_only_in_float32():
    # The default of `moment_dtype` avoids this: 0.1 % is less than half a unit.
    params = {"w": jnp.ones(4, jnp.bfloat16)}
    grads = [{"w": np.ones(4, np.float32)}] + [{"w": np.zeros(4, np.float32)}] * 20
    for moment_dtype, decays in [("float32", True), (None, False)]:
        optimizer = adamw_tf(0.0, moment_dtype=moment_dtype)
        _, first = run_ours(optimizer, params, grads[:1], jnp.bfloat16)
        _, last = run_ours(optimizer, params, grads, jnp.bfloat16)
        assert bool(jnp.all(last.nu["w"] < first.nu["w"])) == decays


_correction32 = functools.partial(bias_correction, dtype=jnp.float32)
_traced_correction = jax.jit(jax.vmap(_correction32, (None, 0)))


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.95, 0.99, 0.999, 0.9999])
def test_bias_correction_is_exact_for_a_million_steps(beta):
    rng = np.random.default_rng(0)
    steps = np.r_[1:3_000, rng.integers(1, 1_000_000, 3_000), 1_000_000, 2**31 - 1]
    t = jnp.asarray(steps, jnp.int32)
    constant = jax.jit(jax.vmap(functools.partial(_correction32, beta)))
    for correction, double in [
        (constant(t), beta),
        (_traced_correction(jnp.float32(beta), t), float(np.float32(beta))),
    ]:
        exact = -np.expm1(steps * math.log(double)) if double else np.ones(len(steps))
        np.testing.assert_allclose(correction.high, exact, rtol=6e-8)


@references.needs_torch
def test_decay_exact_keeps_the_wanted_decay_where_torch_loses_it():
    # float32(1 - 5e-7) is 1 - 4.77e-7, so torch decays every parameter too slowly.
    rng = np.random.default_rng(0)
    params = {"kernel": rng.uniform(0.5, 1.0, (100, 100)).astype(np.float32)}
    grads = [{"kernel": np.zeros((100, 100), np.float32)}] * 200
    options = {"weight_decay": 0.01}

    def share_of_the_wanted_decay(kernel):
        return np.mean(1 - np.float64(kernel) / params["kernel"]) / (200 * 5e-5 * 0.01)

    theirs, *_ = reference.torch_adamw(params, grads, lr=5e-5, **options)
    like_torch, _ = run_ours(adamw_tf(5e-5, **options), params, grads)
    exact, _ = run_ours(adamw_tf(5e-5, decay="exact", **options), params, grads)
    assert abs(share_of_the_wanted_decay(theirs["kernel"]) - 0.954) < 0.01
    np.testing.assert_array_equal(like_torch["kernel"], theirs["kernel"])
    assert abs(share_of_the_wanted_decay(exact["kernel"]) - 1) < 0.01


@references.needs_torch
@pytest.mark.parametrize("correct_bias", [True, False])
@pytest.mark.parametrize("scale", [1e-6, 1.0], ids="scale={:g}".format)
def test_hf_v4_matches_the_old_transformers(correct_bias, scale):
    # At the small scale the position of epsilon matters.
    params, grads = make_run(50, scale=scale)
    options = {
        "lr": 1e-2,
        "betas": (0.9, 0.999),
        "eps": 1e-6,
        "weight_decay": 0.5,
        "correct_bias": correct_bias,
    }
    theirs = reference.transformers_v4_adamw(params, grads, dtype="float32", **options)
    exact = reference.transformers_v4_adamw(params, grads, dtype="float64", **options)
    ours, _ = run_ours(
        adamw_hf_v4(
            1e-2,
            weight_decay=0.5,
            correct_bias=correct_bias,
            decay_mask=lambda params: jax.tree.map(lambda _: True, params),
        ),
        params,
        grads,
    )
    assert distance(ours, exact) <= 1.5 * distance(theirs, exact)


def test_counts_may_differ_between_leaves():
    # In an imported state counts can differ: torch skips parameters without gradients.
    params, grads = make_run(1)
    optimizer = adamw_tf(1e-3)
    state = optimizer.init(params)
    shared, _ = optimizer.update(grads[0], state, params)
    counts = {"kernel": jnp.int32(0), "bias": jnp.int32(7)}
    apart, new = optimizer.update(grads[0], state._replace(count=counts), params)
    np.testing.assert_array_equal(apart["kernel"], shared["kernel"])
    assert not np.array_equal(apart["bias"], shared["bias"])
    assert jax.tree.map(int, new.count) == {"kernel": 1, "bias": 8}


def test_betas_of_a_sweep_correct_the_bias_like_floats():
    params, grads = make_run(20)
    betas = jnp.float32([0.5, 0.875]), jnp.float32([0.75, 0.96875])
    swept, _ = jax.vmap(
        lambda b1, b2: run_ours(adamw_tf(1e-3, betas=(b1, b2)), params, grads)
    )(*betas)
    for i, pair in enumerate(zip(*map(np.asarray, betas), strict=True)):
        alone, _ = run_ours(
            adamw_tf(1e-3, betas=tuple(float(b) for b in pair)), params, grads
        )
        np.testing.assert_allclose(swept["kernel"][i], alone["kernel"], atol=2e-8)


def test_updates_make_the_new_parameter_whatever_the_dtype_of_gradients():
    params, grads = make_run(1, size=100_000)
    params = jax.tree.map(jnp.asarray, params)
    low = jax.tree.map(lambda g: jnp.asarray(g).astype(jnp.bfloat16), grads[0])
    high = jax.tree.map(lambda g: g.astype(jnp.float32), low)
    optimizer = adamw_tf(1e-4, weight_decay=0.1)
    one, _ = jax.jit(optimizer.update)(low, optimizer.init(params), params)
    two, _ = jax.jit(optimizer.update)(high, optimizer.init(params), params)
    assert one["kernel"].dtype == jnp.float32
    np.testing.assert_array_equal(one["kernel"], two["kernel"])
    # p + (q - p) == q if a parameter changes by less than a factor of two.
    p = np.asarray(params["kernel"], np.float64)
    new = p + np.asarray(one["kernel"], np.float64)
    assert np.mean(new.astype(np.float32) == new) >= 0.998


def test_repeats_bit_for_bit_and_resumes_bit_for_bit():
    params, grads = make_run(20)
    optimizer = optax.chain(clip(1.0), adamw_tf(1e-3, weight_decay=0.1))
    whole, _ = run_ours(optimizer, params, grads)
    again, _ = run_ours(optimizer, params, grads)
    half, state = run_ours(optimizer, params, grads[:10])

    @jax.jit
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for g in grads[10:]:
        half, state = step(half, state, g)
    for name in params:
        np.testing.assert_array_equal(whole[name], again[name])
        np.testing.assert_array_equal(whole[name], half[name])


def test_converges_on_a_quadratic():
    target = jnp.asarray([1.0, -2.0, 3.0])
    grads = jax.grad(lambda p: jnp.sum((p["w"] - target) ** 2))
    optimizer = adamw_tf(0.05)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(grads(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    params = {"w": jnp.zeros(3)}
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=1_000)
    np.testing.assert_allclose(params["w"], target, atol=1e-3)


def test_a_changed_rate_is_used_without_compiling_again():
    params, grads = make_run(1)
    optimizer = adamw_tf(1e-3)
    chex.clear_trace_counter()
    update = jax.jit(chex.assert_max_traces(optimizer.update, n=1))
    state = optimizer.init(params)
    small, _ = update(grads[0], state, params)
    large, new = update(grads[0], set_learning_rate(state, 1e-1), params)
    assert float(new.learning_rate) == np.float32(1e-1)
    np.testing.assert_allclose(large["kernel"], 100 * small["kernel"], rtol=1e-3)


@pytest.mark.parametrize("optimizer", [adamw_tf, adamw_hf_v4])
@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"learning_rate": -1e-3}, ValueError, "`learning_rate`.*at least 0.*-0.001"),
        ({"learning_rate": math.nan}, ValueError, "`learning_rate`.*nan"),
        ({"learning_rate": "1e-3"}, TypeError, "`learning_rate`.*real number"),
        ({"learning_rate": np.ones(3)}, TypeError, "`learning_rate`.*single number"),
        ({"eps": jnp.ones(2)}, TypeError, "`eps`.*single number"),
        ({"weight_decay": np.True_}, TypeError, "`weight_decay`.*real number"),
        ({"betas": (0.9, 1.0)}, ValueError, r"`betas\[1\]`.*less than 1.*1.0"),
        ({"betas": (-0.1, 0.9)}, ValueError, r"`betas\[0\]`"),
        ({"betas": (math.nan, 0.9)}, ValueError, r"`betas\[0\]`.*nan"),
        ({"betas": 0.9}, TypeError, "`betas` must be a pair"),
        ({"eps": -1e-8}, ValueError, "`eps`.*at least 0"),
        ({"eps": math.inf}, ValueError, "`eps`.*finite"),
        ({"weight_decay": math.nan}, ValueError, "`weight_decay`.*nan"),
        ({"weight_decay": -0.1}, ValueError, "`weight_decay`.*at least 0"),
        ({"moment_dtype": "int32"}, TypeError, "`moment_dtype`.*int32"),
        ({"moment_dtype": "flaot32"}, TypeError, "`moment_dtype`.*flaot32"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_refuses_options_out_of_range(optimizer, options, error, match):
    with pytest.raises(error, match=match):
        optimizer(**{"learning_rate": 1e-3, **options})


def test_refuses_an_unknown_decay():
    with pytest.raises(ValueError, match=r"`decay` must be one of.*mean 'exact'"):
        adamw_tf(1e-3, decay="exakt")
