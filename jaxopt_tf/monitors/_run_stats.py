"""Running statistics for `health_monitor`: means over blocks of steps."""

import dataclasses
import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..training import Window

# Means over 20 steps: few enough for early reports, and enough that the noise between
# two blocks is smaller than the decrease of the loss, in a healthy run with batches of
# a few items.
STEPS_IN_A_BLOCK = 20
NUM_RECENT = 20  # number of blocks that are kept, to detect a slow decrease of the loss

# Columns of steps, [n] each. The key of a layer's gradient norm is `_LAYER` + name.
Steps = dict[str, np.ndarray]
_LAYER = "layer "


class Block(NamedTuple):
    """Means over the steps of a block, without skipped steps.

    The rules of the health monitor receive several blocks as columns, [n] each.
    """

    first_step: Any  # int
    last_step: Any  # int
    loss: Any  # mean loss
    noise: Any  # standard deviation of the loss of a single step
    grad_norm: Any  # geometric mean
    update_ratio: Any  # update norm over parameter norm
    grad_param_product: Any  # [20]: gradient norm times parameter norm at each step
    grad_update_product: Any  # gradient norm times update norm; geometric mean
    rate: Any  # learning rate; `update_ratio` if it is not known
    layers: Any  # gradient norm by layer


@dataclasses.dataclass
class RunningStats:
    """Statistics of all blocks so far, of bounded size."""

    first_loss: float = math.nan  # loss of the first step
    start: float = math.nan  # loss at the start of the run, without noise
    best: float = math.inf  # lowest loss of a block
    best_step: int = 0  # last step of the best block
    best_noise: float = math.nan  # noise at the best block
    best_rate: float = math.nan  # rate at the best block
    noise: float = math.nan  # noise of a single step, averaged over the last blocks
    scale: float = 0.0  # largest absolute loss of a block
    max_rate: float = 0.0  # largest rate of a block
    max_update_ratio: float = 0.0  # largest update ratio of a block
    max_grad_norm: float = 0.0  # largest gradient norm of a block before the last three
    # Number of blocks at full rate: after the warmup and before the rate has decayed.
    num_full_rate_blocks: int = 0
    num_full_in_a_row: int = 0  # consecutive blocks at full rate
    # The last `NUM_RECENT` blocks, oldest first.
    recent: deque[Block] = dataclasses.field(
        default_factory=lambda: deque(maxlen=NUM_RECENT)
    )
    pending: Steps = dataclasses.field(default_factory=dict)  # an incomplete block

    def blocks(self, steps: Steps) -> Iterator[None]:
        """Adds steps, and yields after each complete block."""
        # Only layers that both the pending and the new steps contain are kept.
        names = [name for name in steps if not self.pending or name in self.pending]
        self.pending = {
            name: np.append(self.pending.get(name, ()), steps[name]) for name in names
        }
        while len(self.pending["loss"]) >= STEPS_IN_A_BLOCK:
            columns = self.pending.items()
            self.add(_mean_block({name: x[:STEPS_IN_A_BLOCK] for name, x in columns}))
            self.pending = {name: x[STEPS_IN_A_BLOCK:] for name, x in columns}
            yield

    def last(self, num_blocks: int) -> Block | None:
        """Returns the last blocks as columns; None if there are too few blocks."""
        if len(self.recent) < num_blocks:
            return None
        blocks = list(self.recent)[-num_blocks:]
        return Block(*map(np.array, zip(*blocks, strict=True)))

    def add(self, block: Block) -> None:
        """Adds a block."""
        if not self.recent:
            # If the loss decreases within the first block, the start of the run is its
            # first loss and not the mean of the block.
            falls = self.first_loss - block.loss > 4 * block.noise
            self.start = self.first_loss if falls else block.loss
            self.noise = block.noise
        # Exponential moving average with a time constant of 5 blocks.
        self.noise += (block.noise - self.noise) / 5
        is_full = self._is_full_rate(block)
        self.num_full_rate_blocks += is_full
        self.num_full_in_a_row = self.num_full_in_a_row + 1 if is_full else 0
        self.max_rate = max(self.max_rate, block.rate)
        self.max_update_ratio = max(self.max_update_ratio, block.update_ratio)
        self.scale = max(self.scale, abs(block.loss))
        if len(self.recent) >= 3:
            self.max_grad_norm = max(self.max_grad_norm, self.recent[-3].grad_norm)
        if block.loss < self.best:
            self.best, self.best_step = block.loss, block.last_step
            self.best_noise, self.best_rate = self.noise, block.rate
        self.recent.append(block)

    def _is_full_rate(self, block: Block) -> bool:
        if not self.recent:
            return False
        # A known rate has no noise, so that a small tolerance is enough. The update
        # ratio, which replaces an unknown rate, fluctuates, and is large at the start
        # of a run with Adam.
        is_known = block.rate != block.update_ratio
        rise, min_fraction = (1e-6, 0.5) if is_known else (0.1, 0.2)
        is_rising = block.rate > self.recent[-1].rate * (1 + rise)
        return not is_rising and block.rate >= min_fraction * self.max_rate > 0


def finite_steps(window: Window) -> Steps:
    """Returns the steps that were not skipped and whose metrics are finite."""
    metrics: Any = window.metrics  # numpy arrays
    norms = metrics.norms
    is_taken = ~metrics.is_skipped & np.isfinite(
        (metrics.loss, norms.grads, norms.updates)
    ).all(axis=0)
    columns = {
        "step": window.first_step + np.arange(len(metrics.loss)),
        "loss": metrics.loss,
        "grads": norms.grads,
        "updates": norms.updates,
        "params": norms.params,
        "rate": metrics.learning_rate,
        **{_LAYER + name: layer.grads for name, layer in metrics.layers.items()},
    }
    # Columns are converted to float64, because the square of a large finite float32
    # loss overflows in float32.
    return {name: x[is_taken].astype(np.float64) for name, x in columns.items()}


def is_flat(losses: np.ndarray, num_standard_errors: float) -> bool:
    """Returns whether the decrease of the loss is within its standard error.

    Args:
        losses: losses of blocks; the mean of the second half is compared with that of
            the first half.
        num_standard_errors: number of standard errors of the difference.
    """
    half = len(losses) // 2
    # The variance of a block is estimated from differences of neighbours, which a slow
    # trend of the loss hardly affects: var(a - b) = 2 var(a).
    error = np.sqrt(np.mean(np.diff(losses) ** 2) / 2) * math.sqrt(2 / half)
    fall = losses[:half].mean() - losses[half:].mean()
    return bool(fall <= num_standard_errors * error)


def layers_with_small_grads(
    layers: Sequence[dict[str, float]], fraction: float
) -> list[str]:
    """Returns the layers whose gradient is too small in each of several blocks.

    Args:
        layers: gradient norms by layer, for each block.
        fraction: limit, relative to the largest gradient norm of the block. A norm of
            exactly 0 is not too small: the layer is frozen.
    """
    limits = [fraction * max(norms.values(), default=0.0) for norms in layers]
    return [
        name
        for name in layers[-1]
        if all(
            0 < norms.get(name, 0.0) < limit
            for norms, limit in zip(layers, limits, strict=True)
        )
    ]


def median_swing(losses: Sequence[float]) -> float:
    """Returns the median deviation of losses from the mean of their two neighbours.

    The median is robust to a fast decrease of the loss. The result is infinite for
    fewer than three losses.
    """
    off = np.abs(np.diff(losses, 2)) / 2
    return float(np.median(off)) if len(off) else math.inf


def _mean_block(steps: Steps) -> Block:
    """Returns the means over the steps of a block."""
    # The bound 1e-30 avoids a division by 0 for parameters that are all zero.
    ratio = float(np.mean(steps["updates"] / np.maximum(steps["params"], 1e-30)))
    rate = float(np.mean(steps["rate"]))
    return Block(
        first_step=int(steps["step"][0]),
        last_step=int(steps["step"][-1]),
        loss=float(np.mean(steps["loss"])),
        # The noise is estimated from differences of neighbours, so that a decrease of
        # the loss is not counted as noise.
        noise=math.sqrt(np.mean(np.diff(steps["loss"]) ** 2) / 2),
        grad_norm=_geometric_mean(steps["grads"]),
        update_ratio=ratio,
        grad_param_product=steps["grads"] * steps["params"],
        grad_update_product=_geometric_mean(steps["grads"] * steps["updates"]),
        rate=rate if math.isfinite(rate) else ratio,
        layers={
            name.removeprefix(_LAYER): float(np.mean(column))
            for name, column in steps.items()
            if name.startswith(_LAYER)
        },
    )


def _geometric_mean(x: np.ndarray) -> float:
    return float(np.exp(np.mean(np.log(np.maximum(x, 1e-300)))))
