"""Groups of parameters that learn at another rate than the rest."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax

from .. import _checks, _pytrees
from .._typing import PyTree

# Label of the parameters of no group, as in `get_learning_rate`.
REST = "rest"


@dataclass(frozen=True, kw_only=True)
class RateGroup:
    """Parameters by name, and the rate at which they learn.

    Fields that are not None replace those of the recipe for these parameters; the
    resulting rate is multiplied by `factor`.

    Attributes:
        pattern: a regular expression, to be found in a leaf's dotted name.
        factor: multiplies the schedule's rate; at least 0.
        learning_rate: the group's highest rate; None for the recipe's.
        lr_scheduler_type: the group's schedule; None for the recipe's.
        lr_scheduler_kwargs: its further arguments, kept as sorted pairs; None for the
            recipe's.
        warmup_steps: updates or their share during which it climbs; None for the
            recipe's.

    Raises:
        ValueError, TypeError: if the pattern is no regular expression, or the factor is
            out of range. The `Recipe` that has the group checks all else.
    """

    pattern: str
    factor: float = 1.0
    learning_rate: float | None = None
    lr_scheduler_type: str | None = None
    lr_scheduler_kwargs: Mapping[str, Any] | tuple[tuple[str, Any], ...] | None = None
    warmup_steps: int | float | None = None

    def __post_init__(self) -> None:
        """Checks the pattern and the factor."""
        required = (
            "`pattern` of a rate group must be a regular expression, got "
            f"{self.pattern!r}"
        )
        if not isinstance(self.pattern, str) or not self.pattern:
            raise TypeError(f"{required}. Name the parameters that it is for.")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(
                f"{required}: {error}. Escape what is meant to the letter."
            ) from error
        _checks.non_negative("factor", self.factor)
        if self.lr_scheduler_kwargs is not None:
            pairs = sorted_pairs(self.lr_scheduler_kwargs)
            object.__setattr__(self, "lr_scheduler_kwargs", pairs)

    @property
    def own(self) -> dict[str, Any]:
        """Values that replace the recipe's, by the names of its fields."""
        return {
            name: value
            for name, value in vars(self).items()
            if name not in ("pattern", "factor") and value is not None
        }


def layer_wise_decay(factor: float, patterns: Sequence[str]) -> tuple[RateGroup, ...]:
    """Returns groups whose rates shrink from output to input, by a factor per layer.

        rate of patterns[i] = rate * factor^(len(patterns) - i)

    Parameters without a match, such as the head, have the rate itself.

    Args:
        factor: per layer; greater than 0, 1 for no difference.
        patterns: regular expressions for the layers' names in the order of the forward
            pass: embeddings first, `[r"wte|wpe", r"\\.h\\.0\\.", r"\\.h\\.1\\.", ...]`.

    Returns:
        Groups for `Recipe(rate_groups=...)`.

    Raises:
        ValueError, TypeError: if the factor or a pattern is not valid.

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
    """Returns groups, from a list of groups or of mappings of their fields.

    Raises:
        TypeError: if they are something else.
        ValueError: if two have one pattern, or one is the label of the rest.
    """
    is_list = isinstance(given, Sequence) and not isinstance(given, str)
    groups = [
        _from_fields(group) if isinstance(group, Mapping) else group
        for group in (given if is_list else [given])
    ]
    if not is_list or not all(isinstance(group, RateGroup) for group in groups):
        raise TypeError(
            "`rate_groups` must be a list of `RateGroup` or of objects with "
            "`pattern` and `factor`, `learning_rate`, `lr_scheduler_type`, "
            f"`lr_scheduler_kwargs` or `warmup_steps`, got {given!r}."
        )
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
    unknown = [name for name in given if name not in known]
    if unknown or "pattern" not in given:
        raise TypeError(
            "`rate_groups` must have a `pattern` in each group, and no fields but "
            f"{', '.join(known)}, got {dict(given)!r}."
            + (_checks.nearest(unknown[0], known) if unknown else "")
        )
    return RateGroup(**given)


def group_labels(groups: Sequence[RateGroup]) -> Callable[[PyTree], PyTree]:
    """Returns a function from parameters to each leaf's pattern, or `REST`.

    The first pattern with a match counts. The function raises a ValueError if a pattern
    is left without any leaf.
    """

    def labels(params: PyTree) -> PyTree:
        names = _pytrees.leaf_names(params)
        patterns = [group.pattern for group in groups]
        found = [
            next((pattern for pattern in patterns if re.search(pattern, name)), REST)
            for name in names
        ]
        unused = [pattern for pattern in patterns if pattern not in found]
        if unused and names:
            raise ValueError(
                "`rate_groups` must each have a parameter of their own, but "
                f"{unused[0]!r} is the first to match for none of the "
                f"{len(names)} names, such as {names[0]!r}. Correct the pattern, "
                "or put it in front of the one that takes its parameters."
            )
        structure: Any = jax.tree.structure(params)
        return structure.unflatten(found)

    return labels


def sorted_pairs(kwargs: Any) -> tuple[tuple[str, Any], ...]:
    """Returns a mapping as pairs, sorted by name, which are hashable."""
    try:
        pairs = tuple(sorted(dict(kwargs or ()).items()))
        hash(pairs)
    except (TypeError, ValueError) as error:
        raise TypeError(
            "`lr_scheduler_kwargs` must be a mapping from names to numbers or strings, "
            f"got {kwargs!r}."
        ) from error
    return pairs
