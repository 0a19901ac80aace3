"""decay_path: cross-validation of every weight decay on every fold, side by side."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.table

from .. import _checks, plots
from .._typing import PyTree
from ..optimizers import LayerNorms, TorchLayout
from ..recipes import Recipe, vary
from ..training import Batch, LossFn
from ._folds import Folds, make_folds
from ._groups import Limits, max_parallel_runs
from ._program import Cohort, Streams, begin, first_params, make_program
from ._task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class DecayPath:
    """Losses over weight decay; D decays, F folds, N rows.

    The suggestion follows the one-standard-error rule: the largest decay whose mean
    held-out loss is at most

        lowest mean + its standard error

    Attributes:
        base: the recipe of the runs, but for their decay.
        decays: [D], float64, rising.
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
        """[D], float64: held-out loss over the folds; infinite if one diverged."""
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
        """The decay with the lowest mean held-out loss."""
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
        reason = f"The mean held-out loss is lowest, {mean[best]:.4g}, at {self.best:g}"
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
            "weight_decay", "training loss", "held-out loss", "standard error", ""
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
            marks = {"lowest": self._best, "suggested": self._suggested}
            marked = ", ".join(mark for mark, at in marks.items() if at == i)
            table.add_row(f"{decay:g}", *losses, marked)
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
    """Computes training and held-out loss over weight decay, by cross-validation.

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
    shape = (len(rising), num_folds)
    training, held_out = np.empty(shape), np.empty(shape)
    # Numbers of runs, [chains, length]: those of a chain start from one another.
    runs = np.arange(training.size).reshape(shape)
    chains = runs[::-1].T if warm_starts else runs.reshape(-1, 1)
    limits = Limits(memory_limit, devices)
    for numbers, losses in _train(task, folds, rising, chains, limits):
        at = np.unravel_index(numbers, shape)
        training[at], held_out[at] = losses
    return DecayPath(recipe, rising, training, held_out, folds.fold)


def _train(
    task: Task,
    folds: Folds,
    decays: np.ndarray,
    chains: np.ndarray,
    limits: Limits,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Trains, and returns numbers [K] and losses [2, K] of runs at their ends."""
    num_folds, recipe = folds.num_folds, folds.recipe
    recipes = [
        dataclasses.replace(recipe, weight_decay=float(decay))
        for decay in decays
        for _ in range(num_folds)
    ]
    program = make_program(task, recipes[0], limits.devices_for(len(chains)))
    varied = vary(recipes)
    evaluated = folds.evaluation_batches()

    def start(numbers: Sequence[int], params: PyTree | None = None) -> Cohort:
        if params is None:
            params = first_params(task, [recipe] * len(numbers))
        return begin(
            program,
            [recipes[i] for i in numbers],
            jax.tree.map(lambda leaf: leaf[np.asarray(numbers)], varied),
            params,
            Streams(
                [folds.training_batches(i) for i in range(num_folds)],
                [i % num_folds for i in numbers],
            ),
        )

    numbers = chains[:, 0].tolist()
    width = max_parallel_runs(program, start, numbers, num_folds, limits)
    for first in range(0, len(chains), width):
        group = chains[first : first + width]
        params = first_params(task, [recipe] * width)
        # All groups have one size, so that all are one program.
        for numbers in np.resize(group, (width, group.shape[1])).T:
            cohort = start(numbers.tolist(), params)
            steps = cohort.advance(recipe.max_steps)
            losses = _losses_at_end(cohort, evaluated, numbers % num_folds)
            is_lost = ~np.isfinite(losses).all(axis=0) | np.isnan(steps).any(axis=1)
            if group.shape[1] > 1:
                params = _next_params(is_lost, params, cohort.state.state.params)
            del cohort  # or it would take memory while the next runs start
            yield numbers, np.where(is_lost, np.inf, losses)


@jax.jit
@jax.vmap
def _next_params(is_lost: jax.Array, initial: PyTree, final: PyTree) -> PyTree:
    """Returns final parameters; of runs that diverged, the initial ones."""
    return jax.tree.map(functools.partial(jnp.where, is_lost), initial, final)


def _losses_at_end(
    cohort: Cohort, by_fold: Sequence[Sequence[Batch]], held_out: np.ndarray
) -> np.ndarray:
    """Returns mean training and held-out losses; [2, K]."""
    parts = [cohort.summed_losses(batches) for batches in by_fold]
    totals, counts = (np.stack(part) for part in zip(*parts, strict=True))  # [F, K]
    if not counts.all():
        raise ValueError(
            "`examples` must have items to take a mean over in every fold, got none in "
            f"one of {len(by_fold)}. Take fewer folds; or are all labels ignored?"
        )
    is_held_out = np.arange(len(by_fold))[:, None] == held_out
    return np.stack(
        [
            totals.sum(axis=0, where=which) / counts.sum(axis=0, where=which)
            for which in (~is_held_out, is_held_out)
        ]
    )
