"""bfloat16 parameters that learn: Kahan summation and stochastic rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxopt_tf.optimizers import (
    adamw_hf_v4,
    adamw_tf,
    ademamix_tf,
    clip,
    get_learning_rate,
    kahan_summation,
    stochastic_rounding,
)
from jaxopt_tf.sharding import make_mesh

pytestmark = pytest.mark.usefixtures("compiled_quickly")

WRAPPERS = [kahan_summation, stochastic_rounding]


def losses(optimizer, dtype, *, num_steps=1000):
    """Returns the loss of a linear regression at every 100th step."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(64, 32)), jnp.float32)
    target = x @ jnp.asarray(rng.normal(size=(32, 8)), jnp.float32)

    def loss(params):
        return jnp.mean((x @ params["w"].astype(jnp.float32) - target) ** 2)

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    params = {"w": jnp.asarray(rng.normal(size=(32, 8)), dtype)}
    carry = params, optimizer.init(params)
    _, values = jax.jit(lambda c: jax.lax.scan(step, c, length=num_steps))(carry)
    return np.asarray(values)[::100]


def test_plain_bfloat16_stalls_and_both_follow_float32():
    # Steps of 3e-3 are below half the spacing of bfloat16 numbers from 1 on.
    def optimizer():
        return optax.chain(clip(1.0), adamw_tf(3e-3, weight_decay=0.01))

    exact = losses(optimizer(), jnp.float32)
    plain = losses(optimizer(), jnp.bfloat16)
    assert exact[-1] < 0.01 * exact[0]
    assert plain[-1] > 0.4 * plain[0]
    for wrapper in WRAPPERS:
        found = losses(wrapper(optimizer()), jnp.bfloat16)
        np.testing.assert_allclose(found, exact, rtol=0.1)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_float32_leaves_have_the_updates_of_the_optimizer(wrapper, rng):
    params = {
        "w": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32),
        "n": jnp.arange(3),
    }
    grads = {"w": params["w"], "n": np.zeros(3, jax.dtypes.float0)}
    plain = adamw_tf(1e-2, weight_decay=0.1)
    wrapped = wrapper(adamw_tf(1e-2, weight_decay=0.1))
    expected, _ = jax.jit(plain.update)(grads, plain.init(params), params)
    found, state = jax.jit(wrapped.update)(grads, wrapped.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert float(get_learning_rate(state)) == np.float32(1e-2)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_compensation_is_what_rounding_left_out(dtype, rng):
    params = {"w": jnp.asarray(rng.normal(size=(64, 4)), dtype)}
    grads = {"w": jnp.asarray(rng.normal(size=(64, 4)), jnp.float32)}
    optimizer = kahan_summation(optax.sgd(1e-3))
    step = jax.jit(optimizer.update)
    exact, state = np.float64(params["w"]), optimizer.init(params)
    for _ in range(30):
        updates, state = step(grads, state, params)
        assert updates["w"].dtype == dtype
        params = jax.tree.map(jnp.add, params, updates)
        exact = exact - 1e-3 * np.float64(grads["w"])
    total = np.float64(params["w"]) + np.float64(state.compensation["w"])
    # 8 or 11 bits each in the parameter and in the compensation.
    limit = 30 * float(jnp.finfo(dtype).eps) ** 2 * np.abs(exact).max()
    np.testing.assert_allclose(total, exact, rtol=0, atol=limit)


def test_stochastic_rounding_has_the_exact_mean_and_two_values():
    for value in (1.003, -0.7512, 3e-5):
        params = {"w": jnp.full(40_000, jnp.bfloat16(value))}
        step = float(params["w"][0]) * 1e-3
        optimizer = stochastic_rounding(optax.sgd(1.0), seed=3)
        grads = {"w": jnp.full(40_000, -step, jnp.float32)}
        updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
        new = np.float64(params["w"] + updates["w"])
        lower, upper = sorted(set(new))
        spacing = upper - lower
        assert lower <= float(params["w"][0]) <= upper
        # The standard deviation of the mean is at most half a spacing / 200.
        expected = np.float32(params["w"][0]) + np.float32(step)
        assert abs(new.mean() - expected) < 4 * 0.5 * spacing / 200


def test_random_numbers_differ_between_steps_leaves_and_seeds():
    params = {name: jnp.ones(1000, jnp.bfloat16) for name in "ab"}
    grads = {name: jnp.full(1000, -(2.0**-9)) for name in "ab"}

    def first_updates(seed):
        optimizer = stochastic_rounding(optax.sgd(1.0), seed=seed)
        update, state = jax.jit(optimizer.update), optimizer.init(params)
        found = []
        for _ in range(2):
            updates, state = update(grads, state, params)
            found += [np.asarray(updates[name]) != 0 for name in "ab"]
        return found

    drawn = [*first_updates(0), *first_updates(1)]
    for i, first in enumerate(drawn):
        assert 0.2 < first.mean() < 0.3
        for second in drawn[:i]:
            # Independent draws of a quarter differ in 2 (1/4) (3/4) of the elements.
            assert 0.3 < (first != second).mean() < 0.45
    jax.tree.map(np.testing.assert_array_equal, first_updates(0), drawn[:4])


@pytest.mark.parametrize("axes", ["fsdp=8", "fsdp=2,tensor=4"])
def test_bits_are_equal_on_every_mesh(axes, rng):
    # Elementwise arithmetic, so that only the random numbers could differ.
    optimizer = stochastic_rounding(optax.sgd(1e-3))
    params = {"w": jnp.asarray(rng.normal(size=(16, 64)), jnp.bfloat16)}
    grads = {"w": jnp.asarray(rng.normal(size=(16, 64)), jnp.bfloat16)}
    expected, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    spec = PartitionSpec(*(part.split("=")[0] for part in axes.split(",")))
    sharding = NamedSharding(make_mesh(axes, jax.devices()[:8]), spec)
    params, grads = jax.device_put((params, grads), sharding)
    lowered = jax.jit(optimizer.update, out_shardings=(sharding, None))
    compiled = lowered.lower(grads, optimizer.init(params), params).compile()
    found, _ = compiled(grads, optimizer.init(params), params)
    np.testing.assert_array_equal(found["w"], expected["w"])
    # Each device computes the numbers of its shard.
    assert "all-gather" not in compiled.as_text()


@pytest.mark.parametrize("build", [adamw_tf, adamw_hf_v4, ademamix_tf])
def test_each_moment_has_its_own_dtype(build):
    params = {"w": jnp.ones((4, 3)), "b": jnp.ones(3, jnp.bfloat16)}

    def dtypes(**options):
        state = build(1e-3, **options).init(params)
        return [{x.dtype.name for x in tree.values()} for tree in (state.mu, state.nu)]

    assert dtypes(mu_dtype="bfloat16") == [{"bfloat16"}, {"float32"}]
    assert dtypes(nu_dtype=jnp.bfloat16) == [{"float32"}, {"bfloat16"}]
    own = dtypes(moment_dtype=None, nu_dtype="float32")
    assert own == [{"float32", "bfloat16"}, {"float32"}]
    with pytest.raises(TypeError, match="`nu_dtype` must be float32.*`moment_dtype`"):
        build(1e-3, nu_dtype="float64")


def test_bad_seeds_and_missing_parameters_are_refused():
    with pytest.raises(ValueError, match="`seed` must be"):
        stochastic_rounding(adamw_tf(1e-3), seed=-1)
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    for wrapper in WRAPPERS:
        optimizer = wrapper(optax.sgd(1e-3))
        with pytest.raises(ValueError, match="`params` is required by"):
            optimizer.update(params, optimizer.init(params))
