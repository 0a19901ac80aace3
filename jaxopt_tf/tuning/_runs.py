"""What many runs came to."""

from dataclasses import dataclass

import numpy as np
import rich.table

from .. import _check
from ..recipes import Recipe, recipe_settings


@dataclass(frozen=True)
class Runs:
    """What many runs came to; K runs, N steps of the longest.

    Attributes:
        recipes: of each run.
        losses: [K, N], float32: the training loss of each step, before its update; NaN
            past the end of a run, and from the step on that was not finite.
        held_out: [K], float64: the held-out loss at the end; None where none was asked
            for.
    """

    recipes: tuple[Recipe, ...]
    losses: np.ndarray
    held_out: np.ndarray | None

    @property
    def final(self) -> np.ndarray:
        """[K], float64: the loss by which runs are compared; infinite if they diverged.

        The held-out loss, or the mean training loss of a run's last tenth.
        """
        if self.held_out is not None:
            final = np.asarray(self.held_out)
        else:
            final = np.array([self._of_last_tenth(i) for i in range(len(self.recipes))])
        first = self.losses[:, 0].astype(np.float64)
        is_end = (
            np.arange(len(final)),
            [recipe.max_steps - 1 for recipe in self.recipes],
        )
        is_lost = ~(final <= first + np.abs(first)) | np.isnan(self.losses[is_end])
        return np.where(is_lost, np.inf, final)

    @property
    def diverged(self) -> np.ndarray:
        """[K], bool: not finite at a step, or at the end above twice the first loss."""
        return np.isinf(self.final)

    @property
    def best(self) -> int:
        """The number of the run with the lowest final loss.

        Raises:
            ValueError: if all diverged.
        """
        final = self.final
        if not np.isfinite(final).any():
            rate = min(recipe.learning_rate for recipe in self.recipes)
            raise ValueError(
                f"`recipes` must have a run that stays finite, but all "
                f"{len(self.recipes)} diverged; the smallest `learning_rate` tried was "
                f"{rate:g}. Try smaller ones."
            )
        return int(np.argmin(final))

    @property
    def best_recipe(self) -> Recipe:
        """The recipe of the run with the lowest final loss."""
        return self.recipes[self.best]

    def table(self, *, most: int | None = None) -> rich.table.Table:
        """What differs between the runs, and their final losses, the best first.

        Args:
            most: rows; None for all.
        """
        most = (
            len(self.recipes)
            if most is None
            else _check.whole_number("most", most, least=1)
        )
        settings = [recipe_settings(recipe) for recipe in self.recipes]
        differing = [
            name
            for name in settings[0]
            if any(of[name] != settings[0][name] for of in settings)
        ]
        what = "training loss" if self.held_out is None else "held-out loss"
        table = rich.table.Table(*differing, "first loss", f"{what} at the end")
        final = self.final
        for i in np.argsort(final, kind="stable")[:most]:
            end = f"{final[i]:.4g}" if np.isfinite(final[i]) else self._when_diverged(i)
            own = [_shown(settings[i][name]) for name in differing]
            table.add_row(*own, f"{self.losses[i, 0]:.4g}", end)
        return table

    def _of_last_tenth(self, i: int) -> float:
        num_steps = self.recipes[i].max_steps
        last = self.losses[i, num_steps - max(1, num_steps // 10) : num_steps]
        return float(np.mean(last, dtype=np.float64))

    def _when_diverged(self, i: int) -> str:
        is_bad = np.isnan(self.losses[i, : self.recipes[i].max_steps])
        at = f" at step {int(is_bad.argmax()) + 1:,}" if is_bad.any() else ""
        return f"diverged{at}"


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
