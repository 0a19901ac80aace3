"""Forward pass of a model for one token at a time, with a cache of keys and values.

Prompts are processed at once (`prefill`), with the attention function of training. Each
following token is one step, in which its query is multiplied by the cached keys.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx

from .._numerics import wide_dtype
from .._typing import PyTree
from ._attention import make_attention
from ._decoder_config import DecoderConfig, LayerKind
from ._gpt2 import GPT2
from ._gpt2_config import GPT2Config
from ._llama import Decoder, layer_rotation, periods
from ._rotary import Rotation

_Config: TypeAlias = GPT2Config | DecoderConfig


class Cache(NamedTuple):
    """Rotated keys, and values, of all layers; S is the largest length of a text.

    The heads precede the positions, so that a step is a batched product of matrices
    without a transposed copy.
    """

    keys: jax.Array  # [L, B, K, S, D], dtype of the parameters
    values: jax.Array  # [L, B, K, S, D]


class DecodingFns(NamedTuple):
    """Functions of a model for texts that grow by one token per step.

    prefill: (params, tokens [B, P], lengths [B], size S) -> logits [B, V], cache. Rows
        are padded at their ends. The logits are those after the last token of each row.
    step: (params, tokens [B], position_ids [B], cache) -> logits [B, V], cache. Each
        token is appended at its position, and attends to all positions up to it.

    Logits are float32.
    """

    prefill: Callable[..., tuple[jax.Array, Any]]
    step: Callable[..., tuple[jax.Array, Any]]


class _Parts(NamedTuple):
    """Parts of a model with its parameters."""

    kinds: Sequence[LayerKind]  # kind of each layer
    layers: Any  # module of stacked layers, or list of modules
    is_stacked: bool  # whether `layers` is one module of stacked layers
    embed: Callable[[jax.Array, jax.Array], jax.Array]  # tokens, position_ids -> x
    rotation: Callable[[jax.Array], Rotation | None]  # position_ids -> rotation
    project: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]  # layer, x, rotation
    logits: Callable[[jax.Array], jax.Array]  # [B, E] -> [B, V]


# (q, k, v, window, layer, cache) -> output [B, T, H, D] and cache.
_AttendFn = Callable[..., tuple[jax.Array, Cache]]


def make_decoding_fns(config: _Config, *, mesh: Any = None) -> DecodingFns:
    """Returns the functions of a model for texts that grow by one token per step.

    Parameters may be sharded over `mesh`; activations are replicated, since a batch of
    prompts is usually smaller than a batch for training.

    The frequencies of RoPE scalings that depend on the length of the text, "dynamic"
    and "longrope", are chosen in each call by the length of each text so far. Keys in
    the cache keep their rotation, as in Transformers.
    """
    attend = make_attention(mesh)
    graph, make_parts = _decoding_graph(config)
    num_heads, head_dim = _num_heads(config)

    def prefill(params, tokens, lengths, size):
        parts = make_parts(nnx.merge(graph, params))
        # Padding has the position of the last token: `layer_rotation` takes the largest
        # one for the length of the text.
        position_ids = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        position_ids = jnp.minimum(position_ids, lengths[:, None] - 1)
        shape = (len(parts.kinds), tokens.shape[0], num_heads, size, head_dim)
        dtype = jax.tree.leaves(params)[0].dtype
        cache = Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

        def attend_prompt(q, k, v, window, layer, cache):
            start = (layer, 0, 0, 0, 0)
            cache = Cache(
                *(
                    jax.lax.dynamic_update_slice(
                        cached, jnp.swapaxes(new, 1, 2)[None], start
                    )
                    for cached, new in zip(cache, (k, v), strict=True)
                )
            )
            return attend(q, k, v, window=window), cache

        # Attention is causal: no token attends to the padding after it, and a step
        # overwrites the keys of the padding before it reads them.
        x, cache = _through_layers(parts, tokens, position_ids, attend_prompt, cache)
        last = jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)
        return parts.logits(last[:, 0]).astype(jnp.float32), cache

    def step(params, tokens, position_ids, cache):
        parts = make_parts(nnx.merge(graph, params))
        rows = jnp.arange(tokens.shape[0], dtype=jnp.int32)

        def attend_cached(q, k, v, window, layer, cache):
            cache = Cache(
                *(
                    cached.at[layer, rows, :, position_ids].set(new[:, 0])
                    for cached, new in zip(cache, (k, v), strict=True)
                )
            )
            layer_cache = (cache.keys[layer], cache.values[layer])
            return _attend_one(q, *layer_cache, position_ids, window), cache

        x, cache = _through_layers(
            parts, tokens[:, None], position_ids[:, None], attend_cached, cache
        )
        return parts.logits(x[:, 0]).astype(jnp.float32), cache

    return DecodingFns(prefill, step)


def recomputing_fns(
    logits_fn: Callable[[PyTree, jax.Array], jax.Array],
) -> DecodingFns:
    """Returns the functions of a model without a cache of keys and values.

    The cache is the text so far, [B, S], and each step computes the logits of the whole
    text: S times the work of a step with a cache, in a program of the same length.

    Args:
        logits_fn: (params, tokens [B, S]) -> logits [B, S, V] of a causal model, whose
            logits do not depend on later tokens.
    """

    def logits_after(params, text, last):
        logits = logits_fn(params, text)
        found = jnp.take_along_axis(logits, last[:, None, None], axis=1)
        return found[:, 0].astype(jnp.float32)

    def prefill(params, tokens, lengths, size):
        text = jnp.pad(tokens, ((0, 0), (0, size - tokens.shape[1])))
        return logits_after(params, text, lengths - 1), text

    def step(params, tokens, position_ids, text):
        rows = jnp.arange(tokens.shape[0], dtype=jnp.int32)
        text = text.at[rows, position_ids].set(tokens)
        return logits_after(params, text, position_ids), text

    return DecodingFns(prefill, step)


def _decoding_graph(config: _Config) -> tuple[Any, Callable[[Any], _Parts]]:
    """Returns the graph definition, and the function that returns a model's parts."""

    def model() -> nnx.Module:
        if isinstance(config, GPT2Config):
            return GPT2(config, rngs=nnx.Rngs(0))
        return Decoder(config)

    make_parts: Callable = (
        _gpt2_parts if isinstance(config, GPT2Config) else _decoder_parts
    )
    graph = nnx.graphdef(nnx.eval_shape(model))
    return graph, functools.partial(make_parts, config)


def _num_heads(config: _Config) -> tuple[int, int]:
    """Returns the number of heads of keys and values, and their width."""
    if isinstance(config, GPT2Config):
        return config.n_head, config.n_embd // config.n_head
    return config.num_key_value_heads, config.head_dim


def _gpt2_parts(config: GPT2Config, model: GPT2) -> _Parts:
    root = model.transformer
    return _Parts(
        kinds=[LayerKind(None, has_rope=False)] * config.n_layer,
        layers=root.h,
        is_stacked=config.scan_layers,
        embed=lambda tokens, position_ids: root.wte(tokens) + root.wpe(position_ids),
        rotation=lambda position_ids: None,
        project=lambda layer, x, rotation: layer.project(x),
        logits=lambda x: root.ln_f(x) @ root.wte.embedding[...].T,
    )


def _decoder_parts(config: DecoderConfig, model: Decoder) -> _Parts:
    root = model.model

    # Rotations are computed for each row: the frequencies of some RoPE scalings depend
    # on the length of a text, and a text must not depend on the others.
    @jax.vmap
    def rotation(position_ids: jax.Array) -> Rotation | None:
        angles = layer_rotation(config, position_ids[None])
        return None if angles is None else Rotation(angles.cos[0], angles.sin[0])

    return _Parts(
        kinds=config.layer_kinds,
        layers=root.layers,
        is_stacked=config.scan_layers,
        embed=lambda tokens, position_ids: root.embed_tokens(tokens),
        rotation=rotation,
        project=lambda layer, x, angles: layer.project(x, angles),
        logits=lambda x: root.norm(x) @ model.head(),
    )


def _through_layers(
    parts: _Parts,
    tokens: jax.Array,
    position_ids: jax.Array,
    attend: _AttendFn,
    cache: Cache,
) -> tuple[jax.Array, Cache]:
    """Returns the outputs of the last layer, [B, T, E], and the new cache.

    The cache is carried through the layers as a whole: XLA updates it in place. As an
    input and an output of a scan it would be copied in each step.
    """
    rotation = parts.rotation(position_ids)
    graph = nnx.graphdef(parts.layers if parts.is_stacked else parts.layers[0])

    def run(carry, kind, layer, params):
        x, cache = carry
        block = nnx.merge(graph, params)
        q, k, v = parts.project(block, x, rotation if kind.has_rope else None)
        y, cache = attend(q, k, v, kind.window, layer, cache)
        return block.finish(x, y), cache

    carry = (parts.embed(tokens, position_ids), cache)
    if not parts.is_stacked:
        for i, (kind, block) in enumerate(zip(parts.kinds, parts.layers, strict=True)):
            carry = run(carry, kind, i, nnx.state(block))
        return carry
    for start, num_repeats, period in periods(parts.kinds):

        def body(carry, inputs, period=period):
            for i, kind in enumerate(period):
                layer, params = jax.tree.map(lambda p, i=i: p[i], inputs)
                carry = run(carry, kind, layer, params)
            return carry, None

        shape, stop = (num_repeats, len(period)), start + num_repeats * len(period)
        params = jax.tree.map(
            lambda p, start=start, stop=stop, shape=shape: p[start:stop].reshape(
                *shape, *p.shape[1:]
            ),
            nnx.state(parts.layers),
        )
        indices = jnp.arange(start, stop, dtype=jnp.int32).reshape(shape)
        carry, _ = jax.lax.scan(body, carry, (indices, params))
    return carry


def _attend_one(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    position_ids: jax.Array,
    window: int | None,
) -> jax.Array:
    """Computes attention of one query per row over the cached keys.

    Args:
        q: [B, 1, H, D].
        k: [B, K, S, D], of which positions up to the query's are valid.
        v: [B, K, S, D].
        position_ids: position of each query, [B].
        window: number of keys that a query attends to, its own included; None for all.

    Returns:
        [B, 1, H, D], dtype of `q`. The softmax and all sums are in float32.
    """
    batch, _, num_heads, head_dim = q.shape
    num_key_heads, length = k.shape[1:3]
    sum_dtype = wide_dtype(q.dtype)
    grouped = q.reshape(batch, num_key_heads, num_heads // num_key_heads, head_dim)
    scores = jnp.einsum("bkgd,bksd->bkgs", grouped, k, preferred_element_type=sum_dtype)
    distance = position_ids[:, None] - jnp.arange(length, dtype=jnp.int32)[None]
    is_visible = distance >= 0
    if window is not None:
        is_visible = is_visible & (distance < window)
    scores = jnp.where(is_visible[:, None, None], scores * head_dim**-0.5, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    y = jnp.einsum("bkgs,bksd->bkgd", weights, v, preferred_element_type=sum_dtype)
    return y.reshape(q.shape).astype(q.dtype)
