"""Losses and predictions of a model for evaluations with metrics."""

from collections.abc import Callable
from typing import Any

from .._typing import PyTree
from ._layers import use_matmul_precision
from ._model import Mesh, Model
from ._peft import base_module
from ._torchax_model import TorchaxModel
from ._trainer_forward import TrainerForward


def trainer_forward(model: Model) -> TrainerForward | None:
    """Returns how Trainer calls the module of a model; None if it has no such module.

    Only models of `from_transformers` have such a module.
    """
    if not isinstance(model, TorchaxModel) or not model.transformers_config:
        return None
    return TrainerForward(base_module(model.module))


def make_predict(
    model: Model, *, mesh: Mesh | None = None, matmul_precision: str | None = None
) -> Callable[[PyTree, Any], Any]:
    """Returns a function (params, batch) -> predictions, without dropout.

    The predictions are those that Trainer passes to `compute_metrics`: the outputs of a
    module of Transformers without its loss and its cache, the only one or a tuple; the
    logits of another torch module.

    Args:
        model: a model under torchax.
        mesh: mesh over which activations are sharded; None for a single device.
        matmul_precision: as for `Model.make_loss`.

    Raises:
        ValueError: if the model does not run under torchax: the loss of other models
            does not compute the logits of all tokens at once.

    Source: transformers 5.23 `trainer.py`, `prediction_step`.
    """
    if not isinstance(model, TorchaxModel):
        raise ValueError(
            "`compute_metrics` must be left out for a Flax model of this package, "
            "which does not return its logits in evaluations, got "
            f"{model.title!r}. Pass the module of Transformers as `model`."
        )
    call_spec = trainer_forward(model)
    if call_spec is None:
        return model.make_logits(mesh=mesh, matmul_precision=matmul_precision)

    def predict(params: PyTree, batch: Any) -> Any:
        with use_matmul_precision(matmul_precision):
            return model.function(call_spec.predictions, params, dict(batch), mesh=mesh)

    return predict
