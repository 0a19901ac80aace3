"""Models of PEFT: the adapter is trained, the base model is frozen.

PEFT inserts trained layers into a module of Transformers, for example LoRA's pairs of
small matrices beside linear layers, and wraps the result in a `PeftModel`.
"""

import dataclasses
import re
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .. import _checks, interop
from ..optimizers import TorchLayout
from ._torchax import import_package, import_torch

# Prefix that the wrapper adds to the names of the base model's parameters.
_WRAPPER = "base_model.model."


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Settings of a LoRA adapter, named as in PEFT's `LoraConfig`.

    Attributes:
        r: number of columns of the first matrix.
        lora_alpha: numerator of the factor `lora_alpha / r` of the adapter's output.
        lora_dropout: dropout rate of the adapter's input.
        target_modules: names of the layers with an adapter, or the last components of
            their names; ("all-linear",) for all linear layers but the head; None for
            those that PEFT lists for the architecture.
        base: name of the base model in adapter_config.json.
    """

    r: int
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    target_modules: tuple[str, ...] | None = None
    base: str | None = None


def is_peft(module: Any) -> bool:
    """Returns whether a module is a `PeftModel`; PEFT is not imported."""
    peft = sys.modules.get("peft")  # `module` cannot be one of its models without it
    return peft is not None and isinstance(module, peft.PeftModel)


def base_module(module: Any) -> Any:
    """Returns the module of Transformers in a `PeftModel`; another module unchanged."""
    return module.get_base_model() if is_peft(module) else module


def adapter_names(module: Any) -> interop.ParamNames:
    """Returns the names of a PEFT model's trained parameters, and their form in files.

    Raises:
        ValueError: if the model has several adapters, or trains parameters that PEFT
            does not save, or not all that it saves.
    """
    peft = import_package("peft")
    described = interop.torch_model_from_module(module)
    trained = tuple(p for p in described.parameters if p.is_trainable)
    adapters = list(module.peft_config)
    if len(adapters) != 1:
        raise ValueError(
            f"`source` must have one adapter, got {adapters}. Delete the others with "
            "`delete_adapter`."
        )
    adapter = adapters[0]
    keys = {p.name: _key(p.name, adapter) for p in trained}
    saved = peft.get_peft_model_state_dict(module, save_embedding_layers=False)
    differing = sorted(set(keys.values()) ^ set(saved))
    if differing:
        raise ValueError(
            "`source` must train the parameters that PEFT saves, but "
            f"{len(differing)} are only trained or only saved, the first being "
            f"{differing[0]!r}. Load an adapter with `is_trainable=True`, and set "
            "`requires_grad` of other parameters to False or name their modules in "
            "`modules_to_save`."
        )
    model = dataclasses.replace(
        described,
        parameters=trained,
        tied=(),
        buffers=(),
        adapter=interop.AdapterFormat(
            keys=keys, config=_config_as_saved(module.peft_config[adapter])
        ),
    )
    slices = (interop.TensorSlice(p.name, p.name, TorchLayout()) for p in trained)
    return interop.ParamNames(slices=tuple(slices), model=model)


def base_names(module: Any, base: interop.TorchModel) -> interop.ParamNames:
    """Returns the names of a PEFT model's frozen parameters in files of the base model.

    Args:
        module: the PEFT model.
        base: description of the base model without the adapter.
    """
    slices = []
    for name, p in module.named_parameters():
        if not p.requires_grad:
            inner = name.removeprefix(_WRAPPER).replace(".base_layer.", ".")
            slices.append(interop.TensorSlice(name, inner, TorchLayout()))
    return interop.ParamNames(slices=tuple(slices), model=base)


def add_lora(module: Any, settings: LoraSettings) -> Any:
    """Returns a causal language model with a new LoRA adapter, as a `PeftModel`.

    PEFT draws the adapter's weights from torch's random numbers.

    Raises:
        ValueError: if a target matches no layer, or PEFT refuses a setting.
        ModuleNotFoundError: if PEFT is not installed.
    """
    peft = import_package("peft")
    targets: Any = settings.target_modules
    if targets == ("all-linear",):
        (targets,) = targets
    elif targets is not None:
        _check_targets(module, targets)
        targets = list(targets)
    if settings.base is not None:
        module.name_or_path = settings.base  # PEFT writes it to adapter_config.json
    alpha = settings.lora_alpha
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.r,
        # PEFT writes it to adapter_config.json: 16, not 16.0.
        lora_alpha=int(alpha) if float(alpha).is_integer() else alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets,
    )
    try:
        with warnings.catch_warnings():
            # PEFT 0.21 reads an attribute that Transformers 5.23 renames.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`")
            return peft.get_peft_model(module, config)
    # PEFT has no targets for the architecture, or no adapter for a layer.
    except ValueError as error:
        raise ValueError(
            f"`lora_target_modules` must be linear layers of {type(module).__name__}, "
            f"got {settings.target_modules!r}: {error} Layers: {_layers(module)}."
        ) from error


def lora_from_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a run from the content of an adapter_config.json.

    Raises:
        ValueError: if the adapter is not LoRA, or has settings that a run does not
            have. The message names all of them.
    """
    # Fields that describe the file, or that a run reads or sets itself.
    ignored = {
        *("r", "lora_alpha", "lora_dropout", "target_modules", "peft_type"),
        *("base_model_name_or_path", "revision", "inference_mode", "task_type"),
        *("peft_version", "auto_mapping", "init_lora_weights", "megatron_core"),
        *("qalora_group_size", "loftq_config", "layers_pattern", "fan_in_fan_out"),
        "ensure_weight_tying",
    }
    problems = [
        f"`{name}` {value!r}"
        for name, value in config.items()
        if name not in ignored and value not in (None, False, {}, [], "none")
    ]
    if config.get("peft_type") != "LORA":
        problems.insert(0, f"`peft_type` {config.get('peft_type')!r}")
    targets = config.get("target_modules")
    if isinstance(targets, str) and targets != "all-linear":
        problems.append(f"`target_modules` {targets!r}, a regular expression")
    if problems:
        raise ValueError(
            "`adapter_config.json` must be of a LoRA adapter with `r`, `lora_alpha`, "
            f"`lora_dropout` and names as `target_modules`, got {', '.join(problems)}. "
            "Train it with `models.from_transformers(peft_model)` in Python."
        )
    names = (targets,) if isinstance(targets, str) else tuple(sorted(targets or ()))
    return {
        "lora_r": config["r"],
        "lora_alpha": config["lora_alpha"],
        "lora_dropout": config["lora_dropout"],
        "lora_target_modules": names,
    }


def _key(name: str, adapter: str) -> str:
    """Returns the name of a trained parameter in the files of PEFT."""
    inner = name.replace(f".modules_to_save.{adapter}.", ".")
    return re.sub(rf"\.{re.escape(adapter)}(?=\.|$)", "", inner)


def _config_as_saved(config: Any) -> dict[str, Any]:
    """Returns the content of adapter_config.json as `save_pretrained` writes it."""
    content = {**config.to_dict(), "inference_mode": True}
    for name, value in content.items():
        if isinstance(value, set):
            content[name] = sorted(value)
        elif not isinstance(value, str | int | float | list | dict | None):
            content[name] = str(getattr(value, "value", value))
    content.pop("runtime_config", None)
    return {n: getattr(x, "value", x) for n, x in content.items()}


def _layers(module: Any) -> str:
    """Returns the last components of the names of the linear layers."""
    nn = import_torch().nn
    names = {
        path.rpartition(".")[2]
        for path, layer in module.named_modules()
        if isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"
    }
    return ", ".join(sorted(names))


def _check_targets(module: Any, targets: tuple[str, ...]) -> None:
    paths = [path for path, _ in module.named_modules()]
    last = {path.rpartition(".")[2] for path in paths}
    for target in targets:
        if not any(path == target or path.endswith(f".{target}") for path in paths):
            raise ValueError(
                f"`lora_target_modules` must be names of layers of "
                f"{type(module).__name__}, got {target!r}, which matches none."
                f"{_checks.suggest(target, last)} Linear layers: {_layers(module)}."
            )
