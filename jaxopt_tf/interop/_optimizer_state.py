"""Conversion between state dicts of torch and states of optimizers of this package."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from .._typing import PyTree
from ..optimizers import (
    AdEMAMixState,
    LionState,
    RMSpropState,
    ScheduleFreeState,
    StableAdamWState,
    averaging_states,
)
from ._group_settings import stable_adamw_group, torchao_group
from ._moments import Layouts, NodeMoments
from ._param_groups import NEWEST_RULE, DecayRule, Groups, resolve_groups
from ._param_names import ParamNames
from ._schedule_free import group_numbers
from ._state_dict import TorchState, read_state_dict
from ._state_keys import KEYS_BY_STATE


def opt_state_from_torch(
    opt_state: PyTree,
    params: PyTree,
    state_dict: Mapping[str, Any],
    names: ParamNames,
    *,
    groups: Groups | None = None,
    layouts: Layouts = None,
    step: int | None = None,
    decay_rule: DecayRule = NEWEST_RULE,
) -> PyTree:
    """Converts the state dict of a torch optimizer to an optax state.

    Moments are transposed, reshaped and stacked in the same way as their parameters;
    for Adafactor's row and column means, this applies to their remaining axes. Moments
    in bfloat16 or float16 are converted to the dtype of `opt_state`. Codes of 8 bits
    and the scales of their blocks, in files of bitsandbytes and torchao, are copied to
    a state of `adamw_8bit_tf` or another optimizer of 8 bits, which must quantize the
    same leaves; those of 4 bits, in files of torchao, to one of `adamw_4bit_tf`.
    Files of torch's SGD, Adagrad and RMSprop, of bitsandbytes' AdamW, Lion, RMSprop and
    AdEMAMix, of torch-optimi's StableAdamW and of Transformers' Adafactor are read like
    those of AdamW. A parameter without an entry, which never had a gradient, has
    moments of zeros and the count 0. Files of SGD have no counts: a parameter with a
    buffer has the count `step`, or 1 if that is None.
    For schedulefree, z of a parameter without an entry is the parameter. The weights
    beside a file whose `train_mode` is False are not the parameters of training;
    `read_trainer_checkpoint` converts them.

    A state dict identifies parameters by index. Their names are taken from the first of
    these sources that exists: `param_names` in the file; `groups`; Trainer's two groups
    (decayed parameters first), or `named_parameters()` for a single group. Trainer's
    groups depend on its version: they are those of `decay_rule` if their lengths and
    shapes match the file, else those of the only version that matches. Without names,
    an exchange of two parameters of equal shape cannot be detected; parameters of
    different shapes in another order are refused.

    Args:
        opt_state: the result of `optimizer.init(params)`, which contains an
            `AdamWState` or the state of the file's optimizer, and defines dtypes and
            devices.
        params: parameters of `opt_state`, or their shapes.
        state_dict: torch's `optimizer.state_dict()`.
        names: names of torch's parameters, with the leaf of each.
        groups: names of the parameters of each group, in the order in which they were
            passed to torch.
        layouts: layouts that `adafactor_tf` or `adamw_8bit_tf` was built with.
        step: step passed to the schedule next, from the state of the scheduler; None
            for the largest count. Step and count differ if updates were skipped.
        decay_rule: rule of `decay_mask` that Trainer used, as returned by
            `trainer_decay_rule` for the version of Trainer.

    Returns:
        The state to resume from. Its `learning_rate` is that of the file, which torch
        uses for the next update. Its `count` has one number per leaf if the counts of
        torch differ.

    Raises:
        ValueError: if the state dict is of another optimizer or format; if groups,
            indices or shapes do not match; if moments have no `step`; if a leaf would
            need two counts, or a wider dtype than it has; or if its moments have other
            numbers of bits, levels or blocks here than in the file.

    Source: torch 2.13 `optim/optimizer.py`, `Optimizer.load_state_dict`; transformers
        5.23 `trainer.py`, `Trainer.create_optimizer`.
    Differs: torch does not check shapes.
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
    """Converts a state dict with names, like `opt_state_from_torch`."""
    # `optax.multi_transform` contains one state for each of its groups, in which the
    # leaves of the other groups are masked.
    nodes = _nodes(opt_state)
    kind = state.kind
    if kind is not None and any(type(node) is not kind for node in nodes):
        raise ValueError(
            "`opt_state` must be for the file's optimizer, "
            f"{kind.__name__.removesuffix('State')}, got "
            f"{sorted({type(node).__name__ for node in nodes})}. Build the optimizer "
            "of the file."
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
    decay_rule: DecayRule = NEWEST_RULE,
    last_rate: float | None = None,
) -> dict[str, Any]:
    """Converts an optax state to the state dict of torch's optimizer.

    Args:
        opt_state: the state of an optimizer that contains `adamw_tf`, `adafactor_tf`,
            `sgd_tf`, `adagrad_tf`, `lion_tf`, `rmsprop_tf`, `ademamix_tf`,
            `stable_adamw_tf`, a form of these with 8 or 4 bits, or a schedule-free
            optimizer.
        params: parameters of `opt_state`.
        names: names of torch's parameters, with the leaf of each.
        param_groups: settings of each group (`lr`, `weight_decay` and others), as in
            `param_groups` of a state dict. torch uses them in place of the settings
            that its optimizer was built with. `params` of a group is not read. If a
            group has `t_alpha`, if moments have 8 bits as in bitsandbytes, for Lion and
            AdEMAMix, and for RMSprop without `centered` in the groups, the state dict
            is that of bitsandbytes (0.49.2 and later). If moments are those of torchao,
            rates of the groups are tensors. For schedulefree, `k`, `weight_sum` and
            `lr_max` of each group come from the state, and `train_mode` is True,
            because `params` are those of training.
        groups: names of the parameters of each group, in the order in which they are
            passed to torch; None for Trainer's two groups, or for
            `named_parameters()` if there is one group.
        layouts: layouts that `adafactor_tf` or `adamw_8bit_tf` was built with.
        decay_rule: rule of `decay_mask` by which Trainer makes its two groups, that of
            the version that resumes the run.
        last_rate: rate of the schedule at the last update, from which `scheduled_lr` of
            schedulefree is computed; None for the float32 rate in the state.

    Returns:
        A state dict for `optimizer.load_state_dict`. A file that `torch.save` writes
        from it can be read by `torch.load(weights_only=True)`. The groups have
        `param_names`, which torch preserves, so that the file can be read again without
        another source of names. A parameter that was never updated has no entry.
        Moments of torchao are instances of its classes if torchao is imported.
        Otherwise `load_torch`, `save_torch` and `opt_state_from_torch` accept them, but
        not `torch.save` and the optimizer itself.

    Raises:
        ValueError: if `opt_state` contains no state that is converted, if its moments
            have other blocks than torch's tensors, or if groups do not match the
            parameters or the moments.

    Source: torch 2.13 `optim/optimizer.py`, `Optimizer.state_dict`; `optim/adam.py`;
        transformers 5.23 `optimization.py`, `Adafactor`.
    """
    entries: dict[str, dict[str, Any]] = {}
    nodes = [NodeMoments(n, params, names, layouts) for n in _nodes(opt_state)]
    kinds = {type(node) for node in _nodes(opt_state)}
    # Groups of bitsandbytes have the settings of AdEMAMix.
    is_of_bitsandbytes = any(node.is_of_bitsandbytes for node in nodes)
    is_of_torchao = any(node.is_of_torchao for node in nodes)
    is_of_torch = any("centered" in settings for settings in param_groups)
    if is_of_torchao and any("t_alpha" in settings for settings in param_groups):
        raise ValueError(
            "`param_groups` must be those of torchao for its moments, got groups of "
            "bitsandbytes. Remove `alpha`, `t_alpha` and `t_beta3`."
        )
    if is_of_bitsandbytes and is_of_torch:
        raise ValueError(
            "`param_groups` must be those of bitsandbytes for moments of 8 bits, got "
            "groups of torch's RMSprop. Pass `betas` as (alpha, 0)."
        )
    for_bitsandbytes = (
        is_of_bitsandbytes
        or bool(kinds & {AdEMAMixState, LionState})
        or (RMSpropState in kinds and not is_of_torch)
        or any("t_alpha" in settings for settings in param_groups)
    )
    for node in nodes:
        entries |= node.to_torch(for_bitsandbytes=for_bitsandbytes)
    named = resolve_groups(len(param_groups), names, groups, decay_rule)
    # torch numbers the parameters of all groups consecutively. These indices are the
    # keys of the entries.
    index_by_name: dict[str, int] = {}
    saved = []
    for settings, group in zip(param_groups, named, strict=True):
        index_by_name |= {name: len(index_by_name) + i for i, name in enumerate(group)}
        group_params = {
            "params": [index_by_name[n] for n in group],
            "param_names": list(group),
        }
        hyperparams = {k: v for k, v in settings.items() if k not in group_params}
        for averaging_state in averaging_states(opt_state):
            if isinstance(averaging_state, ScheduleFreeState):
                hyperparams |= group_numbers(averaging_state, settings, last_rate)
        if is_of_torchao:
            hyperparams = torchao_group(hyperparams)
        if StableAdamWState in kinds:
            group_entries = [entries.get(name) for name in group]
            hyperparams = stable_adamw_group(hyperparams, group_entries)
        saved.append({**hyperparams, **group_params})
    state = {i: entries[name] for name, i in index_by_name.items() if name in entries}
    return {"state": state, "param_groups": saved}


def _nodes(opt_state: PyTree) -> list[Any]:
    nodes = jax.tree.leaves(opt_state, is_leaf=_is_node)
    found = [node for node in nodes if _is_node(node)]
    if not found:
        raise ValueError(
            "`opt_state` must contain a state of `adamw_tf` or of another optimizer "
            f"that is converted ({', '.join(k.__name__ for k in KEYS_BY_STATE)}), got "
            f"{type(opt_state).__name__} without one. Pass the whole optimizer state."
        )
    return found


def _is_node(node: Any) -> bool:
    return type(node) in KEYS_BY_STATE
