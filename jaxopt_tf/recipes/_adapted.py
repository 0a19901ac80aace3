"""Optimizers whose arguments in Trainer differ from those of the functions here."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from .. import optimizers
from .._typing import PyTree, Scalar, ScalarOrSchedule
from ..optimizers import TorchLayout


def ademamix(
    build: Callable[..., optax.GradientTransformationExtraArgs],
    learning_rate: ScalarOrSchedule,
    *,
    betas: tuple[Scalar, Scalar],
    beta1: Scalar | None = None,
    beta2: Scalar | None = None,
    beta3: Scalar = 0.9999,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """Returns AdEMAMix with betas from `optim_args`, else those of the recipe."""
    first = betas[0] if beta1 is None else beta1
    second = betas[1] if beta2 is None else beta2
    return build(learning_rate, betas=(first, second, beta3), **options)


def torchao(
    build: Callable[..., optax.GradientTransformationExtraArgs],
    learning_rate: ScalarOrSchedule,
    *,
    seed: int,
    bf16_stochastic_round: bool = False,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """Returns AdamW of torchao, with its rounding of bfloat16 parameters."""
    optimizer = build(learning_rate, **options)
    if bf16_stochastic_round:
        return optimizers.stochastic_rounding(optimizer, seed=seed)
    return optimizer


def stable_adamw(
    learning_rate: ScalarOrSchedule,
    *,
    peak: Scalar,
    max_lr: Scalar | None = None,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """Returns `stable_adamw_tf`, by default with the peak rate as `max_lr`."""
    max_lr = peak if max_lr is None and options.get("decouple_lr") else max_lr
    return optimizers.stable_adamw_tf(learning_rate, max_lr=max_lr, **options)


def anyprecision(
    learning_rate: ScalarOrSchedule,
    *,
    momentum_dtype: str = "float32",
    variance_dtype: str = "float32",
    use_kahan_summation: bool = False,
    compensation_buffer_dtype: str = "bfloat16",
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """Returns AdamW with moments of the given dtypes."""
    del compensation_buffer_dtype  # is of no effect without `use_kahan_summation`
    if use_kahan_summation:
        raise ValueError(
            "`use_kahan_summation` must be False, got True: AnyPrecisionAdamW "
            "compensates float32 parameters too, in bfloat16. Keep them in float32; "
            "for bfloat16 parameters use `kahan_summation(adamw_tf(...))`."
        )
    return optimizers.adamw_tf(
        learning_rate, mu_dtype=momentum_dtype, nu_dtype=variance_dtype, **options
    )


def lomo(
    learning_rate: ScalarOrSchedule, *, weight_decay: Scalar, decay_mask: Any
) -> optax.GradientTransformationExtraArgs:
    """Returns SGD: Trainer passes only the model and the rate to LOMO."""
    del weight_decay, decay_mask
    return optimizers.sgd_tf(learning_rate, decay_mask=_no_decay)


def adalomo(
    learning_rate: ScalarOrSchedule,
    *,
    weight_decay: Scalar,
    decay_mask: Any,
    layouts: Mapping[str, TorchLayout] | None,
) -> optax.GradientTransformationExtraArgs:
    """Returns Adafactor with a rate relative to the parameter, without decay."""
    del weight_decay, decay_mask
    return optimizers.adafactor_tf(
        learning_rate, relative_step=False, decay_mask=_no_decay, layouts=layouts
    )


def _no_decay(params: PyTree) -> PyTree:
    return jax.tree.map(lambda _: False, params)
