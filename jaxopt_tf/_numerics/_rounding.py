"""Parameters rounded as if they were stored, where a compiler would not round."""

import jax
import jax.numpy as jnp


def difference(new: jax.Array, param: jax.Array) -> jax.Array:
    """Returns the update that makes `param` into `new` rounded to the dtype of `param`.

    Exact while a parameter changes by less than a factor of two.

    Args:
        new: the new parameter, float32; float64 where `param` is.
        param: the parameter, in the leaf's dtype.
    """
    if param.dtype == jnp.float64:
        return new - param
    if param.dtype == jnp.float16:
        # `reduce_precision` would flush what float16 holds below 6e-5 to zero.
        return jax.lax.optimization_barrier(new.astype(param.dtype)) - param
    # Not a mere cast: XLA may skip a cast down that is followed by one up.
    info = jnp.finfo(param.dtype)
    rounded = jax.lax.reduce_precision(new, info.nexp, info.nmant)
    return (rounded - param.astype(jnp.float32)).astype(param.dtype)


@jax.custom_jvp
def as_stored(x: jax.Array, zero: jax.Array) -> jax.Array:
    """Returns `x` rounded as if it had been stored: torch stores decayed parameters.

    Compilers fuse a product and the sum that follows into one rounding. An exclusive or
    with a zero that they cannot see through keeps the two apart, at the cost of one
    instruction; `reduce_precision` to the same precision is removed, and
    `optimization_barrier` would write the leaf to memory.

    Args:
        x: a product, float32 or float64.
        zero: (), int32: 0, which no compiler can know.
    """
    if x.dtype == jnp.float64:
        # TPUs have no bits of a float64. A product with 1 may be fused with the sum
        # instead, and changes nothing.
        return x * (1.0 + zero.astype(x.dtype))
    bits = jax.lax.bitcast_convert_type(x, jnp.int32) ^ zero
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


@as_stored.defjvp
def _as_stored_jvp(primals: tuple, tangents: tuple) -> tuple:
    return as_stored(*primals), tangents[0]
