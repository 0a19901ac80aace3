"""`adafactor_tf` against `transformers.optimization.Adafactor`."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_tf.optimizers import (
    TorchLayout,
    adafactor_tf,
    adafactor_trainer,
    get_learning_rate,
    set_learning_rate,
)
from jaxopt_tf.optimizers._adafactor import sum_sq_fused, sum_sq_two_pass
from tests import references
from tests.references import adafactor as reference

NUM_STEPS = 50
LIMIT = 2e-5

# Pairwise combinations: both values of each option with both values of every other.
COMBINATIONS = [
    {"beta1": 0.9, "weight_decay": 0.1},
    {},
    {"warmup_init": True, "beta1": 0.9, "weight_decay": 0.1},
    {"scale_parameter": False, "clip_threshold": 0.5, "weight_decay": 0.1},
    {"scale_parameter": False, "warmup_init": True, "decay_rate": -0.5},
    {"rate": 1e-3, "weight_decay": 0.1, "eps": (1e-6, 1e-2)},
    {"rate": 1e-3, "scale_parameter": False, "beta1": 0.9, "clip_threshold": 2.0},
]


def mask(params):
    return {name: name not in reference.UNDECAYED for name in params}


# Leaves on which every combination is run. The first one is run on all leaves.
FEW = ("scalar", "bias", "embedding", "conv2d.kernel", "layers.query")


def few(tree):
    return {name: tree[name] for name in FEW}


def arguments(rate=None, **options):
    """Returns our arguments and the reference's for one combination."""
    rates = None
    if rate is not None:
        options["relative_step"] = False
        rates = [rate * (1 - step / (2 * NUM_STEPS)) for step in range(NUM_STEPS)]
        table = jnp.asarray(rates, jnp.float32)
        rate = table.__getitem__
    return {"learning_rate": rate, **options}, {"rates": rates, **options}


def run(optimizer, params, grads, keep=None):
    """Returns parameters and state after all steps; after each one with `keep`."""

    def step(carry, g):
        p, state = carry
        updates, state = optimizer.update(g, state, p)
        p = optax.apply_updates(p, updates)
        return (p, state), keep and keep(updates, state)

    @jax.jit
    def all_steps(p, g):
        return jax.lax.scan(step, (p, optimizer.init(p)), g)

    (params, state), kept = all_steps(params, grads)
    return (params, state) if keep is None else (params, state, kept)


@pytest.fixture(scope="module")
def work():
    return reference.random_run(np.random.default_rng(0), NUM_STEPS)


@references.needs_transformers
@pytest.mark.parametrize("options", COMBINATIONS, ids=str)
def test_matches_transformers(work, options):
    params, grads = work if options == COMBINATIONS[0] else map(few, work)
    ours, theirs = arguments(**options)
    optimizer = adafactor_tf(
        **ours, layouts=reference.layouts_of(params), decay_mask=mask
    )
    end, state = run(optimizer, params, grads)
    f32, states = reference.transformers_run(params, grads, **theirs)
    f64, _ = reference.transformers_run(params, grads, dtype="float64", **theirs)
    found = reference.distances(
        reference.torch_views(end), f32, f64, reference.torch_views(params)
    )
    assert {n: d for n, d in found.items() if not d.reaches(LIMIT)} == {}
    # The state too: moments have torch's shapes, preceded by the stacked axes.
    for name in params:
        stacked = isinstance(reference.LEAVES[name].view(params[name]), list)
        for ours_key, key in [("nu_row", "row"), ("nu_col", "col"), ("nu", None)]:
            moment = getattr(state, ours_key)[name]
            if isinstance(moment, optax.MaskedNode):
                continue
            layers = list(moment) if stacked else [moment]
            for i, layer in enumerate(layers):
                theirs = states[f"{name}#{i}"][
                    f"exp_avg_sq_{key}" if key else "exp_avg_sq"
                ]
                np.testing.assert_allclose(layer, theirs, rtol=2e-6, err_msg=name)
    if "beta1" in options:
        for name, mu in reference.torch_views(state.mu).items():
            theirs = states[name]["exp_avg"]
            atol = LIMIT * np.max(np.abs(theirs))
            np.testing.assert_allclose(mu, theirs, atol=atol, err_msg=name)


@references.needs_transformers
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("size", [1.0, 1e-5], ids="size={:g}".format)
def test_matches_transformers_in_low_precision(rng, dtype, size):
    # At the small size float16 values are subnormal and have few bits.
    params = {"a": rng.uniform(0.5, 2.0, size=(16, 24)), "b": rng.uniform(1, 2, 200)}
    params = {name: jnp.asarray(p * size, dtype) for name, p in params.items()}
    grads = {
        name: jnp.asarray(rng.normal(size=(20, *p.shape)), dtype)
        for name, p in params.items()
    }
    ours, _ = run(adafactor_tf(eps=(1e-30, 1e-9)), params, grads)
    start = {name: np.asarray(p, np.float32) for name, p in params.items()}
    g32 = {name: np.asarray(g, np.float32) for name, g in grads.items()}
    theirs, _ = reference.transformers_adafactor(
        start, g32, dtype=dtype, eps=(1e-30, 1e-9)
    )
    for name, p in ours.items():
        assert p.dtype == dtype
        assert np.mean(theirs[name] != start[name]) > 0.8
        assert np.mean(np.asarray(p, np.float64) == theirs[name]) > 0.98


@references.needs_transformers
@pytest.mark.parametrize(
    "options",
    [
        {"lr": 1e-3, "relative_step": True},
        {"lr": 1e-3, "relative_step": False, "warmup_init": True},
    ],
    ids=str,
)
def test_refuses_what_transformers_refuses(options):
    assert reference.refusal(**options)
    options["learning_rate"] = options.pop("lr")
    with pytest.raises(ValueError, match=r"`(learning_rate|warmup_init)`"):
        adafactor_tf(**options)


def test_params_plus_updates_is_the_new_parameter(rng):
    p = jnp.asarray(rng.normal(size=(64, 64)) * 0.02, jnp.float32)
    g = jnp.asarray(rng.normal(size=(64, 64)), jnp.bfloat16)
    optimizer = adafactor_trainer(1e-3, beta1=0.9)
    updates, state = jax.jit(optimizer.update)(g, optimizer.init(p), p)
    assert updates.dtype == jnp.float32
    # Without decay, the update is the negative first moment.
    new = np.float32(np.float64(p) - np.float64(state.mu))
    assert np.mean(np.asarray(p + updates) == new) >= 0.998


def test_repeats_bit_for_bit(work):
    params, grads = work
    params, grads = few(params), few(grads)
    optimizer = adafactor_tf(beta1=0.9, weight_decay=0.1)
    first, second = (run(optimizer, params, grads) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_rescaled_gradients_change_nothing_at_first(rng):
    p = jnp.asarray(rng.normal(size=(8, 6)), jnp.float32)
    g = jnp.asarray(rng.normal(size=(8, 6)), jnp.float32)
    optimizer = adafactor_tf()
    state, update = optimizer.init(p), jax.jit(optimizer.update)
    once, _ = update(g, state, p)
    # A power of two, so that scaling by it rounds nothing.
    scaled, _ = update(g * 1024.0, state, p)
    np.testing.assert_allclose(once, scaled, rtol=1e-6)


def test_the_rms_of_an_update_stays_under_the_threshold(work):
    params, grads = work
    params, grads = jax.tree.map(np.zeros_like, few(params)), few(grads)
    optimizer = adafactor_trainer(1.0, clip_threshold=0.5)

    def rms(updates, state):
        return jax.tree.map(lambda u: jnp.sqrt(jnp.sum(u * u) / u.size), updates)

    *_, found = run(optimizer, params, grads, keep=rms)
    # Updates are differences of parameters, and have their rounding errors.
    assert max(float(np.max(x)) for x in found.values()) <= 0.5 * (1 + 1e-5)
    assert all(np.any(x > 0.5 * (1 - 1e-5)) for x in found.values())
    assert np.any(found["embedding"] < 0.49)
    *_, found = run(adafactor_trainer(1.0, clip_threshold=math.inf), params, grads, rms)
    assert np.max(found["embedding"]) > 1.5


def test_a_transposed_layout_only_swaps_row_and_col(rng):
    p = jnp.asarray(rng.normal(size=(8, 6)), jnp.float32)
    g = jnp.asarray(rng.normal(size=(8, 6)), jnp.float32)
    plain = adafactor_tf()
    turned = adafactor_tf(layouts={"kernel": TorchLayout.dense()})
    (u, state), (turned_u, turned_state) = (
        jax.jit(tx.update)({"kernel": g}, tx.init({"kernel": p}), {"kernel": p})
        for tx in (plain, turned)
    )
    np.testing.assert_allclose(u["kernel"], turned_u["kernel"], rtol=2e-5)
    for one, other in [
        (state.nu_row, turned_state.nu_col),
        (state.nu_col, turned_state.nu_row),
    ]:
        np.testing.assert_allclose(one["kernel"], other["kernel"], rtol=1e-6)


def test_a_stack_equals_its_layers(rng):
    # The layers differ in size, so that an RMS over all layers would be detected.
    size = np.asarray([1.0, 10.0, 0.1]).reshape(3, 1, 1)
    stack = {"kernel": np.float32(rng.normal(size=(3, 8, 6)) * size)}
    grads = {"kernel": np.float32(rng.normal(size=(10, 3, 8, 6)) * size)}
    options = {"weight_decay": 0.1, "beta1": 0.9}
    layouts = {"kernel": TorchLayout.dense().stacked()}
    stacked, _ = run(adafactor_tf(**options, layouts=layouts), stack, grads)
    layouts = {"kernel": TorchLayout.dense()}
    for i in range(3):
        one = {"kernel": stack["kernel"][i]}
        own = {"kernel": grads["kernel"][:, i]}
        alone, _ = run(adafactor_tf(**options, layouts=layouts), one, own)
        np.testing.assert_allclose(
            stacked["kernel"][i], alone["kernel"], rtol=1e-6, atol=1e-7
        )


def test_the_share_of_the_new_moment_is_exact_for_every_count():
    counts = np.unique(np.geomspace(1, 2**31 - 2, 2000).astype(np.int32))
    optimizer = adafactor_trainer(1e-3)
    p = jnp.ones((), jnp.float32)
    state = optimizer.init(p)

    @jax.jit
    @jax.vmap
    def new_share(count):
        # With zero moments and a gradient of 1, the moment is the gradient's weight.
        _, after = optimizer.update(p, state._replace(count=count - 1), p)
        return after.nu

    np.testing.assert_allclose(new_share(counts), np.float64(counts) ** -0.8, rtol=3e-7)
    assert new_share(counts)[0] == 1.0


@pytest.mark.parametrize("warmup_init", [False, True])
def test_the_relative_step_is_readable(warmup_init):
    optimizer = adafactor_tf(warmup_init=warmup_init)
    p = jnp.full((3,), 5.0)
    state, update = optimizer.init(p), jax.jit(optimizer.update)
    for t in (1, 2, 100, 40_000):
        state = state._replace(count=jnp.asarray(t - 1, jnp.int32))
        _, state = update(p, state, p)
        expected = min(1e-6 * t if warmup_init else 1e-2, 1 / math.sqrt(t))
        rate = get_learning_rate(state)
        np.testing.assert_allclose(rate, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="`opt_state` takes the learning rate"):
        set_learning_rate(state, 1e-3)


def test_a_float_rate_can_be_changed_between_steps():
    optimizer = adafactor_trainer(1e-3)
    p = jnp.full((3,), 5.0)
    chex.clear_trace_counter()
    update = jax.jit(chex.assert_max_traces(optimizer.update, n=1))
    first, state = update(p, optimizer.init(p), p)
    state = set_learning_rate(state, 2e-3)
    second, _ = update(
        p, optimizer.init(p)._replace(learning_rate=state.learning_rate), p
    )
    np.testing.assert_allclose(second, 2 * first, rtol=1e-3)


def test_counts_may_differ_per_leaf(rng):
    params = {"a": jnp.ones((4, 3)), "b": jnp.ones(5), "i": jnp.arange(3)}
    grads = {
        "a": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=5), jnp.float32),
        "i": np.zeros(3, jax.dtypes.float0),
    }
    optimizer = adafactor_tf(warmup_init=True)
    state = optimizer.init(params)
    counts = {"a": jnp.int32(4), "b": jnp.int32(9), "i": jnp.int32(0)}
    updates, after = optimizer.update(grads, state._replace(count=counts), params)
    for name, count in [("a", 4), ("b", 9)]:
        alone, _ = optimizer.update(
            grads, state._replace(count=jnp.int32(count)), params
        )
        np.testing.assert_array_equal(updates[name], alone[name])
        assert after.count[name] == count + 1
    np.testing.assert_allclose(after.learning_rate, 5e-6, rtol=1e-6)


def test_the_trainers_preset_has_a_constant_rate_and_no_scale():
    p = jnp.full((3,), 5.0)
    updates, state = adafactor_trainer(1e-3).update(
        p, adafactor_trainer(1e-3).init(p), p
    )
    np.testing.assert_allclose(updates, -1e-3, rtol=1e-3)
    assert get_learning_rate(set_learning_rate(state, 0.5)) == 0.5


def test_only_the_selected_leaves_are_decayed():
    params = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}
    grads = jax.tree.map(jnp.zeros_like, params)
    optimizer = adafactor_trainer(1e-2, weight_decay=0.5)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -5e-3, rtol=1e-4)
    np.testing.assert_array_equal(updates["bias"], 0.0)
    optimizer = adafactor_trainer(
        1e-2, weight_decay=0.5, decay_mask={"kernel": False, "bias": True}
    )
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_array_equal(updates["kernel"], 0.0)


def test_options_may_be_traced(rng):
    p = {"kernel": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)}
    g = {"kernel": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)}

    def update(lr, decay, clip, exponent, beta1):
        optimizer = adafactor_trainer(
            lr,
            weight_decay=decay,
            clip_threshold=clip,
            decay_rate=exponent,
            beta1=beta1,
        )
        return optimizer.update(g, optimizer.init(p), p)[0]["kernel"]

    settings = [
        [1e-3, 1e-2, 1e-2],
        [0.0, 0.0, 0.1],
        [1.0, 0.5, 0.5],
        [-0.8, -0.5, -0.8],
        [0.0, 0.9, 0.5],
    ]
    swept = jax.jit(jax.vmap(update))(*(jnp.float32(column) for column in settings))
    for i, setting in enumerate(zip(*settings, strict=True)):
        np.testing.assert_allclose(swept[i], update(*setting), rtol=1e-4, atol=1e-9)


def test_odd_leaves_are_passed_by_or_updated():
    params = {
        "scalar": jnp.float32(2.0),
        "no_rows": jnp.zeros((0, 3)),
        "no_columns": jnp.zeros((3, 0), jnp.bfloat16),
        "count": jnp.arange(3),
        "none": None,
        "frozen": optax.MaskedNode(),
        "half": jnp.ones((2, 2), jnp.float16),
    }
    grads = params | {"count": np.zeros(3, jax.dtypes.float0)}
    optimizer = adafactor_tf(beta1=0.9, weight_decay=0.1)
    updates, state = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert [u.dtype for u in jax.tree.leaves(updates)] == [
        p.dtype for p in jax.tree.leaves(params)
    ]
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((updates, state)))
    np.testing.assert_array_equal(updates["count"], 0)
    state = optimizer.init({})
    assert optimizer.update({}, state, {})[1].count == 1


def test_gradients_of_zeros_keep_everything_finite():
    params = {"kernel": jnp.ones((3, 3, 2, 2)), "bias": jnp.zeros(2)}
    grads = jax.tree.map(lambda p: jnp.zeros((5, *p.shape)), params)
    end, state = run(adafactor_tf(), params, grads)
    jax.tree.map(np.testing.assert_array_equal, end, params)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state))


@pytest.mark.parametrize(
    ("shape", "col_axes", "row_axes"),
    [((48, 80), (1,), (0,)), ((48, 80), (0,), (1,)), ((3, 8, 4, 16), (2, 3), (1,))],
    ids=["as stored", "transposed", "stacked heads"],
)
def test_all_devices_sum_the_same_squares(rng, shape, col_axes, row_axes):
    def ones_along(axes):
        return [1 if axis in axes else size for axis, size in enumerate(shape)]

    # Rows of very different sizes, so that a wrong weight is detected.
    by_row = np.exp(3 * rng.normal(size=ones_along(col_axes))).astype(np.float32)
    by_col = np.exp(3 * rng.normal(size=ones_along(row_axes))).astype(np.float32)
    grads = rng.normal(size=shape).astype(np.float32)
    u = np.float64(by_row) * by_col * grads
    exact = np.square(u).sum((*row_axes, *col_axes), keepdims=True)
    axes = {"row_axes": row_axes, "col_axes": col_axes}
    for sum_sq in (sum_sq_fused, sum_sq_two_pass):
        ours = jax.jit(functools.partial(sum_sq, **axes))(grads, by_row, by_col)
        np.testing.assert_allclose(ours, exact, rtol=2e-6)


def test_no_two_leaves_of_a_state_share_a_buffer():
    # XLA refuses to donate a state in which two leaves share a buffer.
    p = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}
    optimizer = adafactor_tf(beta1=0.9)
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(optimizer.init(p))]
    assert len(set(pointers)) == len(pointers)


def test_finds_the_minimum_of_a_quadratic(rng):
    target = jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)
    optimizer = adafactor_trainer(optax.linear_schedule(0.1, 0.0, 300))

    @jax.jit
    def train(p):
        def step(carry, _):
            p, state = carry
            updates, state = optimizer.update(p - target, state, p)
            return (p + updates, state), None

        return jax.lax.scan(step, (p, optimizer.init(p)), length=300)[0][0]

    np.testing.assert_allclose(train(jnp.zeros((6, 4))), target, atol=2e-3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"relative_step": False}, ValueError, "`learning_rate` must be given"),
        ({"learning_rate": 1e-3}, ValueError, "`learning_rate` must be None"),
        (
            {"warmup_init": True, "relative_step": False, "learning_rate": 1e-3},
            ValueError,
            "`warmup_init` requires",
        ),
        (
            {"learning_rate": -1.0, "relative_step": False},
            ValueError,
            "`learning_rate` must be .* at least 0",
        ),
        (
            {"learning_rate": math.nan, "relative_step": False},
            ValueError,
            "`learning_rate` must be",
        ),
        ({"eps": 1e-30}, TypeError, "`eps` must be a pair"),
        ({"eps": (1e-30, 1e-3, 0.0)}, TypeError, "`eps` must be a pair"),
        ({"eps": (-1e-30, 1e-3)}, ValueError, r"`eps\[0\]` must be"),
        ({"eps": (1e-30, math.nan)}, ValueError, r"`eps\[1\]` must be"),
        ({"clip_threshold": 0.0}, ValueError, "`clip_threshold` must be"),
        ({"clip_threshold": math.nan}, ValueError, "`clip_threshold` must be"),
        ({"decay_rate": 0.8}, ValueError, "`decay_rate` must .* other sign"),
        ({"decay_rate": math.nan}, ValueError, "`decay_rate` must be finite"),
        ({"decay_rate": -math.inf}, ValueError, "`decay_rate` must be finite"),
        ({"beta1": 1.0}, ValueError, "`beta1` must be"),
        ({"beta1": -0.1}, ValueError, "`beta1` must be"),
        ({"beta1": math.nan}, ValueError, "`beta1` must be"),
        ({"beta1": "0.9"}, TypeError, "`beta1` must be a real number"),
        ({"weight_decay": -0.1}, ValueError, "`weight_decay` must be"),
        ({"weight_decay": math.nan}, ValueError, "`weight_decay` must be"),
    ],
    ids=str,
)
def test_refuses_options_out_of_range(options, error, message):
    with pytest.raises(error, match=message):
        adafactor_tf(**options)


def test_refuses_trees_that_do_not_fit():
    optimizer = adafactor_tf()
    p = {"a": jnp.ones((4, 3))}
    with pytest.raises(TypeError, match="`params` must be float32"):
        optimizer.init({"a": jnp.ones(3, jnp.complex64)})
    with pytest.raises(TypeError, match="`params` must be float32"):
        optimizer.init({"a": np.ones(3)})
    state = optimizer.init(p)
    with pytest.raises(ValueError, match="`params` is required by `adafactor_tf`"):
        optimizer.update(p, state)
    with pytest.raises(ValueError, match="`grads` must have the structure"):
        optimizer.update({"b": p["a"]}, state, p)
    with pytest.raises(ValueError, match="`grads` must have the shapes"):
        optimizer.update({"a": jnp.ones((1, 3))}, state, p)
    with pytest.raises(TypeError, match="`grads` must be real floating-point"):
        optimizer.update({"a": jnp.ones((4, 3), jnp.int32)}, state, p)
    with pytest.raises(ValueError, match="`decay_mask` must have the structure"):
        adafactor_tf(decay_mask={"b": True}).init(p)
    with pytest.raises(ValueError, match="`layouts` must match"):
        adafactor_tf(layouts={"b": TorchLayout()}).init(p)
