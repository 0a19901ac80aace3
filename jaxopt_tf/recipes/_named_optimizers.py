"""An optimizer by the name that `optim` gives it."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import optax

from .._typing import PyTree, ScalarOrSchedule
from ..optimizers import (
    TorchLayout,
    adafactor_trainer,
    adagrad_tf,
    adamw_hf_v4,
    adamw_tf,
    lion_tf,
    rmsprop_tf,
    sgd_tf,
)

if TYPE_CHECKING:
    from ._recipe import Recipe

# Those that are alike but for their arguments.
_BY_ELEMENT: dict[str, Callable[..., optax.GradientTransformationExtraArgs]] = {
    "sgd": sgd_tf,
    "adagrad": adagrad_tf,
    "rmsprop": rmsprop_tf,
}


def named_optimizer(
    recipe: "Recipe",
    learning_rate: ScalarOrSchedule,
    *,
    decay_mask: Callable[[PyTree], PyTree] | None = None,
    layout: Mapping[str, TorchLayout] | None = None,
    values: Mapping[str, Any] = MappingProxyType({}),
) -> optax.GradientTransformationExtraArgs:
    """The recipe's optimizer with this rate, without clipping and groups.

    `values` are taken in the place of the recipe's of the same name.

    Raises:
        ValueError, TypeError: if it refuses the recipe's numbers.

    Source: transformers 5.23 `trainer_optimizer.py`; 4.46 `trainer.py` for "adamw_hf".
    """

    def value(name: str) -> Any:
        return values.get(name, getattr(recipe, name))

    weight_decay = value("weight_decay")
    betas = (value("adam_beta1"), value("adam_beta2"))
    optim_args: Any = recipe.optim_args  # pairs, once the recipe is made
    if recipe.optim in _BY_ELEMENT:
        return _BY_ELEMENT[recipe.optim](
            learning_rate,
            weight_decay=weight_decay,
            decay_mask=decay_mask,
            **dict(optim_args),
        )
    if recipe.optim == "adafactor":
        return adafactor_trainer(
            learning_rate,
            weight_decay=weight_decay,
            decay_mask=decay_mask,
            layouts=layout,
        )
    if recipe.optim == "lion_32bit":
        return lion_tf(
            learning_rate,
            betas=betas,
            weight_decay=weight_decay,
            decay_mask=decay_mask,
        )
    adamw = adamw_hf_v4 if recipe.optim == "adamw_hf" else adamw_tf
    return adamw(
        learning_rate,
        betas=betas,
        eps=value("adam_epsilon"),
        weight_decay=weight_decay,
        decay_mask=decay_mask,
    )
