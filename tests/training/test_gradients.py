"""Accumulation, dropout keys, compute dtype and extra arguments of optimizers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxopt_tf.optimizers import adamw_tf, clip
from jaxopt_tf.training import MicroBatches, init_train_state, make_train_step

pytestmark = [
    pytest.mark.promotion_of_others,  # optax.apply_updates
    pytest.mark.usefixtures("compiled_quickly"),
]

# An optimizer whose state is the gradient that it was given.
READER = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda grads, state, params=None: (jax.tree.map(jnp.zeros_like, grads), grads),
)


def loss_fn(params, batch):
    """Squared errors of the rows that are not masked out."""
    x, y, mask = batch
    errors = jnp.tanh(x @ params["kernel"]) @ params["out"] - y
    return jnp.sum(mask * errors**2), jnp.sum(mask)


def make_params(rng):
    return {
        "kernel": jnp.asarray(rng.normal(size=(5, 7)), jnp.float32),
        "out": jnp.asarray(rng.normal(size=7), jnp.float32),
    }


def make_batch(rng, num_micro, size):
    """Micro-batches with unequal numbers of items; at least one is not masked."""
    mask = rng.random((num_micro, size)) < rng.random((num_micro, 1))
    mask[0, 0] = True
    x, y = rng.normal(size=(num_micro, size, 5)), rng.normal(size=(num_micro, size))
    return tuple(np.asarray(a, np.float32) for a in (x, y, mask))


def gradient_of(params, batch, **options):
    step = make_train_step(loss_fn, READER, **options)
    copy = jax.tree.map(jnp.copy, params)
    state, metrics = step(init_train_state(copy, READER), batch)
    return state.opt_state, metrics


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    num_micro=st.integers(1, 4),
    short_by=st.integers(0, 3),
)
@example(seed=815371, num_micro=1, short_by=0)  # the argument of tanh cancels
def test_accumulation_equals_one_large_batch(seed, num_micro, short_by):
    rng = np.random.default_rng(seed)
    params, micro = make_params(rng), make_batch(rng, num_micro, 6)
    # `short_by`: the window is shorter than the optimizer's usual one.
    options = {"gradient_accumulation_steps": max(2, num_micro + short_by)}
    grads, metrics = gradient_of(params, micro, **options)
    whole = tuple(a.reshape(-1, *a.shape[2:]) for a in micro)
    expected, expected_metrics = gradient_of(params, whole)

    loss, exact, sizes = in_doubles(params, whole)
    # A loss near 0 is the difference of numbers near 1, each with an error of an ulp.
    ulp = np.finfo(np.float32).eps
    np.testing.assert_allclose(metrics.loss, loss, rtol=1e-6, atol=ulp)
    np.testing.assert_allclose(metrics.num_items, expected_metrics.num_items)
    for name, g in grads.items():
        assert np.all(np.abs(g - expected[name]) <= 1e-6 * sizes[name])
        assert np.all(np.abs(g - exact[name]) <= 1e-6 * sizes[name])


def test_micro_batches_of_different_shapes_are_accumulated():
    rng = np.random.default_rng(0)
    params = make_params(rng)
    micro = [make_batch(rng, 1, size) for size in (6, 6, 2)]
    micro = [tuple(a[0] for a in batch) for batch in micro]
    options = {"gradient_accumulation_steps": 3}
    grads, metrics = gradient_of(params, MicroBatches(tuple(micro)), **options)
    whole = tuple(np.concatenate(arrays) for arrays in zip(*micro, strict=True))
    expected, expected_metrics = gradient_of(params, whole)
    np.testing.assert_allclose(metrics.num_items, expected_metrics.num_items)
    for name, g in grads.items():
        np.testing.assert_allclose(g, expected[name], rtol=2e-6, atol=1e-6)
    # Of equal shapes, they have the numbers of one stacked array.
    equal = MicroBatches(tuple(micro[:2]))
    stacked = tuple(np.stack(arrays) for arrays in zip(*micro[:2], strict=True))
    for a, b in zip(
        jax.tree.leaves(gradient_of(params, equal, **options)),
        jax.tree.leaves(gradient_of(params, stacked, **options)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    with pytest.raises(ValueError, match="`batch.batches` must contain 1 to"):
        gradient_of(params, MicroBatches(()), **options)


def in_doubles(params, batch):
    """The loss, its gradients by hand, and the sums of the sizes of what they sum.

    What cancels in a sum is rounded by its size before.
    """
    kernel, out = (np.float64(params[name]) for name in ("kernel", "out"))
    x, y, mask = (np.float64(a) for a in batch)
    hidden = np.tanh(x @ kernel)
    errors = hidden @ out - y

    def gradients(rows, x, hidden, out, slope):
        return {
            "kernel": np.einsum("b,bi,j,bj->ij", rows, x, out, slope),
            "out": rows @ hidden,
        }

    slope, each = 1 - hidden**2, 2 * mask / mask.sum()
    exact = gradients(each * errors, x, hidden, out, slope)
    # The argument of tanh is a sum, too.
    of_hidden = np.abs(hidden) + slope * (np.abs(x) @ np.abs(kernel))
    sizes = each * (of_hidden @ np.abs(out) + np.abs(y))
    sizes = gradients(sizes, np.abs(x), of_hidden, np.abs(out), 1 + of_hidden**2)
    return np.sum(mask * errors**2) / mask.sum(), exact, sizes


def test_sums_bfloat16_gradients_in_float32(rng):
    # 300 gradients of 1: in bfloat16 the sum would stop at 256.
    step = make_train_step(
        lambda p, b: (jnp.sum(p * b), 1), READER, gradient_accumulation_steps=300
    )
    state = init_train_state(jnp.ones(1, jnp.bfloat16), READER)
    state, _ = step(state, np.ones((300, 1), np.float32))
    np.testing.assert_allclose(state.opt_state, [1.0], rtol=1e-6)


def test_costs_one_float32_copy_of_the_gradients():
    optimizer = optax.chain(clip(1.0), adamw_tf(1e-3))
    params = {f"h{i}": jax.ShapeDtypeStruct((256, 256), jnp.float32) for i in range(8)}

    def loss(params, batch):
        for kernel in params.values():
            batch = jnp.tanh(batch @ kernel)
        return jnp.sum(batch**2), batch.size

    def temporary(shape, **options):
        step = make_train_step(loss, optimizer, **options)
        state = jax.eval_shape(lambda p: init_train_state(p, optimizer), params)
        lowered = step.lower(state, jax.ShapeDtypeStruct(shape, jnp.float32))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    one = temporary((32, 256))
    several = temporary((4, 32, 256), gradient_accumulation_steps=4)
    num_bytes = 8 * 256 * 256 * 4
    # A tenth over for the scan's own scalars and slices; two copies would be 2.0.
    assert several - one < 1.1 * num_bytes


def noisy_loss(params, batch, rng):
    noise = jax.random.normal(rng, batch.shape)
    return jnp.sum(params * noise), batch.size


def test_every_step_and_every_micro_batch_has_its_own_key():
    step = make_train_step(noisy_loss, READER, gradient_accumulation_steps=2)
    state = init_train_state(jnp.ones(()), READER, rng=7)
    grads, again = [], []
    for _ in range(3):
        state, _ = step(state, np.ones((2, 3), np.float32))
        grads.append(float(state.opt_state))
    assert len(set(grads)) == 3
    key = jax.random.fold_in(jax.random.key(7), 2)
    noise = [
        jax.random.normal(jax.random.fold_in(key, i), (3,)).sum() for i in range(2)
    ]
    np.testing.assert_allclose(grads[2], sum(noise) / 6, rtol=1e-5)
    state = init_train_state(jnp.ones(()), READER, rng=jax.random.key(7))
    for _ in range(3):
        state, _ = step(state, np.ones((2, 3), np.float32))
        again.append(float(state.opt_state))
    assert again == grads


def test_computes_in_the_dtype_asked_for_and_updates_in_float32():
    seen = []

    def loss(params, batch):
        seen.append(params["kernel"].dtype)
        return jnp.sum(batch @ params["kernel"]), batch.size

    optimizer = adamw_tf(0.1)
    step = make_train_step(loss, optimizer, compute_dtype=jnp.bfloat16)
    params = {"kernel": jnp.ones((3, 2)), "ids": jnp.arange(3)}
    params.pop("ids")
    state = init_train_state(params, optimizer)
    state, metrics = step(state, np.ones((4, 3), jnp.bfloat16))
    assert seen == [jnp.bfloat16]
    assert state.params["kernel"].dtype == jnp.float32
    assert metrics.loss.dtype == jnp.float32


def test_hands_value_and_more_to_an_optimizer_that_wants_them():
    seen = {}

    def update(grads, state, params=None, *, value, grad, value_fn, metric, **rest):
        assert not rest
        seen.update(grad=grad)
        return jax.tree.map(jnp.zeros_like, grads), (value, value_fn(params), metric)

    def init(params):
        return (jnp.float32(0), jnp.float32(0), jnp.float32(0))

    picky = optax.GradientTransformationExtraArgs(init, update)
    optimizer = optax.chain(clip(1.0), picky)
    step = make_train_step(loss_fn, optimizer, gradient_accumulation_steps=3)
    rng = np.random.default_rng(0)
    state = init_train_state(make_params(rng), optimizer)
    state, metrics = step(state, make_batch(rng, 3, 4), metric=np.float32(5))
    value, asked_again, metric = state.opt_state[1]
    assert float(value) == float(metrics.loss)
    np.testing.assert_allclose(asked_again, metrics.loss, rtol=1e-6)
    assert float(metric) == 5.0
    assert set(seen["grad"]) == {"kernel", "out"}


@pytest.mark.parametrize(
    "make", [lambda: optax.polyak_sgd(0.1), optax.lbfgs], ids=["polyak", "lbfgs"]
)
def test_line_searches_and_value_driven_steps_work(make, rng):
    optimizer, losses = make(), []
    step = make_train_step(loss_fn, optimizer)
    state = init_train_state(make_params(rng), optimizer)
    batch = tuple(a[0] for a in make_batch(rng, 1, 8))
    for _ in range(10):
        state, metrics = step(state, batch)
        losses.append(float(metrics.loss))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("shape", [(4, 2), (0, 2), ()])
def test_refuses_a_batch_that_is_no_window(shape):
    step = make_train_step(
        lambda p, b: (jnp.sum(p * b), 1), READER, gradient_accumulation_steps=3
    )
    with pytest.raises(ValueError, match=r"`batch` must have a first axis of 1 to"):
        step(init_train_state(jnp.ones(2), READER), np.ones(shape, np.float32))


def test_refuses_leaves_that_disagree_on_the_window():
    step = make_train_step(
        lambda p, b: (jnp.sum(p * b["x"]), 1), READER, gradient_accumulation_steps=3
    )
    batch = {"x": np.ones((2, 2), np.float32), "y": np.ones((3, 2), np.float32)}
    with pytest.raises(ValueError, match="`batch` must have a first axis"):
        step(init_train_state(jnp.ones(2), READER), batch)


@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_refuses_a_number_of_micro_batches_below_1(value):
    with pytest.raises((ValueError, TypeError), match="`gradient_accumulation_steps`"):
        make_train_step(loss_fn, READER, gradient_accumulation_steps=value)


@pytest.mark.parametrize("num_micro", [1, 3])
def test_float64_parameters_have_float64_gradients_and_metrics(rng, num_micro):
    micro = make_batch(rng, num_micro, 7)
    whole = tuple(a.reshape(-1, *a.shape[2:]) for a in micro)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: p.astype(jnp.float64) / 3, make_params(rng))
        batch = whole if num_micro == 1 else micro
        options = {"gradient_accumulation_steps": num_micro, "per_layer": True}
        grads, metrics = gradient_of(params, batch, **options)
    loss, exact, _ = in_doubles(params, whole)
    np.testing.assert_allclose(metrics.loss, loss, rtol=1e-14)
    norm = np.sqrt(sum(np.sum(g**2) for g in exact.values()))
    np.testing.assert_allclose(metrics.norms.grads, norm, rtol=1e-14)
    for name, g in grads.items():
        assert metrics.layers[name].grads.dtype == g.dtype == jnp.float64
        np.testing.assert_allclose(g, exact[name], rtol=1e-11)
