"""Numbers of a state with the digits of torch's doubles, as sums of three float32.

Arithmetic is done on exact scalars. A number that was read from a file and that no
update has changed is written to a file again with all of its digits.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import double_float
from ._scalars import ExactScalar
from .double_float import DoubleFloat


class SplitFloat(NamedTuple):
    """Unevaluated sum of three numbers; in float64, `high` is the whole number."""

    high: jax.Array  # (), float32, or float64 in the state of a float64 parameter
    middle: jax.Array  # the same
    low: jax.Array  # the same


def from_float(value: float, dtype: Any) -> SplitFloat:
    """Converts a Python number, exactly, to three arrays of one dtype."""
    parts, rest = [], float(value)
    for _ in range(3):
        part = np.asarray(rest, dtype)
        parts.append(part)
        rest -= float(part)
    # Three buffers: XLA refuses to donate one buffer twice.
    return SplitFloat(*(jnp.array(part, copy=True) for part in parts))


def to_float(value: SplitFloat) -> float:
    """Returns the sum of concrete numbers as a Python number."""
    return sum(float(part) for part in reversed(value))


def joined(value: SplitFloat) -> ExactScalar:
    """Returns an exact scalar: a pair of float32 without `low`, or a float64."""
    if value.high.dtype == jnp.float64:
        return value.high + value.middle + value.low
    return DoubleFloat(value.high, value.middle)


def replaced(condition: jax.Array, old: SplitFloat, new: ExactScalar) -> SplitFloat:
    """Returns `new` where `condition` is True, else `old` with all of its digits."""
    parts = list(new) if isinstance(new, DoubleFloat) else [new]
    parts += [jnp.zeros_like(old.low)] * (3 - len(parts))
    chosen = (jnp.where(condition, a, b) for a, b in zip(parts, old, strict=True))
    return SplitFloat(*chosen)


def select(condition: jax.Array, a: ExactScalar, b: ExactScalar) -> ExactScalar:
    """Returns `a` where `condition` is True, else `b`; both are exact scalars."""
    if isinstance(a, DoubleFloat):
        return double_float.select(condition, a, b)
    return jnp.where(condition, a, b)
