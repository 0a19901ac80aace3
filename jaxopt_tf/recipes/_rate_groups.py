"""Parameters that learn at another rate than the rest."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax

from .. import _checks, _pytrees
from .._typing import PyTree

# How `get_learning_rate` calls the parameters of no group.
REST = "rest"


@dataclass(frozen=True, kw_only=True)
class RateGroup:
    """Parameters by name, and the rate at which they learn.

    What is given replaces the recipe's own for these parameters; the rate that comes of
    it is multiplied by `factor`.

    Attributes:
        pattern: a regular expression, to be found in a leaf's dotted name.
        factor: what the schedule's rate is multiplied by; at least 0.
        learning_rate: the group's highest rate; None for the recipe's.
        lr_scheduler_type: the group's schedule; None for the recipe's.
        lr_scheduler_kwargs: its further arguments, kept as sorted pairs; None for the
            recipe's.
        warmup_steps: updates or their share during which it climbs; None for the
            recipe's.

    Raises:
        ValueError, TypeError: if the pattern is none, or the factor is out of range.
            All else is checked by the `Recipe` that has the group.
    """

    pattern: str
    factor: float = 1.0
    learning_rate: float | None = None
    lr_scheduler_type: str | None = None
    lr_scheduler_kwargs: Mapping[str, Any] | tuple[tuple[str, Any], ...] | None = None
    warmup_steps: int | float | None = None

    def __post_init__(self) -> None:
        """Checks the pattern and the factor."""
        if not isinstance(self.pattern, str) or not self.pattern:
            raise TypeError(
                "`pattern` of a rate group must be a regular expression, got "
                f"{self.pattern!r}. Name the parameters that it is for."
            )
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(
                "`pattern` of a rate group must be a regular expression, got "
                f"{self.pattern!r}: {error}. Escape what is meant to the letter."
            ) from error
        _checks.non_negative("factor", self.factor)
        if self.lr_scheduler_kwargs is not None:
            pairs = sorted_pairs(self.lr_scheduler_kwargs)
            object.__setattr__(self, "lr_scheduler_kwargs", pairs)

    @property
    def own(self) -> dict[str, Any]:
        """What replaces the recipe's own, by the recipe's names."""
        names = [f.name for f in fields(self) if f.name not in ("pattern", "factor")]
        return {n: getattr(self, n) for n in names if getattr(self, n) is not None}


def layer_wise_decay(factor: float, patterns: Sequence[str]) -> tuple[RateGroup, ...]:
    """Groups whose rates shrink from the output to the input, by a factor per layer.

        rate of patterns[i] = rate * factor^(len(patterns) - i)

    What no pattern is found in, the head, has the rate itself.

    Args:
        factor: per layer; greater than 0, 1 for no difference.
        patterns: of the layers' names in the order of the forward pass: embeddings
            first, `[r"wte|wpe", r"\\.h\\.0\\.", r"\\.h\\.1\\.", ...]`.

    Returns:
        Groups for `Recipe(rate_groups=...)`.

    Raises:
        ValueError, TypeError: if the factor is out of range or a pattern is none.

    Source: Clark et al., "ELECTRA", 2020, arXiv 2003.10555, table 7: 0.8 for base.
    """
    _checks.positive("factor", factor)
    if isinstance(patterns, str):
        raise TypeError(
            f"`patterns` must be a list of regular expressions, got {patterns!r}."
        )
    depths = range(len(patterns), 0, -1)
    return tuple(
        RateGroup(pattern=pattern, factor=factor**depth)
        for pattern, depth in zip(patterns, depths, strict=True)
    )


def read_rate_groups(given: Any) -> tuple[RateGroup, ...]:
    """Groups as such, from groups or from mappings of their fields.

    Raises:
        TypeError: if they are something else.
        ValueError: if two have one pattern, or one is as the rest is called.
    """
    is_list = isinstance(given, Sequence) and not isinstance(given, str)
    groups = []
    for group in given if is_list else [given]:
        if isinstance(group, Mapping):
            group = _from_fields(group)
        if not is_list or not isinstance(group, RateGroup):
            raise TypeError(
                "`rate_groups` must be a list of `RateGroup` or of objects with "
                "`pattern` and `factor`, `learning_rate`, `lr_scheduler_type`, "
                f"`lr_scheduler_kwargs` or `warmup_steps`, got {given!r}."
            )
        groups.append(group)
    patterns = [group.pattern for group in groups]
    for pattern in patterns:
        if patterns.count(pattern) > 1 or pattern == REST:
            raise ValueError(
                "`rate_groups` must have a pattern of its own for each group, and none "
                f"that is {REST!r}, got {patterns!r}."
            )
    return tuple(groups)


def _from_fields(given: Mapping[str, Any]) -> RateGroup:
    known = [field.name for field in fields(RateGroup)]
    for name in given:
        if name not in known:
            raise TypeError(
                f"`rate_groups` must hold groups of {', '.join(known)}, got {name!r}."
                + _checks.nearest(name, known)
            )
    if "pattern" not in given:
        raise TypeError(
            f"`rate_groups` must have a `pattern` in each group, got {dict(given)!r}. "
            "Name the parameters that it is for."
        )
    return RateGroup(**given)


def group_labels(groups: Sequence[RateGroup]) -> Callable[[PyTree], PyTree]:
    """A function from parameters to the pattern of each leaf's group, or `REST`.

    Of several patterns the first counts. The function raises a ValueError where a
    pattern is left without any leaf.
    """

    def label(name: str) -> str:
        found = (g.pattern for g in groups if re.search(g.pattern, name))
        return next(found, REST)

    def labels(params: PyTree) -> PyTree:
        names = _pytrees.leaf_names(params)
        used = {label(name) for name in names}
        for group in groups:
            if group.pattern not in used and names:
                raise ValueError(
                    "`rate_groups` must each have a parameter of their own, but "
                    f"{group.pattern!r} is the first to match for none of the "
                    f"{len(names)} names, such as {names[0]!r}. Correct the pattern, "
                    "or put it in front of the one that takes its parameters."
                )
        structure: Any = jax.tree.structure(params)
        return structure.unflatten([label(name) for name in names])

    return labels


def sorted_pairs(kwargs: Any) -> tuple[tuple[str, Any], ...]:
    """A mapping as pairs, sorted by name, so that what holds it is hashable."""
    try:
        pairs = tuple(sorted(dict(kwargs or ()).items()))
        hash(pairs)
    except (TypeError, ValueError) as error:
        raise TypeError(
            "`lr_scheduler_kwargs` must be a mapping from names to numbers or strings, "
            f"got {kwargs!r}."
        ) from error
    return pairs
