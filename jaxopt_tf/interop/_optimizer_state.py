"""Optimizer states of torch and states of `adamw_tf` and `adafactor_tf`."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from .._typing import PyTree
from ..optimizers import AdafactorState, AdamWState
from ._moments import Layouts, NodeMoments
from ._param_groups import TODAYS_RULE, DecayRule, Groups, resolve_groups
from ._param_names import ParamNames
from ._state_dict import TorchState, read_state_dict


def opt_state_from_torch(
    opt_state: PyTree,
    params: PyTree,
    state_dict: Mapping[str, Any],
    names: ParamNames,
    *,
    groups: Groups | None = None,
    layouts: Layouts = None,
    step: int | None = None,
    decay_rule: DecayRule = TODAYS_RULE,
) -> PyTree:
    """Converts the state dict of a torch optimizer to an optimizer state of ours.

    Moments go through the transformation of their weight; Adafactor's row and column
    means through that of their axes. Moments in bfloat16 or float16 are widened. A
    parameter without an entry, which never had a gradient, has zeros and the count 0.

    The numbers of the file get their parameters by its own `param_names`, else by
    `groups`, else by Trainer's two groups, the decayed one first, or by
    `named_parameters()` for one group. Trainer's groups depend on its version: those of
    `decay_rule` are taken, or those of the one version that has groups of the same
    lengths and shapes. Parameters of one shape that torch was given in another order
    than this, in one group or across them, cannot be distinguished without names. Those
    of other shapes are refused.

    Args:
        opt_state: the result of `optimizer.init(params)`, with an `AdamWState` or
            `AdafactorState` in it; dtypes and devices are taken from it.
        params: its parameters, or their shapes.
        state_dict: torch's `optimizer.state_dict()`.
        names: leaf of each torch parameter.
        groups: names in the order in which torch was given them, for each group.
        layouts: as `adafactor_tf` has them.
        step: step passed to the schedule next; None for the largest of the counts. It
            is the scheduler's, and differs from the counts if updates were skipped.
        decay_rule: rule of `decay_mask` that Trainer followed, as
            `trainer_decay_rule` returns it for a version.

    Returns:
        The state to continue from. Its `learning_rate` is the file's, which torch
        would use next. Its `count` is one per leaf if torch's differ.

    Raises:
        ValueError: if the state dict is no such optimizer's, or another format; if
            groups, numbers or shapes do not fit; if moments have no `step`; if a leaf
            would need two counts, or a dtype wider than it has.

    Source: torch 2.13 `optim/optimizer.py`, `Optimizer.load_state_dict`; transformers
        5.23 `trainer.py`, `Trainer.create_optimizer`.
    Differs: torch checks no shapes.
    """
    state = read_state_dict(state_dict, names, groups, decay_rule)
    return convert_state(opt_state, params, state, names, layouts=layouts, step=step)


def convert_state(
    opt_state: PyTree,
    params: PyTree,
    state: TorchState,
    names: ParamNames,
    *,
    layouts: Layouts,
    step: int | None,
) -> PyTree:
    """Converts as `opt_state_from_torch`, from a state dict with names."""
    # `optax.multi_transform` has a state for each of its groups, with masked leaves.
    nodes = _nodes(opt_state)
    kind = state.kind
    if kind is not None and any(type(node) is not kind for node in nodes):
        raise ValueError(
            "`opt_state` must be for the file's optimizer, "
            f"{kind.__name__.removesuffix('State')}, got "
            f"{sorted({type(node).__name__ for node in nodes})}. Build the optimizer "
            "that the file is of."
        )

    def converted(node: Any) -> Any:
        if not _is_node(node):
            return node
        return NodeMoments(node, params, names, layouts).from_torch(state, step)

    return jax.tree.map(converted, opt_state, is_leaf=_is_node)


def torch_from_opt_state(
    opt_state: PyTree,
    params: PyTree,
    names: ParamNames,
    param_groups: Sequence[Mapping[str, Any]],
    *,
    groups: Groups | None = None,
    layouts: Layouts = None,
    decay_rule: DecayRule = TODAYS_RULE,
) -> dict[str, Any]:
    """Converts an optimizer state of ours to the state dict of torch's optimizer.

    Args:
        opt_state: the state of an optimizer with `adamw_tf` or `adafactor_tf` in it.
        params: its parameters.
        names: leaf of each torch parameter.
        param_groups: settings of each group, `lr`, `weight_decay` and so on, as in a
            state dict's own `param_groups`; torch uses all of them in place of those
            that its optimizer was built with. The numbers of parameters are not read.
        groups: the names in each group, in the order in which torch is given them; None
            for Trainer's two, or `named_parameters()` for one.
        layouts: as `adafactor_tf` has them.
        decay_rule: rule of `decay_mask` by which Trainer makes its two groups, that of
            the version that continues the run.

    Returns:
        A state dict for `optimizer.load_state_dict`, which `torch.save` writes for
        `torch.load(weights_only=True)`. The groups have `param_names`, which torch
        keeps, so that the file can be read again without another source of names. A
        parameter that was never updated has no entry.

    Raises:
        ValueError: if none of our states is in `opt_state`, or groups do not fit.

    Source: torch 2.13 `optim/optimizer.py`, `Optimizer.state_dict`; `optim/adam.py`;
        transformers 5.23 `optimization.py`, `Adafactor`.
    """
    entries: dict[str, dict[str, Any]] = {}
    for node in _nodes(opt_state):
        entries |= NodeMoments(node, params, names, layouts).to_torch()
    named = resolve_groups(len(param_groups), names, groups, decay_rule)
    # torch numbers parameters through all groups, and keys the entries by the number.
    numbers: dict[str, int] = {}
    saved = []
    for settings, group in zip(param_groups, named, strict=True):
        numbers |= {name: len(numbers) + i for i, name in enumerate(group)}
        params_of = {"params": [numbers[n] for n in group], "param_names": list(group)}
        others = {k: v for k, v in settings.items() if k not in params_of}
        saved.append({**others, **params_of})
    state = {i: entries[name] for name, i in numbers.items() if name in entries}
    return {"state": state, "param_groups": saved}


def _nodes(opt_state: PyTree) -> list[AdamWState | AdafactorState]:
    nodes = jax.tree.leaves(opt_state, is_leaf=_is_node)
    found = [node for node in nodes if _is_node(node)]
    if not found:
        raise ValueError(
            "`opt_state` must hold the state of `adamw_tf` or `adafactor_tf`, got "
            f"{type(opt_state).__name__} without one. Pass the whole optimizer state."
        )
    return found


def _is_node(node: Any) -> bool:
    return isinstance(node, AdamWState | AdafactorState)
