"""`optim_args`: an optimizer's further arguments, by their types."""

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

from .. import _checks

_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")

# What Transformers reads for each, and of which kind it is.
_KNOWN: dict[str, dict[str, type]] = {
    "sgd": {"momentum": float, "dampening": float, "nesterov": bool},
    "adagrad": {"lr_decay": float, "eps": float},
    "rmsprop": {"momentum": float, "alpha": float, "eps": float, "centered": bool},
}
# Values of `optim` that take `optim_args`.
TAKES_OPTIM_ARGS = tuple(_KNOWN)


def read_optim_args(optim: str, given: Any) -> tuple[tuple[str, float | bool], ...]:
    """The arguments as pairs, sorted by name; () where there are none.

    Args:
        optim: the optimizer's name.
        given: a mapping, pairs, or Transformers' string "momentum=0.9,nesterov=true".
            Strings are read by the kind that the argument has, so that "False" is
            false.

    Raises:
        ValueError: if the string is none of this form, a name is there twice, or the
            optimizer has no such argument.
        TypeError: if a value is of another kind than its argument.
    """
    named = _from_string(given) if isinstance(given, str) else _from_pairs(given)
    known = _KNOWN.get(optim, {})
    for name in named:
        if name == "weight_decay":
            raise ValueError(
                "`optim_args` must not hold `weight_decay`, got "
                f"{named[name]!r}: the recipe's own `weight_decay` decides. Set that."
            )
        if name not in known:
            listed = ", ".join(map(repr, known)) or "none"
            raise ValueError(
                f"`optim_args` must hold only arguments that {optim!r} takes, which "
                f"are {listed}, got {name!r}.{_checks.nearest(name, known)}"
            )
    read: dict[type, Callable[[str, Any], Any]] = {float: _number, bool: _truth}
    return tuple(sorted((name, read[known[name]](name, named[name])) for name in named))


def _from_string(given: str) -> dict[str, str]:
    named: dict[str, str] = {}
    for item in filter(None, given.replace(" ", "").split(",")):
        name, equals, value = item.partition("=")
        if not equals or not name or not value or "=" in value:
            raise ValueError(
                f'`optim_args` must be of the form "momentum=0.9,nesterov=true", got '
                f"{item!r} in {given!r}."
            )
        if name in named:
            raise ValueError(
                f"`optim_args` must name an argument once, got {name!r} twice in "
                f"{given!r}. Delete one."
            )
        named[name] = value
    return named


def _from_pairs(given: Any) -> Mapping[str, Any]:
    try:
        return dict(given or ())
    except (TypeError, ValueError) as error:
        raise TypeError(
            "`optim_args` must be a mapping from names to values, or a string "
            f'"name=value,name=value", got {given!r}.'
        ) from error


def _number(name: str, value: Any) -> float:
    is_number = isinstance(value, Real | str) and not isinstance(value, bool)
    try:
        return float(value) if is_number else _fail(name, "a number", value)
    except ValueError:
        return _fail(name, "a number", value)


def _truth(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = value.lower() if isinstance(value, str) else None
    if word not in _TRUE + _FALSE:
        _fail(name, "true or false", value)
    return word in _TRUE


def _fail(name: str, what: str, value: Any) -> Any:
    raise TypeError(
        f"`optim_args` must have {what} for `{name}`, got {value!r}. Write it as such."
    )
