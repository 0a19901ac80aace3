"""Meshes with axes of the type `Explicit`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxopt_tf import adamw_tf, clip, init_train_state, make_train_step
from jaxopt_tf.optimizers import (
    TorchLayout,
    adafactor_tf,
    adafactor_trainer,
    rmsprop_tf,
)
from jaxopt_tf.sharding import param_shardings, state_shardings

pytestmark = pytest.mark.usefixtures("compiled_quickly")

SHAPES = {
    "w": (8, 16),
    "odd": (3, 8),
    "q.kernel": (8, 2, 4),
    "bias": (4, 8),
    "v": (16,),
}
LAYOUTS = {"q.kernel": TorchLayout.dense_general(1, 2), "bias": TorchLayout.flat(2)}
OPTIMIZERS = {
    "adamw": lambda: optax.chain(clip(0.1), adamw_tf(1e-3, weight_decay=0.1)),
    "adafactor": lambda: adafactor_trainer(1e-3, layouts=LAYOUTS),
    "momentum": lambda: adafactor_tf(beta1=0.9, weight_decay=0.1, layouts=LAYOUTS),
    "rmsprop": lambda: rmsprop_tf(1e-3, momentum=0.9),
}
PLACES = {
    "fsdp, tensor": (P("fsdp", "tensor"), None),
    "zero": (P("tensor"), "fsdp"),  # which meet on one axis
}


def draw(seed, scale):
    rng = np.random.default_rng(seed)
    return {
        name: (scale * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in SHAPES.items()
    }


PARAMS, GRADS = draw(0, 0.02), draw(1, 0.01)


@pytest.fixture(scope="module")
def mesh():
    kinds = (jax.sharding.AxisType.Explicit,) * 2
    return jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=kinds)


def types(tree):
    return jax.tree.map(jax.typeof, tree)


def two_updates(tx, params, state, grads):
    _, state = tx.update(grads, state, params)
    return tx.update(grads, state, params)


@pytest.fixture(scope="module")
def on_one_device():
    def updates(name):
        tx = OPTIMIZERS[name]()
        step = jax.jit(functools.partial(two_updates, tx))
        return jax.device_get(step(PARAMS, tx.init(PARAMS), GRADS)[0])

    return functools.cache(updates)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("adamw", "fsdp, tensor"),
        ("adamw", "zero"),
        ("adafactor", "zero"),
        ("momentum", "zero"),
        ("rmsprop", "zero"),
    ],
)
def test_a_step_gives_the_numbers_and_the_types_it_took(
    on_one_device, mesh, name, place
):
    tx, (spec, zero_axis) = OPTIMIZERS[name](), PLACES[place]
    shardings = param_shardings(PARAMS, mesh, {".*": spec})
    params, grads = (jax.device_put(x, shardings) for x in (PARAMS, GRADS))
    over = state_shardings(
        jax.eval_shape(tx.init, params), params, shardings, zero_axis=zero_axis
    )
    with jax.set_mesh(mesh):
        state = jax.jit(tx.init, out_shardings=over)(params)
        updates, new = jax.jit(functools.partial(two_updates, tx))(params, state, grads)
    assert types(updates) == types(params)
    assert types(new) == types(state)
    for key, theirs in on_one_device(name).items():
        atol = 1e-6 * np.max(np.abs(theirs)) + np.spacing(2 * np.abs(PARAMS[key]))
        assert np.all(np.abs(np.asarray(updates[key]) - theirs) <= atol), key


def test_new_state_is_sharded_like_the_parameters(mesh):
    shardings = param_shardings(PARAMS, mesh, {".*": P("fsdp", "tensor")})
    params = jax.device_put(PARAMS, shardings)
    with jax.set_mesh(mesh):
        adamw = jax.jit(adamw_tf(1e-3).init)(params)
        adafactor = jax.jit(OPTIMIZERS["adafactor"]().init)(params)
    assert types(adamw.mu) == types(adamw.nu) == types(params)
    assert jax.typeof(adafactor.nu_row["w"]).sharding.spec == P("fsdp")
    assert jax.typeof(adafactor.nu_col["w"]).sharding.spec == P("tensor")


def test_accepts_unreduced_gradients(mesh):
    tx = adamw_tf(1e-3)
    x, y = np.ones((2, 8), np.float32), np.ones((2, 8), np.float32)

    def update(x, y):
        params = {"w": jnp.zeros((8, 8))}
        grads = jnp.einsum("bi,bj->ij", x, y, out_sharding=P(unreduced={"tensor"}))
        updates, state = tx.update({"w": grads}, tx.init(params), params)
        return updates, state.mu["w"]

    with jax.set_mesh(mesh):
        updates, mu = jax.jit(update)(*jax.device_put((x, y), P("tensor")))
    np.testing.assert_allclose(mu, np.full((8, 8), 0.2), rtol=1e-6)
    assert jax.typeof(updates["w"]).sharding.spec == P(None, None)


def loss_fn(params, batch):
    x, y = batch
    w = params["w"]
    if not jax.sharding.get_abstract_mesh().empty:
        w = jax.sharding.reshard(w, P())  # the explicit way to gather weights
    return jnp.sum((x @ w - y) ** 2), x.shape[0]


def test_a_training_step_accumulates(mesh):
    x, y = np.ones((3, 8, 4), np.float32), np.full((3, 8, 16), 2.0, np.float32)
    params = {"w": np.full((4, 16), 0.1, np.float32)}
    tx = optax.chain(clip(1.0), adamw_tf(1e-3))
    step = make_train_step(loss_fn, tx, gradient_accumulation_steps=3)
    _, expected = step(init_train_state(jax.tree.map(jnp.array, params), tx), (x, y))
    with jax.set_mesh(mesh):
        state = init_train_state(jax.device_put(params, P("fsdp", "tensor")), tx)
        before = types(state.params)
        batch = jax.device_put((x, y), P(None, "fsdp"))
        state, metrics = step(state, batch)
    assert types(state.params) == types(state.opt_state[1].mu) == before
    assert bool(metrics.is_clipped)
    for ours, theirs in zip(
        jax.tree.leaves(metrics), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
