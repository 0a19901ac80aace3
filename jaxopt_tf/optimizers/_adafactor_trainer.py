"""Adafactor as the Trainer builds it."""

from collections.abc import Callable, Mapping

import optax

from .._argument_names import checked_names
from .._pytrees import TorchLayout
from .._typing import PyTree, Scalar, ScalarOrSchedule
from ._adafactor import adafactor_tf


@checked_names
def adafactor_trainer(
    learning_rate: ScalarOrSchedule,
    *,
    eps: tuple[Scalar, Scalar] = (1e-30, 1e-3),
    clip_threshold: Scalar = 1.0,
    decay_rate: Scalar = -0.8,
    beta1: Scalar | None = None,
    weight_decay: Scalar = 0.0,
    decay_mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    layouts: Mapping[str, TorchLayout] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """`adafactor_tf` as the Trainer's `--optim adafactor` has it: the rate is yours.

    The same with `scale_parameter=False, relative_step=False`, which the Trainer sets
    whatever its arguments say. Arguments and errors are those of `adafactor_tf`.

    Source: transformers 5.23.0 `trainer_optimizer.py`, `_get_adafactor`.
    """
    return adafactor_tf(
        learning_rate,
        eps=eps,
        clip_threshold=clip_threshold,
        decay_rate=decay_rate,
        beta1=beta1,
        weight_decay=weight_decay,
        scale_parameter=False,
        relative_step=False,
        decay_mask=decay_mask,
        layouts=layouts,
    )
