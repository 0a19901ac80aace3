"""Where in its cycle a step stands, exactly.

After num_cycles * step / num_steps turns only the fraction of the turn matters, and
that is what floating point loses as the turns grow. Fixed point does not: the turn of
one step is rounded once, to 2^-96, multiplied by the step in integers, and whole turns
drop out at the top. At step 2^31 the fraction is still exact to 2^-65.
"""

import math
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import _checks
from .._numerics.double_float import TwoFloats, add, from_float32, from_int

_BITS = 96
_MOST_CYCLES = 1e6  # a run of 1e6 restarts is a slip, and its table would be long


class Turn(NamedTuple):
    """A fraction of a turn: (high 2^64 + middle 2^32 + low) / 2^96."""

    high: jax.Array  # any shape, uint32
    middle: jax.Array  # as high, uint32
    low: jax.Array  # as high, uint32


def per_step(num_cycles: float, num_steps: int) -> int:
    """The turn of one step in units of 2^-96, whole turns included.

    Rounded up: where a cycle begins exactly on a step, that step is not before it.
    """
    return math.ceil(Fraction(float(num_cycles)) * 2**_BITS / num_steps)


def turn_at(step: jax.Array, step_turn: int) -> Turn:
    """The fraction of a turn reached at `step`, uint32, in turns of `step_turn`."""
    factor = [step_turn >> 16 * k & 0xFFFF for k in range(_BITS // 16)]
    digits = [jnp.zeros_like(step) for _ in factor]
    # By hand, in digits of 16 bits: digit * digit + digit + carry just fits 32.
    for shift, half in enumerate((step & 0xFFFF, step >> 16)):
        carry = jnp.zeros_like(step)
        for place in range(shift, len(digits)):
            total = half * factor[place - shift] + digits[place] + carry
            digits[place], carry = total & 0xFFFF, total >> 16
    low, middle, high = (
        digits[place] | digits[place + 1] << 16 for place in range(0, len(digits), 2)
    )
    return Turn(high, middle, low)


def rest_of(turn: Turn) -> Turn:
    """1 - turn, less the last bit: what is left of the cycle."""
    return Turn(~turn.high, ~turn.middle, ~turn.low)


def from_half(turn: Turn) -> Turn:
    """|turn - 1/2|: how far the cycle is from its middle, on either side."""
    half = np.uint32(2**31)
    before = turn.high < half
    away = turn._replace(high=turn.high ^ half)
    return select(before, rest_of(away), away)


def select(condition: jax.Array, a: Turn, b: Turn) -> Turn:
    """a where `condition`, else b."""
    return Turn(*(jnp.where(condition, x, y) for x, y in zip(a, b, strict=True)))


def to_two_floats(turn: Turn) -> TwoFloats:
    """The fraction as two float32, to 2^-56, and relatively exact however small."""
    high = from_int(turn.high)
    high = TwoFloats(high.high * 2.0**-32, high.low * 2.0**-32)
    rest = turn.middle.astype(jnp.float32) * 2.0**-64
    rest += turn.low.astype(jnp.float32) * 2.0**-96
    return add(high, from_float32(rest))


def restarts_that_doubles_misplace(num_cycles: float, num_steps: int) -> np.ndarray:
    """Steps that a double puts on the other side of a restart than `turn_at` does.

    (num_cycles * (step / num_steps)) % 1.0 is rounded twice before it wraps. Where the
    product is nearly whole it may come out just below instead (49 * (1 / 49) does), and
    the last step of a cycle is then asked for in place of the first. Only the step
    nearest to each restart can be affected, so they are all looked at, on the host.

    Returns:
        The steps in increasing order, uint32; most often none.

    Raises:
        ValueError: if `num_cycles` is above 1e6.
    """
    _checks.non_negative("num_cycles", num_cycles)
    if num_cycles > _MOST_CYCLES:
        raise ValueError(
            f"`num_cycles` must be at most {_MOST_CYCLES:g} for hard restarts, got "
            f"{num_cycles!r}."
        )
    cycles = float(num_cycles)
    nearest = np.rint(np.arange(1, int(cycles) + 1) * num_steps / max(cycles, 1.0))
    nearest = np.unique(nearest[(nearest > 0) & (nearest < num_steps)])
    doubles = cycles * (nearest / float(num_steps))
    close = np.abs(doubles - np.rint(doubles)) < 1e-6
    step_turn = per_step(num_cycles, num_steps)
    misplaced = [
        int(step)
        for step, turns in zip(nearest[close], doubles[close], strict=True)
        if int(step) * step_turn >> _BITS != math.floor(turns)
    ]
    return np.asarray(misplaced, dtype=np.uint32)
