"""What is wrong with a run: one function for each kind, from the last blocks to words.

Each says None of a run in which nothing is wrong; else what is and what to try. They
rest on ratios, so that neither the unit of the loss nor the size of the model matters.
"""

import math

import jax.numpy as jnp
import numpy as np

from ._blocks import STEPS_IN_A_BLOCK, Block, Memory

# Divergence. The loss has given back this share of what it had gained ...
_RISE = 0.15
# ... or this, where the rate was lower at its best: after a warm-up or a restart the
# loss of a healthy run rises, and comes down again.
_RISE_AT_HIGHER_RATE = 0.5
# ... and is above its best by this share of it: near an optimum there is little to gain
_RISE_OVER_BEST = 0.25
# ... and by so many standard errors: the best of 10^5 blocks is 4.5 below the middle.
_RISE_OVER_NOISE = 8.0
# ... in so many blocks in a row: from a spike, Adam comes back within some 50 steps.
_RISE_BLOCKS = 4
# Or, where it rose from the very start, so many deviations of a single step above the
# first one, and at least twice as high.
_RISE_OVER_FIRST = 4.0

# Explosion. A change of all parameters by 1e-6 of themselves would, by the gradient,
# change the loss as much as it ever was: healthy models, GPT-2 among them, have 1 to
# 1000 where this is 10^6; in a fifth of the steps, since one batch proves nothing.
_PULL, _PULL_SHARE = 1e6, 0.2
# Or gradients so many times larger than in any block before, without a better loss: on
# the way out of a plateau they grow as much, but then the loss falls.
_GROWTH, _EXPLODING_BLOCKS = 30.0, 3

# Vanishing. By the gradient, doubling all parameters would change the loss by 1e-5 of
# its size: noise alone makes a thousand times as much in batches of a million items.
_NO_PULL = 1e-5
# Or one layer's gradient is this share of the largest: float32 resolves 1e-7 of a sum;
# between layers of healthy models it is 1e-3.
_LAYER_SHARE = 1e-6
_VANISHING_BLOCKS = 5

# Stuck. Within so many steps at full rate the loss has fallen by less than a hundredth:
# the slowest warm-up is over then.
_NUM_STUCK, _FALL = 500, 0.01
# Batches of a model that predicts nothing but how often what occurs differ little from
# one another. Where they differ more, as near an optimum, much more must be seen.
_QUIET, _NUM_STUCK_NOISY = 0.02, 5_000
# And so many standard errors of a block are no fall.
_FALL_OVER_NOISE = 3.0
# Updates that are less of the parameters need a run of 100,000 steps to get anywhere.
_SMALL_UPDATES = 1e-5

# Skipping. One step in ten costs a tenth of the run; a few at its start, or a bad batch
# in each epoch, are what skipping is for.
SKIPPED_AMONG, _NUM_SKIPPED = 100, 10

# Rounding. This many blocks at full rate: at its ends a schedule may go to 0.
_ROUNDED_BLOCKS = 5


def diverging(memory: Memory) -> str | None:
    """The loss has risen, far and for long."""
    blocks = memory.last(_RISE_BLOCKS)
    if len(blocks) < _RISE_BLOCKS:
        return None
    best, best_step = memory.best, memory.best_step
    if not all(block.loss - best > _rise_limit(memory, block) for block in blocks):
        best, best_step = memory.first_loss, 1
        limit = max(abs(best), _RISE_OVER_FIRST * memory.noise)
        if not all(block.loss - best > limit for block in blocks):
            return None
    return (
        f"the loss has risen to {_mean_loss(blocks):.4g} from {best:.4g} (step "
        f"{best_step}), training diverges; go back, lower `learning_rate`, lengthen "
        "`warmup_steps` or clip with a smaller `max_grad_norm`"
    )


def not_finite(memory: Memory, last_loss: float, loss: float, grad_norm: float) -> str:
    """The loss or the gradient of a step is not finite, those before it were.

    Args:
        memory: of the blocks before.
        last_loss: the last one that was finite; NaN where none was.
        loss: of the step.
        grad_norm: of the step.
    """
    what = f"the loss is {loss:.4g} and the gradient norm {grad_norm:.4g}"
    # Whoever gets there by ever longer steps passes large losses on the way.
    if last_loss > memory.lowest + max(
        _RISE_OVER_BEST * abs(memory.lowest), memory.gain
    ):
        return (
            f"{what} after a rise from {memory.lowest:.4g} to {last_loss:.4g}, "
            "training diverges; lower `learning_rate`, lengthen `warmup_steps` or clip "
            "with a smaller `max_grad_norm`"
        )
    return (
        f"{what}, all at once after {last_loss:.4g}; look at the batch, at divisions "
        "and logarithms, or pass over such steps with `on_non_finite='skip'`"
    )


def skipping(num_skipped: int) -> str | None:
    """Many updates were left out; of the last `SKIPPED_AMONG` steps."""
    if num_skipped < _NUM_SKIPPED:
        return None
    return (
        f"{num_skipped} steps were skipped since loss or gradient were not finite; "
        "lower `learning_rate`, look at the batches, or compute in float32"
    )


def exploding(memory: Memory) -> str | None:
    """Gradients are larger than any step could follow."""
    blocks = memory.last(_EXPLODING_BLOCKS)
    if len(blocks) < _EXPLODING_BLOCKS:
        return None
    pulls = np.concatenate([block.pull for block in blocks])
    is_steep = np.mean(pulls > _PULL * memory.scale) > _PULL_SHARE
    least = min(block.grad_norm for block in blocks)
    has_grown = (
        0 < _GROWTH * memory.largest_grad < least
        and memory.best_step < blocks[0].first_step
    )
    if not (is_steep or has_grown):
        return None
    usual = f"; it was {memory.largest_grad:.2g} at most" if has_grown else ""
    return (
        f"the gradient norm is {max(block.grad_norm for block in blocks):.2g}{usual}, "
        "gradients explode; clip with a small `max_grad_norm`, lower `learning_rate`, "
        "or look for a product of many factors, as in a recurrence or where "
        "normalisation is missing"
    )


def vanishing(memory: Memory) -> str | None:
    """Gradients are too small to learn from, and not because all is learnt."""
    blocks = memory.last(_VANISHING_BLOCKS)
    if len(blocks) < _VANISHING_BLOCKS:
        return None
    small = _small_layers(blocks)
    if small:
        more = f" and {len(small) - 1} more" if len(small) > 1 else ""
        where = f"the gradient of `{small[0]}`{more} is below {_LAYER_SHARE:.0e} of"
        what = f"{where} the largest layer's"
    else:
        pull = max(float(np.max(block.pull)) for block in blocks)
        gained = memory.start - memory.best
        lost = _mean_loss(blocks) - memory.best
        is_learnt = gained > _FALL * abs(memory.start) and lost < 0.1 * gained
        if is_learnt or pull > _NO_PULL * memory.scale:
            return None
        what = f"the gradient norm is {blocks[-1].grad_norm:.1e}"
    return (
        f"{what} while the loss is {_mean_loss(blocks):.4g}, gradients vanish; use "
        "residual connections, normalisation or another activation, or a larger "
        "initialisation"
    )


def stuck(memory: Memory) -> str | None:
    """The loss is where it was at the start."""
    size = abs(memory.start)
    needed = _NUM_STUCK if memory.noise < _QUIET * size else _NUM_STUCK_NOISY
    if memory.num_full < needed or not memory.is_flat:
        return None
    noise = _FALL_OVER_NOISE * memory.noise / math.sqrt(STEPS_IN_A_BLOCK)
    if memory.start - memory.best > max(_FALL * size, noise):
        return None
    blocks = memory.last(len(memory.recent) // 2)
    ratio = blocks[-1].update_ratio
    cure = "check that labels belong to their inputs, or lower `learning_rate`"
    if ratio < _SMALL_UPDATES:
        cure = "raise `learning_rate`, or look for units that are always off"
    return (
        f"the loss is {_mean_loss(blocks):.4g} and was {memory.start:.4g} at the "
        f"start, it is stuck while parameters change by {ratio:.0e} a step; {cure}"
    )


def rounded_away(memory: Memory, param_dtype: str) -> str | None:
    """Updates are smaller than what the parameters' dtype can take up."""
    blocks = memory.last(_ROUNDED_BLOCKS)
    if len(blocks) < _ROUNDED_BLOCKS:
        return None
    # Half the distance to the next number is, by where the parameter stands between two
    # powers of 2, from 1/4 to 1/2 of `eps` of it: below that nothing changes. At half
    # of the lower bound that holds for most parameters, as these differ in size.
    limit = float(jnp.finfo(param_dtype).eps) / 8
    # Of all blocks: of what has been learnt to the end, updates are small as well.
    ratio = memory.top_ratio
    if ratio >= limit or not all(block.is_full for block in blocks):
        return None
    keep = f"keep parameters in float32 and compute in {param_dtype}, or "
    return (
        f"updates are {ratio:.0e} of the parameters, and {param_dtype} rounds most "
        f"changes below {2 * limit:.0e} away; {keep if limit > 1e-7 else ''}raise "
        "`learning_rate`"
    )


def _rise_limit(memory: Memory, block: Block) -> float:
    """How far above its best the loss may be."""
    is_higher = block.rate > 1.2 * memory.best_rate
    share = _RISE_AT_HIGHER_RATE if is_higher else _RISE
    error = memory.best_noise / math.sqrt(STEPS_IN_A_BLOCK)
    return max(
        share * (memory.start - memory.best),
        _RISE_OVER_BEST * abs(memory.best),
        _RISE_OVER_NOISE * error,
    )


def _small_layers(blocks: list[Block]) -> list[str]:
    """Layers with next to no gradient in all blocks; 0 itself is a frozen one."""
    small = None
    for block in blocks:
        largest = max(block.layers.values(), default=0.0)
        of_block = {
            n for n, g in block.layers.items() if 0 < g < _LAYER_SHARE * largest
        }
        small = of_block if small is None else small & of_block
    return [name for name in blocks[-1].layers if name in (small or ())]


def _mean_loss(blocks: list[Block]) -> float:
    return sum(block.loss for block in blocks) / len(blocks)
