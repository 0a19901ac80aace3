"""Model folder and settings of a run that is imported from a Trainer checkpoint.

A checkpoint of a PEFT run contains an adapter, but no config.json, which is in the
folder of the base model. The module also lists how the imported run will differ from
Trainer's run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import interop
from .._io import read_json_object
from ..data import is_pretokenized
from ..models import Model, lora_from_config
from ._job import Job

_CONFIG, _ADAPTER = "config.json", "adapter_config.json"


def is_adapter(checkpoint: Path) -> bool:
    """Returns whether a checkpoint is that of a PEFT run."""
    return (checkpoint / _ADAPTER).is_file() and not (checkpoint / _CONFIG).is_file()


def base_of_adapter(checkpoint: Path, given: Mapping[str, Any]) -> Path:
    """Returns the folder of the base model of an adapter.

    Args:
        checkpoint: folder with adapter_config.json.
        given: settings of the run; `model_name_or_path` takes precedence over the name
            in the file.

    Raises:
        ValueError: if the folder does not exist or has no config.json.
    """
    saved = read_json_object(checkpoint / _ADAPTER, "checkpoint")
    named = saved.get("base_model_name_or_path")
    base = given.get("model_name_or_path") or named
    if base is not None and (Path(base) / _CONFIG).is_file():
        return Path(base)
    model = "the model" if named is None else f"the model {named!r}"
    if base is None:
        problem = "but none was given and the adapter names none"
    else:
        problem = f"got {str(base)!r}, which has no {_CONFIG}"
    raise ValueError(
        "`model_name_or_path` must be the folder of the base model on which the "
        f"adapter in {str(checkpoint)!r} was trained, {problem}. Download {model}, and "
        "pass the path of its folder."
    )


def adapter_settings(checkpoint: Path, base: Path) -> dict[str, Any]:
    """Returns the settings of a run that trains the adapter of a checkpoint.

    Raises:
        ValueError: if the adapter is not LoRA, or has settings that runs do not
            support.
    """
    content = read_json_object(checkpoint / _ADAPTER, "checkpoint")
    try:
        found = lora_from_config(content)
    except ValueError as error:
        raise ValueError(f"{checkpoint}: {error}") from error
    return {
        "model_name_or_path": base,
        "model_implementation": "torchax",
        **found,
    }


def notes_on_base(checkpoint: Path, job: Job) -> list[str]:
    """Returns a sentence if the base model of an adapter is not that of the run."""
    if job.lora_r is None:
        return []
    content = read_json_object(checkpoint / _ADAPTER, "checkpoint")
    named = content.get("base_model_name_or_path")
    if named is None or Path(named) == job.model_name_or_path:
        return []
    return [
        f"the adapter was trained on the base model {named!r}; the run reads the "
        f"weights in {str(job.model_name_or_path)!r}"
    ]


def check_all_trained(job: Job) -> None:
    """Raises if parameters are frozen by `freeze`.

    Base weights that an adapter freezes are allowed.
    """
    if job.freeze:
        raise ValueError(
            "`freeze` must be left out of a run that is imported, got "
            f"{list(job.freeze)}: optimizer.pt of Trainer has no moments of frozen "
            "parameters, and the run cannot know which parameters Trainer had frozen. "
            "Use the functions of `interop` in Python."
        )


def unused_tokenizer(checkpoint: Path, job: Job) -> list[str]:
    """Returns a sentence if the tokenizer of the checkpoint is not used."""
    path = checkpoint / "tokenizer.json"
    is_text = not any(map(is_pretokenized, job.text))
    if job.tokenizer is not None or not is_text or not path.is_file():
        return []
    return [
        f"the text is read as bytes: for the tokenizer of the checkpoint, give {path} "
        "as `tokenizer`"
    ]


def differences(
    base: Path, model: Model, contents: interop.TrainerCheckpoint
) -> list[str]:
    """Returns sentences on differences between the imported run and Trainer's.

    Args:
        base: folder with config.json: the checkpoint, or its base model.
        model: the model of the run.
        contents: contents of the checkpoint.
    """
    found = []
    config = read_json_object(base / "config.json", "checkpoint")
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    if dtype != "float32":
        found.append(
            f"parameters and moments are float32 in the run and {dtype} in torch"
        )
    if not all("param_names" in group for group in contents.param_groups):
        found.append(
            "moments were assigned in the order of Trainer's groups: optimizer.pt has "
            "no names, so that another order of parameters of equal shape cannot be "
            "detected"
        )
    found += model.differences
    if model.has_dropout:
        found.append(
            "the random numbers of dropout start again from `seed`: torch's generator "
            "has no equivalent in JAX"
        )
    return found
