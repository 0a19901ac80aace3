"""`cross_entropy` against Transformers' `LabelSmoother` and torch's `cross_entropy`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_tf.training import cross_entropy
from tests import references
from tests.references import losses as reference

# Op by op it would be compiled op by op.
compiled = jax.jit(
    cross_entropy, static_argnames=("label_smoothing_factor", "ignore_index")
)
smoothed = pytest.mark.parametrize("factor", [0.0, 0.1, 0.9], ids="factor={:g}".format)


@pytest.fixture
def logits(rng):
    return (3 * rng.normal(size=(4, 6, 11))).astype(np.float32)


@pytest.fixture
def labels(rng):
    labels = rng.integers(0, 11, size=(4, 6))
    labels[0, 3:] = labels[1] = labels[3, 0] = -100
    return labels


def mean(logits, labels, factor):
    total, num_items = cross_entropy(logits, labels, label_smoothing_factor=factor)
    return total / num_items


value_and_grad = jax.jit(jax.value_and_grad(mean), static_argnums=2)


def mean_and_grad(logits, labels, factor):
    loss, grad = value_and_grad(logits, labels, factor)
    return float(loss), np.asarray(grad.astype(jnp.float32))


@references.needs_transformers
@smoothed
@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4], ids="offset={:g}".format)
def test_is_the_loss_of_the_trainer(logits, labels, factor, offset):
    # Far from 0 a logarithm of a sum of exponentials would be good to 1e-3 only.
    logits = logits + np.float32(offset)
    loss, grad = mean_and_grad(logits, labels, factor)
    exact, exact_grad = reference.cross_entropy(
        logits.astype(np.float64), labels, factor
    )
    theirs, _ = reference.cross_entropy(logits, labels, factor)
    assert loss == pytest.approx(theirs, rel=1e-6)
    assert loss == pytest.approx(exact, rel=1e-6)
    np.testing.assert_allclose(grad, exact_grad, rtol=1e-5, atol=1e-8)


@references.needs_transformers
def test_is_that_of_a_classifier_too(logits, rng):
    of_rows, labels = logits[0], rng.integers(0, 11, size=6)
    loss, grad = mean_and_grad(of_rows, labels, 0.1)
    theirs, their_grad = reference.cross_entropy(of_rows, labels, 0.1)
    assert loss == pytest.approx(theirs, rel=1e-6)
    np.testing.assert_allclose(grad, their_grad, rtol=1e-5, atol=1e-8)


def test_counts_the_labels_that_are_not_ignored(logits, labels):
    total, num_items = compiled(logits, labels)
    assert float(num_items) == np.sum(labels != -100) == 14
    assert total.shape == num_items.shape == ()
    assert total.dtype == num_items.dtype == jnp.float32


def test_batches_in_parts_add_up(logits, labels):
    whole = compiled(logits, labels, label_smoothing_factor=0.1)
    parts = [
        compiled(z, y, label_smoothing_factor=0.1)
        for z, y in zip(logits, labels, strict=True)
    ]
    assert float(sum(n for _, n in parts)) == float(whole[1])
    assert float(sum(s for s, _ in parts)) == pytest.approx(float(whole[0]), rel=1e-6)


def test_what_is_ignored_counts_nowhere(logits, labels):
    def total(logits):
        return compiled(logits, labels, label_smoothing_factor=0.1)[0]

    changed = np.where((labels == -100)[..., None], logits[..., ::-1], logits)
    assert float(total(logits)) == float(total(changed))
    grad = jax.jit(jax.grad(total))(jnp.asarray(logits))
    assert not grad[labels == -100].any()
    assert grad[labels != -100].all()


def test_without_a_label_sum_and_number_are_0(logits):
    labels = np.full((4, 6), -100)
    assert tuple(map(float, compiled(logits, labels))) == (0.0, 0.0)


def test_another_index_can_be_ignored(logits, labels):
    labels = np.where(labels == -100, 0, labels)
    total, num_items = compiled(logits, labels, ignore_index=0)
    expected, _ = compiled(logits, np.where(labels == 0, -100, labels))
    assert float(total) == float(expected)
    assert float(num_items) == np.sum(labels != 0)


@smoothed
@pytest.mark.parametrize("label", [11, 12, -1, -99, -101, 2**31 - 1])
def test_a_label_outside_the_vocabulary_is_never_another_label(logits, factor, label):
    labels = np.zeros((4, 6), np.int32)
    labels[2, 2] = label
    loss, grad = mean_and_grad(logits, labels, factor)
    assert np.isnan(loss)
    assert np.isnan(grad[2, 2]).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.uint32, np.int64])
def test_takes_labels_of_any_width(logits, labels, dtype):
    labels = np.abs(labels) % 11
    expected, _ = compiled(logits, labels.astype(np.int32))
    total, num_items = compiled(logits, labels.astype(dtype))
    assert float(total) == float(expected)
    assert float(num_items) == 24


@smoothed
def test_sums_bfloat16_in_float32(logits, labels, factor):
    narrow = jnp.asarray(logits, jnp.bfloat16)
    loss, grad = mean_and_grad(narrow, labels, factor)
    wide, wide_grad = mean_and_grad(narrow.astype(jnp.float32), labels, factor)
    assert loss == wide
    np.testing.assert_allclose(grad, wide_grad, rtol=2**-8)


def test_a_class_that_is_ruled_out_does_no_harm(logits):
    logits[..., 10] = -np.inf
    labels = np.zeros((4, 6), np.int32)
    loss, grad = mean_and_grad(logits, labels, 0.0)
    expected, _ = mean_and_grad(logits[..., :10], labels, 0.0)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert np.isfinite(grad).all()


def test_needs_no_memory_for_a_one_hot_or_for_probabilities():
    logits = jax.ShapeDtypeStruct((32, 50257), jnp.float32)  # 6.4 MB
    labels = jax.ShapeDtypeStruct((32,), jnp.int32)
    gradient = jax.value_and_grad(cross_entropy, has_aux=True)
    program = jax.jit(gradient).lower(logits, labels).compile()
    assert program.memory_analysis().temp_size_in_bytes < 1e5


def test_refuses_logits_that_are_integers(labels):
    with pytest.raises(TypeError, match="`logits` must be floating-point, got int32"):
        cross_entropy(np.zeros((4, 6, 11), np.int32), labels)


def test_refuses_labels_that_are_no_integers(logits):
    with pytest.raises(TypeError, match="`labels` must be integers, got float32"):
        cross_entropy(logits, np.zeros((4, 6), np.float32))


@pytest.mark.parametrize("shape", [(4, 5), (4,), (4, 6, 1), (4, 6, 11)])
def test_refuses_labels_of_another_shape(logits, shape):
    with pytest.raises(ValueError, match=r"`labels` must have the shape .* got"):
        cross_entropy(logits, np.zeros(shape, np.int32))


@pytest.mark.parametrize("factor", [-0.1, 1.0, float("nan")])
def test_refuses_a_factor_that_is_no_share(logits, labels, factor):
    with pytest.raises(ValueError, match="`label_smoothing_factor` must be at least 0"):
        cross_entropy(logits, labels, label_smoothing_factor=factor)


def test_float64_logits_have_a_float64_loss_and_gradient(logits, labels):
    with jax.enable_x64(True):
        wide = np.float64(logits) / 3
        loss, grad = value_and_grad(wide, labels, 0.1)
    is_label = (labels != -100)[..., None]
    shares = np.exp(wide) / np.sum(np.exp(wide), -1, keepdims=True)
    targets = 0.9 * (labels[..., None] == np.arange(11)) + 0.1 / 11
    expected = -np.sum(is_label * targets * np.log(shares)) / is_label.sum()
    np.testing.assert_allclose(loss, expected, rtol=1e-14)
    exact = is_label * (shares - targets) / is_label.sum()
    assert grad.dtype == np.float64
    np.testing.assert_allclose(grad, exact, atol=1e-16)


def _gradient_of(labels):
    # A new function each time: a compiled one would keep the form of its first call.
    return jax.jit(jax.grad(lambda logits: cross_entropy(logits, labels)[0]))


def test_form_for_gpus_has_the_same_gradient(monkeypatch, rng):
    logits = jnp.asarray(3 * rng.normal(size=(4, 50)), jnp.float32)
    logits = logits.at[0, 3].set(-jnp.inf)  # a masked class
    labels = np.array([0, 49, -100, 7])
    loss, expected = cross_entropy(logits, labels)[0], _gradient_of(labels)(logits)

    def of_gpu(*args, cuda, **of_others):
        del of_others
        return cuda(*args)

    monkeypatch.setattr(jax.lax, "platform_dependent", of_gpu)
    assert cross_entropy(logits, labels)[0] == loss
    np.testing.assert_allclose(_gradient_of(labels)(logits), expected, atol=1e-7)


def test_gradient_is_no_scatter_on_gpus():
    # XLA for GPUs writes the operand of a scatter, [B, T, C] in float32, to memory.
    logits = jax.ShapeDtypeStruct((4, 50), "bfloat16")
    traced = _gradient_of(np.zeros(4, np.int32)).trace(logits)

    def lowered(platform):
        return traced.lower(lowering_platforms=(platform,)).as_text()

    assert "stablehlo.scatter" not in lowered("cuda")
    assert "stablehlo.scatter" in lowered("cpu")
