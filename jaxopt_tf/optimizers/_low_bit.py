"""Optimizers with moments of 8 or 4 bits, as bitsandbytes and torchao have them."""

import dataclasses
from collections.abc import Callable, Mapping

import optax

from .. import _checks
from .._argument_names import checked_names
from .._pytrees import TorchLayout
from .._typing import PyTree, Scalar, ScalarOrSchedule
from ._adamw import adamw_rule, decayed_mean, interpolated_mean
from ._ademamix import ademamix_rule
from ._levels import Levels
from ._lion import lion_rule
from ._per_leaf import per_leaf_optimizer
from ._quantized import Quantizer, TorchaoMoment, quantized
from ._rmsprop import rmsprop_rule

KeepFloat32 = PyTree | Callable[[PyTree], PyTree] | None

BITSANDBYTES = Quantizer(
    signed=Levels.dynamic(signed=True),
    unsigned=Levels.dynamic(signed=False),
    ties_up=False,
    repairs_signs=True,
    least_scale=0.0,
    whole_blocks=False,
    skips_embeddings=True,
)
TORCHAO_8_BIT = Quantizer(
    signed=Levels.dynamic(signed=True),
    unsigned=Levels.dynamic(signed=False),
    ties_up=True,
    repairs_signs=False,
    least_scale=1e-12,
    whole_blocks=True,
    skips_embeddings=False,
    moment_type=TorchaoMoment,
)
TORCHAO_4_BIT = dataclasses.replace(
    TORCHAO_8_BIT,
    signed=Levels.four_bits(signed=True),
    # There is no 0 among the levels of the second moment, which cannot underflow.
    unsigned=Levels.four_bits(signed=False),
)
_QUANTIZERS = {"bitsandbytes": BITSANDBYTES, "torchao": TORCHAO_8_BIT}
# How the libraries round the two moments of AdamW, of which codes are made.
_MEANS = {
    "bitsandbytes": (decayed_mean, decayed_mean),
    "torchao": (interpolated_mean, interpolated_mean),
}


@checked_names
def adamw_8bit_tf(
    learning_rate: ScalarOrSchedule,
    *,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    decay_mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    library: str = "bitsandbytes",
    keep_float32: KeepFloat32 = None,
    layouts: Mapping[str, TorchLayout] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW with moments of 8 bits: 2.03 bytes per parameter instead of 8.

    The formula is that of `adamw_tf`, in float32. Between updates each moment is stored
    as one of 256 levels, times the largest magnitude in its block of 256 elements. The
    levels are 0 and seven decades below 1, so that small moments keep their order of
    magnitude. A moment below 1.6e-7 of the largest in its block becomes 0.

    A second moment that becomes 0 while the first does not makes the next step of this
    weight large, up to hundreds of learning rates. Both libraries have this property;
    it is rare, and most frequent where gradients are sparse, as in embeddings.

    Args:
        learning_rate: as for `adamw_tf`.
        betas: as for `adamw_tf`.
        eps: as for `adamw_tf`.
        weight_decay: as for `adamw_tf`.
        decay_mask: as for `adamw_tf`.
        library: "bitsandbytes" for `optim="adamw_8bit"`, "adamw_bnb_8bit" and
            "paged_adamw_8bit" of Transformers; "torchao" for "adamw_torch_8bit". The
            two libraries differ in ties, in the sign of small numbers, and in the
            leaves that stay float32: leaves with less than 4,096 elements and, for
            bitsandbytes, embeddings; for torchao, also sizes that are no multiple of
            256.
        keep_float32: bool for each leaf, or a callable from params to that: leaves
            whose moments are float32. None for embeddings by their names, if `library`
            is "bitsandbytes".
        layouts: as for `adafactor_tf`: the order of elements in torch determines the
            blocks.

    Returns:
        A transformation with state `AdamWState`, in which `mu` and `nu` hold
        `QuantizedMoment` at quantized leaves.

    Raises:
        ValueError, TypeError: as `adamw_tf` and, for layouts, as `adafactor_tf`.

    Examples:
        >>> params = {"kernel": jnp.ones((64, 256))}
        >>> state = adamw_8bit_tf(1e-3).init(params)
        >>> state.mu["kernel"].codes.dtype, state.mu["kernel"].scales.shape
        (dtype('uint8'), (64, 1))

    Source: Dettmers et al., "8-bit Optimizers via Block-wise Quantization", 2021, arXiv
        2110.02861; bitsandbytes 0.50.2 `backends/cpu/ops.py`,
        `_optimizer_update_8bit_blockwise_cpu`; torchao 0.18 `optim/adam.py`.
    Differs: bitsandbytes on CPUs rounds through a table of 65,536 entries, in which 0
        becomes 2e-5 of the largest magnitude; here codes are those of its CUDA kernel,
        the nearest levels. That kernel decays after the step, here decay is first, as
        on CPUs.
    """
    _checks.one_of("library", library, tuple(_QUANTIZERS))
    rule = quantized(
        adamw_rule("adamw_8bit_tf", betas, eps, weight_decay, means=_MEANS[library]),
        _QUANTIZERS[library],
        (True, False),
        layouts=layouts,
        keep_float32=keep_float32,
    )
    return per_leaf_optimizer(rule, learning_rate, weight_decay, decay_mask)


@checked_names
def adamw_4bit_tf(
    learning_rate: ScalarOrSchedule,
    *,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    decay_mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    keep_float32: KeepFloat32 = None,
    layouts: Mapping[str, TorchLayout] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW with moments of 4 bits: 1.03 bytes per parameter instead of 8.

    Like `adamw_8bit_tf` with `library="torchao"`, but with 16 levels: levels of the
    first moment are denser near 0, levels of the second moment are 1/16, 2/16, ..., 1.
    Two codes share a byte.

    Returns:
        A transformation with state `AdamWState`.

    Raises:
        ValueError, TypeError: as `adamw_8bit_tf`.

    Source: Li et al., "Memory Efficient Optimizers with 4-bit States", 2023, arXiv
        2309.01507; torchao 0.18 `optim/adam.py`, `AdamW4bit`, with blocks of 256 as
        Transformers 5.23 sets them for `optim="adamw_torch_4bit"`.
    """
    rule = quantized(
        adamw_rule("adamw_4bit_tf", betas, eps, weight_decay, means=_MEANS["torchao"]),
        TORCHAO_4_BIT,
        (True, False),
        layouts=layouts,
        keep_float32=keep_float32,
    )
    return per_leaf_optimizer(rule, learning_rate, weight_decay, decay_mask)


@checked_names
def lion_8bit_tf(
    learning_rate: ScalarOrSchedule,
    *,
    betas: tuple[Scalar, Scalar] = (0.9, 0.99),
    weight_decay: Scalar = 0.0,
    decay_mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    keep_float32: KeepFloat32 = None,
    layouts: Mapping[str, TorchLayout] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Lion with a momentum of 8 bits: 1.02 bytes per parameter instead of 4.

    The formula is that of `lion_tf`; its momentum is stored as the first moment of
    `adamw_8bit_tf` with `library="bitsandbytes"`. Arguments are those of `lion_tf` and
    of `adamw_8bit_tf`.

    Returns:
        A transformation with state `LionState`.

    Raises:
        ValueError, TypeError: as `lion_tf` and `adamw_8bit_tf`.

    Source: bitsandbytes 0.50.2 `optim/lion.py`, `Lion8bit`, which Transformers calls
        for `optim="lion_8bit"` and "paged_lion_8bit".
    """
    rule = quantized(
        lion_rule("lion_8bit_tf", betas, weight_decay),
        BITSANDBYTES,
        (True,),
        layouts=layouts,
        keep_float32=keep_float32,
    )
    return per_leaf_optimizer(rule, learning_rate, weight_decay, decay_mask)


@checked_names
def ademamix_8bit_tf(
    learning_rate: ScalarOrSchedule,
    *,
    betas: tuple[Scalar, Scalar, Scalar] = (0.9, 0.999, 0.9999),
    alpha: Scalar = 5.0,
    t_alpha: int | None = None,
    t_beta3: int | None = None,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    decay_mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    keep_float32: KeepFloat32 = None,
    layouts: Mapping[str, TorchLayout] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdEMAMix with moments of 8 bits: 3.05 bytes per parameter instead of 12.

    The formula is that of `ademamix_tf`; its moments are stored as those of
    `adamw_8bit_tf` with `library="bitsandbytes"`, the slow mean as the fast one. A
    change of the slow mean by less than half the distance of two levels is lost: with
    `betas[2]` 0.9999 most of them are. Arguments are those of these two.

    Returns:
        A transformation with state `AdEMAMixState`.

    Raises:
        ValueError, TypeError: as `ademamix_tf` and `adamw_8bit_tf`.

    Source: bitsandbytes 0.50.2 `optim/ademamix.py`, `AdEMAMix` with 8 bits, which
        Transformers calls for `optim="ademamix_8bit"` and "paged_ademamix_8bit".
    """
    rule = quantized(
        ademamix_rule(
            "ademamix_8bit_tf",
            betas,
            alpha=alpha,
            t_alpha=t_alpha,
            t_beta3=t_beta3,
            eps=eps,
            weight_decay=weight_decay,
        ),
        BITSANDBYTES,
        (True, True, False),
        layouts=layouts,
        keep_float32=keep_float32,
    )
    return per_leaf_optimizer(rule, learning_rate, weight_decay, decay_mask)


@checked_names
def rmsprop_8bit_tf(
    learning_rate: ScalarOrSchedule,
    *,
    alpha: Scalar = 0.99,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    decay_mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    keep_float32: KeepFloat32 = None,
    layouts: Mapping[str, TorchLayout] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """RMSprop with a mean of squares of 8 bits: 1.02 bytes per parameter instead of 4.

    The formula is that of `rmsprop_tf`, without momentum. The mean of squares is stored
    as the first moment of `adamw_8bit_tf` with `library="bitsandbytes"`, with signed
    levels of which it uses half. Arguments are those of these two.

    Returns:
        A transformation with state `RMSpropState`.

    Raises:
        ValueError, TypeError: as `rmsprop_tf` and `adamw_8bit_tf`.

    Source: bitsandbytes 0.50.2 `optim/rmsprop.py`, `RMSprop` with 8 bits, which
        Transformers calls for `optim="rmsprop_bnb_8bit"`.
    Differs: the CUDA kernel of bitsandbytes has the decay in the mean of squares but
        not in the step. Here it is in both, as on CPUs and with 32 bits.
    """
    rule = quantized(
        rmsprop_rule("rmsprop_8bit_tf", alpha, eps, None, False, weight_decay),
        BITSANDBYTES,
        (True, None, None),
        layouts=layouts,
        keep_float32=keep_float32,
    )
    return per_leaf_optimizer(rule, learning_rate, weight_decay, decay_mask)
