"""Folds: rows of examples, each held out once; batches of the others."""

from collections.abc import Iterator

import jax
import numpy as np

from .. import _checks
from .._typing import PyTree
from ..recipes import Recipe
from ..training import Batch


def fold_of_rows(num_rows: int, num_folds: int, seed: int) -> np.ndarray:
    """In which fold each row is held out; [num_rows], int64.

    Rows are shuffled by the seed. Folds have equally many, or differ by one.

    Raises:
        ValueError, TypeError: if `num_folds` is not from 2 to `num_rows`.
    """
    num_folds = _checks.whole_number("num_folds", num_folds, least=2)
    if num_folds > num_rows:
        raise ValueError(
            "`num_folds` must be at most the number of rows in `examples`, which is "
            f"{num_rows}, got {num_folds}. Take fewer folds, or more data."
        )
    return np.random.default_rng(seed).permutation(np.arange(num_rows) % num_folds)


def on_host(examples: PyTree) -> tuple[PyTree, int]:
    """The examples as numpy arrays, and the number of their rows.

    Raises:
        ValueError: if there are no rows, or leaves have different numbers of them.
    """
    examples = jax.tree.map(np.asarray, examples)
    shapes = [leaf.shape for leaf in jax.tree.leaves(examples)]
    lengths = {shape[0] if shape else None for shape in shapes}
    length = lengths.pop() if len(lengths) == 1 else None
    if not length:
        raise ValueError(
            "`examples` must have a first axis of the same length in every leaf, one "
            f"row for each example, got shapes {shapes[:3]}. Leave out what is not of "
            "a row."
        )
    return examples, length


def training_batches(
    examples: PyTree, fold: np.ndarray, held_out: int, recipe: Recipe
) -> Iterator[Batch]:
    """Endless batches of the rows that are in other folds, by the recipe's seed.

    All rows are taken in a shuffled order, then all in another one, and so on; a batch
    may lie across two of these passes. With accumulation batches have an axis of
    micro-batches in front.
    """
    rows = np.flatnonzero(fold != held_out)
    rng = np.random.default_rng([recipe.seed, held_out])
    shape = _shape(recipe)
    size = int(np.prod(shape))
    queue = np.empty(0, rows.dtype)
    while True:
        while len(queue) < size:
            queue = np.concatenate([queue, rng.permutation(rows)])
        yield _of_rows(examples, queue[:size].reshape(shape))
        queue = queue[size:]


def streams(examples: PyTree, fold: np.ndarray, recipe: Recipe) -> list[Iterator]:
    """`training_batches` of every fold, from the first on."""
    return [
        training_batches(examples, fold, i, recipe) for i in range(int(fold.max()) + 1)
    ]


def check_batch_size(fold: np.ndarray, recipe: Recipe) -> None:
    """Raises `ValueError` if an update takes more rows than there are to train on."""
    size = int(np.prod(_shape(recipe)))
    num_training = len(fold) - int(np.bincount(fold).max())
    if size > num_training:
        raise ValueError(
            "`per_device_train_batch_size` times `gradient_accumulation_steps` must be "
            f"at most the rows to train on, which are {num_training} outside of a "
            f"fold, got {size}. Take smaller batches, or more data."
        )


def batches_by_fold(
    examples: PyTree, fold: np.ndarray, recipe: Recipe
) -> list[list[Batch]]:
    """The rows of each fold in batches, each once.

    They are at most as large as micro-batches in training, so that they need less
    memory; and of two sizes at most, each of which is compiled for.
    """
    rows = [np.flatnonzero(fold == i) for i in range(fold.max() + 1)]
    num = -(-max(map(len, rows)) // recipe.per_device_train_batch_size)
    parts = [np.array_split(of_fold, num) for of_fold in rows]
    return [[_of_rows(examples, part) for part in of if len(part)] for of in parts]


def _shape(recipe: Recipe) -> tuple[int, ...]:
    size = recipe.per_device_train_batch_size
    num_micro = recipe.gradient_accumulation_steps
    return (size,) if num_micro == 1 else (num_micro, size)


def _of_rows(examples: PyTree, rows: np.ndarray) -> Batch:
    return jax.tree.map(lambda leaf: leaf[rows], examples)
