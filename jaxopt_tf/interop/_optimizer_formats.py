"""Formats of the state dicts of torch optimizers.

Formats of AdamW, Adafactor and schedulefree are read. Other formats are recognized by
their keys, so that an error can name the optimizer.
"""

import math
from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

from ..optimizers import AdafactorState, AdamWState, ScheduleFreeState
from ._schedule_free import RUNNING, check_train_mode

StateType = type[AdamWState] | type[AdafactorState] | type[ScheduleFreeState]


class _Format(NamedTuple):
    """Keys of a format that is read."""

    kind: StateType  # state of this package to which it is converted
    entries: tuple[frozenset[str], ...]  # keys of an entry of `state`, without `step`
    needed: Set[str]  # keys of every group
    optional: Set[str]  # keys that a group may have
    is_known_without_entries: bool = True  # False if its groups are not specific


def _key_set(keys: str) -> frozenset[str]:
    return frozenset(keys.split())


# Settings of a group that no recipe changes, with the values of torch 2.13's AdamW and
# of transformers 5.23's Adafactor as Trainer builds it.
ADAMW_SETTINGS = {
    **dict.fromkeys(("amsgrad", "maximize", "capturable", "differentiable"), False),
    **dict.fromkeys(("foreach", "fused")),
    "decoupled_weight_decay": True,
}
ADAFACTOR_SETTINGS = {
    "eps": (1e-30, 1e-3),
    "clip_threshold": 1.0,
    "decay_rate": -0.8,
    **dict.fromkeys(("scale_parameter", "relative_step", "warmup_init"), False),
    "beta1": None,
}
# bitsandbytes has one class for AdamW and AdEMAMix. These settings have an effect for
# AdEMAMix only.
BITSANDBYTES_SETTINGS = {"alpha": 0.0, "t_alpha": None, "t_beta3": None}
# Key of the dict that contains the arrays of an entry in bitsandbytes since 0.49.2.
BITSANDBYTES_NESTED = "__bnb_optimizer_quant_state__"
# Keys that every group may have. `initial_lr` is added by torch's schedules.
_LABELS = _key_set("params param_names initial_lr")
_MOMENTS = (_key_set("exp_avg exp_avg_sq"),)
_ADAM = _key_set("lr betas eps weight_decay")
_BITSANDBYTES_MOMENTS = tuple(
    _key_set(f"{nested} {arrays}")
    for nested in ("", BITSANDBYTES_NESTED)
    for arrays in ("state1 state2", "state1 state2 qmap1 qmap2 absmax1 absmax2")
)
_READABLE = (
    # Adam and AdamW of every version of torch. Apex counts updates in the group.
    _Format(
        AdamWState, _MOMENTS, _ADAM | {"amsgrad"}, ADAMW_SETTINGS.keys() | {"step"}
    ),
    # transformers.AdamW of Transformers 4.
    _Format(AdamWState, _MOMENTS, _ADAM | {"correct_bias"}, frozenset()),
    # FusedAdam of Apex and of DeepSpeed.
    _Format(
        AdamWState, _MOMENTS, _ADAM | {"bias_correction"}, _key_set("step amsgrad")
    ),
    # AdamW of bitsandbytes, with 32 or 8 bits; before version 0.44 its groups have no
    # settings of AdEMAMix.
    _Format(
        AdamWState,
        _BITSANDBYTES_MOMENTS,
        _ADAM | BITSANDBYTES_SETTINGS.keys(),
        frozenset(),
    ),
    _Format(AdamWState, _BITSANDBYTES_MOMENTS, _ADAM, frozenset(), False),
    # AdamW, RAdam and SGD of schedulefree since version 1.2. Earlier groups have no
    # `scheduled_lr`, and files without `train_mode` are refused by name.
    *(
        _Format(
            ScheduleFreeState,
            (_key_set(entries),),
            _key_set(f"lr weight_decay r weight_lr_power {keys}") | {*RUNNING[:3]},
            {*RUNNING, "foreach"},
        )
        for entries, keys in (
            ("z exp_avg_sq", "betas eps warmup_steps"),
            ("z exp_avg_sq", "betas eps silent_sgd_phase"),
            ("z", "momentum warmup_steps"),
        )
    ),
    # transformers.Adafactor. The first moment exists if `beta1` is set; the second one
    # is factored for tensors with two or more axes.
    _Format(
        AdafactorState,
        tuple(
            _key_set(f"{mean} {squares} RMS")
            for mean in ("", "exp_avg")
            for squares in ("exp_avg_sq", "exp_avg_sq_row exp_avg_sq_col")
        ),
        ADAFACTOR_SETTINGS.keys() | {"lr", "weight_decay"},
        frozenset(),
    ),
)
# Required values of settings that otherwise change the optimizer's formula.
_VALUES = {"amsgrad": False, "correct_bias": True, "bias_correction": True}

# Formats of other optimizers, taken from files that Trainer or the optimizer wrote:
# torch 2.13, transformers 5.23, bitsandbytes 0.50.2 (0.49.2 and later nest their state,
# earlier versions do not), torchao 0.18, torch-optimi 0.3.3, schedulefree 1.4.1,
# lomo-optim 0.1.1, grokadamw 0.1.2, galore-torch 1.0, apollo-torch 1.0.3.
# The first match counts, so more specific formats come first. Columns: name; keys that
# are all in entries of `state`, or keys that are all in one group; keys that are in no
# group.
_OTHER_FORMATS = (
    ("torch's AdamW with `amsgrad`", "max_exp_avg_sq", "", ""),
    ("GaLore", "", "update_proj_gap scale", "scale_type"),
    ("APOLLO", "scaled_grad", "update_proj_gap scale_type", ""),
    ("bitsandbytes AdamW with `percentile_clipping`", "gnorm_vec", "", ""),
    ("bitsandbytes AdamW with `max_unorm`", "unorm_vec", "", ""),
    ("bitsandbytes 8-bit AdamW without blocks", "new_max1 new_max2", "", ""),
    ("bitsandbytes 8-bit AdEMAMix", "qmap1 state2", "", ""),
    ("bitsandbytes 8-bit Lion or RMSprop", "qmap1", "", ""),
    ("bitsandbytes 32-bit AdEMAMix", "state1 state2", "", ""),
    ("bitsandbytes 32-bit Lion or RMSprop", "state1", "", ""),
    ("bitsandbytes AdEMAMix", BITSANDBYTES_NESTED, "t_alpha t_beta3", ""),
    ("stable_adamw (torch-optimi)", "eps_sq", "kahan_sum decouple_lr", ""),
    ("schedule_free_radam (schedulefree)", "", "train_mode silent_sgd_phase", ""),
    ("schedule_free_sgd (schedulefree)", "", "train_mode lr_max momentum", ""),
    ("schedule_free_adamw (schedulefree)", "z", "train_mode lr_max", ""),
    ("grokadamw", "", "alpha_init lamb", ""),
    ("AdaLomo", "", "clip_grad_value weight_decay", ""),
    ("LOMO", "", "clip_grad_value", ""),
    ("adamw_anyprecision", "compensation", "use_kahan_summation", ""),
    ("torch's NAdam", "mu_product", "momentum_decay", ""),
    ("torch's RAdam", "", "betas decoupled_weight_decay", "amsgrad"),
    ("torch's Adamax", "exp_inf", "", ""),
    ("torch's SparseAdam", "", "betas maximize", "weight_decay"),
    ("torch's Adafactor", "row_var", "beta2_decay", ""),
    ("torch's Muon", "", "ns_coefficients", ""),
    ("torch's SGD", "", "momentum dampening nesterov", ""),
    ("torch's Adagrad", "", "lr_decay initial_accumulator_value", ""),
    ("torch's RMSprop", "", "alpha centered", ""),
    ("torch's Adadelta", "acc_delta", "rho", ""),
    ("torch's ASGD", "eta ax", "lambd t0", ""),
    ("torch's Rprop", "prev step_size", "etas", ""),
    ("torch's LBFGS", "old_dirs", "history_size", ""),
    ("Apex's FusedLAMB", "", "grad_averaging max_grad_norm", ""),
    ("CAME", "exp_avg_res_row", "", ""),
    ("Adan", "exp_avg_diff", "", ""),
    ("AdaBelief", "exp_avg_var", "", ""),
    ("Sophia", "hessian", "", ""),
    ("SOAP", "GG Q", "", ""),
    ("Prodigy", "", "d d_coef", ""),
    ("torch's SGD or Muon", "momentum_buffer", "", ""),
)

# Keys at the top level, or in `state`, that only one framework writes.
_FRAMEWORKS = {
    "base_optimizer_state": "DeepSpeed's ZeRO",
    "zero_stage": "DeepSpeed's ZeRO",
    "fp32_flat_groups": "DeepSpeed's ZeRO",
    "single_partition_of_fp32_groups": "DeepSpeed's ZeRO",
    "optimizer_state_dict": "DeepSpeed",
    "shard_metadata": "FSDP's shards",
    "fp32_from_fp16_params": "Megatron",
    "optimizer_states": "Lightning",
}
_REMEDY = (
    "Save it with plain torch, or read only the parameters with `opt_state=None` and "
    "start with new moments."
)


def check_format(state_dict: Any) -> StateType:
    """Returns the type of state to which a state dict is converted.

    Raises:
        ValueError: if the keys of `state` and of `param_groups` are not exactly those
            of a format that is read (the message names the optimizer if it is known),
            or if a setting of a group is out of the range that torch accepts.
    """
    _check_structure(state_dict)
    groups: Sequence[Mapping[str, Any]] = state_dict["param_groups"]
    group_keys = [frozenset(map(str, group)) for group in groups]
    entry_keys = set(map(_entry_keys, state_dict["state"].values()))
    entry_keys.discard(frozenset())  # the entry of a parameter that was never updated
    # The keys must match exactly: an unknown key may belong to a variant of the
    # optimizer with another formula.
    for known in _READABLE:
        allowed = known.needed | known.optional | _LABELS
        if (
            all(known.needed <= keys <= allowed for keys in group_keys)
            and all(keys - {"step"} in known.entries for keys in entry_keys)
            and (entry_keys or known.is_known_without_entries)
            and not any(map(_has_three_betas, groups))
        ):
            _check_settings(groups)
            if known.kind is ScheduleFreeState:
                check_train_mode(groups)
            return known.kind
    raise _not_read(frozenset[str]().union(*entry_keys), group_keys)


def _has_three_betas(group: Mapping[str, Any]) -> bool:
    # AdEMAMix of bitsandbytes has the keys of its AdamW.
    betas = group.get("betas")
    return isinstance(betas, list | tuple) and len(betas) == 3


def _check_settings(groups: Sequence[Mapping[str, Any]]) -> None:
    """Raises if a setting of a group is out of range or not supported."""
    for number, group in enumerate(groups):
        for key, value in group.items():
            if key in ("params", "param_names"):
                continue
            if key in _VALUES and bool(value) != _VALUES[key]:
                raise ValueError(
                    f"`{key}` must be {_VALUES[key]} in every group, got {value!r} in "
                    f"group {number}: this variant is not supported. {_REMEDY}"
                )
            # torch checks ranges when AdamW is built, but not when a state dict is
            # loaded.
            minimum, end, limit = 0.0, math.inf, "finite and at least 0"
            if key == "decay_rate":
                minimum, limit = -math.inf, "finite"
            elif key == "lr_max":  # of schedulefree, before the first update
                minimum, limit = -1.0, "finite and at least -1"
            elif key == "betas":
                end, limit = 1.0, "from 0 to 1"
            values = value if isinstance(value, list | tuple) else [value]
            # The condition is negated, so that NaN fails it.
            if not all(minimum <= float(v) < end for v in values if _is_number(v)):
                raise ValueError(
                    f"`{key}` of group {number} must be {limit}, got {value!r}. "
                    "The file is damaged, or its run had diverged: use an earlier "
                    "checkpoint."
                )


def _is_number(value: Any) -> bool:
    if hasattr(value, "detach"):
        return bool(value.numel() == 1)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _error(requirement: str, problem: str, remedy: str = _REMEDY) -> ValueError:
    return ValueError(
        f"`state_dict` must {requirement}, got {problem} {remedy}".rstrip()
    )


def _check_structure(state_dict: Any) -> None:
    """Raises unless `state_dict` has `state` and groups of numbered parameters."""
    keys = _keys(state_dict)
    state = state_dict.get("state") if keys else None
    found = [key for key in [*keys, *_keys(state)] if key in _FRAMEWORKS]
    if found:
        description = (
            f"that of {_FRAMEWORKS[found[0]]}, which has the key {found[0]!r}."
        )
        raise _error("be a state dict of plain torch", description)
    needed = {"state", "param_groups"}
    if not needed <= set(keys):
        inner = [key for key in keys if needed <= set(_keys(state_dict[key]))]
        raise _error(
            "have `state` and `param_groups`, as torch's `optimizer.state_dict()` has",
            f"{type(state_dict).__name__} of {sorted(map(str, keys))[:5]}.",
            f"Pass its value of {inner[0]!r}." if inner else "",
        )
    groups = state_dict["param_groups"]
    is_list = isinstance(groups, list | tuple) and len(groups) > 0
    if not is_list or not all(
        isinstance(group, Mapping) and isinstance(group.get("params"), list | tuple)
        for group in groups
    ):
        raise _error(
            "have a list of groups, each with `params`",
            f"{groups!r:.100} for `param_groups`.",
            "",
        )
    numbers = [number for group in groups for number in group["params"]]
    unexpected = [n for n in [*numbers, *_keys(state)] if not isinstance(n, int)]
    if unexpected:
        raise _error(
            "identify parameters by numbers, not by names as FSDP and "
            "torch.distributed.checkpoint do",
            f"{unexpected[0]!r:.100}.",
        )
    if len(set(numbers)) != len(numbers):
        twice = sorted({n for n in numbers if numbers.count(n) > 1})
        raise _error(
            "have each parameter in one group",
            f"the numbers {twice} twice.",
            "Save it again: the right group cannot be determined.",
        )
    if not isinstance(state, Mapping):
        raise _error("have a dict for `state`", f"{type(state).__name__}.")


def _keys(node: Any) -> list[Any]:
    return list(node) if isinstance(node, Mapping) else []


def _entry_keys(entry: Any) -> frozenset[str]:
    """Returns the keys of an entry and of the dicts that it contains."""
    if not isinstance(entry, Mapping):
        type_name = type(entry).__name__
        raise _error("have a dict for each entry of `state`", f"{type_name}.")
    inner = [value for value in entry.values() if isinstance(value, Mapping)]
    return frozenset(str(key) for node in (entry, *inner) for key in node)


def _not_read(
    entry_keys: frozenset[str], group_keys: Sequence[frozenset[str]]
) -> ValueError:
    """Returns the error for a format that is not read."""
    name, remedy = _optimizer_name(entry_keys, group_keys), _REMEDY
    found = frozenset[str]().union(*group_keys)
    known = _LABELS.union(*(f.needed | f.optional for f in _READABLE))
    if not name and found - known:
        remedy += (
            f" If {sorted(found - known)} do not change its updates, remove them from "
            "the groups: `for group in state_dict['param_groups']: group.pop(...)`."
        )
    description = f"the state of {name}" if name else "an unknown format"
    return _error(
        "be that of AdamW of torch or bitsandbytes, of Transformers' Adafactor, or of "
        "schedulefree",
        f"{description}: its entries have {sorted(entry_keys)} and its groups "
        f"{sorted(found - {'params'})}.",
        remedy,
    )


def _optimizer_name(
    entry_keys: frozenset[str], group_keys: Sequence[frozenset[str]]
) -> str:
    """Returns the optimizer that wrote a state dict with these keys; "" if unknown.

    Args:
        entry_keys: keys of all entries of `state`, and of the dicts in them.
        group_keys: keys of each group.
    """
    # Layer-wise optimizers step in gradient hooks. Trainer saves a dummy optimizer,
    # whose groups have nothing but `lr`.
    if not entry_keys and all(keys - _LABELS == {"lr"} for keys in group_keys):
        return (
            "a layer-wise optimizer (galore_*_layerwise, apollo_adamw_layerwise), "
            "whose moments Trainer does not save"
        )
    for name, entries, groups, absent in _OTHER_FORMATS:
        by_entry = entries and _key_set(entries) <= entry_keys
        by_group = groups and any(_key_set(groups) <= keys for keys in group_keys)
        if (by_entry or by_group) and not any(_key_set(absent) & k for k in group_keys):
            return name
    # Lion's group has no key of its own, and its entries have only a first moment.
    return "Lion" if entry_keys - {"step"} == {"exp_avg"} else ""
