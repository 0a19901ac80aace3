"""What torch's parameter groups are set to, from a recipe; and against one."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..recipes import METRIC_DRIVEN, Recipe

_ADAMW = "adamw_torch"
# Where torch, when it loads a file, takes the file's and not the recipe's.
_CHECKED = (
    "eps",
    "beta1",
    "decay_rate",
    "weight_decay",
    "amsgrad",
    "maximize",
    "decoupled_weight_decay",
    "scale_parameter",
    "relative_step",
    "warmup_init",
)
# Those that every group of AdamW, or of Adafactor, has.
_NEEDED = ("betas", "clip_threshold")


def param_groups_from_recipe(
    recipe: Recipe, learning_rate: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of Trainer's two groups: decayed, and not.

    Args:
        recipe: the numbers of the run; of AdamW with torch's numbers, or Adafactor.
        learning_rate: the rate of the next update.

    Raises:
        ValueError: if the recipe has another optimizer, or groups of rates, which
            Trainer does not have.

    Source: transformers 5.23 `trainer_optimizer.py`; torch 2.13 `optim/adamw.py`.
    """
    if recipe.rate_groups:
        raise ValueError(
            "`recipe` must have no `rate_groups`, got "
            f"{[group.pattern for group in recipe.rate_groups]}: Trainer has none to "
            "go on with. Write the state dict by `torch_from_opt_state`."
        )
    if recipe.optim.startswith(_ADAMW):
        settings = {
            "lr": learning_rate,
            "betas": (float(recipe.adam_beta1), float(recipe.adam_beta2)),
            "eps": float(recipe.adam_epsilon),
            "weight_decay": 0.0,
            "amsgrad": False,
            "maximize": False,
            "foreach": None,
            "capturable": False,
            "differentiable": False,
            "fused": True if recipe.optim == "adamw_torch_fused" else None,
            "decoupled_weight_decay": True,
        }
    elif recipe.optim == "adafactor":
        settings = {
            "lr": learning_rate,
            "eps": (1e-30, 1e-3),
            "clip_threshold": 1.0,
            "decay_rate": -0.8,
            "beta1": None,
            "weight_decay": 0.0,
            "scale_parameter": False,
            "relative_step": False,
            "warmup_init": False,
        }
    else:
        raise ValueError(
            "`recipe` must have torch's AdamW or Adafactor for `optim`, got "
            f"{recipe.optim!r}, whose state is not carried over."
        )
    # The base of the rate, which torch's schedules leave in the group.
    if recipe.lr_scheduler_type not in METRIC_DRIVEN:
        settings["initial_lr"] = float(recipe.learning_rate)
    return {**settings, "weight_decay": float(recipe.weight_decay)}, settings


def check_param_groups(
    param_groups: Sequence[Mapping[str, Any]], recipe: Recipe
) -> None:
    """Raises if groups are set to other numbers than the recipe has; lists all.

    torch continues with the numbers of the file, whatever it was started with, so that
    a recipe with others is not that run. Of several groups, each may be decayed or not,
    in any order; if none is, the first is taken for Trainer's decayed one.
    """
    if any("correct_bias" in group for group in param_groups):
        raise ValueError(
            f"`recipe` must have the optimizer of the file, got {recipe.optim!r} for "
            "one of transformers.AdamW (`adamw_hf`), which adds epsilon elsewhere. "
            "Continue it with `adamw_hf_v4` and `opt_state_from_torch`."
        )
    decayed, spared = param_groups_from_recipe(recipe, 0.0)
    wanted = [decayed, spared][: len(param_groups)]
    if len(param_groups) > 2 or any(g.get("weight_decay") for g in param_groups[1:]):
        wanted = [decayed if g.get("weight_decay") else spared for g in param_groups]
    odd = [
        f"`{key}` of group {number} is {_plain(group.get(key))!r} and the recipe's "
        f"{_plain(own[key])!r}"
        for number, (group, own) in enumerate(zip(param_groups, wanted, strict=True))
        for key in (*_NEEDED, *_CHECKED)
        if key in own
        and (key in group or key in _NEEDED)
        and _plain(group.get(key)) != _plain(own[key])
    ]
    if odd:
        raise ValueError(
            f"`recipe` must have the numbers of the file's groups, but "
            f"{'; '.join(odd)}. Take the recipe that the run was begun with."
        )


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value
