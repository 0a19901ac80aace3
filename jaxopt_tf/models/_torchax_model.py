"""Models whose loss and logits are computed by a torch module under torchax.

model = from_torch(module, loss_fn)
params, loss_fn = model.init(42), model.make_loss()
loss, num_items = loss_fn(params, batch, rng)
"""

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NoReturn, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from .. import interop
from .._typing import PyTree
from ..optimizers import TorchLayout
from ._layers import use_matmul_precision
from ._loss import LossFn
from ._model import Mesh, Model
from ._torch_function import TorchFunction
from ._torch_sharding import linear_layers, module_rules, on_mesh
from ._torchax import import_torch

# (module, batch) -> (summed loss, number of items), in code of torch.
TorchLossFn = Callable[[Any, Any], tuple[Any, Any]]
# (params, batch) -> logits
LogitsFn = Callable[[PyTree, Any], jax.Array]
_NO_RULES: Mapping[str, PartitionSpec] = MappingProxyType({})


class MakeLogits(Protocol):
    """Function that builds the function that computes a model's logits."""

    def __call__(
        self, *, mesh: Mesh | None = None, matmul_precision: str | None = None
    ) -> LogitsFn:
        """Returns (params, batch) -> logits; arguments as for `Model.make_loss`."""
        ...


@dataclass(frozen=True, kw_only=True)
class TorchaxModel(Model):
    """A model whose loss and logits are computed by a torch module under torchax.

    Its parameters are a dict by torch's name, such as `model.norm.weight`, with torch's
    shapes: linear weights are [out, in]. Tied parameters are one leaf, with torch's
    first name. The dict contains only parameters with `requires_grad`, and so do
    gradients and the optimizer's state. Pass `frozen` to `make_train_step` and
    `make_eval_step`, or merge it: `loss_fn({**params, **model.frozen}, batch)`. Frozen
    parameters that the loss function does not receive are read from the module, and
    become constants of the compiled program.

    Attributes:
        function: the torch module as a function of its parameters.
        make_logits: builds the function that computes the logits.
        frozen_rules: mesh -> sharding rules of the frozen parameters.
        adapter_names: names of the trained parameters of a PEFT model; else None.
        names_of_base: names of the frozen parameters in files of the base model, for a
            PEFT model that `build_model` builds; else None.
        draw_frozen: seed -> initial frozen parameters, for a model that `build_model`
            builds, whose module has no values; else None.
    """

    function: TorchFunction
    make_logits: MakeLogits
    frozen_rules: Callable[[Mesh], Mapping[str, PartitionSpec]]
    adapter_names: interop.ParamNames | None = None
    names_of_base: interop.ParamNames | None = None
    draw_frozen: Callable[[int], PyTree] | None = None

    @property
    def module(self) -> Any:
        """The torch module."""
        return self.function.module

    @functools.cached_property
    def frozen(self) -> dict[str, jax.Array]:
        """Parameters without `requires_grad`, by torch's name.

        Raises:
            ValueError: if the module has no values, because `build_model` has built it.
        """
        if self.draw_frozen is not None:
            raise ValueError(
                "`model` must have values in its module, got one of `build_model`. "
                "Read the frozen parameters with `base_names`."
            )
        return self.function.values(self.function.frozen)

    @functools.cached_property
    def frozen_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of `frozen`."""
        return dict(self.function.frozen)

    @property
    def base_names(self) -> interop.ParamNames:
        """Names of the frozen parameters in the files of the base model."""
        return self.names_of_base or self.names

    def init_frozen(self, seed: int) -> PyTree:
        """Returns the initial values of the frozen parameters of a run."""
        return self.frozen if self.draw_frozen is None else self.draw_frozen(seed)

    def all_sharding_rules(self, mesh: Mesh) -> Mapping[str, PartitionSpec]:
        """Returns the sharding rules of trainable and frozen parameters."""
        return {**self.sharding_rules(mesh), **self.frozen_rules(mesh)}

    @functools.cached_property
    def shapes(self) -> PyTree:
        """Shapes and dtypes of the trainable parameters; nothing is computed."""
        return dict(self.function.trainable)

    @functools.cached_property
    def names(self) -> interop.ParamNames:
        """Names of the parameters in PyTorch, their own.

        Frozen parameters are included, except for a PEFT model: its files contain the
        adapter only.
        """
        if self.adapter_names is not None:
            return self.adapter_names
        described = interop.torch_model_from_module(self.module)
        slices = (
            interop.TensorSlice(p.name, p.name, TorchLayout())
            for p in described.parameters
        )
        return interop.ParamNames(slices=tuple(slices), model=described)

    def all_params(self, params: PyTree) -> dict[str, jax.Array]:
        """Returns `params` with the frozen parameters added: all that `names` names."""
        return {**self.frozen, **params}


def from_torch(
    module: Any,
    loss_fn: TorchLossFn,
    *,
    logits_fn: Callable[[Any, Any], Any] | None = None,
    sharding_rules: Mapping[str, PartitionSpec] = _NO_RULES,
) -> TorchaxModel:
    """Returns a torch module as a model that trains in JAX. Experimental.

        def loss_fn(module, batch):
            y = module(batch["x"])
            losses = torch.nn.functional.mse_loss(y, batch["y"], reduction="none")
            return losses.sum(), losses.numel()

        model = from_torch(module, loss_fn)
        train_step = make_train_step(model.make_loss(), optimizer)
        state = init_train_state(model.init(42), optimizer, rng=42)

    The module and `loss_fn` are executed once, when JAX traces the loss, and compiled.
    With a key, the module is in training mode, and its dropout depends on the key;
    without one it is in evaluation mode. The module and its tensors are not changed.

    Args:
        module: the module, with its weights in memory.
        loss_fn: function of torch code: (module, batch) -> (loss summed over the items
            of the batch, number of items). The batch is a tree of tensors.
        logits_fn: (module, batch) -> logits; None for `module(batch)`.
        sharding_rules: sharding rules by patterns of names, which replace those that
            are derived from the types of the layers.

    Returns:
        The model. `init(seed)` returns the module's own weights, whatever the seed.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if the module has a buffer that changes in training or no trainable
            parameter, or a rule does not fit. The loss function raises it if `loss_fn`
            does not return two numbers, or if torchax cannot execute the module.
        ImportError: if torchax is missing or does not fit torch.

    Source: https://github.com/google/torchax, version 0.0.14.
    """
    if not callable(loss_fn):
        raise TypeError(
            "`loss_fn` must be a function (module, batch) -> (summed loss, number of "
            f"items), got {type(loss_fn).__name__}."
        )
    function = TorchFunction(module)
    return build_torchax_model(
        function,
        title=title_of(module),
        loss_fn=loss_fn,
        logits_fn=logits_fn or (lambda module, batch: module(batch)),
        sharding_rules=sharding_rules,
        num_flops=flops_of(module),
    )


def build_torchax_model(
    function: TorchFunction,
    *,
    title: str,
    loss_fn: TorchLossFn,
    logits_fn: Callable[[Any, Any], Any],
    sharding_rules: Mapping[str, PartitionSpec],
    num_flops: int,
    make_loss: Any = None,
    init: Callable[[int], PyTree] | None = None,
    **fields: Any,
) -> TorchaxModel:
    """Builds a model from a torch module and functions of torch code.

    Args:
        function: the module as a function.
        title: name of the model, for reports.
        loss_fn: as for `from_torch`.
        logits_fn: as for `from_torch`.
        sharding_rules: as for `from_torch`.
        num_flops: FLOPs of a training step per item.
        make_loss: builds the loss function; None to build it from `loss_fn`.
        init: seed -> parameters; None for the values in the module.
        fields: further fields of `Model`.
    """
    everything = {**function.trainable, **function.frozen}
    rules = module_rules(function.module, everything, sharding_rules)
    trainable_rules, frozen_rules = (
        {rule: rules[rule] for rule in map(re.escape, names)}
        for names in (function.trainable, function.frozen)
    )
    norms = interop.torch_model_from_module(function.module).layer_norms
    paths = {name.rpartition(".")[0] for name in function.trainable}

    def make_logits(
        *, mesh: Mesh | None = None, matmul_precision: str | None = None
    ) -> LogitsFn:
        def compute(params: PyTree, batch: Any) -> jax.Array:
            with use_matmul_precision(matmul_precision):
                return function(logits_fn, params, batch, mesh=mesh)

        return compute

    defaults: dict[str, Any] = {
        "config": None,  # jobs set it
        "context_length": 2**31 - 1,
        "transformers_config": {},
        "prefix": "",
        "make_generate": _make_no_generate,
    }
    return TorchaxModel(
        **{**defaults, **fields},
        title=title,
        init=init or (lambda seed: function.values(function.trainable)),
        make_loss=make_loss or functools.partial(_make_loss, function, loss_fn),
        make_logits=make_logits,
        layouts=None,
        layer_norms={path: kind for path, kind in norms.items() if path in paths},
        sharding_rules=functools.partial(on_mesh, trainable_rules),
        frozen_rules=functools.partial(on_mesh, frozen_rules),
        flops_per_token=num_flops,
        has_dropout=True,
        tied=(),
        function=function,
    )


def flops_of(module: Any, *, num_unused: int = 0) -> int:
    """Returns the number of FLOPs of a training step per token, without attention.

    6 per trainable parameter and 4 per frozen one. Embeddings that are only looked up
    are not counted; a table that is also the weight of a linear layer is.

    Args:
        module: the torch module.
        num_unused: number of trainable parameters that a token does not use, those of
            experts to which it is not routed.
    """
    nn = import_torch().nn
    multiplied = {id(layer.weight) for layer, _, _ in linear_layers(module).values()}
    tables = {
        id(layer.weight)
        for layer in module.modules()
        if isinstance(layer, nn.Embedding) and id(layer.weight) not in multiplied
    }
    used = [p for p in module.parameters() if id(p) not in tables]
    counts = [(6 if p.requires_grad else 4) * p.numel() for p in used]
    return sum(counts) - 6 * num_unused


def checked_loss(result: Any) -> tuple[jax.Array, jax.Array]:
    """Returns a summed loss and a number of items as float32; raises for others."""
    is_pair = isinstance(result, tuple | list) and len(result) == 2
    shapes = [jnp.shape(x) for x in result] if is_pair else None
    if shapes != [(), ()]:
        got = f"shapes {shapes}" if is_pair else type(result).__name__
        raise ValueError(
            "`loss_fn` must return two numbers, the loss summed over the items of the "
            f"batch and the number of items, got {got}. For a mean over n items, "
            "return (mean * n, n)."
        )
    total, number = (jnp.asarray(x, jnp.float32) for x in result)
    return total, number


def _make_loss(
    function: TorchFunction,
    loss_fn: TorchLossFn,
    *,
    mesh: Mesh | None = None,
    label_smoothing_factor: float = 0.0,
    matmul_precision: str | None = None,
) -> LossFn:
    if label_smoothing_factor:
        raise ValueError(
            "`label_smoothing_factor` must be 0 for a model with its own `loss_fn`, "
            f"got {label_smoothing_factor!r}. Smooth the labels in `loss_fn`."
        )

    def compute(params, batch, rng=None):
        with use_matmul_precision(matmul_precision):
            return checked_loss(function(loss_fn, params, batch, rng, mesh=mesh))

    return compute


def _make_no_generate(**_: Any) -> NoReturn:
    raise ValueError(
        "`model` must be a causal language model to generate text, got another torch "
        "module. Call it on batches by `model.make_logits()`."
    )


def title_of(module: Any) -> str:
    """Returns the class of a module; reports add the number of parameters."""
    return f"{type(module).__name__} under torchax"
