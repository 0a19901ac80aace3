"""Configuration of a causal language model of Transformers that torchax executes."""

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import _checks
from .._io import read_json_object
from ._torchax import import_package

# Names of the context length in config.json, of which the first one present is used.
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
# Fields of config.json that describe the file and not the model. Weights are read and
# written in float32.
_OF_FILE = ("dtype", "torch_dtype", "transformers_version", "_name_or_path")
_MAX_BLOCK_SIZE = 1024


@dataclass(frozen=True, kw_only=True)
class TransformersConfig:
    """Configuration of a causal language model that torchax executes.

    Attributes:
        transformers_config: content of config.json, including `model_type` and
            `architectures`.
        vocab_size: number of tokens.
        block_size: maximum number of tokens in a training sequence.
        gradient_checkpointing: whether activations are recomputed in the backward pass,
            which saves memory and costs time.
        model_type: name of the architecture in Transformers.

    Raises:
        ValueError: if a value is out of range.
        TypeError: if a value has the wrong type.
    """

    transformers_config: Mapping[str, Any]
    vocab_size: int
    block_size: int = _MAX_BLOCK_SIZE
    gradient_checkpointing: bool = False
    model_type: str = ""

    def __post_init__(self) -> None:
        """Checks every field."""
        if not isinstance(self.transformers_config, Mapping):
            raise TypeError(
                "`transformers_config` must be the content of a config.json, got "
                f"{self.transformers_config!r}."
            )
        for name in ("vocab_size", "block_size"):
            value = _checks.whole_number(name, getattr(self, name), minimum=1)
            object.__setattr__(self, name, value)  # the dataclass is frozen

    @property
    def scan_layers(self) -> bool:
        """False: layers are modules of their own."""
        return False


def transformers_settings(folder: Path) -> dict[str, Any]:
    """Reads the settings of a `TransformersConfig` from the config.json in a folder.

    Raises:
        ValueError: if the file cannot be read, or has no number of tokens.
    """
    path = folder / "config.json"
    config = read_json_object(path, "folder")
    text = config.get("text_config") or config
    if "vocab_size" not in text:
        raise ValueError(
            "`folder` must contain a causal language model, but "
            f"{path} has no `vocab_size`. Train other models with "
            "`models.from_transformers` in Python."
        )
    lengths = [text[name] for name in _CONTEXT if isinstance(text.get(name), int)]
    return {
        "model_implementation": "torchax",
        "model_type": config.get("model_type", ""),
        "vocab_size": text["vocab_size"],
        "block_size": min([_MAX_BLOCK_SIZE, *lengths[:1]]),
        "transformers_config": {n: x for n, x in config.items() if n not in _OF_FILE},
    }


def has_torchax() -> bool:
    """Returns whether torchax is installed; it is not imported."""
    return importlib.util.find_spec("torchax") is not None


def causal_lm(config: TransformersConfig) -> Any:
    """Builds the module of a configuration, with parameters that have no values.

    Memory for the parameters is reserved and never used; the buffers have values.

    Raises:
        ValueError: if config.json is not one of a causal language model of
            Transformers.
        ModuleNotFoundError: if torch or Transformers is not installed.
    """
    transformers = import_package("transformers")
    initialization = import_package("transformers.initialization")
    auto = import_package("transformers.models.auto.modeling_auto")
    content = json.loads(json.dumps(dict(config.transformers_config)))
    names = content.get("architectures") or ()
    causal = [*auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()]
    class_names = [n for n in names if n in causal and hasattr(transformers, n)]
    if not class_names:
        raise ValueError(
            "`model_name_or_path` must contain a causal language model of "
            f"Transformers, got the `architectures` {list(names)} in config.json. "
            "Train other models with `models.from_transformers` in Python."
        )
    model_class = getattr(transformers, class_names[0])
    try:
        # Without initial values torch does not touch the memory of the parameters.
        with initialization.no_init_weights():
            module = model_class(model_class.config_class.from_dict(content))
        # Transformers ties parameters where it initializes them.
        module.tie_weights()
    # Configurations validate their fields in different ways or not at all.
    except Exception as error:
        raise ValueError(
            "`model_name_or_path` must contain a config.json from which Transformers "
            f"builds {class_names[0]}, got {type(error).__name__}: {error}."
        ) from error
    if config.gradient_checkpointing:
        module.gradient_checkpointing_enable()
    return module
