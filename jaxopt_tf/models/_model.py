"""GPT-2 in Flax NNX.

Parameters are named as Transformers' Flax GPT-2 named them:
`transformer.wte.embedding`, `transformer.h.0.attn.c_attn.kernel`,
`transformer.ln_f.scale`. Kernels are [in, out]. The numbers are those of torch's GPT-2
with the same weights.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ._layers import Embedding, dropped, linear
from ._presets import GPT2Config


def anywhere(x: jax.Array) -> jax.Array:
    """`x`, where the compiler puts it."""
    return x


class GPT2(nnx.Module):
    """Tokens come in, logits of the next token go out."""

    def __init__(
        self,
        config: GPT2Config,
        *,
        rngs: nnx.Rngs,
        lying: Callable[[jax.Array], jax.Array] = anywhere,
    ):
        """Draws the parameters, as `_std` says."""
        self.transformer = _Transformer(config, lying, rngs=rngs)
        self.lying = lying

    def __call__(self, tokens: jax.Array, rng: jax.Array | None = None) -> jax.Array:
        """Logits for the token after each.

        Args:
            tokens: [B, T], integers; T at most `block_size`. A token outside the
                vocabulary makes the logits of its row NaN.
            rng: a key for dropout; None for none.

        Returns:
            [B, T, vocab_size], in the dtype of the parameters.

        Raises:
            ValueError, TypeError: if `tokens` has another shape, is too long or holds
                no integers.
        """
        x = self.transformer(as_tokens("tokens", tokens, least=1), rng)
        return self.lying(x @ self.transformer.wte.embedding[...].T)


class _Transformer(nnx.Module):
    def __init__(self, config: GPT2Config, lying: Callable, *, rngs: nnx.Rngs):
        self.config, self.lying = config, lying
        self.wte = Embedding(config.vocab_size, config.n_embd, _std(config), rngs)
        self.wpe = Embedding(config.block_size, config.n_embd, _std(config), rngs)
        blocks = [_Block(config, rngs=rngs) for _ in range(config.n_layer)]
        self.h: Any = _stacked(blocks) if config.scan_layers else nnx.List(blocks)
        self.ln_f = nnx.LayerNorm(config.n_embd, epsilon=1e-5, rngs=rngs)

    def __call__(self, tokens: jax.Array, rng: jax.Array | None) -> jax.Array:
        config, length = self.config, tokens.shape[1]
        if length > config.block_size:
            raise ValueError(
                f"`tokens` must be at most `block_size` long, which is "
                f"{config.block_size}, got {length}. A batch for the loss may be one "
                "longer. Cut the rows, or take a larger `block_size`."
            )
        rng, rng_of_blocks = (None, None) if rng is None else jax.random.split(rng)
        x = self.wte(tokens) + self.wpe.embedding[None, :length]
        x = self.lying(dropped(x, config.embd_pdrop, rng))
        return self.ln_f(self._through_blocks(x, rng_of_blocks))

    def _through_blocks(self, x: jax.Array, rng: jax.Array | None) -> jax.Array:
        config = self.config
        is_scanned = config.scan_layers
        graph = nnx.graphdef(self.h if is_scanned else self.h[0])

        def layer(x, params_and_rngs):
            params, rngs = params_and_rngs
            return self.lying(nnx.merge(graph, params)(x, rngs)), None

        if config.gradient_checkpointing:
            # Inside a loop nothing can be shared with the forward pass anyway.
            layer = jax.checkpoint(layer, prevent_cse=not is_scanned)
        # Two per layer; scanned or not, the same ones.
        rngs = None if rng is None else jax.random.split(rng, (config.n_layer, 2))
        if is_scanned:
            return jax.lax.scan(layer, x, (nnx.state(self.h), rngs))[0]
        for i, block in enumerate(self.h):
            x, _ = layer(x, (nnx.state(block), None if rngs is None else rngs[i]))
        return x


class _Block(nnx.Module):
    def __init__(self, config: GPT2Config, *, rngs: nnx.Rngs):
        self.resid_pdrop = config.resid_pdrop
        self.ln_1 = nnx.LayerNorm(config.n_embd, epsilon=1e-5, rngs=rngs)
        self.attn = _Attention(config, rngs=rngs)
        self.ln_2 = nnx.LayerNorm(config.n_embd, epsilon=1e-5, rngs=rngs)
        self.mlp = _MLP(config, rngs=rngs)

    def __call__(self, x: jax.Array, rngs: jax.Array | None) -> jax.Array:
        of_attn, of_mlp = (None, None) if rngs is None else rngs
        x = x + dropped(self.attn(self.ln_1(x)), self.resid_pdrop, of_attn)
        return x + dropped(self.mlp(self.ln_2(x)), self.resid_pdrop, of_mlp)


class _Attention(nnx.Module):
    def __init__(self, config: GPT2Config, *, rngs: nnx.Rngs):
        width = config.n_embd
        self.n_head = config.n_head
        self.c_attn = linear(width, 3 * width, _std(config), rngs)
        self.c_proj = linear(width, width, _residual_std(config), rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        size, length, width = x.shape
        heads = (size, length, 3, self.n_head, width // self.n_head)
        q, k, v = jnp.unstack(self.c_attn(x).reshape(heads), axis=2)
        y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.reshape(x.shape))


class _MLP(nnx.Module):
    def __init__(self, config: GPT2Config, *, rngs: nnx.Rngs):
        width = config.n_embd
        self.c_fc = linear(width, 4 * width, _std(config), rngs)
        self.c_proj = linear(4 * width, width, _residual_std(config), rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        # Behind a barrier it is computed once. XLA on CPUs would fuse it into all that
        # reads it, the transposed copies of the backward pass too.
        x = jax.lax.optimization_barrier(self.c_fc(x))
        x = jax.lax.optimization_barrier(jax.nn.gelu(x, approximate=True))
        return self.c_proj(x)


def _stacked(blocks: list[_Block]) -> _Block:
    """One block whose parameters have the layers as their first axis."""
    states = [nnx.state(block) for block in blocks]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    return nnx.merge(nnx.graphdef(blocks[0]), stacked)


def as_tokens(name: str, tokens: Any, *, least: int) -> jax.Array:
    """`tokens` as an array; raises unless it holds rows of at least so many."""
    tokens = jnp.asarray(tokens)
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(
            f"`{name}` must hold integers, got {tokens.dtype}. Pass the numbers of the "
            "tokens."
        )
    if tokens.ndim != 2 or tokens.shape[1] < least:
        raise ValueError(
            f"`{name}` must be rows of at least {least} tokens, [B, T], got the shape "
            f"{list(tokens.shape)}."
        )
    return tokens


def _std(config: GPT2Config) -> float:
    """GPT-2's 0.02 at its width of 768; narrower, as much more as keeps sums alike."""
    return 0.02 * math.sqrt(768 / config.n_embd)


def _residual_std(config: GPT2Config) -> float:
    # Every layer adds to the stream twice; together they shall not blow it up.
    return _std(config) / math.sqrt(2 * config.n_layer)
