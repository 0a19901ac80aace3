"""Settings of the groups of torch optimizers, as Trainer builds them from a recipe."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..recipes import Recipe
from ._arrays import as_tensor
from ._extras import import_extra
from ._schedule_free import settings_from_recipe

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
# Of torch 2.13, as Trainer builds them.
SGD_SETTINGS = {
    **{"momentum": 0, "dampening": 0, "nesterov": False},
    **dict.fromkeys(("maximize", "differentiable"), False),
    **dict.fromkeys(("foreach", "fused")),
}
ADAGRAD_SETTINGS = {
    **{"lr_decay": 0, "eps": 1e-10, "initial_accumulator_value": 0},
    **dict.fromkeys(("maximize", "differentiable"), False),
    **dict.fromkeys(("foreach", "fused")),
}
RMSPROP_SETTINGS = {
    **{"momentum": 0, "alpha": 0.99, "eps": 1e-8, "centered": False},
    **dict.fromkeys(("maximize", "capturable", "differentiable"), False),
    "foreach": None,
}
_TORCH_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "sgd": SGD_SETTINGS,
    "adagrad": ADAGRAD_SETTINGS,
    "rmsprop": RMSPROP_SETTINGS,
}
# bitsandbytes has one class for AdamW and AdEMAMix, whose settings these are.
BITSANDBYTES_SETTINGS = {"alpha": 0.0, "t_alpha": None, "t_beta3": None}
# RMSprop of bitsandbytes as Trainer builds it: alpha and momentum are its betas.
BITSANDBYTES_RMSPROP_SETTINGS = {"betas": (0.99, 0), "eps": 1e-8}
STABLE_ADAMW_SETTINGS = {
    **dict.fromkeys(("max_lr", "kahan_sum", "foreach")),
    **dict.fromkeys(("decouple_lr", "triton", "gradient_release"), False),
    "setup": True,
}
# Values of `optim` by the library whose AdamW Trainer builds.
_TORCH_ADAMW = {
    *("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused")
}
_BITSANDBYTES_ADAMW = {
    *("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit")
}
_BITSANDBYTES_ADEMAMIX = {
    *("ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit")
}
_BITSANDBYTES_LION = {
    *("lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit")
}
TORCHAO_ADAMW = {"adamw_torch_8bit", "adamw_torch_4bit"}
_BITSANDBYTES_RMSPROP = {*("rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit")}


def group_settings(recipe: Recipe) -> dict[str, Any]:
    """Returns the settings of a group, without its rate and weight decay.

    Raises:
        ValueError: if the state of the recipe's optimizer is not converted.

    Source: transformers 5.23 `trainer_optimizer.py`; torch 2.13 `optim/`; bitsandbytes
        0.50.2 `optim/`; torchao 0.18 `optim/adam.py`; torch-optimi 0.3.3
        `stableadamw.py`.
    """
    of_adam = {
        "betas": (float(recipe.adam_beta1), float(recipe.adam_beta2)),
        "eps": float(recipe.adam_epsilon),
    }
    if recipe.optim in _TORCH_ADAMW:
        is_fused = recipe.optim == "adamw_torch_fused"
        return {**ADAMW_SETTINGS, **of_adam, "fused": True if is_fused else None}
    if recipe.optim in _TORCH_SETTINGS:
        return {**_TORCH_SETTINGS[recipe.optim], **_optim_args(recipe)}
    if recipe.optim in _BITSANDBYTES_ADAMW:
        return {**BITSANDBYTES_SETTINGS, **of_adam}
    if recipe.optim in TORCHAO_ADAMW:
        return {**of_adam, "amsgrad": False}
    if recipe.optim in _BITSANDBYTES_ADEMAMIX:
        return _ademamix_settings(recipe)
    if recipe.optim in _BITSANDBYTES_LION:
        return {**of_adam, "eps": 0.0}
    if recipe.optim in _BITSANDBYTES_RMSPROP:
        return dict(BITSANDBYTES_RMSPROP_SETTINGS)
    if recipe.optim == "stable_adamw":
        return _stable_adamw_settings(recipe)
    if recipe.optim.startswith("schedule_free"):
        return settings_from_recipe(recipe)
    if recipe.optim == "adafactor":
        return dict(ADAFACTOR_SETTINGS)
    raise ValueError(
        "`recipe` must have AdamW, SGD, Adagrad or RMSprop of torch, an optimizer of "
        "bitsandbytes or torchao, Adafactor, StableAdamW or a schedule-free one for "
        f"`optim`, got {recipe.optim!r}, whose state cannot be converted."
    )


def _ademamix_settings(recipe: Recipe) -> dict[str, Any]:
    args = _optim_args(recipe)
    betas = (
        float(args.get("beta1", recipe.adam_beta1)),
        float(args.get("beta2", recipe.adam_beta2)),
        float(args.get("beta3", 0.9999)),
    )
    return {
        **BITSANDBYTES_SETTINGS,
        "betas": betas,
        "eps": float(args.get("eps", recipe.adam_epsilon)),
        "alpha": float(args.get("alpha", 5.0)),
        **{name: args[name] for name in ("t_alpha", "t_beta3") if name in args},
    }


def _optim_args(recipe: Recipe) -> dict[str, Any]:
    pairs: Any = recipe.optim_args  # as stored
    return dict(pairs)


def _stable_adamw_settings(recipe: Recipe) -> dict[str, Any]:
    args = _optim_args(recipe)
    settings = {
        **STABLE_ADAMW_SETTINGS,
        "beta1": float(recipe.adam_beta1),
        "beta2": float(recipe.adam_beta2),
        "eps": float(recipe.adam_epsilon),
        **{name: args[name] for name in STABLE_ADAMW_SETTINGS.keys() & args.keys()},
    }
    if settings["decouple_lr"] and settings["max_lr"] is None:
        settings["max_lr"] = float(recipe.learning_rate)
    return settings


def torchao_group(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a group of torchao, whose rates are tensors.

    torchao raises an error for a rate that is a number, and the schedule writes its
    rates into the tensor.

    Source: torchao 0.18 `optim/adam.py`, `_AdamBase`.
    """
    rates = {
        key: as_tensor(np.array(float(settings[key]), np.float32))
        for key in ("lr", "initial_lr")
        if key in settings
    }
    return {"amsgrad": False, **settings, **rates}


def stable_adamw_group(
    settings: Mapping[str, Any], entries: Sequence[dict[str, Any] | None]
) -> dict[str, Any]:
    """Returns a group of StableAdamW, with the count of its parameters.

    Moves `step` from the entries to the group, and adds `eps_sq` to them.

    Args:
        settings: settings of the group.
        entries: entries of its parameters; None for one that was never updated.

    Raises:
        ValueError: if the parameters have different numbers of updates.

    Source: torch-optimi 0.3.3 `stableadamw.py`, `_init_group`.
    """
    torch = import_extra("torch")

    counts = {int(entry.pop("step")) if entry else 0 for entry in entries} or {0}
    if len(counts) > 1:
        raise ValueError(
            "`opt_state` must have one number of updates for each group of "
            f"StableAdamW, got {sorted(counts)}. Its file counts in the group."
        )
    settings = {**settings, "step": as_tensor(np.array(max(counts), np.int32))}
    for entry in filter(None, entries):
        dtype = entry["exp_avg"].dtype
        entry["eps_sq"] = torch.tensor(float(settings["eps"]) ** 2, dtype=dtype)
        # torch-optimi turns None into True only when it creates a state.
        if entry["kahan_comp"] is not None:
            settings["kahan_sum"] = True
    return settings
