"""Conversion between the states of torch's Muon and AdamW and the state of `muon_tf`.

torch has two optimizers, and so two state dicts, for what `muon_tf` does in one call.
Muon's entries have a momentum and no number of updates.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from .. import _pytrees
from .._typing import PyTree
from ..optimizers import AdamWState, MuonState
from ._arrays import as_numpy, as_tensor, check_finite, check_fits, device_put_like
from ._moments import NodeMoments
from ._optimizer_formats import check_format
from ._param_groups import Groups
from ._param_names import ParamNames
from ._state_dict import FlatEntries, TorchState, has_names
from ._tensor_slices import leaf_from_tensors, tensor_from_leaves

_BUFFER = "momentum_buffer"
# Settings of a group of `torch.optim.Muon`, without its parameters.
_SETTINGS = {
    *("lr", "weight_decay", "momentum", "nesterov", "ns_coefficients", "eps"),
    *("ns_steps", "adjust_lr_fn"),
}


def muon_state_from_torch(
    opt_state: PyTree,
    params: PyTree,
    muon: Mapping[str, Any],
    adamw: Mapping[str, Any],
    names: ParamNames,
    *,
    groups: tuple[Groups, Groups] | None = None,
    step: int | None = None,
) -> PyTree:
    """Converts state dicts of torch's Muon and AdamW to a state of `muon_tf`.

    Args:
        opt_state: the result of `optimizer.init(params)`, which contains a `MuonState`
            and defines dtypes and devices.
        params: parameters of `opt_state`, or their shapes.
        muon: `state_dict()` of `torch.optim.Muon`.
        adamw: `state_dict()` of `torch.optim.AdamW` for the other parameters.
        names: names of torch's parameters, with the leaf of each.
        groups: names of the parameters of each group, of Muon and of AdamW. None if the
            files contain them, because torch was given `named_parameters()`.
        step: step passed to the schedule next; None for the largest count of AdamW.

    Returns:
        The state to resume from. Its learning rate is that of Muon's file.

    Raises:
        ValueError: if `opt_state` contains no `MuonState`; if a state dict is of
            another optimizer; if Muon has other parameters than the `matrices` of
            `muon_tf`; if Muon's groups have different rates; if names, shapes or
            numbers do not fit.

    Source: torch 2.13 `optim/_muon.py`, `Muon`; `optim/adam.py`.
    """
    given = groups or (None, None)
    muon_names = _check_muon(muon, given[0])
    check_format(adamw)
    adamw_names = _named_groups("adamw", adamw, given[1])
    rates = {float(group["lr"]) for group in muon["param_groups"]}
    if len(rates) > 1:
        raise ValueError(
            f"`muon` must have one `lr` for all groups, got {sorted(rates)}. Use "
            "`ParamGroup` for other rates."
        )
    entries = {
        name: muon["state"].get(number, {}) for name, number in muon_names.items()
    }

    def converted(node: Any) -> Any:
        if not isinstance(node, MuonState):
            return node
        _check_parts(node, params, names, set(muon_names), set(adamw_names))
        state = _adamw_state(adamw, adamw_names)
        by_adamw = NodeMoments(_adamw_part(node), params, names, None)
        new = by_adamw.from_torch(state, step)
        return node._replace(
            count=new.count,
            step=new.step,
            learning_rate=device_put_like(rates.pop(), node.learning_rate),
            momentum=_momentum(node, params, names, entries),
            mu=new.mu,
            nu=new.nu,
        )

    _muon_state(opt_state)
    return jax.tree.map(converted, opt_state, is_leaf=_is_muon)


def torch_from_muon_state(
    opt_state: PyTree,
    params: PyTree,
    names: ParamNames,
    muon_group: Mapping[str, Any],
    adamw_groups: Sequence[Mapping[str, Any]],
    *,
    groups: Groups,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Converts a state of `muon_tf` to the state dicts of torch's Muon and AdamW.

    Args:
        opt_state: a state that contains a `MuonState`.
        params: parameters of `opt_state`, or their shapes.
        names: names of torch's parameters, with the leaf of each.
        muon_group: settings of Muon's group, such as `lr`, as in `param_groups` of a
            state dict.
        adamw_groups: settings of each group of AdamW.
        groups: names of the parameters of Muon, and of each group of AdamW, in the
            order in which they are passed to torch.

    Returns:
        State dicts for `load_state_dict` of `torch.optim.Muon` and `torch.optim.AdamW`.

    Raises:
        ValueError: if `opt_state` contains no `MuonState`, or if Muon's group has other
            parameters than the `matrices` of `muon_tf`.
    """
    node = _muon_state(opt_state)
    by_adamw = {name for group in groups[1:] for name in group}
    _check_parts(node, params, names, set(groups[0]), by_adamw)
    arrays = dict(_pytrees.named_leaves(node.momentum))
    entries: dict[str, dict[str, Any]] = {}
    # Entries of torch exist from the first update.
    if int(np.max(jax.tree.leaves(node.count))) > 0:
        entries = {
            name: {
                _BUFFER: as_tensor(
                    tensor_from_leaves(
                        names.by_tensor[name], lambda leaf: np.asarray(arrays[leaf])
                    )
                )
            }
            for name in groups[0]
        }
    moments = NodeMoments(_adamw_part(node), params, names, None).to_torch()
    return (
        _state_dict([muon_group], groups[:1], entries),
        _state_dict(adamw_groups, groups[1:], moments),
    )


def _is_muon(node: Any) -> bool:
    return isinstance(node, MuonState)


def _muon_state(opt_state: PyTree) -> MuonState:
    nodes = jax.tree.leaves(opt_state, is_leaf=_is_muon)
    found = [node for node in nodes if isinstance(node, MuonState)]
    if len(found) != 1:
        raise ValueError(
            f"`opt_state` must contain one `MuonState`, got {len(found)}. Pass the "
            "state of `muon_tf`, or of a chain with it."
        )
    return found[0]


def _adamw_part(node: MuonState) -> AdamWState:
    return AdamWState(*node[:4], node.mu, node.nu)


def _adamw_state(adamw: Mapping[str, Any], index_by_name: dict[str, Any]) -> TorchState:
    group_by_number = {
        number: i
        for i, group in enumerate(adamw["param_groups"])
        for number in group["params"]
    }
    return TorchState(
        AdamWState,
        FlatEntries(adamw["state"]),
        index_by_name,
        adamw["param_groups"],
        {name: group_by_number[number] for name, number in index_by_name.items()},
    )


def _check_muon(muon: Any, groups: Groups | None) -> dict[str, Any]:
    """Returns the number of each parameter of Muon; raises if the format is another."""
    found = muon.get("param_groups", ()) if isinstance(muon, Mapping) else ()
    if not found or not all(set(group) >= _SETTINGS for group in found):
        keys = sorted(found[0]) if found else []
        raise ValueError(
            "`muon` must be the state dict of `torch.optim.Muon`, got groups with "
            f"{keys}. Pass the state dicts of Muon and AdamW in this order."
        )
    return _named_groups("muon", muon, groups)


def _named_groups(
    argument: str, state_dict: Mapping[str, Any], groups: Groups | None
) -> dict[str, Any]:
    """Returns the number of each parameter of a state dict by its name."""
    saved = state_dict["param_groups"]
    if has_names(saved):
        groups = [group["param_names"] for group in saved]
    sizes = [len(group["params"]) for group in saved]
    if groups is None or [len(group) for group in groups] != sizes:
        raise ValueError(
            f"`groups` must have the names of the {sizes} parameters in the groups of "
            f"`{argument}`, got {groups!r:.60}. Pass them in torch's order."
        )
    return {
        name: number
        for group, group_names in zip(saved, groups, strict=True)
        for name, number in zip(group_names, group["params"], strict=True)
    }


def _check_parts(
    node: MuonState,
    params: PyTree,
    names: ParamNames,
    of_muon: set[str],
    of_adamw: set[str],
) -> None:
    """Raises unless both sides divide the parameters in the same way."""
    matrices = set(_pytrees.leaf_names(node.momentum))
    expected = {s.torch_name for s in names.slices if s.leaf in matrices}
    others = {s.torch_name for s in names.slices} - expected
    differing = sorted((expected ^ of_muon) | (others ^ of_adamw))
    if differing:
        raise ValueError(
            "`muon` and `adamw` must have the parameters that `muon_tf` updates with "
            f"Muon and with AdamW, got {len(differing)} in the other one or in none, "
            f"the first being {differing[0]!r}. Select them by `matrices`."
        )


def _momentum(
    node: MuonState,
    params: PyTree,
    names: ParamNames,
    entries: Mapping[str, Mapping[str, Any]],
) -> PyTree:
    structure: Any = jax.tree.structure(params)
    leaves = structure.flatten_up_to(node.momentum)
    for i, leaf_name in enumerate(_pytrees.leaf_names(params)):
        like = leaves[i]
        if _pytrees.is_masked(like):
            continue

        def tensor(name: str, dtype: Any = like.dtype) -> np.ndarray | None:
            if _BUFFER not in entries[name]:
                return None  # the parameter never had a gradient
            array = as_numpy(entries[name][_BUFFER])
            check_finite(array, f"`{_BUFFER}` of {name!r}")
            check_fits(array.dtype, dtype, f"`{_BUFFER}` of {name!r}")
            return array

        slices = names.by_leaf[leaf_name]
        array = leaf_from_tensors(slices, tensor, like.shape, like.dtype)
        leaves[i] = device_put_like(array, like)
    return structure.unflatten(leaves)


def _state_dict(
    settings: Sequence[Mapping[str, Any]],
    groups: Groups,
    entries: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    numbers = {name: i for i, name in enumerate(n for group in groups for n in group)}
    saved = [
        {
            **{k: v for k, v in values.items() if k not in ("params", "param_names")},
            "params": [numbers[name] for name in group],
            "param_names": list(group),
        }
        for values, group in zip(settings, groups, strict=True)
    ]
    return {
        "state": {i: dict(entries[n]) for n, i in numbers.items() if n in entries},
        "param_groups": saved,
    }
