"""Parameters of a torch optimizer's state dict, by name."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .. import _checks
from ._decay_groups import TODAYS_RULE, DecayRule, groups_of_file
from ._optimizer_formats import check_format, check_settings
from ._param_names import ParamNames
from ._torch_files import check_tensor

Groups = Sequence[Sequence[str]]


class TorchState(NamedTuple):
    """A state dict whose numbers have been given names."""

    kind: str | None  # "AdamW" or "Adafactor"; None: nothing was updated yet
    entries: Mapping[Any, Mapping[str, Any]]  # by number
    numbers: Mapping[str, Any]  # by torch name: the number
    groups: Sequence[Mapping[str, Any]]  # the settings of each group, with its `params`
    group_of: Mapping[str, int]  # by torch name

    @property
    def decayed(self) -> dict[str, bool]:
        """By torch name, whether the parameter's group is decayed."""
        decays = [bool(group.get("weight_decay")) for group in self.groups]
        return {name: decays[group] for name, group in self.group_of.items()}

    def entry(self, name: str) -> Mapping[str, Any]:
        """What torch keeps for a parameter; empty if it was never updated."""
        number = self.numbers.get(name)  # None where it is frozen
        return self.entries.get(number, {})


def read_state_dict(
    state_dict: Any,
    names: ParamNames,
    groups: Groups | None,
    decay_rule: DecayRule = TODAYS_RULE,
) -> TorchState:
    """Gives names to the parameters' numbers; raises if the format is not torch's.

    Names come from the file where it has them (`param_names`), else from `groups`, else
    from the two groups that Trainer makes by `decay_rule`, or by another of its rules
    that fits the file; of one group alone, from `named_parameters()`.
    """
    kind = check_format(state_dict)
    saved = state_dict["param_groups"]
    check_settings(saved)
    if groups is None and len(saved) == 2 and not has_names(saved):
        groups = groups_of_file(saved, state_dict["state"], names, decay_rule)
    named = _named_groups(saved, names, groups)
    numbers: dict[str, Any] = {}
    for group, group_names in zip(saved, named, strict=True):
        numbers |= dict(zip(group_names, group["params"], strict=True))
    group_of = {name: i for i, group in enumerate(named) for name in group}
    state = TorchState(kind, state_dict["state"], numbers, saved, group_of)
    _check_all_there(state, names)
    _check_entries(state)
    _check_shapes(state, names)
    return state


def _named_groups(
    saved: Sequence[Mapping[str, Any]], names: ParamNames, groups: Groups | None
) -> Groups:
    lengths = [len(group["params"]) for group in saved]
    if has_names(saved):
        # A tied tensor may be listed under any of its names.
        tied = dict(names.model.tied)
        own = [[tied.get(n, n) for n in group["param_names"]] for group in saved]
        if lengths != [len(group) for group in own]:
            raise ValueError(
                "`state_dict` must have a name for each parameter of its groups, got "
                f"{[len(group) for group in own]} `param_names` for {lengths} "
                "`params`. Delete `param_names`, and pass `groups`."
            )
        return own
    wanted = check_group_count(len(saved), names, groups)
    if lengths != [len(group) for group in wanted]:
        raise ValueError(
            f"`state_dict` must have groups of {[len(group) for group in wanted]} "
            f"parameters, got {lengths}. Another rule of decay or frozen parameters "
            "make other groups: pass the names of each as `groups`."
        )
    return wanted


def has_names(groups: Sequence[Mapping[str, Any]]) -> bool:
    """Returns whether all groups contain the names of their parameters."""
    return all("param_names" in group for group in groups)


def check_group_count(
    num_groups: int, names: ParamNames, groups: Groups | None
) -> Groups:
    """The names of each group: as given, Trainer's two, or all in one.

    Raises:
        ValueError: if the order is not known, or if there are more groups or fewer.
    """
    wanted = groups if groups is not None else names.model.groups
    if wanted is None:
        raise ValueError(
            "`groups` must be given, got None: neither the file nor `names` tells in "
            "which order torch was given the parameters. Pass the names of each group, "
            "or describe the model by its module or its config.json."
        )
    if groups is None and num_groups == 1:
        wanted = [[p.name for p in names.model.parameters if p.is_trainable]]
    if len(wanted) != num_groups:
        raise ValueError(
            f"`groups` must name the parameters of {num_groups} groups, got "
            f"{len(wanted)}."
        )
    return wanted


def _check_all_there(state: TorchState, names: ParamNames) -> None:
    wanted = {piece.torch_name for piece in names.pieces}
    frozen = {p.name for p in names.model.parameters if not p.is_trainable}
    missing = sorted(wanted - set(state.numbers) - frozen)
    odd = sorted(set(state.numbers) - wanted)
    if missing or odd:
        raise ValueError(
            "`groups` must name every parameter of the optimizer once: "
            f"without a place {missing}, not of the model {odd}."
        )


def _check_entries(state: TorchState) -> None:
    """Raises if an entry has no parameter, no `step`, or values that are no tensors."""
    strays = sorted(set(state.entries) - set(state.numbers.values()))
    if strays:
        raise ValueError(
            "`state_dict` must have each entry of `state` in one of its groups, got "
            f"{strays} in none. Save the whole optimizer again, or take them out: "
            "nothing says whose they are."
        )
    uncounted = [name for name in state.numbers if _step(state, name) is None]
    if uncounted:
        raise ValueError(
            f"`state_dict` must have a `step` beside the moments, got {len(uncounted)} "
            f"entries without, {uncounted[0]!r} the first: the next update is "
            "corrected by it. Add the number of updates, or take these entries out, "
            "and their moments begin at 0."
        )


def _check_shapes(state: TorchState, names: ParamNames) -> None:
    shapes = {p.name: p.shape for p in names.model.parameters}
    wrong = []
    for name in state.numbers:
        entry = state.entry(name)
        for key, value in entry.items():
            if key in ("RMS", "step"):
                continue
            check_tensor(value, f"`{key}` of {name!r}")
            found = tuple(value.shape)
            if found != _shape(key, shapes[name]):
                wrong.append(f"{name!r} {list(shapes[name])}: `{key}` {list(found)}")
    if wrong:
        listed = "\n  ".join(wrong)
        raise ValueError(
            f"`state_dict` must have the shapes of the parameters, but {len(wrong)} "
            f"tensors do not:\n  {listed}\nIs it of another model, or was torch given "
            "the parameters in another order? Then pass `groups`."
        )


def _shape(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if key == "exp_avg_sq_row":
        return shape[:-1]
    if key == "exp_avg_sq_col":
        return shape[:-2] + shape[-1:]
    return shape


def _step(state: TorchState, name: str) -> Any:
    entry = state.entry(name)
    if not entry:
        return 0
    # Apex counts once for a group.
    return entry.get("step", state.groups[state.group_of[name]].get("step"))


def num_updates(state: TorchState, name: str) -> int:
    """How many updates a parameter has seen; 0 where torch keeps nothing."""
    step = _step(state, name)
    if hasattr(step, "detach"):
        if step.numel() != 1:
            raise ValueError(
                f"`step` of {name!r} must be one number, got shape {list(step.shape)}."
            )
        step = step.detach().reshape(()).cpu().item()
    return _checks.step_count(f"step` of `{name}", step)
