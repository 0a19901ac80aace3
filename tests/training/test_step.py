"""The compiled step on a least-squares problem with a known solution."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_tf.optimizers import adamw_tf, clip
from jaxopt_tf.training import init_train_state, make_eval_step, make_train_step

pytestmark = [
    pytest.mark.promotion_of_others,  # optax.apply_updates
    pytest.mark.usefixtures("compiled_quickly"),
]


def loss_fn(params, batch):
    x, y = batch
    errors = x @ params["kernel"] - y
    return jnp.sum(errors**2), jnp.asarray(len(y), jnp.int32)


def schedule(step):
    return 0.1 / (1 + jnp.asarray(step, jnp.float32))


def make_optimizer():
    return optax.chain(clip(1.0), adamw_tf(schedule))


@pytest.fixture
def params(rng):
    return {"kernel": jnp.asarray(rng.normal(size=3), jnp.float32)}


@pytest.fixture
def batch(rng):
    return (
        np.asarray(rng.normal(size=(8, 3)), np.float32),
        np.asarray(rng.normal(size=8), np.float32),
    )


def test_takes_a_number_of_items_that_python_counts(params, batch):
    def counted_by_size(params, batch):
        return loss_fn(params, batch)[0], batch[1].size

    optimizer = make_optimizer()
    copy = jax.tree.map(jnp.copy, params)
    ones = make_train_step(loss_fn, optimizer)
    others = make_train_step(counted_by_size, optimizer)
    expected, _ = ones(init_train_state(copy, optimizer), batch)
    state, metrics = others(init_train_state(params, optimizer), batch)
    np.testing.assert_array_equal(state.params["kernel"], expected.params["kernel"])
    assert float(metrics.num_items) == 8


def test_updates_with_the_gradient_of_the_mean(params, batch):
    optimizer = make_optimizer()

    def mean(params):
        return loss_fn(params, batch)[0] / 8

    loss, grads = jax.value_and_grad(mean)(params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    expected = optax.apply_updates(params, updates)
    norm = float(jnp.linalg.norm(grads["kernel"]))

    train_step = make_train_step(loss_fn, optimizer)
    state, metrics = train_step(init_train_state(params, optimizer), batch)
    np.testing.assert_allclose(
        state.params["kernel"], expected["kernel"], rtol=1e-6, atol=1e-7
    )
    np.testing.assert_allclose(metrics.loss, loss, rtol=1e-6)
    np.testing.assert_allclose(metrics.norms.grads, norm, rtol=1e-6)
    assert float(metrics.num_items) == 8
    assert int(state.step) == 1


def test_reports_the_rate_that_the_update_used(params, batch):
    optimizer = make_optimizer()
    train_step = make_train_step(loss_fn, optimizer)
    state = init_train_state(params, optimizer)
    for step in range(3):
        state, metrics = train_step(state, batch)
        assert float(metrics.learning_rate) == float(schedule(step))


def test_reports_the_largest_rate_of_several_groups(params, batch):
    groups = {"fast": adamw_tf(0.5), "slow": adamw_tf(0.1)}
    names = jax.tree.map(lambda x: "slow" if x.ndim > 1 else "fast", params)
    optimizer = optax.multi_transform(groups, names)
    train_step = make_train_step(loss_fn, optimizer)
    _, metrics = train_step(init_train_state(params, optimizer), batch)
    assert float(metrics.learning_rate) == 0.5


def test_reports_no_rate_where_the_optimizer_keeps_none(params, batch):
    optimizer = optax.sgd(0.1)
    train_step = make_train_step(loss_fn, optimizer)
    _, metrics = train_step(init_train_state(params, optimizer), batch)
    assert np.isnan(metrics.learning_rate)


def test_is_traced_once_and_learns(params, batch):
    num_traces = 0

    def counted(params, batch):
        nonlocal num_traces
        num_traces += 1
        return loss_fn(params, batch)

    optimizer = make_optimizer()
    train_step = make_train_step(counted, optimizer)
    state, losses = init_train_state(params, optimizer), []
    for _ in range(100):
        state, metrics = train_step(state, batch)
        losses.append(float(metrics.loss))
    assert num_traces == 1
    assert int(state.step) == 100
    assert losses[-1] < losses[0]


def test_donates_the_buffers_of_the_old_state(params, batch):
    optimizer = make_optimizer()
    old = init_train_state(params, optimizer)
    make_train_step(loss_fn, optimizer)(old, batch)
    # Parameters and moments; a number that the step does not read is let go anyway.
    arrays = [leaf for leaf in jax.tree.leaves(old) if leaf.shape == (3,)]
    assert len(arrays) == 3
    assert all(leaf.is_deleted() for leaf in arrays)


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("policy", ["stop", "skip", "propagate"])
def test_copies_no_matrix_of_the_old_state(policy, per_layer):
    params = {
        "large": {"kernel": jnp.ones((80, 70)), "bias": jnp.ones(70)},
        "last": {"kernel": jnp.ones((70, 90)), "bias": jnp.ones(90)},
    }

    def squares(params, batch):
        x = jnp.tanh(batch @ params["large"]["kernel"] + params["large"]["bias"])
        x = x @ params["last"]["kernel"] + params["last"]["bias"]
        return jnp.sum(x**2), jnp.asarray(len(batch), jnp.int32)

    optimizer = make_optimizer()
    step = make_train_step(
        squares, optimizer, on_non_finite=policy, per_layer=per_layer
    )
    state = init_train_state(params, optimizer)
    program = step.lower(state, jnp.ones((8, 80))).compile().as_text()
    matrices = re.findall(r" = \w+\[\d+,\d+\]\S* copy\((%state\S*)\)", program)
    assert not matrices


def test_memory_of_a_step_is_that_of_gradients_and_updates():
    # Neither a second copy of the moments nor of the parameters.
    params = {f"kernel_{i}": jnp.ones((200, 300)) for i in range(4)}

    def squares(params, batch):
        return sum(jnp.sum(jnp.sin(batch * p)) for p in params.values()), 1

    optimizer = make_optimizer()
    state = init_train_state(params, optimizer)
    program = make_train_step(squares, optimizer).lower(state, jnp.ones(300)).compile()
    num_bytes = sum(leaf.nbytes for leaf in params.values())
    assert program.memory_analysis().temp_size_in_bytes < 2.2 * num_bytes


def test_metrics_and_state_keep_shapes_and_dtypes(params, batch):
    optimizer = make_optimizer()
    train_step = make_train_step(loss_fn, optimizer)
    state = init_train_state(params, optimizer, rng=0)
    step_with_key = make_train_step(lambda p, b, rng: loss_fn(p, b), optimizer)
    new_state, metrics = jax.eval_shape(step_with_key, state, batch)
    kinds = {(leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(metrics)}
    assert kinds == {((), "float32"), ((), "bool")}
    # Donation and `lax.scan` rely on it.
    assert jax.tree.map(jnp.shape, new_state) == jax.tree.map(jnp.shape, state)
    assert jax.tree.map(lambda x: x.dtype, new_state) == jax.tree.map(
        lambda x: x.dtype, state
    )

    def scanned(state, batches):
        return jax.lax.scan(train_step, state, batches)

    batches = jax.tree.map(lambda x: np.stack([x, x, x]), batch)
    state = init_train_state(jax.tree.map(jnp.copy, params), optimizer)
    state, metrics = jax.jit(scanned)(state, batches)
    assert int(state.step) == 3
    assert metrics.loss.shape == (3,)


def test_eval_step_gives_a_sum_and_a_count(params, batch):
    total, num_items = make_eval_step(loss_fn)(params, batch)
    np.testing.assert_allclose(total, loss_fn(params, batch)[0], rtol=1e-6)
    assert int(num_items) == 8
