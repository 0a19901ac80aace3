"""Micro-batches of examples in the order of Trainer, with its short last batches.

Update n is a function of the examples, the seed and n. A checkpoint therefore records n
only.
"""

import contextlib
import functools
import itertools
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .. import _checks

# Arrays of a micro-batch by name.
Arrays = dict[str, np.ndarray]
Collate = Callable[[list[Any]], Arrays]


class ExampleBatches:
    """Infinite sequence of updates, each a list of micro-batches: `batches[n]`.

    An epoch contains every example once. Its last batch contains the remaining
    examples, and its last update the remaining micro-batches. With `is_shuffled`, the
    order of each epoch is that of Trainer for the same seed; torch is not needed.

    Attributes:
        num_examples: number of examples in an epoch.
        steps_per_epoch: number of updates in an epoch.

    Source: transformers 5.23 `trainer.py`, `set_initial_training_values` and
        `_run_epoch`; accelerate 1.15 `data_loader.py`, `SeedableRandomSampler`.
    """

    def __init__(
        self,
        examples: Sequence[Any],
        collate: Collate,
        *,
        batch_size: int,
        gradient_accumulation_steps: int = 1,
        seed: int = 42,
        is_shuffled: bool = True,
        drop_last: bool = False,
        order: Callable[[int], Sequence[int]] | None = None,
    ):
        """Checks the sizes; no example is read.

        Args:
            examples: data with `len(examples)` and `examples[i]`.
            collate: function that makes a micro-batch of a list of examples.
            batch_size: B, number of examples in a micro-batch; at least 1.
            gradient_accumulation_steps: k, maximum number of micro-batches in an
                update; at least 1.
            seed: seed of the order, `data_seed` or `seed` of Trainer; also of the
                random numbers that `collate` draws.
            is_shuffled: whether each epoch has another order.
            drop_last: whether a last batch of fewer examples is dropped.
            order: function from the number of an epoch to the order of all examples,
                such as `bucketed_indices` with its other arguments; None for that of
                `is_shuffled`.

        Raises:
            ValueError: if there is no batch.
        """
        self.num_examples = len(examples)
        self._batch_size = _checks.whole_number("batch_size", batch_size, minimum=1)
        self._num_micro = _checks.whole_number(
            "gradient_accumulation_steps", gradient_accumulation_steps, minimum=1
        )
        self._seed = _checks.seed("seed", seed)
        self._examples, self._collate = examples, collate
        self._is_shuffled, self._given_order = is_shuffled, order
        whole, rest = divmod(self.num_examples, self._batch_size)
        self._num_batches = whole + (rest > 0 and not drop_last)
        if not self._num_batches:
            minimum = self._batch_size if drop_last else 1
            raise ValueError(
                f"`train_dataset` must contain at least "
                f"{_checks.pluralize(minimum, 'example')}, got {self.num_examples}. "
                "Check how it was read or filtered."
            )
        self.steps_per_epoch = -(-self._num_batches // self._num_micro)

    def __getitem__(self, n: int) -> list[Arrays]:
        """Returns the 1 to k micro-batches of update `n`, counted from 0."""
        epoch, update = divmod(n, self.steps_per_epoch)
        micro_batches = []
        for i, rows in enumerate(self.rows(n), update * self._num_micro):
            with seeded_generators(self._seed, epoch, i):
                examples = [self._examples[row] for row in rows]
                micro_batches.append(self._collate(examples))
        return micro_batches

    def rows(self, n: int) -> list[Sequence[int]]:
        """Returns the numbers of the examples of each micro-batch of update `n`."""
        n = _checks.whole_number("n", n, minimum=0)
        epoch, update = divmod(n, self.steps_per_epoch)
        order, first = self._order(epoch), update * self._num_micro
        return [
            order[i * self._batch_size : (i + 1) * self._batch_size]
            for i in range(first, min(first + self._num_micro, self._num_batches))
        ]

    def iter_from(self, start: int) -> Iterator[list[Arrays]]:
        """Yields the updates from `start` on."""
        return map(self.__getitem__, itertools.count(start))

    @functools.lru_cache(maxsize=2)  # noqa: B019 # as long as the batches
    def _order(self, epoch: int) -> Sequence[int]:
        if self._given_order is not None:
            return self._given_order(epoch)
        if not self._is_shuffled:
            return range(self.num_examples)
        return torch_permutation(self.num_examples, self._seed + epoch)


class StreamedBatches:
    """Updates of examples that can only be iterated over, in their own order.

    When the examples end, they are iterated over again. To start at update n, the
    examples of the updates before are read and discarded, as by Trainer; they must be
    the same in every iteration.
    """

    num_examples: int | None = None  # unknown before the examples end
    steps_per_epoch: int | None = None  # unknown, too

    def __init__(
        self,
        examples: Iterable[Any],
        collate: Collate,
        *,
        batch_size: int,
        gradient_accumulation_steps: int = 1,
        seed: int = 42,
        drop_last: bool = False,
    ):
        """Checks the sizes; arguments as for `ExampleBatches`."""
        self._batch_size = _checks.whole_number("batch_size", batch_size, minimum=1)
        self._num_micro = _checks.whole_number(
            "gradient_accumulation_steps", gradient_accumulation_steps, minimum=1
        )
        self._seed, self._drop_last = _checks.seed("seed", seed), drop_last
        self._examples, self._collate = examples, collate

    def iter_from(self, start: int) -> Iterator[list[Arrays]]:
        """Yields the updates from `start` on."""
        for n, update in enumerate(self._updates()):
            if n < start:
                continue
            found = []
            for i, examples in enumerate(update):
                with seeded_generators(self._seed, n, i):
                    found.append(self._collate(examples))
            yield found

    def _updates(self) -> Iterator[list[list[Any]]]:
        while True:
            batches = batched(self._examples, self._batch_size, self._drop_last)
            is_empty = True
            while update := list(itertools.islice(batches, self._num_micro)):
                is_empty = False
                yield update
            if is_empty:
                raise ValueError(
                    "`train_dataset` must contain examples in every iteration, got "
                    f"none from {type(self._examples).__name__}. Pass a dataset that "
                    "can be iterated over again, not an iterator."
                )


def batched(
    examples: Iterable[Any], batch_size: int, drop_last: bool = False
) -> Iterator[list[Any]]:
    """Yields lists of `batch_size` examples; the last one may be shorter."""
    iterator = iter(examples)
    while batch := list(itertools.islice(iterator, batch_size)):
        if len(batch) == batch_size or not drop_last:
            yield batch


def torch_permutation(length: int, seed: int) -> list[int]:
    """Returns the permutation of `torch.randperm` on the CPU; torch is not needed.

    Args:
        length: n, number of elements.
        seed: seed of the generator; torch uses its lowest 32 bits.

    Source: torch 2.13 `aten/src/ATen/native/TensorFactories.cpp`, `randperm_cpu`.
    """
    bits = np.random.MT19937()
    # torch and NumPy's legacy seeding initialize the same generator, MT19937.
    bits._legacy_seeding(seed & 0xFFFFFFFF)
    draws = bits.random_raw(max(0, length - 1))
    # Fisher and Yates: element i is swapped with one of the n - i elements from i on.
    offsets = (draws % np.arange(length, 1, -1, dtype=np.uint64)).tolist()
    permutation = list(range(length))
    for i, offset in enumerate(offsets):
        j = i + offset
        permutation[i], permutation[j] = permutation[j], permutation[i]
    return permutation


@contextlib.contextmanager
def seeded_generators(*numbers: int) -> Iterator[None]:
    """Seeds the global generators of Python, NumPy and torch, and restores them.

    Collators that mask tokens draw from them. Their random numbers then depend on the
    micro-batch only, and not on the micro-batches before it.
    """
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    torch: Any = sys.modules.get("torch")  # a collator that uses it has imported it
    states = random.getstate(), np.random.get_state()
    torch_state = None if torch is None else torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    if torch is not None:
        torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        if torch is not None:
            torch.set_rng_state(torch_state)


def stack_examples(examples: list[Mapping[str, Any]]) -> Arrays:
    """Stacks the columns of examples, like `default_data_collator` of Transformers.

    A column `label` or `label_ids` becomes `labels`. Columns of strings, and columns
    that are None in the first example, are left out.

    Args:
        examples: mappings of names to numbers, lists of numbers or arrays.

    Returns:
        Arrays [B, ...] by name.

    Raises:
        TypeError: if the examples are not mappings.
        ValueError: if a column cannot be stacked. The message names it.

    Source: transformers 5.23 `data/data_collator.py`, `torch_default_data_collator`.
    """
    examples = [as_mapping(example) for example in examples]
    first, found = examples[0], {}
    label = next((n for n in ("label", "label_ids") if first.get(n) is not None), None)
    if label is not None:
        found["labels"] = _stacked(label, examples)
    for name, value in first.items():
        is_left_out = name in ("label", "label_ids") or value is None
        if not is_left_out and not isinstance(value, str):
            found[name] = _stacked(name, examples)
    return found


def as_mapping(example: Any) -> Mapping[str, Any]:
    """Returns an example as a mapping; `vars(example)` for an object."""
    if isinstance(example, Mapping):
        return example
    if hasattr(example, "__dict__"):
        return vars(example)
    raise TypeError(
        "`train_dataset` must contain dictionaries, or `data_collator` must be given, "
        f"got {type(example).__name__}."
    )


def to_numpy(value: Any) -> np.ndarray:
    """Converts a tensor, an array or numbers as torch does: Python floats to float32.

    Raises:
        ValueError: if the rows of `value` have different lengths.
        TypeError: if `value` does not consist of numbers.
    """
    if hasattr(value, "detach"):  # a tensor of torch
        value = value.detach().cpu()
        is_bfloat16 = str(value.dtype) == "torch.bfloat16"
        return value.float().numpy() if is_bfloat16 else value.numpy()
    is_array = hasattr(value, "dtype")
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"it consists of {array.dtype}, not of numbers")
    # torch converts Python floats to its default dtype.
    return (
        array.astype(np.float32)
        if array.dtype == np.float64 and not is_array
        else array
    )


def _stacked(name: str, examples: Sequence[Mapping[str, Any]]) -> np.ndarray:
    missing = sum(example.get(name) is None for example in examples)
    shapes: list[Any] = []
    reason = f"is missing in {missing} of {len(examples)} examples"
    if not missing:
        try:
            rows = [to_numpy(example[name]) for example in examples]
            shapes = sorted({row.shape for row in rows})
            reason = f"has rows of shapes {', '.join(map(str, shapes[:3]))}"
            if len(shapes) == 1:
                stacked, dtypes = np.stack(rows), {row.dtype for row in rows}
                # torch promotes integers and float32 to float32, NumPy promotes them to
                # float64.
                is_wider = stacked.dtype == np.float64 and stacked.dtype not in dtypes
                return stacked.astype(np.float32) if is_wider else stacked
        except (TypeError, ValueError) as error:
            reason = f"cannot be converted: {error}"
    raise ValueError(
        f"`train_dataset` must have columns that can be stacked, but {name!r} "
        f"{reason}. Pad the column to one length, remove it, or pass a "
        "`data_collator`, such as "
        '`DataCollatorWithPadding(tokenizer, padding="max_length", max_length=128)`.'
    )
