"""decay_path: every weight decay on every fold, side by side."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _checks
from .._typing import PyTree
from ..optimizers import LayerNorms, TorchLayout
from ..recipes import Recipe, vary
from ..training import Batch, LossFn
from . import _cohort, _folds
from ._decay_path_result import DecayPath
from ._memory import at_most, side_by_side
from ._program import make_program
from ._task import Task


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
    layout: Mapping[str, TorchLayout] | None = None,
    layer_norms: LayerNorms | None = None,
    memory_limit: float | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> DecayPath:
    """Training and held-out loss over weight decay, by cross-validation.

        path = decay_path(loss_fn, init, {"x": x, "y": y}, recipe, [0, 0.01, 0.1, 1])
        print(path.reason)

    The rows are shuffled by the recipe's seed and dealt out to folds. For each decay
    and fold one run is trained on the rows of the other folds; all of them in one
    compiled program, side by side. At its end a run's loss is taken over every row
    once: over those of its fold, which it has not seen, and over the others. Runs of
    one fold see the same batches, drawn by the seed, and all start from `init(seed)`.

    With `warm_starts` only the folds are side by side. The decays follow one after the
    other, from the strongest to the weakest; each run starts from the parameters that
    the one before it came to, with a new optimizer state, its schedule and its batches
    from their beginning. Where the one before diverged, it starts from where that one
    did. Each run then has seen more steps than the one before it: its loss is not what
    `recipe` gives from scratch.

    Args:
        loss_fn: as `make_train_step` takes it: (params, batch) -> (summed loss, number
            of items); a batch is some rows of `examples`.
        init: the parameters that runs start from, of the recipe's seed.
        examples: a tree of arrays [N, ...], a row for each example.
        recipe: the other numbers of the runs. An update takes
            `per_device_train_batch_size` rows, times the steps of accumulation.
        decays: values of `weight_decay`, in any order; at least 0.
        num_folds: F; from 2 to N.
        warm_starts: whether runs start from the one before, instead of from scratch.
        takes_key: whether `loss_fn` takes a key in training, for dropout.
        compute_dtype: as `make_train_step` takes it.
        layout: as `build_optimizer` takes it.
        layer_norms: as `build_optimizer` takes it.
        memory_limit: as `train_many` takes it.
        devices: that the runs are divided among; None for all that this process has.

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
    sorted_decays = _checked_decays(decays)
    examples, num_rows = _folds.on_host(examples)
    fold = _folds.fold_of_rows(num_rows, num_folds, recipe.seed)
    _folds.check_batch_size(fold, recipe)
    task = Task(
        loss_fn=loss_fn,
        init=init,
        # Nobody asks for them: every fold has a stream of its own.
        batches=lambda recipe: _folds.training_batches(examples, fold, 0, recipe),
        takes_key=takes_key,
        compute_dtype=compute_dtype,
        layout=layout,
        layer_norms=layer_norms,
    )
    shape = (len(sorted_decays), int(fold.max()) + 1)
    training, held_out = np.empty(shape), np.empty(shape)
    for runs, losses in _trained(
        task,
        examples,
        fold,
        recipe,
        sorted_decays,
        warm_starts,
        memory_limit,
        devices,
    ):
        at = np.unravel_index(runs, shape)
        training[at], held_out[at] = losses
    return DecayPath(recipe, sorted_decays, training, held_out, fold)


def _trained(
    task: Task,
    examples: PyTree,
    fold: np.ndarray,
    recipe: Recipe,
    decays: np.ndarray,
    warm_starts: bool,
    memory_limit: float | None,
    devices: Sequence[jax.Device] | None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Trains, and gives of runs at their end: numbers [K], losses [2, K]."""
    num_folds = int(fold.max()) + 1
    recipes = [
        dataclasses.replace(recipe, weight_decay=float(decay))
        for decay in decays
        for _ in range(num_folds)
    ]
    chains = _chains(len(decays), num_folds, warm_starts)
    program = make_program(task, recipes[0], at_most(devices, len(chains)))
    varied = vary(recipes)
    by_fold = _folds.batches_by_fold(examples, fold, recipe)

    def started(params: PyTree, numbers: Sequence[int]) -> _cohort.Cohort:
        return _cohort.begin(
            program,
            [recipes[i] for i in numbers],
            jax.tree.map(lambda leaf: leaf[np.asarray(numbers)], varied),
            params,
            _folds.streams(examples, fold, recipe),
            [i % num_folds for i in numbers],
        )

    def one(numbers: Sequence[int]) -> _cohort.Cohort:
        return started(_cohort.first_params(task, [recipe] * len(numbers)), numbers)

    width = side_by_side(program, one, chains[:, 0].tolist(), num_folds, memory_limit)
    for first in range(0, len(chains), width):
        group = chains[first : first + width]
        # All groups have one size, so that all are one program.
        filled = np.resize(group, (width, group.shape[1]))
        params = _cohort.first_params(task, [recipe] * width)
        for numbers in filled.T:
            cohort = started(params, numbers.tolist())
            steps = _cohort.advance(cohort, recipe.max_steps)
            losses = _at_end(cohort, by_fold, numbers % num_folds, steps)
            if len(chains[0]) > 1:
                is_lost = ~np.isfinite(losses).all(axis=0)
                params = _next_start(is_lost, params, cohort.carried.state.params)
            del cohort  # or it would take memory while the next runs begin
            yield numbers, losses


@jax.jit
@jax.vmap
def _next_start(is_lost: jax.Array, began: PyTree, ended: PyTree) -> PyTree:
    """Where runs ended; where they began, of those that diverged."""
    return jax.tree.map(functools.partial(jnp.where, is_lost), began, ended)


def _chains(num_decays: int, num_folds: int, warm_starts: bool) -> np.ndarray:
    """Numbers of runs, those that start from each other in a row; [chains, length]."""
    runs = np.arange(num_decays * num_folds).reshape(num_decays, num_folds)
    return runs[::-1].T if warm_starts else runs.reshape(-1, 1)


def _at_end(
    cohort: _cohort.Cohort,
    by_fold: Sequence[Sequence[Batch]],
    held_out: np.ndarray,
    steps: np.ndarray,
) -> np.ndarray:
    """Mean training and held-out losses; [2, K], infinite for runs that diverged."""
    parts = [_cohort.summed_losses(cohort, batches) for batches in by_fold]
    totals, counts = (np.stack(part) for part in zip(*parts, strict=True))  # [F, K]
    if not counts.all():
        raise ValueError(
            "`examples` must have items to take a mean over in every fold, got none in "
            f"one of {len(by_fold)}. Take fewer folds; or are all labels ignored?"
        )
    is_held_out = np.arange(len(by_fold))[:, None] == held_out
    losses = np.stack(
        [
            totals.sum(axis=0, where=which) / counts.sum(axis=0, where=which)
            for which in (~is_held_out, is_held_out)
        ]
    )
    is_lost = ~np.isfinite(losses).all(axis=0) | np.isnan(steps).any(axis=1)
    return np.where(is_lost, np.inf, losses)


def _checked_decays(decays: Sequence[float]) -> np.ndarray:
    """The decays from the smallest on, each once; float64."""
    decays = list(decays)
    if not decays:
        raise ValueError(
            "`decays` must hold at least one weight decay, got none. Give some, such "
            "as [0, 0.01, 0.1, 1]."
        )
    for decay in decays:
        _checks.non_negative("decays", decay)
    return np.unique(np.asarray(decays, np.float64))
