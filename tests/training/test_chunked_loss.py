"""`chunked_cross_entropy` against `cross_entropy` of all logits, and its memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from jaxopt_tf.planning import is_compiler_installed, named_slice, slice_devices
from jaxopt_tf.sharding import make_mesh
from jaxopt_tf.training import (
    chunked_cross_entropy,
    cross_entropy,
    init_train_state,
    make_train_step,
)
from tests import references

# Compilation takes most of the time.
pytestmark = pytest.mark.usefixtures("compiled_quickly")
smoothed = pytest.mark.parametrize("factor", [0.0, 0.1], ids="factor={:g}".format)
CHUNKS = [1, 5, 12, 1000]  # tokens: one; 5 + 5 + 2 of 12; all; more than there are


def make_arrays(shape=(3, 4, 8, 11), *, seed=0, dtype=np.float32, ignored=0.3):
    """`hidden`, `head` and `labels` for B, T, E, C."""
    *rows, width, num_classes = shape
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(*rows, width)).astype(dtype)
    head = rng.normal(size=(width, num_classes)).astype(dtype)
    labels = rng.integers(0, num_classes, size=rows)
    labels[rng.random(rows) < ignored] = -100
    return hidden, head, labels.astype(np.int32)


def full(hidden, head, labels, *, chunk_size=None, mesh=None, **options):
    logits = jnp.einsum("bte,ec->btc", hidden, head)
    return cross_entropy(logits, labels, **options)


def sums_and_grads(loss, hidden, head, labels, **options):
    gradient = jax.value_and_grad(
        functools.partial(loss, **options), argnums=(0, 1), has_aux=True
    )
    (total, count), grads = jax.jit(gradient)(hidden, head, labels)
    return [np.asarray(x) for x in (total, count, *grads)]


@functools.cache
def of_all_logits(factor):
    return sums_and_grads(full, *make_arrays(), label_smoothing_factor=factor)


def assert_equal(ours, theirs, *, value=5e-7, grads=1e-6):
    """Compares sums within a few float32 ulps, and gradients by their 2-norm."""
    np.testing.assert_allclose(ours[0], theirs[0], rtol=value)
    assert ours[1] == theirs[1]
    for a, b in zip(ours[2:], theirs[2:], strict=True):
        assert a.dtype == b.dtype
        assert np.linalg.norm(a - b) <= grads * np.linalg.norm(b)


@smoothed
@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_is_the_loss_of_all_logits(chunk_size, factor):
    arrays = make_arrays()
    options = {"chunk_size": chunk_size, "label_smoothing_factor": factor}
    ours = sums_and_grads(chunked_cross_entropy, *arrays, **options)
    assert_equal(ours, of_all_logits(factor))


@smoothed
def test_evaluation_computes_the_loss_without_gradients(factor):
    arrays, options = make_arrays(), {"label_smoothing_factor": factor}
    loss = jax.jit(functools.partial(chunked_cross_entropy, chunk_size=5, **options))
    theirs = jax.jit(functools.partial(full, **options))(*arrays)
    np.testing.assert_allclose(loss(*arrays), theirs, rtol=5e-7)
    # Only the product that computes the logits remains.
    assert loss.lower(*arrays).compile().as_text().count(" dot(") <= 1


@settings(deadline=None, max_examples=6)
@given(
    shape=st.tuples(*(st.integers(1, n) for n in (3, 6, 4, 9))),
    chunk_size=st.integers(1, 20),
    ignored=st.sampled_from([0.0, 0.5, 1.0]),
    factor=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 99),
)
def test_any_shape_and_chunk(shape, chunk_size, ignored, factor, seed):
    arrays = make_arrays(shape, seed=seed, ignored=ignored)
    options = {"chunk_size": chunk_size, "label_smoothing_factor": factor}
    ours = sums_and_grads(chunked_cross_entropy, *arrays, **options)
    theirs = sums_and_grads(full, *arrays, **options)
    # The terms of a gradient may cancel, with one class to 0.
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6, atol=1e-6)
    assert ours[1] == theirs[1]
    for a, b in zip(ours[2:], theirs[2:], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@references.needs_transformers
@smoothed
def test_is_as_near_to_float64_as_all_logits(factor):
    torch = pytest.importorskip("torch")
    arrays = make_arrays((4, 32, 16, 300))
    hidden, head = (torch.tensor(x).double().requires_grad_() for x in arrays[:2])
    loss = torch.nn.functional.cross_entropy(
        (hidden @ head).flatten(0, 1),
        torch.tensor(arrays[2]).long().flatten(),
        label_smoothing=factor,
        reduction="sum",
    )
    loss.backward()
    count = np.float32((arrays[2] != -100).sum())
    grads = [x.grad.numpy().astype(np.float32) for x in (hidden, head)]
    exact = [loss.detach().numpy(), count, *grads]
    options = {"chunk_size": 50, "label_smoothing_factor": factor}
    assert_equal(sums_and_grads(chunked_cross_entropy, *arrays, **options), exact)


def test_float64_stays_float64():
    with jax.enable_x64(True):
        arrays = make_arrays(dtype=np.float64)
        ours = sums_and_grads(chunked_cross_entropy, *arrays, chunk_size=5)
        theirs = sums_and_grads(full, *arrays)
        assert ours[0].dtype == np.float64
        assert_equal(ours, theirs, value=1e-14, grads=1e-14)


def test_bfloat16_sums_in_float32():
    hidden, head, labels = make_arrays((4, 64, 16, 300))
    narrow = [jnp.asarray(x, jnp.bfloat16) for x in (hidden, head)]
    wide = [x.astype(jnp.float32) for x in narrow]
    ours = sums_and_grads(chunked_cross_entropy, *narrow, labels, chunk_size=40)
    exact = sums_and_grads(full, *wide, labels)
    assert ours[0].dtype == np.float32
    # The logits are not rounded: only the gradients are.
    np.testing.assert_allclose(ours[0], exact[0], rtol=5e-7)
    for a, b in zip(ours[2:], exact[2:], strict=True):
        assert a.dtype == jnp.bfloat16
        assert np.linalg.norm(a.astype(np.float32) - b) < 2**-8 * np.linalg.norm(b)


def test_large_logits_do_not_overflow():
    hidden, head, labels = make_arrays()
    arrays = 100 * hidden, 100 * head, labels
    ours = sums_and_grads(chunked_cross_entropy, *arrays, chunk_size=5)
    assert_equal(ours, sums_and_grads(full, *arrays))
    assert np.isfinite(ours[3]).all()


@smoothed
@pytest.mark.parametrize("label", [11, -1, -99, -101, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("axes", [None, "fsdp=2,tensor=4"])
def test_a_label_outside_the_vocabulary_is_nan(label, factor, axes):
    shape = (4, 4, 8, 11) if axes is None else (4, 4, 8, 12)
    hidden, head, labels = make_arrays(shape)
    labels[1, 2] = label if label != 11 else shape[-1]
    mesh = None if axes is None else make_mesh(axes)
    options = {"chunk_size": 5, "label_smoothing_factor": factor, "mesh": mesh}
    total, count, dx, _ = sums_and_nan(hidden, head, labels, **options)
    assert np.isnan(total)
    assert count == np.sum(labels != -100)
    assert np.isnan(dx[1, 2]).all()
    assert np.isfinite(np.delete(dx.reshape(16, -1), 6, axis=0)).all()


@functools.cache
def _nan_program(factor, mesh):
    loss = functools.partial(
        chunked_cross_entropy, chunk_size=5, label_smoothing_factor=factor, mesh=mesh
    )
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


def sums_and_nan(*arrays, chunk_size, label_smoothing_factor, mesh):
    (total, count), grads = _nan_program(label_smoothing_factor, mesh)(*arrays)
    return [np.asarray(x) for x in (total, count, *grads)]


def test_ignored_tokens_have_no_gradient_whatever_they_are():
    hidden, head, labels = make_arrays()
    labels[0, 1] = -100
    hidden[0, 1] = np.inf
    total, _, dx, dhead = sums_and_grads(
        chunked_cross_entropy, hidden, head, labels, chunk_size=5
    )
    assert np.isfinite(total)
    assert not dx[labels == -100].any()
    assert dx[labels != -100].all()
    assert dhead.shape == head.shape


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_labels_of_any_width_and_another_ignored_index(dtype):
    hidden, head, labels = make_arrays(ignored=0)
    options = {"chunk_size": 5, "ignore_index": 3}
    loss = jax.jit(functools.partial(chunked_cross_entropy, **options))
    ours = loss(hidden, head, labels.astype(dtype))
    theirs = jax.jit(functools.partial(full, ignore_index=3))(hidden, head, labels)
    np.testing.assert_allclose(ours, theirs, rtol=5e-7)


@smoothed
@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ("data=2,fsdp=2,tensor=2", (8, 5, 8, 12)),
        ("fsdp=4,tensor=2", (6, 5, 8, 12)),  # the batch is replicated
        ("data=4,fsdp=2", (8, 5, 7, 11)),  # the head is replicated
        ("tensor=8", (2, 5, 8, 16)),
    ],
    ids=["even", "uneven batch", "uneven head", "tensor"],
)
def test_a_mesh_changes_nothing(axes, shape, factor):
    arrays, mesh = make_arrays(shape), make_mesh(axes)
    options = {"chunk_size": 4, "label_smoothing_factor": factor}
    ours = sums_and_grads(chunked_cross_entropy, *arrays, mesh=mesh, **options)
    assert_equal(ours, sums_and_grads(full, *arrays, **options))


def test_runs_under_vmap():
    heads = np.stack([make_arrays(seed=n)[1] for n in range(3)])
    hidden, _, labels = make_arrays()

    def mean_grads(loss):
        def mean(hidden, head):
            total, count = loss(hidden, head, labels, chunk_size=5)
            return total / count

        return jax.jit(jax.vmap(jax.grad(mean, argnums=(0, 1)), in_axes=(None, 0)))

    ours = mean_grads(chunked_cross_entropy)(hidden, heads)
    theirs = mean_grads(full)(hidden, heads)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_trains_like_all_logits_with_accumulation(is_checkpointed):
    hidden, head, labels = make_arrays((2, 4, 8, 11))
    batch = {"x": jnp.stack([hidden, 2 * hidden]), "y": jnp.stack([labels, labels])}

    def trained(loss):
        def loss_fn(params, batch):
            x = jnp.einsum("bte,ef->btf", batch["x"], params["layer"])
            return loss(x, params["head"], batch["y"], chunk_size=3)

        if is_checkpointed:
            loss_fn = jax.checkpoint(loss_fn)
        params = {"layer": jnp.eye(8), "head": jnp.array(head)}  # donated by the step
        tx = optax.sgd(0.1)
        step = make_train_step(loss_fn, tx, gradient_accumulation_steps=2)
        state, metrics = step(init_train_state(params, tx), batch)
        return *jax.tree.leaves(state.params), metrics.loss

    for a, b in zip(trained(chunked_cross_entropy), trained(full), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)


def test_keeps_the_configured_precision_in_both_passes():
    hidden, head, labels = make_arrays()

    @jax.jit
    def loss(hidden, head):
        with jax.default_matmul_precision("highest"):
            return chunked_cross_entropy(hidden, head, labels, chunk_size=5)

    # JAX differentiates the traced function, after the context has been left.
    gradient = jax.grad(lambda *arrays: loss(*arrays)[0], argnums=(0, 1))
    text = str(jax.make_jaxpr(gradient)(hidden, head))
    precision = "precision=(Precision.HIGHEST, Precision.HIGHEST)"
    assert text.count("dot_general") == text.count(precision) == 3


def shapes(batch, length, width, num_classes, dtype=jnp.float32):
    return (
        jax.ShapeDtypeStruct((batch, length, width), dtype),
        jax.ShapeDtypeStruct((width, num_classes), dtype),
        jax.ShapeDtypeStruct((batch, length), jnp.int32),
    )


def test_memory_is_a_small_part_of_all_logits():
    arrays = shapes(8, 4096, 64, 128_256)
    loss = functools.partial(chunked_cross_entropy, chunk_size=512)
    gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    program = jax.jit(gradient).lower(*arrays).compile()
    all_logits = 4 * 8 * 4096 * 128_256  # 16.8 GB
    # A chunk is 1/64 of the tokens; its logits and their gradient are stored.
    assert program.memory_analysis().temp_size_in_bytes < 0.05 * all_logits


@pytest.mark.skipif(
    not is_compiler_installed(named_slice("v5e:2x4")),
    reason="libtpu is not installed: the compiler of TPUs is in it",
)
def test_gathers_the_head_once_and_reduces_its_gradient_once_on_a_tpu():
    mesh = make_mesh("data=2,fsdp=2,tensor=2", slice_devices(named_slice("v5e:2x4")))
    specs = (("data", "fsdp"),), ("fsdp", "tensor"), (("data", "fsdp"),)
    of_slice = shapes(16, 1024, 512, 16_384, jnp.bfloat16)
    arrays = [
        jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec))
        )
        for x, spec in zip(of_slice, specs, strict=True)
    ]

    def grads(hidden, head, labels):
        def mean(hidden, head):
            total, count = chunked_cross_entropy(
                hidden, head, labels, chunk_size=1024, mesh=mesh
            )
            return total / count

        return jax.grad(mean, argnums=(0, 1))(hidden, head)

    step = jax.jit(grads, out_shardings=tuple(x.sharding for x in arrays[:2]))
    program = step.lower(*arrays).compile()
    lines = program.as_text().splitlines()

    def results(name):
        found = [line.split(f" {name}(")[0] for line in lines if f" {name}(" in line]
        return [line.split(" = ")[1].split("{")[0] for line in found]

    assert results("all-gather") == ["bf16[512,8192]"]
    assert results("reduce-scatter") == ["f32[256,8192]"]
    # The gradient of the head over `data`, and those of the hidden states over
    # `tensor`; the others have one number per token of a chunk.
    reduced = results("all-reduce")
    assert sorted(r for r in reduced if "," in r) == [
        "bf16[4,1024,512]",
        "f32[256,8192]",
    ]
    assert all(r in ("f32[]", "f32[1024]") for r in reduced if "," not in r)
    assert not results("all-to-all") + results("collective-permute")
    # All logits of a device are 134 MB; the gathered head and its gradient are 25 MB.
    assert program.memory_analysis().temp_size_in_bytes < 8e7


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"hidden": jnp.zeros((6, 4))}, ValueError, r"`hidden` must be .*\[6, 4\]"),
        ({"hidden": jnp.zeros((2, 0, 4))}, ValueError, "at least one token"),
        ({"hidden": jnp.zeros((2, 3, 4), int)}, TypeError, "`hidden` must be float"),
        ({"head": jnp.zeros((8, 4))}, ValueError, r"`head` must be .*8, 4\]. Transp"),
        ({"head": jnp.zeros((4, 8), jnp.bfloat16)}, ValueError, "`head` .*dtype"),
        ({"labels": jnp.zeros((2, 4), int)}, ValueError, r"`labels` .* hidden \[2, 3"),
        ({"labels": jnp.zeros((2, 3))}, TypeError, "`labels` must be integers"),
        ({"chunk_size": 0}, ValueError, "`chunk_size` must be from 1"),
        ({"chunk_size": 2.5}, TypeError, "`chunk_size` must be a whole number"),
        ({"label_smoothing_factor": 1.0}, ValueError, "`label_smoothing_factor` must"),
    ],
)
def test_wrong_arguments_are_refused(changes, error, message):
    arguments = {
        "hidden": jnp.zeros((2, 3, 4)),
        "head": jnp.zeros((4, 8)),
        "labels": jnp.zeros((2, 3), int),
        "chunk_size": 4,
    }
    with pytest.raises(error, match=message):
        chunked_cross_entropy(**{**arguments, **changes})
