"""What a path over weight decay came to."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import rich.table

from ..recipes import Recipe
from ._decay_path_picture import draw_decay_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class DecayPath:
    """Losses over weight decay; D decays, F folds, N rows.

    The suggestion is that of the one-standard-error rule: the largest decay whose mean
    held-out loss is at most

        lowest mean + its standard error

    Attributes:
        base: the recipe that the runs had, but for their decay.
        decays: [D], float64: from the smallest on.
        training: [D, F], float64: the mean loss at the end of a run, over the rows that
            it was trained on; infinite if it diverged, that is, was not finite at a
            step or at its end.
        held_out: [D, F], float64: the same over the rows of its fold.
        fold: [N], int64: in which fold each row was held out.

    Raises:
        ValueError: if every decay diverged in a fold.

    Source: Breiman, Friedman, Olshen and Stone 1984, "Classification and Regression
        Trees", 3.4.3; Hastie, Tibshirani and Friedman, "The Elements of Statistical
        Learning", 7.10.
    """

    base: Recipe
    decays: np.ndarray
    training: np.ndarray
    held_out: np.ndarray
    fold: np.ndarray

    def __post_init__(self) -> None:
        """Asks for a decay that can be compared with others."""
        if not np.isfinite(self.mean).any():
            raise ValueError(
                "`decays` must have one with which all folds stay finite, but each of "
                f"{len(self.decays)} diverged; the smallest was {self.decays[0]:g}, "
                f"with `learning_rate` {self.base.learning_rate:g}. Try smaller ones, "
                "of the rate first."
            )

    @property
    def mean(self) -> np.ndarray:
        """[D], float64: held-out loss over the folds; infinite if one diverged."""
        return self.held_out.mean(axis=1)

    @property
    def standard_error(self) -> np.ndarray:
        """[D], float64: of `mean`; NaN where it is infinite.

        Folds are taken to be independent, which they are not quite: two of them are
        trained on rows that they share.
        """
        error = np.full(len(self.decays), np.nan)
        has_error = np.isfinite(self.mean)
        num_folds = self.held_out.shape[1]
        error[has_error] = self.held_out[has_error].std(axis=1, ddof=1)
        return error / np.sqrt(num_folds)

    @property
    def best(self) -> float:
        """The decay with the lowest mean held-out loss."""
        return float(self.decays[self._best])

    @property
    def suggestion(self) -> float:
        """The largest decay whose mean is within one standard error of the lowest."""
        return float(self.decays[self._suggested])

    @property
    def recipe(self) -> Recipe:
        """The recipe with the decay that is suggested."""
        return dataclasses.replace(self.base, weight_decay=self.suggestion)

    @property
    def reason(self) -> str:
        """Why this one is suggested, and whether others should be tried."""
        best, suggested, mean = self._best, self._suggested, self.mean
        told = f"The mean held-out loss is lowest, {mean[best]:.4g}, at {self.best:g}"
        error = f"one standard error, {self.standard_error[best]:.2g}"
        if suggested == best:
            told = f"{told}, and no stronger decay is within {error}, of it."
        else:
            told = (
                f"{told}; {self.suggestion:g} is the strongest decay within {error}, "
                f"of it, with {mean[suggested]:.4g}."
            )
        if len(self.decays) > 1 and suggested == len(self.decays) - 1:
            return f"{told} It is the strongest of all: try stronger ones."
        if len(self.decays) > 1 and best == 0 and self.best > 0:
            return f"{told} The lowest is at the weakest of all: try weaker ones."
        return told

    def table(self) -> rich.table.Table:
        """Mean losses by decay, the weakest first."""
        table = rich.table.Table(
            "weight_decay", "training loss", "held-out loss", "standard error", ""
        )
        marks = {self._best: "lowest"}
        marks[self._suggested] = ", ".join(
            [*(["lowest"] if self._best == self._suggested else []), "suggested"]
        )
        columns = (self.decays, self.training, self.held_out, self.standard_error)
        for i, (decay, training, held_out, error) in enumerate(
            zip(*columns, strict=True)
        ):
            num_lost = int(np.isinf(held_out).sum())
            losses = [
                f"{training.mean():.4g}",
                f"{held_out.mean():.4g}",
                f"{error:.2g}",
            ]
            if num_lost:
                losses = [f"diverged in {num_lost} of {len(held_out)} folds", "", ""]
            table.add_row(f"{decay:g}", *losses, marks.get(i, ""))
        return table

    def picture(self, path: Path | str | None = None) -> "Figure":
        """Draws losses over decay, with the suggestion and the lowest marked.

        Args:
            path: also write it there, as `.png`, `.svg` or `.pdf`; its folder must
                exist.

        Returns:
            The picture, 800 pixels wide; a notebook shows it.

        Raises:
            ValueError: if no picture can be written to `path`.
        """
        return draw_decay_path(
            self.decays,
            self.training.mean(axis=1),
            self.mean,
            self.standard_error,
            best=self._best,
            suggested=self._suggested,
            path=path,
        )

    @property
    def _best(self) -> int:
        return int(np.argmin(self.mean))

    @property
    def _suggested(self) -> int:
        limit = self.mean[self._best] + self.standard_error[self._best]
        return int(np.flatnonzero(self.mean <= limit)[-1])
