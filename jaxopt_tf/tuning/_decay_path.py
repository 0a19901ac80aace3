"""decay_path: cross-validation of every weight decay on every fold, side by side."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import rich.table

from .. import _checks, plots
from .._typing import PyTree
from ..optimizers import LayerNorms, TorchLayout
from ..recipes import Recipe
from ..training import Batch, LossFn
from ._folds import Folds, make_folds
from ._parallel_runs import Group, ParallelRuns
from ._task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class DecayPath:
    """Losses over weight decay; D decays, F folds, N rows.

    The suggestion follows the one-standard-error rule: the largest decay whose mean
    evaluation loss is at most

        lowest mean + its standard error

    Attributes:
        base: the recipe of the runs, but for their decay.
        decays: [D], float64, rising.
        training: [D, F], float64: the mean loss at the end of a run, over the rows that
            it was trained on; infinite if it diverged, that is, was not finite at a
            step or at its end.
        held_out: [D, F], float64: the same over the rows of its fold.
        fold: [N], int64: the fold of each row.

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
        """Checks that one decay can be compared with others."""
        if not np.isfinite(self.mean).any():
            num = len(self.decays)
            each = f"each of {num}" if num > 1 else "the only one"
            raise ValueError(
                f"`decays` must have one with which all folds stay finite, but {each} "
                f"diverged; the smallest was {self.decays[0]:g}, with `learning_rate` "
                f"{self.base.learning_rate:g}. Try smaller ones, of the rate first."
            )

    @property
    def mean(self) -> np.ndarray:
        """[D], float64: evaluation loss over the folds; infinite if one diverged."""
        return self.held_out.mean(axis=1)

    @property
    def standard_error(self) -> np.ndarray:
        """[D], float64: of `mean`; NaN where it is infinite.

        Folds are taken as independent, which is not quite true: runs of two folds are
        trained on rows that they share.
        """
        error = np.full(len(self.decays), np.nan)
        has_error = np.isfinite(self.mean)
        error[has_error] = self.held_out[has_error].std(axis=1, ddof=1)
        return error / np.sqrt(self.held_out.shape[1])

    @property
    def best(self) -> float:
        """The decay with the lowest mean evaluation loss."""
        return float(self.decays[self._best])

    @property
    def suggestion(self) -> float:
        """The largest decay whose mean is within one standard error of the lowest."""
        return float(self.decays[self._suggested])

    @property
    def recipe(self) -> Recipe:
        """The recipe with the suggested decay."""
        return dataclasses.replace(self.base, weight_decay=self.suggestion)

    @property
    def reason(self) -> str:
        """Why this decay is suggested, and whether others should be tried."""
        best, suggested, mean = self._best, self._suggested, self.mean
        reason = (
            f"The mean evaluation loss is lowest, {mean[best]:.4g}, at {self.best:g}"
        )
        error = f"one standard error, {self.standard_error[best]:.2g}"
        if suggested == best:
            reason += f", and no stronger decay is within {error}, of it."
        else:
            reason += (
                f"; {self.suggestion:g} is the strongest decay within {error}, of it, "
                f"with {mean[suggested]:.4g}."
            )
        if len(self.decays) > 1 and suggested == len(self.decays) - 1:
            reason += " It is the strongest of all: try stronger ones."
        elif len(self.decays) > 1 and best == 0 and self.best > 0:
            reason += " The lowest is at the weakest of all: try weaker ones."
        return reason

    def table(self) -> rich.table.Table:
        """Returns mean losses by decay, the weakest first."""
        table = rich.table.Table(
            "weight_decay", "training loss", "evaluation loss", "standard error", ""
        )
        marks = {"lowest": self._best, "suggested": self._suggested}
        means, errors = self.training.mean(axis=1), self.standard_error
        for i, of_folds in enumerate(self.held_out):
            losses = [f"{means[i]:.4g}", f"{self.mean[i]:.4g}", f"{errors[i]:.2g}"]
            if np.isinf(of_folds).any():
                num_lost = np.isinf(of_folds).sum()
                losses = [f"diverged in {num_lost} of {len(of_folds)} folds", "", ""]
            marked = ", ".join(mark for mark, at in marks.items() if at == i)
            table.add_row(f"{self.decays[i]:g}", *losses, marked)
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
        return plots.plot_losses_by_decay(
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


def decay_path(
    loss_fn: LossFn,
    init: Callable[[int], PyTree],
    examples: PyTree,
    recipe: Recipe,
    decays: Sequence[float],
    *,
    num_folds: int = 5,
    warm_starts: bool = False,
    takes_key: bool = False,
    compute_dtype: Any = None,
    layouts: Mapping[str, TorchLayout] | None = None,
    layer_norms: LayerNorms | None = None,
    memory_limit: float | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> DecayPath:
    """Computes training and evaluation loss over weight decay, by cross-validation.

        path = decay_path(loss_fn, init, {"x": x, "y": y}, recipe, [0, 0.01, 0.1, 1])
        print(path.reason)

    The rows are shuffled by the recipe's seed and dealt out to folds. For each decay
    and fold one run is trained on the rows of the other folds; all of them in one
    compiled program, side by side. At its end the loss of a run is computed over every
    row once: over those of its fold, which it has not seen, and over the others. Runs
    of one fold take the same batches, drawn by the seed, and all start from
    `init(seed)`.

    With `warm_starts` only the folds are side by side. The decays follow one another,
    from the strongest to the weakest; each run starts from the final parameters of the
    one before it, with a new optimizer state, and its schedule and its batches from
    their beginning. If the one before diverged, it starts from where that one started.
    Each run has then taken more steps than the one before it: its loss is not what
    `recipe` gives from scratch.

    Args:
        loss_fn: as `make_train_step` takes it: (params, batch) -> (summed loss, number
            of items); a batch is some rows of `examples`.
        init: returns the initial parameters for the recipe's seed.
        examples: a tree of arrays [N, ...], a row for each example.
        recipe: the other numbers of the runs. An update takes
            `per_device_train_batch_size` rows, times the steps of accumulation.
        decays: values of `weight_decay`, in any order; at least 0.
        num_folds: F; from 2 to N.
        warm_starts: whether runs start from the one before, instead of from scratch.
        takes_key: whether `loss_fn` takes a key in training, for dropout.
        compute_dtype: as `make_train_step` takes it.
        layouts: as `build_optimizer` takes them.
        layer_norms: as `build_optimizer` takes them.
        memory_limit: as `train_many` takes it.
        devices: that the runs are divided among; None for all of this process.

    Returns:
        Losses by decay and fold, and the decay that they suggest.

    Raises:
        ValueError, TypeError: if an argument is out of range, leaves of `examples`
            differ in length, there are fewer rows than an update takes, or every decay
            diverges.

    Source: Hastie, Tibshirani and Friedman, "The Elements of Statistical Learning",
        7.10 (cross-validation); Friedman, Hastie and Tibshirani 2010, "Regularization
        Paths for Generalized Linear Models", 2.5 (warm starts).
    """
    decays = list(decays)
    if not decays:
        raise ValueError(
            "`decays` must hold at least one weight decay, got none. Give some, such "
            "as [0, 0.01, 0.1, 1]."
        )
    for decay in decays:
        _checks.non_negative("decays", decay)
    rising = np.unique(np.asarray(decays, np.float64))
    folds = make_folds(examples, num_folds, recipe)
    task = Task(
        loss_fn=loss_fn,
        init=init,
        batches=lambda recipe: (),  # not used: each fold has a stream of its own
        takes_key=takes_key,
        compute_dtype=compute_dtype,
        layouts=layouts,
        layer_norms=layer_norms,
    )
    runs = _FoldRuns(
        task=task,
        recipes=[
            dataclasses.replace(recipe, weight_decay=float(decay))
            for decay in rising
            for _ in range(num_folds)
        ],
        memory_limit=memory_limit,
        devices=devices,
        folds=folds,
    )
    losses = np.empty((2, len(runs.recipes)))
    numbers = np.arange(len(runs.recipes)).reshape(-1, num_folds)
    params: dict[int, PyTree] = {}
    # With warm starts runs of one decay start where those of the next larger one ended.
    for chosen in numbers[::-1] if warm_starts else [numbers.ravel()]:
        for group in runs.train_to(
            chosen.tolist(), recipe.max_steps, params=params, keeps_states=warm_starts
        ):
            losses[:, group.runs] = runs.mean_losses(group)
            for i, state in zip(group.runs, group.states, strict=False):
                if np.isfinite(losses[0, i]):
                    params[i - num_folds] = state.state.params
                elif i in params:
                    params[i - num_folds] = params[i]
    training, held_out = losses.reshape(2, -1, num_folds)
    return DecayPath(recipe, rising, training, held_out, folds.fold)


@dataclasses.dataclass(kw_only=True)
class _FoldRuns(ParallelRuns):
    """Runs of several decays, each on the rows of all folds but one.

    Attributes:
        folds: F; run i is evaluated on fold i mod F.
    """

    folds: Folds

    def stream_of(self, run: int) -> int:
        """Returns the fold that a run is not trained on."""
        return run % self.folds.num_folds

    def open_stream(self, name: int, longest: Recipe) -> Iterable[Batch]:
        """Returns batches of the rows of other folds."""
        return self.folds.training_batches(name)

    @functools.cached_property
    def evaluations(self) -> Sequence[Sequence[Batch]]:
        """Rows of each fold."""
        return self.folds.evaluation_batches()

    def mean_losses(self, group: Group) -> np.ndarray:
        """Returns training and evaluation losses of runs at their ends, [2, n].

        Both are infinite for a run that has diverged.

        Raises:
            ValueError: if a fold has no items.
        """
        num_folds = self.folds.num_folds
        if not group.num_items.all():
            raise ValueError(
                "`examples` must have items to take a mean over in every fold, got "
                f"none in one of {num_folds}. Take fewer folds; or are all labels "
                "ignored?"
            )
        is_evaluated = np.arange(num_folds)[:, None] == np.array(group.runs) % num_folds
        which = np.stack([~is_evaluated, is_evaluated])  # [2, F, n]
        totals, num_items = (
            np.broadcast_to(x, which.shape).sum(axis=1, where=which)
            for x in (group.totals, group.num_items)
        )
        losses = totals / num_items
        finite = np.isfinite(losses).all(axis=0) & np.isfinite(group.losses).all(axis=1)
        return np.where(finite, losses, np.inf)
