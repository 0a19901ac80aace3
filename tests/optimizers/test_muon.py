"""`muon_tf` against `torch.optim.Muon` with `torch.optim.AdamW`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_tf.optimizers import (
    TorchLayout,
    adamw_tf,
    get_learning_rate,
    muon_reasons,
    muon_tf,
    resolve_layouts,
    set_learning_rate,
)
from tests import references
from tests.references.muon import torch_muon

# Compiled quickly: the limits are far above the last bits.
pytestmark = pytest.mark.usefixtures("compiled_quickly")

# A stack of three layers, matrices of all shapes, and leaves for AdamW.
SHAPES = {
    "embed.embedding": (24, 16),
    "layers.up.kernel": (3, 16, 40),
    "layers.down.kernel": (3, 40, 16),
    "square.weight": (16, 16),
    "heads.kernel": (16, 2, 12),
    "norm.scale": (16,),
    "lm_head.kernel": (16, 24),
}
DENSE = TorchLayout.dense()
LAYOUTS = {
    r"layers\..*": DENSE.stacked(),
    r"heads\.kernel": TorchLayout.dense_general(1, 2),
    r"lm_head\.kernel": DENSE,
}
MATRICES = ("layers.up", "layers.down", "square", "heads")
NUM_STEPS = 100
RATES = [0.02 * (1 - step / NUM_STEPS) for step in range(NUM_STEPS)]


def schedule(step):
    return jnp.asarray(RATES, jnp.float32)[step]


def draw(seed, scale):
    rng = np.random.default_rng(seed)
    return {
        name: (scale * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in SHAPES.items()
    }


PARAMS, TARGETS = draw(0, 0.1), draw(1, 0.3)
NOISE = [draw(2 + step, 0.3) for step in range(NUM_STEPS)]


def grads_of(step, params):
    """Gradients of a noisy quadratic; both sides compute them from their parameters."""
    return {n: p - TARGETS[n] + NOISE[step][n] for n, p in params.items()}


LAYOUT_OF = dict(
    zip(
        sorted(SHAPES),
        jax.tree.leaves(resolve_layouts(LAYOUTS, dict(PARAMS))),
        strict=True,
    )
)


def to_torch(leaves):
    """Leaves in torch's shapes; each layer of a stack is a tensor."""
    tensors = {name: LAYOUT_OF[name].to_torch(leaf) for name, leaf in leaves.items()}
    for name in [n for n in leaves if LAYOUT_OF[n].stacked_axes]:
        layers = enumerate(tensors.pop(name))
        tensors |= {f"{name}.{i}": layer for i, layer in layers}
    return tensors


def from_torch(tensors):
    tensors = dict(tensors)
    for name, (size, *_) in SHAPES.items():
        if LAYOUT_OF[name].stacked_axes:
            layers = [tensors.pop(f"{name}.{i}") for i in range(size)]
            tensors[name] = np.stack(layers)
    return {n: LAYOUT_OF[n].from_torch(tensors[n], SHAPES[n]) for n in SHAPES}


def distance(ours, theirs, start):
    """Largest difference of a leaf over the largest distance it moved."""
    return max(
        float(
            np.max(np.abs(ours[n] - theirs[n])) / np.max(np.abs(theirs[n] - start[n]))
        )
        for n in theirs
    )


def run(optimizer, params=PARAMS):
    noise = {n: np.stack([x[n] for x in NOISE]) for n in params}

    @jax.jit
    def train(params, noise):
        def body(carry, noise):
            params, state = carry
            grads = {n: p - TARGETS[n] + noise[n] for n, p in params.items()}
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(body, (params, optimizer.init(params)), noise)[0]

    return jax.device_get(train(params, noise))


@functools.cache
def of_torch(ns_dtype, adjust_lr_fn, nesterov):
    start = to_torch(PARAMS)
    names = [n for n in start if n.startswith(MATRICES)]
    ended, *optimizers = torch_muon(
        start,
        lambda step, params: to_torch(grads_of(step, from_torch(params))),
        RATES,
        names,
        ns_dtype=ns_dtype,
        adjust_lr_fn=adjust_lr_fn,
        nesterov=nesterov,
        adamw={"factor": 0.5, "weight_decay": 0.1, "exempt": ("norm.scale",)},
    )
    return from_torch(ended), optimizers


@references.needs_torch
@pytest.mark.parametrize(("ns_dtype", "limit"), [("bfloat16", 3e-3), ("float32", 1e-5)])
@pytest.mark.parametrize(
    ("adjust_lr_fn", "nesterov"),
    [("original", True), ("match_rms_adamw", False)],
)
def test_follows_torch_for_100_steps(ns_dtype, limit, adjust_lr_fn, nesterov):
    options = {"ns_dtype": ns_dtype, "adjust_lr_fn": adjust_lr_fn, "nesterov": nesterov}
    theirs, _ = of_torch(**options)
    optimizer = muon_tf(schedule, adamw_rate_factor=0.5, layouts=LAYOUTS, **options)
    ours, _ = run(optimizer)
    assert distance(ours, theirs, PARAMS) < limit


def test_the_default_matrices_exclude_embeddings_heads_norms_and_vectors():
    params = {
        "wte": {"embedding": jnp.ones((8, 4))},
        "layers": {"attn": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones((2, 4))}},
        "norms": {"scale": jnp.ones((2, 4))},
        "conv": {"kernel": jnp.ones((3, 3, 4, 4))},
        "lm_head": {"kernel": jnp.ones((4, 8))},
        "ids": jnp.ones((4, 4), jnp.int32),
    }
    assert muon_reasons(params) == {
        "wte": {"embedding": "'wte' in its name"},
        "layers": {"attn": {"kernel": "", "bias": "'bias' in its name"}},
        "norms": {"scale": "'scale' in its name"},
        "conv": {"kernel": "4 axes in torch"},
        "lm_head": {"kernel": "'lm_head' in its name"},
        "ids": "no floating-point numbers",
    }


@pytest.mark.parametrize(
    "matrices",
    [
        "weight",
        ["lm_head", r"a\.weight"],
        {"a": {"weight": True, "bias": False}, "lm_head": {"weight": True}},
        lambda params: jax.tree.map(lambda p: p.ndim == 2, params),
    ],
    ids=["pattern", "patterns", "mask", "callable"],
)
def test_matrices_are_selected_by_patterns_or_by_a_mask(matrices):
    params = {
        "a": {"weight": jnp.ones((2, 3)), "bias": jnp.ones(3)},
        "lm_head": {"weight": jnp.ones((3, 4))},
    }
    state = muon_tf(0.1, matrices=matrices).init(params)
    assert [m.shape for m in jax.tree.leaves(state.momentum)] == [(2, 3), (3, 4)]
    assert [m.shape for m in jax.tree.leaves(state.mu)] == [(3,)]


def test_the_rate_of_adamw_is_a_share_of_that_of_muon():
    # With the digits of a double, as if `adamw_tf` had the product for its rate.
    params = {"w": jnp.ones((2, 3)), "bias": jnp.full(3, 0.3)}
    factor, rate, decays = 0.3, 1e-3, {"w": True, "bias": True}
    muon = muon_tf(rate, adamw_rate_factor=factor, decay_mask=decays)
    adamw = adamw_tf(rate * factor, weight_decay=0.1, decay_mask=decays)
    update = jax.jit(muon.update)
    ours, state = update(params, muon.init(params), params)
    theirs, _ = jax.jit(adamw.update)(params, adamw.init(params), params)
    np.testing.assert_array_equal(ours["bias"], theirs["bias"])
    assert get_learning_rate(state) == np.float32(rate)
    updates, _ = update(params, set_learning_rate(state, 0.0), params)
    assert not any(np.any(u) for u in jax.tree.leaves(updates))


@pytest.mark.promotion_of_others
def test_optax_corrects_the_bias_of_its_momentum():
    # 16 times as far from torch as the bfloat16 iteration, all of it in early steps.
    params = {"square.weight": PARAMS["square.weight"]}
    numbers = optax.contrib.MuonDimensionNumbers(1, 0)
    optimizer = optax.contrib.muon(
        schedule,
        weight_decay=0.1,
        muon_weight_dimension_numbers=lambda p: dict.fromkeys(p, numbers),
    )
    ours, _ = run(muon_tf(schedule, ns_dtype="float32"), params)
    theirs, _ = run(optimizer, params)
    assert 1e-3 < distance(ours, theirs, params) < 5e-2


def test_the_iteration_is_in_the_dtype_that_is_asked_for():
    # From a matrix of zeros, with a factor of 1, the update is the result itself.
    params, grads = {"w": jnp.zeros((16, 16))}, {"w": NOISE[0]["square.weight"]}
    for ns_dtype in ("bfloat16", "float32"):
        optimizer = muon_tf(1.0, ns_dtype=ns_dtype)
        result, _ = optimizer.update(grads, optimizer.init(params), params)
        is_rounded = result["w"] == result["w"].astype(jnp.bfloat16).astype("f4")
        assert bool(jnp.all(is_rounded)) == (ns_dtype == "bfloat16")


def test_momentum_has_the_dtype_that_is_asked_for():
    params = {"w": jnp.ones((2, 3), jnp.bfloat16), "bias": jnp.ones(3, jnp.bfloat16)}
    for moment_dtype, expected in (("float32", jnp.float32), (None, jnp.bfloat16)):
        optimizer = muon_tf(0.1, moment_dtype=moment_dtype)
        state = jax.eval_shape(optimizer.init, params)
        _, state = jax.eval_shape(optimizer.update, params, state, params)
        moments = state.momentum["w"], state.mu["bias"], state.nu["bias"]
        assert {m.dtype for m in moments} == {jnp.dtype(expected)}


MATRIX = {"w": jnp.ones((2, 3)), "bias": jnp.ones(3)}


@pytest.mark.parametrize(
    ("options", "params", "error", "match"),
    [
        ({}, {"bias": jnp.ones(3)}, ValueError,
         r"must have a matrix for `muon_tf`, got 1 leaves.*'bias' \(1 axes in torch\)"),
        ({}, {"wte": {"embedding": jnp.ones((2, 2))}}, ValueError, "'wte' in its name"),
        ({"matrices": "bias"}, MATRIX, ValueError, "selects 'bias'.* 1 axes in torch"),
        ({"matrices": ["w", "u"]}, MATRIX, ValueError, "'u' matches none of the 2"),
        ({"matrices": "("}, MATRIX, ValueError, "must be regular expressions"),
        ({"matrices": {"w": True}}, MATRIX, TypeError,
         "have a bool for each leaf, got None for 'bias'"),
        ({"matrices": {"w": 1, "bias": 0}}, MATRIX, TypeError,
         "have a bool for each leaf, got 0 for 'bias'"),
        ({}, [jnp.ones((2, 3))], ValueError, "must have names for the default `matr"),
        ({"momentum": 1.0}, MATRIX, ValueError, "`momentum` must be"),
        ({"ns_steps": 0}, MATRIX, ValueError, "`ns_steps` must be"),
        ({"ns_steps": 100}, MATRIX, ValueError, "`ns_steps` must be at most 99"),
        ({"ns_coefficients": (1, 2)}, MATRIX, ValueError, "must be three numbers"),
        ({"ns_eps": 0.0}, MATRIX, ValueError, "`ns_eps` must be"),
        ({"ns_dtype": "float16"}, MATRIX, ValueError, "`ns_dtype` must be one of"),
        ({"adjust_lr_fn": "rms"}, MATRIX, ValueError, "`adjust_lr_fn` must be one of"),
        ({"adamw_rate_factor": -1}, MATRIX, ValueError, "`adamw_rate_factor` must be"),
    ],
)  # fmt: skip
def test_refuses_what_it_cannot_update(options, params, error, match):
    with pytest.raises(error, match=match):
        muon_tf(0.1, **options).init(params)


def test_refuses_shards():
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    params = {"w": jnp.ones((2, 3))}
    init = jax.shard_map(
        lambda p: muon_tf(0.1).init(p).momentum,
        mesh=mesh,
        in_specs=jax.sharding.PartitionSpec("x"),
        out_specs=jax.sharding.PartitionSpec("x"),
    )
    with pytest.raises(ValueError, match="the iteration needs whole matrices"):
        init(params)
