"""Parsing of `optim_args`, by the types of an optimizer's arguments."""

import re
from collections.abc import Mapping
from contextlib import suppress
from numbers import Real
from typing import Any

from .. import _checks
from ._optimizers import ALGORITHMS, Kind, Value

_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")


def read_optim_args(optim: str, given: Any) -> tuple[tuple[str, Value], ...]:
    """Returns the value of `optim_args` as pairs, sorted by name.

    Args:
        optim: the optimizer's name.
        given: a mapping, pairs, or Transformers' string "momentum=0.9,nesterov=true".
            Values are parsed by the type of the argument: "False" is False.

    Raises:
        ValueError: if the string is malformed, a name occurs twice, or the optimizer
            has no such argument.
        TypeError: if a value does not have the type of its argument.
    """
    if isinstance(given, str):
        given = optim_args_from_string(given)
    try:
        named = dict(given or ())
    except (TypeError, ValueError) as error:
        raise TypeError(
            "`optim_args` must be a mapping from names to values, or a string "
            f'"name=value,name=value", got {given!r}.'
        ) from error
    kinds = ALGORITHMS[optim].all_args if optim in ALGORITHMS else {}
    for name in named:
        if name == "weight_decay":
            raise ValueError(
                "`optim_args` must not contain `weight_decay`, got "
                f"{named[name]!r}. Set the field `weight_decay` of the recipe instead."
            )
        if name not in kinds:
            listed = ", ".join(map(repr, kinds)) or "none"
            raise ValueError(
                f"`optim_args` must contain only arguments of {optim!r}, which are "
                f"{listed}, got {name!r}.{_checks.suggest(name, kinds)}"
            )
    return tuple(sorted((n, _read(n, value, kinds[n])) for n, value in named.items()))


def read_trainer_optim_args(
    optim: str, given: str | Mapping[str, Any]
) -> tuple[tuple[str, Value], ...]:
    """Returns the result of `read_optim_args` for arguments of Trainer.

    Raises:
        ValueError: also for "False" that Trainer reads as True.

    Source: transformers 5.23 `trainer_optimizer.py`, `_get_stable_adamw`.
    """
    found = read_optim_args(optim, given)
    for name, value in found:
        if optim == "stable_adamw" and value is False:
            raise ValueError(
                f"`optim_args` {given!r}: Trainer reads `{name}` as True, because it "
                "calls `bool` on the string. Write True if the run should continue as "
                "it was, or remove it for the default."
            )
    return found


def rounds_well(optim: str, optim_args: Any) -> bool:
    """Returns whether bfloat16 parameters are not rounded to the nearest number."""
    args = dict(optim_args)
    if optim == "stable_adamw":
        return bool(args.get("kahan_sum", True))
    return bool(args.get("bf16_stochastic_round"))


def optim_args_from_string(given: str) -> dict[str, str]:
    """Returns the arguments of "name=value,name=value", as strings by name."""
    named: dict[str, str] = {}
    for item in filter(None, given.replace(" ", "").split(",")):
        if not re.fullmatch("[^=]+=[^=]+", item):
            raise ValueError(
                f'`optim_args` must be of the form "momentum=0.9,nesterov=true", got '
                f"{item!r} in {given!r}."
            )
        name, _, value = item.partition("=")
        if name in named:
            raise ValueError(
                f"`optim_args` must name each argument once, got {name!r} twice in "
                f"{given!r}. Remove one."
            )
        named[name] = value
    return named


def _read(name: str, value: Any, kind: Kind) -> Value:
    # `bool("False")` is True, so that strings are compared with a list of words.
    if kind is bool:
        required = "true or false"
        word = str(value).lower() if isinstance(value, bool | str) else None
        if word in _TRUE + _FALSE:
            return word in _TRUE
    elif isinstance(kind, tuple):
        required = " or ".join(map(repr, kind))
        if value in kind:
            return str(value)
    elif kind is str:
        required = "a string"
        if isinstance(value, str):
            return value
    else:
        required = "a whole number" if kind is int else "a number"
        if isinstance(value, Real | str) and not isinstance(value, bool):
            with suppress(ValueError):
                number = float(value)
                if kind is float:
                    return number
                if number.is_integer():
                    return int(number)
    raise TypeError(
        f"`optim_args` must have {required} for `{name}`, got {value!r}. Correct the "
        "value."
    )
