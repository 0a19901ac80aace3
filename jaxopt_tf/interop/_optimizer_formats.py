"""Formats of the state dicts of torch optimizers.

Formats of AdamW, SGD, Adagrad and RMSprop of torch, of Transformers' Adafactor, the
optimizers of bitsandbytes, StableAdamW of torch-optimi and schedulefree are read.
"""

import math
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, NamedTuple

from ..optimizers import (
    AdafactorState,
    AdagradState,
    AdamWState,
    AdEMAMixState,
    LionState,
    RMSpropState,
    ScheduleFreeState,
    SGDState,
    StableAdamWState,
)
from ._group_settings import (
    ADAFACTOR_SETTINGS,
    ADAGRAD_SETTINGS,
    ADAMW_SETTINGS,
    BITSANDBYTES_SETTINGS,
    RMSPROP_SETTINGS,
    SGD_SETTINGS,
    STABLE_ADAMW_SETTINGS,
)
from ._schedule_free import RUNNING, check_train_mode
from ._state_keys import BITSANDBYTES_NESTED
from ._unread_formats import LABELS, key_set, optimizer_name

StateType = type[Any]  # one of the types of states that are imported above


class _Format(NamedTuple):
    """Keys of a format that is read."""

    kind: StateType  # state of this package to which a file is converted
    entries: tuple[frozenset[str], ...]  # keys of an entry of `state`, without `step`
    needed: Set[str]  # keys of every group
    optional: Set[str]  # keys that a group may have
    # Whether the keys of a group identify the format if no parameter was updated yet.
    groups_identify_it: bool = True
    # Test of a group's values, for formats that share all keys with another format.
    accepts_values: Callable[[Mapping[str, Any]], bool] = lambda group: True


def _has_two_betas(group: Mapping[str, Any]) -> bool:
    betas = group.get("betas")
    return not isinstance(betas, list | tuple) or len(betas) == 2


def _has_three_betas(group: Mapping[str, Any]) -> bool:
    # AdEMAMix and AdamW of bitsandbytes have the same keys.
    return not _has_two_betas(group)


def _has_no_eps(group: Mapping[str, Any]) -> bool:
    # Lion and RMSprop of bitsandbytes have the same keys.
    return group.get("eps") == 0


def _has_eps(group: Mapping[str, Any]) -> bool:
    return not _has_no_eps(group)


_MOMENTS = (key_set("exp_avg exp_avg_sq"),)
_ADAM = key_set("lr betas eps weight_decay")
_BITSANDBYTES_MOMENTS = tuple(
    key_set(f"{nested} {arrays}")
    for nested in ("", BITSANDBYTES_NESTED)
    for arrays in ("state1 state2", "state1 state2 qmap1 qmap2 absmax1 absmax2")
)
_BITSANDBYTES_ONE_MOMENT = tuple(
    key_set(f"{nested} {arrays}")
    for nested in ("", BITSANDBYTES_NESTED)
    for arrays in ("state1", "state1 qmap1 absmax1")
)
_READABLE = (
    # Adam and AdamW of every version of torch. Apex counts updates in the group.
    _Format(
        AdamWState, _MOMENTS, _ADAM | {"amsgrad"}, ADAMW_SETTINGS.keys() | {"step"}
    ),
    # SGD of torch has no entries without momentum; before version 2.1 they have a
    # buffer of None.
    _Format(
        SGDState,
        (key_set("momentum_buffer"),),
        key_set("lr momentum dampening weight_decay nesterov"),
        SGD_SETTINGS.keys(),
    ),
    _Format(
        AdagradState,
        (key_set("sum"),),
        key_set("lr lr_decay eps weight_decay initial_accumulator_value"),
        ADAGRAD_SETTINGS.keys(),
    ),
    _Format(
        RMSpropState,
        tuple(
            key_set(f"square_avg {buffer} {mean}")
            for buffer in ("", "momentum_buffer")
            for mean in ("", "grad_avg")
        ),
        key_set("lr momentum alpha eps centered weight_decay"),
        RMSPROP_SETTINGS.keys(),
    ),
    # transformers.AdamW of Transformers 4.
    _Format(AdamWState, _MOMENTS, _ADAM | {"correct_bias"}, frozenset()),
    # FusedAdam of Apex and of DeepSpeed.
    _Format(AdamWState, _MOMENTS, _ADAM | {"bias_correction"}, key_set("step amsgrad")),
    # AdamW of bitsandbytes, with 32 or 8 bits; before version 0.44 its groups have no
    # settings of AdEMAMix.
    _Format(
        AdamWState,
        _BITSANDBYTES_MOMENTS,
        _ADAM | BITSANDBYTES_SETTINGS.keys(),
        frozenset(),
        accepts_values=_has_two_betas,
    ),
    _Format(
        AdamWState,
        _BITSANDBYTES_MOMENTS,
        _ADAM,
        frozenset(),
        False,
        accepts_values=_has_two_betas,
    ),
    _Format(
        AdEMAMixState,
        _BITSANDBYTES_MOMENTS,
        _ADAM | BITSANDBYTES_SETTINGS.keys(),
        frozenset(),
        accepts_values=_has_three_betas,
    ),
    # The other optimizers of bitsandbytes have one moment.
    *(
        _Format(
            kind, _BITSANDBYTES_ONE_MOMENT, _ADAM, frozenset(), False, accepts_values
        )
        for kind, accepts_values in ((LionState, _has_no_eps), (RMSpropState, _has_eps))
    ),
    # StableAdamW of torch-optimi, which counts updates in the group.
    _Format(
        StableAdamWState,
        (key_set("exp_avg exp_avg_sq eps_sq kahan_comp"),),
        key_set("lr beta1 beta2 eps weight_decay") | STABLE_ADAMW_SETTINGS.keys(),
        key_set("step"),
    ),
    # AdamW, RAdam and SGD of schedulefree, from version 1.2 on. `scheduled_lr` and
    # `train_mode` are optional: earlier versions do not write the first, and for files
    # without the second `check_train_mode` raises an error that names it.
    *(
        _Format(
            ScheduleFreeState,
            (key_set(entries),),
            key_set(f"lr weight_decay r weight_lr_power {keys} k weight_sum lr_max"),
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
            key_set(f"{mean} {squares} RMS")
            for mean in ("", "exp_avg")
            for squares in ("exp_avg_sq", "exp_avg_sq_row exp_avg_sq_col")
        ),
        ADAFACTOR_SETTINGS.keys() | {"lr", "weight_decay"},
        frozenset(),
    ),
)
# Required values of settings that otherwise change the optimizer's formula.
_VALUES = {
    **dict.fromkeys(("amsgrad", "maximize"), False),
    **dict.fromkeys(("correct_bias", "bias_correction"), True),
}

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
_NEW_MOMENTS = (
    "read only the parameters with `opt_state=None`, and start with new moments."
)
_REMEDY = f"Save the optimizer with plain torch, or {_NEW_MOMENTS}"


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
        allowed = known.needed | known.optional | LABELS
        if (
            all(known.needed <= keys <= allowed for keys in group_keys)
            and all(keys - {"step"} in known.entries for keys in entry_keys)
            and (entry_keys or known.groups_identify_it)
            and all(map(known.accepts_values, groups))
        ):
            _check_settings(groups)
            if known.kind is ScheduleFreeState:
                check_train_mode(groups)
            return known.kind
    raise _not_read(frozenset[str]().union(*entry_keys), group_keys)


def _check_settings(groups: Sequence[Mapping[str, Any]]) -> None:
    """Raises if a setting of a group is out of range or not supported."""
    for number, group in enumerate(groups):
        for key, value in group.items():
            if key in ("params", "param_names"):
                continue
            if key in _VALUES and bool(value) != _VALUES[key]:
                raise ValueError(
                    f"`{key}` must be {_VALUES[key]} in every group, got {value!r} in "
                    f"group {number}, which changes the formula of the updates. Train "
                    f"with `{key}={_VALUES[key]}`, or {_NEW_MOMENTS}"
                )
            # torch checks ranges when AdamW is built, but not when a state dict is
            # loaded.
            minimum, end, limit = 0.0, math.inf, "finite and at least 0"
            if key in ("decay_rate", "dampening"):
                minimum, limit = -math.inf, "finite"
            elif key == "lr_max":  # of schedulefree, before the first update
                minimum, limit = -1.0, "finite and at least -1"
            elif key in ("betas", "beta1", "beta2"):
                end, limit = 1.0, "from 0 to 1"
            values = value if isinstance(value, list | tuple) else [value]
            # NaN fails every comparison, so that `not all` rejects it, too.
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
            f"Pass `state_dict[{inner[0]!r}]`." if inner else "",
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
            "Save the optimizer again: the right group cannot be determined.",
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
    name = optimizer_name(entry_keys, group_keys)
    remedy = _NEW_MOMENTS[0].upper() + _NEW_MOMENTS[1:]
    found = frozenset[str]().union(*group_keys)
    known = LABELS.union(*(f.needed | f.optional for f in _READABLE))
    if not name and found - known:
        remedy += (
            f" If {sorted(found - known)} do not change the updates, remove them from "
            "the groups: `for group in state_dict['param_groups']: group.pop(...)`."
        )
    description = f"the state of {name}" if name else "an unknown format"
    return _error(
        "be that of torch's AdamW, SGD, Adagrad or RMSprop, Transformers' Adafactor, "
        "torch-optimi's StableAdamW, or an optimizer of bitsandbytes or schedulefree",
        f"{description}: its entries have {sorted(entry_keys)} and its groups "
        f"{sorted(found - {'params'})}.",
        remedy,
    )
