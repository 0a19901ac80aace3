"""Cross-validation: rows of examples dealt out to folds, and batches of the others."""

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import numpy as np

from .. import _checks
from .._typing import PyTree
from ..recipes import Recipe
from ..training import Batch


@dataclass(frozen=True)
class Folds:
    """Rows of examples, of which each belongs to one fold; N rows, F folds.

    Attributes:
        examples: a tree of numpy arrays [N, ...].
        fold: [N], int64: the fold of each row.
        recipe: seed and batch size of the runs.
    """

    examples: PyTree
    fold: np.ndarray
    recipe: Recipe

    @property
    def num_folds(self) -> int:
        """Number of folds."""
        return int(self.fold.max()) + 1

    def training_batches(self, fold: int) -> Iterator[Batch]:
        """Returns endless batches of the rows of other folds, by the recipe's seed.

        All rows are taken in a shuffled order, then all in another one, and so on; a
        batch may extend over two of these passes. With accumulation batches have a
        first axis of micro-batches.
        """
        rows = np.flatnonzero(self.fold != fold)
        rng = np.random.default_rng([self.recipe.seed, fold])
        shape = _batch_shape(self.recipe)
        size = int(np.prod(shape))
        queue = np.empty(0, rows.dtype)
        while True:
            while len(queue) < size:
                queue = np.concatenate([queue, rng.permutation(rows)])
            yield self._rows(queue[:size].reshape(shape))
            queue = queue[size:]

    def evaluation_batches(self) -> list[list[Batch]]:
        """Returns the rows of each fold in batches, each row once.

        They are at most as large as micro-batches in training, so that they need less
        memory; and of two sizes at most, since each size is compiled for.
        """
        rows = [np.flatnonzero(self.fold == i) for i in range(self.num_folds)]
        num = -(-max(map(len, rows)) // self.recipe.per_device_train_batch_size)
        parts = [np.array_split(of_fold, num) for of_fold in rows]
        return [[self._rows(part) for part in of if len(part)] for of in parts]

    def _rows(self, rows: np.ndarray) -> Batch:
        return jax.tree.map(lambda leaf: leaf[rows], self.examples)


def make_folds(examples: PyTree, num_folds: int, recipe: Recipe) -> Folds:
    """Shuffles rows by the recipe's seed, and deals them out to folds.

    Folds have equally many rows, or differ by one.

    Raises:
        ValueError, TypeError: if there are no rows, leaves have different numbers of
            them, `num_folds` is not from 2 to their number, or an update takes more
            rows than there are to train on.
    """
    examples = jax.tree.map(np.asarray, examples)
    shapes = [leaf.shape for leaf in jax.tree.leaves(examples)]
    lengths = {shape[0] if shape else None for shape in shapes}
    num_rows = lengths.pop() if len(lengths) == 1 else None
    if not num_rows:
        raise ValueError(
            "`examples` must have a first axis of the same length in every leaf, one "
            f"row for each example, got shapes {shapes[:3]}. Leave out what is not of "
            "a row."
        )
    num_folds = _checks.whole_number("num_folds", num_folds, least=2)
    if num_folds > num_rows:
        raise ValueError(
            "`num_folds` must be at most the number of rows in `examples`, which is "
            f"{num_rows}, got {num_folds}. Take fewer folds, or more data."
        )
    rng = np.random.default_rng(recipe.seed)
    fold = rng.permutation(np.arange(num_rows) % num_folds)
    size = int(np.prod(_batch_shape(recipe)))
    num_training = num_rows - int(np.bincount(fold).max())
    if size > num_training:
        raise ValueError(
            "`per_device_train_batch_size` times `gradient_accumulation_steps` must be "
            f"at most the rows to train on, which are {num_training} outside of a "
            f"fold, got {size}. Take smaller batches, or more data."
        )
    return Folds(examples, fold, recipe)


def _batch_shape(recipe: Recipe) -> tuple[int, ...]:
    size = recipe.per_device_train_batch_size
    num_micro = recipe.gradient_accumulation_steps
    return (size,) if num_micro == 1 else (num_micro, size)
