"""Initial parameters of a decoder, their PyTorch layouts and their sharding."""

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding, PartitionSpec

from .. import _checks, _pytrees, sharding
from .._typing import PyTree
from ..optimizers import TorchLayout
from ._decoder_config import DecoderConfig
from ._layers import constrain_both_ways
from ._llama import GATHERED, Decoder


def draw_decoder_params(config: DecoderConfig, seed: int) -> PyTree:
    """Returns random initial parameters, a tree of dicts of float32 arrays.

    Matrices are drawn from a normal distribution with standard deviation
    `initializer_range`. Biases and the embedding of the padding token are zeros, gains
    of normalizations are ones. The numbers of a layer do not depend on `scan_layers`.

    Args:
        config: configuration of the model.
        seed: seed of the parameters.

    Source: transformers 5.23 `modeling_utils.py`, `PreTrainedModel._init_weights`.
    """
    key = jax.random.key(_checks.seed("seed", seed))

    def draw_leaf(name: str, leaf: Any) -> tuple[jax.Array]:
        last = name.rpartition(".")[2]
        if last in ("bias", "scale"):
            return (jnp.full(leaf.shape, float(last == "scale")),)
        # The key depends on the name without the number of the layer, then on the
        # number, so that a stacked parameter has the numbers of the separate layers.
        parts = name.split(".")
        layer = next((int(part) for part in parts if part.isdecimal()), None)
        stem = ".".join(part for part in parts if not part.isdecimal())
        leaf_key = jax.random.fold_in(key, zlib.crc32(stem.encode()))

        def normal(index: Any, shape: tuple[int, ...]) -> jax.Array:
            numbers = jax.random.normal(jax.random.fold_in(leaf_key, index), shape)
            return numbers * config.initializer_range

        if layer is None and stem.startswith("model.layers."):
            indices = jnp.arange(config.num_hidden_layers)
            return (jax.vmap(lambda i: normal(i, leaf.shape[1:]))(indices),)
        p = normal(layer or 0, leaf.shape)
        if last == "embedding" and config.padding_row is not None:
            p = p.at[config.padding_row].set(0.0)
        return (p,)

    return _pytrees.map_leaves(draw_leaf, _shapes_of(config), num_results=1)[0]


def decoder_layout(config: DecoderConfig) -> dict[str, TorchLayout]:
    """Returns the PyTorch layouts of the parameters, for `build_optimizer`.

    Kernels are [in, out] here and [out, in] in PyTorch. With `scan_layers`, each layer
    of a stacked parameter is a parameter in PyTorch.

    Returns:
        Layouts by a pattern for the names of leaves.
    """
    in_layers = r"model\.layers\..+"
    kernel, vector = TorchLayout.dense(), TorchLayout()
    if config.scan_layers:
        kernel, vector = kernel.stacked(), vector.stacked()
    layouts = {rf"{in_layers}\.kernel": kernel, rf"{in_layers}\.scale": vector}
    if config.has_qkv_bias or config.mlp_bias:
        layouts[rf"{in_layers}\.bias"] = vector
    if not config.tie_word_embeddings:
        layouts[r"lm_head\.kernel"] = TorchLayout.dense()
    return layouts


def decoder_layer_norms(config: DecoderConfig) -> dict[str, str]:
    """Returns the classes of normalizations that Trainer recognizes, by path.

    Pass them to `build_optimizer(layer_norms=...)`. Until version 4.52, Trainer
    excluded LlamaRMSNorm from weight decay by its class, and the normalizations of the
    other architectures not at all. Later versions exclude all of them by name.

    Returns:
        {"model.norm": "LlamaRMSNorm", ...} for a Llama; {} for others.
    """
    if config.model_type != "llama":
        return {}
    numbers = range(config.num_hidden_layers)
    layers = [""] if config.scan_layers else [f".{i}" for i in numbers]
    norms = ("input_layernorm", "post_attention_layernorm")
    paths = [f"model.layers{i}.{norm}" for i in layers for norm in norms]
    return dict.fromkeys([*paths, "model.norm"], "LlamaRMSNorm")


def decoder_rules(
    config: DecoderConfig, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh
) -> dict[str, PartitionSpec]:
    """Returns the sharding rules of a decoder, for `param_shardings`.

    Matrices are sharded over `fsdp` along one axis and over `tensor` along the other:
    along the outputs of the projections to queries, keys, values, gate and up, and
    along the inputs of the projections that follow them. The activations in between
    stay sharded by heads, and a single all-reduce follows (Megatron-LM, arXiv
    1909.08053, section 3). Normalizations and biases that are added to the residual
    stream are replicated. If `tensor` is a multiple of the number of heads of keys,
    keys and values are not sharded over it.

    Args:
        config: configuration of the model. With `scan_layers`, the first axis of each
            stacked parameter is the layer; it is not sharded.
        mesh: mesh with any of the axes `data`, `fsdp` and `tensor`.

    Raises:
        ValueError: if `tensor` does not divide the heads.
    """
    num_parts = mesh.shape.get("tensor", 1)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    fit = [
        n
        for n in range(1, heads + 1)
        if heads % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0)
    ]
    if num_parts not in fit:
        raise ValueError(
            f"`mesh` must have an axis tensor that divides the {heads} heads of "
            f"queries, and divides the {kv_heads} heads of keys or is a multiple of "
            f"them, got tensor={num_parts}. Use {' or '.join(map(str, fit))}, and "
            "assign the remaining devices to fsdp."
        )
    layer, stack = r"model\.layers\..+\.", (None,) if config.scan_layers else ()
    into, out_of = "(q_proj|gate_proj|up_proj)", "(o_proj|down_proj)"
    # Parts of a head of keys would have to be gathered for every product with queries.
    kv_axis = "tensor" if kv_heads % num_parts == 0 else None
    rules: dict[str, tuple[str | None, ...]] = {
        r"model\.embed_tokens\.embedding": ("tensor", "fsdp"),
        rf"{layer}{into}\.kernel": (*stack, "fsdp", "tensor"),
        rf"{layer}(k_proj|v_proj)\.kernel": (*stack, "fsdp", kv_axis),
        rf"{layer}{out_of}\.kernel": (*stack, "tensor", "fsdp"),
        r".*norm\.scale": (),
    }
    if config.has_qkv_bias or config.mlp_bias:
        rules[rf"{layer}{into}\.bias"] = (*stack, "tensor")
    if config.has_qkv_bias:
        rules[rf"{layer}(k_proj|v_proj)\.bias"] = (*stack, kv_axis)
    if config.attention_bias or config.mlp_bias:
        rules[rf"{layer}{out_of}\.bias"] = ()
    if not config.tie_word_embeddings:
        rules[r"lm_head\.kernel"] = ("fsdp", "tensor")
    return {
        name: PartitionSpec(*(axis if axis in mesh.shape else None for axis in axes))
        for name, axes in rules.items()
    }


def gather_layer(config: DecoderConfig, mesh: Any) -> Callable[[PyTree], PyTree] | None:
    """Returns a function that gathers the parameters of one layer over `fsdp`.

    Without it, XLA divides a product with a sharded kernel into a loop over its shards,
    and a kernel that is used twice in the backward pass, in the recomputed forward pass
    and in the gradient of its input, is communicated twice. Gathered explicitly, it is
    communicated once in each pass. Its gradient keeps the sharding of the parameter.

    Args:
        config: configuration of the model.
        mesh: mesh with any of the axes `data`, `fsdp` and `tensor`.

    Returns:
        A function of the parameters of a layer, a tree of dicts, without the axis of
        the stack; None if the mesh does not shard over `fsdp`.
    """
    if mesh.shape.get("fsdp", 1) == 1:
        return None
    shapes, rules = _shapes_of(config), decoder_rules(config, mesh)
    shardings = sharding.param_shardings(shapes, mesh, rules)["model"]["layers"]
    num_stacked = int(config.scan_layers)
    layer_shardings = shardings if config.scan_layers else shardings[min(shardings)]

    def gather(params: PyTree) -> PyTree:
        return jax.tree.map(gather_leaf, params, layer_shardings)

    def gather_leaf(p: jax.Array, stacked: NamedSharding) -> jax.Array:
        spec = (*stacked.spec, *(None,) * (num_stacked + p.ndim - len(stacked.spec)))
        axes = [entry if isinstance(entry, tuple) else (entry,) for entry in spec]
        # Along the axis of the stack, the scan selects one layer.
        if not any("fsdp" in names for names in axes[num_stacked:]):
            return p
        gathered = PartitionSpec(
            *(
                tuple(n for n in names if n not in (None, "fsdp"))
                for names in axes[num_stacked:]
            )
        )
        sharded = PartitionSpec(*spec[num_stacked:])
        constrain = jax.lax.with_sharding_constraint

        def gather_once(p: jax.Array) -> jax.Array:
            return checkpoint_name(
                constrain(p, NamedSharding(mesh, gathered)), GATHERED
            )

        def scatter(g: jax.Array) -> jax.Array:
            return constrain(g, NamedSharding(mesh, sharded))

        # Gradients with the gathered sharding would be summed by an all-reduce, which
        # moves twice the bytes of a reduce-scatter.
        return constrain_both_ways(gather_once, scatter, p)

    return gather


def decoder_flops_per_token(config: DecoderConfig) -> int:
    """Returns the number of model FLOPs of a training step per token.

        6 N + 12 num_attention_heads head_dim (sum over layers of their span)

    N is the number of parameters without embeddings that are only looked up. The span
    of a layer is `block_size`, or its window if that is shorter; the masked half of
    full attention is included. FLOPs that `gradient_checkpointing` repeats are counted
    once, as in model FLOPs utilization (MFU).

    Source: Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", 2022,
        arXiv 2204.02311, appendix B.
    """
    num_params = sum(leaf.size for leaf in jax.tree.leaves(_shapes_of(config)))
    if not config.tie_word_embeddings:
        num_params -= config.vocab_size * config.hidden_size
    length = config.block_size
    spans = [min(length, kind.window or length) for kind in config.layer_kinds]
    width = config.num_attention_heads * config.head_dim
    return 6 * num_params + 12 * width * sum(spans)


def _shapes_of(config: DecoderConfig) -> PyTree:
    model = nnx.eval_shape(lambda: Decoder(config))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))
