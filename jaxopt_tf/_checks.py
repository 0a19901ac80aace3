"""Argument checks with one form of sentence.

Each raises `ValueError` (a bad value) or `TypeError` (a bad kind) with the argument's
name in backticks, what is required and what was given. They run on the host, where a
number enters; a traced number passes, because its value is not known yet.
"""

import difflib
import math
import re
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import Any

import jax
import numpy as np


class ArgumentError(ValueError):
    """Error of an argument that names the problem and the remedy apart.

    A function that takes the argument from elsewhere, such as a file, sets `remedy` to
    one that its own caller can follow.

    Attributes:
        argument: name of the argument.
        problem: sentence on what is required and what was given.
        remedy: sentence on what to do.
    """

    def __init__(self, argument: str, problem: str, remedy: str):
        """Takes the sentences of the message."""
        super().__init__(problem, remedy)
        self.argument, self.problem, self.remedy = argument, problem, remedy

    def __str__(self) -> str:
        """Problem and remedy, which has a line of its own after a list."""
        between = "\n" if "\n" in self.problem else " "
        return f"{self.problem}{between}{self.remedy}"


def is_concrete(value: Any) -> bool:
    """Returns whether `value` is known now, which that of a traced number is not."""
    return not isinstance(value, jax.core.Tracer)


def _number(name: str, value: Any) -> float | None:
    """Returns a real number as a float, None for a traced one; raises for others."""
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


def _check(
    name: str, value: Any, holds: Callable[[float], bool], required: str
) -> None:
    number = _number(name, value)
    # `holds` is a comparison that NaN fails.
    if number is not None and not holds(number):
        raise ValueError(f"`{name}` must be {required}, got {value!r}.")


def positive(name: str, value: Any, *, allow_inf: bool = False) -> None:
    """Raises unless `value` is greater than 0, and finite unless that is allowed."""
    if allow_inf:
        _check(name, value, lambda x: x > 0, "greater than 0")
    else:
        _check(name, value, lambda x: 0 < x < math.inf, "finite and greater than 0")


def non_negative(name: str, value: Any) -> None:
    """Raises unless `value` is finite and at least 0."""
    _check(name, value, lambda x: 0 <= x < math.inf, "finite and at least 0")


def finite(name: str, value: Any) -> None:
    """Raises unless `value` is a finite number."""
    _check(name, value, math.isfinite, "finite")


def fraction(name: str, value: Any) -> None:
    """Raises unless `value` is from 0 to 1, both included."""
    _check(name, value, lambda x: 0 <= x <= 1, "from 0 to 1")


def fraction_below_one(name: str, value: Any) -> None:
    """Raises unless `value` is at least 0 and less than 1."""
    _check(name, value, lambda x: 0 <= x < 1, "at least 0 and less than 1")


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


def step_count(name: str, value: Any, *, least: int = 0) -> int:
    """Returns `value` as an int; raises unless it is a number of steps."""
    return whole_number(name, value, least=least, unit=" of steps")


def whole_number(
    name: str, value: Any, *, least: int, most: int = 2**31 - 1, unit: str = ""
) -> int:
    """Returns `value` as an int; raises unless it is whole, from `least` to `most`.

    A whole float such as 1e6 is accepted.
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
    """Returns a question for the nearest choice; "" where none is near."""
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
