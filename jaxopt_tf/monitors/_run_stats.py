"""Running statistics of a run for `watcher`: means over blocks of steps."""

import dataclasses
import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..training import Window

# Means over 20 steps: few enough to report early; enough that two blocks of a healthy
# run with batches of a few items differ less than its loss falls.
STEPS_IN_A_BLOCK = 20
NUM_RECENT = 20  # blocks that are kept, to tell a slow fall of the loss from none

# Columns of steps, [n] each; of layers the gradient norm, under a prefix and the name.
Steps = dict[str, np.ndarray]
_LAYER = "layer "


class Block(NamedTuple):
    """Means over the steps of a block whose update was made.

    A rule of the watcher receives several blocks as columns, [n] each.
    """

    first_step: Any  # int
    last_step: Any  # int
    loss: Any
    noise: Any  # standard deviation of the loss of a single step
    grad_norm: Any  # geometric mean
    update_ratio: Any  # update norm over parameter norm
    grad_param_product: Any  # [20]: product of both norms at each step
    grad_update_product: Any  # product of both norms; geometric mean
    rate: Any  # learning rate; `update_ratio` where it is not known
    layers: Any  # gradient norm by layer


@dataclasses.dataclass
class RunningStats:
    """Statistics of all blocks up to now; of bounded size."""

    first_loss: float = math.nan  # of the first step
    start: float = math.nan  # loss at the start, without its noise
    best: float = math.inf  # lowest loss of a block
    best_step: int = 0  # last step of that block
    best_noise: float = math.nan  # noise at that time
    best_rate: float = math.nan  # rate at that time
    noise: float = math.nan  # of a single step, over the last few blocks
    scale: float = 0.0  # largest absolute loss of a block
    top_rate: float = 0.0
    top_ratio: float = 0.0  # of updates to parameters
    largest_grad: float = 0.0  # of blocks before the last three
    num_full: int = 0  # blocks at full rate: it no longer rises, and is not far down
    num_full_in_a_row: int = 0
    recent: deque[Block] = dataclasses.field(
        default_factory=lambda: deque(maxlen=NUM_RECENT)
    )
    pending: Steps = dataclasses.field(default_factory=dict)  # fewer than a block

    def blocks(self, steps: Steps) -> Iterator[None]:
        """Adds steps, and yields after each block that they fill."""
        # A layer that only one of the two has is left out.
        names = [name for name in steps if not self.pending or name in self.pending]
        self.pending = {
            name: np.append(self.pending.get(name, ()), steps[name]) for name in names
        }
        while len(self.pending["loss"]) >= STEPS_IN_A_BLOCK:
            columns = self.pending.items()
            self.add(_block_of({name: x[:STEPS_IN_A_BLOCK] for name, x in columns}))
            self.pending = {name: x[STEPS_IN_A_BLOCK:] for name, x in columns}
            yield

    def last(self, num_blocks: int) -> Block | None:
        """Returns the last blocks as columns; None if there are not as many."""
        if len(self.recent) < num_blocks:
            return None
        blocks = list(self.recent)[-num_blocks:]
        return Block(*map(np.array, zip(*blocks, strict=True)))

    def add(self, block: Block) -> None:
        """Adds a block."""
        if not self.recent:
            # A run that learns within the first block started above the block's mean.
            falls = self.first_loss - block.loss > 4 * block.noise
            self.start = self.first_loss if falls else block.loss
            self.noise = block.noise
        self.noise += (block.noise - self.noise) / 5
        is_full = self._is_full(block)
        self.num_full += is_full
        self.num_full_in_a_row = self.num_full_in_a_row + 1 if is_full else 0
        self.top_rate = max(self.top_rate, block.rate)
        self.top_ratio = max(self.top_ratio, block.update_ratio)
        self.scale = max(self.scale, abs(block.loss))
        if len(self.recent) >= 3:
            self.largest_grad = max(self.largest_grad, self.recent[-3].grad_norm)
        if block.loss < self.best:
            self.best, self.best_step = block.loss, block.last_step
            self.best_noise, self.best_rate = self.noise, block.rate
        self.recent.append(block)

    def _is_full(self, block: Block) -> bool:
        if not self.recent:
            return False
        # A schedule computes a constant exactly. The size of updates, which stands for
        # a rate that is not known, fluctuates, and is high at first with Adam.
        is_known = block.rate != block.update_ratio
        rise, share = (1e-6, 0.5) if is_known else (0.1, 0.2)
        is_rising = block.rate > self.recent[-1].rate * (1 + rise)
        return not is_rising and block.rate >= share * self.top_rate > 0


def steps_of(window: Window) -> Steps:
    """Returns the steps whose update was made and whose numbers are finite."""
    metrics: Any = window.metrics  # of numpy arrays
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
        **{_LAYER + name: of.grads for name, of in metrics.layers.items()},
    }
    # As doubles: squares overflow in float32 of losses that do not yet.
    return {name: x[is_taken].astype(np.float64) for name, x in columns.items()}


def is_flat(losses: np.ndarray, num_errors: float) -> bool:
    """Returns whether the loss falls by no more than this many standard errors.

    Args:
        losses: of blocks, of which the later half is compared with the earlier.
        num_errors: standard errors of the difference.
    """
    half = len(losses) // 2
    error = np.sqrt(np.mean(np.diff(losses) ** 2) / 2) * math.sqrt(2 / half)
    fall = losses[:half].mean() - losses[half:].mean()
    return bool(fall <= num_errors * error)


def small_layers(layers: Sequence[dict[str, float]], share: float) -> list[str]:
    """Returns the layers whose gradient is below a share of the largest in all blocks.

    A gradient of exactly 0 does not count: such a layer is frozen.
    """
    limits = [share * max(norms.values(), default=0.0) for norms in layers]
    return [
        name
        for name in layers[-1]
        if all(
            0 < norms.get(name, 0.0) < limit
            for norms, limit in zip(layers, limits, strict=True)
        )
    ]


def swing_of(losses: Sequence[float]) -> float:
    """Returns how far losses are off the line through their neighbours.

    The median is taken, since all are off while the loss comes down. Of fewer than
    three losses it is infinite.
    """
    off = np.abs(np.diff(losses, 2)) / 2
    return float(np.median(off)) if len(off) else math.inf


def _block_of(steps: Steps) -> Block:
    """Returns the means over some steps."""
    ratio = float(np.mean(steps["updates"] / np.maximum(steps["params"], 1e-30)))
    rate = float(np.mean(steps["rate"]))
    return Block(
        first_step=int(steps["step"][0]),
        last_step=int(steps["step"][-1]),
        loss=float(np.mean(steps["loss"])),
        # From differences of neighbours, so that a fall of the loss is not noise.
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
