"""Cross-validation of weight decay, with all runs in parallel."""

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
from ..optimizers import LayerNorms, TorchLayout, eval_params
from ..recipes import Recipe
from ..training import Batch, LossFn
from ._folds import Folds, make_folds
from ._parallel_runs import Group, ParallelRuns
from ._task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class DecayPath:
    """Losses over weight decay, for D decays, F folds and N rows.

    The suggestion follows the one-standard-error rule. It is the largest decay whose
    mean evaluation loss is at most

        lowest mean + its standard error

    Attributes:
        base: recipe of the runs, except for their decay.
        decays: [D], float64: decays in increasing order.
        training: [D, F], float64: mean loss at the end of a run over the rows that it
            was trained on; infinite if the run diverged, that is, if a loss of a step
            or at the end was not finite.
        eval_loss: [D, F], float64: mean loss at the end of a run over the rows of its
            fold; infinite if the run diverged.
        fold_of_row: [N], int64: index of the fold of each row.

    Raises:
        ValueError: if every decay diverged in at least one fold.

    Source: Breiman, Friedman, Olshen and Stone 1984, "Classification and Regression
        Trees", 3.4.3; Hastie, Tibshirani and Friedman, "The Elements of Statistical
        Learning", 7.10.
    """

    base: Recipe
    decays: np.ndarray
    training: np.ndarray
    eval_loss: np.ndarray
    fold_of_row: np.ndarray

    def __post_init__(self) -> None:
        """Checks that at least one decay has finite losses."""
        if not np.isfinite(self.mean).any():
            num_decays = len(self.decays)
            each = f"each of {num_decays}" if num_decays > 1 else "the only one"
            raise ValueError(
                "`decays` must have one with which all folds stay finite, but "
                f"{each} diverged; the smallest was {self.decays[0]:g}, with "
                f"`learning_rate` {self.base.learning_rate:g}. Try a smaller "
                "`learning_rate` first, then smaller decays."
            )

    @property
    def mean(self) -> np.ndarray:
        """[D], float64: mean evaluation loss over folds; infinite if one diverged."""
        return self.eval_loss.mean(axis=1)

    @property
    def standard_error(self) -> np.ndarray:
        """[D], float64: standard error of `mean`; NaN where `mean` is infinite.

        Folds are treated as independent. This is an approximation: runs of two folds
        share most of their training rows.
        """
        # The sample standard deviation over folds (ddof=1), divided by sqrt(F).
        error = np.full(len(self.decays), np.nan)
        has_error = np.isfinite(self.mean)
        error[has_error] = self.eval_loss[has_error].std(axis=1, ddof=1)
        return error / np.sqrt(self.eval_loss.shape[1])

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
        """Explanation of the suggestion, and advice to try other decays if needed."""
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
        """Returns a table of mean losses by decay, in increasing order."""
        table = rich.table.Table(
            "weight_decay", "training loss", "evaluation loss", "standard error", ""
        )
        labels = {"lowest": self._best, "suggested": self._suggested}
        means, errors = self.training.mean(axis=1), self.standard_error
        for i, fold_losses in enumerate(self.eval_loss):
            losses = [f"{means[i]:.4g}", f"{self.mean[i]:.4g}", f"{errors[i]:.2g}"]
            if np.isinf(fold_losses).any():
                num_diverged = np.isinf(fold_losses).sum()
                losses = [
                    f"diverged in {num_diverged} of {len(fold_losses)} folds",
                    "",
                    "",
                ]
            marked = ", ".join(mark for mark, index in labels.items() if index == i)
            table.add_row(f"{self.decays[i]:g}", *losses, marked)
        return table

    def picture(self, path: Path | str | None = None) -> "Figure":
        """Plots losses over decay, and marks the suggestion and the lowest loss.

        Args:
            path: file to which the figure is also written, `.png`, `.svg` or `.pdf`;
                its folder must exist.

        Returns:
            The figure, 800 pixels wide.

        Raises:
            ValueError: if no figure can be written to `path`.
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
        # Decays are in increasing order: the last one below the limit is the largest.
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
    frozen: PyTree | None = None,
    memory_limit: float | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> DecayPath:
    """Computes training and evaluation loss over weight decay by cross-validation.

        path = decay_path(loss_fn, init, {"x": x, "y": y}, recipe, [0, 0.01, 0.1, 1])
        print(path.reason)

    The rows are shuffled by the recipe's seed and assigned to folds. For each decay and
    fold, one run is trained on the rows of the other folds; all runs are trained in
    parallel in one compiled program. At its end, the loss of a run is computed over
    every row once: over the rows of its fold, which were not used in training, and over
    the others. Runs of one fold have the same batches, shuffled by the seed. All runs
    start from `init(seed)`.

    With `warm_starts` only the folds are trained in parallel. The decays are trained
    one after another, from the largest to the smallest. Each run starts from the final
    parameters of the run with the next larger decay, with a new optimizer state, and
    from the beginning of its schedule and its batches. If that run diverged, the next
    one starts from the same initial parameters. Each run has then taken more steps than
    the one before it: its loss differs from that of `recipe` from scratch.

    Args:
        loss_fn: as for `make_train_step`: (params, batch) -> (summed loss, number of
            items). A batch is a subset of the rows of `examples`.
        init: function that returns the initial parameters for the recipe's seed.
        examples: tree of arrays [N, ...] with one row for each example.
        recipe: other hyperparameters of the runs. An update uses
            `per_device_train_batch_size` times `gradient_accumulation_steps` rows.
        decays: values of `weight_decay`, in any order; at least 0.
        num_folds: F, number of folds; from 2 to N.
        warm_starts: whether runs start from the parameters of the run with the next
            larger decay, instead of from scratch.
        takes_key: whether `loss_fn` takes a key in training, for dropout.
        compute_dtype: as for `make_train_step`.
        layouts: as for `build_optimizer`.
        layer_norms: as for `build_optimizer`.
        frozen: as for `Task`.
        memory_limit: as for `train_many`.
        devices: devices over which the runs are sharded; None for all local devices.

    Returns:
        Losses by decay and fold, with the suggested decay.

    Raises:
        ValueError: if a number is out of range, leaves of `examples` differ in length,
            there are fewer rows than an update uses, or every decay diverges.
        TypeError: if an argument has the wrong type.

    Source: Hastie, Tibshirani and Friedman, "The Elements of Statistical Learning",
        7.10 (cross-validation); Friedman, Hastie and Tibshirani 2010, "Regularization
        Paths for Generalized Linear Models", 2.5 (warm starts).
    """
    decays = list(decays)
    if not decays:
        raise ValueError(
            "`decays` must contain at least one weight decay, got none. An example is "
            "[0, 0.01, 0.1, 1]."
        )
    for decay in decays:
        _checks.non_negative("decays", decay)
    # `np.unique` sorts the decays and removes duplicates.
    sorted_decays = np.unique(np.asarray(decays, np.float64))
    folds = make_folds(examples, num_folds, recipe)
    task = Task(
        loss_fn=loss_fn,
        init=init,
        batches=lambda recipe: (),  # unused: `_FoldRuns.open_stream` replaces it
        takes_key=takes_key,
        compute_dtype=compute_dtype,
        layouts=layouts,
        layer_norms=layer_norms,
        frozen=frozen,
    )
    runs = _FoldRuns(
        task=task,
        recipes=[
            dataclasses.replace(recipe, weight_decay=float(decay))
            for decay in sorted_decays
            for _ in range(num_folds)
        ],
        memory_limit=memory_limit,
        devices=devices,
        folds=folds,
    )
    losses = np.empty((2, len(runs.recipes)))
    numbers = np.arange(len(runs.recipes)).reshape(-1, num_folds)
    params: dict[int, PyTree] = {}
    # Run i has decay i // num_folds and fold i % num_folds. With warm starts, the final
    # parameters of run i are the initial ones of run i - num_folds. If run i diverged,
    # its initial parameters are passed on instead of the final ones.
    for run_numbers in numbers[::-1] if warm_starts else [numbers.ravel()]:
        for group in runs.train_to(
            run_numbers.tolist(),
            recipe.max_steps,
            params=params,
            keeps_states=warm_starts,
        ):
            losses[:, group.runs] = runs.mean_losses(group)
            # Without warm starts, `group.states` is empty.
            for i, state in zip(group.runs, group.states, strict=False):
                if np.isfinite(losses[0, i]):
                    trained = state.state
                    final = eval_params(trained.params, trained.opt_state)
                    params[i - num_folds] = final
                elif i in params:
                    params[i - num_folds] = params[i]
    training, eval_loss = losses.reshape(2, -1, num_folds)
    return DecayPath(recipe, sorted_decays, training, eval_loss, folds.fold_of_row)


@dataclasses.dataclass(kw_only=True)
class _FoldRuns(ParallelRuns):
    """Runs of several decays, each trained on the rows of all folds except one.

    Attributes:
        folds: F folds; run i is evaluated on fold i mod F.
    """

    folds: Folds

    def stream_key(self, run: int) -> int:
        """Returns the fold that is excluded from the training of a run."""
        return run % self.folds.num_folds

    def open_stream(self, key: int, longest: Recipe) -> Iterable[Batch]:
        """Returns batches of the rows of all folds except fold `key`."""
        return self.folds.training_batches(key)

    @functools.cached_property
    def eval_batch_lists(self) -> Sequence[Sequence[Batch]]:
        """Batches of the rows of each fold."""
        return self.folds.evaluation_batches()

    def mean_losses(self, group: Group) -> np.ndarray:
        """Returns the mean training and evaluation losses at the end of runs, [2, n].

        The losses of a run that diverged are infinite.

        Raises:
            ValueError: if a fold has no items.
        """
        num_folds = self.folds.num_folds
        if not group.num_items.all():
            raise ValueError(
                "`examples` must have items to take a mean over in every fold, got "
                f"none in one of {num_folds}. Use fewer folds, or check whether all "
                "labels of a fold are ignored."
            )
        # For each run, part_masks[0] selects the folds that it was trained on, and
        # part_masks[1] the fold that it was not trained on.
        is_evaluated = np.arange(num_folds)[:, None] == np.array(group.runs) % num_folds
        part_masks = np.stack([~is_evaluated, is_evaluated])  # [2, F, n]
        totals, num_items = (
            np.broadcast_to(x, part_masks.shape).sum(axis=1, where=part_masks)
            for x in (group.totals, group.num_items)
        )
        losses = totals / num_items
        finite = np.isfinite(losses).all(axis=0) & np.isfinite(group.losses).all(axis=1)
        return np.where(finite, losses, np.inf)
