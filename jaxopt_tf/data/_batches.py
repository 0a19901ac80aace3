"""Batches of windows of a corpus.

Batch n is a function of the corpus, the seed and n. A checkpoint therefore records n
only, and each process reads its own rows only.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from grain.experimental import index_shuffle

from .. import _checks
from ._corpus import Corpus
from ._tokens import TokenStream

# `index_shuffle` of grain takes 32-bit integers. The largest index of more windows
# would wrap around: with 2^32 + 1 windows, grain returns the first for every index.
_MAX_WINDOWS = 2**32


_Rows = TypeVar("_Rows", np.ndarray, dict[str, np.ndarray])


class ShuffledRows(Generic[_Rows]):
    """Infinite sequence of batches of rows, shuffled differently in each epoch.

    The order is that of `grain.MapDataset.source(rows).seed(seed).shuffle().repeat()`.
    No permutation is stored: grain computes the index of each row. Its dataset is not
    used, because it records statistics of each row, which takes ten times as long as to
    read a short row.
    """

    def __init__(
        self,
        rows: Any,
        *,
        batch_size: int,
        seed: int,
        gradient_accumulation_steps: int,
    ):
        """Checks the sizes; no row is read.

        Args:
            rows: data source with `len(rows)` and `rows[i]`: an array [T + 1] or a
                dict of arrays [T + 1].
            batch_size: B, number of rows in a micro-batch; at least 1.
            seed: seed of the order; from 0 to 2^32 - 1.
            gradient_accumulation_steps: k, number of micro-batches; at least 1.
        """
        micro_batches = _checks.whole_number(
            "gradient_accumulation_steps", gradient_accumulation_steps, minimum=1
        )
        batch_size = _checks.whole_number("batch_size", batch_size, minimum=1)
        seed = _checks.seed("seed", seed)
        self.num_windows: int = len(rows)  # in an epoch
        # A batch of a single micro-batch has no axis of micro-batches.
        axis: tuple[int, ...] = () if micro_batches == 1 else (micro_batches,)
        self._rows = (*axis, batch_size)
        self._source = rows
        # As grain derives it: 1 is the distance of its `seed` from its `shuffle`.
        self._seed = int(np.random.SeedSequence([seed, 1]).generate_state(1)[0])

    def __getitem__(self, n: int) -> _Rows:
        """Returns batch `n`, counted from 0.

        Raises:
            ValueError: if `n` is negative.
        """
        return self.read_slice(n, ())

    def read_slice(self, n: int, index: tuple[slice, ...]) -> _Rows:
        """Returns `self[n][index]`, an array or a dict of arrays; reads no other rows.

        Args:
            n: index of the batch.
            index: slices of the leading axes of the batch; () for the whole batch.

        Raises:
            ValueError: if `n` is negative.
        """
        n = _checks.whole_number("n", n, minimum=0)
        # Only the rows of the slice are read: the others belong to other processes.
        axes = len(self._rows)
        numbers = np.arange(math.prod(self._rows)).reshape(self._rows)[index[:axes]]
        first = n * math.prod(self._rows)
        rows = [self._row(first + int(i)) for i in numbers.flat]
        columns = index[axes] if len(index) > axes else slice(None)

        def stacked(*arrays: np.ndarray) -> np.ndarray:
            return np.stack(arrays).reshape(*numbers.shape, -1)[..., columns]

        return jax.tree.map(stacked, *rows)

    def _row(self, number: int) -> _Rows:
        """Returns a row; `number` counts the rows of all epochs in their order."""
        epoch, index = divmod(number, self.num_windows)
        seed = (self._seed + epoch) % 2**32
        shuffled = index_shuffle(
            index, max_index=self.num_windows - 1, seed=seed, rounds=4
        )
        return self._source[shuffled]

    def iter_from(self, start: int) -> Iterator[_Rows]:
        """Yields the batches from `start` on.

        JAX dispatches steps asynchronously: the next batch is read while a step is
        computed. A prefetching thread is therefore not needed.
        """
        start = _checks.whole_number("start", start, minimum=0)
        return map(self.__getitem__, itertools.count(start))


class Batches(ShuffledRows[np.ndarray]):
    """Infinite sequence of training batches: `batches[n]`.

    An epoch contains every window of `block_size` tokens once. Each epoch has another
    order. A batch is an array [B, T + 1], or [k, B, T + 1] with k micro-batches, in the
    smallest of uint8, uint16 and uint32 that can hold all tokens. The first T tokens of
    a row are the inputs, the last T the targets.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        block_size: int,
        batch_size: int,
        seed: int,
        gradient_accumulation_steps: int = 1,
    ):
        """Checks the sizes; no tokens are read.

        Args:
            corpus: corpus to train on.
            block_size: T, number of predicted tokens per window; at least 1.
            batch_size: B, number of windows in a micro-batch; at least 1.
            seed: seed of the order; from 0 to 2^32 - 1.
            gradient_accumulation_steps: k, number of micro-batches in a batch; at
                least 1.

        Raises:
            TypeError: if a number is not a whole number.
            ValueError: if the training part is shorter than one window, or contains
                rows for fine-tuning.
        """
        windows = _Windows(corpus, corpus.training, block_size, "training")
        if len(windows) > _MAX_WINDOWS:
            raise ValueError(
                f"`block_size` must give at most {_MAX_WINDOWS:,} windows, got "
                f"{block_size!r}, which gives {len(windows):,}. Use a larger one."
            )
        super().__init__(
            windows,
            batch_size=batch_size,
            seed=seed,
            gradient_accumulation_steps=gradient_accumulation_steps,
        )


def evaluation_batches(
    corpus: Corpus, *, block_size: int, batch_size: int, num_tokens: int = 2**16
) -> list[np.ndarray]:
    """Returns batches for evaluation, spread evenly over the evaluation part.

    Args:
        corpus: corpus to evaluate on.
        block_size: T, number of predicted tokens per window.
        batch_size: B, number of windows in a batch; fewer if the text is short.
        num_tokens: approximate number of predicted tokens in all batches.

    Returns:
        A list of arrays [B, T + 1], in the dtype of `Batches`.

    Raises:
        TypeError: if `batch_size` is not a whole number.
        ValueError: if the evaluation part is shorter than one window.
    """
    batch_size = _checks.whole_number("batch_size", batch_size, minimum=1)
    _checks.positive("num_tokens", num_tokens)
    windows = _Windows(corpus, corpus.evaluation, block_size, "evaluation")
    batch_size = min(batch_size, len(windows))
    max_batches = max(1, num_tokens // (windows.block_size * batch_size))
    num_batches = min(max_batches, len(windows) // batch_size)
    rows = windows.spread(num_batches * batch_size)
    return list(rows.reshape(num_batches, batch_size, -1))


def training_windows(
    corpus: Corpus, *, block_size: int, num_windows: int
) -> np.ndarray:
    """Returns windows spread evenly over the training part, in its order.

    Args:
        corpus: corpus to train on.
        block_size: T, number of predicted tokens per window; at least 1.
        num_windows: N, number of windows, at least 1; fewer if the text is short.

    Returns:
        [N, T + 1], in the dtype of `Batches`. Adjacent windows share one token, the
        last of one and the first of the next; there is no other overlap.

    Raises:
        TypeError: if one of the numbers is not whole.
        ValueError: if the training part is shorter than one window.
    """
    num_windows = _checks.whole_number("num_windows", num_windows, minimum=1)
    windows = _Windows(corpus, corpus.training, block_size, "training")
    return windows.spread(min(num_windows, len(windows)))


class _Windows:
    """Windows of T + 1 tokens, by index.

    The last token of a window is the first one of the next window.
    """

    def __init__(self, corpus: Corpus, stream: TokenStream, block_size: int, name: str):
        block_size = _checks.whole_number("block_size", block_size, minimum=1)
        if corpus.is_masked:
            raise ValueError(
                "`corpus` must be text, got rows for fine-tuning, of which some tokens "
                "are not predicted. Use `PackedRows` and `PackedBatches`."
            )
        if len(stream) < block_size + 1:
            raise ValueError(
                f"`text` must have at least `block_size` + 1 = {block_size + 1} "
                f"{corpus.unit} in its {name} part, got {len(stream)}. Give more "
                "text, or use a smaller `block_size`."
            )
        self._stream, self.block_size = stream, block_size

    def __len__(self) -> int:
        # The last window needs one more token, its last target. The remaining tokens,
        # fewer than `block_size`, are not used.
        return (len(self._stream) - 1) // self.block_size

    def __getitem__(self, index: int) -> np.ndarray:
        start = index * self.block_size
        return self._stream.read(start, start + self.block_size + 1)

    def spread(self, num: int) -> np.ndarray:
        """Returns `num` evenly spaced windows, [num, T + 1], from first to last."""
        chosen = np.linspace(0, len(self) - 1, num).astype(int)
        return np.stack([self[int(i)] for i in chosen])
