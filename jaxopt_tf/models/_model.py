"""Model: the functions and tables of a language model that jobs need.

model = build_model(gpt2_preset("micro"))
params, loss_fn = model.init(42), model.make_loss()
loss, num_tokens = loss_fn(params, batch)
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import jax
from jax.sharding import PartitionSpec

from .. import interop, sharding
from .._io import read_json_object
from .._typing import PyTree
from ..optimizers import TorchLayout
from . import _gpt2_config
from ._decoder import make_decoder_loss
from ._decoder_config import DECODER_CLASSES, DecoderConfig
from ._decoder_params import (
    decoder_flops_per_token,
    decoder_layer_norms,
    decoder_layout,
    decoder_rules,
    draw_decoder_params,
)
from ._generation import GenerateFn, context_length, make_generate
from ._gpt2 import gpt2_attention
from ._gpt2_config import GPT2Config
from ._gpt2_from_transformers import (
    gpt2_config_for_transformers,
    gpt2_settings_from_transformers,
)
from ._loss import LossFn, draw_params, make_gpt2_loss
from ._torch_names import torch_model_of_leaves
from ._transformers_config import (
    TransformersConfig,
    has_torchax,
    transformers_settings,
)
from ._transformers_decoder_config import (
    decoder_config_for_transformers,
    decoder_config_from_transformers,
)

# Configuration of a model, from which `build_model` builds it.
ModelConfig: TypeAlias = GPT2Config | DecoderConfig | TransformersConfig
# Trainer counts only predicted labels if the loss is `ForCausalLMLoss`, which
# it finds by the name of the class; that of a GPT-2 is GPT2LMHeadModel.
# Source: transformers 5.23 `trainer.py`, `_loss_shifts_labels`.
_GPT2_LOSS = (
    "the loss here is the mean over all predicted tokens; Trainer 5.23 divides the "
    "loss of a GPT-2 by the number of all labels, including the first of each row, so "
    "that its losses and gradients are (L - 1) / L of those here for rows of L tokens"
)
# Classes of Transformers by `model_type`.
ARCHITECTURES: Mapping[str, str] = {"gpt2": "GPT2LMHeadModel", **DECODER_CLASSES}
# Types of the configurations, the default first.
CONFIG_TYPES = (GPT2Config, DecoderConfig, TransformersConfig)
# Fields with which a configuration can be built in place of one that is not valid. The
# vocabulary is so large that checks of tokens do not fail because of it.
_PLACEHOLDERS: Mapping[type, Mapping[str, Any]] = {
    GPT2Config: {"vocab_size": 2**31 - 1},
    DecoderConfig: {
        **{"model_type": "llama", "vocab_size": 2**31 - 1, "num_hidden_layers": 1},
        **{"hidden_size": 2, "intermediate_size": 1, "num_attention_heads": 1},
    },
    TransformersConfig: {"vocab_size": 2**31 - 1, "transformers_config": {}},
}
Mesh = Any  # `Mesh` or `AbstractMesh`; they have no common base class to annotate


class MakeLoss(Protocol):
    """Function that builds the loss function of a model."""

    def __call__(
        self,
        *,
        mesh: Mesh | None = None,
        label_smoothing_factor: float = 0.0,
        matmul_precision: str | None = None,
    ) -> LossFn:
        """Returns (params, batch, rng=None) -> (summed loss, number of tokens).

        Args:
            mesh: mesh over which activations are sharded; None for a single device.
            label_smoothing_factor: weight of the mean loss over the vocabulary, at
                least 0 and less than 1.
            matmul_precision: precision of matrix products in the forward and backward
                pass, as for `jax.default_matmul_precision`; None for the precision that
                is configured where the loss is called.
        """
        ...


class MakeGenerate(Protocol):
    """Function that builds the function that continues prompts."""

    def __call__(
        self,
        *,
        mesh: Mesh | None = None,
        compute_dtype: Any = None,
        matmul_precision: str | None = None,
        eos_token_ids: Sequence[int] = (),
    ) -> GenerateFn:
        """Returns the function; arguments as for `make_generate`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Model:
    """A language model, without arrays.

    Attributes:
        config: configuration. Every configuration has `vocab_size`, `block_size` (the
            length of a training sequence), `gradient_checkpointing` and `scan_layers`.
        title: architecture and sizes, for reports.
        init: seed -> initial parameters, a tree of dicts of float32 arrays.
        make_loss: builds the loss function.
        make_generate: builds the function that continues prompts.
        context_length: maximum number of tokens in a text.
        layouts: PyTorch layouts of the parameters by patterns for their names; None if
            all leaves have the layouts of PyTorch.
        layer_norms: paths of the normalizations, or their classes by path, for
            `build_optimizer`.
        sharding_rules: mesh -> sharding rules, for `sharding.param_shardings`.
        flops_per_token: model FLOPs of a training step per token.
        has_dropout: True if the loss needs a random key in every training step.
        transformers_config: content of the config.json from which Transformers builds
            the model.
        prefix: name of the base model in the classes of Transformers.
        tied: pairs (alias, name) of tied tensors in PyTorch.
        convention: orientation of kernels in PyTorch, as for `interop.match_names`.
        differences: sentences on how its training differs from that of Trainer.
        draws_on_host: True if `init` cannot be traced, because torch draws the numbers.
    """

    config: ModelConfig
    title: str
    init: Callable[[int], PyTree]
    make_loss: MakeLoss
    make_generate: MakeGenerate
    context_length: int
    layouts: Mapping[str, TorchLayout] | None
    layer_norms: Any
    sharding_rules: Callable[[Mesh], Mapping[str, PartitionSpec]]
    flops_per_token: int
    has_dropout: bool
    transformers_config: Mapping[str, Any]
    prefix: str
    tied: tuple[tuple[str, str], ...] = ()
    convention: str = "linear"
    differences: tuple[str, ...] = ()
    draws_on_host: bool = False

    @functools.cached_property
    def shapes(self) -> PyTree:
        """Shapes and dtypes of the parameters; nothing is computed."""
        return jax.eval_shape(lambda: self.init(0))

    @functools.cached_property
    def frozen(self) -> PyTree:
        """Parameters that the loss takes besides the trainable ones; {} for none.

        `make_train_step(model.make_loss(), optimizer, frozen=model.frozen)` takes them.
        """
        return {}

    @functools.cached_property
    def frozen_shapes(self) -> PyTree:
        """Shapes and dtypes of `frozen`; nothing is computed."""
        return {}

    @property
    def base_names(self) -> interop.ParamNames:
        """Names of the frozen parameters in the files of the base model."""
        return self.names

    def init_frozen(self, seed: int) -> PyTree:
        """Returns the initial values of the frozen parameters of a run; {} for none."""
        return {}

    @property
    def all_layouts(self) -> Mapping[str, TorchLayout] | None:
        """PyTorch layouts of trainable and frozen parameters, as `layouts`."""
        return self.layouts

    def all_sharding_rules(self, mesh: Mesh) -> Mapping[str, PartitionSpec]:
        """Returns the sharding rules of trainable and frozen parameters."""
        return self.sharding_rules(mesh)

    @functools.cached_property
    def names(self) -> interop.ParamNames:
        """Names of the parameters in PyTorch; torch is not needed."""
        described = torch_model_of_leaves(
            self.shapes,
            tied=self.tied,
            is_transposed=self.convention == "linear",
            prefix=self.prefix,
        )
        return interop.match_names(
            self.shapes, described, layouts=self.layouts, convention=self.convention
        )


def settings_from_transformers_config(
    folder: Path, implementation: str | None = None
) -> dict[str, Any]:
    """Reads the settings of a model from the config.json of Transformers in a folder.

    Args:
        folder: folder with config.json.
        implementation: "flax" for a model of this package, "torchax" for the module of
            Transformers; None for the first one that has the architecture.

    Returns:
        The fields of the model's configuration by name.

    Raises:
        ValueError: if the file cannot be read, the architecture is unknown, or settings
            are unsupported, inconsistent or missing. The message names all of them.
    """
    path = folder / "config.json"
    model_type = read_json_object(path, "folder").get("model_type")
    is_known = model_type in ARCHITECTURES
    if implementation is None and not is_known and has_torchax():
        implementation = "torchax"
    if implementation == "torchax":
        return transformers_settings(folder)
    if not is_known:
        raise ValueError(
            f"`folder` must contain a model of {', '.join(ARCHITECTURES)}, but {path} "
            f"has the `model_type` {model_type!r}. For other causal language models "
            'install torchax, `pip install -e ".[torchax]"`.'
        )
    try:
        if model_type == "gpt2":
            return gpt2_settings_from_transformers(folder)
        return dataclasses.asdict(decoder_config_from_transformers(folder))
    except ValueError as error:  # it names the argument of one of these functions
        message = re.sub("`(checkpoint|source)`", "`folder`", str(error), count=1)
        raise ValueError(message) from error


def config_type(settings: Mapping[str, Any]) -> type[ModelConfig]:
    """Returns the type of the configuration that the settings of a run describe.

    The type is determined by `model_implementation` and `model_type`; without these
    settings, it is that of a GPT-2.
    """
    is_torchax = settings.get("model_implementation") == "torchax"
    if is_torchax or "transformers_config" in settings:
        return TransformersConfig
    is_gpt2 = settings.get("model_type", "gpt2") == "gpt2"
    return GPT2Config if is_gpt2 else DecoderConfig


def fields_of_other_configs(kind: type) -> set[str]:
    """Returns the fields that other configurations have and this one does not."""
    fields: dict[type, set[str]] = {
        config_type: {f.name for f in dataclasses.fields(config_type)}
        for config_type in CONFIG_TYPES
    }
    return set().union(*fields.values()) - fields[kind]


def placeholder_config(kind: type) -> ModelConfig:
    """Returns a valid configuration that replaces an invalid one."""
    return kind(**_PLACEHOLDERS[kind])


def build_flax_model(config: GPT2Config | DecoderConfig) -> Model:
    """Returns the Flax model of a configuration."""
    return _gpt2(config) if isinstance(config, GPT2Config) else _decoder(config)


def _gpt2(config: GPT2Config) -> Model:
    def make_loss(
        *,
        mesh: Mesh | None = None,
        label_smoothing_factor: float = 0.0,
        matmul_precision: str | None = None,
    ) -> LossFn:
        make = functools.partial(
            make_gpt2_loss,
            config,
            label_smoothing_factor=label_smoothing_factor,
            matmul_precision=matmul_precision,
        )
        if mesh is None:
            return make()
        loss_without_rng = make(
            constrain=sharding.constrain_batch(mesh), attend=gpt2_attention(mesh)
        )
        gather = sharding.gather_columns(mesh, config.vocab_size)

        def loss_fn(params, batch, *rng):
            root = params["transformer"]
            table = {"embedding": gather(root["wte"]["embedding"])}
            params = {**params, "transformer": {**root, "wte": table}}
            return loss_without_rng(params, batch, *rng)

        return loss_fn

    return Model(
        config=config,
        title=_title("GPT-2", config.n_layer, config.n_embd),
        init=functools.partial(draw_params, config),
        make_loss=make_loss,
        make_generate=functools.partial(make_generate, config),
        context_length=context_length(config),
        layouts=_gpt2_config.gpt2_layout(config),
        layer_norms=_gpt2_config.gpt2_layer_norms(config),
        sharding_rules=functools.partial(_gpt2_config.gpt2_rules, config),
        flops_per_token=_gpt2_config.flops_per_token(config),
        has_dropout=config.has_dropout,
        transformers_config=gpt2_config_for_transformers(config),
        prefix="transformer",
        tied=(("lm_head.weight", "transformer.wte.weight"),),
        convention="conv1d",
        differences=(_GPT2_LOSS,),
    )


def _decoder(config: DecoderConfig) -> Model:
    title = ARCHITECTURES[config.model_type].removesuffix("ForCausalLM")
    tied_head = (("lm_head.weight", "model.embed_tokens.weight"),)
    return Model(
        config=config,
        title=_title(title, config.num_hidden_layers, config.hidden_size),
        init=functools.partial(draw_decoder_params, config),
        make_loss=functools.partial(make_decoder_loss, config),
        make_generate=functools.partial(make_generate, config),
        context_length=context_length(config),
        layouts=decoder_layout(config),
        layer_norms=decoder_layer_norms(config),
        sharding_rules=functools.partial(decoder_rules, config),
        flops_per_token=decoder_flops_per_token(config),
        has_dropout=False,
        transformers_config=decoder_config_for_transformers(config),
        prefix="model",
        tied=tied_head if config.tie_word_embeddings else (),
    )


def _title(name: str, num_layers: int, width: int) -> str:
    layers = f"{num_layers:,} layer" + ("" if num_layers == 1 else "s")
    return f"{name}: {layers}, width {width}"
