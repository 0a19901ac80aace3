"""State dicts of torch optimizers, with the names of their parameters."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import _checks
from ..optimizers import SGDState
from ._arrays import as_numpy, check_finite, check_fits, check_tensor
from ._optimizer_formats import StateType, check_format
from ._param_groups import (
    NEWEST_RULE,
    DecayRule,
    Groups,
    groups_of_file,
    odd_shapes,
    resolve_groups,
)
from ._param_names import ParamNames
from ._state_keys import BITSANDBYTES_KEYS, BITSANDBYTES_NESTED
from ._torchao_tensors import check_torchao_tensor, torchao_bits


class FlatEntries(Mapping[Any, Mapping[str, Any]]):
    """Entries of a state, without the dict in which bitsandbytes nests its arrays."""

    def __init__(self, entries: Mapping[Any, Mapping[str, Any]]):
        """Stores `entries`, which are read when they are needed."""
        self._entries = entries

    def __getitem__(self, param_index: Any) -> Mapping[str, Any]:
        """Returns the entry of a parameter."""
        entry = self._entries[param_index]
        nested = entry.get(BITSANDBYTES_NESTED)
        if not isinstance(nested, Mapping):
            return entry
        outer = {k: v for k, v in entry.items() if k != BITSANDBYTES_NESTED}
        return {**outer, **nested}

    def __iter__(self) -> Iterator[Any]:
        """Iterates over the indices of the parameters."""
        return iter(self._entries)

    def __len__(self) -> int:
        """Returns the number of entries."""
        return len(self._entries)


class TorchState(NamedTuple):
    """State dict of a torch optimizer, and the names of its numbered parameters."""

    kind: StateType | None  # type of the equivalent optax state; None without a file
    entries: Mapping[Any, Mapping[str, Any]]  # moments and counts, by index
    index_by_name: Mapping[str, Any]  # index of each parameter, by torch name
    groups: Sequence[Mapping[str, Any]]  # settings of each group, with its `params`
    # Index of the group of each parameter, by torch name.
    group_by_name: Mapping[str, int]

    @classmethod
    def before_first_update(cls, names: ParamNames, rate: float) -> "TorchState":
        """Returns the state of any optimizer before its first update."""
        group_by_name = {found.torch_name: 0 for found in names.slices}
        return cls(None, {}, {}, [{"lr": rate}], group_by_name)

    @property
    def decayed(self) -> dict[str, bool]:
        """True for each parameter whose group has weight decay, by torch name."""
        decays = [bool(group.get("weight_decay")) for group in self.groups]
        return {name: decays[group] for name, group in self.group_by_name.items()}

    def entry(self, name: str) -> Mapping[str, Any]:
        """Returns the entry of a parameter; empty if it was never updated."""
        param_index = self.index_by_name.get(name)  # None for a frozen parameter
        return self.entries.get(param_index, {})

    def moment(self, name: str, key: str, dtype: Any) -> np.ndarray | None:
        """Returns one array of a parameter's entry; None without an entry.

        Also None for the compensation of a float32 parameter, which has none.

        Raises:
            ValueError: if the entry lacks the array, if a number is not finite, if a
                second moment is negative, or if `dtype` cannot represent the numbers.
        """
        entry = self.entry(name)
        if not entry:
            return None
        is_square, index = key.startswith(("exp_avg_sq", "square_avg", "sum")), None
        if "state1" in entry:
            number, index = BITSANDBYTES_KEYS[key]
            key = f"state{number}"
        if key not in entry:
            raise ValueError(
                f"`state_dict` must have `{key}` for {name!r}, got {sorted(entry)}. "
                "Build the optimizer with the options of the file."
            )
        if entry[key] is None:
            return None
        array = as_numpy(entry[key])
        array = array if index is None else array[index]
        location = f"`{key}` of {name!r}"
        check_finite(array, location, non_negative=is_square)
        check_fits(array.dtype, dtype, location)
        return array

    def num_updates(self, name: str) -> int:
        """Returns the number of a parameter's updates; 0 without an entry."""
        # `step` is a tensor since torch 1.12, an int before and in Adafactor.
        step = self.step(name)
        if hasattr(step, "detach"):
            if step.numel() != 1:
                raise ValueError(
                    f"`step` of {name!r} must be one number, got shape "
                    f"{list(step.shape)}."
                )
            step = step.detach().reshape(()).cpu().item()
        return _checks.step_count(f"step` of `{name}", step)

    def step(self, name: str) -> Any:
        """Returns the unconverted `step` of a parameter; None if the file has none.

        1 for a parameter of SGD with a buffer.
        """
        entry = self.entry(name)
        if not entry:
            return 0
        if self.kind is SGDState:  # counts nothing
            return int(entry.get("momentum_buffer") is not None)
        # Apex's FusedAdam has one count for each group, and schedulefree, too.
        group = self.groups[self.group_by_name[name]]
        return entry.get("step", group.get("step", group.get("k")))

    def groups_of(self, names: Collection[str]) -> list[Mapping[str, Any]]:
        """Returns the settings of the groups that contain any of the parameters."""
        found = {self.group_by_name[n] for n in names if n in self.group_by_name}
        return [self.groups[number] for number in sorted(found)]


def read_state_dict(
    state_dict: Any,
    names: ParamNames,
    groups: Groups | None,
    decay_rule: DecayRule = NEWEST_RULE,
) -> TorchState:
    """Assigns names to the numbered parameters; raises if the format is not torch's.

    Names are those in the file (`param_names`), else those of `groups`, else those of
    the two groups that Trainer makes by `decay_rule` or by another of its rules that
    matches the file. A single group has the names of `named_parameters()`.
    """
    # Each check relies on the structure that the checks before it have established.
    state_type = check_format(state_dict)
    saved, entries = state_dict["param_groups"], FlatEntries(state_dict["state"])
    named = _named_groups(saved, entries, names, groups, decay_rule)
    index_by_name: dict[str, Any] = {}
    for group, group_names in zip(saved, named, strict=True):
        index_by_name |= dict(zip(group_names, group["params"], strict=True))
    group_by_name = {name: i for i, group in enumerate(named) for name in group}
    state = TorchState(state_type, entries, index_by_name, saved, group_by_name)
    _check_names(state, names)
    _check_entries(state)
    _check_shapes(state, names)
    return state


def has_names(groups: Sequence[Mapping[str, Any]]) -> bool:
    """Returns True if all groups contain the names of their parameters."""
    return all("param_names" in group for group in groups)


def _named_groups(
    saved: Sequence[Mapping[str, Any]],
    entries: Mapping[Any, Mapping[str, Any]],
    names: ParamNames,
    groups: Groups | None,
    rule: DecayRule,
) -> Groups:
    """Returns the names of the parameters of each group, in the order of the file."""
    if has_names(saved):
        # A tied tensor may be listed under any of its names.
        tied = dict(names.model.tied)
        named_groups: Groups = [
            [tied.get(n, n) for n in g["param_names"]] for g in saved
        ]
    else:
        # Two groups without names are assumed to be Trainer's.
        if groups is None and len(saved) == 2 and names.model.is_ordered:
            groups = groups_of_file(saved, entries, names, rule)
        named_groups = resolve_groups(len(saved), names, groups, rule)
    lengths = [len(group["params"]) for group in saved]
    sizes = [len(group) for group in named_groups]
    if lengths != sizes and has_names(saved):
        raise ValueError(
            "`state_dict` must have a name for each parameter of its groups, got "
            f"{sizes} `param_names` for {lengths} `params`. Remove `param_names`, and "
            "pass `groups`."
        )
    if lengths != sizes:
        raise ValueError(
            f"`state_dict` must have groups of {sizes} parameters, got {lengths}. "
            "Another decay rule or frozen parameters lead to other groups: pass the "
            "names of each group as `groups`."
        )
    return named_groups


def _check_names(state: TorchState, names: ParamNames) -> None:
    expected_names = {found.torch_name for found in names.slices}
    frozen = {p.name for p in names.model.parameters if not p.is_trainable}
    missing = sorted(expected_names - set(state.index_by_name) - frozen)
    unexpected = sorted(set(state.index_by_name) - expected_names)
    if missing or unexpected:
        raise ValueError(
            "`groups` must contain every parameter of the optimizer once: "
            f"missing {missing}, not in the model {unexpected}."
        )


def _check_entries(state: TorchState) -> None:
    """Raises if an entry has no parameter or no `step`."""
    unassigned = sorted(set(state.entries) - set(state.index_by_name.values()))
    if unassigned:
        raise ValueError(
            "`state_dict` must have each entry of `state` in one of its groups, got "
            f"{unassigned} in none. Save the whole optimizer again, or remove these "
            "entries: their parameters are unknown."
        )
    uncounted = [name for name in state.index_by_name if state.step(name) is None]
    if uncounted:
        raise ValueError(
            f"`state_dict` must have a `step` for all moments, got {len(uncounted)} "
            f"entries without one, such as {uncounted[0]!r}: the bias correction needs "
            "it. Add the number of updates, or remove these entries to start from "
            "moments of 0."
        )


def _check_shapes(state: TorchState, names: ParamNames) -> None:
    """Raises if a tensor does not have the shape of its parameter."""
    shapes = {p.name: tuple(p.shape) for p in names.model.parameters}
    misshapen = []
    for name in state.index_by_name:
        entry = state.entry(name)
        for key, value in entry.items():
            if key not in ("RMS", "step") and value is not None:
                check = check_torchao_tensor if torchao_bits(value) else check_tensor
                check(value, f"`{key}` of {name!r}")
        # This check also detects a wrong order of parameters with different shapes.
        for key, shape in odd_shapes(entry, shapes[name]).items():
            misshapen.append(f"{name!r} {list(shapes[name])}: `{key}` {list(shape)}")
    if misshapen:
        listed = "\n  ".join(misshapen)
        raise ValueError(
            "`state_dict` must have the shapes of the parameters, but "
            f"{len(misshapen)} tensors do not:\n  {listed}\nCheck the model. If the "
            "parameters were passed to torch in another order, pass `groups`."
        )
