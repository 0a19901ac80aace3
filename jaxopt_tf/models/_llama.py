"""Llama, Mistral, Qwen2, Qwen3 and SmolLM3 in Flax NNX.

Parameters have the names of Transformers, with the last part of Flax:
`model.embed_tokens.embedding`, `model.layers.0.self_attn.q_proj.kernel`,
`model.norm.scale`, `lm_head.kernel`. Kernels are [in, out]. The outputs are those of
the PyTorch model with the same weights.

Source: transformers 5.23 `models/llama/modeling_llama.py`, and those of Mistral, Qwen2,
    Qwen3 and SmolLM3 for their differences.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from ._attention import AttentionFn, make_attention
from ._decoder_config import REMAT_POLICIES, DecoderConfig, LayerKind
from ._inputs import Inputs
from ._layers import constrain_both_ways, identity, matmul
from ._rotary import Rotation, inverse_frequencies, rotate, rotation

# Name of gathered parameters in policies of `jax.checkpoint`.
GATHERED = "gathered"


class Decoder(nnx.Module):
    """Decoder-only language model: tokens -> logits of the next token.

    Parameters are zeros, and ones in normalizations, until they are replaced.
    `draw_decoder_params` draws them as Transformers does.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        constrain: Callable[[jax.Array], jax.Array] = identity,
        constrain_table: Callable[[jax.Array], jax.Array] = identity,
        constrain_gradient: Callable[[jax.Array], jax.Array] = identity,
        gather: Callable[[Any], Any] | None = None,
        attend: AttentionFn | None = None,
    ):
        """Builds the modules.

        Args:
            config: configuration of the model.
            constrain: function that constrains activations, [B, T, ...], to their
                sharding on a mesh.
            constrain_table: the same for the embeddings before the lookup,
                [vocab_size, hidden_size].
            constrain_gradient: the same for the gradient of the lookup's results,
                [B, T, hidden_size].
            gather: function that gathers the parameters of a layer, a tree of dicts, on
                a mesh that shards them; None if they are used as they are.
            attend: attention function; None for `make_attention()`.
        """
        attend = make_attention() if attend is None else attend
        self.config = config
        embed_tokens = _Embedding(config, constrain_table, constrain_gradient)
        self.model = _Model(config, constrain, embed_tokens, gather, attend)
        if not config.tie_word_embeddings:
            self.lm_head = _Linear(config.hidden_size, config.vocab_size)

    def hidden(self, inputs: Inputs) -> jax.Array:
        """Returns the normalized outputs of the last layer, [B, T, hidden_size]."""
        return self.model(inputs)

    def head(self) -> jax.Array:
        """Returns the weights of the head, [hidden_size, vocab_size]."""
        if self.config.tie_word_embeddings:
            return self.model.embed_tokens.embedding[...].T
        return self.lm_head.kernel[...]


class _Model(nnx.Module):
    def __init__(
        self,
        config: DecoderConfig,
        constrain: Callable[[jax.Array], jax.Array],
        embed_tokens: "_Embedding",
        gather: Callable[[Any], Any] | None,
        attend: AttentionFn,
    ):
        self.config, self.constrain, self.gather = config, constrain, gather
        self.embed_tokens = embed_tokens
        num_layers = config.num_hidden_layers
        self.layers: Any = (
            _Layer(config, attend, stack=(num_layers,))
            if config.scan_layers
            else nnx.List([_Layer(config, attend) for _ in range(num_layers)])
        )
        self.norm = _RMSNorm(config.hidden_size, config.rms_norm_eps)

    def __call__(self, inputs: Inputs) -> jax.Array:
        x = self.constrain(self.embed_tokens(inputs.tokens))
        return self.norm(self._through_layers(x, inputs))

    def _through_layers(self, x: jax.Array, inputs: Inputs) -> jax.Array:
        config = self.config
        position_ids = inputs.position_ids
        if position_ids is None:
            position_ids = jnp.arange(inputs.tokens.shape[1], dtype=jnp.int32)[None]
        rotation = layer_rotation(config, position_ids)
        # All layers have the same graph definition; only their parameters differ.
        graph = nnx.graphdef(self.layers if config.scan_layers else self.layers[0])

        def layer_of(kind: LayerKind) -> Callable[[jax.Array, Any], jax.Array]:
            def layer(x, params):
                if self.gather is not None:
                    params = self.gather(nnx.to_pure_dict(params))
                block = nnx.merge(graph, params)
                x = block(
                    x, inputs.segment_ids, rotation if kind.has_rope else None, kind
                )
                return self.constrain(x)

            policies = jax.checkpoint_policies
            if config.gradient_checkpointing:
                names = REMAT_POLICIES[config.remat_policy]
                policy = policies.save_only_these_names(*names)
            elif self.gather is not None:
                # Gathered parameters are not stored for the backward pass, but gathered
                # again: all layers together may not fit.
                policy = policies.save_anything_except_these_names(GATHERED)
            else:
                return layer
            # `prevent_cse` adds optimization barriers, without which XLA would merge
            # the recomputation with the forward pass (common subexpressions). In a scan
            # they are not needed, since the passes are two separate loops.
            return jax.checkpoint(
                layer,
                prevent_cse=not config.scan_layers,
                policy=policy,
            )

        kinds = config.layer_kinds
        layers = {kind: layer_of(kind) for kind in kinds}
        if not config.scan_layers:
            for kind, block in zip(kinds, self.layers, strict=True):
                x = layers[kind](x, nnx.state(block))
            return x
        for start, num_repeats, period in periods(kinds):
            stop = start + num_repeats * len(period)
            # Slices are taken outside of the scan. Inside, they would be stored for the
            # backward pass: a second copy of all parameters.
            stacks = tuple(
                _rows(nnx.state(self.layers), start + i, stop, len(period))
                for i in range(len(period))
            )

            def body(x, params_of_period, period=period):
                for kind, params in zip(period, params_of_period, strict=True):
                    x = layers[kind](x, params)
                return x, None

            x, _ = jax.lax.scan(body, x, stacks)
        return x


def _rows(stack: Any, start: int, stop: int, step: int) -> Any:
    return jax.tree.map(lambda p: p[start:stop:step], stack)


def periods(
    kinds: Sequence[LayerKind],
) -> list[tuple[int, int, tuple[LayerKind, ...]]]:
    """Divides the layers into scans: first layer, number of repeats, repeated kinds.

    Windows and RoPE are static properties of a layer, so a scan repeats a fixed
    sequence of kinds. Layers without a period, such as 28 with full attention before 4
    with a window, are divided into runs of equal layers.
    """
    num_layers = len(kinds)
    for length in range(1, num_layers // 2 + 1):
        period = tuple(kinds[:length])
        if num_layers % length == 0 and tuple(kinds) == period * (num_layers // length):
            return [(0, num_layers // length, period)]
    starts = [i for i in range(num_layers) if i == 0 or kinds[i] != kinds[i - 1]]
    stops = [*starts[1:], num_layers]
    return [
        (start, stop - start, (kinds[start],))
        for start, stop in zip(starts, stops, strict=True)
    ]


def layer_rotation(config: DecoderConfig, position_ids: jax.Array) -> Rotation | None:
    """Returns the rotation of positions [B or 1, T]; it is the same in all layers."""
    if not any(kind.has_rope for kind in config.layer_kinds):
        return None
    inv_freq, factor = inverse_frequencies(
        config.rope_scaling,
        theta=config.rope_theta,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position_embeddings,
        num_positions=jnp.max(position_ids) + 1,
    )
    return rotation(position_ids, inv_freq, factor)


class _Layer(nnx.Module):
    def __init__(
        self, config: DecoderConfig, attend: AttentionFn, stack: tuple[int, ...] = ()
    ):
        size, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = _RMSNorm(size, eps, stack)
        self.self_attn = _Attention(config, attend, stack)
        self.post_attention_layernorm = _RMSNorm(size, eps, stack)
        self.mlp = _MLP(config, stack)

    def __call__(
        self,
        x: jax.Array,
        segment_ids: jax.Array | None,
        rotation: Rotation | None,
        kind: LayerKind,
    ) -> jax.Array:
        q, k, v = self.project(x, rotation)
        attend = self.self_attn.attend
        y = attend(q, k, v, segment_ids=segment_ids, window=kind.window)
        return self.finish(x, y)

    def project(
        self, x: jax.Array, rotation: Rotation | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns rotated queries, [B, T, H, D], and keys and values, [B, T, K, D]."""
        return self.self_attn.project(self.input_layernorm(x), rotation)

    def finish(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """Returns the output of the layer from its input and the attention's output."""
        x = x + self.self_attn.output(y)
        return x + self.mlp(self.post_attention_layernorm(x))


class _Attention(nnx.Module):
    def __init__(
        self, config: DecoderConfig, attend: AttentionFn, stack: tuple[int, ...]
    ):
        size, head_dim = config.hidden_size, config.head_dim
        num_q = config.num_attention_heads * head_dim
        num_kv = config.num_key_value_heads * head_dim
        has_bias = config.has_qkv_bias
        self.attend, self.head_dim = attend, head_dim
        self.q_proj = _Linear(size, num_q, has_bias, stack)
        self.k_proj = _Linear(size, num_kv, has_bias, stack)
        self.v_proj = _Linear(size, num_kv, has_bias, stack)
        self.o_proj = _Linear(num_q, size, config.attention_bias, stack)
        self.has_qk_norm = config.has_qk_norm
        if config.has_qk_norm:
            self.q_norm = _RMSNorm(head_dim, config.rms_norm_eps, stack)
            self.k_norm = _RMSNorm(head_dim, config.rms_norm_eps, stack)

    def project(
        self, x: jax.Array, rotation: Rotation | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        heads = (*x.shape[:2], -1, self.head_dim)
        q = checkpoint_name(self.q_proj(x), "q_proj").reshape(heads)
        k = checkpoint_name(self.k_proj(x), "k_proj").reshape(heads)
        v = checkpoint_name(self.v_proj(x), "v_proj").reshape(heads)
        if self.has_qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        return q, k, v

    def output(self, y: jax.Array) -> jax.Array:
        return checkpoint_name(self.o_proj(y.reshape(*y.shape[:2], -1)), "o_proj")


class _MLP(nnx.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: DecoderConfig, stack: tuple[int, ...]):
        size, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = _Linear(size, inner, config.mlp_bias, stack)
        self.up_proj = _Linear(size, inner, config.mlp_bias, stack)
        self.down_proj = _Linear(inner, size, config.mlp_bias, stack)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate = checkpoint_name(self.gate_proj(x), "gate_proj")
        up = checkpoint_name(self.up_proj(x), "up_proj")
        return checkpoint_name(self.down_proj(jax.nn.silu(gate) * up), "down_proj")


class _RMSNorm(nnx.Module):
    """Division by the root mean square, computed in float32, and a gain."""

    def __init__(self, size: int, epsilon: float, stack: tuple[int, ...] = ()):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones((*stack, size)))

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        normalized = wide * jax.lax.rsqrt(mean_square + self.epsilon)
        # The normalized values are rounded before the product with the gain, as in
        # Transformers.
        return _in_float32(jnp.multiply, normalized.astype(x.dtype), self.scale[...])


class _Linear(nnx.Module):
    """Dense layer with a kernel [in, out]; outputs have the dtype of the parameters."""

    def __init__(
        self,
        num_in: int,
        num_out: int,
        has_bias: bool = False,
        stack: tuple[int, ...] = (),
    ):
        self.has_bias = has_bias
        self.kernel = nnx.Param(jnp.zeros((*stack, num_in, num_out)))
        if has_bias:
            self.bias = nnx.Param(jnp.zeros((*stack, num_out)))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = matmul(x, self.kernel[...])
        return _in_float32(jnp.add, y, self.bias[...]) if self.has_bias else y


def _in_float32(
    operation: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, p: jax.Array
) -> jax.Array:
    """Combines activations with a vector of parameters, in the dtype of `x`.

    The result is the same as in bfloat16. The gradient of `p`, a sum over all tokens,
    is accumulated in float32; in bfloat16, its error is up to twice that of PyTorch.
    """
    return operation(x.astype(jnp.float32), p.astype(jnp.float32)).astype(x.dtype)


class _Embedding(nnx.Module):
    """Embedding table; NaN for a token outside of it."""

    def __init__(
        self,
        config: DecoderConfig,
        constrain_table: Callable[[jax.Array], jax.Array],
        constrain_gradient: Callable[[jax.Array], jax.Array],
    ):
        self.padding_row, self.constrain_table = config.padding_row, constrain_table
        self.constrain_gradient = constrain_gradient
        self.embedding = nnx.Param(jnp.zeros((config.vocab_size, config.hidden_size)))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        # The table's gradient is not constrained: it would be summed over the whole
        # table on every device before it is divided into shards, which moves twice the
        # bytes of a reduce-scatter.
        table = constrain_both_ways(self.constrain_table, identity, self.embedding[...])
        # Mode "fill" counts negative indices from the end of the table.
        index = jnp.where(tokens < 0, table.shape[0], tokens)
        x = jnp.take(table, index, axis=0, mode="fill")
        # The table's gradient is sharded along its columns, so that each device needs
        # the columns of all tokens. XLA finds no way to this sharding from that of the
        # batch, over `data` and `fsdp`, and gathers the whole gradient everywhere.
        x = constrain_both_ways(identity, self.constrain_gradient, x)
        if self.padding_row is None:
            return x
        # torch's embedding has no gradient at its `padding_idx`.
        is_padding = (tokens == self.padding_row)[..., None]
        return jnp.where(is_padding, jax.lax.stop_gradient(x), x)
