"""Attention implementations against each other, torch and float64, and on meshes."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxopt_tf.models import _attention
from jaxopt_tf.models._attention import make_attention
from jaxopt_tf.planning import is_compiler_installed, named_slice, slice_devices
from jaxopt_tf.sharding import make_mesh
from tests import references

# JAX's kernel relies on implicit promotion where it is interpreted. Compilation takes
# most of the time.
pytestmark = [
    pytest.mark.promotion_of_others,
    pytest.mark.usefixtures("compiled_quickly"),
]
needs_tpu_compiler = pytest.mark.skipif(
    not is_compiler_installed(named_slice("v5e:2x4")),
    reason="libtpu is not installed: the compiler of TPUs is in it",
)
# Name: T, H, K, window, whether rows have segments. The XLA form has 2 blocks for 260
# tokens and 4 for 520, the kernel has 1 and 2 tiles, with padding.
CASES = {
    "grouped": (260, 4, 2, None, False),
    "window": (260, 2, 1, 50, False),
    "window across tiles": (520, 2, 2, 470, True),
    "segments": (260, 4, 1, None, True),
    "short": (40, 2, 1, None, False),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
# Outputs are of size 1, and float32 sums of up to 520 terms differ by a few 2^-24.
NOISE = {"rtol": 2e-5, "atol": 3e-6}


def make_inputs(case, *, batch=2, size=16, dtype=np.float32):
    length, num_heads, num_keys, window, has_segments = case
    rng = np.random.default_rng(0)
    q, k, v, dy = (
        rng.normal(size=(batch, length, heads, size)).astype(dtype)
        for heads in (num_heads, num_keys, num_keys, num_heads)
    )
    ids = np.sort(rng.integers(0, 4, size=(batch, length)), axis=1).astype(np.int32)
    options = {"window": window, "segment_ids": ids if has_segments else None}
    return (q, k, v), dy, options


def is_visible(length, window, ids):
    distance = np.arange(length)[:, None] - np.arange(length)
    mask = (distance >= 0) & (distance < (window or length))
    if ids is None:
        return mask[None]
    return mask & (ids[:, :, None] == ids[:, None, :])


def output_and_grads(attend, arrays, dy, options):
    @jax.jit
    def run(arrays, segment_ids):
        full = {**options, "segment_ids": segment_ids}
        y, backward = jax.vjp(lambda *a: attend(*a, **full), *arrays)
        return y, *backward(jnp.asarray(dy, y.dtype))

    results = run(arrays, options["segment_ids"])
    return [np.asarray(x.astype(jnp.float32)) for x in results]


def assert_close(ours, theirs, **tolerance):
    for name, a, b in zip(("y", "dq", "dk", "dv"), ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, err_msg=name, **tolerance)


@functools.cache
def of_xla(case, batch=2):
    attend = make_attention(implementation="xla")
    return output_and_grads(attend, *make_inputs(case, batch=batch))


@references.needs_transformers
@cases
def test_attention_matches_torch_with_an_explicit_mask(case):
    torch = pytest.importorskip("torch")
    arrays, dy, options = make_inputs(case)
    ours = of_xla(case)
    q, k, v = (
        torch.tensor(x).double().transpose(1, 2).requires_grad_() for x in arrays
    )
    mask = is_visible(case[0], options["window"], options["segment_ids"])[:, None]
    y = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=torch.tensor(mask), enable_gqa=True
    )
    y.backward(torch.tensor(dy).double().transpose(1, 2))
    theirs = [x.detach().transpose(1, 2).numpy() for x in (y, q.grad, k.grad, v.grad)]
    assert_close(ours, theirs, **NOISE)


@cases
def test_kernel_equals_xla(case):
    # Without a TPU the kernel is interpreted.
    attend = make_attention(implementation="splash")
    ours = output_and_grads(attend, *make_inputs(case))
    assert_close(ours, of_xla(case), **NOISE)


@pytest.mark.parametrize("implementation", ["splash", "xla"])
def test_bfloat16_sums_in_float32(implementation):
    arrays, dy, options = make_inputs(CASES["short"])
    narrow = [jnp.asarray(x, jnp.bfloat16) for x in arrays]
    wide = [np.asarray(x.astype(jnp.float32)) for x in narrow]
    dy = np.asarray(jnp.asarray(dy, jnp.bfloat16).astype(jnp.float32))
    attend = make_attention(implementation=implementation)
    ours = output_and_grads(attend, narrow, dy, options)
    exact = output_and_grads(make_attention(), wide, dy, options)
    for a, b in zip(ours, exact, strict=True):
        # Probabilities and scaled queries are rounded to bfloat16, 2^-9; sums of 40
        # terms in bfloat16 would be off by more.
        assert np.linalg.norm(a - b) < 2**-7 * np.linalg.norm(b)


def test_xla_form_keeps_float64():
    with jax.enable_x64(True):
        arrays, dy, options = make_inputs(CASES["grouped"], dtype=np.float64)
        attend = jax.jit(make_attention())
        y = attend(*arrays)
        dq = jax.eval_shape(lambda *a: jax.vjp(attend, *a)[1](dy), *arrays)[0]
        assert y.dtype == dq.dtype == jnp.float64
        assert options["segment_ids"] is None
        q, k, v = (np.swapaxes(x, 1, 2) for x in arrays)
        k, v = np.repeat(k, 2, axis=1), np.repeat(v, 2, axis=1)
        scores = np.where(
            is_visible(260, None, None), q @ np.swapaxes(k, 2, 3), -np.inf
        )
        p = np.exp((scores - scores.max(-1, keepdims=True)) / 4)  # sqrt(16)
        theirs = np.swapaxes(p / p.sum(-1, keepdims=True) @ v, 1, 2)
        np.testing.assert_allclose(y, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("implementation", ["splash", "xla"])
def test_large_scores_do_not_overflow(implementation):
    (q, k, v), dy, options = make_inputs(CASES["short"])
    attend = make_attention(implementation=implementation)
    results = output_and_grads(attend, (1e3 * q, 1e3 * k, v), dy, options)
    assert all(np.isfinite(x).all() for x in results)


def test_a_window_of_the_whole_sequence_hides_nothing():
    arrays, _, _ = make_inputs(CASES["short"])
    attend = jax.jit(make_attention(), static_argnames="window")
    whole = attend(*arrays)
    np.testing.assert_array_equal(attend(*arrays, window=40), whole)
    np.testing.assert_array_equal(attend(*arrays, window=10**6), whole)
    assert not np.array_equal(attend(*arrays, window=39), whole)


@pytest.mark.parametrize("implementation", ["splash", "xla"])
def test_scale_replaces_the_default(implementation):
    (q, k, v), _, _ = make_inputs(CASES["short"])
    attend = make_attention(implementation=implementation)
    attend = jax.jit(attend, static_argnames="scale")
    ours, default = attend(q, k, v, scale=0.5), attend(2 * q, k, v)
    np.testing.assert_allclose(ours, default, **NOISE)


@pytest.mark.parametrize("implementation", ["splash", "xla"])
def test_runs_under_vmap(implementation):
    (q, k, v), _, options = make_inputs(CASES["segments"], batch=4)
    attend = make_attention(implementation=implementation)
    ids = options["segment_ids"]
    whole = jax.jit(attend)(q, k, v, segment_ids=ids)

    def pairs(x):
        return x.reshape(2, 2, *x.shape[1:])

    mapped = jax.vmap(lambda q, k, v, ids: attend(q, k, v, segment_ids=ids))
    mapped = jax.jit(mapped)
    ours = mapped(pairs(q), pairs(k), pairs(v), pairs(ids))
    np.testing.assert_allclose(ours, pairs(whole), **NOISE)


@pytest.mark.parametrize(
    ("axes", "batch", "case"),
    [
        ("data=2,fsdp=2,tensor=2", 4, (40, 4, 2, None, True)),
        ("data=2,tensor=4", 2, (40, 4, 2, 20, False)),  # key heads are repeated
        ("fsdp=8", 3, (40, 2, 1, None, True)),  # the batch is replicated
    ],
    ids=["even", "repeated keys", "uneven batch"],
)
@pytest.mark.parametrize("implementation", ["splash", "xla"])
def test_a_mesh_changes_nothing(axes, batch, case, implementation):
    inputs = make_inputs(case, batch=batch)
    attend = make_attention(make_mesh(axes), implementation=implementation)
    assert_close(output_and_grads(attend, *inputs), of_xla(case, batch), **NOISE)


def precisions(attend, precision):
    """Precisions of all matrix products of the forward and backward pass."""
    (q, k, v), _, _ = make_inputs(CASES["short"])
    with jax.default_matmul_precision(precision):
        y, backward = jax.eval_shape(lambda *a: jax.vjp(attend, *a), q, k, v)
        forward = str(jax.make_jaxpr(attend)(q, k, v))
    # Outside of the context, as in a training step.
    both = forward + str(jax.make_jaxpr(lambda b, y: b(y))(backward, y))
    return re.findall(r"precision=([^\n]*)", both)


@pytest.mark.parametrize(
    ("implementation", "precision", "expected"),
    [
        ("xla", "highest", "HIGHEST"),
        ("splash", "highest", "HIGHEST"),
        ("splash", "high", "HIGHEST"),  # Mosaic has no three passes
    ],
)
def test_both_passes_have_the_configured_precision(implementation, precision, expected):
    attend = make_attention(implementation=implementation)
    found = precisions(attend, precision)
    assert len(found) >= 6
    assert all(expected in one.upper() for one in found), found


def test_checkpoint_policy_can_save_the_output_of_the_kernel():
    (q, k, v), _, _ = make_inputs(CASES["short"])
    attend = make_attention(implementation="splash")
    policy = jax.checkpoint_policies.save_only_these_names(_attention.RESIDUALS)

    def num_kernels(policy):
        loss = jax.checkpoint(lambda q: jnp.sum(attend(q, k, v) ** 2), policy=policy)
        return str(jax.make_jaxpr(jax.grad(loss))(q)).count("name=splash_mha_fwd")

    assert num_kernels(None) == num_kernels(policy) + 1


@pytest.fixture
def on_h100(monkeypatch):
    """Calls for cuDNN; they are computed by XLA or raise `error`."""
    calls = []
    compute = jax.nn.dot_product_attention

    def recorded(*arrays, implementation, **options):
        calls.append(implementation)
        if arrays[0].shape[-1] > 16:
            raise NotImplementedError("The head dim must be <= 16.")
        return compute(*arrays, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", recorded)
    kind = "gpu", "NVIDIA H100 80GB HBM3"
    monkeypatch.setattr(_attention, "_device", lambda mesh: kind)
    return calls


@pytest.mark.parametrize("size", [16, 24], ids=["supported", "unsupported"])
def test_cudnn_sees_the_same_keys(on_h100, size):
    (q, k, v), _, _ = make_inputs(CASES["window"], size=size)
    narrow = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
    options = {"window": 50, "scale": 0.3}
    ours = jax.jit(functools.partial(make_attention(), **options))(*narrow)
    assert on_h100 == ["cudnn"]
    attend = functools.partial(make_attention(implementation="xla"), **options)
    exact = jax.jit(attend)(q, k, v)
    difference = np.asarray(ours.astype(jnp.float32)) - exact
    assert np.linalg.norm(difference) < 2**-6 * np.linalg.norm(exact)


def test_cudnn_is_not_used_for_what_it_cannot(on_h100):
    (q, k, v), _, options = make_inputs(CASES["segments"])
    attend = make_attention()
    jax.eval_shape(attend, q, k, v)  # float32
    narrow = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
    jax.eval_shape(functools.partial(attend, **options), *narrow)
    assert not on_h100


def tpu_step(name, axes, dtype, implementation=None, *, length, heads, size, batch):
    """A compiled gradient through attention, and its arrays' shapes."""
    mesh = make_mesh(axes, slice_devices(named_slice(name)))
    attend = make_attention(mesh, implementation=implementation)
    batch_axes = ("data", "fsdp")

    def of(*shape, dtype=dtype):
        spec = PartitionSpec(batch_axes, None, "tensor")
        sharding = NamedSharding(mesh, spec if len(shape) > 2 else PartitionSpec())
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def loss(q, k, v, ids, window):
        y = attend(q, k, v, segment_ids=ids, window=window)
        return jnp.sum(jnp.square(y.astype(jnp.float32)))

    window = 3 * length // 4 if name == "v5e:2x4" else None
    grads = jax.jit(jax.grad(loss, (0, 1, 2)), static_argnums=4)
    q, k = (of(batch, length, h, size) for h in heads)
    ids = of(batch, length, dtype=jnp.int32)
    return grads.lower(q, k, k, ids, window).compile().as_text()


@needs_tpu_compiler
@pytest.mark.parametrize(
    ("name", "axes", "dtype", "length", "size"),
    [
        ("v5e:2x4", "data=2,fsdp=2,tensor=2", jnp.bfloat16, 1536, 64),
        ("v5p:2x2x2", "data=2,fsdp=2,tensor=2", jnp.bfloat16, 2560, 128),
        ("v5p:2x2x2", "data=1,fsdp=8,tensor=1", jnp.float32, 200, 128),
    ],
    ids=["v5e", "v5p", "padded"],
)
def test_no_scores_of_a_whole_sequence_on_a_tpu(name, axes, dtype, length, size):
    # A machine without a TPU chooses the kernel, because the mesh consists of TPUs.
    text = tpu_step(name, axes, dtype, length=length, heads=(8, 4), size=size, batch=8)
    assert text.count("tpu_custom_call") >= 3  # forward, dq, and dk with dv
    padded = -(-length // 128) * 128
    square = rf"\[(?:\d+,)*(?:{length},{length}|{padded},{padded})(?:,\d+)*\]"
    assert not re.search(square, text)
    assert not re.search("all-(gather|reduce|to-all)|collective-permute", text)


@needs_tpu_compiler
def test_scores_of_a_whole_sequence_would_be_found():
    text = jax.jit(jax.nn.dot_product_attention, static_argnames="is_causal")
    mesh = make_mesh("data=1", slice_devices(named_slice("v5e:1x1")))
    place = NamedSharding(mesh, PartitionSpec())
    q = jax.ShapeDtypeStruct((1, 1536, 4, 64), jnp.bfloat16, sharding=place)
    assert re.search(r"1536,1536\]", text.lower(q, q, q).compile().as_text())


def test_short_sequences_and_other_dtypes_have_no_kernel(monkeypatch):
    monkeypatch.setattr(_attention, "_device", lambda mesh: ("tpu", "TPU v5 lite"))

    def has_kernel(dtype, length):
        x = jax.ShapeDtypeStruct((1, length, 2, 16), dtype)
        return "pallas_call" in str(jax.make_jaxpr(make_attention())(x, x, x))

    assert has_kernel(jnp.bfloat16, 128)
    assert has_kernel(jnp.float32, 200)
    assert not has_kernel(jnp.float16, 128)
    assert not has_kernel(jnp.bfloat16, 127)


def zeros(*shape, dtype=jnp.float32):
    return jnp.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"q": zeros(2, 8, 16)}, ValueError, r"`q` must be .*\[2, 8, 16\].*heads"),
        ({"q": zeros(2, 8, 4, 16, dtype=jnp.int32)}, TypeError, "`q` must .*got int32"),
        (
            {"k": zeros(2, 9, 2, 16)},
            ValueError,
            r"`k` must be .*\[2, 9, 2, 16\].*cached",
        ),
        ({"v": zeros(2, 8, 1, 16)}, ValueError, "`v` must be .*the same K"),
        ({"k": zeros(2, 8, 2, 16, dtype=jnp.bfloat16)}, ValueError, "`k` .*dtype"),
        (
            {"k": zeros(2, 8, 3, 16), "v": zeros(2, 8, 3, 16)},
            ValueError,
            "`k` must have a number of heads that divides the 4 of `q`, got 3",
        ),
        ({"segment_ids": zeros(2, 8)}, TypeError, "`segment_ids` must be int32"),
        (
            {"segment_ids": zeros(2, 9, dtype=jnp.int32)},
            ValueError,
            r"`segment_ids` must be .*\[2, 9\]",
        ),
        ({"window": 0}, ValueError, "`window` must be from 1"),
        ({"window": 2.5}, TypeError, "`window` must be a whole number"),
    ],
)
def test_wrong_arguments_are_refused(changes, error, message):
    q, k = zeros(2, 8, 4, 16), zeros(2, 8, 2, 16)
    with pytest.raises(error, match=message):
        make_attention()(**{"q": q, "k": k, "v": k, **changes})


@pytest.mark.parametrize(
    ("heads", "axes"), [((6, 6), "tensor=4,data=2"), ((24, 6), "tensor=4,data=2")]
)
def test_a_mesh_that_does_not_divide_the_heads_is_refused(heads, axes):
    q, k = (zeros(2, 8, n, 16) for n in heads)
    with pytest.raises(
        ValueError, match="`mesh` must have an axis .*tensor=4.*1, 2, 3, 6"
    ):
        make_attention(make_mesh(axes))(q, k, k)


def test_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match="`implementation` must be .*'flash'"):
        make_attention(implementation="flash")


def test_cudnn_refuses_segments_and_float32():
    attend = make_attention(implementation="cudnn")
    narrow = zeros(2, 8, 4, 16, dtype=jnp.bfloat16)
    ids = zeros(2, 8, dtype=jnp.int32)
    with pytest.raises(ValueError, match="`segment_ids` must be None .*'cudnn'"):
        attend(narrow, narrow, narrow, segment_ids=ids)
    wide = zeros(2, 8, 4, 16)
    with pytest.raises(ValueError, match="`q` must be float16 or bfloat16 .*float32"):
        attend(wide, wide, wide)
