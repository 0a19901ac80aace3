"""What a run came to at a step, and how runs compare."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import rich.table

from ..recipes import Recipe, recipe_settings


class Trial(NamedTuple):
    """A run as it stood at a step."""

    run: int  # number of its recipe
    step: int  # updates that were made
    first_loss: float  # of the first batch, before any update
    loss: float  # mean training loss of the last tenth of the steps; inf: diverged
    held_out: float | None  # inf: diverged; None where there are no held-out batches

    @property
    def compared(self) -> float:
        """What runs are compared by: the held-out loss, or else the training loss."""
        return self.loss if self.held_out is None else self.held_out


def trial(
    run: int, step: int, first_loss: float, losses: np.ndarray, held_out: float | None
) -> Trial:
    """What a run came to.

    It has diverged if a loss is not finite, or the one that counts is above twice what
    it began with: finite perhaps, and yet nothing to go by.

    Args:
        run: number of its recipe.
        step: where it stands.
        first_loss: of the first batch.
        losses: [n], float32: of its last steps, a tenth of all at least; NaN from one
            on that was not finite.
        held_out: None where there are no held-out batches.
    """
    loss = float(np.mean(losses[-max(1, step // 10) :], dtype=np.float64))
    compared = loss if held_out is None else held_out
    if math.isnan(loss) or not compared <= first_loss + abs(first_loss):
        return Trial(
            run, step, first_loss, math.inf, None if held_out is None else math.inf
        )
    return Trial(run, step, first_loss, loss, held_out)


def lowest(trials: Sequence[Trial], recipes: Sequence[Recipe]) -> Trial | None:
    """The lowest loss, of runs at their end if one of them is finite; None: of none."""
    finite = [trial for trial in trials if math.isfinite(trial.compared)]
    ended = [trial for trial in finite if is_ended(trial, recipes)]
    return min(ended or finite, key=lambda trial: trial.compared, default=None)


def is_ended(trial: Trial, recipes: Sequence[Recipe]) -> bool:
    """Whether the run was trained to its end."""
    return trial.step == recipes[trial.run].max_steps


def best_of(trials: Sequence[Trial], recipes: Sequence[Recipe]) -> Trial:
    """As `lowest`.

    Raises:
        ValueError: if all diverged.
    """
    best = lowest(trials, recipes)
    if best is None:
        rate = min(recipes[trial.run].learning_rate for trial in trials)
        raise ValueError(
            f"`recipes` must have a run that stays finite, but all {len(trials)} "
            f"diverged; the smallest `learning_rate` tried was {rate:g}. Try smaller "
            "ones."
        )
    return best


def differing(recipes: Sequence[Recipe]) -> list[str]:
    """The fields in which they differ."""
    settings = [recipe_settings(recipe) for recipe in recipes]
    first = settings[0]
    return [name for name in first if any(of[name] != first[name] for of in settings)]


def table_of(
    recipes: Sequence[Recipe], trials: Sequence[Trial], most: int | None = None
) -> rich.table.Table:
    """What differs between runs, and what they came to; the best first.

    Args:
        recipes: of all runs.
        trials: the last one of each.
        most: rows; None for all.
    """
    names = differing(recipes)
    has_held_out = any(trial.held_out is not None for trial in trials)
    losses = ["training loss", *(["held-out loss"] if has_held_out else [])]
    table = rich.table.Table(*names, "steps", *losses)
    # Those that came furthest first: the others were left behind for a reason.
    ordered = sorted(trials, key=lambda trial: (-trial.step, trial.compared))
    if len({recipe.max_steps for recipe in recipes}) > 1:
        ordered = sorted(trials, key=lambda trial: trial.compared)
    for trial in ordered[:most]:
        settings = recipe_settings(recipes[trial.run])
        own = [shown(settings[name]) for name in names]
        shown_losses = [_loss(trial.loss)]
        if has_held_out:
            shown_losses.append(_loss(trial.compared))
        table.add_row(*own, f"{trial.step:,}", *shown_losses)
    return table


def shown(value: object) -> str:
    """A setting in a table."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _loss(loss: float) -> str:
    return "diverged" if math.isinf(loss) else f"{loss:.4g}"
