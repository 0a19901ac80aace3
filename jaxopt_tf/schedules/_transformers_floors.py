"""Schedules of Transformers that end above 0.

As in `_transformers.py`, the first argument is the learning rate in the place of the
optimizer, and each equals Transformers at every step.
"""

import warnings

from .. import _checks
from .._typing import Scalar, Schedule
from ._curves import cosine, linear, one_minus_sqrt
from ._phases import constant, cycles, decay, join, shift, warmup
from ._repr import schedule_function
from ._transformers import checked_counts, share_of

_WSD_CURVES = {"linear": linear, "cosine": cosine, "1-sqrt": one_minus_sqrt}


@schedule_function
def get_cosine_with_min_lr_schedule_with_warmup(
    learning_rate: Scalar,
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: float = 0.5,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
) -> Schedule:
    """Warms up from 0, then decays along a cosine to a floor.

        t < W:  rate(t) = learning_rate * t / W
        else:   rate(t) = learning_rate * (r + (1 - r) * c), r = min_lr_rate
                with c = (1 + cos(2 pi num_cycles p)) / 2, p = (t - W) / max(1, T - W)

    Past the end the cosine goes on, as in `get_cosine_schedule_with_warmup`.

    Args:
        learning_rate: the highest rate; at least 0; may be traced.
        num_warmup_steps: W, at least 0.
        num_training_steps: T, at least 0, the warmup included.
        num_cycles: whole waves from W to T; at least 0.
        min_lr: the lowest rate; from 0 to `learning_rate`. Or else:
        min_lr_rate: the lowest rate as a share of `learning_rate`; from 0 to 1.

    Raises:
        ValueError: if an argument is out of its range, or both or neither of `min_lr`
            and `min_lr_rate` are given.

    Source: transformers 5.23 `optimization.py`,
    `get_cosine_with_min_lr_schedule_with_warmup`.
    Differs: there a floor may lie above the peak; here that is an error.
    """
    W, T = checked_counts(learning_rate, num_warmup_steps, num_training_steps)
    floor = _floor(learning_rate, min_lr, min_lr_rate)
    wave = cycles(cosine, max(1, T - W), num_cycles, floor)
    return join(learning_rate, warmup(linear, W), wave)


@schedule_function
def get_cosine_with_min_lr_schedule_with_warmup_lr_rate(
    learning_rate: Scalar,
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: float = 0.5,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
    warmup_lr_rate: float | None = None,
) -> Schedule:
    """Warms up from above 0, then decays along a cosine, a step ahead, to a floor.

        t < W:  rate(t) = learning_rate * (t + 1) / W, or with s = warmup_lr_rate
                rate(t) = learning_rate * (s + (1 - s) * t / max(1, W - 1))
        else:   rate(t) = learning_rate * (r + (1 - r) * c), r = min_lr_rate
                with c = (1 + cos(2 pi num_cycles p)) / 2
                and p = (t - W + 1) / max(1, T - W)

    The cosine is read one step ahead: the floor is reached at T - 1, and at T the rate
    has begun to climb again.

    Args:
        learning_rate: the highest rate; at least 0; may be traced.
        num_warmup_steps: W, at least 0.
        num_training_steps: T, at least 0, the warmup included.
        num_cycles: whole waves from W to T; at least 0.
        min_lr: the lowest rate; from 0 to `learning_rate`. Or else:
        min_lr_rate: the lowest rate as a share of `learning_rate`; from 0 to 1.
        warmup_lr_rate: the first rate as a share of `learning_rate`; from 0 to 1. By
            default 1 / W.

    Raises:
        ValueError: if an argument is out of its range, or both or neither of `min_lr`
            and `min_lr_rate` are given.

    Source: transformers 5.23 `optimization.py`,
    `get_cosine_with_min_lr_schedule_with_warmup_lr_rate`.
    Differs: there a floor may lie above the peak; here that is an error.
    """
    W, T = checked_counts(learning_rate, num_warmup_steps, num_training_steps)
    floor = _floor(learning_rate, min_lr, min_lr_rate)
    wave = shift(cycles(cosine, max(1, T - W), num_cycles, floor), 1)
    if warmup_lr_rate is None:
        climb = shift(warmup(linear, max(1, W)), 1)
    else:
        _checks.fraction("warmup_lr_rate", warmup_lr_rate)
        climb = warmup(linear, max(1, W - 1), warmup_lr_rate)
    return join(learning_rate, climb._replace(num_steps=W), wave)


@schedule_function
def get_wsd_schedule(
    learning_rate: Scalar,
    num_warmup_steps: int,
    num_decay_steps: int,
    num_training_steps: int | None = None,
    num_stable_steps: int | None = None,
    warmup_type: str = "linear",
    decay_type: str = "cosine",
    min_lr_ratio: float = 0.0,
    num_cycles: float = 0.5,
) -> Schedule:
    """Warms up, stays at the peak, decays, and then keeps the lowest rate.

        t < W:          rate(t) = learning_rate * (r + (1 - r) * up(t / W))
        t < W + S:      rate(t) = learning_rate
        t < W + S + D:  rate(t) = learning_rate * (r + (1 - r) * down((t - W - S) / D))
        else:           rate(t) = learning_rate * r

        linear:  up(x) = x                    down(x) = 1 - x
        cosine:  up(x) = (1 - cos(pi x)) / 2  down(x) = (1 + cos(2 pi n x)) / 2
        1-sqrt:  up(x) = 1 - sqrt(1 - x)      down(x) = 1 - sqrt(x)

    Where S = T - W - D comes out negative, the decay begins before the warmup ends,
    and the rate jumps there, as in Transformers.

    Args:
        learning_rate: the highest rate; at least 0; may be traced.
        num_warmup_steps: W, at least 0.
        num_decay_steps: D, at least 0.
        num_training_steps: T, at least 0: all three together.
        num_stable_steps: S, at least 0; wins, with a warning, if both are given.
        warmup_type: "linear", "cosine" or "1-sqrt".
        decay_type: the same.
        min_lr_ratio: r, the first and the last rate as a share; from 0 to 1.
        num_cycles: n, whole waves of a cosine decay; at least 0.

    Raises:
        ValueError: if an argument is out of its range, a type is unknown, or neither
            `num_training_steps` nor `num_stable_steps` is given.

    Source: transformers 5.23 `optimization.py`, `get_wsd_schedule`.
    Differs: there a floor may lie above the peak; here that is an error.
    """
    _checks.non_negative("learning_rate", learning_rate)
    W = _checks.step_count("num_warmup_steps", num_warmup_steps)
    D = _checks.step_count("num_decay_steps", num_decay_steps)
    S = _stable_steps(W + D, num_training_steps, num_stable_steps)
    _checks.one_of("warmup_type", warmup_type, _WSD_CURVES)
    _checks.one_of("decay_type", decay_type, _WSD_CURVES)
    _checks.fraction("min_lr_ratio", min_lr_ratio)
    _checks.non_negative("num_cycles", num_cycles)
    if decay_type == "cosine":
        down = cycles(cosine, max(1, D), num_cycles, min_lr_ratio)
    else:
        down = decay(_WSD_CURVES[decay_type], D, min_lr_ratio)
    return join(
        learning_rate,
        warmup(_WSD_CURVES[warmup_type], W, min_lr_ratio),
        constant(0)._replace(num_steps=S),  # S may be negative: see the docstring
        down._replace(num_steps=D),
        constant(0, min_lr_ratio),
    )


def _stable_steps(
    warmup_and_decay: int, num_training_steps: int | None, num_stable_steps: int | None
) -> int:
    """Returns the length of the stable phase; negative if the others do not fit."""
    if num_stable_steps is None and num_training_steps is None:
        raise ValueError(
            "`num_training_steps` or `num_stable_steps` must be given, got neither. "
            "With the first, the stable stretch is what warmup and decay leave of it."
        )
    if num_stable_steps is None:
        total = _checks.step_count("num_training_steps", num_training_steps)
        return total - warmup_and_decay
    if num_training_steps is not None:
        warnings.warn(
            "`num_training_steps` is not used where `num_stable_steps` is given.",
            stacklevel=5,  # of the caller of the decorated function
        )
    return _checks.step_count("num_stable_steps", num_stable_steps)


def _floor(
    learning_rate: Scalar, min_lr: float | None, min_lr_rate: float | None
) -> Scalar:
    if (min_lr is None) == (min_lr_rate is None):
        given = "neither" if min_lr is None else f"{min_lr!r} and {min_lr_rate!r}"
        raise ValueError(
            f"Exactly one of `min_lr` and `min_lr_rate` must be given, got {given}. "
            "The first is a rate, the second a share of `learning_rate`."
        )
    if min_lr is None:
        assert min_lr_rate is not None
        _checks.fraction("min_lr_rate", min_lr_rate)
        return min_lr_rate
    _checks.non_negative("min_lr", min_lr)
    concrete = _checks.is_concrete(learning_rate)
    if concrete and not (min_lr <= learning_rate and learning_rate > 0):
        raise ValueError(
            "`min_lr` must be at most `learning_rate`, which must be greater than 0, "
            f"got min_lr={min_lr!r} with learning_rate={learning_rate!r}. For a share "
            "of the rate use `min_lr_rate`."
        )
    return share_of(min_lr, learning_rate)
