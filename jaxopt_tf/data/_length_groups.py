"""Orders of examples in which a micro-batch has rows of similar lengths."""

from collections.abc import Sequence

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
    lengths: Sequence[int],
    buckets: Sequence[int],
    batch_size: int,
    seed: int,
    epoch: int,
) -> list[int]:
    """Returns the order of an epoch in which each micro-batch has one padded length.

    The rows are permuted. Full batches contain rows of one bucket. The remaining rows,
    fewer than a batch of each bucket, follow in batches sorted by length. The batches
    are permuted, except the last one, which may have fewer rows.

    Args:
        lengths: numbers of tokens of N rows.
        buckets: padded lengths, such as those of `choose_lengths`.
        batch_size: B, number of rows in a micro-batch.
        seed: seed of the order.
        epoch: number of the epoch, which has an order of its own.

    Raises:
        ValueError: if a row is longer than all buckets.
    """
    batch_size = _checks.whole_number("batch_size", batch_size, minimum=1)
    seed = _checks.seed("seed", seed)
    ends, rows = np.sort(np.asarray(buckets)), np.asarray(lengths, np.int64)
    if rows.size and rows.max() > ends[-1]:
        raise ValueError(
            f"`buckets` must contain a length of at least {rows.max():,}, that of a "
            f"row, got {', '.join(map(str, ends))}. Choose them for all rows."
        )
    order = np.asarray(torch_permutation(len(rows), seed + epoch), np.int64)
    places = np.searchsorted(ends, rows[order])
    batches, rest = [], []
    for place in range(len(ends)):
        chosen = order[places == place]
        num_full = len(chosen) // batch_size * batch_size
        batches += list(chosen[:num_full].reshape(-1, batch_size))
        rest.append(chosen[num_full:])
    remaining = np.concatenate(rest) if rest else order
    # The shortest rows come first, so that the short last batch is the longest one: it
    # is compiled for a size of its own in any case.
    remaining = remaining[np.argsort(rows[remaining], kind="stable")]
    num_full = len(remaining) // batch_size * batch_size
    batches += list(remaining[:num_full].reshape(-1, batch_size))
    shuffled = torch_permutation(len(batches), seed + epoch)
    found = [batches[i] for i in shuffled] + [remaining[num_full:]]
    return [int(row) for batch in found for row in batch]
