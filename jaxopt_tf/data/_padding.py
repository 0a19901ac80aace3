"""Padding of rows to a few lengths, each of which is compiled once."""

import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from .. import _checks
from ._examples import Arrays, to_numpy

Side = Literal["left", "right"]
# Number of lengths of the grid of pairs, for inputs and for targets.
_CELLS = 12
# Fraction of `max_padding` for rows that are padded alone. The rest is for batches with
# rows of several lengths.
_MARGIN = 0.95
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
    tokens, or else `at_most` lengths. Among all choices of this number of lengths, they
    have the least padding if each row is padded alone, or with rows of its length.

    Args:
        lengths: numbers of tokens of all rows.
        at_most: maximum number of lengths.
        multiple: number that divides the lengths, except `limit`. It is halved if
            that makes the padding small enough.
        max_padding: fraction of padding in all tokens, at least 0 and less than 1.
        limit: maximum length, such as the number of positions of the model; None for
            no maximum.

    Raises:
        ValueError: if there are no rows, or an argument is out of its range.
    """
    at_most = _checks.whole_number("at_most", at_most, minimum=1)
    multiple = _checks.whole_number("multiple", multiple, minimum=1)
    _checks.fraction_below_one("max_padding", max_padding)
    rows = np.maximum(np.fromiter(lengths, np.int64), 1)
    if not rows.size:
        raise ValueError(
            "`lengths` must contain at least 1 length, got none. Check how the data "
            "were read."
        )
    candidates: list[tuple[int, tuple[int, ...]]] = []
    limits = [rows.sum() / (1 - margin * max_padding) for margin in (_MARGIN, 1.0)]
    while True:
        padded = -(-rows // multiple) * multiple
        if limit is not None:
            padded = np.minimum(padded, max(limit, int(rows.max())))
        choices, counts = np.unique(padded, return_counts=True)
        found, num_tokens = _best_lengths(
            choices, np.cumsum(counts), at_most, limits[0]
        )
        candidates.append((num_tokens, found))
        if num_tokens <= limits[0] or multiple == 1:
            break
        multiple //= 2
    least, best = min(candidates)
    return best if least <= limits[1] else candidates[0][1]


def _best_lengths(
    choices: np.ndarray, num_rows: np.ndarray, at_most: int, enough: float
) -> tuple[tuple[int, ...], int]:
    """Returns the lengths with the fewest tokens, and the number of tokens.

    Args:
        choices: possible lengths, ascending [C].
        num_rows: number of rows that are not longer [C].
        at_most: maximum number of lengths.
        enough: number of tokens that is few enough.
    """
    # cost[j]: fewest tokens of all rows up to `choices[j]`, the largest length used.
    # The dynamic programme adds one length in each round.
    cost = choices * num_rows
    rounds: list[np.ndarray] = []
    # [i, j]: the rows between `choices[i]` and `choices[j]` have the length j.
    between = (num_rows[None, :] - num_rows[:, None]) * choices[None, :]
    is_shorter = np.tri(len(choices), k=-1, dtype=bool).T
    while cost[-1] > enough and len(rounds) + 1 < min(at_most, len(choices)):
        total = np.where(is_shorter, cost[:, None] + between, np.iinfo(np.int64).max)
        best = np.argmin(total, axis=0)
        extended = np.take_along_axis(total, best[None], axis=0)[0]
        rounds.append(best)
        # The shortest choices have too few shorter ones for this number of lengths.
        cost = np.minimum(cost, extended)
    chosen, place = [int(choices[-1])], len(choices) - 1
    for shorter in reversed(rounds):
        place = int(shorter[place])
        chosen.append(int(choices[place]))
    return tuple(sorted({*chosen})), int(cost[-1])


def choose_length_pairs(
    lengths: Iterable[tuple[int, int]],
    *,
    at_most: int = 6,
    multiple: int = 8,
    max_padding: float = 0.15,
    limit: tuple[int | None, int | None] = (None, None),
) -> tuple[tuple[int, int], ...]:
    """Returns pairs of lengths to which inputs and targets are padded.

    Cells of a fine grid of lengths are merged, each time those two that add the least
    padding, until `at_most` pairs remain, and further as long as padding is at most
    `max_padding` of all tokens. The result is good, but not the best in all cases.

    Args:
        lengths: numbers of tokens of the input and of the target of all rows.
        at_most: maximum number of pairs.
        multiple: number that divides the lengths, except those of `limit`. It is halved
            if that makes the padding small enough.
        max_padding: fraction of padding in all tokens, at least 0 and less than 1.
        limit: maximum lengths of inputs and of targets; None for no maximum.

    Raises:
        ValueError: if there are no rows, or an argument is out of its range.
    """
    rows = np.asarray(list(lengths), np.int64).reshape(-1, 2)
    axes = [
        np.asarray(
            choose_lengths(
                rows[:, axis],
                at_most=_CELLS,
                multiple=multiple,
                max_padding=max_padding / 4,
                limit=limit[axis],
            )
        )
        for axis in (0, 1)
    ]
    at_most = _checks.whole_number("at_most", at_most, minimum=1)
    places = [np.searchsorted(axes[axis], rows[:, axis]) for axis in (0, 1)]
    cells = np.stack([axes[axis][places[axis]] for axis in (0, 1)], axis=1)
    pairs, counts = np.unique(cells, axis=0, return_counts=True)
    while len(pairs) > 1:
        merged = np.maximum(pairs[:, None], pairs[None, :]).sum(-1)
        sums = counts * pairs.sum(-1)
        added = (counts[:, None] + counts[None, :]) * merged
        added = added - sums[:, None] - sums[None, :]
        np.fill_diagonal(added, np.iinfo(np.int64).max)
        i, j = np.unravel_index(np.argmin(added), added.shape)
        num_tokens = sums.sum() + added[i, j]
        is_enough = num_tokens * (1 - max_padding) <= rows.sum()
        if len(pairs) <= at_most and not is_enough:
            break
        pairs[i] = np.maximum(pairs[i], pairs[j])
        counts[i] += counts[j]
        pairs, counts = np.delete(pairs, j, axis=0), np.delete(counts, j)
    found = {(int(a), int(b)) for a, b in pairs}
    # A batch can contain the longest input and the longest target of different rows.
    longest = (int(axes[0][-1]), int(axes[1][-1]))
    if longest not in found:
        found = _with_longest(found, longest, at_most)
    return tuple(sorted(found, key=lambda pair: (sum(pair), pair)))


def _with_longest(
    pairs: set[tuple[int, int]], longest: tuple[int, int], at_most: int
) -> set[tuple[int, int]]:
    """Returns pairs with that of the longest lengths, which replaces the largest."""
    rest = sorted(pairs, key=sum)
    return {*(rest if len(rest) < at_most else rest[:-1]), longest}


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


def fill_rows(arrays: Arrays, num_rows: int, *, ignored: int = -100) -> Arrays:
    """Returns a micro-batch with further rows, which have no labels.

    A short last batch then has the shape of the others, and its program. The further
    rows are copies of the last row. Losses that ignore `ignored` and divide by the
    number of the other labels do not change.

    Args:
        arrays: arrays [B, ...] by name, with `labels` that are integers.
        num_rows: number of rows of the result; at least B.
        ignored: label of the further rows.

    Raises:
        ValueError: if there are no labels that are integers, or more rows.
    """
    labels = arrays.get("labels")
    if labels is None or labels.dtype.kind not in "iu":
        raise ValueError(
            "`arrays` must have labels that are integers, of which a loss can ignore "
            f"some, got {'none' if labels is None else labels.dtype}. Leave the batch "
            "as it is."
        )
    missing = _checks.whole_number("num_rows", num_rows, minimum=len(labels))
    missing -= len(labels)
    filled = {
        name: np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])
        for name, array in arrays.items()
    }
    filled["labels"][len(labels) :] = ignored
    return filled


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
