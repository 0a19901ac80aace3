"""Batches of windows: batch n is a function of the corpus, the seed and n alone.

A checkpoint needs to record n only, and each of many processes reads its own rows only.
"""

import itertools
import math
from collections.abc import Iterator

import grain
import numpy as np

from .. import _checks
from ._corpus import Corpus
from ._tokens import TokenStream

# grain shuffles in 32 bits; of more windows it would return the first one forever.
_MAX_WINDOWS = 2**32


class Batches:
    """Endless training batches, by number: `batches[n]`.

    An epoch takes every window of `block_size` tokens once; the next one has another
    order. Nothing is shuffled in memory: grain computes the index of a window.
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
        """Checks the sizes; reads no token yet.

        Args:
            corpus: what to train on.
            block_size: T, tokens to predict in a row; at least 1.
            batch_size: B, windows in a micro-batch; at least 1.
            seed: of the order; from 0 to 2^32 - 1.
            gradient_accumulation_steps: k, micro-batches in a batch; at least 1.

        Raises:
            TypeError: if one of them is not a whole number.
            ValueError: if the training part is shorter than one window.
        """
        micro_batches = _checks.whole_number(
            "gradient_accumulation_steps", gradient_accumulation_steps, least=1
        )
        batch_size = _checks.whole_number("batch_size", batch_size, least=1)
        seed = _checks.seed("seed", seed)
        windows = _Windows(corpus.training, block_size, "training", corpus.unit)
        if len(windows) > _MAX_WINDOWS:
            raise ValueError(
                f"`block_size` must leave at most {_MAX_WINDOWS:,} windows, got "
                f"{block_size!r}, which leaves {len(windows):,}. Take a larger one."
            )
        self.num_windows = len(windows)  # in an epoch
        # Without an axis of micro-batches where there is one.
        axis = () if micro_batches == 1 else (micro_batches,)
        self._shape = (*axis, batch_size, windows.block_size + 1)
        self._dataset = grain.MapDataset.source(windows).seed(seed).shuffle().repeat()

    def __getitem__(self, n: int) -> np.ndarray:
        """Returns batch `n`, counted from 0: inputs and, one position later, targets.

        Returns:
            [B, T + 1], or [k, B, T + 1] with k micro-batches; the narrowest of uint8,
            uint16 and uint32 that the vocabulary fits in.

        Raises:
            ValueError: if `n` is negative.
        """
        return self.part(n, ())

    def part(self, n: int, index: tuple[slice, ...]) -> np.ndarray:
        """Returns `self[n][index]` without reading other rows.

        Args:
            n: number of the batch.
            index: slices of the batch's axes, the first ones; () for all.

        Raises:
            ValueError: if `n` is negative.
        """
        n = _checks.whole_number("n", n, least=0)
        # Windows are read one by one: those of other processes stay on disk.
        *rows, _ = self._shape
        numbers = np.arange(math.prod(rows)).reshape(rows)[index[: len(rows)]]
        first = n * math.prod(rows)
        read = np.stack([self._dataset[first + int(i)] for i in numbers.flat])
        columns = index[len(rows)] if len(index) > len(rows) else slice(None)
        return read.reshape(*numbers.shape, -1)[..., columns]

    def since(self, start: int) -> Iterator[np.ndarray]:
        """Yields batch `start` and all after it.

        JAX computes a step while the next batch is read, so a thread that reads ahead
        would gain nothing.
        """
        start = _checks.whole_number("start", start, least=0)
        return map(self.__getitem__, itertools.count(start))


def held_out_batches(
    corpus: Corpus, *, block_size: int, batch_size: int, num_tokens: int = 2**16
) -> list[np.ndarray]:
    """Returns batches for evaluation, spread evenly over the evaluation part.

    Args:
        corpus: what to evaluate on.
        block_size: T, tokens to predict in a row.
        batch_size: B, windows in a batch; fewer where the text is short.
        num_tokens: about how many tokens to predict in all.

    Returns:
        A list of [B, T + 1], as `Batches` has them.

    Raises:
        TypeError: if `batch_size` is not a whole number.
        ValueError: if the evaluation part is shorter than one window.
    """
    batch_size = _checks.whole_number("batch_size", batch_size, least=1)
    _checks.positive("num_tokens", num_tokens)
    windows = _Windows(corpus.held_out, block_size, "evaluation", corpus.unit)
    batch_size = min(batch_size, len(windows))
    wanted = max(1, num_tokens // (windows.block_size * batch_size))
    num_batches = min(wanted, len(windows) // batch_size)
    rows = windows.spread(num_batches * batch_size)
    return list(rows.reshape(num_batches, batch_size, -1))


def training_windows(
    corpus: Corpus, *, block_size: int, num_windows: int
) -> np.ndarray:
    """Returns windows spread evenly over the training part, in its order.

    Args:
        corpus: what to train on.
        block_size: T, tokens to predict in a row; at least 1.
        num_windows: N, at least 1; fewer where the text is short.

    Returns:
        [N, T + 1], in the dtype of `Batches`. Adjacent windows share one token, the
        last of one and the first of the next; there is no other overlap.

    Raises:
        TypeError: if one of the numbers is not whole.
        ValueError: if the training part is shorter than one window.
    """
    num_windows = _checks.whole_number("num_windows", num_windows, least=1)
    windows = _Windows(corpus.training, block_size, "training", corpus.unit)
    return windows.spread(min(num_windows, len(windows)))


class _Windows:
    """Windows of T + 1 tokens; the last token of one is the first of the next.

    A random access data source of grain.
    """

    def __init__(self, part: TokenStream, block_size: int, name: str, unit: str):
        block_size = _checks.whole_number("block_size", block_size, least=1)
        if len(part) < block_size + 1:
            raise ValueError(
                f"`text` must have at least `block_size` + 1 = {block_size + 1} {unit} "
                f"in its {name} part, got {len(part)}. Give more text, or take a "
                "smaller `block_size`."
            )
        self._part, self.block_size = part, block_size

    def __len__(self) -> int:
        return (len(self._part) - 1) // self.block_size

    def __getitem__(self, index: int) -> np.ndarray:
        start = index * self.block_size
        return self._part.read(start, start + self.block_size + 1)

    def spread(self, num: int) -> np.ndarray:
        """Returns `num` windows, evenly from the first to the last; [num, T + 1]."""
        chosen = np.linspace(0, len(self) - 1, num).astype(int)
        return np.stack([self[int(i)] for i in chosen])
