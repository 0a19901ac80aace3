"""Data of a run that trains on a dataset of examples, not on a token stream.

The module selects columns, collates examples, and places batches on the devices.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from .. import data, interop, training
from .._checks import pluralize
from .._typing import PyTree
from ..models import NUM_ITEMS, Model, TorchaxModel, trainer_forward
from ..sharding import batch_sharding
from ._example_job import ExampleJob

_FLAX_COLUMNS = ("input_ids", "labels", "segment_ids", "position_ids")
_LABELS = ("label", "label_ids")
# Number of examples whose values are part of the fingerprint of the data.
_NUM_HASHED = 64
# A note is printed once, when batches have had this many shapes.
_MANY_SHAPES = 8


class ExampleSource:
    """A dataset of examples and the function that makes a micro-batch of them.

    Attributes:
        examples: the dataset, without columns that are not used.
        num_examples: number of examples; None for a dataset without a length.
        removed: names of the columns that are not used.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        argument: str,
        model: Model,
        collator: Callable[[list[Any]], Any] | None,
        settings: Mapping[str, Any],
    ):
        """Reads the first example.

        Args:
            dataset: a `datasets.Dataset`, a sequence of examples, a dataset of grain,
                or another iterable of examples.
            argument: the caller's name of the argument `dataset`, for errors.
            model: the model, which receives the columns as arguments.
            collator: function from a list of examples to a batch; None to stack them.
            settings: settings of the job by name.

        Raises:
            TypeError: if `dataset` is of another type.
            ValueError: if `dataset` is empty, or the model uses none of its columns.
        """
        _check_dataset(dataset, argument)
        self._argument, self._collator = argument, collator
        self.num_examples = len(dataset) if is_sequence(dataset) else None
        first = next(iter(dataset), None) if self.num_examples is None else None
        if self.num_examples:
            first = dataset[0]
        if first is None:
            raise ValueError(
                f"`{argument}` must contain at least 1 example, got none. Check how it "
                "was read or filtered."
            )
        self._used = _used_columns(model, settings)
        columns = list(first) if isinstance(first, Mapping) else []
        self.removed: tuple[str, ...] = ()
        if self._used is not None:
            self.removed = tuple(n for n in columns if n not in self._used)
        if columns and len(self.removed) == len(columns):
            raise ValueError(
                f"`{argument}` must have a column that the model takes, one of "
                f"{', '.join(self._used or ())}, got {', '.join(columns)}. Rename "
                "the columns, or pass `remove_unused_columns=False`."
            )
        self.examples: Any = dataset
        if self.removed and hasattr(dataset, "remove_columns"):
            self.examples = dataset.remove_columns(list(self.removed))

    def collate(self, examples: list[Any]) -> dict[str, np.ndarray]:
        """Returns the arrays of a micro-batch.

        Raises:
            ValueError: if a column cannot be stacked.
            TypeError: if the collator does not return a dict of arrays.
        """
        if self.removed:
            examples = [
                {n: x for n, x in example.items() if n not in self.removed}
                if isinstance(example, Mapping)
                else example
                for example in examples
            ]
        try:
            batch = (self._collator or data.stack_examples)(examples)
        except ValueError as error:
            # `data.stack_examples` calls every dataset `train_dataset`.
            message = str(error).replace("`train_dataset`", f"`{self._argument}`")
            raise ValueError(message) from error
        # A `BatchEncoding` of Transformers has `items`, but is not a dict.
        if not hasattr(batch, "items"):
            raise TypeError(
                "`data_collator` must return a dict of arrays or tensors, got "
                f"{type(batch).__name__}."
            )
        return {n: _array(n, x) for n, x in batch.items() if x is not None}

    def fingerprint(self) -> str:
        """Returns a hash of the dataset's size, its used columns and some values."""
        digest = hashlib.sha256(repr((self.num_examples, self._used)).encode())
        # Values are not hashed if the dataset transforms examples when it is read,
        # because the transformation may be random.
        format_ = getattr(self.examples, "format", None)
        has_stored_values = isinstance(self.examples, list | tuple) or (
            isinstance(format_, Mapping) and format_.get("type") != "custom"
        )
        if has_stored_values and self.num_examples:
            count = min(_NUM_HASHED, self.num_examples)
            for i in np.linspace(0, self.num_examples - 1, count).astype(int):
                _hash_into(digest, self.examples[int(i)])
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetSummary:
    """Hash and size of a dataset, as text that `open_run` records or prints."""

    fingerprint: str  # hash, `ExampleSource.fingerprint()`
    size: str  # number of examples, such as "1,000 examples"
    unit: str = "labels"  # unit of `Metrics.num_items`, for the progress bar


def is_sequence(dataset: Any) -> bool:
    """Returns whether examples are read by index."""
    # Datasets of Hugging Face and of grain that can only be iterated are recognized by
    # the names of their base classes. Neither library is imported.
    names = {base.__name__ for base in type(dataset).__mro__}
    is_iterable_only = bool(names & {"IterableDataset", "IterDataset"})
    has_both = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    return has_both and not is_iterable_only


def training_examples(
    source: ExampleSource,
    *,
    batch_size: int,
    gradient_accumulation_steps: int,
    seed: int,
    settings: Mapping[str, Any],
) -> data.ExampleBatches | data.StreamedBatches:
    """Returns an iterable that yields the micro-batches of each optimizer step."""
    sizes: dict[str, Any] = {
        "batch_size": batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "seed": seed,
        "drop_last": bool(settings.get("dataloader_drop_last")),
    }
    if source.num_examples is None:
        return data.StreamedBatches(source.examples, source.collate, **sizes)
    strategy = settings.get("train_sampling_strategy") or "random"
    return data.ExampleBatches(
        source.examples, source.collate, is_shuffled=strategy == "random", **sizes
    )


class DeviceBatches:
    """Placement of batches on the devices of a mesh, and a count of their shapes.

    Each process collates whole micro-batches and transfers the rows of its devices.
    """

    def __init__(self, model: Model, mesh: Any, num_micro_batches: int):
        """Stores the arguments.

        Args:
            model: the model.
            mesh: mesh over which rows are sharded.
            num_micro_batches: maximum number of micro-batches in a step.
        """
        self._call_spec = trainer_forward(model)
        self._mesh, self._num_micro_batches = mesh, num_micro_batches
        self._shapes: set[Any] = set()

    @property
    def num_shapes(self) -> int:
        """Number of shapes of training batches so far; a step is compiled for each."""
        return len(self._shapes)

    def step_batches(self, batches: Any, start: int) -> Iterator[PyTree]:
        """Yields the batch of each training step, from step `start` on."""
        for micro_batches in batches.iter_from(start):
            yield self._step_batch(micro_batches)

    def evaluation_batch(self, arrays: Mapping[str, np.ndarray]) -> PyTree:
        """Places a batch for the evaluation step on the devices."""
        return self._put(self._with_num_items([arrays])[0], axis=0)

    def _step_batch(self, micro_batches: list[Mapping[str, np.ndarray]]) -> PyTree:
        counted = self._with_num_items(micro_batches)
        shapes = [_shape_of(one) for one in counted]
        self._note_shape(tuple(shapes))
        if self._num_micro_batches == 1:
            return self._put(counted[0], axis=0)
        if len(set(shapes)) == 1:
            stacked = {n: np.stack([one[n] for one in counted]) for n in counted[0]}
            return self._put(stacked, axis=1)
        return training.MicroBatches(tuple(self._put(one, axis=0) for one in counted))

    def _note_shape(self, shape: Any) -> None:
        is_new = shape not in self._shapes
        self._shapes.add(shape)
        if is_new and self.num_shapes == _MANY_SHAPES and jax.process_index() == 0:
            print(
                f"note    {pluralize(_MANY_SHAPES, 'shape')} of batches so far, each "
                "of which is compiled: pad rows to one length, for example by "
                '`DataCollatorWithPadding(tokenizer, padding="max_length", '
                "max_length=128)`, or to a few lengths with `pad_to_multiple_of`"
            )

    def _with_num_items(
        self, micro_batches: Sequence[Mapping[str, np.ndarray]]
    ) -> list[dict[str, np.ndarray]]:
        """Adds the number of items of the whole step to each micro-batch."""
        if self._call_spec is None:
            return [dict(one) for one in micro_batches]
        num_items = np.int32(sum(map(self._call_spec.num_items, micro_batches)))
        return [{**one, NUM_ITEMS: np.asarray(num_items)} for one in micro_batches]

    def _put(self, arrays: Mapping[str, np.ndarray], *, axis: int) -> PyTree:
        """Places arrays on the devices, with the rows along `axis` sharded."""

        def put(array: np.ndarray) -> jax.Array:
            if array.ndim <= axis:  # the number of items, which is replicated
                sharding = NamedSharding(self._mesh, PartitionSpec())
            else:
                sharding = batch_sharding(array.shape, self._mesh, axis=axis)
            return jax.make_array_from_callback(
                array.shape, sharding, array.__getitem__
            )

        return {name: put(array) for name, array in arrays.items()}


def evaluation_batches(
    source: ExampleSource, batch_size: int, seed: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the batches of an evaluation, in the order of the examples."""
    examples: Iterable[Any] = source.examples
    if source.num_examples is not None:
        examples = (source.examples[i] for i in range(source.num_examples))
    for n, batch in enumerate(data.batched(examples, batch_size)):
        with data.seeded_generators(seed, 0, n):
            yield source.collate(batch)


def label_names(model: Model, job: ExampleJob) -> tuple[str, ...]:
    """Returns the names of the labels that `compute_metrics` receives."""
    if job.label_names is not None:
        return job.label_names
    call_spec = trainer_forward(model)
    return ("labels",) if call_spec is None else call_spec.label_names


def _used_columns(model: Model, settings: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Returns the names of the columns to keep; None to keep all."""
    if settings.get("remove_unused_columns") is False:
        return None
    call_spec = trainer_forward(model)
    if call_spec is not None:
        return (*call_spec.columns, *_LABELS, *(settings.get("label_names") or ()))
    # A torchax model without Trainer's forward has a loss function of the user, which
    # may take any column.
    return None if isinstance(model, TorchaxModel) else (*_FLAX_COLUMNS, *_LABELS)


def _check_dataset(dataset: Any, argument: str) -> None:
    if isinstance(dataset, Mapping):
        raise TypeError(
            f"`{argument}` must be one dataset, got a dictionary with the keys "
            f"{', '.join(map(repr, dataset))}. If its keys are splits, pass one "
            "of its values; if they are columns, pass a list of one dictionary per "
            "example."
        )
    if hasattr(dataset, "__next__"):
        raise TypeError(
            f"`{argument}` must be a dataset that can be read again, got an iterator, "
            f"{type(dataset).__name__}. Pass a list or a `grain.IterDataset`."
        )
    if not is_sequence(dataset) and not hasattr(dataset, "__iter__"):
        raise TypeError(
            f"`{argument}` must be a `datasets.Dataset`, a sequence of dictionaries or "
            f"a dataset of grain, got {type(dataset).__name__}."
        )
    if is_sequence(dataset) and len(dataset) > 2**31 - 1:
        raise ValueError(
            f"`{argument}` must have at most 2^31 - 1 examples, got {len(dataset):,}. "
            "If the dataset was made with `.repeat()`, remove this call: epochs "
            "already repeat the examples."
        )


def _array(name: str, value: Any) -> np.ndarray:
    """Converts a column of a batch to an array whose dtype JAX does not change."""
    try:
        array = data.to_numpy(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            "`data_collator` must return a dict of arrays or tensors of numbers, but "
            f"{name!r} is not: {error}. Remove the key."
        ) from error
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    if array.dtype == np.int64 and dtype == np.int32 and array.size:
        limits = np.iinfo(np.int32)
        if array.min() < limits.min or array.max() > limits.max:
            raise ValueError(
                f"`data_collator` must return integers of 32 bits, but {name!r} has "
                f"values from {array.min()} to {array.max()}. Remove the column."
            )
    return np.ascontiguousarray(array, dtype)


def _shape_of(arrays: Mapping[str, np.ndarray]) -> tuple[Any, ...]:
    return tuple((name, x.shape, str(x.dtype)) for name, x in sorted(arrays.items()))


def _hash_into(digest: Any, value: Any) -> None:
    if isinstance(value, Mapping):
        for name in sorted(value):
            digest.update(str(name).encode())
            _hash_into(digest, value[name])
    else:
        try:
            array = data.to_numpy(value)
            digest.update(repr(array.shape).encode() + array.tobytes())
        except (TypeError, ValueError):
            # The text of an object may contain its address in memory.
            is_text = isinstance(value, str | bytes)
            digest.update(repr(value if is_text else type(value)).encode())


def collator_of_run(
    collator: Callable | None, processing_class: Any
) -> Callable[[list[Any]], Any] | None:
    """Returns the given collator, or else Trainer's default; None to stack examples."""
    if collator is not None or processing_class is None:
        return collator
    return interop.padding_collator(processing_class)
