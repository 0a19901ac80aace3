"""Rows of a batch from whole documents: packed, or padded one by one."""

import bisect
import collections
from collections.abc import Sequence
from typing import Literal

import numpy as np

from .. import _checks
from .._checks import pluralize
from ._batches import ShuffledRows
from ._corpus import Corpus

PACKINGS = ("bfd", "in_order", "none")
OVERFLOWS = ("truncate", "split")
# Number of documents whose tokens are counted at once.
_DOCUMENTS_AT_ONCE = 1024
# Label of a token that is not predicted, as in torch's cross-entropy.
_IGNORED = -100


class PackedRows:
    """Rows of T + 1 tokens, each with one or several whole documents: `rows[i]`.

    A row is a dict of int32 arrays [T + 1]:

    - `input_ids`: tokens; `pad_token_id` at the end.
    - `labels`: the tokens that are predicted, unshifted as in Transformers; -100 for
      tokens that are not predicted: masked tokens, the first token of each document,
      and padding.
    - `segment_ids`: 1, 2, ... for the documents of the row; 0 for padding.
    - `position_ids`: index in the document; 0 for padding.

    Only the lengths of the documents are kept in memory. Documents without a predicted
    token are dropped: documents of one token, and documents whose completion is beyond
    the end of a row.

    Attributes:
        notes: sentences about documents that were truncated or dropped.
        num_tokens: number of tokens in all rows, without padding.
        num_predicted: number of predicted tokens in all rows.
        block_size: T, number of inputs per row.

    Source: TRL 1.16 `data_utils.py`, `pack_dataset`. Its "bfd_split" is "bfd" with
        overflow="split".
    Differs: TRL packs each 1,000 documents separately, and with packing it keeps
        documents without a predicted token.
    """

    def __init__(
        self,
        corpus: Corpus,
        part: Literal["training", "evaluation"],
        *,
        block_size: int,
        packing: str = "bfd",
        overflow: str = "truncate",
        pad_token_id: int = 0,
    ):
        """Assigns the documents to rows.

        Args:
            corpus: text, whose documents include their end-of-document token, or rows
                for fine-tuning.
            part: part of the corpus.
            block_size: T, number of inputs per row; at least 1. `max_length` of TRL is
                the number of tokens, T + 1.
            packing: "bfd" fills rows by best-fit decreasing: documents are sorted by
                length, and each is put into the row with the least sufficient space, or
                into a new row. "in_order" keeps their order, and begins a new row with
                each document that does not fit. "none" gives each document a row of its
                own.
            overflow: "truncate" keeps the first T + 1 tokens of longer documents;
                "split" turns the rest into further documents.
            pad_token_id: token at the end of rows; any token of the vocabulary, since
                padding is masked.

        Raises:
            TypeError: if a number is not a whole number.
            ValueError: if an argument is not one of its values, or no document has a
                predicted token.
        """
        _checks.one_of("part", part, ("training", "evaluation"))
        _checks.one_of("packing", packing, PACKINGS)
        _checks.one_of("overflow", overflow, OVERFLOWS)
        self.block_size = _checks.whole_number("block_size", block_size, minimum=1)
        self._pad = _checks.whole_number(
            "pad_token_id", pad_token_id, minimum=0, maximum=corpus.vocab_size - 1
        )
        self._size = self.block_size + 1
        self._stream = corpus.training if part == "training" else corpus.evaluation
        start, stop, num_truncated, num_tokens_cut = _split_documents(
            self._stream.bounds, self._size, overflow
        )
        predicted = self._num_predicted(start, stop, corpus.is_masked)
        is_used = predicted > 0
        start, stop = start[is_used], stop[is_used]
        noun = "row" if corpus.is_masked else "document"
        if not len(start):
            raise ValueError(
                f"`corpus` must have a {noun} in its {part} part with a predicted "
                f"token within the first `block_size` + 1 = {self._size} tokens, got "
                f"none of {pluralize(len(is_used), noun)}. Give longer rows, or use a "
                "larger `block_size`."
            )
        self.num_tokens = int(np.sum(stop - start))
        self.num_predicted = int(predicted.sum())
        order, self._row_bounds = _assign(stop - start, self._size, packing)
        self._start, self._stop = start[order], stop[order]
        self.notes = _notes(
            part, noun, num_truncated, num_tokens_cut, int(np.sum(~is_used))
        )

    def __len__(self) -> int:
        return len(self._row_bounds) - 1

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Returns row `index`.

        Raises:
            IndexError: if there is no such row.
        """
        index = range(len(self))[index]
        row = self.empty()
        filled = 0
        first, last = self._row_bounds[index], self._row_bounds[index + 1]
        pieces = zip(self._start[first:last], self._stop[first:last], strict=True)
        for segment, (start, stop) in enumerate(pieces, 1):
            stored = self._stream.read(int(start), int(stop)).astype(np.int32)
            span = slice(filled, filled + len(stored))
            filled += len(stored)
            # A masked token t is stored as ~t, which is negative.
            is_masked = stored < 0
            tokens = np.where(is_masked, ~stored, stored)
            row["input_ids"][span] = tokens
            labels = np.where(is_masked, _IGNORED, tokens)
            # The first token has no context: it would be predicted from the last token
            # of the previous document.
            labels[0] = _IGNORED
            row["labels"][span] = labels
            row["segment_ids"][span] = segment
            row["position_ids"][span] = np.arange(len(stored))
        return row

    def empty(self) -> dict[str, np.ndarray]:
        """Returns a row of padding, which adds nothing to a loss."""
        fill = {
            "input_ids": self._pad,
            "labels": _IGNORED,
            "segment_ids": 0,
            "position_ids": 0,
        }
        return {
            name: np.full(self._size, value, np.int32) for name, value in fill.items()
        }

    @property
    def fill_fraction(self) -> float:
        """Fraction of the tokens in all rows that are not padding."""
        return self.num_tokens / (len(self) * self._size)

    def _num_predicted(
        self, start: np.ndarray, stop: np.ndarray, is_masked: bool
    ) -> np.ndarray:
        """Returns the number of predicted tokens of each piece."""
        if not is_masked:
            return stop - start - 1
        counts = np.empty(len(start), np.int64)
        for first in range(0, len(start), _DOCUMENTS_AT_ONCE):
            chunk = slice(first, first + _DOCUMENTS_AT_ONCE)
            low, high = start[chunk], stop[chunk]
            tokens = self._stream.read(int(low[0]), int(high[-1]))
            cumulative = np.concatenate([[0], np.cumsum(tokens >= 0)])
            # The first token of a piece is not counted, because no token predicts it.
            counts[chunk] = cumulative[high - low[0]] - cumulative[low + 1 - low[0]]
        return counts


class PackedBatches(ShuffledRows[dict[str, np.ndarray]]):
    """Infinite sequence of batches of packed rows: `batches[n]`.

    An epoch contains every row once, in a different order in each epoch. A batch is a
    dict of the arrays of `PackedRows`, [B, T + 1], or [k, B, T + 1] with k
    micro-batches.
    """

    def __init__(
        self,
        rows: PackedRows,
        *,
        batch_size: int,
        seed: int,
        gradient_accumulation_steps: int = 1,
    ):
        """Checks the sizes; no tokens are read.

        Args:
            rows: rows to train on.
            batch_size: B, number of rows in a micro-batch; at least 1.
            seed: seed of the order; from 0 to 2^32 - 1.
            gradient_accumulation_steps: k, number of micro-batches in a batch; at
                least 1.

        Raises:
            TypeError: if a number is not a whole number.
            ValueError: if a number is too small or too large.
        """
        self.notes = rows.notes
        super().__init__(
            rows,
            batch_size=batch_size,
            seed=seed,
            gradient_accumulation_steps=gradient_accumulation_steps,
        )


def packed_evaluation_batches(
    rows: PackedRows, *, batch_size: int, num_tokens: int | None = 2**16
) -> list[dict[str, np.ndarray]]:
    """Returns batches for evaluation, from evenly spaced rows.

    Args:
        rows: rows of the evaluation part.
        batch_size: B, number of rows in a batch; fewer if `rows` has fewer.
        num_tokens: approximate number of tokens, with padding, in all batches; None
            for all rows.

    Returns:
        A list of dicts as from `PackedBatches`. The last batch is completed with rows
        of padding.

    Raises:
        TypeError: if `batch_size` is not a whole number.
    """
    batch_size = _checks.whole_number("batch_size", batch_size, minimum=1)
    batch_size = min(batch_size, len(rows))
    num_rows = len(rows)
    if num_tokens is not None:
        _checks.positive("num_tokens", num_tokens)
        # The limit is rounded down to whole batches, but to at least one.
        num_batches = max(1, int(num_tokens) // (rows.block_size * batch_size))
        num_rows = min(num_rows, num_batches * batch_size)
    chosen = np.linspace(0, len(rows) - 1, num_rows).astype(int)
    row_list = [rows[int(i)] for i in chosen]
    row_list += [rows.empty()] * (-len(row_list) % batch_size)
    return [
        {
            name: np.stack([row[name] for row in row_list[i : i + batch_size]])
            for name in row_list[0]
        }
        for i in range(0, len(row_list), batch_size)
    ]


def _split_documents(
    bounds: np.ndarray, size: int, overflow: str
) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Cuts documents into pieces of at most `size` tokens.

    Returns:
        Start and end of each piece, the number of truncated documents, and the number
        of tokens that were cut off.
    """
    start, stop = bounds[:-1], bounds[1:]
    excess = np.maximum(stop - start - size, 0)
    if overflow == "truncate":
        return start, stop - excess, int(np.sum(excess > 0)), int(excess.sum())
    num_pieces = -(-(stop - start) // size)
    # Index of each piece in its document.
    index = np.arange(num_pieces.sum()) - np.repeat(
        np.cumsum(num_pieces) - num_pieces, num_pieces
    )
    starts = np.repeat(start, num_pieces) + size * index
    return starts, np.minimum(starts + size, np.repeat(stop, num_pieces)), 0, 0


def _assign(
    lengths: np.ndarray, size: int, packing: str
) -> tuple[np.ndarray, np.ndarray]:
    """Assigns pieces to rows.

    Returns:
        The pieces in the order of the rows, and the bounds of each row in them.
    """
    if packing == "none":
        return np.arange(len(lengths)), np.arange(len(lengths) + 1)
    if packing == "in_order":
        order = np.arange(len(lengths))
        rows = _next_fit(lengths, size)
    else:
        # Pieces are sorted in descending order of length; pieces of equal length keep
        # their order.
        order = np.argsort(-lengths, kind="stable")
        rows = _best_fit(lengths[order], size)
    by_row = np.argsort(rows, kind="stable")
    num_in_row = np.bincount(rows)
    return order[by_row], np.concatenate([[0], np.cumsum(num_in_row)])


def _next_fit(lengths: np.ndarray, size: int) -> np.ndarray:
    rows = np.empty(len(lengths), np.int64)
    row, free = -1, 0
    for i, length in enumerate(lengths.tolist()):
        if length > free:
            row, free = row + 1, size
        rows[i], free = row, free - length
    return rows


def _best_fit(lengths: np.ndarray, size: int) -> np.ndarray:
    """Returns the row of each piece; `lengths` must be in decreasing order."""
    rows = np.empty(len(lengths), np.int64)
    num_rows = 0
    # Queues of rows by their free space, and the sorted list of spaces. There are at
    # most `size` different spaces, so that an insertion is cheap.
    rows_by_space: dict[int, collections.deque[int]] = collections.defaultdict(
        collections.deque
    )
    spaces: list[int] = []
    for i, length in enumerate(lengths.tolist()):
        nearest = bisect.bisect_left(spaces, length)
        if nearest == len(spaces):
            row, free = num_rows, size
            num_rows += 1
        else:
            free = spaces[nearest]
            row = rows_by_space[free].popleft()
            if not rows_by_space[free]:
                del spaces[nearest]
        rows[i], free = row, free - length
        if free:
            if not rows_by_space[free]:
                bisect.insort(spaces, free)
            rows_by_space[free].append(row)
    return rows


def _notes(
    part: str, noun: str, num_truncated: int, num_tokens_cut: int, num_left_out: int
) -> Sequence[str]:
    notes = []
    if num_truncated:
        notes.append(
            f"{part} part: truncated {pluralize(num_truncated, noun)}, by "
            f"{pluralize(num_tokens_cut, 'token')} in all"
        )
    if num_left_out:
        notes.append(
            f"{part} part: left out {pluralize(num_left_out, noun)} without a "
            "predicted token"
        )
    return tuple(notes)
