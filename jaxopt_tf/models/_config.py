"""GPT2Config, its presets, and what follows from it: layouts, shardings, FLOPs."""

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
    """The model's sizes and options, under the names of Transformers' `GPT2Config`.

    `block_size` is there `n_positions`. Attention weights are never dropped:
    `jax.nn.dot_product_attention` has no dropout, so there is no `attn_pdrop`.

    Attributes:
        n_layer: number of layers.
        n_head: attention heads per layer; divides `n_embd`.
        n_embd: width of the residual stream.
        block_size: tokens that the model sees at once.
        vocab_size: number of different tokens; 256 for bytes.
        resid_pdrop: share that is dropped of what a layer adds to the stream, from 0
            to below 1; in training only.
        embd_pdrop: the same of the embeddings.
        gradient_checkpointing: whether the backward pass recomputes every layer instead
            of storing it: less memory (on CPUs only together with `scan_layers`), a
            third more work.
        scan_layers: whether the layers are stacked and compiled as one: parameters are
            `transformer.h.attn.c_attn.kernel`, [n_layer, in, out]. Compiling takes as
            long as for one layer, a step longer; the numbers are the same to rounding.

    Raises:
        ValueError, TypeError: if a size is not a whole number of at least 1, the heads
            do not divide the width, a share is out of range or a switch no bool.
    """

    n_layer: int = 3
    n_head: int = 4
    n_embd: int = 128
    block_size: int = 64
    vocab_size: int = 256
    resid_pdrop: float = 0.0
    embd_pdrop: float = 0.0
    gradient_checkpointing: bool = False
    scan_layers: bool = False

    def __post_init__(self) -> None:
        """Checks every field, and makes sizes ints."""
        for name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size"):
            size = _checks.step_count(name, getattr(self, name), least=1)
            object.__setattr__(self, name, size)  # frozen for everyone else
        for name in ("resid_pdrop", "embd_pdrop"):
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
                f"{self.n_embd!r}. Take {fitting}, or another number of heads."
            )

    @property
    def has_dropout(self) -> bool:
        """True if training needs a random key in every step."""
        return self.resid_pdrop > 0 or self.embd_pdrop > 0


# Each about four times the one before; on bytes, but for the last.
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
    """Returns a preset by its name, with changes.

    Args:
        name: "nano" (0.6 million parameters), "micro" (3.3), "mini" (10.8), "midi"
            (39.9) or "gpt2" (124.4, the smallest of those that were published).
        **changes: fields of `GPT2Config` with other values.

    Raises:
        ValueError, TypeError: if there is no such name or no such field, or if
            `GPT2Config` refuses a value.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
    """
    _checks.one_of("name", name, GPT2_PRESETS)
    fields = [field.name for field in dataclasses.fields(GPT2Config)]
    for field in changes:
        _checks.one_of("changes", field, fields)
    return dataclasses.replace(GPT2_PRESETS[name], **changes)


def gpt2_layout(config: GPT2Config) -> dict[str, TorchLayout] | None:
    """Returns layouts of the parameters in torch, for `build_optimizer`.

    Kernels are [in, out] here and in torch's GPT-2 alike, so only what a scan stacks
    has to be declared: each layer is a parameter of its own.

    Returns:
        A layout for every stacked leaf by a pattern for its name; None without a scan.
    """
    if not config.scan_layers:
        return None
    return {r"transformer\.h\..+": TorchLayout().stacked()}


def gpt2_layer_norms(config: GPT2Config) -> tuple[str, ...]:
    """Returns the paths of the layer norms, for `build_optimizer`.

    Decay rules that know layer norms by their type find them by these paths.
    """
    layers = [""] if config.scan_layers else [f".{i}" for i in range(config.n_layer)]
    of_blocks = [f"transformer.h{i}.{ln}" for i in layers for ln in ("ln_1", "ln_2")]
    return (*of_blocks, "transformer.ln_f")


# Mesh axes of each axis of a parameter, by whole names. With two consecutive layers the
# first is divided by `tensor` along its outputs and the second along its inputs: one
# reduction serves both.
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

    Matrices are divided by `fsdp` along one axis and by `tensor` along the other;
    norms, and biases that are added to the residual stream, are replicated.

    Args:
        model: its size; with `scan_layers`, layers are an axis in front.
        mesh: with any of the axes `data`, `fsdp` and `tensor`.
    """
    layers = (None,) if model.scan_layers else ()
    rules = {name: (*layers, *axes) for name, axes in _LAYER_RULES.items()}
    return {
        name: PartitionSpec(*(axis if axis in mesh.shape else None for axis in axes))
        for name, axes in {**rules, **_OTHER_RULES}.items()
    }


def flops_per_token(config: GPT2Config) -> int:
    """Counts floating-point operations of one training step per token, as usual.

        6 N + 12 n_layer n_embd block_size

    N is the number of parameters without position embeddings, which nothing is
    multiplied with; token embeddings count, as they make the logits too. The second
    term is attention, masked half included. What `gradient_checkpointing` computes
    twice is counted once: utilisation is of the model, not of the hardware.

    Source: Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", 2022,
        arXiv 2204.02311, appendix B.
    """
    width, num_layers = config.n_embd, config.n_layer
    # Four kernels of 12 width^2 in all, their 9 biases, two norms of 2.
    in_a_layer = 12 * width**2 + 13 * width
    num_params = config.vocab_size * width + num_layers * in_a_layer + 2 * width
    return 6 * num_params + 12 * num_layers * width * config.block_size
