"""Values for the leaves whose names match a pattern."""

import difflib
import re
from collections.abc import Mapping
from typing import Any

from .._typing import PyTree
from . import _tree


def matched_values(
    argument: str, patterns: Any, kind: type, kind_name: str, params: PyTree
) -> list[Any]:
    """For each leaf of `params` the value of the patterns that match its whole name.

    None where none does. Errors speak of `argument`.

    Args:
        argument: the name under which the caller was given `patterns`.
        patterns: a mapping from regular expressions to values.
        kind: what the values must be.
        kind_name: as which the user knows it.
        params: a tree; of a part of one a pattern may be meant for the rest.

    Raises:
        TypeError: if `patterns` is not a mapping of strings to `kind`.
        ValueError: if a pattern is no regular expression or matches no leaf, or if two
            patterns give a leaf different values.
    """
    compiled = _compiled(argument, patterns, kind, kind_name)
    names = _tree.leaf_names(params)
    if not _tree.is_part(params):
        for pattern in compiled:
            if not any(pattern.fullmatch(name) for name in names):
                near = difflib.get_close_matches(
                    pattern.pattern, names, n=1, cutoff=0.0
                )
                hint = f" The nearest leaf is {near[0]!r}." if near else ""
                raise ValueError(
                    f"`{argument}` must match the whole name of a leaf with every "
                    f"pattern, got {pattern.pattern!r}, which matches none.{hint}"
                )
    return [_value(argument, compiled, name) for name in names]


def _value(argument: str, compiled: dict[re.Pattern[str], Any], name: str) -> Any:
    found = {p.pattern: value for p, value in compiled.items() if p.fullmatch(name)}
    if len(set(found.values())) > 1:
        raise ValueError(
            f"`{argument}` must give {name!r} one {argument.removesuffix('s')}, got "
            f"different ones from the patterns {sorted(found)}. Make them exclude each "
            "other."
        )
    return next(iter(found.values()), None)


def _compiled(
    argument: str, patterns: Any, kind: type, kind_name: str
) -> dict[re.Pattern[str], Any]:
    if not isinstance(patterns, Mapping):
        raise TypeError(
            f"`{argument}` must be a mapping from a pattern for leaf names to a "
            f"{kind_name}, got {patterns!r}."
        )
    compiled = {}
    for pattern, value in patterns.items():
        if not isinstance(pattern, str) or not isinstance(value, kind):
            raise TypeError(
                f"`{argument}` must map strings to {kind_name}, got "
                f"{pattern!r}: {value!r}."
            )
        try:
            compiled[re.compile(pattern)] = value
        except re.error as error:
            raise ValueError(
                f"`{argument}` must have regular expressions for keys, got "
                f"{pattern!r}: {error}."
            ) from error
    return compiled
