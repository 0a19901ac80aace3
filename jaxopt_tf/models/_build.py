"""Models from their configurations: Flax models, and modules under torchax."""

from collections.abc import Sequence

from ._freeze import freeze_params
from ._from_transformers import build_transformers
from ._model import Model, ModelConfig, build_flax_model
from ._peft import LoraSettings
from ._transformers_config import TransformersConfig


def build_model(
    config: ModelConfig,
    *,
    lora: LoraSettings | None = None,
    freeze: Sequence[str] = (),
) -> Model:
    """Returns the model of a configuration.

    Args:
        config: configuration of the model.
        lora: settings of a LoRA adapter, which is trained instead of the weights of a
            `TransformersConfig`; None for none.
        freeze: regular expressions for whole names of parameters that are not trained.

    Raises:
        ValueError: if Transformers cannot build a causal language model from the
            content of config.json in a `TransformersConfig`; if a target of `lora`
            matches no layer, or a pattern of `freeze` no parameter, or if all are
            frozen.
        ImportError: if the model needs torchax or PEFT, and it is missing or does not
            fit.
    """
    if isinstance(config, TransformersConfig):
        return build_transformers(config, lora=lora, freeze=freeze)
    if lora is not None:
        raise ValueError(
            "`lora` must be given with a `TransformersConfig`, got "
            f"{type(config).__name__}. Flax models have no adapters."
        )
    model = build_flax_model(config)
    return freeze_params(model, freeze) if freeze else model
