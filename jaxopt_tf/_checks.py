"""Argument checks whose messages have a common form.

Each check raises `ValueError` for an invalid value and `TypeError` for an invalid type.
The message contains the argument's name in backticks, the requirement and the given
value. Checks run on the host when a function receives the argument. Traced numbers are
accepted, because their values are not known during tracing.
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
    """Error for an argument, with separate sentences for the problem and the remedy.

    For example, a caller that read the value from a file replaces `remedy` by what the
    user of the file can do.

    Attributes:
        argument: name of the argument.
        problem: sentence that states the requirement and the given value.
        remedy: sentence that states what to do.
    """

    def __init__(self, argument: str, problem: str, remedy: str):
        """Stores the sentences of the message."""
        super().__init__(problem, remedy)
        self.argument, self.problem, self.remedy = argument, problem, remedy

    def __str__(self) -> str:
        """Returns problem and remedy; on separate lines if the problem has several."""
        between = "\n" if "\n" in self.problem else " "
        return f"{self.problem}{between}{self.remedy}"


def is_concrete(value: Any) -> bool:
    """Returns whether `value` is known, that is, not traced."""
    return not isinstance(value, jax.core.Tracer)


def _number(name: str, value: Any) -> float | None:
    """Returns a real number as a float, and None for a traced one; raises otherwise."""
    shape = getattr(value, "shape", ())
    if shape != ():
        raise TypeError(
            f"`{name}` must be a single number, got an array of shape {shape}. For "
            "several values, use `jax.vmap`."
        )
    if not is_concrete(value):
        return None
    # JAX arrays are not registered as `numbers.Real`. Their dtype decides.
    is_array = isinstance(value, jax.Array | np.ndarray | np.generic)
    dtype = np.asarray(value).dtype if is_array else None
    is_real = isinstance(value, Real) or (is_array and np.isrealobj(np.asarray(value)))
    if isinstance(value, bool) or dtype == np.bool_ or not is_real:
        raise TypeError(f"`{name}` must be a real number, got {value!r}.")
    return float(value)


def _check(
    name: str, value: Any, condition: Callable[[float], bool], requirement: str
) -> None:
    number = _number(name, value)
    # Every `condition` is False for NaN, so NaN is refused.
    if number is not None and not condition(number):
        raise ValueError(f"`{name}` must be {requirement}, got {value!r}.")


def positive(name: str, value: Any, *, allow_inf: bool = False) -> None:
    """Raises if `value` is not greater than 0, or is infinite without `allow_inf`."""
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
    """Raises unless `value` is a single real number; NaN and infinities are accepted.

    Traced numbers are accepted. For arrays the dtype decides. Strings are refused,
    although `float` accepts them.
    """
    shape = getattr(value, "shape", ())
    if shape != ():
        raise TypeError(
            f"`{name}` must be a single number, got an array of shape {tuple(shape)}. "
            "Reduce it to one number first, for example by its mean."
        )
    dtype = getattr(value, "dtype", None)
    # Dtypes of JAX keys and of torch tensors are not `np.dtype`.
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


def step_count(name: str, value: Any, *, minimum: int = 0) -> int:
    """Returns `value` as an int; raises unless it is a number of steps."""
    return whole_number(name, value, minimum=minimum, unit=" of steps")


def whole_number(
    name: str, value: Any, *, minimum: int, maximum: int = 2**31 - 1, unit: str = ""
) -> int:
    """Returns a whole `value` as an int; raises unless it is within the limits.

    A float without a fractional part, such as 1e6, is accepted.
    """
    is_real = isinstance(value, Real) and not isinstance(value, bool)
    if not is_real or not (isinstance(value, Integral) or float(value).is_integer()):
        raise TypeError(f"`{name}` must be a whole number{unit}, got {value!r}.")
    if not minimum <= value <= maximum:
        limits = {2**31 - 1: "2^31 - 1", 2**32 - 1: "2^32 - 1"}
        limit = limits.get(maximum, f"{maximum:,}")
        raise ValueError(f"`{name}` must be from {minimum} to {limit}, got {value!r}.")
    return int(value)


def seed(name: str, value: Any) -> int:
    """Returns `value` as an int; raises unless it is whole, from 0 to 2^32 - 1.

    The upper limit is that of `numpy.random.seed`, which Transformers' `set_seed`
    calls.
    """
    return whole_number(name, value, minimum=0, maximum=2**32 - 1)


def pair(name: str, value: Any) -> None:
    """Raises unless `value` is a tuple or list of length 2."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(f"`{name}` must be a pair of numbers, got {value!r}.")


def one_of(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raises unless `value` is one of `choices`; the message suggests the nearest."""
    choices = list(choices)
    if value in choices:
        return
    listed = ", ".join(repr(choice) for choice in choices)
    raise ValueError(
        f"`{name}` must be one of {listed}, got {value!r}.{suggest(value, choices)}"
    )


def suggest(value: Any, choices: Iterable[str], shown: str = "{!r}") -> str:
    """Returns " Did you mean ...?" with the most similar choice; "" if none is similar.

    `shown` is the format of the choice.
    """
    closest = difflib.get_close_matches(str(value), list(choices), n=1)
    return f" Did you mean {shown.format(closest[0])}?" if closest else ""


def version(name: str, value: Any) -> tuple[int, int]:
    """Returns the major and minor number of a version such as "4.46.3"."""
    found = re.match(r"(\d+)\.(\d+)(?![\d])", value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f"`{name}` must be a version such as '4.46.3', got {value!r}.")
    return int(found.group(1)), int(found.group(2))


def pluralize(number: int, noun: str) -> str:
    """Returns a number with its noun, such as "1 step" or "2,000 steps"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
