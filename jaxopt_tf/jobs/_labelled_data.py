"""Examples of a labelled run, their padded batches, and updates to train on."""

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import data
from .._checks import pluralize
from ._labelled_job import LabelledJob
from ._task_rows import TaskRows
from ._tasks import Task

# `max_target_length` of Transformers' `run_summarization.py`.
_TARGET_LENGTH = 128
# Maximum number of programs of the training step.
_NUM_PROGRAMS = 6

Example = dict[str, Any]
Collate = Callable[[list[Example]], dict[str, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class TaskExamples:
    """Encoded rows of a run, and the collators of its batches.

    Attributes:
        parts: examples by the name of the setting.
        collate: collator, which pads to one of a few lengths.
        collate_longest: collator for short last batches, which pads to the longest
            length, so that they have one shape.
        lengths: padded lengths, or pairs of them for inputs and targets; () for images.
        decode: function from tokens to text; None without a tokenizer.
        max_target_length: maximum number of tokens of generated text.
        notes: sentences about lengths and about texts that were cut.
        fingerprint: function from the name of a setting to a hash of its examples.
    """

    parts: Mapping[str, list[Example]]
    collate: Collate
    collate_longest: Collate
    lengths: Sequence[Any]
    decode: Callable[[Sequence[int]], str] | None
    max_target_length: int
    notes: tuple[str, ...]
    fingerprint: Callable[[str], str]

    def collator(self, least: int) -> Collate:
        """Returns the collator of batches of `least` rows or more, and of shorter ones.

        Shorter ones are padded to the longest length.
        """

        def collate(examples: list[Example]) -> dict[str, np.ndarray]:
            is_short = len(examples) < least
            return (self.collate_longest if is_short else self.collate)(examples)

        return collate

    def row_lengths(self, part: str) -> list[Any]:
        """Returns the numbers of tokens of the examples of a part, as in `lengths`."""
        is_pair = bool(self.lengths) and isinstance(self.lengths[0], tuple)
        return _row_lengths(self.parts[part], is_pair=is_pair)


def encode_rows(
    rows: TaskRows,
    job: LabelledJob,
    *,
    config: Mapping[str, Any],
    num_positions: int | None,
    has_short_program: bool = True,
) -> TaskExamples:
    """Encodes the rows of a run.

    Args:
        rows: result of `read_task_rows`.
        job: settings of the run.
        config: configuration of the model.
        num_positions: number of positions of the model; None if it has no limit.
        has_short_program: whether the last update of an epoch has a program of its own,
            so that there can be one length less.

    Raises:
        ValueError: if a row has no text, a label is unknown, or the tokenizer is
            missing or has no token that the task needs.
    """
    if rows.task.name == "image-classification":
        return _image_examples(rows, job, config)
    assert job.model_name_or_path is not None
    encoder = data.Encoder(
        job.tokenizer or job.model_name_or_path,
        max_length=job.max_length,
        max_target_length=job.max_target_length or _TARGET_LENGTH,
        model_max_length=num_positions,
    )
    _check_vocabulary(encoder, config)
    parts = {name: _encoded(rows, name, job, encoder) for name in rows.parts}
    collator = functools.partial(_collator, rows.task, job, encoder, config)
    lengths = _choose_lengths(
        parts, rows.task, encoder, at_most=_NUM_PROGRAMS - has_short_program
    )
    texts = [f"padded to {_in_words(lengths)}"]
    if encoder.num_cut:
        limits = "`max_length`"
        if rows.task.name == "seq2seq":
            limits += " or `max_target_length`"
        texts.append(f"{pluralize(encoder.num_cut, 'text')} cut at {limits}")
    if encoder.num_empty:
        texts.append(f"{pluralize(encoder.num_empty, 'text')} without words")
    return TaskExamples(
        parts=parts,
        collate=collator(lengths),
        collate_longest=collator(lengths[-1:]),
        lengths=lengths,
        decode=encoder.decode,
        max_target_length=encoder.max_target_length or _TARGET_LENGTH,
        notes=tuple(texts),
        fingerprint=lambda part: _hash(parts[part]),
    )


def _encoded(
    rows: TaskRows, name: str, job: LabelledJob, encoder: data.Encoder
) -> list[Example]:
    part, columns = rows.parts[name], rows.columns[name]
    texts = part.columns[columns.text]
    label = None if columns.label is None else part.columns[columns.label]
    if rows.task.name == "token-classification":
        # Without labels, class 0 marks the first token of each word.
        ids = [[0] * len(words) for words in texts]
        if label is not None:
            assert rows.classes is not None
            ids = data.label_ids(label, rows.classes, source=part.path)
        return [dict(example) for example in encoder.words(texts, ids)]
    if rows.task.name == "seq2seq":
        prefix = job.source_prefix or ""
        texts = [prefix + text if isinstance(text, str) else text for text in texts]
    pairs = None if columns.text_pair is None else part.columns[columns.text_pair]
    examples: list[Example] = [dict(x) for x in encoder.texts(texts, pairs)]
    if columns.target is not None:
        targets = encoder.targets(part.columns[columns.target])
        for example, target in zip(examples, targets, strict=True):
            example["labels"] = target
    if label is not None:
        found = data.label_ids(label, rows.classes, source=part.path)
        for example, one in zip(examples, found.tolist(), strict=True):
            example["label"] = one
    return examples


def _image_examples(
    rows: TaskRows, job: LabelledJob, config: Mapping[str, Any]
) -> TaskExamples:
    assert job.model_name_or_path is not None
    assert rows.classes is not None
    images = data.Images.from_folder(
        job.model_name_or_path, num_channels=config.get("num_channels")
    )
    parts: dict[str, list[Example]] = {}
    for name, part in rows.parts.items():
        columns = rows.columns[name]
        parts[name] = [{"image": image} for image in part.columns[columns.text]]
        if columns.label is not None:
            labels = data.label_ids(
                part.columns[columns.label], rows.classes, source=part.path
            )
            for example, label in zip(parts[name], labels.tolist(), strict=True):
                example["label"] = label
    return TaskExamples(
        parts=parts,
        collate=images,
        collate_longest=images,
        lengths=(),
        decode=None,
        max_target_length=0,
        notes=(),
        fingerprint=lambda part: _hash_files(rows.parts[part].path),
    )


def _collator(
    task: Task,
    job: LabelledJob,
    encoder: data.Encoder,
    config: Mapping[str, Any],
    lengths: Sequence[Any],
) -> Collate:
    """Returns the collator of a task that pads to the given lengths."""
    if task.name == "seq2seq":
        return data.Seq2SeqBatch(
            lengths,
            pad_token_id=encoder.pad_token_id,
            decoder_start_token_id=config.get("decoder_start_token_id"),
            ignore_pad_token_for_loss=job.ignore_pad_token_for_loss,
            padding_side=encoder.padding_side,
        )
    pad = data.PadToBuckets(
        lengths, encoder.pad_values, padding_side=encoder.padding_side
    )
    if task.name != "masked-lm":
        return pad
    return data.MaskedTokens(
        pad,
        mask_token_id=encoder.mask_token_id,
        vocab_size=encoder.vocab_size,
        special_token_ids=encoder.special_token_ids,
        mlm_probability=job.mlm_probability,
    )


def _choose_lengths(
    parts: Mapping[str, list[Example]],
    task: Task,
    encoder: data.Encoder,
    *,
    at_most: int,
) -> Sequence[Any]:
    examples = [example for part in parts.values() for example in part]
    found = _row_lengths(examples, is_pair=task.name == "seq2seq")
    if task.name == "seq2seq":
        pairs = data.choose_length_pairs(
            found,
            at_most=at_most,
            limit=(encoder.max_length, encoder.max_target_length),
        )
        # A batch may have the longest input and the longest target in different rows.
        longest = tuple(map(max, zip(*pairs, strict=True)))
        return sorted({*pairs, longest})
    return data.choose_lengths(found, at_most=at_most, limit=encoder.max_length)


def _row_lengths(examples: Sequence[Example], *, is_pair: bool) -> list[Any]:
    inputs = [len(example["input_ids"]) for example in examples]
    if not is_pair:
        return inputs
    # Rows to predict have no target.
    targets = [len(example.get("labels") or (0,)) for example in examples]
    return list(zip(inputs, targets, strict=True))


def _in_words(lengths: Sequence[Any]) -> str:
    shown = [
        " + ".join(map(str, one)) if isinstance(one, tuple) else str(one)
        for one in lengths
    ]
    return f"{', '.join(shown)} tokens"


def _check_vocabulary(encoder: data.Encoder, config: Mapping[str, Any]) -> None:
    size = (config.get("text_config") or config).get("vocab_size")
    if isinstance(size, int) and encoder.vocab_size > size:
        raise ValueError(
            "`tokenizer` must have at most as many tokens as the model, which has "
            f"{size:,}, got {encoder.vocab_size:,}. Give the tokenizer of the model, "
            "or enlarge the model with `resize_token_embeddings` of Transformers."
        )


class TaskBatches:
    """Updates to train on, whose micro-batches all have the shape of one length.

    The order of the rows is that of `data.ExampleBatches`. All rows of an update are
    collated at once. In the last update of an epoch, a short micro-batch is filled with
    rows without labels, if a loss can ignore them. An update with fewer micro-batches
    is padded to the longest length, so that it has one shape.
    """

    def __init__(
        self,
        rows: data.ExampleBatches,
        examples: Sequence[Example],
        collate: Collate,
        *,
        batch_size: int,
        seed: int,
        is_filled: bool,
    ):
        """Stores the arguments.

        Args:
            rows: numbers of the rows of the micro-batches.
            examples: the examples.
            collate: collator of all rows of an update.
            batch_size: number of rows in a micro-batch.
            seed: seed of the random numbers that `collate` draws.
            is_filled: whether short micro-batches are filled.
        """
        self._rows, self._examples, self._collate = rows, examples, collate
        self._batch_size, self._seed = batch_size, seed
        self._is_filled = is_filled
        self.num_examples = rows.num_examples
        self.steps_per_epoch = rows.steps_per_epoch

    def iter_from(self, start: int) -> Iterator[list[dict[str, np.ndarray]]]:
        """Yields the updates from `start` on, each a list of micro-batches."""
        n = start
        while True:
            yield self[n]
            n += 1

    def __getitem__(self, n: int) -> list[dict[str, np.ndarray]]:
        """Returns the micro-batches of update `n`."""
        micro = self._rows.rows(n)
        with data.seeded_generators(self._seed, n):
            arrays = self._collate([self._examples[i] for part in micro for i in part])
        size = self._batch_size
        if self._is_filled:
            arrays = data.fill_rows(arrays, len(micro) * size)
        return [
            {name: x[i * size : (i + 1) * size] for name, x in arrays.items()}
            for i in range(len(micro))
        ]


def _hash(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256(str(len(examples)).encode())
    for example in examples:
        for name in sorted(example):
            digest.update(name.encode())
            digest.update(np.asarray(example[name]).tobytes())
    return digest.hexdigest()


def _hash_files(path: Path) -> str:
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(path.rglob("*.arrow")):
        with file.open("rb") as opened:
            while part := opened.read(2**20):
                digest.update(part)
    return digest.hexdigest()
