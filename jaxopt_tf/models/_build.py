"""Models from their configurations: Flax models, and modules under torchax."""

from ._from_transformers import build_transformers
from ._model import Model, ModelConfig, build_flax_model
from ._transformers_config import TransformersConfig


def build_model(config: ModelConfig) -> Model:
    """Returns the model of a configuration.

    Raises:
        ValueError: if Transformers cannot build a causal language model from the
            content of config.json in a `TransformersConfig`.
        ImportError: if the model needs torchax, and it is missing or does not fit.
    """
    if isinstance(config, TransformersConfig):
        return build_transformers(config)
    return build_flax_model(config)
