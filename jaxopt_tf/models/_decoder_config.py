"""Configuration of Llama, Mistral, Qwen2, Qwen3 and SmolLM3."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from .. import _checks
from ._rotary import check_rope_scaling

# Class in Transformers of each architecture.
DECODER_CLASSES: Mapping[str, str] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}
_QKV, _MLP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj", "down_proj")
_CONTEXT = "attention"  # output and log-sum-exp of the attention kernel for TPUs
# Outputs of a layer that are stored for the backward pass if `gradient_checkpointing`
# is set, by the names of MaxText.
REMAT_POLICIES: Mapping[str, tuple[str, ...]] = {
    "full": (),
    "save_out_proj": ("o_proj",),
    "save_qkv_proj": _QKV,
    "save_dot_except_mlp": (*_QKV, "o_proj"),
    "save_dot_with_context_except_mlp": (*_QKV, _CONTEXT, "o_proj"),
    "minimal": (*_QKV, "o_proj", *_MLP),
    "minimal_with_context": (*_QKV, _CONTEXT, "o_proj", *_MLP),
}
FULL, SLIDING = LAYER_TYPES = ("full_attention", "sliding_attention")

# Options that only some architectures have.
_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "attention_bias": ("llama", "qwen3", "smollm3"),
    "mlp_bias": ("llama", "smollm3"),
    "sliding_window": ("mistral", "qwen2", "qwen3", "smollm3"),
}
_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
    *("max_position_embeddings", "block_size"),
)
_SWITCHES = (
    *("attention_bias", "mlp_bias", "tie_word_embeddings"),
    *("gradient_checkpointing", "scan_layers"),
)
_DERIVED: Any = None  # default of fields that `__post_init__` derives from others


class LayerKind(NamedTuple):
    """Properties in which the layers of a model may differ."""

    window: int | None  # number of keys that a query attends to; None for all
    has_rope: bool  # whether queries and keys are rotated by their positions


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes and options of a decoder, with the names of Transformers.

    All values are JSON values: a configuration that was written as JSON and read again
    is equal. Lists and dicts must not be modified.

    Attributes:
        model_type: "llama", "mistral", "qwen2", "qwen3" or "smollm3".
        vocab_size: number of different tokens.
        hidden_size: width of the residual stream.
        intermediate_size: width of the MLP.
        num_hidden_layers: number of layers.
        num_attention_heads: number of heads of queries.
        num_key_value_heads: number of heads of keys and values, which divides
            `num_attention_heads`; None for `num_attention_heads`.
        head_dim: width of a head, even; None for `hidden_size` divided by
            `num_attention_heads`.
        max_position_embeddings: context length.
        rms_norm_eps: constant that is added to the mean square in normalizations.
        initializer_range: standard deviation of initial weights.
        rope_theta: base of the frequencies of RoPE.
        rope_scaling: scaling of these frequencies: `rope_type` and its parameters; None
            for none.
        attention_bias: whether the four projections of attention have biases. Qwen2 has
            biases of queries, keys and values even if it is False.
        mlp_bias: whether the projections of the MLP have biases.
        sliding_window: number of keys that a query attends to in layers of the type
            "sliding_attention"; None if there are no such layers.
        layer_types: "full_attention" or "sliding_attention" for each layer; None for
            "sliding_attention" in all layers if there is a window, else
            "full_attention".
        no_rope_layers: for each layer 1 if it has RoPE, 0 if not (SmolLM3 only); None
            for RoPE in all layers.
        pad_token_id: token whose embedding is initialized with zeros and receives no
            gradient from the lookup, like `padding_idx` of `torch.nn.Embedding`.
            Negative numbers count from the end of the vocabulary.
        tie_word_embeddings: whether the embeddings are also the weights of the head.
        block_size: maximum length of a training sequence, at most
            `max_position_embeddings`; None for at most 1,024, as in `run_clm.py`.
        gradient_checkpointing: whether the backward pass recomputes the activations of
            each layer instead of storing them.
        remat_policy: outputs that are stored nonetheless, by the names of MaxText:
            "full" (none), "save_out_proj", "save_qkv_proj", "save_dot_except_mlp" or
            "minimal" (all products with weights). "save_dot_with_context_except_mlp"
            and "minimal_with_context" also store the results of the attention kernel
            for TPUs.
        scan_layers: whether the layers are stacked and run by `jax.lax.scan`, which
            compiles one layer. Parameters are then `model.layers.mlp.up_proj.kernel`,
            [num_hidden_layers, in, out].

    Raises:
        ValueError: if a value is out of range, or the architecture does not have an
            option.
        TypeError: if a field has the wrong type.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int = _DERIVED
    head_dim: int = _DERIVED
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    rope_theta: float = 10_000.0
    # Lists and dicts have no hash. Equal configurations still have equal hashes.
    rope_scaling: dict[str, Any] | None = dataclasses.field(default=None, hash=False)
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None
    layer_types: list[str] = dataclasses.field(default=_DERIVED, hash=False)
    no_rope_layers: list[int] = dataclasses.field(default=_DERIVED, hash=False)
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False
    block_size: int = _DERIVED
    gradient_checkpointing: bool = False
    remat_policy: str = "full"
    scan_layers: bool = True

    def __post_init__(self) -> None:
        """Derives missing fields and checks all of them."""
        _checks.one_of("model_type", self.model_type, DECODER_CLASSES)
        _checks.one_of("remat_policy", self.remat_policy, REMAT_POLICIES)
        for name in _SIZES:
            if getattr(self, name) is not None:
                size = _checks.whole_number(name, getattr(self, name), minimum=1)
                object.__setattr__(self, name, size)  # the dataclass is frozen
        self._derive()
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise TypeError(
                    f"`{name}` must be True or False, got {getattr(self, name)!r}."
                )
        _checks.non_negative("rms_norm_eps", self.rms_norm_eps)
        _checks.positive("rope_theta", self.rope_theta)
        _checks.fraction("initializer_range", self.initializer_range)
        self._check_options()
        self._check_layers()
        self._check_heads()
        scaling = check_rope_scaling(
            self.rope_scaling,
            head_dim=self.head_dim,
            max_position_embeddings=self.max_position_embeddings,
        )
        object.__setattr__(self, "rope_scaling", scaling)

    @property
    def has_qkv_bias(self) -> bool:
        """True if the projections to queries, keys and values have biases."""
        return self.attention_bias or self.model_type == "qwen2"

    @property
    def has_qk_norm(self) -> bool:
        """True if queries and keys are normalized."""
        return self.model_type == "qwen3"

    @property
    def padding_row(self) -> int | None:
        """Row of the embeddings that belongs to the padding token."""
        return (
            None if self.pad_token_id is None else self.pad_token_id % self.vocab_size
        )

    @property
    def layer_kinds(self) -> list[LayerKind]:
        """Window and RoPE of each layer."""
        return [
            LayerKind(self.sliding_window if kind == SLIDING else None, bool(has_rope))
            for kind, has_rope in zip(
                self.layer_types, self.no_rope_layers, strict=True
            )
        ]

    def _derive(self) -> None:
        heads, num_layers = self.num_attention_heads, self.num_hidden_layers
        attention = FULL if self.sliding_window is None else SLIDING
        # Transformers requires a multiple of the heads for a Llama with any `head_dim`.
        if (self.head_dim is None or self.model_type == "llama") and (
            self.hidden_size % heads
        ):
            raise ValueError(
                "`hidden_size` must be a multiple of `num_attention_heads`, which is "
                f"{heads}, got {self.hidden_size!r}. Use "
                f"{-(-self.hidden_size // heads) * heads}, or another number of heads."
            )
        derived = {
            "num_key_value_heads": heads,
            "head_dim": self.hidden_size // heads,
            "layer_types": [attention] * num_layers,
            "no_rope_layers": [1] * num_layers,
            "block_size": min(self.max_position_embeddings, 1024),
        }
        for name, value in derived.items():
            given = getattr(self, name)
            if isinstance(value, list) and isinstance(given, tuple):
                given = list(given)  # as after reading the configuration from JSON
            object.__setattr__(self, name, value if given is None else given)

    def _check_options(self) -> None:
        for name, types in _OPTIONS.items():
            if getattr(self, name) and self.model_type not in types:
                raise ValueError(
                    f"`{name}` must be left out for {self.model_type!r}, which does "
                    f"not have it, got {getattr(self, name)!r}. Architectures that "
                    f"have it: {', '.join(types)}."
                )
        if self.sliding_window is not None:
            _checks.whole_number("sliding_window", self.sliding_window, minimum=1)
        if self.block_size > self.max_position_embeddings:
            raise ValueError(
                "`block_size` must be at most `max_position_embeddings`, which is "
                f"{self.max_position_embeddings}, got {self.block_size!r}. Use this "
                "number, or less."
            )
        if self.pad_token_id is not None:
            size = self.vocab_size
            _checks.whole_number(
                "pad_token_id", self.pad_token_id, minimum=-size, maximum=size - 1
            )

    def _check_layers(self) -> None:
        num_layers = self.num_hidden_layers
        allowed = {
            "layer_types": (FULL,) if self.sliding_window is None else LAYER_TYPES,
            "no_rope_layers": (0, 1) if self.model_type == "smollm3" else (1,),
        }
        if self.model_type == "mistral" and self.sliding_window is not None:
            allowed["layer_types"] = (SLIDING,)
        for name, values in allowed.items():
            given = getattr(self, name)
            is_valid = isinstance(given, list) and len(given) == num_layers
            if not is_valid or any(entry not in values for entry in given):
                listed = " or ".join(map(repr, values))
                raise ValueError(
                    f"`{name}` must be a list of {num_layers} entries, one for each "
                    f"layer, each {listed} for {self.model_type!r} with "
                    f"`sliding_window` {self.sliding_window!r}, got {given!r}. Correct "
                    "the entries, or leave it out."
                )

    def _check_heads(self) -> None:
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if heads % kv_heads:
            fitting = [n for n in range(1, heads + 1) if heads % n == 0]
            raise ValueError(
                "`num_key_value_heads` must divide `num_attention_heads`, which is "
                f"{heads}, got {kv_heads!r}. Use one of "
                f"{', '.join(map(str, fitting))}."
            )
        if self.head_dim % 2:
            raise ValueError(
                "`head_dim` must be even, since RoPE rotates pairs, got "
                f"{self.head_dim!r}. Use {self.head_dim + 1}."
            )
