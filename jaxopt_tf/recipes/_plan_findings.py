"""What the numbers alone give away: of the recipe, and of the parameters beside it."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import _pytrees
from .._numerics import wide_dtype
from .._typing import PyTree
from ..optimizers import LayerNorms, TorchLayout, decay_mask
from ..schedules import MetricDrivenSchedule
from ._optimizer_names import ADAMW
from ._recipe import Recipe
from ._recipe_schedule import METRIC_DRIVEN, scheduler_of

# A share by which float32(1 - rate * weight_decay) may miss the decay asked for.
_DECAY_ERROR = 0.05
# Half a unit in the last place of 1, the least change of a bfloat16 that stays.
_HALF_UNIT_BF16 = 2.0**-9
# GPT-2's, and near that of most initialisations.
_USUAL_RMS = 0.02


class Told(NamedTuple):
    """The three parts of a finding."""

    what: str
    why: str
    instead: str


def recipe_findings(recipe: Recipe, params: PyTree | None) -> list[Told]:
    """Returns what is wrong with the recipe alone.

    Args:
        recipe: the numbers of the run.
        params: the parameters, for their dtypes; None for float32.
    """
    if recipe.learning_rate == 0:
        return [
            Told(
                "`learning_rate` is 0",
                "no parameter will ever change",
                "Give a rate, 3e-4 say",
            )
        ]
    if recipe.lr_scheduler_type in METRIC_DRIVEN:
        return _driven(recipe)
    return [*_warmup(recipe), *_rates(recipe), *_decay(recipe, params)]


def _warmup(recipe: Recipe) -> list[Told]:
    num_warmup, max_steps = recipe.num_warmup_steps, recipe.max_steps
    if recipe.lr_scheduler_type == "constant" and num_warmup:
        return [
            Told(
                f"`warmup_steps` is {recipe.warmup_steps!r} with 'constant'",
                "that schedule has no warm-up, as in Transformers, and ignores it",
                "Take 'constant_with_warmup'",
            )
        ]
    if num_warmup > max_steps / 2:
        return [
            Told(
                f"{num_warmup} of {max_steps} steps are warm-up",
                "the highest rate is used for the smaller part of the run, or never",
                f"Take at most a tenth, `warmup_steps={max(1, max_steps // 10)}`",
            )
        ]
    return []


def _rates(recipe: Recipe) -> list[Told]:
    steps = np.unique(np.linspace(0, recipe.max_steps - 1, 1_000).astype(np.int32))
    schedule = scheduler_of(recipe)
    assert not isinstance(schedule, MetricDrivenSchedule)
    rates = np.asarray(schedule(jnp.asarray(steps)), np.float64)
    found = []
    is_zero = np.mean(rates[1:] == 0) if len(rates) > 1 else 0.0
    if is_zero > 0.02:
        found.append(
            Told(
                f"the rate is 0 in {is_zero:.0%} of the steps",
                "they cost as much as all others and change nothing",
                "Make the phases as long as the run, or the run as short as the phases",
            )
        )
    falls = recipe.lr_scheduler_type not in ("constant", "constant_with_warmup")
    if falls and rates[-1] > 0.5 * rates.max() and recipe.max_steps > 20:
        found.append(
            Told(
                f"the last rate is {rates[-1]:.3g}, the highest {rates.max():.3g}",
                "the run ends where its loss is still noisy",
                "Let it fall: a smaller `num_cycles` or `lr_end`, or another schedule",
            )
        )
    return found


def _decay(recipe: Recipe, params: PyTree | None) -> list[Told]:
    if recipe.weight_decay == 0 or recipe.optim not in ADAMW:
        return []
    leaves = [p for p in jax.tree.leaves(params) if _pytrees.is_floating(p)]
    if {wide_dtype(p.dtype) for p in leaves} == {jnp.dtype(jnp.float64)}:
        return []
    asked = recipe.learning_rate * recipe.weight_decay
    # As torch multiplies: by what float32 makes of 1 - rate * weight_decay.
    done = 1.0 - float(np.float32(1.0 - asked))
    error = abs(done - asked) / asked
    if error <= _DECAY_ERROR:
        return []
    instead = (
        "Take a larger `weight_decay`; or in code, as it has no flag, an optimizer of "
        "your own with `adamw_tf(..., decay='exact')`"
    )
    what = f"rate times decay is {asked:.2g} at most"
    if done == 0:
        return [Told(what, "float32 has no 1 - that: nothing is decayed", instead)]
    return [Told(what, f"float32 makes it {done:.2g}, off by {error:.0%}", instead)]


def _driven(recipe: Recipe) -> list[Told]:
    options = dict(recipe.lr_scheduler_kwargs)
    name, rate, found = recipe.lr_scheduler_type, recipe.learning_rate, []
    if options.get("mode", "min") == "max":
        found.append(
            Told(
                f"{name!r} has mode 'max'",
                "the metric that drives it is a loss unless another is named: it would "
                "lower the rate while the loss falls",
                "Leave `mode` out, or see that the metric is one that should rise",
            )
        )
    least = options.get("min_lr", 1e-3 if name == "greedy" else 0.0)
    if rate < least:
        found.append(
            Told(
                f"`min_lr` of {name!r} is {least:g}, above `learning_rate` {rate:g}",
                "the rate can only rise, and every reduction counts as one at the floor"
                if name == "greedy"
                else "the rate can never be reduced",
                f"Give `min_lr` and `max_lr` around the rate, {rate / 100:g} say"
                if name == "greedy"
                else "Give a `min_lr` below it",
            )
        )
    most = options.get("max_lr", 1.0)
    if name == "greedy" and rate > most:
        found.append(
            Told(
                f"`max_lr` of {name!r} is {most:g}, below `learning_rate` {rate:g}",
                "the rate can only fall, until it is below that",
                f"Give a `max_lr` above the rate, {10 * rate:g} say",
            )
        )
    return found


def params_findings(
    recipe: Recipe,
    params: PyTree,
    layout: Mapping[str, TorchLayout],
    layer_norms: LayerNorms,
) -> list[Told]:
    """What the parameters' names, shapes and dtypes give away."""
    leaves = [
        (n, x) for n, x in _pytrees.named_leaves(params) if _pytrees.is_floating(x)
    ]
    return [
        *_low_precision(recipe, leaves),
        *_decayed_by_accident(recipe, params, layer_norms),
        *_undeclared_stack(recipe, leaves, layout),
    ]


def _low_precision(recipe: Recipe, leaves: list) -> list[Told]:
    low = [name for name, leaf in leaves if leaf.dtype == jnp.bfloat16]
    found = []
    if low and recipe.learning_rate / _USUAL_RMS < _HALF_UNIT_BF16:
        found.append(
            Told(
                f"{len(low)} leaves are bfloat16, {low[0]!r} the first, and the rate "
                f"is {recipe.learning_rate:g}",
                f"an update is about the rate, and one below {_HALF_UNIT_BF16:.1g} of "
                "a parameter is rounded away",
                "Keep parameters in float32 and pass `compute_dtype=jnp.bfloat16`",
            )
        )
    asked = recipe.learning_rate * recipe.weight_decay
    if low and 0 < asked < _HALF_UNIT_BF16:
        found.append(
            Told(
                f"rate times decay is {asked:.2g} at most, for bfloat16 leaves",
                "a decay of so little is rounded away where the update is small",
                "Keep parameters in float32",
            )
        )
    return found


def _decayed_by_accident(
    recipe: Recipe, params: PyTree, layer_norms: LayerNorms
) -> list[Told]:
    if recipe.weight_decay == 0 or recipe.decay_rule == "default":
        return []
    if _pytrees.nameless_leaves(params):
        return []  # the optimizer refuses them, or has a mask of its own
    ours = dict(_pytrees.named_leaves(decay_mask(params)))
    mask = decay_mask(params, rule=recipe.decay_rule, layer_norms=layer_norms)
    theirs = dict(_pytrees.named_leaves(mask))
    odd = [name for name, decays in theirs.items() if decays and not ours[name]]
    if not odd:
        return []
    return [
        Told(
            f"{recipe.decay_rule!r:.60} decays {len(odd)} biases or norms, "
            f"{odd[0]!r} the first",
            "its patterns miss their names, or know norms by torch's types only",
            "Take `decay_rule='default'`, or name them with `layer_norms=`",
        )
    ]


def _undeclared_stack(
    recipe: Recipe, leaves: list, layout: Mapping[str, TorchLayout]
) -> list[Told]:
    if recipe.optim != "adafactor":
        return []
    stacked = [
        name
        for name, leaf in leaves
        if leaf.ndim == 3
        and name.endswith((".kernel", ".weight"))
        and not any(re.fullmatch(pattern, name) for pattern in layout)
    ]
    if not stacked:
        return []
    return [
        Told(
            f"{len(stacked)} kernels have 3 axes, {stacked[0]!r} the first",
            "Adafactor takes the last two for rows and columns: of a stack of layers "
            "one RMS would be taken, of heads their own statistics",
            "Pass `build_optimizer(layout={...})` that says how torch would see them",
        )
    ]
