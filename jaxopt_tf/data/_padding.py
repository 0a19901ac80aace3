"""Padding of rows to a few lengths, each of which is compiled once."""

import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from .. import _checks
from ._examples import Arrays, to_numpy

Side = Literal["left", "right"]
_LABELS = ("label", "label_ids", "labels")


def choose_lengths(
    lengths: Iterable[int],
    *,
    at_most: int = 6,
    multiple: int = 8,
    max_padding: float = 0.15,
    limit: int | None = None,
) -> tuple[int, ...]:
    """Returns the lengths to which rows are padded, in ascending order.

    They are the fewest lengths with which padding is at most `max_padding` of all
    tokens, or `at_most` lengths if that many are not enough. Among all choices of this
    number of lengths, they have the least padding, with each row alone: a batch is
    padded to the length of its longest row.

    Args:
        lengths: numbers of tokens of all rows.
        at_most: maximum number of lengths.
        multiple: number that divides the lengths, except `limit`.
        max_padding: fraction of padding in all tokens, from 0 to 1.
        limit: maximum length, such as the number of positions of the model; None for
            no maximum.

    Raises:
        ValueError: if there are no rows, or an argument is out of its range.
    """
    at_most = _checks.whole_number("at_most", at_most, minimum=1)
    multiple = _checks.whole_number("multiple", multiple, minimum=1)
    _checks.fraction("max_padding", max_padding)
    rows = np.fromiter(lengths, np.int64)
    if not rows.size:
        raise ValueError(
            "`lengths` must contain at least 1 length, got none. Check how the data "
            "were read."
        )
    padded = -(-np.maximum(rows, 1) // multiple) * multiple
    if limit is not None:
        padded = np.minimum(padded, max(limit, int(rows.max())))
    choices, counts = np.unique(padded, return_counts=True)
    num_rows, num_tokens = np.cumsum(counts), int(rows.sum())
    # cost[j]: fewest tokens of all rows up to `choices[j]`, the largest length used.
    # The dynamic programme adds one length in each round.
    cost = choices * num_rows
    previous: list[np.ndarray] = []
    while True:
        is_enough = cost[-1] - num_tokens <= max_padding * cost[-1]
        if is_enough or len(previous) + 1 >= min(at_most, len(choices)):
            break
        # [i, j]: the rows between `choices[i]` and `choices[j]` have the length j.
        between = (num_rows[None, :] - num_rows[:, None]) * choices[None, :]
        total = cost[:, None] + between
        total = np.where(np.tri(len(choices), k=-1).T, total, np.iinfo(np.int64).max)
        best = np.argmin(total, axis=0)
        extended = np.take_along_axis(total, best[None], axis=0)[0]
        previous.append(np.where(extended < cost, best, -1))
        cost = np.minimum(cost, extended)
    chosen, at = [], len(choices) - 1
    for step in reversed(previous):
        if step[at] >= 0:
            chosen.append(int(choices[at]))
            at = int(step[at])
    return tuple(sorted({*chosen, int(choices[at])}))


class PadToBuckets:
    """Collator that pads the rows of a micro-batch to the smallest of a few lengths."""

    def __init__(
        self,
        lengths: Sequence[int],
        pad_values: Mapping[str, int],
        *,
        padding_side: Side = "right",
    ):
        """Stores the lengths.

        Args:
            lengths: lengths of padded rows.
            pad_values: values that pad columns of lists, by name of the column.
            padding_side: side on which rows are padded.

        Raises:
            ValueError: if there is no length, or the side is unknown.
        """
        _checks.one_of("padding_side", padding_side, ("left", "right"))
        self.lengths = tuple(
            sorted({_checks.whole_number("lengths", n, minimum=1) for n in lengths})
        )
        if not self.lengths:
            raise ValueError("`lengths` must contain at least 1 length, got none.")
        self._pad_values, self._side = dict(pad_values), padding_side

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> Arrays:
        """Returns the arrays of a micro-batch.

        Args:
            examples: B examples with `input_ids` and other lists of the same length;
                labels can also be numbers.

        Returns:
            Arrays int32 [B, T] by name, with `attention_mask`, which is 1 at the tokens
            of the example; columns of numbers are [B]. A column `label` becomes
            `labels`.

        Raises:
            ValueError: if a row is longer than all lengths.
        """
        examples = [_with_mask(example) for example in examples]
        length = bucket(self.lengths, (len(x["input_ids"]) for x in examples))
        return {
            "labels" if name in _LABELS else name: self._column(
                name, [example[name] for example in examples], length
            )
            for name in examples[0]
        }

    def _column(self, name: str, rows: list[Any], length: int) -> np.ndarray:
        if not isinstance(rows[0], list | tuple | np.ndarray):
            array = to_numpy(rows)
            return array.astype(np.int32) if array.dtype.kind in "biu" else array
        return pad_rows(rows, length, self._pad_values.get(name, 0), self._side)


def pad_rows(rows: Sequence[Any], length: int, value: int, side: Side) -> np.ndarray:
    """Returns rows of integers as an array int32 [B, length]."""
    padded = np.full((len(rows), length), value, np.int32)
    for target, row in zip(padded, rows, strict=True):
        first = 0 if side == "right" else length - len(row)
        target[first : first + len(row)] = row
    return padded


def bucket(lengths: Sequence[int], row_lengths: Iterable[int]) -> int:
    """Returns the smallest of ascending `lengths` that no row exceeds."""
    longest = max(row_lengths)
    place = bisect.bisect_left(lengths, longest)
    if place == len(lengths):
        raise ValueError(
            f"`lengths` must contain a length of at least {longest:,}, that of a row, "
            f"got {', '.join(map(str, lengths))}. Choose them for all data of the run."
        )
    return lengths[place]


def _with_mask(example: Mapping[str, Any]) -> Mapping[str, Any]:
    if "attention_mask" in example:
        return example
    return {**example, "attention_mask": [1] * len(example["input_ids"])}


CollateRows = Callable[[Sequence[Mapping[str, Any]]], Arrays]
