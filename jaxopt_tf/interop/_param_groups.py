"""Parameter groups of torch: parameters by decay rule, settings from a recipe."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import _checks
from ..optimizers import TRAINER_DECAY_RULES, LayerNorms, decay_mask
from ..recipes import METRIC_DRIVEN, Recipe
from ._group_settings import TORCHAO_ADAMW, group_settings, torchao_group
from ._param_names import ParamNames
from ._schedule_free import RUNNING

DecayRule = str | Sequence[str]
Groups = Sequence[Sequence[str]]
NEWEST_RULE = "transformers_v5"
_SHOWN = 3  # names that a message lists

# One setting per optimizer that all of its groups have: AdamW's `betas`, Adafactor's
# `clip_threshold`, StableAdamW's `beta1` and others. A file without it was written by
# another optimizer.
_NEEDED = {
    *("betas", "beta1", "clip_threshold", "warmup_steps", "silent_sgd_phase"),
    *("dampening", "lr_decay", "centered"),
}
# Settings that the schedule changes, or that do not affect the updates.
_NOT_COMPARED = {
    *("lr", "initial_lr", "foreach", "fused", "capturable", "differentiable"),
    *("triton", "gradient_release", "setup", "step"),
    *RUNNING,
}


# Tensors of an entry that do not have the shape of its parameter.
_OTHER_SHAPES = {"RMS", "step", "qmap1", "qmap2", "absmax1", "absmax2", "eps_sq"}


class DecayGroupsError(_checks.ArgumentError):
    """Error for a recipe that decays other parameters than the file of its run."""

    @property
    def difference(self) -> str:
        """The message without the remedy."""
        return self.problem


def param_groups_from_recipe(
    recipe: Recipe, learning_rate: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the settings of Trainer's two groups, decayed parameters first.

    Args:
        recipe: the recipe of the run, for an optimizer whose state is converted.
        learning_rate: learning rate of the next update.

    Raises:
        ValueError: if the recipe has another optimizer, or `rate_groups`, which Trainer
            does not support.

    Source: transformers 5.23 `trainer_optimizer.py`; torch 2.13 `optim/adamw.py`;
        bitsandbytes 0.50.2 `optim/adamw.py`.
    """
    if recipe.rate_groups:
        raise _checks.ArgumentError(
            "recipe",
            "`recipe` must have no `rate_groups`, got "
            f"{[group.pattern for group in recipe.rate_groups]}: Trainer does not "
            "support them.",
            "Write the state dict with `torch_from_opt_state`.",
        )
    settings = group_settings(recipe)
    settings |= {"lr": learning_rate, "weight_decay": 0.0}
    # torch's `LRScheduler` stores the base rate in the group; schedules that a metric
    # drives do not.
    if recipe.lr_scheduler_type not in METRIC_DRIVEN:
        settings["initial_lr"] = float(recipe.learning_rate)
    if recipe.optim in TORCHAO_ADAMW:
        settings = torchao_group(settings)
    return {**settings, "weight_decay": float(recipe.weight_decay)}, settings


def check_param_groups(
    param_groups: Sequence[Mapping[str, Any]], recipe: Recipe
) -> None:
    """Raises if groups have other settings than the recipe, and lists all differences.

    torch resumes with the settings of the file and ignores those of its arguments, so a
    recipe with other settings describes another run. Each of several groups may be
    decayed or not, in any order. If none is decayed, the first counts as Trainer's
    decayed group.
    """
    if any("correct_bias" in group for group in param_groups):
        raise ValueError(
            f"`recipe` must have the optimizer of the file, got {recipe.optim!r} for "
            "a file of transformers.AdamW (`adamw_hf`), which adds epsilon before the "
            "bias correction. Resume with `adamw_hf_v4` and `opt_state_from_torch`."
        )
    decayed, undecayed = param_groups_from_recipe(recipe, 0.0)
    # A file that a script wrote may have one group, or several in another order.
    expected = [decayed, undecayed][: len(param_groups)]
    if len(param_groups) > 2 or any(g.get("weight_decay") for g in param_groups[1:]):
        expected = [
            decayed if g.get("weight_decay") else undecayed for g in param_groups
        ]

    def plain(value: Any) -> Any:
        return tuple(value) if isinstance(value, list | tuple) else value

    unexpected = [
        f"`{key}` of group {number} is {plain(group.get(key))!r} and the recipe's "
        f"{plain(expected_group[key])!r}"
        for number, (group, expected_group) in enumerate(
            zip(param_groups, expected, strict=True)
        )
        for key in expected_group
        if key not in _NOT_COMPARED
        # None: compensated if the parameter has low precision.
        and not (key == "kahan_sum" and expected_group[key] is None)
        and (key in group or key in _NEEDED)
        and plain(group.get(key)) != plain(expected_group[key])
    ]
    if unexpected:
        raise _checks.ArgumentError(
            "recipe",
            f"`recipe` must have the settings of the file's groups, but "
            f"{'; '.join(unexpected)}.",
            "Use the recipe that the run was started with.",
        )


def resolve_groups(
    num_groups: int, names: ParamNames, groups: Groups | None, rule: DecayRule
) -> Groups:
    """Returns the names of the parameters of each group.

    Args:
        num_groups: number of groups.
        names: names of torch's parameters, with the leaf of each.
        groups: the result, if it is known; None for `named_parameters()` if there is
            one group, else for Trainer's two groups.
        rule: decay rule that makes Trainer's groups.

    Raises:
        ValueError: if the order of the parameters is unknown, or if the number of
            groups differs from `num_groups`.
    """
    if groups is None and not names.model.is_ordered:
        raise ValueError(
            "`groups` must be given, got None: neither the file nor `names` contains "
            "the order in which parameters were passed to torch. Pass the names of "
            "each group, or describe the model by its module or its config.json."
        )
    if groups is None:
        groups = _groups_by_rule(rule, names)
        # A script that passes `model.parameters()` to the optimizer has one group.
        if num_groups == 1:
            groups = [[p.name for p in names.model.parameters if p.is_trainable]]
    if len(groups) != num_groups:
        raise ValueError(
            f"`groups` must contain the names of {num_groups} groups, got "
            f"{len(groups)}."
        )
    return groups


def _groups_by_rule(rule: DecayRule, names: ParamNames) -> Groups:
    """Returns the names in the two groups that a rule makes of an ordered model.

    A rule may be a sequence of patterns for names of leaves. A string that is not a
    rule of Trainer belongs to a run that this package started, for which Trainer makes
    the groups of its newest rule.
    """
    if isinstance(rule, str):
        known = rule if rule in TRAINER_DECAY_RULES else NEWEST_RULE
        return names.model.groups_by_rule(known) or ()
    decayed = {name for name, decays in _decayed_by_rule(rule, names) if decays}
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
    """Returns the parameter names of each group of a file that contains no names.

    The order of the model's parameters must be known.
    The groups are those of `rule` if the numbers and shapes of parameters match, else
    those of the only rule of Trainer that matches. The version of Trainer is not always
    known, and its rule determines the order of the parameters.

    Raises:
        ValueError: if several rules match that order the parameters differently.
    """
    shapes = {p.name: tuple(p.shape) for p in names.model.parameters}
    lengths = [len(group["params"]) for group in saved]
    numbers = [number for group in saved for number in group["params"]]

    def fits(groups: Groups) -> bool:
        flattened = [name for group in groups for name in group]
        return lengths == [len(group) for group in groups] and all(
            not odd_shapes(entries.get(number, {}), shapes[name])
            for number, name in zip(numbers, flattened, strict=True)
        )

    # A wrong rule leads to other lengths or shapes, unless it exchanges parameters of
    # equal shape between the groups.
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
            "`state_dict` must belong to a known version of Transformers: its groups "
            f"match the rules {' and '.join(map(repr, fitting.values()))}, which order "
            "the parameters differently. Pass the `decay_rule` of the version, or the "
            "names of each group as `groups`."
        )
    return next(iter(fitting), first)


def check_decay(
    file_decays: Mapping[str, bool], names: ParamNames, recipe: Recipe, file: str
) -> None:
    """Raises unless the recipe decays the parameters that the file's groups decay.

    Args:
        file_decays: True for the parameters that the file decays, by torch name.
        names: names of torch's parameters, with the leaf of each.
        recipe: recipe of the run that resumes.
        file: name of the file, for messages.

    Raises:
        DecayGroupsError: if the decayed parameters differ. The message lists them and a
            rule that matches the file.
    """
    # Without weight decay the groups have no effect.
    if recipe.weight_decay == 0 and not any(file_decays.values()):
        return
    differing = _differing(recipe.decay_rule, names, file_decays)
    if not differing:
        return
    rule = recipe.decay_rule
    shown = repr(rule) if isinstance(rule, str) else f"{len(rule)} patterns"
    sides = []
    for is_ours, side in (
        (True, "by the recipe only"),
        (False, "by the file only"),
    ):
        found = [
            repr(name) for name, recipe_decays in differing if recipe_decays is is_ours
        ]
        if found:
            more = ["..."] if len(found) > _SHOWN else []
            listed = ", ".join([*found[:_SHOWN], *more])
            sides.append(f"{len(found)} are decayed {side}, {listed}")
    raise DecayGroupsError(
        "decay_rule",
        f"`recipe` must decay the parameters that the groups of {file} decay, got the "
        f"`decay_rule` {shown}, with which {len({n for n, _ in differing})} of "
        f"{len(file_decays)} differ: {'; '.join(sides)}.",
        _remedy(names, file_decays),
    )


def decay_rule_of_file(
    file_decays: Mapping[str, bool], names: ParamNames
) -> str | tuple[str, ...]:
    """Returns the `decay_rule` that decays the same parameters as the file's groups.

    Raises:
        ValueError: if a leaf contains both decayed and undecayed parameters.
    """
    if not _differing("default", names, file_decays, layer_norms={}):
        return "default"
    # A decay mask applies to whole leaves, so no rule fits a leaf with parameters of
    # both groups.
    by_leaf = {
        leaf: {file_decays[s.torch_name] for s in slices if s.torch_name in file_decays}
        for leaf, slices in names.by_leaf.items()
    }
    mixed = [leaf for leaf, decays in by_leaf.items() if len(decays) > 1]
    if mixed:
        raise ValueError(
            "`names` must have leaves that the file decays as a whole, but "
            f"{len(mixed)} contain decayed and undecayed parameters, such as "
            f"{mixed[0]!r}. Split the leaf, or its stack, into one for each group."
        )
    # A frozen parameter is in no group of torch. Its leaf is not decayed.
    undecayed = [leaf for leaf, decays in by_leaf.items() if decays != {True}]
    return tuple(f"^{re.escape(leaf)}$" for leaf in undecayed) or "all"


def _remedy(names: ParamNames, file_decays: Mapping[str, bool]) -> str:
    """Returns a remedy, with a named rule that decays the same parameters if any."""
    for rule in (*TRAINER_DECAY_RULES, "default", "all", "examples"):
        if not _differing(rule, names, file_decays):
            return (
                f"The file's groups are those of {rule!r}: use "
                f"`dataclasses.replace(recipe, decay_rule={rule!r})`, and build the "
                "optimizer with it and with `layer_norms=names.layer_norms`."
            )
    return (
        "Use the file's groups, `dataclasses.replace(recipe, decay_rule="
        "decay_rule_from_checkpoint(folder, names))`, and build the optimizer with it; "
        "or use the recipe of the run."
    )


def _decayed_by_rule(
    rule: DecayRule, names: ParamNames, layer_norms: LayerNorms | None = None
) -> list[tuple[str, bool]]:
    """Returns the torch names of all slices, each with True if its leaf is decayed."""
    norms = names.layer_norms if layer_norms is None else layer_norms
    # The mask depends on names and not on shapes, so scalars replace the leaves.
    leaves = {found.leaf: np.float32(0) for found in names.slices}
    mask = decay_mask(leaves, rule=rule, layer_norms=norms)
    return [(found.torch_name, mask[found.leaf]) for found in names.slices]


def _differing(
    rule: DecayRule,
    names: ParamNames,
    file_decays: Mapping[str, bool],
    layer_norms: LayerNorms | None = None,
) -> list[tuple[str, bool]]:
    """Returns the names that only one side decays, with True for the recipe's side."""
    # Leaves that share a torch tensor give equal pairs, which are listed once.
    pairs = dict.fromkeys(_decayed_by_rule(rule, names, layer_norms))
    return [
        (n, recipe_decays)
        for n, recipe_decays in pairs
        if n in file_decays and file_decays[n] != recipe_decays
    ]


def odd_shapes(
    entry: Mapping[str, Any], shape: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of an entry's tensors that do not match the parameter."""
    # Adafactor's row and column means lack the axis that they average.
    factored = {"exp_avg_sq_row": shape[:-1], "exp_avg_sq_col": shape[:-2] + shape[-1:]}
    # Two means of AdEMAMix are one array.
    if "state2" in entry and tuple(entry["state1"].shape) == (
        2,
        *entry["state2"].shape,
    ):
        factored["state1"] = (2, *shape)
    return {
        key: tuple(value.shape)
        for key, value in entry.items()
        if key not in _OTHER_SHAPES and hasattr(value, "shape")
        if tuple(value.shape) != factored.get(key, shape)
    }
