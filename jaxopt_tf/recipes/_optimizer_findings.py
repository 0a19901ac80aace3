"""What an optimizer gives away when it is tried out on a miniature."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import _pytrees
from .._typing import PyTree
from ..optimizers import ClipState, LayerNorms, decay_mask, get_learning_rate
from ..schedules import MetricDrivenSchedule
from ._plan_findings import Told
from ._recipe import Recipe
from ._recipe_schedule import scheduler_of
from ._tried_out import TriedOut, floats, miniature, moments, nodes

# As in torch, there the decay goes through the moments.
_DECAY_IN_GRADIENT = ("sgd", "adagrad", "rmsprop")


def optimizer_findings(
    recipe: Recipe,
    optimizer: optax.GradientTransformation,
    params: PyTree,
    layer_norms: LayerNorms,
) -> list[Told]:
    """What is wrong with the optimizer as one for this recipe."""
    state = jax.eval_shape(optimizer.init, params)
    found = _of_the_state(recipe, state, params)
    if nodes(state, optax.MultiStepsState):
        return found  # which answers most gradients with zeros
    small = miniature(params)
    run = TriedOut(recipe, optax.with_extra_args_support(optimizer), small)
    seen = [leaf for _, leaf in moments(run.state, small)]
    if recipe.optim.startswith("adam") and any(np.any(leaf) for leaf in seen):
        found.append(
            Told(
                "moments are not zero though all gradients were",
                "a decay that is added to the gradient goes through the moments and is "
                "divided by them: L2, not AdamW's decay",
                "Leave decay to `adamw_tf`, without `optax.add_decayed_weights`",
            )
        )
        return [*found, *_rate(recipe, run)]
    return [
        *found,
        *_decay(recipe, run, layer_norms),
        *_clipping(recipe, run),
        *_rate(recipe, run),
    ]


def _of_the_state(recipe: Recipe, state: PyTree, params: PyTree) -> list[Told]:
    found = []
    if nodes(state, optax.MultiStepsState) and recipe.gradient_accumulation_steps > 1:
        found.append(
            Told(
                "the optimizer is inside `optax.MultiSteps`, and the recipe has "
                f"`gradient_accumulation_steps` {recipe.gradient_accumulation_steps}",
                "gradients are accumulated twice, and updates made that much rarer",
                "Leave `optax.MultiSteps` out: the train step accumulates",
            )
        )
    inside = [p for p, _ in nodes(state, ClipState) if ".inner_states" in f".{p}"]
    if inside:
        found.append(
            Told(
                "`clip` stands inside `optax.multi_transform`",
                "each group is clipped by its own norm, not all by their joint one",
                "`optax.chain(clip(...), optax.multi_transform(...))`",
            )
        )
    low = [
        name
        for name, leaf in moments(state, params)
        if leaf.dtype == jnp.bfloat16 and _is_second(name)
    ]
    if low and recipe.adam_beta2 > 0.996:
        found.append(
            Told(
                f"{len(low)} second moments are bfloat16 with `adam_beta2` "
                f"{recipe.adam_beta2:g}",
                "a share of less than half a unit is rounded away: they can grow and "
                "never fall",
                "Leave `moment_dtype` at float32, or take an `adam_beta2` of 0.99",
            )
        )
    factored = nodes(state, optax.FactoredState)
    if factored and recipe.optim == "adafactor":
        found.append(
            Told(
                "`optax.adafactor` stands for 'adafactor'",
                "it factors other axes, none below 128, and decays without the rate",
                "`adafactor_trainer(...)`, or `build_optimizer(recipe)`",
            )
        )
    return found


def _decay(recipe: Recipe, run: TriedOut, layer_norms: LayerNorms) -> list[Told]:
    """What becomes of parameters whose gradients are zero."""
    params, updates = floats(run.params), run.updates(run.zeros)
    if not all(np.isfinite(u).all() for u in updates.values()):
        return [
            Told(
                "updates are not finite where gradients are zero",
                "every leaf that a batch does not use would be lost",
                "Give the denominator an `eps`",
            )
        ]
    shares = {n: float(np.median(-updates[n] / params[n])) for n in params}
    decayed = [name for name, share in shares.items() if share > 0]
    # No rule knows leaves without names: the optimizer's own mask is taken for right.
    is_nameless = bool(_pytrees.nameless_leaves(run.params))
    rule = (lambda name, _: name in decayed) if is_nameless else recipe.decay_rule
    mask = decay_mask(run.params, rule=rule, layer_norms=layer_norms)
    wanted = {
        name: bool(decays) and recipe.weight_decay > 0
        for name, decays in _pytrees.named_leaves(mask)
    }
    spared = [name for name in decayed if not wanted[name]]
    found = []
    if decayed and recipe.weight_decay == 0:
        return [
            Told(
                f"{len(decayed)} leaves are decayed, and `weight_decay` is 0",
                "another default was taken: 1e-4 in `optax.adamw`, 1e-2 in torch",
                "Pass `weight_decay` to the optimizer",
            )
        ]
    if spared:
        found.append(
            Told(
                f"{len(spared)} leaves are decayed that {recipe.decay_rule!r:.60} "
                f"leaves out, {spared[0]!r} the first",
                "biases and norms are pulled to 0, where they should not be",
                "Pass `decay_mask(params)` as the mask",
            )
        )
    if recipe.weight_decay > 0 and any(wanted.values()) and not decayed:
        found.append(
            Told(
                f"nothing is decayed, and `weight_decay` is {recipe.weight_decay:g}",
                "the optimizer was built without it, or its mask leaves all out",
                "Pass `weight_decay` to the optimizer",
            )
        )
    rate = _rate_at(recipe, run.num_steps - 1)
    is_plain = not recipe.rate_groups and recipe.optim not in _DECAY_IN_GRADIENT
    if decayed and rate and is_plain:
        times = max(shares.values()) / (rate * recipe.weight_decay)
        if times > 1.5:
            found.append(
                Told(
                    f"parameters are decayed {times:.3g} times as much as rate times "
                    "`weight_decay`",
                    "decay is in two links of the chain, or is not multiplied by the "
                    "rate",
                    "Leave it to the optimizer, without `optax.add_decayed_weights`",
                )
            )
    return found


def _clipping(recipe: Recipe, run: TriedOut) -> list[Told]:
    """Whether one huge element makes all the others smaller, before the moments."""
    if recipe.max_grad_norm == 0:
        return []
    sizes = {name: leaf.size for name, leaf in floats(run.params).items()}
    longest = max(sizes, key=lambda name: sizes[name])
    size = recipe.max_grad_norm / np.sqrt(sum(sizes.values())) / 2

    def watched(spike):
        def gradient(path, p):
            g = jnp.full(p.shape, size, jnp.float32)
            if spike and _pytrees.leaf_name(path) == longest:
                g = g.ravel().at[0].set(spike * recipe.max_grad_norm).reshape(p.shape)
            return g.astype(p.dtype)

        return run.watched(jax.tree_util.tree_map_with_path(gradient, run.params))

    plain, one, ten = watched(0), watched(1e3), watched(1e4)
    used = [name for name, leaf in plain.items() if leaf.any()]
    own = [name for name in used if name == longest or name.endswith("." + longest)]
    # The spike itself, which stands out in whatever it goes into.
    if any(np.abs(ten[n]).max() > 1.05 * np.abs(one[n]).max() for n in own):
        return [
            Told(
                f"gradients reach the moments unclipped, and `max_grad_norm` is "
                f"{recipe.max_grad_norm:g}",
                "one bad batch is in the moments for a long time; clipping after the "
                "optimizer bounds its updates, which is something else",
                "`optax.chain(clip(...), optimizer)`, clipping first",
            )
        ]
    shrunk = {n: np.abs(one[n]) < 0.5 * np.abs(plain[n]) for n in used}
    if any(not shrunk[n].any() for n in own):
        return [
            Told(
                "gradients are clipped element by element",
                "`optax.clip` cuts off what stands out and changes the direction; "
                "`max_grad_norm` is a limit of the joint norm",
                "`jaxopt_tf.clip`",
            )
        ]
    if any(not is_shrunk.all() for n, is_shrunk in shrunk.items() if n not in own):
        return [
            Told(
                "a large gradient of one leaf leaves others as they were",
                "leaves or groups are clipped by norms of their own",
                "`optax.chain(clip(...), optimizer)`, outside of all groups",
            )
        ]
    return []


def _rate(recipe: Recipe, run: TriedOut) -> list[Told]:
    try:
        now = get_learning_rate(run.state)
    except ValueError:
        return []
    if isinstance(now, dict) or recipe.rate_groups:
        return []
    # At the peak a schedule of another length is as it should be; later it is not.
    for step in (run.num_steps - 1, max(run.num_steps, 3 * recipe.max_steps // 4)):
        found, wanted = float(run.rate_at(step)), _rate_at(recipe, step)
        if not np.isclose(found, wanted, rtol=1e-4, atol=1e-9 * recipe.learning_rate):
            return [
                Told(
                    f"the rate of step {step} is {found:.3g}, and the recipe's is "
                    f"{wanted:.3g}",
                    "the schedule has another length or another warm-up than the run, "
                    "or counts micro-batches",
                    "Pass `build_schedule(recipe)`",
                )
            ]
    return []


def _rate_at(recipe: Recipe, step: int) -> float:
    schedule = scheduler_of(recipe)
    if isinstance(schedule, MetricDrivenSchedule):
        return recipe.learning_rate
    return float(schedule(step))


def _is_second(name: str) -> bool:
    return any(part in ("nu", "nu_row", "nu_col") for part in name.split("."))
