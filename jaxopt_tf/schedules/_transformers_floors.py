"""Schedules of Transformers with a nonzero final rate.

As in `_transformers.py`, the first argument is the learning rate instead of the
optimizer, and each schedule equals that of Transformers at every step.
"""

import warnings

from .. import _checks
from .._typing import Scalar, Schedule
from ._curves import cosine, linear, one_minus_sqrt
from ._phases import constant, cycles, decay, join, shift, warmup
from ._repr import schedule_function
from ._transformers import checked_counts, relative_rate

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
    """Returns a schedule with linear warmup from 0, then cosine decay to a minimum.

        t < W:  rate(t) = learning_rate * t / W
        else:   rate(t) = learning_rate * (r + (1 - r) * c), r = min_lr_rate
                with c = (1 + cos(2 pi num_cycles p)) / 2, p = (t - W) / max(1, T - W)

    After the end the cosine continues, as in `get_cosine_schedule_with_warmup`.

    Args:
        learning_rate: peak rate; at least 0; may be traced.
        num_warmup_steps: W; at least 0.
        num_training_steps: T, including the warmup; at least 0.
        num_cycles: number of cosine periods from W to T; at least 0.
        min_lr: minimum rate; from 0 to `learning_rate`. Exclusive with `min_lr_rate`.
        min_lr_rate: minimum rate as a fraction of `learning_rate`; from 0 to 1.

    Raises:
        ValueError: if an argument is out of range, or both or neither of `min_lr` and
            `min_lr_rate` are given.

    Source: transformers 5.23 `optimization.py`,
    `get_cosine_with_min_lr_schedule_with_warmup`.
    Differs: a minimum above the peak is an error; Transformers accepts it.
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
    """Returns a schedule with warmup from a nonzero rate, then cosine decay.

        t < W:  rate(t) = learning_rate * (t + 1) / W, or with s = warmup_lr_rate
                rate(t) = learning_rate * (s + (1 - s) * t / max(1, W - 1))
        else:   rate(t) = learning_rate * (r + (1 - r) * c), r = min_lr_rate
                with c = (1 + cos(2 pi num_cycles p)) / 2
                and p = (t - W + 1) / max(1, T - W)

    The cosine is one step ahead, as in Transformers: the minimum is reached at T - 1,
    and the rate increases again at T.

    Args:
        learning_rate: peak rate; at least 0; may be traced.
        num_warmup_steps: W; at least 0.
        num_training_steps: T, including the warmup; at least 0.
        num_cycles: number of cosine periods from W to T; at least 0.
        min_lr: minimum rate; from 0 to `learning_rate`. Exclusive with `min_lr_rate`.
        min_lr_rate: minimum rate as a fraction of `learning_rate`; from 0 to 1.
        warmup_lr_rate: first rate as a fraction of `learning_rate`; from 0 to 1. The
            default is 1 / W.

    Raises:
        ValueError: if an argument is out of range, or both or neither of `min_lr` and
            `min_lr_rate` are given.

    Source: transformers 5.23 `optimization.py`,
    `get_cosine_with_min_lr_schedule_with_warmup_lr_rate`.
    Differs: a minimum above the peak is an error; Transformers accepts it.
    """
    W, T = checked_counts(learning_rate, num_warmup_steps, num_training_steps)
    floor = _floor(learning_rate, min_lr, min_lr_rate)
    # Transformers evaluates warmup and cosine one step ahead: (t + 1) / W and
    # (t - W + 1) / (T - W). `shift` removes the first step of a phase.
    wave = shift(cycles(cosine, max(1, T - W), num_cycles, floor), 1)
    if warmup_lr_rate is None:
        rise = shift(warmup(linear, max(1, W)), 1)
    else:
        _checks.fraction("warmup_lr_rate", warmup_lr_rate)
        rise = warmup(linear, max(1, W - 1), warmup_lr_rate)
    # `max` and `shift` give `rise` another length than that of the phase, W.
    return join(learning_rate, rise._replace(num_steps=W), wave)


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
    """Returns a schedule with phases for warmup, constant (stable) rate and decay.

        t < W:          rate(t) = learning_rate * (r + (1 - r) * up(t / W))
        t < W + S:      rate(t) = learning_rate
        t < W + S + D:  rate(t) = learning_rate * (r + (1 - r) * down((t - W - S) / D))
        else:           rate(t) = learning_rate * r

        linear:  up(x) = x                    down(x) = 1 - x
        cosine:  up(x) = (1 - cos(pi x)) / 2  down(x) = (1 + cos(2 pi n x)) / 2
        1-sqrt:  up(x) = 1 - sqrt(1 - x)      down(x) = 1 - sqrt(x)

    If S = T - W - D is negative, the decay starts before the end of the warmup and the
    rate is discontinuous, as in Transformers.

    Args:
        learning_rate: peak rate; at least 0; may be traced.
        num_warmup_steps: W; at least 0.
        num_decay_steps: D; at least 0.
        num_training_steps: T, the sum of W, S and D; at least 0.
        num_stable_steps: S; at least 0. If T is given too, T is ignored with a warning.
        warmup_type: "linear", "cosine" or "1-sqrt".
        decay_type: "linear", "cosine" or "1-sqrt".
        min_lr_ratio: r, the first and the last rate as a fraction of `learning_rate`;
            from 0 to 1.
        num_cycles: n, the number of periods of a cosine decay; at least 0.

    Raises:
        ValueError: if an argument is out of range, a type is unknown, or neither
            `num_training_steps` nor `num_stable_steps` is given.

    Examples:
        >>> schedule = get_wsd_schedule(
        ...     1e-3, num_warmup_steps=10, num_decay_steps=20, num_training_steps=100
        ... )
        >>> [f"{schedule(step):.5f}" for step in (5, 50, 90, 100)]
        ['0.00050', '0.00100', '0.00050', '0.00000']

    Source: transformers 5.23 `optimization.py`, `get_wsd_schedule`.
    Differs: a minimum above the peak is an error; Transformers accepts it.
    """
    _checks.non_negative("learning_rate", learning_rate)
    W = _checks.step_count("num_warmup_steps", num_warmup_steps)
    D = _checks.step_count("num_decay_steps", num_decay_steps)
    S = _stable_steps(W + D, num_training_steps, num_stable_steps)
    _checks.one_of("warmup_type", warmup_type, _WSD_CURVES)
    _checks.one_of("decay_type", decay_type, _WSD_CURVES)
    _checks.fraction("min_lr_ratio", min_lr_ratio)
    _checks.non_negative("num_cycles", num_cycles)
    # Only the cosine has `num_cycles` in Transformers. `cycles` needs one step or more:
    # `_replace` below sets the length of the phase, D, which may be 0.
    if decay_type == "cosine":
        down = cycles(cosine, max(1, D), num_cycles, min_lr_ratio)
    else:
        down = decay(_WSD_CURVES[decay_type], D, min_lr_ratio)
    return join(
        learning_rate,
        warmup(_WSD_CURVES[warmup_type], W, min_lr_ratio),
        # S may be negative: see the docstring.
        constant(num_steps=0)._replace(num_steps=S),
        down._replace(num_steps=D),
        constant(num_steps=0, level=min_lr_ratio),
    )


def _stable_steps(
    warmup_and_decay: int, num_training_steps: int | None, num_stable_steps: int | None
) -> int:
    """Returns the length of the stable phase; negative if T is less than W + D."""
    if num_stable_steps is None and num_training_steps is None:
        raise ValueError(
            "`num_training_steps` or `num_stable_steps` must be given, got neither. "
            "The first is the total number of steps, including warmup and decay."
        )
    if num_stable_steps is None:
        total = _checks.step_count("num_training_steps", num_training_steps)
        return total - warmup_and_decay
    if num_training_steps is not None:
        warnings.warn(
            "`num_training_steps` is ignored if `num_stable_steps` is given.",
            stacklevel=5,  # the caller of the decorated function
        )
    return _checks.step_count("num_stable_steps", num_stable_steps)


def _floor(
    learning_rate: Scalar, min_lr: float | None, min_lr_rate: float | None
) -> Scalar:
    if (min_lr is None) == (min_lr_rate is None):
        given = "neither" if min_lr is None else f"{min_lr!r} and {min_lr_rate!r}"
        raise ValueError(
            f"Exactly one of `min_lr` and `min_lr_rate` must be given, got {given}. "
            "The first is a rate, the second a fraction of `learning_rate`."
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
            f"got min_lr={min_lr!r} with learning_rate={learning_rate!r}. To pass a "
            "fraction of the rate, use `min_lr_rate`."
        )
    return relative_rate(min_lr, learning_rate)
