"""What many runs came to, step by step."""

from dataclasses import dataclass

import numpy as np
import rich.table

from ..recipes import Recipe
from ._trials import Trial, best_of, table_of, trial


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
    def trials(self) -> tuple[Trial, ...]:
        """The runs at their ends."""
        return tuple(
            trial(
                i,
                recipe.max_steps,
                float(self.losses[i, 0]),
                self.losses[i, : recipe.max_steps],
                None if self.held_out is None else float(self.held_out[i]),
            )
            for i, recipe in enumerate(self.recipes)
        )

    @property
    def final(self) -> np.ndarray:
        """[K], float64: the loss by which runs are compared; infinite if they diverged.

        The held-out loss; without one, the mean training loss of a run's last tenth.
        """
        return np.array([trial.compared for trial in self.trials])

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
        return best_of(self.trials, self.recipes).run

    @property
    def best_recipe(self) -> Recipe:
        """The recipe of the run with the lowest final loss."""
        return self.recipes[self.best]

    def table(self, *, most: int | None = None) -> rich.table.Table:
        """What differs between the runs, and their final losses, the best first.

        Args:
            most: rows; None for all.
        """
        return table_of(self.recipes, self.trials, most)
