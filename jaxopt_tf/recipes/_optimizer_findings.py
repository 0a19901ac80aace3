"""Checks of an optimizer, based on its updates of small parameters.

An optimizer is a closure that cannot be inspected. It is run on parameters with equal
names and dtypes, whose axes have at most 4 elements, and its updates are examined.
"""

import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import _pytrees
from .._typing import PyTree
from ..optimizers import (
    ClipState,
    EmaParamsState,
    LayerNorms,
    ScheduleFreeState,
    averaging_states,
    decay_mask,
    get_learning_rate,
)
from ._optimizers import ALGORITHMS
from ._recipe import Recipe
from ._recipe_findings import Finding, floating_leaves, rate_at

# Limit of the simulated warmup: the results of the checks do not depend on more steps.
_MAX_WARMUP_STEPS = 10_000
# More steps than RAdam takes without a change of the parameters.
_NUM_SILENT_STEPS = 16
# States of optax 0.2 whose transformations the updates below check completely.
_KNOWN_STATES = re.compile(
    r"MaskedNode|(Empty|Factored|Inject\w*Hyperparams|Masked|MultiSteps|Partition|"
    r"ScaleBy(Adam|Lion|Rms|Rss|Schedule)|Trace|WrappedSchedule)State"
)


def optimizer_findings(
    recipe: Recipe,
    optimizer: optax.GradientTransformation,
    params: PyTree,
    layer_norms: LayerNorms,
) -> Iterator[Finding | str]:
    """Yields findings, and as strings the aspects that were not judged."""
    state = jax.eval_shape(optimizer.init, params)
    yield "the betas and the epsilon of the optimizer, and the sign of its updates"
    yield from _unknown_states(state)
    yield from _state_findings(recipe, state)
    if _paths(state, optax.MultiStepsState):
        # `MultiSteps` returns zero updates except at the last of k micro-batches, so
        # that the checks below do not apply.
        yield "decay, clipping and rate inside `optax.MultiSteps`"
        return
    probe = _Probe(recipe, optimizer, params)
    # The probe used zero gradients only. AdamW's moments are then zero; with L2
    # regularization, weight decay is part of the gradient and enters the moments.
    has_moments = any(map(np.any, probe.moments(probe.state).values()))
    if any(g.optim or g.weight_decay is not None for g in recipe.rate_groups):
        yield "the decay of groups with their own optimizer or `weight_decay`"
        if not has_moments:  # of a decay that is added to the gradient
            yield from _clipping(recipe, probe)
    elif has_moments and recipe.optim.startswith("adam"):
        yield Finding(
            problem="moments are not zero though all gradients were",
            reason="a decay that is added to the gradient goes through the moments and "
            "is divided by them: L2, not AdamW's decay",
            fix="Leave decay to `adamw_tf`, without `optax.add_decayed_weights`",
        )
        yield "the mask of the decay, and clipping, which such moments hide"
    else:
        yield from _decay(recipe, probe, layer_norms)
        yield from _clipping(recipe, probe)
    yield from _rate(recipe, probe)


class _Probe:
    """Optimizer with small parameters, after a warmup with zero gradients."""

    def __init__(
        self, recipe: Recipe, optimizer: optax.GradientTransformation, params: PyTree
    ) -> None:
        rng = np.random.default_rng(0)

        # Parameters are NumPy arrays, because JAX would compile a program for each
        # shape and operation.
        def small(leaf: Any) -> np.ndarray:
            # Parameters are positive and away from 0, so that the decayed share can be
            # computed as -update / parameter.
            shape = tuple(min(size, 4) for size in leaf.shape)
            values = rng.uniform(0.01, 0.03, shape) if _pytrees.is_floating(leaf) else 0
            return np.broadcast_to(np.asarray(values, leaf.dtype), shape)

        self.params = jax.tree.map(small, params)
        self.zeros = jax.tree.map(np.zeros_like, self.params)
        self.num_steps = min(recipe.num_warmup_steps, _MAX_WARMUP_STEPS) + 1
        if recipe.optim == "schedule_free_radam":
            self.num_steps += _NUM_SILENT_STEPS
        tx = optax.with_extra_args_support(optimizer)

        @jax.jit
        def repeat(params: PyTree, grads: PyTree, state: PyTree, times: int) -> Any:
            def update(_: Any, last: Any) -> Any:
                # Optimizers such as `optax.contrib.reduce_on_plateau` require `value`.
                value = jnp.float32(1.0)
                return tx.update(grads, last[1], params, value=value, grad=grads)

            shapes = jax.eval_shape(update, 0, (None, state))[0]
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            return jax.lax.fori_loop(0, times, update, (zeros, state))

        # `times` is a traced argument of `fori_loop`, so that the warmup and single
        # updates share one compiled program.
        self._repeat = repeat
        state = jax.jit(tx.init)(self.params)
        self.state = self.update(self.zeros, state, times=self.num_steps)[1]

    def update(self, grads: PyTree, state: PyTree, times: int = 1) -> Any:
        """Repeats an update `times` times; returns the last updates and the state."""
        return self._repeat(self.params, grads, state, times)

    def moments(self, state: PyTree) -> dict[str, np.ndarray]:
        """Returns the leaves of the state that belong to a parameter, by name.

        Averages of parameters are left out: they are no functions of gradients alone.
        """
        ends = tuple("." + name for name in _pytrees.leaf_names(self.params))
        averages = tuple(
            f"{path}.{field}.".removeprefix(".")
            for kind, field in ((ScheduleFreeState, "z"), (EmaParamsState, "ema"))
            for path in _paths(state, kind)
        )
        return {
            n: x
            for n, x in _floating_arrays(state).items()
            if x.ndim and n.endswith(ends) and not n.startswith(averages)
        }

    def rate_at(self, step: int) -> Any:
        """Returns the rate that the optimizer uses at a step of its schedule."""

        def at_step(path: Any, leaf: jax.Array) -> Any:
            keys = _pytrees.path_keys(path)
            # `step` is the counter of this package's optimizers;
            # `optax.inject_hyperparams` stores the counters of its schedules under
            # `hyperparams_states`. Other counters (bias correction) are not changed.
            is_step = keys[-1] == "step" or (
                keys[-1] == "count" and "hyperparams_states" in keys
            )
            return np.full_like(leaf, step) if is_step else leaf

        state = jax.tree_util.tree_map_with_path(at_step, self.state)
        return get_learning_rate(self.update(self.zeros, state)[1])


def _unknown_states(state: PyTree) -> Iterator[str]:
    kinds: set[type] = set()

    # `is_leaf` is called with every node of the tree, the states included.
    def collect(node: Any) -> bool:
        kinds.add(type(node))
        return False

    jax.tree.leaves(state, is_leaf=collect)
    unknown = sorted(
        kind.__name__
        for kind in kinds
        if hasattr(kind, "_fields")
        and not kind.__module__.startswith("jaxopt_tf.")
        and not _KNOWN_STATES.fullmatch(kind.__name__)
    )
    if unknown:
        yield (
            "transformations that `doctor` does not know, with the states "
            f"{', '.join(unknown)}: only zero and large gradients were tested"
        )


def _state_findings(recipe: Recipe, state: PyTree) -> Iterator[Finding]:
    if _paths(state, optax.MultiStepsState) and recipe.gradient_accumulation_steps > 1:
        yield Finding(
            problem="the optimizer is inside `optax.MultiSteps`, and the recipe has "
            f"`gradient_accumulation_steps` {recipe.gradient_accumulation_steps}",
            reason="gradients are accumulated twice, so that updates are less frequent",
            fix="Remove `optax.MultiSteps`: the train step accumulates gradients",
        )
    is_averaged = recipe.ema_decay is not None
    if is_averaged and not averaging_states(state):
        yield Finding(
            problem=f"`ema_decay` is {recipe.ema_decay:g}, and the optimizer has no "
            "average of the parameters",
            reason="the model is evaluated and saved with its last parameters",
            fix="`optax.chain(optimizer, ema_params(decay))`, or "
            "`build_optimizer(recipe)`",
        )
    if any(".inner_states" in f".{path}" for path in _paths(state, ClipState)):
        yield Finding(
            problem="`clip` stands inside `optax.multi_transform`",
            reason="each group is clipped by its own norm, not all by their joint one",
            fix="`optax.chain(clip(...), optax.multi_transform(...))`",
        )
    # bfloat16 has 8 significant bits. A multiplication by beta2 changes a moment by the
    # relative amount 1 - beta2; below 2^-8 = 0.0039 the product can round back to the
    # old value, and the moment does not decrease any more.
    second_moment = re.compile(r"(.*\.)?nu(_row|_col)?\..*")
    in_bfloat16 = [
        name
        for name, leaf in floating_leaves(state)
        if leaf.ndim and leaf.dtype == jnp.bfloat16 and second_moment.fullmatch(name)
    ]
    if in_bfloat16 and recipe.adam_beta2 > 0.996:
        yield Finding(
            problem=f"{len(in_bfloat16)} second moments are bfloat16 with `adam_beta2` "
            f"{recipe.adam_beta2:g}",
            reason="changes below half a unit in the last place are rounded away: they "
            "can grow but not decrease",
            fix="Leave `moment_dtype` at float32, or take an `adam_beta2` of 0.99",
        )
    if _paths(state, optax.FactoredState) and recipe.optim == "adafactor":
        yield Finding(
            problem="`optax.adafactor` is used for 'adafactor'",
            reason="it factors other axes, none below 128, and its decay ignores the "
            "rate",
            fix="`adafactor_trainer(...)`, or `build_optimizer(recipe)`",
        )


def _decay(
    recipe: Recipe, probe: _Probe, layer_norms: LayerNorms
) -> Iterator[Finding | str]:
    """Compares updates for zero gradients with the weight decay of the recipe."""
    updates = _floating_arrays(probe.update(probe.zeros, probe.state)[0])
    if not all(np.isfinite(update).all() for update in updates.values()):
        yield Finding(
            problem="updates are not finite where gradients are zero",
            reason="each leaf that a batch does not use would become non-finite",
            fix="Add an `eps` to the denominator",
        )
        return
    # With zero gradients, the update of a decayed leaf is -decay_rate * parameter.
    decay_rates = {
        name: float(np.median(-updates[name] / param))
        for name, param in _floating_arrays(probe.params).items()
    }
    decayed = [name for name, rate in decay_rates.items() if rate > 0]
    if decayed and recipe.weight_decay == 0:
        yield Finding(
            problem=f"{len(decayed)} leaves are decayed, and `weight_decay` is 0",
            reason="another default was used: 1e-4 in `optax.adamw`, 1e-2 in torch",
            fix="Pass `weight_decay` to the optimizer",
        )
    if recipe.weight_decay == 0:
        return
    # Rules cannot be applied to leaves without names: the optimizer's own mask is then
    # assumed to be correct.
    decayed_by_rule = decayed
    if _pytrees.unnamed_leaves(probe.params):
        yield "which leaves are decayed, as some have no names"
    else:
        mask = decay_mask(probe.params, rule=recipe.decay_rule, layer_norms=layer_norms)
        decayed_by_rule = [name for name, x in _pytrees.named_leaves(mask) if x]
    undecayed = [name for name in decayed if name not in decayed_by_rule]
    if undecayed:
        yield Finding(
            problem=f"{len(undecayed)} leaves are decayed that "
            f"{recipe.decay_rule!r:.60} excludes, the first being {undecayed[0]!r}",
            reason="biases and norms are pulled towards 0",
            fix="Pass `decay_mask(params)` as the mask",
        )
    if decayed_by_rule and not decayed:
        yield Finding(
            problem="no leaf is decayed, although `weight_decay` is "
            f"{recipe.weight_decay:g}",
            reason="the optimizer was built without it, or its mask excludes all "
            "leaves",
            fix="Pass `weight_decay` to the optimizer",
        )
    if decayed:
        yield from _excess_of_decay(recipe, probe, max(decay_rates.values()))


def _excess_of_decay(
    recipe: Recipe, probe: _Probe, largest_rate: float
) -> Iterator[Finding | str]:
    """Finds a decay that is too large; other checks find one that rounding reduces."""
    expected = rate_at(recipe, probe.num_steps - 1) * recipe.weight_decay
    if expected == 0:
        return
    if recipe.rate_groups or ALGORITHMS[recipe.optim].is_decay_in_gradient:
        yield "the size of the decay, with rate groups or a decay in the gradient"
        return
    if (excess := largest_rate / expected) > 1.5:
        yield Finding(
            problem=f"parameters are decayed by {excess:.3g} times the product of "
            "learning rate and `weight_decay`",
            reason="two transformations of the chain decay, or the decay is not "
            "multiplied by the rate",
            fix="Leave it to the optimizer, without `optax.add_decayed_weights`",
        )


def _clipping(recipe: Recipe, probe: _Probe) -> Iterator[Finding]:
    """Compares moments with and without one very large gradient element."""
    if recipe.max_grad_norm == 0:
        return
    sizes = {name: leaf.size for name, leaf in floating_leaves(probe.params)}
    largest = max(sizes, key=lambda name: sizes[name])
    # With this value in every element the joint norm is half of the limit: gradients
    # are not clipped.
    usual = recipe.max_grad_norm / np.sqrt(sum(sizes.values())) / 2

    def moments_for(first: float) -> dict[str, np.ndarray]:
        """Returns moments (or updates); the leaf `largest` starts with `first`."""

        def gradient(path: Any, p: np.ndarray) -> np.ndarray:
            g = np.full(p.shape, usual)
            if _pytrees.leaf_name(path) == largest:
                g.flat[0] = first
            return g.astype(p.dtype)

        grads = jax.tree_util.tree_map_with_path(gradient, probe.params)
        updates, state = probe.update(grads, probe.state)
        return probe.moments(state) or _floating_arrays(updates)

    # Clipping by the joint norm scales the spike to at most `max_grad_norm` and all
    # other elements by 1/1000. A tenfold spike then gives the same largest moment.
    spike = 1e3 * recipe.max_grad_norm
    without_spike, with_spike, with_tenfold_spike = (
        moments_for(usual),
        moments_for(spike),
        moments_for(10 * spike),
    )
    used = [name for name, leaf in without_spike.items() if leaf.any()]
    spiked = [n for n in used if n == largest or n.endswith("." + largest)]
    shrunk = {n: np.abs(with_spike[n]) < 0.5 * np.abs(without_spike[n]) for n in used}
    # Without clipping, the largest element of the moment grows with the spike.
    if any(
        np.abs(with_tenfold_spike[n]).max() > 1.05 * np.abs(with_spike[n]).max()
        for n in spiked
    ):
        yield Finding(
            problem="gradients reach the moments unclipped, and `max_grad_norm` is "
            f"{recipe.max_grad_norm:g}",
            reason="one bad batch is in the moments for a long time; clipping after "
            "the optimizer bounds its updates, which is something else",
            fix="`optax.chain(clip(...), optimizer)`, clipping first",
        )
    elif any(not shrunk[n].any() for n in spiked):
        yield Finding(
            problem="gradients are clipped element by element",
            reason="`optax.clip` limits each element, which changes the direction; "
            "`max_grad_norm` is a limit of the joint norm",
            fix="`jaxopt_tf.clip`",
        )
    elif any(not shrunk[n].all() for n in used if n not in spiked):
        yield Finding(
            problem="a large gradient of one leaf leaves others as they were",
            reason="leaves or groups are clipped by norms of their own",
            fix="`optax.chain(clip(...), optimizer)`, outside of all groups",
        )


def _rate(recipe: Recipe, probe: _Probe) -> Iterator[Finding | str]:
    try:
        rate = get_learning_rate(probe.state)
    except ValueError:
        yield "the rate, which the optimizer's state does not contain"
        return
    if isinstance(rate, dict) or recipe.rate_groups:
        yield "the rates of groups"
        return
    # Two steps are compared, since schedules of different length agree at the peak.
    late = max(probe.num_steps, 3 * recipe.max_steps // 4)
    for step in (probe.num_steps - 1, late):
        found, expected = float(probe.rate_at(step)), rate_at(recipe, step)
        if not np.isclose(found, expected, rtol=1e-4, atol=1e-9 * recipe.learning_rate):
            yield Finding(
                problem=f"the rate of step {step} is {found:.3g}, and the recipe's is "
                f"{expected:.3g}",
                reason="the schedule has another length or another warmup than the "
                "run, or counts micro-batches",
                fix="Pass `build_schedule(recipe)`",
            )
            return


def _floating_arrays(tree: PyTree) -> dict[str, np.ndarray]:
    return {name: np.asarray(x, np.float64) for name, x in floating_leaves(tree)}


def _paths(state: PyTree, kind: Any) -> list[str]:
    """Returns the paths of the nodes of one type."""
    nodes = jax.tree_util.tree_leaves_with_path(
        state, is_leaf=lambda node: isinstance(node, kind)
    )
    return [_pytrees.path_name(path) for path, node in nodes if isinstance(node, kind)]
