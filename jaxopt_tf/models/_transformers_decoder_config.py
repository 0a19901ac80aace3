"""Conversion between `DecoderConfig` and the config.json of Transformers.

Source: transformers 5.23 `configuration_utils.py`, `modeling_rope_utils.py` and
    `models/*/configuration_*.py` of Llama, Mistral, Qwen2, Qwen3 and SmolLM3.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import _checks
from .._io import read_json_object
from ._decoder_config import DECODER_CLASSES, FULL, SLIDING, DecoderConfig

# Defaults of the configuration classes, for fields that config.json omits.
_COMMON_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
_QWEN_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {"intermediate_size": 11008, "max_position_embeddings": 2048},
    "mistral": {
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096 * 32,
        "sliding_window": 4096,
    },
    "qwen2": _QWEN_DEFAULTS,
    "qwen3": {**_QWEN_DEFAULTS, "head_dim": 128},
    "smollm3": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "pad_token_id": 128004,
        "tie_word_embeddings": True,
        "rope_theta": 2_000_000.0,
    },
}

# Settings that change the outputs, with the supported values.
_SUPPORTED_VALUES: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),  # two names of one function
    "attention_dropout": (0, None),
    "partial_rotary_factor": (1, None),
    "quantization_config": (None,),
    "per_layer_config": (None,),
    "is_encoder_decoder": (False,),
    "use_bidirectional_attention": (False, None),
    "is_causal": (True,),
}
_REMEDIES = {
    "attention_dropout": "; attention dropout is not implemented. Set it to 0.0 in "
    "config.json to train without it, which changes the results",
    "quantization_config": "; save the model without quantization",
}
# Fields that have the same name and meaning in config.json.
_COMMON_FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
    *("max_position_embeddings", "rms_norm_eps", "initializer_range"),
    *("pad_token_id", "tie_word_embeddings"),
)
# Fields of config.json that only some architectures have.
_BIAS_FIELDS: Mapping[str, tuple[str, ...]] = {
    "attention_bias": ("llama", "qwen3", "smollm3"),
    "mlp_bias": ("llama", "smollm3"),
}
# Architectures in which `use_sliding_window` enables the window.
_WITH_WINDOW_SWITCH = ("qwen2", "qwen3", "smollm3")
_WITH_ORIGINAL_LENGTH = ("llama3", "yarn", "longrope")


def decoder_config_from_transformers(
    source: Path | str | Mapping[str, Any],
) -> DecoderConfig:
    """Reads a configuration from a config.json of version 4 or 5 of Transformers.

    Fields that the file omits have the defaults of Transformers 5. Fields that
    Transformers does not use for the architecture are ignored.

    Args:
        source: folder with the config.json of a causal language model; or its content.

    Returns:
        The configuration, with the defaults of `block_size`, `gradient_checkpointing`,
        `remat_policy` and `scan_layers`.

    Raises:
        ValueError: if the file cannot be read; if the architecture or a setting that
            changes the outputs is not supported; or if settings are invalid. The
            message names all of them.
    """
    if isinstance(source, Mapping):
        origin, given = "the given mapping", dict(source)
    else:
        path = Path(source) / "config.json"
        origin, given = str(path), read_json_object(path, "source")
    problems = _architecture_problems(given)
    if problems:
        raise _refusal(origin, problems)
    model_type = given["model_type"]
    values = {**_COMMON_DEFAULTS, **_DEFAULTS[model_type], **given}
    problems = [
        f"`{name}` {values[name]!r} is not supported{_REMEDIES.get(name, '')}"
        for name, supported in _SUPPORTED_VALUES.items()
        if name in values and values[name] not in supported
    ]
    fields = {name: values[name] for name in _COMMON_FIELDS}
    if fields["initializer_range"] == 0:
        fields["initializer_range"] = 0.02  # as `_init_weights` of Transformers
    for name, model_types in _BIAS_FIELDS.items():
        fields[name] = values.get(name, False) if model_type in model_types else False
    for read in (_rope_fields, _layer_fields):
        try:
            fields |= read(values)
        except (TypeError, ValueError) as error:
            problems.append(str(error))
    if not problems:
        try:
            return DecoderConfig(model_type=model_type, **fields)
        except (TypeError, ValueError) as error:
            problems.append(str(error))
    raise _refusal(origin, problems)


def decoder_config_for_transformers(config: DecoderConfig) -> dict[str, Any]:
    """Returns the content of a config.json from which Transformers builds the model.

    It contains the fields of RoPE in the form of Transformers 5, `rope_parameters`, and
    of version 4, `rope_theta` and `rope_scaling`. It does not contain fields that have
    no effect on the logits, such as `bos_token_id`. A caller that has the config.json
    from which `config` was read keeps them with `original | result`.

    Args:
        config: configuration of the model.
    """
    model_type = config.model_type
    scaling = config.rope_scaling
    content: dict[str, Any] = {
        "architectures": [DECODER_CLASSES[model_type]],
        "model_type": model_type,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        **{name: getattr(config, name) for name in _COMMON_FIELDS},
        **{
            n: getattr(config, n)
            for n, model_types in _BIAS_FIELDS.items()
            if model_type in model_types
        },
        "rope_parameters": {
            "rope_theta": config.rope_theta,
            **(scaling or {"rope_type": "default"}),
        },
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
    }
    if model_type != "llama":
        content["sliding_window"] = config.sliding_window
    if model_type in _WITH_WINDOW_SWITCH:
        content["use_sliding_window"] = config.sliding_window is not None
        content["layer_types"] = config.layer_types
    if model_type in ("qwen2", "qwen3"):
        # Versions before 4.52 have no `layer_types`.
        num_full = [*config.layer_types, SLIDING].index(SLIDING)
        content["max_window_layers"] = num_full
    if model_type == "smollm3":
        content["no_rope_layers"] = config.no_rope_layers
    return content


def _refusal(origin: str, problems: list[str]) -> ValueError:
    return ValueError(
        "`source` must be the configuration of a supported decoder, but "
        f"{origin}:\n  " + "\n  ".join(problems) + "\nFor other models use the "
        "functions of jaxopt_tf.interop in Python."
    )


def _architecture_problems(given: Mapping[str, Any]) -> list[str]:
    listed = ", ".join(DECODER_CLASSES)
    model_type = str(given.get("model_type") or "")
    if model_type not in DECODER_CLASSES:
        found = f"{model_type!r} is not supported" if model_type else "is missing"
        return [f"`model_type` {found}; supported: {listed}"]
    classes = given.get("architectures") or [DECODER_CLASSES[model_type]]
    if classes != [DECODER_CLASSES[model_type]]:
        return [
            f"`architectures` {classes!r} is not supported; {model_type!r} is read as "
            f"{DECODER_CLASSES[model_type]}"
        ]
    return []


def _rope_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `rope_theta` and `rope_scaling` from either form of config.json."""
    # Transformers 5 prefers `rope_scaling` if a file contains both.
    given = values.get("rope_scaling") or values.get("rope_parameters") or {}
    for name in ("rope_scaling", "rope_parameters"):
        if not isinstance(values.get(name) or {}, Mapping):
            raise TypeError(f"`{name}` must be an object, got {values[name]!r}.")
    nested = [name for name, value in given.items() if isinstance(value, Mapping)]
    if nested:
        raise ValueError(
            f"`rope_parameters` for layer types ({', '.join(nested)}) are not supported"
        )
    scaling = {name: value for name, value in given.items() if value is not None}
    theta = scaling.pop("rope_theta", None)
    if theta is None:
        theta = values.get("rope_theta", 10_000.0)
    rope_type = scaling.pop("type", "default")  # former name of `rope_type`
    rope_type = scaling.pop("rope_type", rope_type)
    if scaling.get("partial_rotary_factor") == 1:
        del scaling["partial_rotary_factor"]
    length = "original_max_position_embeddings"
    if rope_type in _WITH_ORIGINAL_LENGTH and values.get(length) is not None:
        scaling[length] = values[length]  # takes precedence, as in Transformers
    if rope_type == "default" and not scaling:
        return {"rope_theta": theta, "rope_scaling": None}
    return {"rope_theta": theta, "rope_scaling": {"rope_type": rope_type, **scaling}}


def _layer_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the window, the types of layers and the layers without RoPE."""
    model_type = values["model_type"]
    window = values.get("sliding_window")
    if model_type in _WITH_WINDOW_SWITCH and not values.get(
        "use_sliding_window", False
    ):
        window = None
    if model_type == "llama":
        return {}
    num_layers = _checks.whole_number(
        "num_hidden_layers", values["num_hidden_layers"], minimum=1
    )
    types: list[str] | None = values.get("layer_types")
    fields: dict[str, Any] = {}
    with_rope: list[int] | None = None
    if model_type == "smollm3":
        with_rope = values.get("no_rope_layers")
        if with_rope is None:
            interval = _checks.whole_number(
                "no_rope_layer_interval",
                values.get("no_rope_layer_interval", 4),
                minimum=1,
            )
            with_rope = [int((i + 1) % interval != 0) for i in range(num_layers)]
        if isinstance(with_rope, list):  # may be longer than the number of layers
            with_rope = with_rope[:num_layers]
        fields["no_rope_layers"] = with_rope
    if types is None and window is not None:
        if isinstance(with_rope, list):
            types = [FULL if has_rope else SLIDING for has_rope in with_rope]
        elif model_type in ("qwen2", "qwen3"):
            first_sliding = _checks.whole_number(
                "max_window_layers", values["max_window_layers"], minimum=0
            )
            types = [SLIDING if i >= first_sliding else FULL for i in range(num_layers)]
    return {**fields, "sliding_window": window, "layer_types": types}
