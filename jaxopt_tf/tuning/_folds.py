"""Cross-validation folds: assignment of rows, and batches of rows."""

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
    """Assignment of N rows of examples to F folds.

    Attributes:
        examples: tree of numpy arrays [N, ...].
        fold_of_row: [N], int64: index of the fold of each row.
        recipe: recipe with the seed and the batch size of the runs.
    """

    examples: PyTree
    fold_of_row: np.ndarray
    recipe: Recipe

    @property
    def num_folds(self) -> int:
        """Number of folds."""
        return int(self.fold_of_row.max()) + 1

    def training_batches(self, fold: int) -> Iterator[Batch]:
        """Yields batches of the rows of all folds except `fold`, endlessly.

        Each epoch contains all of these rows, shuffled by the recipe's seed. A batch
        may contain rows of two epochs. With gradient accumulation, batches have a first
        axis of micro-batches.
        """
        rows = np.flatnonzero(self.fold_of_row != fold)
        # Each fold has its own generator, so that its batches do not depend on those of
        # other folds.
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
        """Returns a list of batches for each fold, which contain each of its rows once.

        Batches are not larger than the micro-batches of training, so that an evaluation
        does not need more memory. They have at most two sizes, because each size is
        compiled separately.
        """
        rows = [np.flatnonzero(self.fold_of_row == i) for i in range(self.num_folds)]
        # The number of rows differs by at most one between folds. All folds are split
        # into the same number of parts, so that the parts have at most two sizes.
        num_parts = -(-max(map(len, rows)) // self.recipe.per_device_train_batch_size)
        parts = [np.array_split(fold_rows, num_parts) for fold_rows in rows]
        return [
            [self._rows(part) for part in fold_parts if len(part)]
            for fold_parts in parts
        ]

    def _rows(self, rows: np.ndarray) -> Batch:
        return jax.tree.map(lambda leaf: leaf[rows], self.examples)


def make_folds(examples: PyTree, num_folds: int, recipe: Recipe) -> Folds:
    """Shuffles rows by the recipe's seed, and assigns them to folds.

    The numbers of rows in two folds differ by at most one.

    Raises:
        ValueError: if there are no rows, if leaves have different numbers of rows, if
            `num_folds` is not from 2 to the number of rows, or if an update uses more
            rows than remain for training.
        TypeError: if `num_folds` is not a whole number.
    """
    examples = jax.tree.map(np.asarray, examples)
    shapes = [leaf.shape for leaf in jax.tree.leaves(examples)]
    lengths = {shape[0] if shape else None for shape in shapes}
    num_rows = lengths.pop() if len(lengths) == 1 else None
    if not num_rows:
        raise ValueError(
            "`examples` must have a first axis of the same length in every leaf, one "
            f"row for each example, got shapes {shapes[:3]}. Leave out other arrays."
        )
    num_folds = _checks.whole_number("num_folds", num_folds, minimum=2)
    if num_folds > num_rows:
        raise ValueError(
            "`num_folds` must be at most the number of rows in `examples`, which is "
            f"{num_rows}, got {num_folds}. Use fewer folds, or more data."
        )
    rng = np.random.default_rng(recipe.seed)
    # 0, 1, ..., F - 1, 0, 1, ... in random order, so that the sizes of the folds differ
    # by at most one.
    fold_of_row = rng.permutation(np.arange(num_rows) % num_folds)
    size = int(np.prod(_batch_shape(recipe)))
    num_training = num_rows - int(np.bincount(fold_of_row).max())
    if size > num_training:
        raise ValueError(
            "`per_device_train_batch_size` times `gradient_accumulation_steps` must be "
            f"at most the number of training rows, which is {num_training} without "
            f"the largest fold, got {size}. Use smaller batches, or more data."
        )
    return Folds(examples, fold_of_row, recipe)


def _batch_shape(recipe: Recipe) -> tuple[int, ...]:
    size = recipe.per_device_train_batch_size
    num_micro = recipe.gradient_accumulation_steps
    return (size,) if num_micro == 1 else (num_micro, size)
