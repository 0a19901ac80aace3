"""Description of a torch model: names, shapes, layer types, ties and decay groups."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import _checks
from ..optimizers import decay_mask, norm_type
from ._adapter import AdapterFormat
from ._checkpoint_keys import LoadRules, load_rules
from ._extras import import_extra

_USE_MODULE = "Describe the model with `torch_model_from_module`"


class TorchParam(NamedTuple):
    """Parameter of a torch model."""

    name: str  # name in `named_parameters()`
    shape: tuple[int, ...]
    layer: str = (
        ""  # type of the module that contains it, such as "Linear"; "": unknown
    )
    is_trainable: bool = True  # `requires_grad`


@dataclass(frozen=True, kw_only=True)
class TorchModel:
    """Description of a torch model.

    Attributes:
        parameters: the parameters, tied ones once; in the order of
            `named_parameters()` if `is_ordered`.
        tied: pairs of an alias of a tied tensor and its name in `parameters`.
        buffers: names of the other tensors that are saved with the parameters.
        layer_norms: classes of modules that some version of Trainer counts as layer
            norms, by path: "LayerNorm" for torch's class and its subclasses,
            "LlamaRMSNorm" and others for classes in `ALL_LAYERNORM_LAYERS` of
            Transformers 4.
        is_ordered: True if the order is that of `named_parameters()`. Names from a file
            have no order.
        load_rules: rules by which Transformers resolves the names in weight files.
        adapter: form in which PEFT saves `parameters`; None unless they are an adapter,
            which is saved without its base model.
        origin: file or class that describes the model, for messages.
    """

    parameters: tuple[TorchParam, ...]
    tied: tuple[tuple[str, str], ...] = ()
    buffers: tuple[str, ...] = ()
    layer_norms: Mapping[str, str] = field(default_factory=dict)
    is_ordered: bool = True
    load_rules: LoadRules = field(default=LoadRules(), compare=False, repr=False)
    adapter: AdapterFormat | None = field(default=None, compare=False, repr=False)
    origin: str = field(default="", compare=False)

    @property
    def groups(self) -> tuple[tuple[str, ...], ...] | None:
        """Decay groups of the newest version of Trainer, as in `groups_by_rule`."""
        return self.groups_by_rule("transformers_v5")

    def groups_by_rule(self, rule: str) -> tuple[tuple[str, ...], ...] | None:
        """Returns the names in Trainer's two groups, decayed parameters first.

        Args:
            rule: rule of `decay_mask` for the version that made the groups.

        Returns:
            The names in both groups; None if the order is unknown.

        Source: transformers 5.24 `trainer.py`, `Trainer.create_optimizer`; unchanged
            since 4.40.
        """
        if not self.is_ordered:
            return None
        trainable = [p for p in self.parameters if p.is_trainable]
        # `decay_mask` takes a tree of arrays. Broadcast views of one number have the
        # shapes of the parameters without their memory.
        leaves = {p.name: np.broadcast_to(np.float32(0), p.shape) for p in trainable}
        parents = {name.rpartition(".")[0] for name in leaves}
        norms = {p: kind for p, kind in self.layer_norms.items() if p in parents}
        mask = decay_mask(leaves, rule=rule, layer_norms=norms)
        return (
            tuple(name for name in leaves if mask[name]),
            tuple(name for name in leaves if not mask[name]),
        )


def torch_model_from_module(module: Any) -> TorchModel:
    """Describes a `torch.nn.Module` on any device, including the meta device.

    Args:
        module: the model that the optimizer was built for, with the same parameters
            frozen.

    Raises:
        TypeError: if `module` is not a `torch.nn.Module`.
    """
    torch = import_extra("torch")

    if not isinstance(module, torch.nn.Module):
        raise TypeError(
            f"`module` must be a torch.nn.Module, got {type(module).__name__}. If only "
            "names are known, use `torch_model_from_shapes`."
        )
    layers: dict[str, str] = {}
    norms: dict[str, str] = {}
    for path, layer in module.named_modules(remove_duplicate=False):
        # Trainer excludes a layer norm with all modules in it. It tests the types of
        # the children of a module, so the type of the model itself is never tested.
        norm = norms.get(path.rpartition(".")[0], "")
        own_norm = norm_type(_norm_candidate_types(layer)) if path else ""
        if own_norm or norm:
            norms[path] = own_norm if own_norm == "LayerNorm" else norm or own_norm
        for name, _ in layer.named_parameters(recurse=False):
            layers[f"{path}.{name}" if path else name] = _layer_type(layer)
    # `named_parameters()` lists a tied tensor once, under its first name.
    named_params = dict(module.named_parameters())
    names = {id(tensor): name for name, tensor in named_params.items()}
    all_names = dict(module.named_parameters(remove_duplicate=False))
    return TorchModel(
        parameters=tuple(
            TorchParam(name, tuple(p.shape), layers[name], p.requires_grad)
            for name, p in named_params.items()
        ),
        tied=tuple(
            (name, names[id(tensor)])
            for name, tensor in all_names.items()
            if name not in named_params
        ),
        buffers=tuple(name for name in module.state_dict() if name not in all_names),
        layer_norms=norms,
        load_rules=load_rules(module),
        origin=type(module).__name__,
    )


def torch_model_from_config(folder: Path | str) -> TorchModel:
    """Describes the Transformers model of a `config.json`, without allocating weights.

    The model is built on torch's meta device from the class in Transformers that
    `architectures` names. Code in the folder is never run.

    Args:
        folder: a folder that contains `config.json`, such as `checkpoint-500` of a
            Trainer.

    Raises:
        ValueError: if `config.json` is missing or describes no model of Transformers.

    Source: transformers 5.23 `configuration_utils.py`, `PreTrainedConfig`.
    """
    torch = import_extra("torch")
    transformers = import_extra("transformers")

    path = Path(folder) / "config.json"
    if not path.is_file():
        raise _checks.ArgumentError(
            "folder",
            f"`folder` must contain config.json, got {str(folder)!r}.",
            f"{_USE_MODULE} or `torch_model_from_shapes`.",
        )
    module = None
    try:
        config = transformers.AutoConfig.from_pretrained(
            str(folder), trust_remote_code=False
        )
        for name in config.architectures or ():
            if module is None and hasattr(transformers, name):
                with torch.device("meta"):
                    module = getattr(transformers, name)(config)
    # Configurations validate their fields in different ways or not at all, so a wrong
    # value may raise any exception.
    except Exception as error:
        raise _checks.ArgumentError(
            "folder",
            "`folder` must contain the config.json of a model of Transformers, got "
            f"{str(path)!r}: {error or type(error).__name__}.",
            f"{_USE_MODULE}.",
        ) from error
    if module is None:
        raise _checks.ArgumentError(
            "folder",
            "`folder` must contain a config.json that has a class of Transformers "
            f"under `architectures`, got {config.architectures!r} in {str(path)!r}.",
            f"{_USE_MODULE}.",
        )
    return replace(torch_model_from_module(module), origin=str(path))


def torch_model_from_shapes(
    shapes: Mapping[str, Sequence[int]], *, is_ordered: bool = False
) -> TorchModel:
    """Describes a model by the names and shapes of its parameters.

    Layer types are unknown, so layer norms are recognized only by their names.

    Args:
        shapes: shape of every parameter by name, tied parameters once.
        is_ordered: True if the mapping has the order of `named_parameters()`. Names
            from a file do not have it.
    """
    parameters = tuple(TorchParam(name, tuple(shape)) for name, shape in shapes.items())
    return TorchModel(parameters=parameters, is_ordered=is_ordered)


def _norm_candidate_types(layer: Any) -> list[str]:
    """Returns the classes by which Trainer may recognize a module as a layer norm.

    Only classes of torch and Transformers count, because Trainer compares types. A
    class of another library may have the name of one of these.
    """
    return [
        kind.__name__
        for kind in type(layer).__mro__
        if kind.__module__.startswith(("torch.nn.", "transformers."))
    ]


def _layer_type(layer: Any) -> str:
    """Returns the name of a layer's type; for subclasses, that of the known layer."""
    nn = import_extra("torch").nn
    known = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
    known_types = [kind for kind in known if isinstance(layer, kind)]
    return (known_types or [type(layer)])[0].__name__
