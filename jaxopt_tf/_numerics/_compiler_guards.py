"""Guards against XLA rewrites that change results or repeat work.

XLA may remove a rounding that is followed by a conversion to a wider dtype, fuse a
product and a sum into one rounding (a fused multiply-add, FMA), and repeat scalar
arithmetic in every loop that reads the result. `matmul_precision` reads an option of
JAX, and `on_gpu` selects a form of an expression for GPUs; every other function in this
module prevents or causes one of XLA's rewrites.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._typing import PyTree


def update_from_new_param(new: jax.Array, param: jax.Array) -> jax.Array:
    """Returns the update that turns `param` into `new` rounded to the leaf's dtype.

    The update is exact if the parameter changes by less than a factor of two.

    Args:
        new: the new parameter, float32; float64 if `param` is.
        param: the parameter, in the leaf's dtype.
    """
    # Exact by Sterbenz's lemma: a - b needs no rounding if b/2 <= a <= 2b.
    if param.dtype == jnp.float64:
        return new - param
    stored = round_to_dtype(new, param.dtype)
    if param.dtype == jnp.float16:
        return stored.astype(param.dtype) - param
    return (stored - param.astype(jnp.float32)).astype(param.dtype)


def round_to_dtype(x: jax.Array, dtype: Any) -> jax.Array:
    """Returns `x`, float32, rounded to numbers of `dtype`; float32.

    A cast alone is not enough: XLA may remove a cast to bfloat16 that is followed by
    one to float32 (`xla_allow_excess_precision`, on by default). A difference to the
    result would then be a difference to a number that was not rounded.
    """
    if dtype == jnp.float16:
        # `reduce_precision` flushes subnormals to zero: float16 values below 6e-5.
        stored: jax.Array = jax.lax.optimization_barrier(x.astype(dtype))
        return stored.astype(jnp.float32)
    info = jnp.finfo(dtype)
    return jax.lax.reduce_precision(x, info.nexp, info.nmant)


@jax.custom_jvp
def prevent_fma(x: jax.Array, zero: jax.Array) -> jax.Array:
    """Returns the product `x`, protected from being fused with a following sum.

    Torch rounds a decayed parameter when it stores it. A fused multiply-add would skip
    that rounding.
    The product is separated from the sum by an exclusive or of its bits with a zero
    that the compiler does not know. This costs one instruction. XLA removes a
    `reduce_precision` to the same precision, and an `optimization_barrier` would write
    the leaf to memory.

    Args:
        x: a product, float32 or float64.
        zero: (), int32: 0, unknown to the compiler.
    """
    if x.dtype == jnp.float64:
        # On a TPU a float64 cannot be cast to its bits. XLA may fuse the multiplication
        # by 1 with the sum. `x` is its operand and is rounded already.
        return x * (1.0 + zero.astype(x.dtype))
    # XLA would remove `x ^ 0` if it knew that `zero` is 0.
    bits = jax.lax.bitcast_convert_type(x, jnp.int32) ^ zero
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


@prevent_fma.defjvp
def _block_fma_jvp(
    primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Any, Any]:
    # JAX defines no derivative of a bitcast. The function is the identity.
    return prevent_fma(*primals), tangents[0]


def hoist_scalars(scalars: PyTree, count: jax.Array, dtype: Any) -> PyTree:
    """Returns the same scalars, computed once for the loops of all leaves.

    XLA duplicates cheap operations such as sums and selects into the loop of every leaf
    that reads them, but not divisions. Each scalar of `dtype` is therefore divided by
    1.

    Args:
        scalars: a tree of scalars.
        count: (), int32: number of updates, at least 0.
        dtype: dtype of the scalars to divide; others are returned unchanged.
    """
    # XLA does not know that a count is never negative, and so cannot fold this to 1.
    one = 1.0 - jnp.minimum(count, 0).astype(dtype)
    return jax.tree.map(lambda x: x / one if x.dtype == dtype else x, scalars)


def on_gpu(of_gpu: Callable[..., Any], default: Callable[..., Any], *args: Any) -> Any:
    """Returns `of_gpu(*args)` in programs for GPUs, and else `default(*args)`.

    The platform is that of the lowering, so that programs for devices that are only
    described have their form. Both results must have equal shapes and dtypes.
    """
    return jax.lax.platform_dependent(*args, cuda=of_gpu, rocm=of_gpu, default=default)


def join_loops(scalars: PyTree, dtype: Any) -> PyTree:
    """Returns the same scalars, which let a GPU run loops of equal shape together.

    XLA for GPUs joins loops of equal shape into one kernel if they read a common array,
    up to a number of arrays, but not if they read a common scalar (its pass
    `multi_output_fusion`). On a GPU the scalars of `dtype` are therefore elements of a
    common vector. Without it, every bias and scale of a model is updated by a kernel of
    its own, whose launch takes longer than its work.

    Args:
        scalars: a tree of scalars. Shards inside of `jax.shard_map` are returned
            unchanged.
        dtype: dtype of the scalars in the vector; others are returned unchanged.
    """
    leaves, treedef = jax.tree.flatten(scalars)
    indices = [i for i, x in enumerate(leaves) if x.dtype == dtype]
    is_sharded = any(jax.typeof(x).manual_axis_type.varying for x in leaves)
    if not indices or is_sharded:
        return scalars

    def from_vector(*leaves: jax.Array) -> tuple[jax.Array, ...]:
        # The first scalar is repeated, because a vector of one element counts as a
        # scalar. The barrier keeps XLA from replacing the elements by the scalars.
        vector = jnp.stack([leaves[i] for i in (*indices, indices[0])])
        vector = jax.lax.optimization_barrier(vector)
        elements = {i: vector[k] for k, i in enumerate(indices)}
        return tuple(elements.get(i, x) for i, x in enumerate(leaves))

    joined = on_gpu(from_vector, lambda *leaves: leaves, *leaves)
    return jax.tree.unflatten(treedef, joined)


def matmul_precision() -> str | None:
    """Returns the precision of `jax.default_matmul_precision`; None for the default.

    A function with a custom gradient must read the precision in its forward pass: the
    gradient is traced after the context has been left.
    """
    return jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]  # unknown to mypy
