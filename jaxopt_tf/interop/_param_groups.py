"""Parameter groups of torch: their parameters by rule, their settings by recipe."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import _checks
from ..optimizers import TRAINER_DECAY_RULES, LayerNorms, decay_mask
from ..recipes import METRIC_DRIVEN, Recipe
from ._optimizer_formats import ADAFACTOR_SETTINGS, ADAMW_SETTINGS
from ._param_names import ParamNames

DecayRule = str | Sequence[str]
Groups = Sequence[Sequence[str]]
TODAYS_RULE = "transformers_v5"
_SHOWN = 3  # names in a message

# Settings that torch takes from the file when it loads one, and that every group of
# AdamW, or every group of Adafactor, has.
_NEEDED = {"betas", "clip_threshold"}
# Settings that change with the schedule, or that do not change the updates.
_NOT_COMPARED = {
    *("lr", "initial_lr", "foreach", "fused", "capturable", "differentiable"),
}


class DecayGroupsError(_checks.ArgumentError):
    """Error of a recipe that decays other parameters than the file of its run."""

    @property
    def difference(self) -> str:
        """The sentence without a remedy."""
        return self.problem


def param_groups_from_recipe(
    recipe: Recipe, learning_rate: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the settings of Trainer's two groups: decayed, and not.

    Args:
        recipe: the numbers of the run; of AdamW with torch's numbers, or Adafactor.
        learning_rate: the rate of the next update.

    Raises:
        ValueError: if the recipe has another optimizer, or groups of rates, which
            Trainer does not have.

    Source: transformers 5.23 `trainer_optimizer.py`; torch 2.13 `optim/adamw.py`.
    """
    if recipe.rate_groups:
        raise _checks.ArgumentError(
            "recipe",
            "`recipe` must have no `rate_groups`, got "
            f"{[group.pattern for group in recipe.rate_groups]}: Trainer has none to "
            "resume.",
            "Write the state dict by `torch_from_opt_state`.",
        )
    settings: dict[str, Any]
    if recipe.optim.startswith("adamw_torch"):
        settings = {
            **ADAMW_SETTINGS,
            "betas": (float(recipe.adam_beta1), float(recipe.adam_beta2)),
            "eps": float(recipe.adam_epsilon),
            "fused": True if recipe.optim == "adamw_torch_fused" else None,
        }
    elif recipe.optim == "adafactor":
        settings = dict(ADAFACTOR_SETTINGS)
    else:
        raise ValueError(
            "`recipe` must have torch's AdamW or Adafactor for `optim`, got "
            f"{recipe.optim!r}, whose state is not carried over."
        )
    settings |= {"lr": learning_rate, "weight_decay": 0.0}
    # The base of the rate, which torch's schedules leave in the group.
    if recipe.lr_scheduler_type not in METRIC_DRIVEN:
        settings["initial_lr"] = float(recipe.learning_rate)
    return {**settings, "weight_decay": float(recipe.weight_decay)}, settings


def check_param_groups(
    param_groups: Sequence[Mapping[str, Any]], recipe: Recipe
) -> None:
    """Raises if groups have other settings than the recipe; lists all differences.

    torch continues with the numbers of the file, whatever it was started with, so a
    recipe with others is not that run. Each of several groups may be decayed or not,
    in any order; if none is, the first is taken for Trainer's decayed one.
    """
    if any("correct_bias" in group for group in param_groups):
        raise ValueError(
            f"`recipe` must have the optimizer of the file, got {recipe.optim!r} for "
            "one of transformers.AdamW (`adamw_hf`), which adds epsilon elsewhere. "
            "Continue it with `adamw_hf_v4` and `opt_state_from_torch`."
        )
    decayed, spared = param_groups_from_recipe(recipe, 0.0)
    # The file of a script may have one group, or several in another order.
    wanted = [decayed, spared][: len(param_groups)]
    if len(param_groups) > 2 or any(g.get("weight_decay") for g in param_groups[1:]):
        wanted = [decayed if g.get("weight_decay") else spared for g in param_groups]

    def plain(value: Any) -> Any:
        return tuple(value) if isinstance(value, list | tuple) else value

    odd = [
        f"`{key}` of group {number} is {plain(group.get(key))!r} and the recipe's "
        f"{plain(ours[key])!r}"
        for number, (group, ours) in enumerate(zip(param_groups, wanted, strict=True))
        for key in ours
        if key not in _NOT_COMPARED
        and (key in group or key in _NEEDED)
        and plain(group.get(key)) != plain(ours[key])
    ]
    if odd:
        raise _checks.ArgumentError(
            "recipe",
            f"`recipe` must have the numbers of the file's groups, but "
            f"{'; '.join(odd)}.",
            "Take the recipe that the run was begun with.",
        )


def resolve_groups(
    num_groups: int, names: ParamNames, groups: Groups | None, rule: DecayRule
) -> Groups:
    """Returns the names of each group: as given, Trainer's two by `rule`, or one.

    Raises:
        ValueError: if the order is not known, or if there are more groups or fewer.
    """
    if groups is None and not names.model.is_ordered:
        raise ValueError(
            "`groups` must be given, got None: neither the file nor `names` tells in "
            "which order torch was given the parameters. Pass the names of each group, "
            "or describe the model by its module or its config.json."
        )
    if groups is None:
        groups = _groups_by_rule(rule, names)
        # `named_parameters()`, from which a script makes one group.
        if num_groups == 1:
            groups = [[p.name for p in names.model.parameters if p.is_trainable]]
    if len(groups) != num_groups:
        raise ValueError(
            f"`groups` must name the parameters of {num_groups} groups, got "
            f"{len(groups)}."
        )
    return groups


def _groups_by_rule(rule: DecayRule, names: ParamNames) -> Groups:
    """Returns the names in the two groups that a rule makes of an ordered model.

    A rule that is none of Trainer's names its leaves by patterns, or belongs to a run
    that began here and continues with today's Trainer.
    """
    if isinstance(rule, str):
        known = rule if rule in TRAINER_DECAY_RULES else TODAYS_RULE
        return names.model.groups_by_rule(known) or ()
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
) -> Groups:
    """Returns the names in the groups of a file without names, of an ordered model.

    The groups are those of `rule`, if numbers and shapes of parameters fit; else those
    of the one rule of Trainer that fits. Its version is not always known, and its rule
    decides the order in which torch was given the parameters.

    Raises:
        ValueError: if several rules fit that order the parameters differently.
    """
    shapes = {p.name: tuple(p.shape) for p in names.model.parameters}
    lengths = [len(group["params"]) for group in saved]
    numbers = [number for group in saved for number in group["params"]]

    def fits(groups: Groups) -> bool:
        join = [name for group in groups for name in group]
        return lengths == [len(group) for group in groups] and all(
            not odd_shapes(entries.get(number, {}), shapes[name])
            for number, name in zip(numbers, join, strict=True)
        )

    # Shapes show a wrong rule, unless parameters of one shape changed their group.
    first = _groups_by_rule(rule, names)
    if fits(first):
        return first
    fitting: dict[Groups, str] = {}
    for known in TRAINER_DECAY_RULES:
        groups = names.model.groups_by_rule(known) or ()
        if fits(groups):
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
    # Without weight decay the groups make no difference.
    if recipe.weight_decay == 0 and not any(theirs.values()):
        return
    differing = _differing(recipe.decay_rule, names, theirs)
    if not differing:
        return
    rule = recipe.decay_rule
    shown = repr(rule) if isinstance(rule, str) else f"{len(rule)} patterns"
    sides = []
    for is_ours, side in (
        (True, "here and not in the file"),
        (False, "in the file and not here"),
    ):
        found = [repr(name) for name, ours in differing if ours is is_ours]
        if found:
            more = ["..."] if len(found) > _SHOWN else []
            listed = ", ".join([*found[:_SHOWN], *more])
            sides.append(f"{len(found)} are decayed {side}, {listed}")
    raise DecayGroupsError(
        "decay_rule",
        f"`recipe` must decay the parameters that the groups of {file} decay, got the "
        f"`decay_rule` {shown}, by which {len({n for n, _ in differing})} of "
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
    # A mask decays whole leaves: a leaf of parameters of both groups has no rule.
    by_leaf = {
        leaf: {theirs[s.torch_name] for s in slices if s.torch_name in theirs}
        for leaf, slices in names.by_leaf.items()
    }
    mixed = [leaf for leaf, decays in by_leaf.items() if len(decays) > 1]
    if mixed:
        raise ValueError(
            "`names` must have leaves that the file decays as a whole, but "
            f"{len(mixed)} are made of parameters that it decays and of others, "
            f"{mixed[0]!r} the first. Split the leaf, or its stack, into one per group."
        )
    # A parameter that torch froze has no place in a group, and is left unchanged.
    spared = [leaf for leaf, decays in by_leaf.items() if decays != {True}]
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
    """Returns the torch names of all slices, and whether their leaf is decayed."""
    norms = names.layer_norms if layer_norms is None else layer_norms
    leaves = {found.leaf: np.float32(0) for found in names.slices}
    mask = decay_mask(leaves, rule=rule, layer_norms=norms)
    return [(found.torch_name, mask[found.leaf]) for found in names.slices]


def _differing(
    rule: DecayRule,
    names: ParamNames,
    theirs: Mapping[str, bool],
    layer_norms: LayerNorms | None = None,
) -> list[tuple[str, bool]]:
    """Returns the names that one side alone decays, and whether that side is ours."""
    pairs = dict.fromkeys(_decayed_here(rule, names, layer_norms))
    return [(n, ours) for n, ours in pairs if n in theirs and theirs[n] != ours]


def odd_shapes(
    entry: Mapping[str, Any], shape: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of an entry's tensors that are not those of the parameter."""
    factored = {"exp_avg_sq_row": shape[:-1], "exp_avg_sq_col": shape[:-2] + shape[-1:]}
    return {
        key: tuple(value.shape)
        for key, value in entry.items()
        if key not in ("RMS", "step") and hasattr(value, "shape")
        if tuple(value.shape) != factored.get(key, shape)
    }
