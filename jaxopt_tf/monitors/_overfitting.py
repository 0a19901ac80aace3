"""The gap between held-out and training loss."""

import math
from typing import NamedTuple

import numpy as np

# The held-out loss is above its best by this share of it: by less it creeps up at the
# end of many a run whose accuracy still gets better ...
_RISE = 0.05
# ... and by so many times what it goes up and down from one to the next ...
_RISE_OVER_CHANGE = 3.0
# ... at so many evaluations in a row, while the training loss is below what it was at
# the best: where both rise, as after a restart, the gap does not grow.
_EVALUATIONS_IN_A_ROW = 3
# Held-out losses that are kept to see how it goes up and down.
_NUM_KEPT = 7


class Gap(NamedTuple):
    """What the evaluations have come to."""

    best: float = math.inf  # held-out loss
    best_step: int = 0
    training_at_best: float = math.nan  # mean since the evaluation before
    held_out: tuple[float, ...] = ()  # the last few
    training: float = math.nan
    num_above: int = 0  # evaluations in a row that were above
    first_above: int = 0  # step of the first of them


def after(gap: Gap, step: int, held_out: float, training: float) -> Gap:
    """Counts an evaluation.

    Args:
        gap: what those before have come to.
        step: of the evaluation.
        held_out: its loss.
        training: mean training loss since the evaluation before.
    """
    kept = (*gap.held_out, held_out)[-_NUM_KEPT:]
    if held_out < gap.best:
        return Gap(held_out, step, training, kept, training)
    # How far each is off the line through its neighbours; the median, as on the way
    # down all are.
    off = np.abs(np.diff(kept, 2)) / 2
    change = float(np.median(off)) if len(off) else math.inf
    limit = max(_RISE * abs(gap.best), _RISE_OVER_CHANGE * change)
    is_above = held_out - gap.best > limit and training < gap.training_at_best
    return gap._replace(
        held_out=kept,
        training=training,
        num_above=gap.num_above + 1 if is_above else 0,
        first_above=gap.first_above if gap.num_above else step,
    )


def overfitting(gap: Gap) -> str | None:
    """The held-out loss rises while the training loss falls."""
    if gap.num_above < _EVALUATIONS_IN_A_ROW:
        return None
    return (
        f"the held-out loss has risen to {gap.held_out[-1]:.4g} from {gap.best:.4g} "
        f"(step {gap.best_step}) while the training loss fell to {gap.training:.4g} "
        f"from {gap.training_at_best:.4g}, the model overfits; take the best "
        "checkpoint, stop early, or add data, dropout or `weight_decay`"
    )
