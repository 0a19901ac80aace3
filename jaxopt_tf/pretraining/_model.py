"""GPT-2 on bytes, in Flax NNX.

Parameters are named as Transformers' Flax GPT-2 named them: `wte.embedding`,
`h.0.attn.c_attn.kernel`, `ln_f.scale`. Kernels are (in, out). There is no dropout: a
run of this size hardly sees a byte twice.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from .. import _check
from .._typing import PyTree

VOCABULARY = 256  # bytes

# (params, batch) -> (summed loss, number of predicted bytes)
LossFn = Callable[[PyTree, jax.Array], tuple[jax.Array, jax.Array]]


@dataclass(frozen=True, kw_only=True)
class GPT2Config:
    """The model's size.

    Attributes:
        n_layer: number of layers.
        n_head: attention heads per layer; divides `n_embd`.
        n_embd: width of the residual stream.
        block_size: bytes that the model sees at once.

    Raises:
        ValueError, TypeError: if a size is not a whole number of at least 1, or the
            heads do not divide the width.
    """

    n_layer: int = 3
    n_head: int = 4
    n_embd: int = 128
    block_size: int = 64

    def __post_init__(self) -> None:
        """Checks the sizes."""
        for name in ("n_layer", "n_head", "n_embd", "block_size"):
            _check.step_count(name, getattr(self, name), least=1)
        if self.n_embd % self.n_head != 0:
            fitting = -(-self.n_embd // self.n_head) * self.n_head
            raise ValueError(
                f"`n_embd` must be a multiple of `n_head`, which is {self.n_head}, got "
                f"{self.n_embd!r}. Take {fitting}, or another number of heads."
            )


class GPT2(nnx.Module):
    """Bytes come in, logits of the next byte go out."""

    def __init__(self, config: GPT2Config, *, rngs: nnx.Rngs):
        """Draws the parameters, as `_std` says."""
        init = nnx.initializers.normal(_std(config))
        width = config.n_embd
        self.wte = nnx.Embed(VOCABULARY, width, embedding_init=init, rngs=rngs)
        self.wpe = nnx.Embed(config.block_size, width, embedding_init=init, rngs=rngs)
        self.h = nnx.List([_Block(config, rngs=rngs) for _ in range(config.n_layer)])
        self.ln_f = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits for the byte after each.

        Args:
            tokens: [B, T], int32; T at most `block_size`.

        Returns:
            [B, T, 256], float32.
        """
        x = self.wte(tokens) + self.wpe(jnp.arange(tokens.shape[1]))[None]
        for block in self.h:
            x = block(x)
        return self.wte.attend(self.ln_f(x))


class _Block(nnx.Module):
    def __init__(self, config: GPT2Config, *, rngs: nnx.Rngs):
        self.ln_1 = nnx.LayerNorm(config.n_embd, epsilon=1e-5, rngs=rngs)
        self.attn = _Attention(config, rngs=rngs)
        self.ln_2 = nnx.LayerNorm(config.n_embd, epsilon=1e-5, rngs=rngs)
        self.mlp = _MLP(config, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class _Attention(nnx.Module):
    def __init__(self, config: GPT2Config, *, rngs: nnx.Rngs):
        width = config.n_embd
        self.n_head = config.n_head
        self.c_attn = _linear(width, 3 * width, _std(config), rngs)
        self.c_proj = _linear(width, width, _residual_std(config), rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        size, length, width = x.shape
        heads = (size, length, 3, self.n_head, width // self.n_head)
        q, k, v = jnp.unstack(self.c_attn(x).reshape(heads), axis=2)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
        may_see = jnp.tril(jnp.ones((length, length), bool))[None, None]
        shares = jax.nn.softmax(jnp.where(may_see, scores, -jnp.inf), axis=-1)
        y = jnp.einsum("bhqk,bkhd->bqhd", shares, v)
        return self.c_proj(y.reshape(x.shape))


class _MLP(nnx.Module):
    def __init__(self, config: GPT2Config, *, rngs: nnx.Rngs):
        width = config.n_embd
        self.c_fc = _linear(width, 4 * width, _std(config), rngs)
        self.c_proj = _linear(4 * width, width, _residual_std(config), rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        # Behind a barrier it is computed once. XLA on CPUs would fuse it into all that
        # reads it, the transposed copies of the backward pass too.
        x = jax.lax.optimization_barrier(self.c_fc(x))
        x = jax.lax.optimization_barrier(jax.nn.gelu(x, approximate=True))
        return self.c_proj(x)


def make_loss_fn(config: GPT2Config, seed: int) -> tuple[PyTree, LossFn]:
    """A new model as parameters and a loss.

    Args:
        config: the model's size.
        seed: of the parameters.

    Returns:
        The parameters, a tree of dicts of float32 arrays; and the loss,
        (params, batch) -> (summed loss, number of predicted bytes), where a batch is
        [B, T + 1] bytes of which the first T predict the last T.
    """
    model = GPT2(config, rngs=nnx.Rngs(seed))
    graph, state = nnx.split(model, nnx.Param)

    def loss_fn(params: PyTree, batch: jax.Array) -> tuple[jax.Array, jax.Array]:
        tokens = batch.astype(jnp.int32)
        logits = nnx.merge(graph, params)(tokens[:, :-1])
        target = tokens[:, 1:, None]
        of_target = jnp.take_along_axis(logits, target, axis=-1)[..., 0]
        losses = jax.nn.logsumexp(logits, axis=-1) - of_target
        return jnp.sum(losses), jnp.asarray(losses.size, jnp.float32)

    return nnx.to_pure_dict(state), loss_fn


def _std(config: GPT2Config) -> float:
    """GPT-2's 0.02 at its width of 768; narrower, as much more as keeps sums alike."""
    return 0.02 * math.sqrt(768 / config.n_embd)


def _residual_std(config: GPT2Config) -> float:
    # Every layer adds to the stream twice; together they shall not blow it up.
    return _std(config) / math.sqrt(2 * config.n_layer)


def _linear(num_in: int, num_out: int, std: float, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(
        num_in,
        num_out,
        kernel_init=nnx.initializers.normal(std),
        dot_general=lambda x, kernel, *_, **__: times(x, kernel),
        rngs=rngs,
    )


@jax.custom_vjp
def times(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x @ kernel, with the gradient's product in the order that is cheap on CPUs.

    Both factors of the kernel's gradient have the bytes of the batch as their first
    axis, so one of them must be transposed. XLA takes the output's, which is four times
    as wide in `c_fc`; here it is the narrower one. A step is a quarter shorter for it.
    """
    return x @ kernel


def times_forward(x, kernel):
    return x @ kernel, (x, kernel)


def times_backward(kept, g):
    x, kernel = kept
    rows, g_rows = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    if rows.shape[1] <= g_rows.shape[1]:
        return g @ kernel.T, rows.T @ g_rows
    return g @ kernel.T, (g_rows.T @ rows).T


times.defvjp(times_forward, times_backward)
