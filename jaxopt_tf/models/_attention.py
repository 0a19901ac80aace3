"""Causal self-attention in three forms: splash attention, cuDNN and XLA.

attend = make_attention(mesh)
y = attend(q, k, v, segment_ids=segment_ids, window=4096)
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from .. import _checks
from .._numerics import matmul_precision
from ..sharding import BATCH_AXES
from ._blockwise_attention import blockwise_attention

Mesh = Any  # `Mesh` or `AbstractMesh`; they have no common base class to annotate

IMPLEMENTATIONS = ("splash", "cudnn", "xla")
# Name of the splash kernel's output and log-sum-exp in policies of `jax.checkpoint`.
RESIDUALS = "attention"

_HEAD_AXIS = "tensor"
_CUDNN_DTYPES = (jnp.float16, jnp.bfloat16)
# Tiles of the TPU kernel are multiples of 128, the number of lanes of a vector
# register. Tiles of 512 x 512 scores are large enough for the matrix units, and fit in
# the scoped VMEM of v5e and v5p, even in float32 with heads of size 256.
_LANES = 128
_MAX_TILE = 512


class AttentionFn(Protocol):
    """Function that computes causal self-attention."""

    def __call__(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        *,
        segment_ids: jax.Array | None = None,
        window: int | None = None,
        scale: float | None = None,
    ) -> jax.Array:
        """Computes softmax(scale * q k^T) v over the keys that each query can see.

        A query at position t sees keys at positions up to t.

        Args:
            q: [B, T, H, D], floating-point.
            k: [B, T, K, D], dtype of `q`. H is a multiple of K; query head h uses key
                head h // (H // K).
            v: [B, T, K, D], dtype of `q`.
            segment_ids: [B, T], int32; a query sees only keys with its own id. None
                for one segment per row.
            window: maximum number of keys that a query sees, at positions from
                t - window + 1 to t. None for all.
            scale: factor of the scores; None for D ** -0.5.

        Returns:
            [B, T, H, D], dtype of `q`.

        Raises:
            ValueError: if a shape, a dtype or `window` does not fit, or the heads
                cannot be sharded over the mesh.
            TypeError: if an argument has the wrong type, or an array the wrong kind of
                dtype.
        """
        ...


def make_attention(
    mesh: Mesh | None = None, *, implementation: str | None = None
) -> AttentionFn:
    """Returns an attention function for the devices of a mesh.

    Three implementations compute the same function:

    - "splash": JAX's Pallas kernel for TPUs, which skips masked tiles and stores no
      scores. Sequences are padded to a multiple of the tile, which is a multiple of 128
      and at most 512. The kernel supports float32 and bfloat16. On other devices it is
      interpreted, which is slow. Its output and log-sum-exp have the name "attention"
      for policies of `jax.checkpoint`.
    - "cudnn": `jax.nn.dot_product_attention` with cuDNN's kernel for NVIDIA GPUs, which
      supports float16 and bfloat16, windows and grouped queries, but no `segment_ids`.
    - "xla": blocks of queries in plain operations, for all devices and dtypes.

    The default on TPUs is "splash" if the dtype is float32 or bfloat16 and sequences
    have at least 128 tokens. The default on NVIDIA GPUs is "cudnn" if cuDNN is
    installed and supports the call. In all other cases the default is "xla". A machine
    without a GPU usually has no cuDNN, so that programs it compiles for GPUs use "xla".

    On a mesh the function runs in `jax.shard_map`, because XLA does not partition
    kernels. The axes `data` and `fsdp` shard the batch, and `tensor` shards the heads.
    The devices do not communicate. A batch that the mesh does not divide is replicated.
    If the size of `tensor` is a multiple of the number of key heads, key and value
    heads are repeated, so that each device has those that its query heads use.

    Matrix products in "splash" and "xla" have the precision that is configured where
    the function is called. The splash kernel supports only bfloat16 and float32
    precision. For any precision above bfloat16 it computes in float32.

    Args:
        mesh: mesh with any of the axes `data`, `fsdp` and `tensor`, of actual devices
            or of topology descriptions; None for the default device.
        implementation: "splash", "cudnn" or "xla"; None to choose by device and dtype.

    Raises:
        ValueError: if `implementation` is unknown.

    Source: jax 0.10 `experimental/pallas/ops/tpu/splash_attention`; `nn/functions.py`,
        `dot_product_attention`.
    """
    if implementation is not None:
        _checks.one_of("implementation", implementation, IMPLEMENTATIONS)

    def attend(q, k, v, *, segment_ids=None, window=None, scale=None):
        _check_arrays(q, k, v, segment_ids)
        if window is not None:
            window = _checks.whole_number("window", window, minimum=1)
            window = None if window >= q.shape[1] else window
        scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
        # Devices are queried here and not at import, because the query initializes
        # JAX's backend.
        platform, device_kind = _device(mesh)
        chosen = implementation or _default(platform, device_kind, q, segment_ids)
        if chosen == "splash":
            # Mosaic, the compiler of the kernel, compiles for TPUs only.
            attend_fn: Callable = functools.partial(
                _splash, interpret=platform != "tpu"
            )
        elif chosen == "cudnn" and implementation is None:
            attend_fn = _cudnn_or_xla  # the default also works without cuDNN
        elif chosen == "cudnn":
            attend_fn = _cudnn
        else:
            attend_fn = blockwise_attention
        attend_fn = functools.partial(attend_fn, window=window, scale=scale)
        if mesh is None or mesh.size == 1:
            return attend_fn(q, k, v, segment_ids)
        return _on_mesh(attend_fn, mesh, q, k, v, segment_ids)

    return attend


def _device(mesh: Mesh | None) -> tuple[str, str]:
    """Returns the platform and the kind of the devices for which code is compiled."""
    # An abstract mesh has no devices; for it, the default device is assumed.
    if isinstance(mesh, jax.sharding.Mesh):
        device = mesh.devices.flat[0]
        return device.platform, device.device_kind
    return jax.default_backend(), jax.devices()[0].device_kind


def is_cudnn_default(mesh: Mesh | None, q: jax.Array) -> bool:
    """Returns whether the default for rows of one segment is "cudnn"."""
    return _default(*_device(mesh), q, None) == "cudnn"


def _default(
    platform: str, device_kind: str, q: jax.Array, segment_ids: jax.Array | None
) -> str:
    if platform == "tpu":
        is_supported = q.dtype in (jnp.float32, jnp.bfloat16)
        # Shorter sequences would be padded, and their scores need little memory.
        return "splash" if is_supported and q.shape[1] >= _LANES else "xla"
    # The platform of AMD's GPUs is called "gpu", too.
    if platform == "gpu" and device_kind.startswith("NVIDIA"):
        is_supported = q.dtype in _CUDNN_DTYPES and segment_ids is None
        return "cudnn" if is_supported else "xla"
    return "xla"


def _on_mesh(
    attend_fn: Callable,
    mesh: Mesh,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array | None,
) -> jax.Array:
    """Runs `attend_fn` on every device, for its part of the batch and its heads."""
    num_heads, num_key_heads = q.shape[2], k.shape[2]
    num_parts = mesh.shape.get(_HEAD_AXIS, 1)

    def heads_fit(size: int) -> bool:
        key_heads_fit = num_key_heads % size == 0 or size % num_key_heads == 0
        return num_heads % size == 0 and key_heads_fit

    if not heads_fit(num_parts):
        sizes = [str(size) for size in range(1, num_heads + 1) if heads_fit(size)]
        raise ValueError(
            "`mesh` must have an axis `tensor` whose size divides the number of query "
            f"heads, {num_heads}, and divides or is a multiple of the number of key "
            f"heads, {num_key_heads}, got tensor={num_parts}. The size may be "
            f"{', '.join(sizes)}; assign the remaining devices to data or fsdp."
        )
    if num_key_heads % num_parts:
        k, v = (jnp.repeat(x, num_parts // num_key_heads, axis=2) for x in (k, v))
    names = tuple(name for name in BATCH_AXES if name in mesh.shape)
    num_batch_parts = 1
    for name in names:
        num_batch_parts *= mesh.shape[name]
    batch = names if q.shape[0] % num_batch_parts == 0 else ()
    heads = _HEAD_AXIS if _HEAD_AXIS in mesh.shape else None
    spec = PartitionSpec(batch, None, heads)
    return jax.shard_map(
        attend_fn,
        mesh=mesh,
        in_specs=(spec, spec, spec, PartitionSpec(batch)),
        out_specs=spec,
        # Outputs of `pallas_call` do not state over which axes they vary.
        check_vma=False,
    )(q, k, v, segment_ids)


def _splash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array | None,
    *,
    window: int | None,
    scale: float,
    interpret: bool,
) -> jax.Array:
    length = q.shape[1]
    num_tiles = -(-length // _MAX_TILE)
    tile = -(-length // (num_tiles * _LANES)) * _LANES
    padding = num_tiles * tile - length
    # The scale is applied in float32, because a scale rounded to bfloat16 would give
    # all scores the same relative error.
    q = (q.astype(jnp.float32) * scale).astype(q.dtype)
    # Padding is at the end, where only the queries of the padding see its keys, because
    # attention is causal.
    pad = functools.partial(jnp.pad, mode="constant")
    q, k, v = (
        pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, padding), (0, 0)))
        for x in (q, k, v)
    )
    if segment_ids is not None:
        segment_ids = pad(segment_ids, ((0, 0), (0, padding)))
    options = (window, tile, interpret, _kernel_precision(q.dtype))
    y = _splash_kernel(options, q, k, v, segment_ids)
    return jnp.swapaxes(y[:, :, :length], 1, 2)


def _kernel_precision(dtype: Any) -> str | None:
    """Returns the configured precision as one of the two that the kernel supports."""
    precision = matmul_precision()
    # Mosaic raises an error for three passes ("high"), and for bfloat16 operands with
    # any precision but the default, which is exact for them.
    one_pass = (None, "default", "fastest", "bfloat16")
    return None if precision in one_pass or dtype == jnp.bfloat16 else "highest"


# The kernel's own gradient is traced after the context `jax.default_matmul_precision`
# has been left, and would have another precision. This wrapper therefore sets the
# precision in the forward pass and again in the backward pass.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _splash_kernel(options, q, k, v, segment_ids):
    with _precision(options):
        return _call_kernel(options, q, k, v, segment_ids)


def _splash_forward(options, q, k, v, segment_ids):
    def attend_arrays(q, k, v):
        return _call_kernel(options, q, k, v, segment_ids)

    with _precision(options):
        return jax.vjp(attend_arrays, q, k, v)


def _splash_backward(options, backward, dy):
    with _precision(options):
        return *backward(dy), None


_splash_kernel.defvjp(_splash_forward, _splash_backward)


def _precision(options: Any) -> contextlib.AbstractContextManager:
    return jax.default_matmul_precision(options[3])


def _call_kernel(options, q, k, v, segment_ids):
    # Imported here, because the import of Pallas takes half a second, and only this
    # implementation needs Pallas.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    window, tile, interpret, _ = options
    num_heads, length = q.shape[1:3]
    mask: Any
    if window is None:
        mask = splash.CausalMask((length, length))
    else:
        mask = splash.LocalMask((length, length), (window - 1, 0), offset=0)
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * num_heads),
        block_sizes=splash.BlockSizes(
            block_q=tile,
            block_kv=tile,
            block_q_dkv=tile,
            block_kv_dkv=tile,
            block_q_dq=tile,
            block_kv_dq=tile,
        ),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=RESIDUALS,
        interpret=interpret,
    )
    if segment_ids is None:
        return jax.vmap(kernel)(q, k, v)
    return jax.vmap(kernel)(q, k, v, splash.SegmentIds(segment_ids, segment_ids))


def _cudnn(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array | None,
    *,
    window: int | None,
    scale: float,
) -> jax.Array:
    if q.dtype not in _CUDNN_DTYPES:
        raise ValueError(
            "`q` must be float16 or bfloat16 with the implementation 'cudnn', got "
            f"{q.dtype}. Call `make_attention` without `implementation`."
        )
    if segment_ids is not None:
        # JAX would convert a mask to a bias, [B, H, T, T], with a gradient of equal
        # size.
        raise ValueError(
            "`segment_ids` must be None with the implementation 'cudnn', got shape "
            f"{list(segment_ids.shape)}. Call `make_attention` without "
            "`implementation`."
        )
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        is_causal=True,
        scale=scale,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )


def _cudnn_or_xla(q, k, v, segment_ids, *, window, scale):
    try:
        return _cudnn(q, k, v, segment_ids, window=window, scale=scale)
    except (NotImplementedError, RuntimeError):
        # The error is raised while tracing if cuDNN is not installed, or does not
        # support the size of the heads, the GPU or a vmapped axis.
        return blockwise_attention(q, k, v, segment_ids, window=window, scale=scale)


def _check_arrays(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None
) -> None:
    if not jnp.issubdtype(q.dtype, jnp.floating):
        raise TypeError(f"`q` must be floating-point, got {q.dtype}.")
    if q.ndim != 4:
        raise ValueError(
            f"`q` must be [B, T, H, D], got shape {list(q.shape)}. Split the width "
            "into heads."
        )
    batch, length, num_heads, size = q.shape
    for name, x in (("k", k), ("v", v)):
        fits = x.ndim == 4 and (*x.shape[:2], x.shape[3]) == (batch, length, size)
        if not fits or x.shape[2] != k.shape[2] or x.dtype != q.dtype:
            raise ValueError(
                f"`{name}` must be [B, T, K, D] with the dtype, B, T and D of `q`, "
                f"{q.dtype} {list(q.shape)}, and the same K for `k` and `v`, got "
                f"{x.dtype} {list(x.shape)}. Decoding with cached keys needs "
                "another function."
            )
    if num_heads % k.shape[2]:
        raise ValueError(
            f"`k` must have a number of heads that divides the {num_heads} of `q`, got "
            f"{k.shape[2]}. Check num_key_value_heads of the model."
        )
    if segment_ids is None:
        return
    if segment_ids.dtype != jnp.int32:
        raise TypeError(f"`segment_ids` must be int32, got {segment_ids.dtype}.")
    if segment_ids.shape != q.shape[:2]:
        raise ValueError(
            f"`segment_ids` must be [B, T] of `q`, {list(q.shape[:2])}, got shape "
            f"{list(segment_ids.shape)}. Number the documents of each row."
        )
