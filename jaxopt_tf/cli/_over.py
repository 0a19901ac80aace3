"""`--over learning_rate=1e-4,1e-3`: fields of a recipe, and what to try for each."""

import json
from collections.abc import Sequence
from typing import Any

from .. import _checks
from ..recipes import Recipe
from ..tuning import Between
from ._flags import Flag, flags_of, read

_EXAMPLE = "Write --over learning_rate=1e-4,1e-3 weight_decay=0,0.1, say."


def read_over(words: Sequence[str]) -> dict[str, list[Any] | Between]:
    """What `tuning.sweep` takes as `over`.

    A word is `field=value,value,...`, or `field=low:high` for a range on a scale of
    logarithms and `field=low:high:linear` for an even one. Values of a field that takes
    JSON are JSON, with commas between them.

    Args:
        words: one for each field.

    Raises:
        ValueError, TypeError: if there are none, a recipe has no such field, one is
            there twice, a value cannot be read, or bounds are the wrong way round.
    """
    if not words:
        raise ValueError(
            f"`over` must name at least one field and its values, got none. {_EXAMPLE}"
        )
    flags = flags_of(Recipe, {})
    over: dict[str, list[Any] | Between] = {}
    for word in words:
        name, equals, values = word.partition("=")
        name = name.replace("-", "_")
        if not equals:
            raise ValueError(f"`over` must be field=values, got {word!r}. {_EXAMPLE}")
        if name not in flags:
            raise ValueError(
                f"`over` must name fields of a recipe, got {name!r}."
                + _checks.nearest(name, flags)
            )
        if name in over:
            raise ValueError(
                f"`over` must name a field once, but has {name!r} twice. Join the "
                "values by commas."
            )
        try:
            over[name] = _values(flags[name], values)
        except (TypeError, ValueError) as error:
            raise type(error)(f"`over` with {word!r}: {error}") from error
    return over


def _values(flag: Flag, text: str) -> list[Any] | Between:
    if flag.kind.startswith("JSON"):
        return _json_values(flag, text)
    if flag.kind in ("INT", "NUMBER") and ":" in text:
        bounds = text.split(":")
        low, high = (read(flag, bound) for bound in bounds[:2])
        return Between(low, high, ":".join(bounds[2:]) or "log")
    return [read(flag, value) for value in text.split(",")] if text else []


def _json_values(flag: Flag, text: str) -> list[Any]:
    try:
        return list(json.loads(f"[{text}]"))
    except json.JSONDecodeError as error:
        raise TypeError(
            f"`{flag.name}` must be JSON, got {text!r}: {error.msg}. Write its values "
            'as {"power": 1},{"power": 2}, in quotes.'
        ) from error
