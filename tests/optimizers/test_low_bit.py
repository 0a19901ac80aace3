"""Moments of 8 and 4 bits against bitsandbytes 0.50.2 and torchao 0.18."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxopt_tf.optimizers import (
    QuantizedMoment,
    TorchLayout,
    _low_bit,
    adamw_4bit_tf,
    adamw_8bit_tf,
    adamw_tf,
    ademamix_8bit_tf,
    dynamic_map,
    lion_8bit_tf,
    rmsprop_8bit_tf,
)
from jaxopt_tf.optimizers._levels import Levels
from tests.files.record_low_bit_states import STEPS, grads, params

RECORDED = pathlib.Path(__file__).parents[1] / "files" / "low_bit_states.npz"
OPTIMIZERS = {
    "adamw": adamw_8bit_tf,
    "lion": lion_8bit_tf,
    "rmsprop": rmsprop_8bit_tf,
    "ademamix": functools.partial(ademamix_8bit_tf, t_alpha=15, t_beta3=15),
    "torchao 8": functools.partial(adamw_8bit_tf, library="torchao"),
    "torchao 4": adamw_4bit_tf,
}


@pytest.fixture(scope="module")
def recorded():
    with np.load(RECORDED) as file:
        yield {name: file[name] for name in file.files}


@pytest.fixture
def without_sign_repair(monkeypatch):
    """Rounds small negative numbers to 0, as bitsandbytes does on CPUs."""
    quantizer = dataclasses.replace(_low_bit.BITSANDBYTES, repairs_signs=False)
    monkeypatch.setattr(_low_bit, "BITSANDBYTES", quantizer)
    monkeypatch.setitem(_low_bit._QUANTIZERS, "bitsandbytes", quantizer)


def decay_all(params):
    return jax.tree.map(lambda _: True, params)


def in_fields(name, state):
    """Returns the moments that each of the library's tensors contains."""
    if name == "ademamix":
        return [("exp_avg", [state.mu, state.mu_slow]), ("exp_avg_sq", [state.nu])]
    if name == "rmsprop":
        return [("exp_avg", [state.nu])]
    if name == "lion":
        return [("exp_avg", [state.mu])]
    return [("exp_avg", [state.mu]), ("exp_avg_sq", [state.nu])]


def trained(build, *, is_transposed):
    """Returns parameters and state after all steps, by index of the shape."""
    layouts = {".*": TorchLayout.dense()} if is_transposed else None
    optimizer = build(1e-2, weight_decay=0.1, decay_mask=decay_all, layouts=layouts)

    def leaves(arrays):
        arrays = [x.T if is_transposed else x for x in arrays]
        return {str(i): jnp.asarray(x) for i, x in enumerate(arrays)}

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    p = leaves(params())
    state = optimizer.init(p)
    for i in range(STEPS):
        p, state = step(p, state, leaves(grads(i)))
    return p, state


@pytest.mark.parametrize(
    ("name", "is_transposed"),
    [
        ("adamw", True),
        ("lion", False),
        ("rmsprop", False),
        ("ademamix", True),
        ("torchao 8", False),
        ("torchao 4", True),
    ],
)
def test_codes_scales_and_parameters_are_those_of_the_library(
    name, is_transposed, recorded, without_sign_repair
):
    # Seen to fail with ties, levels, blocks or the order of torch's axes changed.
    p, state = trained(OPTIMIZERS[name], is_transposed=is_transposed)

    def in_torch(x):
        # Scales and codes of other than two axes are in torch's order already.
        return np.asarray(x.T if is_transposed and x.ndim == 2 else x).reshape(-1)

    num_codes = num_different = 0
    for i in range(len(params())):
        index = str(i)
        for field, moments in in_fields(name, state):
            key = f"{name}.{i}.{field}"
            is_kept = f"{key}.codes" in recorded
            found = [moment[index] for moment in moments]
            assert [isinstance(m, QuantizedMoment) for m in found] == [is_kept] * len(
                found
            )
            if not is_kept:
                continue
            ours = np.concatenate([in_torch(m.codes) for m in found])
            theirs = recorded[f"{key}.codes"].reshape(-1)
            num_codes += theirs.size
            num_different += (ours != theirs).sum()
            np.testing.assert_allclose(
                np.concatenate([in_torch(m.scales) for m in found]),
                recorded[f"{key}.scales"].reshape(-1),
                rtol=1e-6,
            )
        ours = in_torch(p[index])[::16]
        # A weight whose code differs may move on differently. Parameters are up to 3,
        # with an ulp of 2.4e-7, and each of 20 steps rounds.
        is_near = np.abs(ours - recorded[f"{name}.{i}.param"]) < 5e-6
        assert is_near.mean() > 0.99, index
    assert num_codes >= 6144
    assert num_different <= 1e-4 * num_codes


@pytest.mark.parametrize("signed", [True, False])
def test_every_level_has_its_own_code(signed):
    levels = Levels.dynamic(signed=signed)
    codes = jnp.arange(256, dtype=jnp.uint8)
    decoded = jax.jit(levels.decode)(codes)
    np.testing.assert_array_equal(decoded, dynamic_map(signed=signed))
    np.testing.assert_array_equal(levels.encode(decoded, ties_up=False), codes)


@pytest.mark.parametrize("signed", [True, False])
def test_levels_are_rounded_as_in_torch(signed):
    positive = []
    for i in range(7):
        limits = torch.linspace(0.1, 1, 2 ** (i + (not signed)) + 1)
        centres = (limits[:-1] + limits[1:]) / 2.0
        positive.append((10 ** (i - 6) * centres).numpy())
    ours = dynamic_map(signed=signed)
    theirs = np.concatenate([[0.0], *positive, [1.0]]).astype("f4")
    np.testing.assert_allclose(ours[-len(theirs) :], theirs, rtol=1.5e-7)
    if torch.backends.cpu.get_cpu_capability() != "DEFAULT":
        # With fused multiply-add. Without it torch rounds once more.
        np.testing.assert_array_equal(ours[-len(theirs) :], theirs)


# Seen to fail without `prevent_fma`: 20 elements at the middle had the other code.
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("ties_up", [True, False])
def test_codes_are_those_of_the_nearest_levels(signed, ties_up, rng):
    levels = Levels.dynamic(signed=signed)
    values = np.array(levels.values, np.float32)
    middles = (values[1:] + values[:-1]) / np.float32(2)
    near = [values, middles]
    for end in (-2, 2):
        near += [np.nextafter(x, np.float32(end)) for x in near[:2]]
    x = 10.0 ** rng.uniform(-9, 0, size=100_000) * rng.choice([-1, 1], size=100_000)
    x = np.concatenate([*near, x]).clip(-1 if signed else 0, 1).astype(np.float32)
    ours = jax.jit(functools.partial(levels.encode, ties_up=ties_up))(x)
    side = "right" if ties_up else "left"
    np.testing.assert_array_equal(ours, np.searchsorted(middles, x, side=side))


@pytest.mark.usefixtures("compiled_quickly")
def test_small_negative_moments_keep_their_sign():
    # As the CUDA kernel of bitsandbytes: 0 would have the sign of a positive number.
    quantizer = _low_bit.BITSANDBYTES
    x = jnp.zeros((16, 256)).at[0, :4].set(jnp.array([1.0, -1e-9, 1e-9, -0.5]))
    blocks = quantizer.blocks(x.shape, TorchLayout())

    @jax.jit
    def encoded(x):
        scale = blocks.spread(quantizer.scales(x, blocks))
        return quantizer.encode(x, scale, quantizer.signed)

    codes = encoded(x)
    assert codes[0, :4].tolist()[1:3] == [126, 127]
    # A block of zeros has the code 0.
    assert not codes[1].any()


@pytest.mark.parametrize(
    ("build", "limit"),
    [
        (adamw_8bit_tf, 2.1),
        (adamw_4bit_tf, 1.1),
        (lion_8bit_tf, 1.1),
        (rmsprop_8bit_tf, 1.1),
        (ademamix_8bit_tf, 3.1),
    ],
)
def test_state_has_few_bytes_per_parameter(build, limit):
    shape = jax.eval_shape(build(1e-3).init, {"kernel": jnp.zeros((256, 256))})
    moments = [x for x in jax.tree.leaves(shape) if x.ndim]
    assert sum(x.size * x.dtype.itemsize for x in moments) / 256**2 <= limit


@pytest.mark.usefixtures("compiled_quickly")
def test_small_leaves_and_embeddings_stay_float32():
    params = {
        "kernel": jnp.ones((64, 64)),
        "short": jnp.ones(4095),
        "wte": {"embedding": jnp.ones((64, 64))},
        "model.embed_tokens.weight": jnp.ones((64, 64)),
        "stack": jnp.ones((4, 32, 64)),
    }
    layouts = {"stack": TorchLayout().stacked()}
    mu = adamw_8bit_tf(1e-3, layouts=layouts).init(params).mu
    is_quantized = {
        name: isinstance(value, QuantizedMoment) for name, value in mu.items()
    }
    # In torch the stack is four tensors of 2,048 elements.
    assert is_quantized == {
        "kernel": True,
        "short": False,
        "wte": False,
        "model.embed_tokens.weight": False,
        "stack": False,
    }
    kept = jax.tree.map(lambda p: p.ndim == 2, params)
    mu = adamw_8bit_tf(1e-3, keep_float32=kept).init(params).mu
    assert not isinstance(mu["kernel"], QuantizedMoment)
    mu = adamw_8bit_tf(1e-3, library="torchao").init(params).mu
    assert isinstance(mu["wte"]["embedding"], QuantizedMoment)


@pytest.mark.usefixtures("compiled_quickly")
def test_stacked_layers_have_the_codes_of_separate_ones(rng):
    stack = {"kernel": jnp.asarray(rng.normal(size=(3, 64, 67)), jnp.float32)}
    layouts = {"kernel": TorchLayout.dense().stacked()}

    @functools.partial(jax.jit, static_argnums=0)
    def first_state(optimizer, params):
        return optimizer.update(params, optimizer.init(params), params)[1]

    state = first_state(adamw_8bit_tf(1e-2, layouts=layouts), stack)
    single = adamw_8bit_tf(1e-2, layouts={"kernel": TorchLayout.dense()})
    for i in range(3):
        own = first_state(single, jax.tree.map(lambda x, i=i: x[i], stack))
        for field in ("codes", "scales"):
            np.testing.assert_array_equal(
                getattr(state.mu["kernel"], field)[i], getattr(own.mu["kernel"], field)
            )


@pytest.mark.usefixtures("compiled_quickly")
def test_quantized_update_is_traced_once_in_scan_and_under_vmap():
    optimizer = adamw_4bit_tf(1e-2)
    p = {"kernel": jnp.asarray(params()[0])}

    def step(carry, _):
        updates, state = optimizer.update(carry[0], carry[1], carry[0])
        return (jax.tree.map(jnp.add, carry[0], updates), state), None

    carry = p, optimizer.init(p)
    (scanned, _), _ = jax.lax.scan(step, carry, length=3)
    pair = jax.tree.map(lambda x: jnp.stack([x, x]), carry)
    (mapped, _), _ = jax.lax.scan(lambda c, _: jax.vmap(step)(c, None), pair, length=3)
    np.testing.assert_allclose(mapped["kernel"][1], scanned["kernel"], rtol=2e-5)


@pytest.mark.usefixtures("compiled_quickly")
def test_training_with_8_bits_is_near_training_with_32(rng):
    # A quadratic with noise; plain rounding of second moments to 8 levels diverges.
    target = jnp.asarray(rng.normal(size=(16, 256)), jnp.float32)

    def final_loss(optimizer):
        def step(carry, key):
            p, state = carry
            noise = 0.1 * jax.random.normal(key, target.shape)
            updates, state = optimizer.update(p - target + noise, state, p)
            return (p + updates, state), None

        carry = jnp.zeros_like(target), optimizer.init(jnp.zeros_like(target))
        keys = jax.random.split(jax.random.key(0), 200)
        (p, _), _ = jax.lax.scan(step, carry, keys)
        return float(jnp.mean((p - target) ** 2))

    exact = final_loss(adamw_tf(2e-2))
    assert final_loss(adamw_8bit_tf(2e-2)) < 1.3 * exact
    # With 16 levels the steps are noisier. The loss begins at 1.
    assert final_loss(adamw_4bit_tf(2e-2)) < 0.1


def test_unknown_library_and_shards_are_refused():
    with pytest.raises(ValueError, match="`library` must be one of 'bitsandbytes'"):
        adamw_8bit_tf(1e-3, library="apex")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_float64_parameters_have_the_codes_of_float32_ones(name):
    optimizer, found = OPTIMIZERS[name](1e-3), []
    with jax.enable_x64(True):
        for dtype in ("float32", "float64"):
            params = {"kernel": jnp.sin(jnp.arange(8192, dtype=dtype)).reshape(32, 256)}
            state = optimizer.init(params)
            updates, new = jax.jit(optimizer.update)(params, state, params)
            dtypes = [[x.dtype for x in jax.tree.leaves(s)] for s in (new, state)]
            assert dtypes[0] == dtypes[1]
            found.append((updates["kernel"], new))
    (expected, expected_state), (updates, state) = found
    assert updates.dtype == np.float64
    np.testing.assert_allclose(updates, expected, rtol=1e-4, atol=1e-8)
    for ours, theirs in zip(
        *map(jax.tree.leaves, (state, expected_state)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=0)
