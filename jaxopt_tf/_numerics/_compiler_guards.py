"""Guards against rewrites by which XLA would change numbers or repeat work.

XLA assumes that a value which is rounded and then widened need not be rounded, that a
product and a sum may be fused into one rounding, and that scalar arithmetic is cheap
enough to repeat in every loop. Each function here prevents one of these rewrites.
"""

from typing import Any

import jax
import jax.numpy as jnp

from .._typing import PyTree


def update_from_new_param(new: jax.Array, param: jax.Array) -> jax.Array:
    """Returns the update that turns `param` into `new` rounded to the leaf's dtype.

    Exact while a parameter changes by less than a factor of two.

    Args:
        new: the new parameter, float32; float64 where `param` is.
        param: the parameter, in the leaf's dtype.
    """
    if param.dtype == jnp.float64:
        return new - param
    if param.dtype == jnp.float16:
        # `reduce_precision` would flush to zero what float16 holds below 6e-5.
        stored: jax.Array = jax.lax.optimization_barrier(new.astype(param.dtype))
        return stored - param
    # Not a mere cast: XLA may skip a cast down that is followed by one up.
    info = jnp.finfo(param.dtype)
    rounded = jax.lax.reduce_precision(new, info.nexp, info.nmant)
    return (rounded - param.astype(jnp.float32)).astype(param.dtype)


@jax.custom_jvp
def block_fma(x: jax.Array, zero: jax.Array) -> jax.Array:
    """Returns the product `x`, rounded before a following sum can be fused with it.

    Torch stores decayed parameters, which rounds them; a fused multiply-add would not.
    An exclusive or with a zero that the compiler cannot see through keeps the two
    apart, at the cost of one instruction; `reduce_precision` to the same precision is
    removed, and `optimization_barrier` would write the leaf to memory.

    Args:
        x: a product, float32 or float64.
        zero: (), int32: 0, unknown to the compiler.
    """
    if x.dtype == jnp.float64:
        # TPUs have no bits of a float64. A product with 1 may be fused with the sum
        # instead, and changes nothing.
        return x * (1.0 + zero.astype(x.dtype))
    bits = jax.lax.bitcast_convert_type(x, jnp.int32) ^ zero
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


@block_fma.defjvp
def _block_fma_jvp(
    primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Any, Any]:
    # A bitcast has no derivative; that of the identity is meant.
    return block_fma(*primals), tangents[0]


def hoist_scalars(scalars: PyTree, count: jax.Array, dtype: Any) -> PyTree:
    """Returns the same scalars, as one computation that the loops of all leaves read.

    XLA repeats sums and selects in the loop of every leaf that reads them, but no
    division. So the scalars of `dtype` are divided by a one that it cannot fold, since
    it does not know that a count, (), int32, is never negative.
    """
    one = 1.0 - jnp.minimum(count, 0).astype(dtype)
    return jax.tree.map(lambda x: x / one if x.dtype == dtype else x, scalars)
