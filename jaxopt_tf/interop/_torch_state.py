"""torch optimizer state dicts and the states of `adamw_tf` and `adafactor_tf`."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from .._typing import PyTree
from ..optimizers import AdafactorState, AdamWState, TorchLayout
from ._adafactor_state import adafactor_entries, adafactor_from_torch
from ._adamw_state import adamw_entries, adamw_from_torch
from ._decay_groups import TODAYS_RULE, DecayRule, groups_by_rule
from ._optimizer_formats import ADAFACTOR, ADAMW
from ._param_names import ParamNames
from ._pieces import by_leaf, by_tensor
from ._state_dict import Groups, check_group_count, read_state_dict

_KINDS = {ADAMW: AdamWState, ADAFACTOR: AdafactorState}


def opt_state_from_torch(
    opt_state: PyTree,
    params: PyTree,
    state_dict: Mapping[str, Any],
    names: ParamNames,
    *,
    groups: Groups | None = None,
    layouts: Mapping[str, TorchLayout] | None = None,
    step: int | None = None,
    decay_rule: DecayRule = TODAYS_RULE,
) -> PyTree:
    """Puts what torch's optimizer remembers into a state of ours.

    Moments go through the transformation of their weight; Adafactor's row and column
    means through that of their axes. Moments in bfloat16 or float16 are widened. A
    parameter without an entry, which never had a gradient, has zeros and the count 0.

    The numbers of the file get their parameters by its own `param_names`, else by
    `groups`, else by Trainer's two groups, the decayed one first, or by
    `named_parameters()` where there is one group. Trainer's groups depend on its
    version: those of `decay_rule` are taken, or those of the one version that has
    groups of the same lengths and shapes. Parameters of one shape that torch was given
    in another order than this, in one group or across them, cannot be told apart
    without names. Of other shapes they are refused.

    Args:
        opt_state: what `optimizer.init(params)` gives, `AdamWState` or `AdafactorState`
            somewhere in it; dtypes and devices are taken from it.
        params: the parameters that it is for, or their shapes.
        state_dict: torch's `optimizer.state_dict()`.
        names: which leaf is which torch parameter.
        groups: names in the order in which torch was given them, for each group.
        layouts: as `adafactor_tf` has them.
        step: what the schedule is asked next; None for the largest of the counts. The
            position is the scheduler's, and other than the counts where updates were
            skipped.
        decay_rule: rule of `decay_mask` that Trainer followed, as
            `trainer_decay_rule` returns it for a version.

    Returns:
        The state, to be updated on. Its `learning_rate` is the file's, which torch
        would use next. Its `count` is one per leaf where torch's differ.

    Raises:
        ValueError: if the state dict is no such optimizer's, or another format; if
            groups, numbers or shapes do not fit; if moments have no `step`; if a leaf
            would need two counts, or a dtype wider than it has.

    Source: torch 2.13 `optim/optimizer.py`, `Optimizer.load_state_dict`; transformers
        5.23 `trainer.py`, `Trainer.create_optimizer`.
    Differs: torch checks no shapes.
    """
    torch_state = read_state_dict(state_dict, names, groups, decay_rule)
    nodes = _ours(opt_state)
    wanted = _KINDS.get(torch_state.kind or "")
    if wanted is not None and any(type(node) is not wanted for node in nodes):
        raise ValueError(
            f"`opt_state` must be for the file's optimizer, {torch_state.kind}, got "
            f"{sorted({type(node).__name__ for node in nodes})}. Build the optimizer "
            "that the file is of."
        )
    pieces = by_leaf(names.pieces)

    def carried(node: Any) -> Any:
        if isinstance(node, AdamWState):
            return adamw_from_torch(node, params, torch_state, pieces, step)
        if isinstance(node, AdafactorState):
            return adafactor_from_torch(
                node, params, torch_state, pieces, step, layouts
            )
        return node

    return jax.tree.map(carried, opt_state, is_leaf=_is_ours)


def torch_from_opt_state(
    opt_state: PyTree,
    params: PyTree,
    names: ParamNames,
    param_groups: Sequence[Mapping[str, Any]],
    *,
    groups: Groups | None = None,
    layouts: Mapping[str, TorchLayout] | None = None,
    decay_rule: DecayRule = TODAYS_RULE,
) -> dict[str, Any]:
    """The state dict with which torch's optimizer goes on.

    Args:
        opt_state: the state of an optimizer with `adamw_tf` or `adafactor_tf` in it.
        params: the parameters that it is for.
        names: which leaf is which torch parameter.
        param_groups: what each group is set to, `lr`, `weight_decay` and so on, from
            `param_groups_from_recipe` or a state dict's own `param_groups`; torch takes
            all of it over, in place of what its optimizer was built with. The numbers
            of parameters are not read.
        groups: the names in each group, in the order in which torch is given them; None
            for Trainer's two, or `named_parameters()` for one.
        layouts: as `adafactor_tf` has them.
        decay_rule: rule of `decay_mask` by which Trainer makes its two groups, that of
            the version that continues the run.

    Returns:
        What `optimizer.load_state_dict` takes, and `torch.save` writes for
        `torch.load(weights_only=True)`. The groups have `param_names`, which torch
        keeps, so that the file can be read again without another source of names. A
        parameter that was never updated has no entry.

    Raises:
        ValueError: if none of our states is in `opt_state`, or groups do not fit.

    Source: torch 2.13 `optim/optimizer.py`, `Optimizer.state_dict`; `optim/adam.py`;
        transformers 5.23 `optimization.py`, `Adafactor`.
    """
    pieces = by_tensor(names.pieces)
    entries: dict[str, dict[str, Any]] = {}
    for node in _ours(opt_state):
        if isinstance(node, AdamWState):
            entries |= adamw_entries(node, params, pieces)
        else:
            entries |= adafactor_entries(node, params, pieces, layouts)
    if groups is None and len(param_groups) == 2:
        groups = groups_by_rule(decay_rule, names)
    named = check_group_count(len(param_groups), names, groups)
    number_of: dict[str, int] = {}
    saved = []
    for settings, group in zip(param_groups, named, strict=True):
        number_of |= {name: len(number_of) + i for i, name in enumerate(group)}
        kept = {k: v for k, v in settings.items() if k not in ("params", "param_names")}
        numbers = [number_of[name] for name in group]
        saved.append({**kept, "params": numbers, "param_names": list(group)})
    state = {i: entries[name] for name, i in number_of.items() if name in entries}
    return {"state": state, "param_groups": saved}


def _ours(opt_state: PyTree) -> list[AdamWState | AdafactorState]:
    nodes = jax.tree.leaves(opt_state, is_leaf=_is_ours)
    found = [node for node in nodes if _is_ours(node)]
    if not found:
        raise ValueError(
            "`opt_state` must hold the state of `adamw_tf` or `adafactor_tf`, got "
            f"{type(opt_state).__name__} without one. Pass the whole optimizer state."
        )
    return found


def _is_ours(node: Any) -> bool:
    return isinstance(node, AdamWState | AdafactorState)
