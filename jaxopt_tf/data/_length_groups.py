"""Orders of examples in which a micro-batch has rows of similar lengths."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import _checks
from ._examples import torch_permutation


def length_grouped_indices(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int, mega: int = 50
) -> list[int]:
    """Returns the order of an epoch with rows of similar lengths side by side.

    The rows are permuted and divided into parts of `mega` batches, and each part is
    sorted by length, the longest row first. The first row is the longest of all.

    Args:
        lengths: numbers of tokens of N rows.
        batch_size: number of rows in a batch: in an update, for Trainer.
        seed: seed of the order.
        epoch: number of the epoch, which has an order of its own.
        mega: maximum number of batches in a part; fewer if there would be less than
            four parts.

    Source: transformers 5.23 `trainer_pt_utils.py`, `get_length_grouped_indices`.
    Differs: the order depends on `seed` + `epoch` only. Trainer draws it from the
        global generator of torch.
    """
    batch_size = _checks.whole_number("batch_size", batch_size, minimum=1)
    mega = min(len(lengths) // (batch_size * 4), mega) or 1
    order = torch_permutation(len(lengths), _checks.seed("seed", seed) + epoch)
    size = mega * batch_size
    parts = [
        sorted(order[i : i + size], key=lambda row: lengths[row], reverse=True)
        for i in range(0, len(order), size)
    ]
    if parts:
        longest = int(np.argmax([lengths[part[0]] for part in parts]))
        parts[0][0], parts[longest][0] = parts[longest][0], parts[0][0]
    return [row for part in parts for row in part]


def bucketed_indices(
    lengths: Sequence[Any],
    buckets: Sequence[Any],
    batch_size: int,
    seed: int,
    epoch: int,
) -> list[int]:
    """Returns the order of an epoch in which each batch has rows of one padded length.

    The rows are permuted. Full batches contain rows of one bucket. The remaining rows,
    fewer than a batch of each bucket, follow in batches of neighbouring buckets. The
    batches are permuted, except the last one, which may have fewer rows; it is padded
    to the same length in each epoch.

    Args:
        lengths: numbers of tokens of N rows; or pairs, for inputs and targets.
        buckets: padded lengths, such as those of `choose_lengths`; or pairs of them, as
            those of `choose_length_pairs`.
        batch_size: B, number of rows in a batch.
        seed: seed of the order.
        epoch: number of the epoch, which has an order of its own.

    Raises:
        ValueError: if a row is longer than all buckets.
    """
    batch_size = _checks.whole_number("batch_size", batch_size, minimum=1)
    seed = _checks.seed("seed", seed)
    places = bucket_numbers(lengths, buckets)
    order = np.asarray(torch_permutation(len(places), seed + epoch), np.int64)
    batches, rest = [], []
    for place in range(len(buckets)):
        chosen = order[places[order] == place]
        num_full = len(chosen) // batch_size * batch_size
        batches += list(chosen[:num_full].reshape(-1, batch_size))
        rest.append(chosen[num_full:])
    # The remaining rows have the same buckets in each epoch. The longest ones are last,
    # in the batch with fewer rows, which is compiled in any case.
    remaining = np.concatenate(rest)
    num_full = len(remaining) // batch_size * batch_size
    batches += list(remaining[:num_full].reshape(-1, batch_size))
    shuffled = torch_permutation(len(batches), seed + epoch)
    found = [batches[i] for i in shuffled] + [remaining[num_full:]]
    return [int(row) for batch in found for row in batch]


def bucket_numbers(lengths: Sequence[Any], buckets: Sequence[Any]) -> np.ndarray:
    """Returns the number of the smallest bucket of each row, int64 [N].

    Buckets are numbered by ascending sums of their lengths.

    Args:
        lengths: numbers of tokens, or pairs of them.
        buckets: padded lengths, or pairs of them.

    Raises:
        ValueError: if a row is longer than all buckets.
    """
    # [K, 1 or 2] and [N, 1 or 2]
    ends = np.asarray(sorted(buckets, key=np.sum), np.int64).reshape(len(buckets), -1)
    rows = np.asarray(lengths, np.int64).reshape(-1, ends.shape[1])
    places = np.full(len(rows), -1, np.int64)
    for place in reversed(range(len(ends))):
        places[np.all(rows <= ends[place], axis=1)] = place
    if np.any(places < 0):
        row = tuple(rows[np.argmin(places)].tolist())
        raise ValueError(
            f"`buckets` must contain a length for each row, but a row has "
            f"{' and '.join(map(str, row))} tokens and the buckets are "
            f"{', '.join(map(str, buckets))}. Choose them for all rows."
        )
    return places
