"""Argument checks: the same sentence everywhere.

Each raises `ValueError` (a bad value) or `TypeError` (a bad kind) with the argument's
name in backticks, what is required and what came. They run on the host, where a number
enters; a traced number is let through, because its value is not known yet.
"""

import difflib
import math
import re
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import jax
import numpy as np


def is_concrete(value: Any) -> bool:
    """Whether `value` is a number that can be looked at now."""
    return not isinstance(value, jax.core.Tracer)


def _number(name: str, value: Any) -> float | None:
    """`value` as a float, None where it is traced; raises unless it is one number."""
    shape = getattr(value, "shape", ())
    if shape != ():
        raise TypeError(
            f"`{name}` must be a single number, got an array of shape {shape}. For "
            "many at once, use `jax.vmap`."
        )
    if not is_concrete(value):
        return None
    is_array = isinstance(value, jax.Array | np.ndarray | np.generic)
    kind = np.asarray(value).dtype if is_array else None
    is_real = isinstance(value, Real) or (is_array and np.isrealobj(np.asarray(value)))
    if isinstance(value, bool) or kind == np.bool_ or not is_real:
        raise TypeError(f"`{name}` must be a real number, got {value!r}.")
    return float(value)


def positive(name: str, value: Any, *, allow_inf: bool = False) -> None:
    """Raises unless `value` is greater than 0, and finite unless that is allowed."""
    number = _number(name, value)
    # Comparisons are written so that NaN fails too, here and below.
    if number is None or (number > 0 and (allow_inf or number < math.inf)):
        return
    finite = "" if allow_inf else "finite and "
    raise ValueError(f"`{name}` must be {finite}greater than 0, got {value!r}.")


def non_negative(name: str, value: Any) -> None:
    """Raises unless `value` is finite and at least 0."""
    number = _number(name, value)
    if number is not None and not 0 <= number < math.inf:
        raise ValueError(f"`{name}` must be finite and at least 0, got {value!r}.")


def finite(name: str, value: Any) -> None:
    """Raises unless `value` is a finite number."""
    number = _number(name, value)
    if number is not None and not math.isfinite(number):
        raise ValueError(f"`{name}` must be finite, got {value!r}.")


def real_number(name: str, value: Any) -> None:
    """Raises unless `value` is one real number, traced or not; NaN and inf are numbers.

    The dtype decides for arrays. Text is refused although `float` reads it.
    """
    shape = getattr(value, "shape", ())
    if shape != ():
        raise TypeError(
            f"`{name}` must be a single number, got an array of shape {tuple(shape)}. "
            "Take its mean."
        )
    dtype = getattr(value, "dtype", None)
    if isinstance(dtype, np.dtype):
        kinds = (np.integer, np.floating)
        is_real = any(jax.dtypes.issubdtype(dtype, kind) for kind in kinds)
    else:
        is_real = hasattr(value, "__float__") and not isinstance(value, bool)
    if not is_real:
        raise TypeError(
            f"`{name}` must be a real number, got {value!r}. Pass a float or an array "
            "of shape ()."
        )


def fraction(name: str, value: Any) -> None:
    """Raises unless `value` is from 0 to 1, both included."""
    number = _number(name, value)
    if number is not None and not 0 <= number <= 1:
        raise ValueError(f"`{name}` must be from 0 to 1, got {value!r}.")


def fraction_below_one(name: str, value: Any) -> None:
    """Raises unless `value` is at least 0 and less than 1."""
    number = _number(name, value)
    if number is not None and not 0 <= number < 1:
        raise ValueError(f"`{name}` must be at least 0 and less than 1, got {value!r}.")


def step_count(name: str, value: Any, *, least: int = 0) -> int:
    """As `whole_number`, of steps."""
    return whole_number(name, value, least=least, unit=" of steps")


def whole_number(
    name: str, value: Any, *, least: int, most: int = 2**31 - 1, unit: str = ""
) -> int:
    """Returns `value` as an int; raises unless it is whole, from `least` to `most`.

    A float that is whole is taken: 1e6 is what people type.
    """
    is_real = isinstance(value, Real) and not isinstance(value, bool)
    if not is_real or not (isinstance(value, Integral) or float(value).is_integer()):
        raise TypeError(f"`{name}` must be a whole number{unit}, got {value!r}.")
    if not least <= value <= most:
        limits = {2**31 - 1: "2^31 - 1", 2**32 - 1: "2^32 - 1"}
        limit = limits.get(most, f"{most:,}")
        raise ValueError(f"`{name}` must be from {least} to {limit}, got {value!r}.")
    return int(value)


def seed(name: str, value: Any) -> int:
    """Returns `value` as an int; raises unless it is whole, from 0 to 2^32 - 1.

    The largest is that of NumPy's `seed`, which Transformers' `set_seed` calls.
    """
    return whole_number(name, value, least=0, most=2**32 - 1)


def pair(name: str, value: Any) -> None:
    """Raises unless `value` is a tuple or list of two."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(f"`{name}` must be a pair of numbers, got {value!r}.")


def one_of(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raises unless `value` is one of `choices`; names the nearest."""
    choices = list(choices)
    if value in choices:
        return
    listed = ", ".join(repr(choice) for choice in choices)
    raise ValueError(
        f"`{name}` must be one of {listed}, got {value!r}.{nearest(value, choices)}"
    )


def nearest(value: Any, choices: Iterable[str], shown: str = "{!r}") -> str:
    """The question whether the nearest choice was meant; "" where none is near."""
    near = difflib.get_close_matches(str(value), list(choices), n=1)
    return f" Did you mean {shown.format(near[0])}?" if near else ""


def version(name: str, value: Any) -> tuple[int, int]:
    """Returns major and minor number of a version such as "4.46.3"."""
    found = re.match(r"(\d+)\.(\d+)(?![\d])", value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f"`{name}` must be a version such as '4.46.3', got {value!r}.")
    return int(found.group(1)), int(found.group(2))


def counted(number: int, noun: str) -> str:
    """Returns "1 step", "2,000 steps"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
