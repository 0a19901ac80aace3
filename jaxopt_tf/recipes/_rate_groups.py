"""Rate groups: parameters with their own learning rate, schedule or optimizer."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax

from .. import _checks, _pytrees
from .._typing import PyTree
from ._optim_args import optim_args_from_string

# Label of the parameters that are in no group; a key of the dict that
# `get_learning_rate` returns.
DEFAULT_GROUP = "rest"


@dataclass(frozen=True, kw_only=True)
class ParamGroup:
    """Parameters, selected by name, with their own rate, schedule or optimizer.

    Fields that are not None replace those of the recipe for these parameters. The
    resulting rate is multiplied by `factor`.

    Attributes:
        pattern: a regular expression that is searched in the dotted name of a leaf.
        factor: factor of the schedule's rate; at least 0.
        learning_rate: peak rate of the group; None for that of the recipe.
        lr_scheduler_type: schedule of the group; None for that of the recipe.
        lr_scheduler_kwargs: further arguments of the schedule, stored as sorted pairs;
            None for those of the recipe.
        warmup_steps: number of warmup steps, or their fraction of all steps; None for
            that of the recipe.
        optim: name of the group's optimizer, as in `Recipe`; None for that of the
            recipe.
        optim_args: further arguments of the optimizer, stored as sorted pairs; None for
            those of the recipe; if the group has its own `optim`, None means no
            arguments.
        weight_decay: coefficient of weight decay; None for that of the recipe.
        adam_beta1: see `Recipe`; None for that of the recipe.
        adam_beta2: see `Recipe`; None for that of the recipe.
        adam_epsilon: see `Recipe`; None for that of the recipe.

    Raises:
        ValueError, TypeError: if the pattern is not a regular expression, or the factor
            is out of range. `Recipe` checks the other fields.
    """

    pattern: str
    factor: float = 1.0
    learning_rate: float | None = None
    lr_scheduler_type: str | None = None
    lr_scheduler_kwargs: Mapping[str, Any] | tuple[tuple[str, Any], ...] | None = None
    warmup_steps: int | float | None = None
    optim: str | None = None
    optim_args: str | Mapping[str, Any] | tuple[tuple[str, Any], ...] | None = None
    weight_decay: float | None = None
    adam_beta1: float | None = None
    adam_beta2: float | None = None
    adam_epsilon: float | None = None

    def __post_init__(self) -> None:
        """Checks the pattern and the factor."""
        required = (
            "`pattern` of a rate group must be a regular expression, got "
            f"{self.pattern!r}"
        )
        if not isinstance(self.pattern, str) or not self.pattern:
            raise TypeError(f"{required}. Pass a pattern for names of parameters.")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(
                f"{required}: {error}. Escape special characters that are literal."
            ) from error
        _checks.non_negative("factor", self.factor)
        if self.lr_scheduler_kwargs is not None:
            # Recipes and their groups are hashed as part of `compile_key`. Pairs are
            # hashable, but a dict is not.
            pairs = sorted_pairs(self.lr_scheduler_kwargs)
            object.__setattr__(self, "lr_scheduler_kwargs", pairs)
        args = self.optim_args
        if isinstance(args, str):
            args = optim_args_from_string(args)
        if args is not None or self.optim is not None:
            # With its own optimizer, a group must not inherit the recipe's arguments,
            # so None becomes an empty tuple.
            pairs = sorted_pairs(args, "optim_args")
            object.__setattr__(self, "optim_args", pairs)

    @property
    def overrides(self) -> dict[str, Any]:
        """Values that replace those of the recipe, by field name."""
        return {
            name: value
            for name, value in vars(self).items()
            if name not in ("pattern", "factor") and value is not None
        }


def layer_wise_decay(factor: float, patterns: Sequence[str]) -> tuple[ParamGroup, ...]:
    """Returns rate groups for layer-wise learning rate decay.

        rate of patterns[i] = rate * factor^(len(patterns) - i)

    Rates decrease from output to input. Parameters that match no pattern, such as the
    head, keep the unscaled rate.

    Args:
        factor: factor per layer; greater than 0, 1 for equal rates.
        patterns: regular expressions for the names of the layers in the order of the
            forward pass: `[r"wte|wpe", r"\\.h\\.0\\.", r"\\.h\\.1\\.", ...]`.

    Returns:
        Groups for `Recipe(rate_groups=...)`.

    Raises:
        ValueError, TypeError: if the factor or a pattern is not valid.

    Source: Clark et al., "ELECTRA", 2020, arXiv 2003.10555, whose base model uses a
        factor of 0.8 (table 7).
    """
    _checks.positive("factor", factor)
    if isinstance(patterns, str):
        raise TypeError(
            f"`patterns` must be a list of regular expressions, got {patterns!r}."
        )
    depths = range(len(patterns), 0, -1)
    return tuple(
        ParamGroup(pattern=pattern, factor=factor**depth)
        for pattern, depth in zip(patterns, depths, strict=True)
    )


def read_rate_groups(given: Any) -> tuple[ParamGroup, ...]:
    """Returns rate groups, given as a list of `ParamGroup` or of mappings.

    Raises:
        TypeError: if the argument has another type.
        ValueError: if two groups have equal patterns, or a pattern is "rest".
    """
    is_list = isinstance(given, Sequence) and not isinstance(given, str)
    groups = [
        _from_fields(group) if isinstance(group, Mapping) else group
        for group in (given if is_list else [given])
    ]
    if not is_list or not all(isinstance(group, ParamGroup) for group in groups):
        raise TypeError(
            "`rate_groups` must be a list of `ParamGroup` or of mappings with "
            "'pattern' and any other fields of `ParamGroup`, such as 'factor' or "
            f"'learning_rate', got {given!r}."
        )
    patterns = [group.pattern for group in groups]
    for pattern in patterns:
        if patterns.count(pattern) > 1 or pattern == DEFAULT_GROUP:
            raise ValueError(
                "`rate_groups` must have a different pattern for each group, and none "
                f"may be {DEFAULT_GROUP!r}, got {patterns!r}."
            )
    return tuple(groups)


def _from_fields(given: Mapping[str, Any]) -> ParamGroup:
    known = [field.name for field in fields(ParamGroup)]
    unknown = [name for name in given if name not in known]
    if unknown or "pattern" not in given:
        raise TypeError(
            "`rate_groups` must have a `pattern` in each group, and only the fields "
            f"{', '.join(known)}, got {dict(given)!r}."
            + (_checks.suggest(unknown[0], known) if unknown else "")
        )
    return ParamGroup(**given)


def group_labels(groups: Sequence[ParamGroup]) -> Callable[[PyTree], PyTree]:
    """Returns a function that maps parameters to labels for `optax.multi_transform`.

    The label of a leaf is the first pattern that is found in its name, or
    `DEFAULT_GROUP`. The function raises a ValueError if a pattern is the label of no
    leaf.
    """

    def labels(params: PyTree) -> PyTree:
        names = _pytrees.leaf_names(params)
        patterns = [group.pattern for group in groups]
        found = [
            next(
                (pattern for pattern in patterns if re.search(pattern, name)),
                DEFAULT_GROUP,
            )
            for name in names
        ]
        unused = [pattern for pattern in patterns if pattern not in found]
        # An empty tree has no names and needs no groups.
        if unused and names:
            raise ValueError(
                "`rate_groups` must each select a parameter, but the pattern "
                f"{unused[0]!r} matches none of the {len(names)} names, such as "
                f"{names[0]!r}, or only names that an earlier pattern matches. Correct "
                "the pattern, or move it before the earlier one."
            )
        structure: Any = jax.tree.structure(params)
        return structure.unflatten(found)

    return labels


def sorted_pairs(
    kwargs: Any, name: str = "lr_scheduler_kwargs"
) -> tuple[tuple[str, Any], ...]:
    """Returns a mapping as hashable pairs, sorted by name."""
    try:
        pairs = tuple(sorted(dict(kwargs or ()).items()))
        hash(pairs)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`{name}` must be a mapping from names to numbers or strings, got "
            f"{kwargs!r}."
        ) from error
    return pairs
