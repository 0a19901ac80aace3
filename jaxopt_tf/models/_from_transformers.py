"""Models of Transformers as models that train in JAX, by torchax."""

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from .. import _checks, interop, training
from .._typing import PyTree
from ._decoding import recomputing_fns
from ._generation import generate_with
from ._inputs import IGNORE_INDEX, as_tokens
from ._layers import use_matmul_precision
from ._loss import LossFn
from ._model import Mesh
from ._packed_rows import SEGMENTS, packed_inputs
from ._peft import (
    LoraSettings,
    adapter_names,
    add_lora,
    base_module,
    base_names,
    is_peft,
)
from ._task_module import freeze_module, load_module
from ._torch_function import TorchFunction
from ._torchax import import_package, import_torch
from ._torchax_model import (
    TorchaxModel,
    build_torchax_model,
    checked_loss,
    flops_of,
    title_of,
)
from ._trainer_forward import NUM_ITEMS, TrainerForward
from ._transformers_config import TransformersConfig, causal_lm

# Architectures that take views of views, which torchax does not support.
_MATERIALIZE_VIEWS = re.compile(".*mamba.*")
# Architectures for which torchax supports only the eager implementation of attention.
_EAGER = re.compile("gemma2|gemma3.*|deberta.*|.*mamba.*")
_NO_RULES: Mapping[str, PartitionSpec] = MappingProxyType({})


def from_transformers(
    source: Any,
    *,
    block_size: int | None = None,
    sharding_rules: Mapping[str, PartitionSpec] = _NO_RULES,
) -> TorchaxModel:
    """Returns a model of Transformers as a model that trains in JAX. Experimental.

        model = from_transformers("bert-base")
        train_step = make_train_step(model.make_loss(), optimizer)
        state = init_train_state(model.init(42), optimizer, rng=42)

    A batch of the loss function is a dict of arrays with the arguments of the module's
    `forward`, such as `input_ids`, `attention_mask` and `labels`. The loss is the one
    that the module computes, and the number of items the one by which Trainer divides
    it: the number of labels that are not -100, without the first of each row if the
    loss shifts them; for modules that compute the mean over the batch themselves, the
    number of rows. For a causal language model a batch may also be an array of tokens,
    [B, T + 1], of which the first T predict the last T and -100 pads the end of a row.

    With a key, the module is in training mode, and its dropout depends on the key;
    without one it is in evaluation mode. `gradient_checkpointing_enable()` of the
    module becomes `jax.checkpoint`. Attention is computed by the module's own code.

    A model of PEFT trains its adapter: `model.frozen` are the weights of the base
    model, which the steps take as an argument, and `model.names` are the names of the
    adapter, for `interop.write_adapter`, `read_params` and Trainer's checkpoints.

        model = from_transformers(peft.get_peft_model(module, peft.LoraConfig(...)))
        train_step = make_train_step(model.make_loss(), optimizer, frozen=model.frozen)

    Args:
        source: a `PreTrainedModel`, a `PeftModel` of one, or a folder that
            `save_pretrained` of Transformers has written. The model of a folder is read
            in float32, as the class that its config.json names. The module is not
            copied; its settings for attention and experts are replaced while it is
            traced, if torchax does not have them.
        block_size: length of a training sequence, for `flops_per_token`; None for the
            context length.
        sharding_rules: sharding rules by patterns of names, which replace those that
            are derived from the types of the layers.

    Returns:
        The model. `init(seed)` returns the weights of the module; if it is on torch's
        meta device, initial weights as Transformers draws them after
        `torch.manual_seed(seed)`.

    Raises:
        TypeError: if `source` is of another type.
        ValueError: if the folder has no model that can be read, if the module has a
            buffer that changes in training or random layers, or a rule does not fit.
            The loss function raises it if a batch has a key that `forward` does not
            take, or if torchax cannot execute the module.
        ImportError: if torchax is missing or does not fit torch.

    Source: transformers 5.23 `trainer.py`, `compute_loss` and
        `_get_num_items_in_batch`.
    """
    module = load_module(source) if isinstance(source, str | Path) else source
    transformers = import_package("transformers")
    if not isinstance(base_module(module), transformers.PreTrainedModel):
        raise TypeError(
            "`source` must be a PreTrainedModel of Transformers, a PeftModel of one, "
            f"or a folder, got {type(module).__name__}. For other torch modules use "
            "`from_torch`."
        )
    return _model_of(module, block_size, sharding_rules)


def build_transformers(
    config: TransformersConfig,
    *,
    lora: LoraSettings | None = None,
    freeze: Sequence[str] = (),
) -> TorchaxModel:
    """Returns the model of a configuration, whose module has no values.

    Args:
        config: configuration of the model.
        lora: adapter that is trained instead of the weights; `init(seed)` draws it.
        freeze: patterns of the names of parameters that are not trained.
    """
    module, names = causal_lm(config), None
    init: Callable[..., PyTree] = _draw
    if lora is not None:
        described = interop.torch_model_from_module(module)
        module = add_lora(module, lora)
        names = base_names(module, described)
        init = functools.partial(_draw_lora, config, lora)
    elif any(not p.requires_grad for p in module.parameters()):
        first = next(n for n, p in module.named_parameters() if not p.requires_grad)
        raise ValueError(
            "`model_name_or_path` must contain a model whose parameters are all "
            f"trained, but {first!r} of {type(module).__name__} is frozen. Train it "
            "with `models.from_transformers` in Python."
        )
    freeze_module(module, freeze)
    model = _model_of(module, config.block_size, _NO_RULES)
    function = model.function
    function.has_values = False
    return dataclasses.replace(
        model,
        config=config,
        init=functools.partial(init, function, function.trainable),
        draws_on_host=True,
        transformers_config=config.transformers_config,
        names_of_base=names,
        draw_frozen=functools.partial(init, function, function.frozen),
    )


def _model_of(
    module: Any, block_size: int | None, sharding_rules: Mapping[str, PartitionSpec]
) -> TorchaxModel:
    base = base_module(module)
    _check_layerdrop(base.config)
    text_config = base.config.get_text_config()
    model_type = base.config.model_type
    function = TorchFunction(
        module,
        materialize_views=bool(_MATERIALIZE_VIEWS.fullmatch(model_type)),
        settings=functools.partial(_settings_of, base),
    )
    forward = TrainerForward(base)
    context_length = getattr(text_config, "max_position_embeddings", None)
    length = block_size or context_length or 0
    others: dict[str, Any] = {}
    if forward.is_causal_lm:
        others["make_generate"] = functools.partial(
            generate_with,
            recomputing_fns(
                lambda params, tokens: function(
                    forward.logits, params, {"input_ids": tokens}
                )
            ),
            vocab_size=text_config.vocab_size,
            context=context_length or 2**31 - 1,
        )
    return build_torchax_model(
        function,
        title=title_of(base) + (" with an adapter" if is_peft(module) else ""),
        loss_fn=forward.loss,
        logits_fn=forward.logits,
        sharding_rules=sharding_rules,
        num_flops=flops_of(module, num_unused=_num_unused(module, text_config))
        + _attention_flops(text_config, length),
        make_loss=functools.partial(_make_loss, function, forward),
        init=functools.partial(_init, function),
        context_length=context_length or 2**31 - 1,
        transformers_config=_config_dict(base),
        prefix=base.base_model_prefix,
        differences=forward.differences,
        adapter_names=adapter_names(module) if is_peft(module) else None,
        **others,
    )


def _make_loss(
    function: TorchFunction,
    forward: TrainerForward,
    *,
    mesh: Mesh | None = None,
    label_smoothing_factor: float = 0.0,
    matmul_precision: str | None = None,
) -> LossFn:
    _checks.fraction_below_one("label_smoothing_factor", label_smoothing_factor)

    def loss_of_logits(params, inputs, labels, rng):
        """Returns the loss of logits and labels at the same positions."""
        logits = function(forward.logits, params, inputs, rng, mesh=mesh)
        length = labels.shape[1] if labels.ndim > 1 else None
        return training.cross_entropy(
            logits if length is None else logits[:, :length],
            labels,
            label_smoothing_factor=label_smoothing_factor,
            ignore_index=IGNORE_INDEX,
        )

    def loss_fn(params, batch, rng=None):
        with use_matmul_precision(matmul_precision):
            if not isinstance(batch, Mapping):
                inputs, labels = _inputs_and_labels(batch, forward)
                return loss_of_logits(params, inputs, labels, rng)
            if SEGMENTS in batch and forward.is_causal_lm:
                inputs, labels = packed_inputs(batch, function.module)
                return loss_of_logits(params, inputs, labels, rng)
            forward.check_batch(batch)
            if not label_smoothing_factor:
                result = function(forward.loss, params, dict(batch), rng, mesh=mesh)
                return checked_loss(result)
            if "labels" not in batch:
                raise ValueError(
                    "`batch` must have the key 'labels' for label smoothing, got "
                    f"{list(batch)}."
                )
            left_out = ("labels", NUM_ITEMS)
            inputs = {name: x for name, x in batch.items() if name not in left_out}
            labels = jnp.asarray(batch["labels"])
            # Labels are shifted as by `LabelSmoother` of Trainer, which decides by the
            # class of the model.
            labels = labels[:, 1:] if forward.is_causal_lm else labels
            if not jnp.issubdtype(labels.dtype, jnp.integer):
                raise ValueError(
                    "`label_smoothing_factor` must be 0 for labels that are numbers, "
                    f"not classes, got {label_smoothing_factor!r}. Leave it out."
                )
            loss, number = loss_of_logits(params, inputs, labels, rng)
            if NUM_ITEMS in batch and not forward.takes_loss_kwargs:
                # Trainer then takes the mean over the means of the micro-batches. At
                # least 1: a batch without labels has the loss 0, not 0 / 0.
                return loss / jnp.maximum(number, 1.0), jnp.ones_like(number)
            return loss, number

    return loss_fn


def _inputs_and_labels(
    batch: Any, forward: TrainerForward
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Returns the first T tokens and the labels of the last T, from [B, T + 1]."""
    if not forward.is_causal_lm:
        forward.check_batch(batch)  # raises: it is not a dict
    tokens = as_tokens("batch", batch, min_length=2).astype(jnp.int32)
    inputs, labels = tokens[:, :-1], tokens[:, 1:]
    is_missing = inputs == IGNORE_INDEX
    # Padding in the inputs is replaced by token 0. At the end of a row this is
    # harmless, because attention is causal. In the middle of a row, later tokens would
    # attend to the padding: its label becomes -1 if it counts in the loss, which makes
    # the loss NaN.
    labels = jnp.where(is_missing & (labels != IGNORE_INDEX), -1, labels)
    return {"input_ids": jnp.where(is_missing, 0, inputs)}, labels


def _init(function: TorchFunction, seed: int) -> PyTree:
    """Returns the weights of a module; random ones for a module without values."""
    is_meta = any(p.is_meta for p in function.module.parameters())
    if is_meta and not is_peft(function.module):
        return _draw(function, function.trainable, seed)
    return function.values(function.trainable)


def _draw(function: TorchFunction, names: Mapping[str, Any], seed: int) -> PyTree:
    """Returns initial weights as Transformers draws them after `manual_seed(seed)`."""
    torch, module = import_torch(), function.module
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_checks.seed("seed", seed))
        drawn = type(module)(module.config)
    return TorchFunction(drawn).values(names)


def _draw_lora(
    config: TransformersConfig,
    lora: LoraSettings,
    function: TorchFunction,
    names: Mapping[str, Any],
    seed: int,
) -> PyTree:
    """Returns a new adapter as PEFT draws it after `manual_seed(seed)`."""
    torch, module = import_torch(), causal_lm(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_checks.seed("seed", seed))
        drawn = add_lora(module, lora)
    return TorchFunction(drawn).values(names)


@contextmanager
def _settings_of(module: Any) -> Iterator[None]:
    """Sets the implementations of attention and experts that torchax can execute."""
    chosen = {"_experts_implementation_internal": "batched_mm"}
    if _EAGER.fullmatch(module.config.model_type):
        chosen["_attn_implementation_internal"] = "eager"
    configs = {id(part.config): part.config for part in _parts_with_config(module)}
    before = [
        (config, name, vars(config)[name])
        for config in configs.values()
        for name in chosen
        if name in vars(config)
    ]
    for config, name, _ in before:
        setattr(config, name, chosen[name])
    try:
        yield
    finally:
        for config, name, value in before:
            setattr(config, name, value)


def _parts_with_config(module: Any) -> list[Any]:
    return [part for part in module.modules() if hasattr(part, "config")]


def _check_layerdrop(config: Any) -> None:
    """Raises if layers are dropped at random: torch would draw them once."""
    for name, rate in config.to_dict().items():
        if "layerdrop" in name and isinstance(rate, float) and rate > 0:
            raise ValueError(
                "`source` must have no layers that are dropped at random, got "
                f"`{name}` {rate!r}: they would be drawn once, when the step is "
                f"compiled. Set `config.{name} = 0.0`."
            )


def _config_dict(module: Any) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(module.config.to_json_string(use_diff=False))
    return {**config, "architectures": [type(module).__name__]}


def _num_unused(module: Any, config: Any) -> int:
    """Returns the number of parameters of experts to which a token is not routed."""
    chosen = getattr(config, "num_experts_per_tok", None)
    if not chosen:
        return 0
    experts = [
        p
        for name, p in module.named_parameters()
        if ".experts." in name and p.ndim == 3
    ]
    return sum(p.numel() - p.numel() * chosen // p.shape[0] for p in experts)


def _attention_flops(config: Any, length: int) -> int:
    """Returns 12 * num_layers * width * length: attention with its masked half."""
    layers = getattr(config, "num_hidden_layers", 0) or 0
    heads = getattr(config, "num_attention_heads", 0) or 0
    hidden = getattr(config, "hidden_size", 0) or 0
    head_dim = getattr(config, "head_dim", None)
    width = heads * head_dim if head_dim else hidden if heads else 0
    return 12 * layers * width * length
