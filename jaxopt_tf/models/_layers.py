"""What Flax's own layers do otherwise: bfloat16 that stays, products cheap on CPUs."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx


class Embedding(nnx.Module):
    """A vector for each token, in the dtype of the parameters.

    `nnx.Embed` makes float32 of parameters that were cast to bfloat16, and counts
    negative tokens from the end.
    """

    def __init__(self, num: int, width: int, std: float, rngs: nnx.Rngs):
        """Draws `num` vectors with the spread `std`."""
        init = nnx.initializers.normal(std)
        self.embedding = nnx.Param(init(rngs.params(), (num, width)))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """[...] -> [..., width]; NaN for a token that there is not."""
        table = self.embedding[...]
        # Wide enough for a number that is no token's.
        tokens = tokens.astype(jnp.int32)
        index = jnp.where(tokens < 0, table.shape[0], tokens)
        return jnp.take(table, index, axis=0, mode="fill")


def dropped(x: jax.Array, rate: float, rng: jax.Array | None) -> jax.Array:
    """`x` with this share of zeros and the rest larger; as it is without a key."""
    if rng is None or rate == 0:
        return x
    is_kept = jax.random.bernoulli(rng, 1 - rate, x.shape)
    return jnp.where(is_kept, x / (1 - rate), jnp.zeros((), x.dtype))


def linear(num_in: int, num_out: int, std: float, rngs: nnx.Rngs) -> nnx.Linear:
    """A dense layer: kernel [in, out] with the spread `std`, bias of zeros."""
    return nnx.Linear(
        num_in,
        num_out,
        kernel_init=nnx.initializers.normal(std),
        dot_general=lambda x, kernel, *_, **__: times(x, kernel),
        rngs=rngs,
    )


def times(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x @ kernel, with the gradient's product in the order that is cheap on CPUs.

    Both factors of the kernel's gradient have the tokens of the batch as their first
    axis, so one of them must be transposed. XLA takes the output's, which is four times
    as wide in `c_fc`; here it is the narrower one. A step is a quarter shorter for it.
    """
    # When the gradient is traced, no `jax.default_matmul_precision` around this holds.
    # mypy does not know JAX's options.
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return _times(precision, x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _times(precision, x, kernel):
    return jnp.matmul(x, kernel, precision=precision)


def _times_forward(precision, x, kernel):
    return _times(precision, x, kernel), (x, kernel)


def _times_backward(precision, kept, g):
    product = functools.partial(jnp.matmul, precision=precision)
    x, kernel = kept
    rows, g_rows = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    if rows.shape[1] <= g_rows.shape[1]:
        return product(g, kernel.T), product(rows.T, g_rows)
    return product(g, kernel.T), product(g_rows.T, rows).T


_times.defvjp(_times_forward, _times_backward)
