"""Parameters rounded as if they were stored, where a compiler would not round."""

import jax
import jax.numpy as jnp


def difference(new32: jax.Array, param: jax.Array) -> jax.Array:
    """The update that makes `param` into `new32` as rounded to the dtype of `param`.

    Exact while a parameter changes by less than a factor of two.
    """
    if param.dtype == jnp.float16:
        # `reduce_precision` would flush what float16 holds below 6e-5 to zero.
        return jax.lax.optimization_barrier(new32.astype(param.dtype)) - param
    # Not a mere cast: XLA may skip a cast down that is followed by one up.
    info = jnp.finfo(param.dtype)
    rounded = jax.lax.reduce_precision(new32, info.nexp, info.nmant)
    return (rounded - param.astype(jnp.float32)).astype(param.dtype)


@jax.custom_jvp
def as_stored(x32: jax.Array, zero: jax.Array) -> jax.Array:
    """`x32`, rounded as if it had been stored: torch writes the decayed parameter back.

    Compilers fuse a product and the sum that follows into one rounding. An exclusive or
    with a zero that they cannot see through keeps the two apart, at the cost of one
    instruction; `reduce_precision` to the same precision is removed, and
    `optimization_barrier` would write the leaf to memory.
    """
    bits = jax.lax.bitcast_convert_type(x32, jnp.int32) ^ zero
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


@as_stored.defjvp
def _as_stored_jvp(primals: tuple, tangents: tuple) -> tuple:
    return as_stored(*primals), tangents[0]
