"""Configuration of a GPT-2: presets, layouts, sharding rules and FLOPs."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
from jax.sharding import PartitionSpec

from .. import _checks
from ..optimizers import TorchLayout


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPT2Config:
    """Sizes and options of a GPT-2, with the names of Transformers' `GPT2Config`.

    `block_size` corresponds to `n_positions` of Transformers, whose dropout rates are
    0.1 by default.

    Attributes:
        n_layer: number of layers.
        n_head: number of attention heads per layer; divides `n_embd`.
        n_embd: width of the residual stream.
        block_size: maximum number of tokens in a sequence.
        vocab_size: number of different tokens; 256 for bytes.
        resid_pdrop: dropout rate of the outputs of attention and MLP, in training only;
            at least 0 and less than 1.
        embd_pdrop: dropout rate of the embeddings.
        attn_pdrop: dropout rate of the attention probabilities. With a rate above 0,
            the probabilities of all pairs of tokens are stored in memory.
        gradient_checkpointing: whether the backward pass recomputes the activations of
            each layer instead of storing them. This needs less memory (on CPUs only
            together with `scan_layers`) and a third more FLOPs.
        scan_layers: whether the layers are stacked and run by `jax.lax.scan`. The
            parameters are then `transformer.h.attn.c_attn.kernel`, [n_layer, in, out].
            The compile time is that of one layer, steps are slower; the results are
            equal up to rounding.

    Raises:
        ValueError: if a size is less than 1, the heads do not divide the width, or a
            dropout rate is out of range.
        TypeError: if a field has the wrong type.
    """

    n_layer: int = 3
    n_head: int = 4
    n_embd: int = 128
    block_size: int = 64
    vocab_size: int = 256
    resid_pdrop: float = 0.0
    embd_pdrop: float = 0.0
    attn_pdrop: float = 0.0
    gradient_checkpointing: bool = False
    scan_layers: bool = False

    def __post_init__(self) -> None:
        """Checks every field, and converts sizes to ints."""
        for name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size"):
            size = _checks.step_count(name, getattr(self, name), minimum=1)
            object.__setattr__(self, name, size)  # the dataclass is frozen
        for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
            _checks.fraction_below_one(name, getattr(self, name))
        for name in ("gradient_checkpointing", "scan_layers"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(
                    f"`{name}` must be True or False, got {getattr(self, name)!r}."
                )
        if self.n_embd % self.n_head != 0:
            fitting = -(-self.n_embd // self.n_head) * self.n_head
            raise ValueError(
                f"`n_embd` must be a multiple of `n_head`, which is {self.n_head}, got "
                f"{self.n_embd!r}. Use {fitting}, or another number of heads."
            )

    @property
    def has_dropout(self) -> bool:
        """True if the loss needs a random key in every training step."""
        return max(self.resid_pdrop, self.embd_pdrop, self.attn_pdrop) > 0


# Each preset has about four times the parameters of the previous one. The vocabulary is
# that of bytes, except for "gpt2".
GPT2_PRESETS: Mapping[str, GPT2Config] = MappingProxyType(
    {
        "nano": GPT2Config(),
        "micro": GPT2Config(n_layer=4, n_head=4, n_embd=256, block_size=128),
        "mini": GPT2Config(n_layer=6, n_head=6, n_embd=384, block_size=256),
        "midi": GPT2Config(n_layer=8, n_head=8, n_embd=640, block_size=512),
        "gpt2": GPT2Config(
            n_layer=12, n_head=12, n_embd=768, block_size=1024, vocab_size=50257
        ),
    }
)


def gpt2_preset(name: str, **changes: Any) -> GPT2Config:
    """Returns a preset by name, with changed fields.

    Args:
        name: "nano" (0.6 million parameters), "micro" (3.3), "mini" (10.8), "midi"
            (39.9) or "gpt2" (124.4, the smallest of the published models).
        **changes: values of fields of `GPT2Config` that differ from the preset.

    Raises:
        ValueError: if the name or a field is unknown, or a value is out of range.
        TypeError: if a value has the wrong type.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
    """
    _checks.one_of("name", name, GPT2_PRESETS)
    fields = [field.name for field in dataclasses.fields(GPT2Config)]
    for field in changes:
        _checks.one_of("changes", field, fields)
    return dataclasses.replace(GPT2_PRESETS[name], **changes)


def gpt2_layout(config: GPT2Config) -> dict[str, TorchLayout] | None:
    """Returns the PyTorch layouts of the parameters, for `build_optimizer`.

    Kernels are [in, out] both here and in the GPT-2 of Transformers, whose `Conv1D` is
    not transposed. Only stacked parameters need a layout: in PyTorch each layer has its
    own parameter.

    Returns:
        Layouts of the stacked leaves by a pattern for their names; None without
        `scan_layers`.
    """
    if not config.scan_layers:
        return None
    return {r"transformer\.h\..+": TorchLayout().stacked()}


def gpt2_layer_norms(config: GPT2Config) -> tuple[str, ...]:
    """Returns the paths of the layer normalizations, for `build_optimizer`.

    Decay rules that exclude modules by type need these paths, since parameters in JAX
    do not have the type of their module.
    """
    layers = [""] if config.scan_layers else [f".{i}" for i in range(config.n_layer)]
    block_norms = [f"transformer.h{i}.{ln}" for i in layers for ln in ("ln_1", "ln_2")]
    return (*block_norms, "transformer.ln_f")


# Mesh axes of each axis of a parameter, by patterns for full names. For two consecutive
# layers, `tensor` shards the outputs of the first and the inputs of the second. The
# activations between them stay sharded, and a single all-reduce follows the second
# layer (Megatron-LM, arXiv 1909.08053, section 3).
_LAYER_RULES: Mapping[str, tuple[str | None, ...]] = MappingProxyType(
    {
        r".*(c_attn|c_fc)\.kernel": ("fsdp", "tensor"),
        r".*c_proj\.kernel": ("tensor", "fsdp"),
        r".*(c_attn|c_fc)\.bias": ("tensor",),
    }
)
_OTHER_RULES: Mapping[str, tuple[str | None, ...]] = MappingProxyType(
    {
        r".*wte\.embedding": ("tensor", "fsdp"),
        r".*wpe\.embedding": (),
        r".*(c_proj\.bias|ln_\w+\.(scale|bias))": (),
    }
)


def gpt2_rules(
    model: GPT2Config, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh
) -> dict[str, PartitionSpec]:
    """Returns the sharding rules of a GPT-2, for `param_shardings`.

    Matrices are sharded over `fsdp` along one axis and over `tensor` along the other.
    Layer normalizations, biases that are added to the residual stream and position
    embeddings are replicated.

    Args:
        model: configuration of the model. With `scan_layers`, the first axis of each
            stacked parameter is the layer; it is not sharded.
        mesh: mesh with any of the axes `data`, `fsdp` and `tensor`.
    """
    layers = (None,) if model.scan_layers else ()
    rules = {name: (*layers, *axes) for name, axes in _LAYER_RULES.items()}
    return {
        name: PartitionSpec(*(axis if axis in mesh.shape else None for axis in axes))
        for name, axes in {**rules, **_OTHER_RULES}.items()
    }


def flops_per_token(config: GPT2Config) -> int:
    """Returns the number of model FLOPs of a training step per token.

        6 N + 12 n_layer n_embd block_size

    N is the number of parameters without the position embeddings, which are not used in
    a matrix product. The token embeddings are included, since the logits are a product
    with them. The second term is attention, including its masked half. FLOPs that
    `gradient_checkpointing` repeats are counted once, as in model FLOPs utilization
    (MFU).

    Source: Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", 2022,
        arXiv 2204.02311, appendix B.
    """
    width, num_layers = config.n_embd, config.n_layer
    # Kernels: 3 (c_attn) + 1 + 4 + 4 times width^2. Biases: 3 + 1 + 4 + 1 times width.
    # Two layer normalizations: 2 + 2 times width.
    in_a_layer = 12 * width**2 + 13 * width
    num_params = config.vocab_size * width + num_layers * in_a_layer + 2 * width
    return 6 * num_params + 12 * num_layers * width * config.block_size
