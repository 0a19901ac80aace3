"""Adapter folders of PEFT: names of their tensors, and adapter_config.json.

adapter_model.safetensors   parameters of the adapter, without those of the base model
adapter_config.json         settings of the adapter, and the name of its base model
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._io import atomic_write, read_json_object
from ._trainer_folder import ADAPTER_CONFIG

# Settings that change the outputs of an adapter whose tensors have equal shapes.
_COMPARED = (
    *("peft_type", "lora_alpha", "alpha_pattern", "use_rslora", "use_dora"),
    *("fan_in_fan_out", "alora_invocation_tokens"),
)


@dataclass(frozen=True, kw_only=True)
class AdapterFormat:
    """Form in which PEFT saves the trained parameters of a model.

    Attributes:
        keys: name in adapter_model.safetensors of every trained parameter, by its name
            in `named_parameters()`.
        config: content of adapter_config.json.
    """

    keys: Mapping[str, str]
    config: Mapping[str, Any]


def check_adapter_config(folder: Path, adapter: AdapterFormat) -> None:
    """Raises unless adapter_config.json has the settings of the model's adapter.

    Raises:
        ValueError: if the file is missing or a setting that changes outputs differs.
    """
    path = folder / ADAPTER_CONFIG
    saved = read_json_object(path, "folder")
    differing = [
        f"`{name}` {saved.get(name)!r} instead of {adapter.config.get(name)!r}"
        for name in _COMPARED
        if (saved.get(name) or None) != (adapter.config.get(name) or None)
    ]
    if differing:
        raise ValueError(
            "`folder` must contain an adapter with the settings of the model, but "
            f"{str(path)!r} has {', '.join(differing)}. Build the model with the "
            "settings of the file."
        )


def describe_base(folder: Path, adapter: AdapterFormat) -> str:
    """Returns a sentence on the base model of an adapter folder and of the model."""
    try:
        saved = read_json_object(folder / ADAPTER_CONFIG, "folder")
    except ValueError:
        saved = {}
    names = [c.get("base_model_name_or_path") for c in (saved, adapter.config)]
    return (
        f"The adapter was trained on the base model {names[0]!r}; that of the model "
        f"here is {names[1]!r}."
    )


def write_adapter_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Writes adapter_config.json as PEFT does."""
    text = json.dumps(dict(config), indent=2, sort_keys=True)
    with atomic_write(folder / ADAPTER_CONFIG) as new_path:
        new_path.write_text(text, encoding="utf-8")
