"""Checks of a recipe, and of the parameters that are trained with it."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import _pytrees
from .._numerics import wide_dtype
from .._typing import PyTree
from ..optimizers import LayerNorms, TorchLayout, adamw_tf, decay_mask
from ..schedules import MetricDrivenSchedule
from ._optimizers import ALGORITHMS, ignored_fields
from ._recipe import METRIC_DRIVEN, Recipe, build_schedule

# Largest accepted relative error of the decay due to rounding of 1 - rate * decay.
_DECAY_ERROR = 0.05
# bfloat16 has 8 significant bits: a change below 2^-9 of the number, half the spacing
# just below a power of two, is always rounded away.
_HALF_UNIT_BF16 = 2.0**-9
# Typical RMS of the elements of a matrix: GPT-2 is initialized with this RMS, and most
# other models with similar values.
_USUAL_RMS = 0.02


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Problem of a recipe, an optimizer or parameters.

    Attributes:
        problem: the setting or behavior, with its values.
        reason: its cause or consequence.
        fix: sentence that proposes a change.
    """

    problem: str
    reason: str
    fix: str

    def __str__(self) -> str:
        """Returns the three attributes as two sentences."""
        return f"{self.problem}: {self.reason}. {self.fix}."


def recipe_findings(recipe: Recipe, params: PyTree | None) -> Iterator[Finding]:
    """Yields the findings that depend on the recipe and on dtypes only.

    Args:
        recipe: the hyperparameters of the run.
        params: the parameters, of which the dtypes are used; None for float32.
    """
    if recipe.learning_rate == 0:
        yield Finding(
            problem="`learning_rate` is 0",
            reason="no parameter will ever change",
            fix="Set a positive rate, for example 3e-4",
        )
    elif recipe.lr_scheduler_type in METRIC_DRIVEN:
        yield from _metric_driven(recipe)
    else:
        yield from _warmup(recipe)
        yield from _rates(recipe)
        yield from _decay(recipe, params)
    yield from _averages(recipe)


def ignored_findings(recipe: Recipe) -> Iterator[Finding]:
    """Yields a finding for each field that the optimizer ignores."""
    for name in ignored_fields(recipe.optim, vars(recipe)):
        yield Finding(
            problem=f"`{name}` is {getattr(recipe, name):g} with {recipe.optim!r}",
            reason="this optimizer ignores it, as in Trainer",
            fix="Set it to 0, or use 'sgd' or 'adafactor'",
        )


def _metric_driven(recipe: Recipe) -> Iterator[Finding]:
    options = dict(recipe.lr_scheduler_kwargs)
    name, rate = recipe.lr_scheduler_type, recipe.learning_rate
    is_greedy = name == "greedy"
    if options.get("mode", "min") == "max":
        yield Finding(
            problem=f"{name!r} has mode 'max'",
            reason="the metric is a loss by default: the rate would fall with the loss",
            fix="Remove `mode`, or select a metric that should increase",
        )
    # The defaults of Transformers: `GreedyLR` has `min_lr` 1e-3 and `max_lr` 1, and
    # computes max(rate * factor, min_lr), which it applies only if that is lower than
    # the rate. A rate below `min_lr` is therefore never reduced.
    lowest = options.get("min_lr", 1e-3 if is_greedy else 0.0)
    if rate < lowest:
        yield Finding(
            problem=f"`min_lr` of {name!r} is {lowest:g}, above `learning_rate` "
            f"{rate:g}",
            reason="the rate can only rise: a reduction does not change it, but counts "
            "towards the reset of the schedule"
            if is_greedy
            else "the rate can never be reduced",
            fix=f"Set `min_lr` below the rate, to {rate / 100:g} for example",
        )
    highest = options.get("max_lr", 1.0)
    if is_greedy and rate > highest:
        yield Finding(
            problem=f"`max_lr` of {name!r} is {highest:g}, below `learning_rate` "
            f"{rate:g}",
            reason="the rate can only decrease until it is below `max_lr`",
            fix=f"Set `max_lr` above the rate, to {10 * rate:g} for example",
        )


def _warmup(recipe: Recipe) -> Iterator[Finding]:
    num_warmup, max_steps = recipe.num_warmup_steps, recipe.max_steps
    has_own_warmup = "warmup_steps" in ALGORITHMS[recipe.optim].takes
    if recipe.lr_scheduler_type == "constant" and num_warmup and not has_own_warmup:
        yield Finding(
            problem=f"`warmup_steps` is {recipe.warmup_steps!r} with 'constant'",
            reason="this schedule has no warmup, as in Transformers, and ignores it",
            fix="Use 'constant_with_warmup'",
        )
    elif num_warmup > max_steps / 2:
        yield Finding(
            problem=f"{num_warmup} of {max_steps} steps are warmup",
            reason="the highest rate is reached late, or not at all",
            fix=f"Use at most a tenth, `warmup_steps={max(1, max_steps // 10)}`",
        )


def _averages(recipe: Recipe) -> Iterator[Finding]:
    if ALGORITHMS[recipe.optim].is_averaging and recipe.lr_scheduler_type != "constant":
        has_own_warmup = "warmup_steps" in ALGORITHMS[recipe.optim].takes
        yield Finding(
            problem=f"`lr_scheduler_type` is {recipe.lr_scheduler_type!r} with "
            f"{recipe.optim!r}",
            reason="the average of the optimizer takes the place of a decay of the rate"
            + ", and the warmups of schedule and optimizer are multiplied"
            * has_own_warmup,
            fix="Use 'constant'"
            + ", with which `warmup_steps` apply once" * has_own_warmup,
        )
    if recipe.ema_decay is None:
        return
    first_weight = recipe.ema_decay**recipe.max_steps
    if first_weight > 0.1:
        yield Finding(
            problem=f"`ema_decay` is {recipe.ema_decay:g} in a run of "
            f"{recipe.max_steps} steps",
            reason=f"{first_weight:.0%} of the mean at the end are the parameters "
            "after the first step",
            fix=f"Use at most {0.1 ** (1 / recipe.max_steps):.4g}",
        )


def _rates(recipe: Recipe) -> Iterator[Finding]:
    steps = np.unique(np.linspace(0, recipe.max_steps - 1, 1_000).astype(np.int32))
    schedule: Any = build_schedule(recipe)
    rates = np.asarray(schedule(jnp.asarray(steps)), np.float64)
    # Step 0 is left out: with a warmup its rate is 0 in most schedules.
    zero_share = np.mean(rates[1:] == 0) if len(rates) > 1 else 0.0
    if zero_share > 0.02:
        yield Finding(
            problem=f"the rate is 0 in {zero_share:.0%} of the steps",
            reason="these steps take time but do not change parameters",
            fix="Set the sum of the phases to `max_steps`",
        )
    is_decreasing = recipe.lr_scheduler_type not in ("constant", "constant_with_warmup")
    if is_decreasing and rates[-1] > 0.5 * rates.max() and recipe.max_steps > 20:
        yield Finding(
            problem=f"the last rate is {rates[-1]:.3g}, the highest {rates.max():.3g}",
            reason="the run ends while the loss is still noisy",
            fix="Use a smaller `num_cycles` or `lr_end`, or another schedule",
        )


def _decay(recipe: Recipe, params: PyTree | None) -> Iterator[Finding]:
    decay_per_step = recipe.learning_rate * recipe.weight_decay
    dtypes = {wide_dtype(leaf.dtype) for _, leaf in floating_leaves(params)}
    is_adamw = ALGORITHMS[recipe.optim].build is adamw_tf
    if decay_per_step == 0 or not is_adamw or dtypes == {jnp.dtype(jnp.float64)}:
        return
    # torch multiplies parameters by 1 - rate * weight_decay, rounded to float32, whose
    # spacing below 1 is 2^-24: a product of at most 2^-25 = 3e-8 gives 1, no decay.
    applied = 1.0 - float(np.float32(1.0 - decay_per_step))
    error = abs(applied - decay_per_step) / decay_per_step
    if error > _DECAY_ERROR:
        yield Finding(
            problem="the product of learning rate and weight decay is at most "
            f"{decay_per_step:.2g}",
            reason=f"in float32 it becomes {applied:.2g}, an error of {error:.0%}"
            if applied
            else "in float32, 1 minus this value is rounded to 1, and no parameter is "
            "decayed",
            fix="Increase `weight_decay`; or, in Python, build the optimizer with "
            "`adamw_tf(..., decay='exact')`, which has no flag",
        )


def params_findings(
    recipe: Recipe,
    params: PyTree,
    layouts: Mapping[str, TorchLayout],
    layer_norms: LayerNorms,
    *,
    is_rounded_well: bool = False,
) -> Iterator[Finding]:
    """Yields the findings that depend on names, shapes and dtypes of the parameters.

    Args:
        recipe: the hyperparameters of the run.
        params: the parameters.
        layouts: see `build_optimizer`.
        layer_norms: see `build_optimizer`.
        is_rounded_well: whether the optimizer compensates the rounding of bfloat16
            parameters, or rounds at random.
    """
    leaves = floating_leaves(params)
    in_bfloat16 = [name for name, leaf in leaves if leaf.dtype == jnp.bfloat16]
    in_bfloat16 = [] if is_rounded_well else in_bfloat16
    # AdamW changes an element by about the rate; its relative change is rate / RMS.
    if in_bfloat16 and recipe.learning_rate / _USUAL_RMS < _HALF_UNIT_BF16:
        yield Finding(
            problem=f"{len(in_bfloat16)} leaves are bfloat16, {in_bfloat16[0]!r} the "
            f"first, and the rate is {recipe.learning_rate:g}",
            reason=f"updates below {_HALF_UNIT_BF16:.1g} of a parameter are rounded "
            "away",
            fix="Keep parameters in float32 and pass `compute_dtype=jnp.bfloat16`, or "
            "wrap the optimizer in `kahan_summation` or `stochastic_rounding`",
        )
    decay_per_step = recipe.learning_rate * recipe.weight_decay
    if in_bfloat16 and 0 < decay_per_step < _HALF_UNIT_BF16:
        yield Finding(
            problem="the product of learning rate and weight decay is at most "
            f"{decay_per_step:.2g}, for bfloat16 leaves",
            reason="the decay is lost to rounding where the update is small",
            fix="Keep parameters in float32",
        )
    yield from _decayed_by_accident(recipe, params, layer_norms)
    stacked = [
        name
        for name, leaf in leaves
        if leaf.ndim == 3
        and name.endswith((".kernel", ".weight"))
        and not any(re.fullmatch(pattern, name) for pattern in layouts)
    ]
    if stacked and recipe.optim == "muon":
        yield Finding(
            problem=f"{len(stacked)} kernels have 3 axes, {stacked[0]!r} the first",
            reason="Muon updates matrices only, so these kernels are updated by AdamW",
            fix="Pass their layouts in torch to `build_optimizer(layouts={...})`",
        )
    if stacked and recipe.optim == "adafactor":
        yield Finding(
            problem=f"{len(stacked)} kernels have 3 axes, {stacked[0]!r} the first",
            reason="Adafactor factors the last two, and uses one RMS for stacked "
            "layers",
            fix="Pass their layouts in torch to `build_optimizer(layouts={...})`",
        )


def _decayed_by_accident(
    recipe: Recipe, params: PyTree, layer_norms: LayerNorms
) -> Iterator[Finding]:
    rule = recipe.decay_rule
    # A rule cannot be applied to leaves without names: `build_optimizer` rejects them,
    # and another optimizer has its own mask.
    is_unnamed = _pytrees.unnamed_leaves(params)
    if recipe.weight_decay == 0 or rule == "default" or is_unnamed:
        return
    decayed_by_default = dict(_pytrees.named_leaves(decay_mask(params)))
    mask = decay_mask(params, rule=rule, layer_norms=layer_norms)
    extra = [
        n
        for n, decays in _pytrees.named_leaves(mask)
        if decays and not decayed_by_default[n]
    ]
    if extra:
        yield Finding(
            problem=f"{rule!r:.60} decays {len(extra)} biases or norms, {extra[0]!r} "
            "the first",
            reason="the patterns of the rule do not match them, or the rule excludes "
            "layers only by their class in torch",
            fix="Use `decay_rule='default'`, or pass their paths as `layer_norms`",
        )


def rate_at(recipe: Recipe, step: int) -> float:
    """Returns the rate at a step; the first rate for a metric-driven schedule."""
    schedule = build_schedule(recipe)
    if isinstance(schedule, MetricDrivenSchedule):
        return recipe.learning_rate
    return float(schedule(step))


def floating_leaves(tree: PyTree) -> list[tuple[str, Any]]:
    """Returns the non-empty floating-point leaves, with their names."""
    named = _pytrees.named_leaves(tree)
    return [(n, leaf) for n, leaf in named if _pytrees.is_floating(leaf) and leaf.size]
