"""Decay groups of a torch file: their parameters by rule, and a recipe against them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..optimizers import (
    TRAINER_DECAY_RULES,
    LayerNorms,
    decay_mask,
)
from ..recipes import Recipe
from ._param_names import ParamNames

DecayRule = str | Sequence[str]
_Groups = Sequence[Sequence[str]]
TODAYS_RULE = "transformers_v5"
_SHOWN = 3  # names in a message


class DecayGroupsError(ValueError):
    """A recipe decays other parameters than the file of its run.

    Attributes:
        difference: the sentence without a cure.
    """

    def __init__(self, difference: str, cure: str):
        """Joins both sentences."""
        super().__init__(f"{difference} {cure}")
        self.difference = difference


def groups_by_rule(rule: DecayRule, names: ParamNames) -> _Groups | None:
    """Returns the names in the two groups that a rule makes; None without an order.

    A rule that is none of Trainer's names its leaves by patterns, or is of a run that
    began here and continues with today's Trainer.
    """
    if isinstance(rule, str):
        known = rule if rule in TRAINER_DECAY_RULES else TODAYS_RULE
        return names.model.groups_by_rule(known)
    if not names.model.is_ordered:
        return None
    decayed = {name for name, decays in _decayed_here(rule, names) if decays}
    trainable = [p.name for p in names.model.parameters if p.is_trainable]
    return [
        [name for name in trainable if name in decayed],
        [name for name in trainable if name not in decayed],
    ]


def groups_of_file(
    saved: Sequence[Mapping[str, Any]],
    entries: Mapping[Any, Mapping[str, Any]],
    names: ParamNames,
    rule: DecayRule,
) -> _Groups | None:
    """Returns the names in the groups of a file that has none.

    The groups are those of `rule`, if numbers and shapes of parameters fit; else those
    of the one rule of Trainer that fits. Its version is not always known, and its rule
    decides the order in which torch was given the parameters.

    Raises:
        ValueError: if several rules fit that order the parameters otherwise.
    """
    first = groups_by_rule(rule, names)
    if first is None or _fits(saved, entries, names, first):
        return first
    fitting: dict[tuple[tuple[str, ...], ...], str] = {}
    for known in TRAINER_DECAY_RULES:
        groups = names.model.groups_by_rule(known)
        if groups is not None and _fits(saved, entries, names, groups):
            fitting.setdefault(groups, known)
    if len(fitting) > 1:
        raise ValueError(
            "`state_dict` must be of a version of Transformers that is known: its "
            f"groups are those of {' or '.join(map(repr, fitting.values()))}, in which "
            "parameters have other places. Pass the `decay_rule` of the version, or "
            "the names of each group as `groups`."
        )
    return next(iter(fitting), first)


def check_decay(
    theirs: Mapping[str, bool], names: ParamNames, recipe: Recipe, file: str
) -> None:
    """Raises unless the recipe decays the parameters that the file's groups decay.

    Args:
        theirs: by torch name, whether the parameter's group is decayed.
        names: leaf of each torch parameter.
        recipe: numbers of the run that continues.
        file: name of the file, for errors.

    Raises:
        DecayGroupsError: naming the parameters and the side that decays them, and a
            rule that fits the file.
    """
    if recipe.weight_decay == 0 and not any(theirs.values()):
        return
    differing = _differing(recipe.decay_rule, names, theirs)
    if not differing:
        return
    shown = recipe.decay_rule
    if not isinstance(shown, str):
        shown = f"{len(shown)} patterns"
    sides = [
        f"{len(found)} are decayed {side}, {_listed(found)}"
        for side, found in (
            ("here and not in the file", [n for n, ours in differing if ours]),
            ("in the file and not here", [n for n, ours in differing if not ours]),
        )
        if found
    ]
    raise DecayGroupsError(
        f"`recipe` must decay the parameters that the groups of {file} decay, got the "
        f"`decay_rule` {shown!r}, by which {len({n for n, _ in differing})} of "
        f"{len(theirs)} differ: {'; '.join(sides)}.",
        _cure(names, theirs),
    )


def decay_rule_of_file(
    theirs: Mapping[str, bool], names: ParamNames
) -> str | tuple[str, ...]:
    """Returns the `decay_rule` by which a recipe decays what the file's groups decay.

    Raises:
        ValueError: if a leaf is made of parameters that are decayed in part.
    """
    if not _differing("default", names, theirs, layer_norms={}):
        return "default"
    by_leaf: dict[str, set[bool]] = {piece.leaf: set() for piece in names.pieces}
    for piece in names.pieces:
        if piece.torch_name in theirs:
            by_leaf[piece.leaf].add(theirs[piece.torch_name])
    mixed = [leaf for leaf, found in by_leaf.items() if len(found) > 1]
    if mixed:
        raise ValueError(
            "`names` must have leaves that the file decays as a whole, but "
            f"{len(mixed)} are made of parameters that it decays and of others, "
            f"{mixed[0]!r} the first. Split the leaf, or its stack, into one per group."
        )
    # A parameter that torch froze has no place in a group, and is left as it is.
    spared = [leaf for leaf, found in by_leaf.items() if found != {True}]
    return tuple(f"^{re.escape(leaf)}$" for leaf in spared) or "all"


def _cure(names: ParamNames, theirs: Mapping[str, bool]) -> str:
    for rule in (*TRAINER_DECAY_RULES, "default", "all", "examples"):
        if not _differing(rule, names, theirs):
            return (
                f"The file's groups are those of {rule!r}: take "
                f"`dataclasses.replace(recipe, decay_rule={rule!r})`, and build the "
                "optimizer with it and with `layer_norms=names.layer_norms`."
            )
    return (
        "Take the file's groups, `dataclasses.replace(recipe, decay_rule="
        "decay_rule_from_checkpoint(folder, names))`, and build the optimizer with it; "
        "or take the recipe of the run."
    )


def _decayed_here(
    rule: DecayRule, names: ParamNames, layer_norms: LayerNorms | None = None
) -> list[tuple[str, bool]]:
    """Torch names of all pieces, and whether their leaf is decayed."""
    norms = names.layer_norms if layer_norms is None else layer_norms
    leaves = {piece.leaf: np.float32(0) for piece in names.pieces}
    mask = decay_mask(leaves, rule=rule, layer_norms=norms)
    return [(piece.torch_name, mask[piece.leaf]) for piece in names.pieces]


def _differing(
    rule: DecayRule,
    names: ParamNames,
    theirs: Mapping[str, bool],
    layer_norms: LayerNorms | None = None,
) -> list[tuple[str, bool]]:
    """Names that are decayed on one side only, each once, and whether it is ours."""
    pairs = dict.fromkeys(_decayed_here(rule, names, layer_norms))
    return [(n, ours) for n, ours in pairs if n in theirs and theirs[n] != ours]


def _fits(
    saved: Sequence[Mapping[str, Any]],
    entries: Mapping[Any, Mapping[str, Any]],
    names: ParamNames,
    groups: _Groups,
) -> bool:
    """Whether groups have the numbers and the shapes of parameters of the file."""
    if [len(group["params"]) for group in saved] != [len(group) for group in groups]:
        return False
    shapes = {p.name: tuple(p.shape) for p in names.model.parameters}
    numbered = [
        (number, name)
        for group, in_group in zip(saved, groups, strict=True)
        for number, name in zip(group["params"], in_group, strict=True)
    ]
    return all(
        _shape_of(entries[number]) in (None, shapes[name])
        for number, name in numbered
        if number in entries
    )


def _shape_of(entry: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The shape of the parameter, as far as an entry of the optimizer shows it."""
    for key in ("exp_avg_sq", "exp_avg"):
        if hasattr(entry.get(key), "shape"):
            return tuple(entry[key].shape)
    if hasattr(entry.get("exp_avg_sq_row"), "shape"):
        row, col = entry["exp_avg_sq_row"].shape, entry["exp_avg_sq_col"].shape
        return (*row, col[-1])
    return None


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN]))
    return f"{shown}, ..." if len(names) > _SHOWN else shown
