"""Formats of the state dicts of torch optimizers that are read."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ._other_optimizers import LABELS, optimizer_name

ADAMW, ADAFACTOR = "AdamW", "Adafactor"


class Format(NamedTuple):
    """Exact keys of a format that is read."""

    kind: str
    entries: tuple[frozenset[str], ...]  # keys of an entry of `state`, without `step`
    needed: frozenset[str]  # keys that each group has
    optional: frozenset[str]  # keys that each group may have
    value: tuple[str, bool] | None = None  # a setting without which it is another one


def _set(keys: str) -> frozenset[str]:
    return frozenset(keys.split())


_MOMENTS = (_set("exp_avg exp_avg_sq"),)
_ADAM = _set("lr betas eps weight_decay")
_READ = (
    # torch's Adam and AdamW of every version. Apex adds `step` to the group.
    Format(
        ADAMW,
        _MOMENTS,
        _ADAM | {"amsgrad"},
        _set("maximize foreach capturable differentiable fused decoupled_weight_decay")
        | {"step"},
        ("amsgrad", False),
    ),
    # transformers.AdamW of version 4.
    Format(
        ADAMW, _MOMENTS, _ADAM | {"correct_bias"}, frozenset(), ("correct_bias", True)
    ),
    # FusedAdam of Apex and of DeepSpeed.
    Format(
        ADAMW,
        _MOMENTS,
        _ADAM | {"bias_correction"},
        _set("step amsgrad"),
        ("bias_correction", True),
    ),
    # transformers.Adafactor.
    Format(
        ADAFACTOR,
        tuple(
            _set(f"{mean} {seen} RMS")
            for mean in ("", "exp_avg")
            for seen in ("exp_avg_sq", "exp_avg_sq_row exp_avg_sq_col")
        ),
        _set("lr eps clip_threshold decay_rate beta1 weight_decay scale_parameter")
        | _set("relative_step warmup_init"),
        frozenset(),
    ),
)

# A key at the top, or a key of `state`, that only one framework writes.
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
_CURE = (
    "Write it with plain torch, or read the parameters alone with `opt_state=None` and "
    "begin with new moments."
)


def check_format(state_dict: Any) -> str | None:
    """Returns the optimizer of a state dict; None if it was never updated.

    Raises:
        ValueError: if the keys of `state` and of `param_groups` are not exactly those
            of a format that is read, with the name of the optimizer if it is known.
    """
    _check_structure(state_dict)
    entries: Mapping[Any, Any] = state_dict["state"]
    groups: Sequence[Mapping[str, Any]] = state_dict["param_groups"]
    group_keys = [frozenset(map(str, group)) for group in groups]
    # In place of a file that is missing.
    if not entries and all(
        keys == _set("lr params param_names") for keys in group_keys
    ):
        return None
    entry_keys = {_entry_keys(entry) for entry in map(entries.__getitem__, entries)}
    entry_keys.discard(frozenset())  # of a parameter that was never updated
    fits = [f for f in _READ if all(_fits(f, keys) for keys in group_keys)]
    fits = [f for f in fits if all(keys - {"step"} in f.entries for keys in entry_keys)]
    if not fits:
        _refuse(frozenset[str]().union(*entry_keys), group_keys)
    (found,) = fits
    if found.value is not None:
        _check_value(groups, *found.value)
    return found.kind


def check_settings(groups: Sequence[Mapping[str, Any]]) -> None:
    """Raises unless the numbers of every group are in the range that torch accepts."""
    for number, group in enumerate(groups):
        for key, value in group.items():
            if key in ("params", "param_names"):
                continue
            for one in _numbers(value):
                least = -math.inf if key == "decay_rate" else 0.0
                is_beta = key == "betas"
                # Written so that NaN fails.
                if not (least <= one < (1.0 if is_beta else math.inf)):
                    limit = "from 0 to 1" if is_beta else "finite and at least 0"
                    limit = "finite" if key == "decay_rate" else limit
                    raise ValueError(
                        f"`{key}` of group {number} must be {limit}, got {value!r}. "
                        "The file is damaged, or its run had diverged: take an "
                        "earlier checkpoint."
                    )


def _check_structure(state_dict: Any) -> None:
    keys = _keys(state_dict)
    state = state_dict.get("state") if isinstance(state_dict, Mapping) else None
    found = [key for key in [*keys, *_keys(state)] if key in _FRAMEWORKS]
    if found:
        raise ValueError(
            f"`state_dict` must be torch's own, got one of {_FRAMEWORKS[found[0]]}, by "
            f"its key {found[0]!r}. {_CURE}"
        )
    if not {"state", "param_groups"} <= set(keys):
        inner = [
            key
            for key in keys
            if {"state", "param_groups"} <= set(_keys(state_dict[key]))
        ]
        cure = f" Pass what it has under {inner[0]!r}." if inner else ""
        raise ValueError(
            "`state_dict` must have `state` and `param_groups`, as torch's "
            f"`optimizer.state_dict()` has, got {type(state_dict).__name__} of "
            f"{sorted(map(str, keys))[:5]}.{cure}"
        )
    groups = state_dict["param_groups"]
    is_list = isinstance(groups, list | tuple) and len(groups) > 0
    if not is_list or not all(
        isinstance(group, Mapping) and isinstance(group.get("params"), list | tuple)
        for group in groups
    ):
        raise ValueError(
            "`state_dict` must have a list of groups with `params` each, got "
            f"{groups!r:.100} for `param_groups`."
        )
    numbers = [number for group in groups for number in group["params"]]
    if any(isinstance(index, str) for index in [*numbers, *_keys(state)]):
        raise ValueError(
            "`state_dict` must number its parameters, got names, as FSDP and "
            f"torch.distributed.checkpoint have them. {_CURE}"
        )
    if not all(isinstance(index, int) for index in numbers):
        raise ValueError(
            f"`state_dict` must number its parameters, got {numbers!r:.100}. {_CURE}"
        )
    if len(set(numbers)) != len(numbers):
        twice = sorted({n for n in numbers if numbers.count(n) > 1})
        raise ValueError(
            "`state_dict` must have each parameter in one group, got the numbers "
            f"{twice} twice. Write it again: nothing tells which group is right."
        )
    if not hasattr(state, "get"):
        raise ValueError(
            "`state_dict` must have a dict for `state`, got "
            f"{type(state).__name__}. {_CURE}"
        )


def _keys(node: Any) -> list[Any]:
    is_mapping = hasattr(node, "__getitem__") and hasattr(node, "get")
    return list(node) if is_mapping else []


def _fits(known: Format, keys: frozenset[str]) -> bool:
    return known.needed <= keys <= known.needed | known.optional | LABELS


def _entry_keys(entry: Any) -> frozenset[str]:
    """Returns the keys of an entry and of the dicts in it."""
    if not isinstance(entry, Mapping):
        raise ValueError(
            "`state_dict` must have a dict for each entry of `state`, got "
            f"{type(entry).__name__}. {_CURE}"
        )
    inner = [value for value in entry.values() if isinstance(value, Mapping)]
    return frozenset(str(key) for node in (entry, *inner) for key in node)


def _refuse(entry_keys: frozenset[str], group_keys: list[frozenset[str]]) -> None:
    if "max_exp_avg_sq" in entry_keys:
        _refuse_amsgrad()
    name = optimizer_name(entry_keys, group_keys)
    whose = f"the state of {name}" if name else "another one"
    known = frozenset[str]().union(*(f.needed | f.optional for f in _READ))
    strange = sorted(frozenset[str]().union(*group_keys) - known - LABELS)
    cure = _CURE
    if not name and strange:
        cure += (
            f" If {strange} do not change its updates, delete them from the groups: "
            "`for group in state_dict['param_groups']: group.pop(...)`."
        )
    raise ValueError(
        "`state_dict` must be of torch's AdamW or Transformers' Adafactor, got "
        f"{whose}: its entries have {sorted(entry_keys)} and its groups "
        f"{sorted(frozenset[str]().union(*group_keys) - {'params'})}. {cure}"
    )


def _check_value(groups: Sequence[Mapping[str, Any]], key: str, wanted: bool) -> None:
    odd = [n for n, group in enumerate(groups) if bool(group.get(key)) != wanted]
    if odd and key == "amsgrad":
        _refuse_amsgrad()
    if odd:
        raise ValueError(
            f"`{key}` must be {wanted} in every group, got {not wanted} in {odd}: no "
            f"optimizer here computes that. {_CURE}"
        )


def _refuse_amsgrad() -> None:
    raise ValueError(
        "`state_dict` must be without `amsgrad`, got `max_exp_avg_sq`, which no "
        f"optimizer here keeps. {_CURE}"
    )


def _numbers(value: Any) -> Iterator[float]:
    """Numbers in a setting of a group."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
    elif (isinstance(value, int | float) and not isinstance(value, bool)) or (
        hasattr(value, "detach") and value.numel() == 1
    ):
        yield float(value)
