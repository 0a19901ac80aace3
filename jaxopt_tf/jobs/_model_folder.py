"""Settings of the model and the tokenizer in a folder of Transformers.

`model_name_or_path` names a folder with config.json, weights and tokenizer.json, as
`save_pretrained` writes it.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import interop
from .._io import is_primary_process
from .._typing import PyTree
from ..data import is_pretokenized
from ..models import (
    CONFIG_TYPES,
    config_type,
    fields_of_other_configs,
    settings_from_transformers_config,
)
from ._job import Job

# Fields of a configuration that do not determine the shapes of the parameters, so that
# they can differ from those in the folder.
_FREE = (
    *("gradient_checkpointing", "remat_policy", "scan_layers"),
    *("resid_pdrop", "embd_pdrop", "attn_pdrop"),
)


def with_model_folder(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the settings of the folder `model_name_or_path`, if there is one.

    The folder is not read if the settings have all sizes of a model: those of a run
    that is resumed.

    Args:
        settings: settings of a run by name, as for `RunConfig.from_dict`.

    Raises:
        ValueError: if config.json or tokenizer.json is missing, the architecture is not
            supported, or a given size differs from the folder's.
    """
    settings = dict(settings)
    if config_type(settings) is CONFIG_TYPES[0] and "model_type" in settings:
        del settings["model_type"]  # the default, which is not a field
    folder = settings.get("model_name_or_path")
    if settings.get("lora_r") is not None:
        _check_lora(settings)
        settings["model_implementation"] = "torchax"
    implementation = settings.get("model_implementation")
    if implementation == "torchax" and folder is None and not _has_sizes(settings):
        raise ValueError(
            "`model_implementation` 'torchax' must be given with `model_name_or_path`, "
            "got no folder. Pass the folder of a model of Transformers."
        )
    if folder is None or _has_sizes(settings):
        return settings
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(
            "`model_name_or_path` must be a folder that contains config.json, got "
            f"{str(folder)!r}. Save the model with `save_pretrained`, or download it: "
            "model names of the Hugging Face Hub are not resolved."
        )
    try:
        found = settings_from_transformers_config(folder, implementation)
    except ValueError as error:
        message = str(error).replace("`folder`", "`model_name_or_path`")
        raise ValueError(message) from error
    if not settings.get("from_scratch", False):
        _check_sizes(folder, found, settings)
    texts = [*(settings.get("text") or ()), *(settings.get("train_file") or ())]
    is_text = texts and not any(is_pretokenized(Path(path)) for path in texts)
    if is_text and not settings.get("tokenizer"):
        found["tokenizer"] = _tokenizer(folder)
    # A null is a setting that is not given.
    given = {name: value for name, value in settings.items() if value is not None}
    return {**settings, **found, **given}


def read_folder_params(folder: Path, shapes: PyTree, names: interop.ParamNames) -> Any:
    """Reads the parameters in `model_name_or_path`, as `interop.read_params`.

    Raises:
        ValueError: if the weights are missing, damaged or those of another model.
    """
    try:
        return interop.read_params(folder, shapes, names)
    except ValueError as error:  # it names the argument of one of these functions
        message = re.sub(
            "`(folder|path)` must (be|contain)",
            r"The weights in `model_name_or_path` must \2",
            str(error),
            count=1,
        )
        raise ValueError(
            f"{message}\nSave the model again with `save_pretrained`, or set "
            "`from_scratch` to initialize the weights."
        ) from error


def existing_folder(job: Job) -> Path | None:
    """Returns `model_name_or_path` if it is still there, else None with a note."""
    folder = job.model_name_or_path
    if folder is None or (folder / "config.json").is_file():
        return folder
    if is_primary_process():
        print(
            f"{folder} no longer exists: the model is written in float32, without the "
            "fields of its config.json that do not describe the architecture"
        )
    return None


def _check_lora(settings: Mapping[str, Any]) -> None:
    """Raises unless the settings permit a LoRA adapter."""
    if settings.get("model_implementation") == "flax":
        raise ValueError(
            "`lora_r` must be left out with `model_implementation` 'flax', got "
            f"{settings['lora_r']!r}: adapters of PEFT are inserted into the module of "
            "Transformers, which torchax executes. Leave `model_implementation` out."
        )
    if settings.get("model_name_or_path") is None or settings.get("from_scratch"):
        raise ValueError(
            "`lora_r` must be given with the weights of a base model, got "
            f"{settings['lora_r']!r} without. Name their folder as "
            "`model_name_or_path`, and leave out `from_scratch`."
        )


def _has_sizes(settings: Mapping[str, Any]) -> bool:
    record = config_type(settings)
    required = [
        field.name
        for field in dataclasses.fields(record)
        if record is CONFIG_TYPES[0] or field.default is dataclasses.MISSING
    ]
    return all(name in settings for name in required)


def _check_sizes(
    folder: Path, found: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    free = {*_FREE, "block_size"} if "model_type" in found else {*_FREE}
    differing = [
        f"`{name}` {settings[name]!r} instead of {found[name]!r}"
        for name in found
        if name in settings and name not in free and settings[name] != found[name]
    ]
    fields_of_others = fields_of_other_configs(config_type(found))
    differing += [
        f"`{name}` {value!r}"
        for name, value in settings.items()
        if name in fields_of_others and value is not None
    ]
    if differing:
        raise ValueError(
            f"The sizes of the model must be those in {str(folder / 'config.json')!r}, "
            f"got {', '.join(differing)}. Leave them out, and `preset` too. To change "
            "them, edit a copy of the folder, and set `from_scratch` to initialize the "
            "weights."
        )


def _tokenizer(folder: Path) -> Path:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValueError(
            f"`model_name_or_path` must contain tokenizer.json, got {str(folder)!r}. "
            "Save it there with `tokenizer.save_pretrained`, give a `tokenizer`, or "
            "give pretokenized files as `text`."
        )
    return path
