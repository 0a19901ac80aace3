"""Norms of gradients, updates and parameters in the metrics."""

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxopt_tf.optimizers import adamw_tf, clip
from jaxopt_tf.training import init_train_state, make_train_step

pytestmark = [
    pytest.mark.promotion_of_others,  # optax.apply_updates, flax's layers
    pytest.mark.usefixtures("compiled_quickly"),
]


def loss_fn(params, batch):
    x, y = batch
    hidden = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"])
    errors = hidden @ params["second"]["kernel"] - y
    return jnp.sum(errors**2), len(y)


@pytest.fixture
def params(rng):
    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "first": {"kernel": normal(3, 4), "bias": normal(4)},
        "second": {"kernel": normal(4, 2)},
    }


@pytest.fixture
def batch(rng):
    x, y = rng.normal(size=(8, 3)), rng.normal(size=(8, 2))
    return np.asarray(x, np.float32), np.asarray(y, np.float32)


def norm(tree):
    leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)]
    return np.linalg.norm(np.concatenate(leaves))


def test_norms_are_of_gradient_update_and_parameters_before_it(params, batch):
    optimizer = optax.chain(clip(0.1), adamw_tf(0.1))
    grads = jax.grad(lambda p: loss_fn(p, batch)[0] / 8)(params)
    before = jax.tree.map(np.array, params)
    train_step = make_train_step(loss_fn, optimizer, per_layer=True)
    state, metrics = train_step(init_train_state(params, optimizer), batch)
    change = jax.tree.map(lambda new, old: np.array(new) - old, state.params, before)
    for part, layer in [(lambda t: t, metrics.norms)] + [
        (lambda t, name=name: t[name], metrics.layers[name])
        for name in ("first", "second")
    ]:
        np.testing.assert_allclose(layer.grads, norm(part(grads)), rtol=1e-5)
        np.testing.assert_allclose(layer.updates, norm(part(change)), rtol=1e-5)
        np.testing.assert_allclose(layer.params, norm(part(before)), rtol=1e-5)
        ratio = norm(part(change)) / norm(part(before))
        np.testing.assert_allclose(layer.update_ratio, ratio, rtol=1e-5)
    assert set(metrics.layers) == {"first", "second"}


@pytest.mark.parametrize(("max_norm", "expected"), [(1e-3, True), (1e3, False)])
def test_reports_whether_it_clipped(params, batch, max_norm, expected):
    optimizer = optax.chain(clip(max_norm), adamw_tf(0.1))
    train_step = make_train_step(loss_fn, optimizer)
    _, metrics = train_step(init_train_state(params, optimizer), batch)
    assert bool(metrics.is_clipped) == expected


def test_without_clipping_nothing_is_clipped(params, batch):
    optimizer = optax.sgd(0.1)
    train_step = make_train_step(loss_fn, optimizer)
    _, metrics = train_step(init_train_state(params, optimizer), batch)
    assert not bool(metrics.is_clipped)
    assert metrics.layers == {}


def test_layers_of_linen_and_nnx_have_their_names(batch):
    x, y = batch
    linen = flax.linen.Dense(2)
    variables = linen.init(jax.random.key(0), x)

    def linen_loss(variables, batch):
        errors = linen.apply(variables, batch[0]) - batch[1]
        return jnp.sum(errors**2), len(y)

    graph, state = nnx.split(nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0))))

    def nnx_loss(state, batch):
        errors = nnx.merge(graph, state)(batch[0]) - batch[1]
        return jnp.sum(errors**2), len(y)

    for loss, params, name in [
        (linen_loss, variables, "params"),
        (nnx_loss, state, "layers.0"),
    ]:
        optimizer = optax.chain(clip(1.0), adamw_tf(0.1))
        train_step = make_train_step(loss, optimizer, per_layer=True)
        state, losses = init_train_state(params, optimizer), []
        for _ in range(20):
            state, metrics = train_step(state, batch)
            losses.append(float(metrics.loss))
        assert list(metrics.layers) == [name]
        assert losses[-1] < losses[0]
