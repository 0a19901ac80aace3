"""GPT-2 in Flax NNX.

Parameters have the names of Transformers' former Flax GPT-2:
`transformer.wte.embedding`, `transformer.h.0.attn.c_attn.kernel`,
`transformer.ln_f.scale`. Kernels are [in, out]. The outputs are those of the PyTorch
GPT-2 with the same weights.
"""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from .._numerics import wide_dtype
from ._attention import AttentionFn, Mesh, is_cudnn_default, make_attention
from ._gpt2_config import GPT2Config
from ._inputs import Batch, Inputs, inputs_of
from ._layers import Embedding, dropout, identity, linear


class GPT2(nnx.Module):
    """GPT-2 language model: tokens -> logits of the next token."""

    def __init__(
        self,
        config: GPT2Config,
        *,
        rngs: nnx.Rngs,
        constrain: Callable[[jax.Array], jax.Array] = identity,
        attend: AttentionFn | None = None,
    ):
        """Initializes the parameters from normal distributions; see `_std`.

        Args:
            config: configuration of the model.
            rngs: key of the parameters.
            constrain: function that constrains activations, [B, T, ...], to their
                sharding on a mesh.
            attend: attention function; None for `gpt2_attention()`.
        """
        attend = gpt2_attention() if attend is None else attend
        self.transformer = _Transformer(config, constrain, attend, rngs=rngs)
        self.constrain = constrain

    def __call__(
        self, batch: Batch | Inputs, rng: jax.Array | None = None
    ) -> jax.Array:
        """Returns the logits of the next token at each position.

        Args:
            batch: tokens, [B, T], integers; or a dict with `input_ids`, and optionally
                `segment_ids` and `position_ids`, all [B, T]. T is at most `block_size`.
                A token outside the vocabulary makes the logits of its row NaN.
            rng: key for dropout; None for no dropout.

        Returns:
            [B, T, vocab_size], in the dtype of the parameters.

        Raises:
            ValueError: if an array has the wrong shape or is too long.
            TypeError: if an array does not contain integers.
        """
        inputs = batch if isinstance(batch, Inputs) else inputs_of(batch)
        x = self.transformer(inputs, rng)
        return self.constrain(x @ self.transformer.wte.embedding[...].T)


class _Transformer(nnx.Module):
    def __init__(
        self,
        config: GPT2Config,
        constrain: Callable,
        attend: AttentionFn,
        *,
        rngs: nnx.Rngs,
    ):
        self.config, self.constrain = config, constrain
        self.wte = Embedding(config.vocab_size, config.n_embd, _std(config), rngs)
        self.wpe = Embedding(config.block_size, config.n_embd, _std(config), rngs)
        blocks = [_Block(config, attend, rngs=rngs) for _ in range(config.n_layer)]
        self.h: Any = _stacked(blocks) if config.scan_layers else nnx.List(blocks)
        self.ln_f = nnx.LayerNorm(config.n_embd, epsilon=1e-5, rngs=rngs)

    def __call__(self, inputs: Inputs, rng: jax.Array | None) -> jax.Array:
        config, length = self.config, inputs.tokens.shape[1]
        if length > config.block_size:
            raise ValueError(
                f"`batch` must be at most `block_size` long, which is "
                f"{config.block_size}, got {length}. A batch for the loss may be one "
                "longer. Truncate the rows, or use a larger `block_size`."
            )
        rng, block_rng = (None, None) if rng is None else jax.random.split(rng)
        positions = self.wpe.embedding[None, :length]
        if inputs.position_ids is not None:
            positions = self.wpe(inputs.position_ids)
        x = self.constrain(
            dropout(self.wte(inputs.tokens) + positions, config.embd_pdrop, rng)
        )
        return self.ln_f(self._through_blocks(x, inputs.segment_ids, block_rng))

    def _through_blocks(
        self, x: jax.Array, segment_ids: jax.Array | None, rng: jax.Array | None
    ) -> jax.Array:
        config = self.config
        is_scanned = config.scan_layers
        # All blocks have the same graph definition; only their parameters differ.
        graph = nnx.graphdef(self.h if is_scanned else self.h[0])

        def layer(x, params_and_rngs):
            params, rngs = params_and_rngs
            block = nnx.merge(graph, params)
            return self.constrain(block(x, segment_ids, rngs)), None

        if config.gradient_checkpointing:
            # `prevent_cse` adds optimization barriers, without which XLA would merge
            # the recomputation with the forward pass (common subexpressions). In a scan
            # they are not needed, since the passes are two separate loops.
            layer = jax.checkpoint(layer, prevent_cse=not is_scanned)
        # Two keys per layer. They are equal with and without a scan.
        rngs = None if rng is None else jax.random.split(rng, (config.n_layer, 2))
        if is_scanned:
            return jax.lax.scan(layer, x, (nnx.state(self.h), rngs))[0]
        for i, block in enumerate(self.h):
            x, _ = layer(x, (nnx.state(block), None if rngs is None else rngs[i]))
        return x


class _Block(nnx.Module):
    def __init__(self, config: GPT2Config, attend: AttentionFn, *, rngs: nnx.Rngs):
        self.resid_pdrop, self.attn_pdrop = config.resid_pdrop, config.attn_pdrop
        self.attend = attend
        self.ln_1 = nnx.LayerNorm(config.n_embd, epsilon=1e-5, rngs=rngs)
        self.attn = _Attention(config, rngs=rngs)
        self.ln_2 = nnx.LayerNorm(config.n_embd, epsilon=1e-5, rngs=rngs)
        self.mlp = _MLP(config, rngs=rngs)

    def __call__(
        self, x: jax.Array, segment_ids: jax.Array | None, rngs: jax.Array | None
    ) -> jax.Array:
        q, k, v = self.project(x)
        if rngs is not None and self.attn_pdrop > 0:
            # The key is derived and not a third one per layer, so that runs without
            # `attn_pdrop` keep their dropout masks.
            rng = jax.random.fold_in(rngs[0], 1)
            y = _dropout_attention(q, k, v, segment_ids, self.attn_pdrop, rng)
        else:
            y = self.attend(q, k, v, segment_ids=segment_ids)
        return self.finish(x, y, rngs)

    def project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns queries, keys and values, [B, T, n_head, n_embd / n_head] each."""
        return self.attn.project(self.ln_1(x))

    def finish(
        self, x: jax.Array, y: jax.Array, rngs: jax.Array | None = None
    ) -> jax.Array:
        """Returns the output of the block from its input and that of the attention."""
        attn_rng, mlp_rng = (None, None) if rngs is None else rngs
        y = self.attn.c_proj(y.reshape(x.shape))
        x = x + dropout(y, self.resid_pdrop, attn_rng)
        return x + dropout(self.mlp(self.ln_2(x)), self.resid_pdrop, mlp_rng)


class _Attention(nnx.Module):
    def __init__(self, config: GPT2Config, *, rngs: nnx.Rngs):
        width = config.n_embd
        self.n_head = config.n_head
        self.c_attn = linear(width, 3 * width, _std(config), rngs)
        self.c_proj = linear(width, width, _residual_std(config), rngs)

    def project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        size, length, width = x.shape
        heads = (size, length, 3, self.n_head, width // self.n_head)
        q, k, v = jnp.unstack(self.c_attn(x).reshape(heads), axis=2)
        return q, k, v


class _MLP(nnx.Module):
    def __init__(self, config: GPT2Config, *, rngs: nnx.Rngs):
        width = config.n_embd
        self.c_fc = linear(width, 4 * width, _std(config), rngs)
        self.c_proj = linear(4 * width, width, _residual_std(config), rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        # Without the barriers, XLA on CPUs fuses both operations into each consumer,
        # including the transposed copies of the backward pass, and so computes them
        # several times.
        x = jax.lax.optimization_barrier(self.c_fc(x))
        x = jax.lax.optimization_barrier(jax.nn.gelu(x, approximate=True))
        return self.c_proj(x)


def gpt2_attention(mesh: Mesh | None = None) -> AttentionFn:
    """Returns `make_attention(mesh)`, but for rows of one segment cuDNN or plain XLA.

    Without a kernel, all scores, [B, H, T, T] in float32, are written to memory.

    Args:
        mesh: as for `make_attention`.
    """
    attend = make_attention(mesh)
    num_parts = 1 if mesh is None else mesh.shape.get("tensor", 1)

    def attend_rows(q, k, v, *, segment_ids=None, **options):
        if segment_ids is not None or options:
            return attend(q, k, v, segment_ids=segment_ids, **options)
        if is_cudnn_default(mesh, q) and q.shape[2] % num_parts == 0:
            # Raised while tracing if cuDNN is missing or does not support the call.
            with contextlib.suppress(NotImplementedError, RuntimeError):
                return make_attention(mesh, implementation="cudnn")(q, k, v)
        return jax.nn.dot_product_attention(q, k, v, is_causal=True)

    return attend_rows


def _dropout_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array | None,
    rate: float,
    rng: jax.Array,
) -> jax.Array:
    """Computes causal attention with dropout of its probabilities, as PyTorch does.

    The probabilities, [B, H, T, T], are held in memory: the kernels of
    `make_attention` have no dropout. The softmax is in float32.
    """
    length, wide = q.shape[1], wide_dtype(q.dtype)
    scores = jnp.einsum("bthd,bshd->bhts", q, k, preferred_element_type=wide)
    is_visible = jnp.tril(jnp.ones((length, length), bool))[None]
    if segment_ids is not None:
        is_visible = is_visible & (segment_ids[:, :, None] == segment_ids[:, None])
    scores = jnp.where(is_visible[:, None], scores * q.shape[-1] ** -0.5, -jnp.inf)
    weights = dropout(jax.nn.softmax(scores, axis=-1).astype(v.dtype), rate, rng)
    return jnp.einsum("bhts,bshd->bthd", weights, v)


def _stacked(blocks: list[_Block]) -> _Block:
    """Returns one block whose parameters are stacked along a first axis of layers."""
    states = [nnx.state(block) for block in blocks]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    return nnx.merge(nnx.graphdef(blocks[0]), stacked)


def _std(config: GPT2Config) -> float:
    """Returns 0.02, the value of GPT-2 at width 768, scaled by 1 / sqrt(width)."""
    return 0.02 * math.sqrt(768 / config.n_embd)


def _residual_std(config: GPT2Config) -> float:
    # The residual stream is the sum of two outputs per layer. Dividing by the square
    # root of their number keeps its variance independent of the depth, as in GPT-2.
    return _std(config) / math.sqrt(2 * config.n_layer)
