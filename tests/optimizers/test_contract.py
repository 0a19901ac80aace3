"""Tests that every transformation must pass. Add a new one to the table."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import NamedSharding, PartitionSpec

from jaxopt_tf.optimizers import (
    TorchLayout,
    adafactor_tf,
    adafactor_trainer,
    adagrad_tf,
    adamw_hf_v4,
    adamw_tf,
    ademamix_tf,
    clip,
    ema_params,
    kahan_summation,
    lion_tf,
    muon_tf,
    rmsprop_tf,
    schedule_free_adamw_tf,
    schedule_free_sgd_tf,
    sgd_tf,
    stable_adamw_tf,
    stochastic_rounding,
)


def rising(step):
    return 1e-3 * (1.0 + jnp.asarray(step, jnp.float32))


def muon_of_stacks():
    """`muon_tf` with kernels of three axes, if there are any, as two matrices each.

    The iteration is in float32: in bfloat16 its products round otherwise under `vmap`.
    """

    def of(params):
        names = (
            ["kernel"] if getattr(params, "get", {}.get)("kernel") is not None else []
        )
        is_stack = any(params[name].ndim == 3 for name in names)
        layouts = {"kernel": TorchLayout.dense().stacked()} if is_stack else None
        return muon_tf(1e-3, ns_dtype="float32", layouts=layouts)

    def update(grads, state, params=None, **extra_args):
        return of(params).update(grads, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(lambda p: of(p).init(p), update)


TRANSFORMATIONS = {
    "clip": lambda: clip(1.0),
    "adamw_tf": lambda: adamw_tf(1e-3, weight_decay=0.1),
    "adamw_tf exact": lambda: adamw_tf(1e-3, weight_decay=0.1, decay="exact"),
    "adamw_tf own moments": lambda: adamw_tf(rising, moment_dtype=None),
    "adamw_hf_v4": lambda: adamw_hf_v4(1e-3, weight_decay=0.1),
    "adafactor_tf": lambda: adafactor_tf(),
    "adafactor_tf momentum": lambda: adafactor_tf(beta1=0.9, weight_decay=0.1),
    "adafactor_trainer": lambda: adafactor_trainer(rising, weight_decay=0.1),
    "sgd_tf": lambda: sgd_tf(1e-3),
    "sgd_tf momentum": lambda: sgd_tf(
        rising, momentum=0.9, dampening=0.1, weight_decay=0.1
    ),
    "adagrad_tf": lambda: adagrad_tf(rising, lr_decay=0.1, weight_decay=0.1),
    "rmsprop_tf": lambda: rmsprop_tf(1e-3),
    "rmsprop_tf all": lambda: rmsprop_tf(
        rising, momentum=0.9, centered=True, weight_decay=0.1
    ),
    "muon_tf": muon_of_stacks,
    "lion_tf": lambda: lion_tf(1e-3, weight_decay=0.1),
    "ademamix_tf": lambda: ademamix_tf(rising, weight_decay=0.1),
    "stable_adamw_tf": lambda: stable_adamw_tf(1e-3, weight_decay=0.1),
    "kahan_summation": lambda: kahan_summation(sgd_tf(1e-3)),
    "stochastic_rounding": lambda: stochastic_rounding(sgd_tf(1e-3)),
    "schedule_free_adamw_tf": lambda: schedule_free_adamw_tf(
        1e-3, weight_decay=0.1, warmup_steps=3
    ),
    "schedule_free_sgd_tf": lambda: schedule_free_sgd_tf(1e-3, weight_decay=0.1),
    "sgd_tf, ema_params": lambda: optax.chain(sgd_tf(1e-3), ema_params(0.9)),
    "clip, adamw_tf": lambda: optax.chain(clip(1.0), adamw_tf(rising)),
}
# Transformations whose `init(params)` returns a state per parameter.
OPTIMIZERS = [name for name in TRANSFORMATIONS if name != "clip"]

# Without variants: for wrappers and models, which see the kinds of state only.
VARIANTS = {
    *("adamw_tf exact", "adamw_tf own moments", "adafactor_tf", "adafactor_trainer"),
    *("sgd_tf", "rmsprop_tf", "schedule_free_sgd_tf"),
}

pytestmark = pytest.mark.usefixtures("compiled_quickly")

every_transformation = pytest.mark.parametrize("name", TRANSFORMATIONS)
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
every_algorithm = pytest.mark.parametrize(
    "name", [name for name in OPTIMIZERS if name not in VARIANTS]
)


def make_params(dtype=jnp.float32):
    shapes = {"kernel": (8, 4), "bias": (4,), "scalar": (), "stack": (2, 8, 4)}
    return {name: drawn(shape, dtype) for name, shape in shapes.items()}


def few_params():
    """Returns few parameters, for compiled steps: each leaf takes time to compile."""
    return {"kernel": drawn((2, 8, 4)), "scalar": drawn(())}


def drawn(shape, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.standard_normal(shape), dtype)


def avals(tree):
    return jax.tree.map(lambda x: (x.shape, jnp.dtype(x.dtype)), tree)


def apply(tx, params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


@every_transformation
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_update_keeps_shapes_and_dtypes(name, dtype):
    # `lax.scan`, buffer donation and checkpoints require this. Shapes are abstract.
    tx = TRANSFORMATIONS[name]()
    with jax.enable_x64(dtype == "float64"):
        params = jax.eval_shape(functools.partial(make_params, dtype))
        state = jax.eval_shape(tx.init, params)
        updates, new_state = jax.eval_shape(tx.update, params, state, params)
        assert avals(updates) == avals(params)
        assert avals(new_state) == avals(state)
        assert jax.tree.structure(new_state) == jax.tree.structure(state)
        if dtype == "float64":
            dtypes = {x.dtype for x in jax.tree.leaves(state)}
            # uint32: the key of `stochastic_rounding`.
            assert dtypes <= {jnp.dtype(d) for d in ("float64", "int32", "uint32")}


@every_optimizer
def test_updates_have_the_dtype_of_parameters_not_of_gradients(name):
    tx = TRANSFORMATIONS[name]()
    params, grads = make_params(), make_params(jnp.bfloat16)
    state = jax.eval_shape(tx.init, params)
    updates, _ = jax.eval_shape(tx.update, grads, state, params)
    assert avals(updates) == avals(params)


@every_transformation
def test_is_finite_on_zero_gradients(name):
    params = {
        "f32": drawn((8, 4)),
        "bf16": drawn((2, 8, 4), jnp.bfloat16),
        "f16": drawn((4, 8), jnp.float16),
        "vector": drawn((4,), jnp.float16),
        "scalar": drawn((), jnp.float16),
    }
    tx, zeros = TRANSFORMATIONS[name](), jax.tree.map(np.zeros_like, params)
    step = jax.jit(functools.partial(apply, tx))
    for leaf in jax.tree.leaves(step(params, tx.init(params), zeros)):
        assert np.all(np.isfinite(np.asarray(leaf, np.float32)))


@every_transformation
def test_is_traced_once_over_a_hundred_donated_steps_that_equal_a_scan(name):
    tx = TRANSFORMATIONS[name]()
    chex.clear_trace_counter()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    @chex.assert_max_traces(n=1)
    def step(params, state, grads):
        return apply(tx, params, state, grads)

    def body(carry, _):
        return apply(tx, *carry, grads), None

    params, grads = few_params(), few_params()
    state = tx.init(params)
    scanned, _ = jax.lax.scan(body, (params, state), length=3)
    for i in range(100):
        params, state = step(params, state, grads)
        if i == 2:
            chex.assert_trees_all_close((params, state), scanned, rtol=2e-6)


@every_transformation
def test_vmap_over_runs_equals_runs(name):
    tx = TRANSFORMATIONS[name]()
    runs = jax.tree.map(lambda p: np.stack([p, 2 * p, -p]), few_params())

    def first_update(params):
        return tx.update(params, tx.init(params), params)[0]

    together = jax.jit(jax.vmap(first_update))(runs)
    alone_compiled = jax.jit(first_update)
    for i, factor in enumerate([1, 2, -1]):
        alone = alone_compiled(jax.tree.map(lambda p, by=factor: by * p, few_params()))
        for key in alone:
            # One unit in the last place of the parameters, as updates are differences.
            np.testing.assert_allclose(
                together[key][i], alone[key], rtol=1e-5, atol=2.5e-7
            )


@every_algorithm
@pytest.mark.promotion_of_others
@pytest.mark.parametrize("wrapper", ["MultiSteps", "apply_if_finite", "multi"])
def test_works_inside_of_optax_wrappers(name, wrapper):
    tx, params = TRANSFORMATIONS[name](), few_params()
    labels = {"kernel": "ours", "scalar": "frozen"}
    wrapped = {
        "MultiSteps": lambda: optax.MultiSteps(tx, 2).gradient_transformation(),
        "apply_if_finite": lambda: optax.apply_if_finite(tx, 3),
        # It has each transformation in an `optax.masked`.
        "multi": lambda: optax.multi_transform(
            {"ours": tx, "frozen": optax.set_to_zero()}, labels
        ),
    }[wrapper]()
    step = jax.jit(functools.partial(apply, wrapped))
    state = wrapped.init(params)
    new = params
    for _ in range(2):
        new, state = step(new, state, params)
    assert np.any(np.asarray(new["kernel"]) != params["kernel"])
    if wrapper == "multi":
        np.testing.assert_array_equal(new["scalar"], params["scalar"])
    if wrapper == "apply_if_finite":
        nan = jax.tree.map(lambda p: np.full_like(p, np.nan), params)
        kept, _ = step(new, state, nan)
        np.testing.assert_array_equal(kept["kernel"], new["kernel"])


@pytest.mark.promotion_of_others
@pytest.mark.parametrize(
    "factory",
    [
        adamw_tf,
        adamw_hf_v4,
        adafactor_trainer,
        sgd_tf,
        adagrad_tf,
        ademamix_tf,
        lion_tf,
        clip,
        stable_adamw_tf,
        rmsprop_tf,
        schedule_free_adamw_tf,
        schedule_free_sgd_tf,
        ema_params,
        functools.partial(sgd_tf, momentum=0.9),
    ],
    ids=lambda factory: getattr(factory, "__name__", str(factory)[:40]),
)
def test_works_under_inject_hyperparams(factory):
    # No default is a callable, because optax would evaluate it as a schedule.
    wrapped = optax.inject_hyperparams(factory)(0.25)
    params = few_params()
    (injected, injected_state), (plain, plain_state) = (
        jax.jit(functools.partial(apply, tx))(params, tx.init(params), params)
        for tx in (wrapped, factory(0.25))
    )
    for key in params:
        np.testing.assert_allclose(injected[key], plain[key], rtol=1e-5)
    # The inner state equals that of the bare optimizer, in structure and values.
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
        injected_state.inner_state,
        plain_state,
    )


@every_algorithm
@pytest.mark.promotion_of_others
def test_trains_a_linen_model(name):
    model = nn.Dense(1)
    x, y = jnp.ones((4, 3)), jnp.full((4, 1), 2.0)
    state = TrainState.create(
        apply_fn=model.apply,
        params=model.init(jax.random.key(0), x),
        tx=TRANSFORMATIONS[name](),
    )

    def loss(params):
        return jnp.mean((model.apply(params, x) - y) ** 2)

    @jax.jit
    def step(state):
        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    before = loss(state.params)
    for _ in range(5):
        state = step(state)
    assert loss(state.params) < before


@every_algorithm
@pytest.mark.promotion_of_others
def test_trains_an_nnx_model(name):
    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, TRANSFORMATIONS[name](), wrt=nnx.Param)
    x, y = jnp.ones((4, 3)), jnp.full((4, 1), 2.0)

    @nnx.jit
    def step(model, optimizer):
        loss, grads = nnx.value_and_grad(lambda m: jnp.mean((m(x) - y) ** 2))(model)
        optimizer.update(model, grads)
        return loss

    losses = [step(model, optimizer) for _ in range(5)]
    assert losses[-1] < losses[0]


@every_transformation
def test_takes_scalars_empty_arrays_empty_trees_and_none(name):
    tx = TRANSFORMATIONS[name]()
    for params in [
        {},
        {"a": None},
        {"a": jnp.ones(()), "b": None, "c": jnp.ones((0, 3)), "d": jnp.ones((0,))},
    ]:
        updates, state = jax.jit(tx.update)(params, tx.init(params), params)
        assert avals(updates) == avals(params)
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state))


@every_optimizer
@pytest.mark.parametrize("kind", ["float0", "zeros"])
def test_integer_leaves_are_passed_by(name, kind):
    tx = TRANSFORMATIONS[name]()
    params = {"table": jnp.arange(4, dtype=jnp.int32), "w": jnp.ones((4, 4))}
    grads = {"table": jnp.zeros(4, jnp.int32), "w": jnp.ones((4, 4))}
    if kind == "float0":
        grads["table"] = np.zeros(4, jax.dtypes.float0)
    new, state = apply(tx, params, tx.init(params), grads)
    np.testing.assert_array_equal(new["table"], params["table"])
    assert new["table"].dtype == jnp.int32
    alone = {"w": params["w"]}
    without, _ = apply(tx, alone, tx.init(alone), {"w": grads["w"]})
    np.testing.assert_array_equal(new["w"], without["w"])
    assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(state))


def test_integers_of_any_width_are_left_unchanged():
    tx = adamw_tf(1e-3)
    kinds = ["int4", "uint4", "int8", "uint32", "bool"]
    params = {kind: jnp.ones(4, kind) for kind in kinds} | {"w": jnp.ones((4, 4))}
    new, _ = apply(tx, params, tx.init(params), params)
    for kind in kinds:
        assert new[kind].dtype == kind
        np.testing.assert_array_equal(new[kind], params[kind])


@pytest.mark.parametrize("name", ["adamw_tf", "adafactor_tf", "sgd_tf momentum"])
def test_float8_gradients_are_widened_exactly(name):
    # Only float8 parameters are too coarse for an update.
    tx, params = TRANSFORMATIONS[name](), few_params()
    narrow = jax.tree.map(lambda p: p.astype(jnp.float8_e4m3fn), params)
    wide = jax.tree.map(lambda g: g.astype(jnp.float32), narrow)
    step, state = jax.jit(functools.partial(apply, tx)), tx.init(params)
    new, expected = step(params, state, narrow)[0], step(params, state, wide)[0]
    for key in params:
        np.testing.assert_array_equal(new[key], expected[key])


@every_transformation
def test_a_jitted_step_lowers_for_every_platform(name):
    tx, platforms = TRANSFORMATIONS[name](), ("cpu", "cuda", "tpu")
    params = jax.eval_shape(few_params)
    state = jax.eval_shape(tx.init, params)
    traced = jax.jit(functools.partial(apply, tx)).trace(params, state, params)
    # Traced once and lowered for each platform alone, as on a machine that has it.
    for platform in platforms:
        assert traced.lower(lowering_platforms=(platform,)).as_text()


@every_optimizer
def test_state_takes_the_sharding_of_the_parameters(name):
    tx = TRANSFORMATIONS[name]()
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    params = {"kernel": jax.device_put(jnp.ones((8, 4)), sharding)}
    for leaf in jax.tree.leaves(tx.init(params)):
        if leaf.shape == (8, 4):
            assert leaf.sharding == sharding


@every_optimizer
@pytest.mark.parametrize(
    ("grads", "params", "error", "match"),
    [
        ({"w": jnp.ones((4, 3))}, None, ValueError, "`params` is required by"),
        ({"v": jnp.ones((4, 3))}, {"w": jnp.ones((4, 3))}, ValueError,
         "`grads` must have the structure of `params`: 2 leaves.*'v'"),
        ([jnp.ones((4, 3))], (jnp.ones((4, 3)),), ValueError,
         "`grads` must have the structure of `params`: .* differ, got list and tuple"),
        ({"w": 1.0}, {"w": 1.0}, TypeError,
         "`(params|updates)` must contain only arrays, got float"),
        ({"w": jnp.ones((1, 3))}, {"w": jnp.ones((4, 3))}, ValueError,
         r"`grads` must have the shapes.*1 leaves.*'w'.*\[1, 3\].*\[4, 3\]"),
        ({"w": jnp.ones(3, jnp.int32)}, {"w": jnp.ones(3)}, TypeError,
         "`grads` must be real floating-point.*'w' with dtype int32"),
        ({"w": jnp.ones(3)}, {"w": jnp.ones(3, jnp.complex64)}, TypeError,
         "`params` must be float32, .*'w' with dtype complex64"),
        ({"w": jnp.ones(3)}, {"w": jnp.ones(3, jnp.float8_e4m3fn)}, TypeError,
         "`params` must be float32, .*'w' with dtype float8_e4m3fn. Keep .*float32"),
        ({"w": jnp.ones(3)}, {"w": jnp.ones(3, jnp.float4_e2m1fn)}, TypeError,
         "`params` must be float32, .*'w' with dtype float4_e2m1fn"),
    ],
    ids=["no params", "tree", "kind", "number", "shape", "integer", "complex", "float8",
         "float4"],
)  # fmt: skip
def test_refuses_trees_that_do_not_fit(name, grads, params, error, match):
    tx = TRANSFORMATIONS[name]()
    with pytest.raises(error, match=match):
        tx.update(grads, tx.init({"w": jnp.ones((4, 3))}), params)


@every_optimizer
def test_a_step_can_be_differentiated(name):
    # Used to learn a learning rate, or to differentiate through an inner loop.
    params = {"w": jnp.asarray([[1.0, -2.0], [3.0, 4.0]])}

    def after_a_step(params):
        tx = TRANSFORMATIONS[name]()
        grads = {"w": jnp.ones((2, 2))}
        return jnp.sum(apply(tx, params, tx.init(params), grads)[0]["w"])

    slope = jax.jit(jax.grad(after_a_step))(params)["w"]
    np.testing.assert_allclose(slope, jnp.ones((2, 2)), atol=0.1)


@every_optimizer
def test_works_with_doubles_enabled(name):
    tx = TRANSFORMATIONS[name]()
    with jax.enable_x64(True):
        params = few_params()
        state = tx.init(params)
        new, new_state = jax.jit(functools.partial(apply, tx))(params, state, params)
        assert avals(new) == avals(params)
        assert avals(new_state) == avals(state)
    # Without x64 a float64 leaf is a NumPy array, which JAX would round silently.
    with pytest.raises(
        TypeError, match="`params` must be.*'w' with dtype float64.*x64"
    ):
        tx.init({"w": np.ones(3)})


@every_transformation
def test_update_ignores_extra_arguments(name):
    # Training loops pass `value=`, `grad=` and similar to every transformation.
    tx, params = TRANSFORMATIONS[name](), few_params()
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    state = jax.eval_shape(tx.init, params)
    extra = {"value": jnp.float32(1.0), "unknown": params}
    # The programs are equal. Comparing their text needs no compilation.
    expected, given = (
        jax.jit(functools.partial(tx.update, **kwargs))
        .lower(params, state, params)
        .as_text()
        for kwargs in ({}, extra)
    )
    assert given == expected


@pytest.mark.promotion_of_others
def test_an_nnx_optimizer_passes_extra_arguments():
    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, adamw_tf(1e-3), wrt=nnx.Param)
    grads = nnx.state(model, nnx.Param)
    optimizer.update(model, grads, value=jnp.float32(1.0))
    assert optimizer.step[...] == 1


@pytest.mark.parametrize(
    "name", ["adamw_tf", "adafactor_tf momentum", "adagrad_tf", "lion_tf"]
)
def test_float32_leaves_have_the_same_numbers_beside_float64_leaves(name):
    tx = TRANSFORMATIONS[name]()

    def after_two_steps(params):
        step = jax.jit(functools.partial(apply, tx))
        new, state = params, tx.init(params)
        for _ in range(2):
            new, state = step(new, state, params)
        trees = [new, *(tree for tree in state if isinstance(tree, dict))]
        return [{key: tree[key] for key in narrow} for tree in trees]

    narrow = few_params() | {"half": drawn((4, 3), jnp.bfloat16)}
    alone = after_two_steps(narrow)
    with jax.enable_x64(True):
        together = after_two_steps(narrow | {"wide": drawn((4, 3), jnp.float64)})
    assert avals(alone) == avals(together)
    chex.assert_trees_all_equal(alone, together)


@every_transformation
def test_map_params_of_optax_finds_what_belongs_to_parameters(name):
    tx, params = TRANSFORMATIONS[name](), few_params()
    state = jax.eval_shape(tx.init, params)
    marked = optax.tree.map_params(
        tx, lambda _: "param", state, transform_non_params=lambda _: "other"
    )
    for leaf, mark in zip(jax.tree.leaves(state), jax.tree.leaves(marked), strict=True):
        # Adafactor: also rows and columns, and unfactored moments of scalars.
        belongs = leaf.shape != () or mark == "param"
        assert mark == ("param" if belongs else "other")
    assert jax.tree.structure(marked) == jax.tree.structure(state)


@every_transformation
def test_init_takes_shapes_without_arrays(name):
    tx = TRANSFORMATIONS[name]()
    params = {"kernel": jax.ShapeDtypeStruct((2, 4, 8), jnp.float32)}
    assert avals(tx.init(params)) == avals(jax.eval_shape(tx.init, params))


@every_transformation
def test_an_explicit_sharding_is_kept_by_init_and_update(name):
    tx = TRANSFORMATIONS[name]()
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    sharding = NamedSharding(mesh, PartitionSpec(None, "x"))
    with jax.set_mesh(mesh):
        shape = jax.ShapeDtypeStruct((2, 8, 4), jnp.float16, sharding=sharding)

        def types():
            kernel = jnp.zeros(shape.shape, shape.dtype, out_sharding=sharding)
            params = {"kernel": kernel}
            state = tx.init(params)
            updates, new = tx.update(params, state, params)
            return tuple(
                jax.tree.map(lambda x: str(jax.typeof(x)), tree)
                for tree in (params, updates, state, new)
            )

        found = []
        jax.eval_shape(lambda: found.append(types()))
        params, updates, state, new = found[0]
    assert updates == params
    assert new == state


@every_optimizer
@pytest.mark.parametrize(
    "grads_dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"]
)
def test_multi_steps_keeps_dtypes_and_updates_by_zeros_between(name, grads_dtype):
    tx, params = TRANSFORMATIONS[name](), make_params(jnp.bfloat16)
    grads = make_params(grads_dtype)
    many = optax.MultiSteps(tx, every_k_schedule=2).gradient_transformation()
    state = jax.eval_shape(many.init, params)
    with jax.numpy_dtype_promotion("standard"):
        updates, new = jax.eval_shape(many.update, grads, state, params)
    assert avals(updates) == avals(params)
    assert avals(new.inner_opt_state) == avals(state.inner_opt_state)


@pytest.mark.parametrize(
    "factory",
    [adamw_tf, adafactor_trainer, sgd_tf],
    ids=lambda factory: factory.__name__,
)
def test_a_constant_schedule_equals_a_float(factory):
    params, new = few_params(), []
    for rate in (1e-3, lambda step: jnp.float32(1e-3)):
        tx = factory(rate)
        step = jax.jit(functools.partial(apply, tx))
        new.append(step(*step(params, tx.init(params), params), params)[0])
    for key in params:
        np.testing.assert_allclose(new[0][key], new[1][key], rtol=1e-6)


def test_optimistix_minimises_with_an_optimizer():
    solver = optimistix.OptaxMinimiser(adamw_tf(0.1), rtol=1e-5, atol=1e-5)
    found = optimistix.minimise(
        lambda params, _: jnp.sum((params["w"] - 3.0) ** 2),
        solver,
        {"w": jnp.zeros(2)},
        max_steps=500,
    )
    np.testing.assert_allclose(found.value["w"], 3.0, atol=0.1)
