"""Lion: steps of one size, whose signs a momentum decides."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from .. import _check, _two_floats
from .._argument_names import checked_names
from .._scalars import f32, one_minus
from .._two_floats import TwoFloats
from .._typing import PyTree, Scalar, ScalarOrSchedule
from ._by_element import by_element


class LionState(NamedTuple):
    """What the next update needs."""

    count: PyTree  # (), int32: updates that the mean has seen; or one per leaf
    step: jax.Array  # (), int32: number of updates, the argument of a schedule
    learning_rate: jax.Array  # (), float32: used by the last update
    rate_source: jax.Array  # (), int32: origin of that rate, see `_learning_rate`
    mu: PyTree  # as params, float32: mean of gradients


class _Now(NamedTuple):
    rate: jax.Array  # (), float32
    kept: jax.Array  # (), float32: 1 - rate times weight decay


@checked_names
def lion_tf(
    learning_rate: ScalarOrSchedule,
    *,
    betas: tuple[Scalar, Scalar] = (0.9, 0.99),
    weight_decay: Scalar = 0.0,
    decay_mask: PyTree | Callable[[PyTree], PyTree] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Lion as `bitsandbytes.optim.Lion` computes it in 32 bits.

        p  = p * (1 - rate * weight_decay)                   (decayed leaves)
        p  = p - rate * sign(beta1 * mu + (1 - beta1) * g)
        mu = beta2 * mu + (1 - beta2) * g

    in float32; updates are differences of parameters, as in `adamw_tf`.

    Args:
        learning_rate: as for `adamw_tf`; a third to a tenth of what AdamW would have.
        betas: shares of the mean in the step, and in the next mean; from 0 to below 1.
        weight_decay: share that is taken off per unit of rate; at least 0.
        decay_mask: as for `adamw_tf`.

    Returns:
        A transformation with state `LionState`; its update needs `params`.

    Raises:
        ValueError, TypeError: if an argument is out of range.

    Source: Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023, arXiv
        2302.06675, Program 1; Transformers' "lion_32bit" has it from bitsandbytes.
    Differs: `optax.lion` decays all leaves, by 1e-3 unless told.
    """
    _check.pair("betas", betas)
    for i, beta in enumerate(betas):
        _check.fraction_below_one(f"betas[{i}]", beta)
    beta1, beta2 = betas

    def clock(rate: TwoFloats, count: jax.Array) -> _Now:
        del count
        decay = _two_floats.multiply(rate, _two_floats.from_scalar(weight_decay))
        kept = _two_floats.subtract(_two_floats.from_float(1.0), decay)
        return _Now(rate.high, _two_floats.to_float32(kept))

    def new_leaf(p32, g32, is_decayed, now, mu):
        direction = jnp.sign(f32(beta1) * mu + one_minus(beta1) * g32)
        p32 = p32 * now.kept if is_decayed else p32
        mu = f32(beta2) * mu + one_minus(beta2) * g32
        return p32 - now.rate * direction, mu

    return by_element(
        "lion_tf",
        LionState,
        learning_rate,
        weight_decay,
        decay_mask,
        has_moments=(True,),
        clock=clock,
        new_leaf=new_leaf,
    )
