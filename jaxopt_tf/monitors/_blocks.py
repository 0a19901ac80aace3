"""A run in blocks of steps, and what a watcher has to remember of those before."""

import dataclasses
import math
from collections import deque
from typing import Any, NamedTuple

import numpy as np

from ..training import Window

# Means over 20 steps: short enough to be told soon, long enough that two blocks of
# a healthy run with batches of a few items differ less than its loss falls.
STEPS_IN_A_BLOCK = 20
# Blocks that are kept, to tell a slow fall of the loss from none.
_NUM_RECENT = 20
# It falls if its second half is below the first by so many standard errors.
_FALL_OVER_NOISE = 3.0


class Block(NamedTuple):
    """Means over the steps of a block that were taken; Python numbers."""

    first_step: int
    last_step: int
    loss: float
    noise: float  # standard deviation of a single step's loss
    grad_norm: float  # geometric mean
    update_ratio: float  # update norm over parameter norm
    pull: np.ndarray  # [n]: gradient norm times parameter norm, at each step
    step_pull: float  # gradient norm times update norm; geometric mean
    rate: float  # learning rate; where it is not known, `update_ratio`
    layers: dict[str, float]  # gradient norm by layer
    is_full: bool = False  # whether the rate had come to its height: set by `Memory`


@dataclasses.dataclass
class Memory:
    """What the blocks up to now have come to; all of it bounded."""

    recent: deque[Block] = dataclasses.field(
        default_factory=lambda: deque(maxlen=_NUM_RECENT)
    )
    first_loss: float = math.nan  # of the first step
    start: float = math.nan  # loss that the run began with, without its noise
    best: float = math.inf  # least loss of a block
    best_step: int = 0  # its last step
    best_noise: float = math.nan  # noise at that time
    best_rate: float = math.nan  # rate at that time
    noise: float = math.nan  # of a single step, over the last few blocks
    scale: float = 0.0  # largest loss of a block, in absolute value
    top_rate: float = 0.0
    top_ratio: float = 0.0  # of updates to parameters
    largest_grad: float = 0.0  # of the blocks that are no longer among the last three
    num_full: int = 0  # steps at a rate that was not rising any more

    def add(self, block: Block) -> None:
        """Takes a block in."""
        if not self.recent:
            # Who learns within the first block has begun higher than its mean.
            falls = self.first_loss - block.loss > 4 * block.noise
            self.start = self.first_loss if falls else block.loss
            self.noise = block.noise
        else:
            self.noise += (block.noise - self.noise) / 5
        block = block._replace(is_full=self._is_full(block))
        self.num_full += STEPS_IN_A_BLOCK if block.is_full else 0
        self.top_rate = max(self.top_rate, block.rate)
        self.top_ratio = max(self.top_ratio, block.update_ratio)
        self.scale = max(self.scale, abs(block.loss))
        if len(self.recent) >= 3:
            self.largest_grad = max(self.largest_grad, self.recent[-3].grad_norm)
        if block.loss < self.best:
            self.best, self.best_step = block.loss, block.last_step
            self.best_noise, self.best_rate = self.noise, block.rate
        self.recent.append(block)

    @property
    def lowest(self) -> float:
        """The least loss, that of the first step where there is no block yet."""
        return self.best if self.recent else self.first_loss

    @property
    def gain(self) -> float:
        """How far the loss has come down."""
        return self.start - self.best if self.recent else 0.0

    @property
    def is_flat(self) -> bool:
        """Whether the loss does not fall, over as many blocks as are kept."""
        losses = np.array([block.loss for block in self.recent])
        if len(losses) < _NUM_RECENT:
            return False
        half = len(losses) // 2
        error = np.sqrt(np.mean(np.diff(losses) ** 2) / 2) * math.sqrt(2 / half)
        fall = losses[:half].mean() - losses[half:].mean()
        return bool(fall <= _FALL_OVER_NOISE * error)

    def last(self, count: int) -> list[Block]:
        """The last few blocks."""
        return list(self.recent)[-count:]

    def _is_full(self, block: Block) -> bool:
        """Whether the rate does not rise any more, and is not far down yet."""
        if not self.recent:
            return False
        # A schedule computes a constant exactly. The size of updates, which stands in
        # for a rate that is not known, fluctuates, and begins high with Adam.
        is_known = block.rate != block.update_ratio
        rise, share = (1e-6, 0.5) if is_known else (0.1, 0.2)
        is_rising = block.rate > self.recent[-1].rate * (1 + rise)
        return not is_rising and block.rate >= share * self.top_rate > 0


# Steps that do not make a block yet: columns, [n] each, and the gradient norm of each
# layer under its name, after a prefix.
Steps = dict[str, np.ndarray]

_LAYER = "layer "


def steps_of(window: Window) -> Steps:
    """The window's steps whose update was made and whose numbers are finite."""
    metrics: Any = window.metrics  # numpy here
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
        **{f"{_LAYER}{name}": of.grads for name, of in metrics.layers.items()},
    }
    # In doubles: float32's squares overflow, of a loss that does not yet.
    return {name: x[is_taken].astype(np.float64) for name, x in columns.items()}


def joined(one: Steps, other: Steps) -> Steps:
    """One after the other; what only one of them knows is left out."""
    if not one:
        return other
    return {
        name: np.concatenate([one[name], column])
        for name, column in other.items()
        if name in one
    }


def cut(steps: Steps, where: slice) -> Steps:
    """Some of the steps."""
    return {name: column[where] for name, column in steps.items()}


def block_of(steps: Steps) -> Block:
    """The means of a block."""
    ratio = float(np.mean(steps["updates"] / np.maximum(steps["params"], 1e-30)))
    rate = float(np.mean(steps["rate"]))
    return Block(
        first_step=int(steps["step"][0]),
        last_step=int(steps["step"][-1]),
        loss=float(np.mean(steps["loss"])),
        # Of neighbours, so that a fall of the loss does not pass for noise.
        noise=math.sqrt(np.mean(np.diff(steps["loss"]) ** 2) / 2),
        grad_norm=_geometric_mean(steps["grads"]),
        update_ratio=ratio,
        pull=steps["grads"] * steps["params"],
        step_pull=_geometric_mean(steps["grads"] * steps["updates"]),
        rate=rate if math.isfinite(rate) else ratio,
        layers={
            name.removeprefix(_LAYER): float(np.mean(column))
            for name, column in steps.items()
            if name.startswith(_LAYER)
        },
    )


def _geometric_mean(x: np.ndarray) -> float:
    return float(np.exp(np.mean(np.log(np.maximum(x, 1e-300)))))
