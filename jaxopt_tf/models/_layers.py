"""Layers of the models that replace those of Flax NNX.

Activations have the dtype of the parameters, bfloat16 included, and matrix products
have a gradient that is fast on CPUs.
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from .._numerics import matmul_precision


def identity(x: jax.Array) -> jax.Array:
    """Returns `x` unchanged; the compiler chooses its sharding."""
    return x


def use_matmul_precision(precision: str | None) -> contextlib.AbstractContextManager:
    """Returns a context for matrix products of a precision; None changes nothing."""
    if precision is None:
        return contextlib.nullcontext()
    return jax.default_matmul_precision(precision)


class Embedding(nnx.Module):
    """Embedding table whose outputs have the dtype of the parameters.

    `nnx.Embed` differs: its outputs are float32 even if the parameters were cast to
    bfloat16, and it indexes negative tokens from the end of the table.
    """

    def __init__(self, num: int, width: int, std: float, rngs: nnx.Rngs):
        """Initializes `num` vectors of size `width` with standard deviation `std`."""
        init = nnx.initializers.normal(std)
        self.embedding = nnx.Param(init(rngs.params(), (num, width)))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Looks up tokens, [...] -> [..., width]; NaN for a token outside the table."""
        table = self.embedding[...]
        # Negative indices are replaced by `table.shape[0]`, for which mode "fill" gives
        # NaN. That mode would count negative indices from the end. With 256 rows, uint8
        # cannot represent that number, so that tokens are converted first.
        tokens = tokens.astype(jnp.int32)
        index = jnp.where(tokens < 0, table.shape[0], tokens)
        return jnp.take(table, index, axis=0, mode="fill")


def dropout(x: jax.Array, rate: float, rng: jax.Array | None) -> jax.Array:
    """Zeroes a fraction `rate` of `x`, and divides the rest by 1 - `rate`.

    Without a key, `x` is returned unchanged.
    """
    if rng is None or rate == 0:
        return x
    mask = jax.random.bernoulli(rng, 1 - rate, x.shape)
    return jnp.where(mask, x / (1 - rate), jnp.zeros((), x.dtype))


def linear(num_in: int, num_out: int, std: float, rngs: nnx.Rngs) -> nnx.Linear:
    """Returns a dense layer: kernel [in, out] with standard deviation `std`, bias 0."""
    return nnx.Linear(
        num_in,
        num_out,
        kernel_init=nnx.initializers.normal(std),
        dot_general=lambda x, kernel, *_, **__: matmul(x, kernel),
        rngs=rngs,
    )


def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes x @ kernel, with a gradient that is fast on CPUs.

    The gradient of the kernel is a product of two factors whose first axis are the
    tokens of the batch. One factor has to be transposed. XLA on CPUs transposes the
    gradient of the output, which in `c_fc` is four times as wide as the input. This
    function transposes the narrower factor, which makes a training step 25 % faster.
    """
    # The precision is read here, because the gradient is traced after the context
    # `jax.default_matmul_precision` has been left.
    precision = matmul_precision()
    return _matmul(precision, x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _matmul(precision, x, kernel):
    return jnp.matmul(x, kernel, precision=precision)


def _matmul_forward(precision, x, kernel):
    return _matmul(precision, x, kernel), (x, kernel)


def _matmul_backward(precision, residuals, g):
    product = functools.partial(jnp.matmul, precision=precision)
    x, kernel = residuals
    rows, g_rows = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    # Both branches compute rows.T @ g_rows; they differ in the factor that XLA copies.
    if rows.shape[1] <= g_rows.shape[1]:
        return product(g, kernel.T), product(rows.T, g_rows)
    return product(g, kernel.T), product(g_rows.T, rows).T


_matmul.defvjp(_matmul_forward, _matmul_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def constrain_both_ways(forward, backward, x):
    """Applies the sharding constraint `forward` to `x`, `backward` to its gradient.

    The transpose of a sharding constraint alone would constrain `x` and its gradient
    alike.
    """
    del backward
    return forward(x)


def _both_ways_forward(forward, backward, x):
    return constrain_both_ways(forward, backward, x), None


def _both_ways_backward(forward, backward, _, g):
    del forward
    return (backward(g),)


constrain_both_ways.defvjp(_both_ways_forward, _both_ways_backward)
