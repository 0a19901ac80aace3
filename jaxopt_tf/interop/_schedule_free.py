"""Parameters and numbers of schedulefree's optimizers in files of Trainer.

During training the parameters of schedulefree are y, and in evaluations the mean x. A
file contains the one or the other with the weights, and says which in `train_mode` of
its groups: Trainer saves x after an evaluation at the same step, else y.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from .. import _checks, _pytrees
from .._numerics import split_float
from .._typing import PyTree
from ..optimizers import ScheduleFreeState, averaging_states
from ..recipes import Recipe
from ._arrays import device_put_like

# Numbers of a group that change with every step, and are equal in all groups.
RUNNING = ("k", "weight_sum", "lr_max", "scheduled_lr", "train_mode")


def settings_from_recipe(recipe: Recipe) -> dict[str, Any]:
    """Returns the settings of a group of schedulefree 1.4.1 as Trainer builds it.

    Source: transformers 5.23 `trainer_optimizer.py`, `_get_schedule_free_optimizer`.
    """
    pairs: Any = recipe.optim_args  # a tuple of names and values
    optim_args: dict[str, Any] = dict(pairs)
    settings: dict[str, Any] = {
        "foreach": True,
        "r": float(optim_args.get("r", 0.0)),
        "weight_lr_power": float(optim_args.get("weight_lr_power", 2.0)),
    }
    if recipe.optim == "schedule_free_sgd":
        settings["momentum"] = 0.9
    else:
        settings["betas"] = (float(recipe.adam_beta1), float(recipe.adam_beta2))
        settings["eps"] = float(recipe.adam_epsilon)
    if recipe.optim == "schedule_free_radam":
        settings["silent_sgd_phase"] = True
    else:
        settings["warmup_steps"] = recipe.num_warmup_steps
    return settings


def has_schedule_free(opt_state: PyTree) -> bool:
    """Returns whether a state contains that of a schedule-free optimizer."""
    return any(isinstance(s, ScheduleFreeState) for s in averaging_states(opt_state))


def with_numbers(
    node: ScheduleFreeState, groups: Sequence[Mapping[str, Any]]
) -> ScheduleFreeState:
    """Returns the state with the sums of the groups that its leaves belong to.

    Args:
        node: state of one schedule-free optimizer.
        groups: settings of these groups; those before the first update have no sums.

    Raises:
        ValueError: if the groups have different sums.
    """
    dtype, numbers = node.learning_rate.dtype, {}
    for name, first in (("weight_sum", 0.0), ("lr_max", -1.0)):
        found = {float(group.get(name, first)) for group in groups} or {first}
        if len(found) > 1:
            raise ValueError(
                f"`{name}` must be equal in all groups of one optimizer, got "
                f"{sorted(found)}. Save the optimizer with one learning rate."
            )
        number = split_float.from_float(found.pop(), dtype)
        placed = map(device_put_like, number, getattr(node, name))
        numbers[name] = split_float.SplitFloat(*placed)
    return node._replace(weight_sum=numbers["weight_sum"], lr_max=numbers["lr_max"])


def num_updates(groups: Sequence[Mapping[str, Any]]) -> int:
    """Returns `k`, which is equal in all groups; 0 before the first update."""
    counts = {_checks.step_count("k", group.get("k", 0)) for group in groups}
    if len(counts) > 1:
        raise ValueError(
            f"`k` must be equal in all groups of one optimizer, got {sorted(counts)}. "
            "Save the optimizer again."
        )
    return counts.pop() if counts else 0


def check_train_mode(groups: Sequence[Mapping[str, Any]]) -> None:
    """Raises unless all groups of a schedule-free optimizer have one `train_mode`."""
    modes = [group.get("train_mode") for group in groups]
    if not isinstance(modes[0], bool) or any(mode is not modes[0] for mode in modes):
        raise ValueError(
            "`train_mode` must be True in all groups of schedulefree, or False in all, "
            f"got {modes}: it determines whether the weights beside the file are those "
            "of training or their mean. Save the optimizer again, with schedulefree "
            "1.4."
        )


def group_numbers(
    node: ScheduleFreeState, settings: Mapping[str, Any], rate: float | None
) -> dict[str, Any]:
    """Returns the numbers of a group, for parameters of training.

    Args:
        node: state of the optimizer.
        settings: settings of the group.
        rate: rate of the schedule at the last update; None for that of the state.
    """
    k = int(node.count)
    rate = float(node.learning_rate) if rate is None else rate
    return {
        "k": k,
        "weight_sum": split_float.to_float(node.weight_sum),
        "lr_max": split_float.to_float(node.lr_max),
        # schedulefree only reports it.
        "scheduled_lr": rate * _rate_factor(settings, k) if k else 0.0,
        "train_mode": True,
    }


def training_params(
    params: PyTree, opt_state: PyTree, groups: Sequence[Mapping[str, Any]]
) -> PyTree:
    """Returns y for the weights beside a file, as `train` of schedulefree does.

    Args:
        params: the weights.
        opt_state: the converted state.
        groups: settings of the groups of the file.
    """
    if not groups or groups[0].get("train_mode", True):
        return params
    return _interpolated_to_z(params, opt_state, 1.0 - _x_weight(groups[0]))


def mean_params(
    params: PyTree, opt_state: PyTree, groups: Sequence[Mapping[str, Any]]
) -> PyTree:
    """Returns x for parameters of training, as `eval` of schedulefree does."""
    return _interpolated_to_z(params, opt_state, 1.0 - 1.0 / _x_weight(groups[0]))


def _x_weight(group: Mapping[str, Any]) -> float:
    return float(group["betas"][0] if "betas" in group else group["momentum"])


def _interpolated_to_z(params: PyTree, opt_state: PyTree, weight: float) -> PyTree:
    """Returns p + weight * (z - p), rounded as torch's `lerp_` on a CPU.

    The optimizers of this package compute the same with another rounding, so that only
    this function returns the bits of a file.

    Source: torch 2.13 `aten/src/ATen/native/Lerp.h`, `lerp_vec`.
    """
    treedef: Any = jax.tree.structure(params)
    leaves = jax.tree.leaves(params)
    for state in averaging_states(opt_state):
        if not isinstance(state, ScheduleFreeState):
            continue
        for i, z in enumerate(treedef.flatten_up_to(state.z)):
            if not _pytrees.is_masked(z):
                moved = _lerp(np.asarray(leaves[i]), np.asarray(z), weight)
                leaves[i] = device_put_like(moved, leaves[i])
    return treedef.unflatten(leaves)


def _lerp(p: np.ndarray, z: np.ndarray, weight: float) -> np.ndarray:
    dtype = p.dtype
    wide: Any = np.float64 if dtype == np.float64 else np.float32
    p, z, factor = p.astype(wide), z.astype(wide), wide(weight)
    start = p
    if abs(factor) >= 0.5:
        start, factor = z, factor - wide(1)
    # The product is exact in float64, so that product and sum are rounded once, as by
    # a fused multiply-add.
    total = np.float64(factor) * np.float64(z - p) + np.float64(start)
    return total.astype(wide).astype(dtype)


def _rate_factor(settings: Mapping[str, Any], k: int) -> float:
    """Returns the factor of the rate at update `k`, from 1, in double."""
    if "silent_sgd_phase" not in settings:
        warmup = int(settings.get("warmup_steps", 0))
        return k / warmup if k <= warmup else 1.0
    beta2 = float(settings["betas"][1])
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * k * beta2**k / (1 - beta2**k)
    if rho <= 4:
        return float(not settings["silent_sgd_phase"])
    ratio = (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)
    return float(ratio**0.5)
