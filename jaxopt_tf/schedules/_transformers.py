"""Schedules of Transformers, with their names in Transformers, composed of phases.

The first argument is the learning rate instead of the optimizer. There is no argument
`last_epoch`: a schedule is a function of the step and has no state to resume.

Each schedule equals that of Transformers at every step, including corner cases: after
the end, where a cosine increases again, and with a warmup that is longer than training.
`Recipe` rejects such a warmup; these functions accept it. Schedules with a nonzero
final rate are in `_transformers_floors.py`.
"""

import jax
import jax.numpy as jnp

from .. import _checks
from .._numerics import wide_dtype
from .._typing import Scalar, Schedule
from ._curves import cosine, linear, polynomial
from ._phases import Phase, constant, cycles, decay, hard_restarts, join, warmup
from ._progress import rate_dtype
from ._repr import schedule_function


@schedule_function
def get_constant_schedule(learning_rate: Scalar) -> Schedule:
    """Returns a schedule with a constant rate.

        rate(t) = learning_rate

    Args:
        learning_rate: at least 0; a 0-d array may be traced.

    Raises:
        ValueError: if `learning_rate` is negative or not finite.

    Examples:
        >>> schedule = get_constant_schedule(1e-3)
        >>> print(schedule(0), schedule(1000))
        0.001 0.001

    Source: transformers 5.23 `optimization.py`, `get_constant_schedule`.
    """
    _checks.non_negative("learning_rate", learning_rate)
    # The last phase is evaluated for all later steps, so that it needs no length.
    return join(learning_rate, constant(num_steps=0))


@schedule_function
def get_constant_schedule_with_warmup(
    learning_rate: Scalar, num_warmup_steps: int
) -> Schedule:
    """Returns a schedule with linear warmup from 0, then a constant rate.

        rate(t) = learning_rate * min(1, t / num_warmup_steps)

    Args:
        learning_rate: rate after the warmup; at least 0; may be traced.
        num_warmup_steps: number of warmup steps; at least 0.

    Raises:
        ValueError: if an argument is out of range.

    Examples:
        >>> schedule = get_constant_schedule_with_warmup(1e-3, num_warmup_steps=10)
        >>> print(schedule(5), schedule(1000))
        0.0005 0.001

    Source: transformers 5.23 `optimization.py`, `get_constant_schedule_with_warmup`.
    """
    _checks.non_negative("learning_rate", learning_rate)
    W = _checks.step_count("num_warmup_steps", num_warmup_steps)
    return join(learning_rate, warmup(linear, W), constant(num_steps=0))


@schedule_function
def get_linear_schedule_with_warmup(
    learning_rate: Scalar, num_warmup_steps: int, num_training_steps: int
) -> Schedule:
    """Returns a schedule with linear warmup from 0, then linear decay to 0.

        t < W:  rate(t) = learning_rate * t / W
        else:   rate(t) = learning_rate * max(0, (T - t) / max(1, T - W))

    After the end the rate is 0. If the warmup is longer than training, the rate is 0
    after the warmup.

    Args:
        learning_rate: peak rate; at least 0; may be traced.
        num_warmup_steps: W; at least 0.
        num_training_steps: T, including the warmup; at least 0.

    Raises:
        ValueError: if an argument is out of range.

    Examples:
        >>> schedule = get_linear_schedule_with_warmup(
        ...     1e-3, num_warmup_steps=10, num_training_steps=110
        ... )
        >>> print(schedule(5), schedule(60), schedule(110))
        0.0005 0.0005 0.0

    Source: transformers 5.23 `optimization.py`, `get_linear_schedule_with_warmup`.
    """
    W, T = checked_counts(learning_rate, num_warmup_steps, num_training_steps)
    return join(learning_rate, warmup(linear, W), decay(linear, max(0, T - W)))


@schedule_function
def get_cosine_schedule_with_warmup(
    learning_rate: Scalar,
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: float = 0.5,
) -> Schedule:
    """Returns a schedule with linear warmup from 0, then cosine decay to 0.

        t < W:  rate(t) = learning_rate * t / W
        else:   rate(t) = learning_rate * (1 + cos(2 pi num_cycles p)) / 2
                with p = (t - W) / max(1, T - W)

    After the end the cosine continues: with the default half cycle, the rate increases
    again to its peak at 2 T - W. If the warmup is longer than training, the decay has a
    length of one step.

    Args:
        learning_rate: peak rate; at least 0; may be traced.
        num_warmup_steps: W; at least 0.
        num_training_steps: T, including the warmup; at least 0.
        num_cycles: number of cosine periods from W to T; at least 0.

    Raises:
        ValueError: if an argument is out of range.

    Examples:
        >>> schedule = get_cosine_schedule_with_warmup(
        ...     1e-3, num_warmup_steps=10, num_training_steps=110
        ... )
        >>> [f"{schedule(step):.5f}" for step in (10, 60, 110)]
        ['0.00100', '0.00050', '0.00000']

    Source: transformers 5.23 `optimization.py`, `get_cosine_schedule_with_warmup`.
    """
    W, T = checked_counts(learning_rate, num_warmup_steps, num_training_steps)
    return join(
        learning_rate, warmup(linear, W), cycles(cosine, max(1, T - W), num_cycles)
    )


@schedule_function
def get_cosine_with_hard_restarts_schedule_with_warmup(
    learning_rate: Scalar,
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: float = 1,
) -> Schedule:
    """Returns a schedule with linear warmup, then cosine decay with hard restarts.

        t < W:  rate(t) = learning_rate * t / W
        p < 1:  rate(t) = learning_rate * (1 + cos(pi * ((num_cycles * p) mod 1))) / 2
                with p = (t - W) / max(1, T - W)
        else:   rate(t) = 0

    It restarts at the same steps as Transformers, rounding errors of doubles included.

    Args:
        learning_rate: peak rate; at least 0; may be traced.
        num_warmup_steps: W; at least 0.
        num_training_steps: T, including the warmup; at least 0.
        num_cycles: number of decays; from 0 to 1e6.

    Raises:
        ValueError: if an argument is out of range.

    Source: transformers 5.23 `optimization.py`,
    `get_cosine_with_hard_restarts_schedule_with_warmup`.
    """
    W, T = checked_counts(learning_rate, num_warmup_steps, num_training_steps)
    restarts = hard_restarts(cosine, max(1, T - W), num_cycles)
    return join(learning_rate, warmup(linear, W), restarts)


@schedule_function
def get_polynomial_decay_schedule_with_warmup(
    learning_rate: Scalar,
    num_warmup_steps: int,
    num_training_steps: int,
    lr_end: float = 1e-7,
    power: float = 1.0,
) -> Schedule:
    """Returns a schedule with linear warmup from 0, then polynomial decay to `lr_end`.

        t < W:   rate(t) = learning_rate * t / W
        t <= T:  rate(t) = (learning_rate - lr_end) * ((T - t) / (T - W))^power + lr_end
        else:    rate(t) = lr_end

    Args:
        learning_rate: peak rate; greater than `lr_end`; may be traced.
        num_warmup_steps: W; at least 0.
        num_training_steps: T, including the warmup; at least 0 and different from W.
        lr_end: final rate; at least 0.
        power: exponent; greater than 0.

    Raises:
        ValueError: if an argument is out of range, `lr_end` is not less than
            `learning_rate`, or T is equal to W: the decay would have no steps, and
            Transformers divides by zero.

    Examples:
        >>> schedule = get_polynomial_decay_schedule_with_warmup(
        ...     1e-3, num_warmup_steps=10, num_training_steps=110, lr_end=0.0, power=2
        ... )
        >>> [f"{schedule(step):.5f}" for step in (10, 60, 110)]
        ['0.00100', '0.00025', '0.00000']

    Source: transformers 5.23 `optimization.py`,
    `get_polynomial_decay_schedule_with_warmup`.
    """
    _checks.non_negative("learning_rate", learning_rate)
    _checks.non_negative("lr_end", lr_end)
    if _checks.is_concrete(learning_rate) and not lr_end < learning_rate:
        raise ValueError(
            f"`lr_end` must be less than `learning_rate`, got lr_end={lr_end!r} with "
            f"learning_rate={learning_rate!r}. Lower `lr_end` (its default is 1e-7)."
        )
    W, T = checked_counts(learning_rate, num_warmup_steps, num_training_steps)
    if W == T:
        raise ValueError(
            "`num_training_steps` must differ from `num_warmup_steps`: a polynomial "
            f"decay of 0 steps divides by zero, got {T!r} for both. Use fewer warmup "
            "steps, or 'constant_with_warmup'."
        )
    floor = relative_rate(lr_end, learning_rate)
    down = decay(polynomial(power), max(0, T - W), floor)
    return join(learning_rate, warmup(linear, W), down)


@schedule_function
def get_inverse_sqrt_schedule(
    learning_rate: Scalar, num_warmup_steps: int, timescale: int | None = None
) -> Schedule:
    """Returns a schedule with linear warmup, then inverse square root decay.

        t < W:  rate(t) = learning_rate * t / W
        else:   rate(t) = learning_rate / sqrt((t - W + timescale) / timescale)

    Args:
        learning_rate: peak rate; at least 0; may be traced.
        num_warmup_steps: W; at least 0.
        timescale: number of steps after the warmup until the rate is 1 / sqrt(2) times
            the peak; at least 1. The default is W, or 10,000 if W is 0.

    Raises:
        ValueError: if an argument is out of range.

    Source: transformers 5.23 `optimization.py`, `get_inverse_sqrt_schedule`.
    """
    _checks.non_negative("learning_rate", learning_rate)
    W = _checks.step_count("num_warmup_steps", num_warmup_steps)
    scale = W or 10_000
    if timescale is not None:
        scale = _checks.step_count("timescale", timescale)
    if scale < 1:
        raise ValueError(f"`timescale` must be at least 1, got {timescale!r}.")

    def inverse_sqrt(step: jax.Array) -> jax.Array:
        # `step` is an unsigned integer that counts from the end of the warmup. The sum
        # is exact; only the conversion and the quotient are rounded.
        passed = (step + scale).astype(rate_dtype(step))
        return jnp.sqrt(passed.dtype.type(scale) / passed)

    return join(learning_rate, warmup(linear, W), Phase(inverse_sqrt, 0))


def checked_counts(
    learning_rate: Scalar, num_warmup_steps: int, num_training_steps: int
) -> tuple[int, int]:
    """Returns both counts as ints; raises if one of the three is out of range."""
    _checks.non_negative("learning_rate", learning_rate)
    return (
        _checks.step_count("num_warmup_steps", num_warmup_steps),
        _checks.step_count("num_training_steps", num_training_steps),
    )


def relative_rate(rate: float, learning_rate: Scalar) -> Scalar:
    """Returns rate / learning_rate."""
    # In double precision on the host if the rate is not traced; else in float32, or in
    # float64 for a float64 rate.
    if _checks.is_concrete(learning_rate):
        return float(rate) / float(learning_rate)
    learning_rate = jnp.asarray(learning_rate)
    dtype = wide_dtype(learning_rate.dtype)
    return jnp.asarray(rate, dtype) / learning_rate.astype(dtype)
